//! User stacks as a report has them, and names that two unwinders spell differently made comparable.

use crate::victim::address;
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::fmt;

/// One frame.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Frame {
    /// Function as it was said.
    pub function: Option<String>,
    /// Source file.
    pub file: Option<String>,
    /// Line in it.
    pub line: Option<u64>,
    /// Path of the mapped file.
    pub module: Option<String>,
    /// Offset within it.
    pub offset: Option<u64>,
    /// Build-id of the mapped file.
    pub build_id: Option<String>,
    /// Program counter: for a caller the address it returns to.
    pub address: Option<u64>,
    /// Whether the compiler put it into the next frame's function.
    pub inlined: bool,
    /// `registers`, `unwinding`, `frame_pointer` or `scan`.
    pub found_by: Option<String>,
}

impl Frame {
    fn read(frame: &Value) -> Self {
        let text = |key: &str| frame[key].as_str().map(str::to_owned);
        Self {
            function: text("function"),
            file: text("file"),
            line: frame["line"].as_u64(),
            module: text("module"),
            offset: address(&frame["offset"]),
            build_id: text("build_id"),
            address: address(&frame["address"]),
            inlined: frame["inlined"] == true,
            found_by: text("found_by"),
        }
    }

    /// Whether it is this function: `bank::transfer` is also `program::bank::transfer::<T>`.
    pub fn is(&self, expected: &str) -> bool {
        let Some(name) = self.function.as_deref().map(plain) else {
            return false;
        };
        name == expected || name.strip_suffix(expected).is_some_and(|front| front.ends_with("::"))
    }
}

/// A stack, innermost frame first.
#[derive(Clone, PartialEq, Eq)]
pub struct Stack {
    /// Its frames.
    pub frames: Vec<Frame>,
    /// `root`, or why the walk stopped.
    pub end: String,
}

impl Stack {
    /// Reads the stack of a thread of a report.
    pub fn read(thread: &Value) -> Result<Self> {
        let frames = thread["stack"].as_array().context("a thread has a stack, be it empty")?;
        let end = thread["stack_end"].as_str().unwrap_or("(no stack_end)").to_owned();
        Ok(Self { frames: frames.iter().map(Frame::read).collect(), end })
    }

    /// Its functions.
    pub fn names(&self) -> Vec<&str> {
        self.frames.iter().map(|frame| frame.function.as_deref().unwrap_or("?")).collect()
    }

    /// Whether the walk reached the thread's first function.
    pub fn ends_at_root(&self) -> bool {
        self.end == "root"
    }

    /// The frames of these functions, which must be there in this order; others may lie between them.
    pub fn expect_chain(&self, chain: &[&str]) -> Result<Vec<&Frame>> {
        let mut rest = self.frames.iter();
        let mut found = Vec::new();
        for expected in chain {
            let frame = rest.find(|frame| frame.is(expected));
            found.push(frame.with_context(|| format!("expected {chain:?}, {expected} is missing: {self:?}"))?);
        }
        Ok(found)
    }

    /// Fails unless the walk reached the root.
    pub fn expect_root(&self) -> Result<()> {
        ensure!(self.ends_at_root(), "did not reach its root: {self:?}");
        Ok(())
    }
}

impl fmt::Debug for Stack {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(out, "{} frames, end: {}", self.frames.len(), self.end)?;
        for (at, frame) in self.frames.iter().enumerate().take(60) {
            let name = frame.function.as_deref().unwrap_or("?");
            let by = frame.found_by.as_deref().unwrap_or("?");
            let mark = if frame.inlined { " (inlined)" } else { "" };
            let module = frame.module.as_deref().unwrap_or("?");
            let offset = frame.offset.unwrap_or(0);
            write!(out, "  #{at} {:#x} {name}{mark} {module}+{offset:#x} by {by}", frame.address.unwrap_or(0))?;
            writeln!(out, " {}:{}", frame.file.as_deref().unwrap_or("?"), frame.line.unwrap_or(0))?;
        }
        Ok(())
    }
}

