//! What a type of tasks is called: the future that its poll function was made for.

use super::vtables::Vtable;
use crate::explain::library::Loaded;
use std::collections::HashMap;

/// Names are cut here, bytes.
const MAX_NAME: usize = 512;

/// Bytes of a function that are searched for calls.
const MAX_CODE: usize = 16 << 10;
/// Calls of a function that are followed.
const MAX_CALLS: usize = 256;
/// What a task is made of: each has the future as its first argument.
const PARTS: [&str; 4] = ["Cell<", "Core<", "CoreStage<", "Stage<"];

/// What a type of tasks is called.
#[derive(Clone, Debug, Default)]
pub(in crate::explain) struct Name {
    /// The symbol of the function that polls.
    pub(super) function: Option<String>,
    /// The future that it polls.
    pub(super) future: Option<String>,
    /// It may be another one with the same code.
    pub(super) shared: bool,
}

/// Names of types that were looked up, by the address of their table.
pub(in crate::explain) type Kept = HashMap<u64, Name>;

/// Names a type of tasks as far as its file does. What was found is kept with the file: to look it up may mean a walk through
/// debug information, which stacks need, too, and of which so much may be read and no more.
pub(super) fn of(loaded: &Loaded, vtable: &Vtable) -> Name {
    if let Some(known) = loaded.task_names().get(&vtable.svma) {
        return known.clone();
    }
    let name = looked_up(loaded, vtable);
    loaded.task_names().insert(vtable.svma, name.clone());
    name
}

/// Symbols of the v0 mangling tell the future. Those of the old one do not; then debug information may, or the function that
/// frees a task: it calls another that drops the future, and the symbols of those have their types in either mangling. Of
/// small futures the compiler keeps one copy of that.
fn looked_up(loaded: &Loaded, vtable: &Vtable) -> Name {
    let function = symbol(loaded, vtable.poll).map(|(name, _)| name);
    let by_symbol = function.as_deref().and_then(|name| future("poll", name));
    let known = by_symbol.or_else(|| future("poll", &loaded.names().declared(vtable.poll)?));
    if known.is_some() {
        let sharing = loaded.tasks().vtables.iter().filter(|other| other.poll == vtable.poll).count();
        return Name { function, future: known, shared: sharing > 1 };
    }
    let future = called(loaded, vtable.dealloc);
    Name { function, shared: future.is_some(), future }
}

/// The function that begins here, and its length in bytes.
fn symbol(loaded: &Loaded, svma: u64) -> Option<(String, u64)> {
    let mut found = loaded.names().lookup(svma, false);
    let len = found.symbol.filter(|range| range.start == svma).map_or(0, |range| range.end - range.start);
    Some((found.frames.pop()?.function?, len))
}

/// The future of the task whose parts a function drops.
fn called(loaded: &Loaded, svma: u64) -> Option<String> {
    let (_, len) = symbol(loaded, svma)?;
    let code = loaded.image.at(svma)?;
    let code = &code[..code.len().min(MAX_CODE).min(usize::try_from(len).ok()?)];
    let ends = |(at, bytes): (usize, &[u8])| match bytes {
        // `call` and `jmp`, relative. Where these bytes are something else, no function of such a name begins there.
        [0xe8 | 0xe9, offset @ ..] => {
            let offset = i32::from_le_bytes(offset.try_into().ok()?);
            Some(svma.wrapping_add(at as u64 + 5).wrapping_add_signed(offset.into()))
        }
        _ => None,
    };
    code.windows(5).enumerate().filter_map(ends).take(MAX_CALLS).find_map(|target| {
        let (name, len) = symbol(loaded, target)?;
        dropped(&name).filter(|_| len > 0)
    })
}

/// `server::handle` of `core::ptr::drop_in_place<tokio::runtime::task::core::Stage<server::handle>>`.
fn dropped(function: &str) -> Option<String> {
    let (_, parts) = function.split_once("drop_in_place")?;
    let (_, part) = parts.split_once("tokio::runtime::task::core::")?;
    PARTS.iter().find_map(|name| first_argument(part.strip_prefix(name)?))
}

