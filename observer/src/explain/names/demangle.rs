//! Names as the programmer wrote them.

use std::fmt::{self, Write};

/// Longer symbols are not demangled, bytes. Long ones exist (C++ templates), hostile ones too.
const MAX_RAW: usize = 8 << 10;
/// Names are cut here, bytes.
const MAX_NAME: usize = 2 << 10;

/// The name as the programmer wrote it: Rust (both manglings, without the hash) and C++ (Itanium); others unchanged.
///
/// At most some two kilobytes: a longer name is cut and ends in `…`.
pub fn demangle(raw: &str) -> String {
    let readable = if raw.len() > MAX_RAW { None } else { rust(raw).or_else(|| cpp(raw)) };
    readable.unwrap_or_else(|| {
        let mut name = Bounded::default();
        let _ = name.write_str(raw);
        name.0
    })
}

fn rust(raw: &str) -> Option<String> {
    // `_ZN..E` may be C++ as well: only a hash tells the old mangling.
    if !raw.starts_with("_R") && !raw.starts_with("__R") && !has_hash(raw) {
        return None;
    }
    let demangled = rustc_demangle::try_demangle(raw).ok()?;
    bounded(|name| write!(name, "{demangled:#}"))
}

/// Whether it has a component `17h` and 16 hexadecimal digits, at the end.
fn has_hash(raw: &str) -> bool {
    raw.match_indices("17h").any(|(at, _)| {
        let rest = &raw.as_bytes()[at + 3..];
        rest.len() > 16 && rest[..16].iter().all(u8::is_ascii_hexdigit) && rest[16] == b'E'
    })
}

fn cpp(raw: &str) -> Option<String> {
    if !raw.starts_with("_Z") && !raw.starts_with("__Z") && !raw.starts_with("_GLOBAL_") {
        return None;
    }
    // Parts the compiler split off: `.cold`, `.isra.0`, `.part.1`.
    let (symbol, part) = raw.split_once('.').map_or((raw, None), |(symbol, part)| (symbol, Some(part)));
    let parsed = cpp_demangle::BorrowedSymbol::with_tail(symbol.as_bytes()).ok()?;
    if !parsed.1.is_empty() {
        return None;
    }
    bounded(|name| {
        parsed.0.structured_demangle(name, &cpp_demangle::DemangleOptions::default())?;
        part.map_or(Ok(()), |part| write!(name, " [clone .{part}]"))
    })
}

fn bounded(write: impl FnOnce(&mut Bounded) -> fmt::Result) -> Option<String> {
    let mut name = Bounded::default();
    let result = write(&mut name);
    (result.is_ok() || name.1).then_some(name.0).filter(|name| !name.is_empty())
}

/// Text that ends at [`MAX_NAME`]; and whether it did.
#[derive(Default)]
struct Bounded(String, bool);

impl Write for Bounded {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        if self.1 {
            return Err(fmt::Error);
        }
        let room = MAX_NAME.saturating_sub(self.0.len());
        if text.len() <= room {
            self.0.push_str(text);
            return Ok(());
        }
        self.0.push_str(&text[..text.floor_char_boundary(room)]);
        self.0.push('…');
        self.1 = true;
        Err(fmt::Error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_mangling() {
        for (raw, name) in [
            (
                "_ZN3std3sys4sync5mutex5futex5Mutex14lock_contended17h0123456789abcdefE",
                "std::sys::sync::mutex::futex::Mutex::lock_contended",
            ),
            ("_RNvCs1234_7mycrate3foo", "mycrate::foo"),
            ("_ZN3foo3barEv", "foo::bar()"),
            ("_ZN3foo3barE", "foo::bar"),
            ("_ZN13ObjectMonitor5enterEP10JavaThread", "ObjectMonitor::enter(JavaThread*)"),
            ("_ZN3foo3barEv.cold", "foo::bar() [clone .cold]"),
            ("_ZNSt6vectorIiSaIiEE9push_backEOi", "std::vector<int, std::allocator<int> >::push_back(int&&)"),
            ("pthread_mutex_lock", "pthread_mutex_lock"),
            ("_Zqq", "_Zqq"),
            ("_R", "_R"),
            ("", ""),
            ("größe", "größe"),
        ] {
            assert_eq!(demangle(raw), name);
        }
    }

    #[test]
    fn names_are_bounded() {
        assert!(demangle(&"ä".repeat(1 << 20)).len() <= MAX_NAME + 3);
        // Each template argument is twice the one before it.
        let doubling = format!("_Z1fI1AI{}E{}EvT_", "S_".repeat(30), "S0_".repeat(200));
        assert!(demangle(&doubling).len() <= MAX_NAME + 3);
        let nested = format!("_Z1f{}i", "P".repeat(5000));
        assert!(demangle(&nested).len() <= MAX_NAME + 3);
        let v0 = format!("_RINvC1a1b{}E", "TB4_B4_E".repeat(500));
        assert!(demangle(&v0).len() <= MAX_NAME + 3);
    }
}