/// A function's name without what tools spell differently: parameters, generic arguments, return type, hash, symbol
/// version, the compiler's clones, number of a closure, and glibc's names for the same function.
pub fn plain(name: &str) -> String {
    let name = name.split_once("@@").map_or(name, |(front, _)| front);
    let name = name.split_once(" [clone").map_or(name, |(front, _)| front);
    let name = match name.rsplit_once("::h") {
        Some((front, hash)) if hash.len() == 16 && hash.bytes().all(|b| b.is_ascii_hexdigit()) => front,
        _ => name,
    };
    let name = name.replace("{{vtable.shim}}", "").replace("::{shim:vtable#0}", "");
    let name = qualified(&name).replace("{{closure}}", "{closure}").replace("->", "").replace("operator()", "operator");
    let mut flat = String::new();
    let mut nesting = 0_usize;
    for c in name.chars() {
        match c {
            '(' | '<' => nesting += 1,
            ')' | '>' => nesting = nesting.saturating_sub(1),
            c if nesting == 0 => flat.push(c),
            _ => {}
        }
    }
    let flat = flat.trim().trim_end_matches("const").trim();
    let flat = flat.rsplit(' ').next().unwrap_or_default();
    let flat = flat.trim_end_matches("::").replace("::::", "::");
    let parts: Vec<&str> = flat
        .split("::")
        .map(|part| if part.starts_with("{closure") || part.starts_with("{async_") { "{closure}" } else { part })
        .map(|part| ["part", "constprop", "isra", "cold", "llvm"].iter().fold(part, |part, clone| without(part, clone)))
        .collect();
    match parts.as_slice() {
        [one] => c_library(one).to_owned(),
        _ => parts.join("::"),
    }
}

/// `<a::T>::f` and `<a::T as b::Trait>::f`, as the new mangling of Rust has them, are `a::T::f`.
fn qualified(name: &str) -> String {
    let Some(inner) = name.strip_prefix('<') else { return name.to_owned() };
    let mut depth = 1_usize;
    let mut stop = None;
    for (at, c) in inner.char_indices() {
        match c {
            '<' => depth += 1,
            // Not the arrow of a function type.
            '>' if !inner[..at].ends_with('-') => depth -= 1,
            ' ' if depth == 1 && stop.is_none() && inner[at..].starts_with(" as ") => stop = Some(at),
            _ => {}
        }
        if depth == 0 {
            return qualified(&format!("{}{}", &inner[..stop.unwrap_or(at)], &inner[at + 1..]));
        }
    }
    name.to_owned()
}

fn without<'a>(name: &'a str, clone: &str) -> &'a str {
    name.split_once(&format!(".{clone}")).map_or(name, |(front, _)| front)
}

/// `__GI___libc_read`, `__libc_read` and `read` are one function.
fn c_library(name: &str) -> &str {
    let name = name.trim_start_matches('_');
    let name = name.strip_prefix("GI_").unwrap_or(name).trim_start_matches('_');
    let name = name.strip_prefix("libc_").unwrap_or(name);
    name.strip_suffix("_impl").unwrap_or(name)
}

/// The last part of a name: all that a debugger says of a Rust function with line tables only.
pub fn last_part(name: &str) -> String {
    let name = plain(name);
    c_library(name.rsplit("::").next().unwrap_or_default()).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_one_function_are_made_equal() {
        for (name, expected) in [
            ("__GI___libc_read", "read"),
            ("___pthread_mutex_lock", "pthread_mutex_lock"),
            ("__libc_start_main@@GLIBC_2.34", "start_main"),
            ("__libc_start_main_impl", "start_main"),
            ("int ledger::lock_book<int>(std::mutex&, int)", "ledger::lock_book"),
            ("ledger::Book<int>::post(int)", "ledger::Book::post"),
            ("(anonymous namespace)::blocked_here", "::blocked_here"),
            ("std::function<int (int)>::operator()(int) const", "std::function::operator"),
            ("operator()", "operator"),
            ("blocked_rust::bank::transfer::h0123456789abcdef", "blocked_rust::bank::transfer"),
            (
                "<blocked_rust::bank::Account as blocked_rust::bank::Lock>::lock_account",
                "blocked_rust::bank::Account::lock_account",
            ),
            ("blocked_rust::main::{{closure}}", "blocked_rust::main::{closure}"),
            ("{closure#3}<main::{closure_env#0}, u64>", "{closure}"),
            ("tokio_hang::handle::{async_fn#0}", "tokio_hang::handle::{closure}"),
            ("work.constprop.0", "work"),
            ("main.blockedHere", "main.blockedHere"),
        ] {
            assert_eq!(plain(name), expected, "{name}");
        }
    }

    #[test]
    fn a_chain_is_a_subsequence() -> Result<()> {
        let thread = serde_json::json!({ "stack": [{"function": "read"}, {"function": "a::inner"}, {"function": null},
            {"function": "outer"}], "stack_end": "root" });
        let stack = Stack::read(&thread)?;
        stack.expect_chain(&["read", "inner", "outer"])?;
        stack.expect_root()?;
        assert!(stack.expect_chain(&["outer", "inner"]).is_err());
        assert!(stack.expect_chain(&["nner"]).is_err());
        Ok(())
    }
}