/// The first argument of a function of this name: `server::handle::{closure#0}` of `tokio::runtime::task::raw::poll::<server::handle::{closure#0}, Arc<Handle>>`.
fn future(of: &str, function: &str) -> Option<String> {
    let (path, arguments) = function.split_once('<')?;
    (path.trim_end_matches("::").rsplit("::").next()? == of).then(|| first_argument(arguments))?
}

/// The first of type arguments, behind their `<`.
fn first_argument(arguments: &str) -> Option<String> {
    let mut depth = 0_u32;
    let mut before = ' ';
    let end = arguments.char_indices().find(|(_, c)| {
        match c {
            '<' | '(' | '[' | '{' => depth += 1,
            // The arrow of a function type closes nothing.
            '>' if before == '-' => {}
            '>' | ')' | ']' | '}' if depth == 0 => return true,
            '>' | ')' | ']' | '}' => depth -= 1,
            ',' if depth == 0 => return true,
            _ => {}
        }
        before = *c;
        false
    });
    let name = arguments.get(..end?.0)?.trim();
    // Debug information names the variables of an `async` block, not the block.
    let name = ["async_block", "async_fn", "closure", "coroutine", "gen_block"]
        .iter()
        .fold(name.to_owned(), |name, kind| name.replace(&format!("{{{kind}_env#"), &format!("{{{kind}#")));
    // Debug builds of tokio put every future into a box, and a box is the same future.
    let boxed = name.strip_prefix("core::pin::Pin<alloc::boxed::Box<").and_then(|rest| rest.strip_suffix(">>"));
    let boxed = boxed.map(|rest| rest.strip_suffix(", alloc::alloc::Global").unwrap_or(rest).to_owned());
    let name = boxed.unwrap_or(name);
    let cut = name.floor_char_boundary(MAX_NAME);
    (!name.is_empty()).then(|| name[..cut].to_owned())
}

#[cfg(test)]
mod tests {
    use super::{dropped, future};

    #[test]
    fn futures() {
        for (function, wanted) in [
            (
                "tokio::runtime::task::raw::poll::<server::run::{closure#0}::{closure#0}, alloc::sync::Arc<Handle>>",
                Some("server::run::{closure#0}::{closure#0}"),
            ),
            (
                "poll<server::main::{async_block_env#1}, alloc::sync::Arc<Handle, alloc::alloc::Global>>",
                Some("server::main::{async_block#1}"),
            ),
            ("a::raw::poll::<core::pin::Pin<alloc::boxed::Box<dyn F<A, B> + Send>>, B>", Some("dyn F<A, B> + Send")),
            ("poll<core::pin::Pin<alloc::boxed::Box<a::b, alloc::alloc::Global>>, B>", Some("a::b")),
            ("raw::poll::<fn(u8, u16) -> Vec<u8>, B>", Some("fn(u8, u16) -> Vec<u8>")),
            ("poll::<A>", Some("A")),
            ("tokio::runtime::task::raw::poll", None),
            ("raw::schedule::<A, B>", None),
            ("raw::poll::<A", None),
            ("raw::poll::<>", None),
            ("<A as B>::poll", None),
            ("", None),
        ] {
            assert_eq!(future("poll", function).as_deref(), wanted, "{function}");
        }
        assert!(future("poll", &format!("poll::<{}, B>", "ä".repeat(5000))).is_some_and(|name| name.len() <= 512));
        assert_eq!(future("poll", &format!("poll::<{}", "<".repeat(100_000))), None);
    }

    #[test]
    fn futures_that_are_dropped() {
        let drops = |of: &str| format!("core::ptr::drop_in_place<{of}>");
        for (of, wanted) in [
            ("tokio::runtime::task::core::Cell<a::b::{{closure}},alloc::sync::Arc<H>>", Some("a::b::{{closure}}")),
            ("alloc::boxed::Box<tokio::runtime::task::core::Cell<a::B<C,D>,H>>", Some("a::B<C,D>")),
            ("tokio::runtime::task::core::Stage<a::b::{{closure}}>", Some("a::b::{{closure}}")),
            ("tokio::runtime::task::core::CoreStage<a::b>", Some("a::b")),
            ("tokio::runtime::task::core::Trailer", None),
            ("a::B", None),
        ] {
            assert_eq!(dropped(&drops(of)).as_deref(), wanted, "{of}");
        }
        assert_eq!(dropped("tokio::runtime::task::core::Cell<a, b>::new"), None);
    }
}
