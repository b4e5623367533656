//! Kernel addresses to symbols.

use std::{fs, io};
use thiserror::Error;

/// Why kernel symbols are not available.
#[derive(Debug, Error)]
pub enum KallsymsError {
    /// Not readable.
    #[error("cannot read /proc/kallsyms: {0}; the kernel needs CONFIG_KALLSYMS=y")]
    Read(#[from] io::Error),
    /// All addresses are zero.
    #[error(
        "/proc/kallsyms shows zeros (kernel.kptr_restrict={restrict}); run with CAP_SYSLOG, or \
         `sysctl kernel.kptr_restrict=1`"
    )]
    Hidden {
        /// Value of the setting.
        restrict: String,
    },
}

/// The kernel's symbol table, sorted by address.
#[derive(Debug, Default)]
pub struct Kallsyms {
    symbols: Vec<(u64, Box<str>)>,
}

impl Kallsyms {
    /// Reads `/proc/kallsyms` (some 10 MB, tens of milliseconds): call it when the first kernel stack is
    /// to be shown, and keep the result.
    pub fn load() -> Result<Self, KallsymsError> {
        let table = Self::parse(&fs::read("/proc/kallsyms")?);
        if table.symbols.is_empty() {
            let restrict = fs::read_to_string("/proc/sys/kernel/kptr_restrict").unwrap_or_default();
            return Err(KallsymsError::Hidden { restrict: restrict.trim().to_owned() });
        }
        Ok(table)
    }

    /// Reads the table's text: `address type name [module]` a line; anything else is passed over.
    pub fn parse(text: &[u8]) -> Self {
        let mut symbols: Vec<(u64, Box<str>)> = text
            .split(|&byte| byte == b'\n')
            .filter_map(|line| {
                let line = std::str::from_utf8(line).ok()?;
                let mut words = line.split_whitespace();
                let address = u64::from_str_radix(words.next()?, 16).ok()?;
                let kind = words.next()?;
                let name = words.next()?;
                // Code only: the stack has nothing else.
                (address != 0 && matches!(kind, "t" | "T" | "w" | "W") && !name.starts_with("__pfx_"))
                    .then(|| (address, name.into()))
            })
            .collect();
        symbols.sort_by_key(|(address, _)| *address);
        Self { symbols }
    }

    /// `symbol+0xoffset`, or the bare address where no symbol is near (1 MiB).
    pub fn name(&self, address: u64) -> String {
        let after = self.symbols.partition_point(|(start, _)| *start <= address);
        match after.checked_sub(1).and_then(|at| self.symbols.get(at)) {
            Some((start, name)) if address - start < 1 << 20 => {
                format!("{name}+{:#x}", address - start)
            }
            _ => format!("{address:#x}"),
        }
    }

    /// The address of a symbol.
    pub fn address(&self, name: &str) -> Option<u64> {
        self.symbols.iter().find(|(_, symbol)| &**symbol == name).map(|(address, _)| *address)
    }
}

#[cfg(test)]
mod tests {
    use super::Kallsyms;

    #[test]
    fn an_address_is_named_by_the_symbol_before_it() {
        let table = Kallsyms::parse(
            b"ffff000000002000 T second\nffff000000001000 t first\t[module]\nffff000000001800 d data\nbad\n\xff\xff\n",
        );
        assert_eq!(table.name(0xffff_0000_0000_1010), "first+0x10");
        assert_eq!(table.name(0xffff_0000_0000_2000), "second+0x0");
        assert_eq!(table.name(0x10), "0x10");
        assert_eq!(table.address("second"), Some(0xffff_0000_0000_2000));
    }

    #[test]
    fn hidden_addresses_make_an_empty_table() {
        assert!(Kallsyms::parse(b"0000000000000000 T first\n").symbols.is_empty());
    }
}
