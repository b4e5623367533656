//! One form for the names of functions, whatever mangled and demangled them: a path of segments without
//! arguments, type arguments, hashes, closures and the marks of linkers and compilers.

/// A piece that a walk over a name leaves out: what opens it, and what closes it.
const LEFT_OUT: [(char, char); 3] = [('<', '>'), ('[', ']'), ('{', '}')];

/// Suffixes of symbols that compilers make from a function's own name.
const MADE_BY_COMPILER: [&str; 7] = [".constprop.", ".isra.", ".part.", ".cold", ".llvm.", ".lto_priv.", ".abi0"];

/// The path of a function: `<std[e282]::sys::sync::mutex::futex::Mutex>::lock_contended` and
/// `std::sys::sync::mutex::futex::Mutex::lock_contended::h0123456789abcdef` are the same.
pub(super) fn normalised(name: &str) -> String {
    let name = name.split('@').next().unwrap_or_default();
    let name = name.split(" [clone").next().unwrap_or_default().trim();
    let name = MADE_BY_COMPILER.iter().fold(name, |name, mark| name.split(mark).next().unwrap_or_default());
    let path = match own_type(name) {
        // `<Type as Trait>::method`, `<Type>::method`: a method of that type.
        Some((own, rest)) => format!("{}{}", plain(own), plain(rest)),
        None => plain(name),
    };
    let mut segments: Vec<&str> = path.split("::").filter(|segment| !segment.is_empty()).collect();
    if segments.last().is_some_and(|last| is_hash(last)) {
        segments.pop();
    }
    segments.join("::")
}

/// Whether a function is the one a table names. A pattern with `::` is the end of a path; one without is a whole
/// name of C or Go, in which leading underscores and `GI_` do not count. `*` at its end stands for anything.
pub(super) fn matches(pattern: &str, normalised: &str) -> bool {
    let fits = |pattern: &str, text: &str| match pattern.strip_suffix('*') {
        Some(start) => text.starts_with(start),
        None => text == pattern,
    };
    if !pattern.contains("::") {
        return !normalised.contains("::") && fits(bare(pattern), bare(normalised));
    }
    let mut segments = normalised.rsplit("::");
    pattern.rsplit("::").all(|wanted| segments.next().is_some_and(|segment| fits(wanted, segment)))
}

/// The last segment of a path; of a name of C, all that counts in a comparison.
pub(super) fn last_segment(path: &str) -> &str {
    match path.rsplit_once("::") {
        Some((_, last)) => last,
        None => bare(path),
    }
}

/// A name of C without the marks of internal and versioned symbols.
fn bare(name: &str) -> &str {
    let name = name.trim_start_matches('_');
    name.strip_prefix("GI_").unwrap_or(name).trim_start_matches('_')
}

/// Splits `<Type as Trait>::method` into the type and what follows.
fn own_type(name: &str) -> Option<(&str, &str)> {
    let inside = name.strip_prefix('<')?;
    let end = closing(inside, '<', '>')?;
    let (own, rest) = (inside.get(..end)?, inside.get(end + 1..)?);
    let own = own.find(" as ").filter(|at| closing(own.get(..*at).unwrap_or_default(), '<', '>').is_none()).map_or(
        own,
        |at| {
            let before = own.get(..at).unwrap_or(own);
            // A trait of a type argument: `Job<T as Trait>`.
            if before.matches('<').count() == before.matches('>').count() { before } else { own }
        },
    );
    Some((own.trim_start_matches(['&', '*']).trim_start_matches("mut ").trim_start_matches("dyn "), rest))
}

/// Where the bracket that is open at the start of the text is closed.
fn closing(text: &str, open: char, close: char) -> Option<usize> {
    let mut depth = 0_usize;
    let mut before = ' ';
    for (at, c) in text.char_indices() {
        if c == open {
            depth += 1;
        } else if c == close && before != '-' {
            match depth.checked_sub(1) {
                Some(less) => depth = less,
                None => return Some(at),
            }
        }
        before = c;
    }
    None
}

/// The path without everything in brackets, and without what stands before and behind it (C++ result and arguments).
fn plain(name: &str) -> String {
    let mut path = String::with_capacity(name.len());
    let mut rest = name;
    while let Some(c) = rest.chars().next() {
        let after = rest.get(c.len_utf8()..).unwrap_or_default();
        if let Some((open, close)) = LEFT_OUT.iter().find(|(open, _)| *open == c) {
            let end = closing(after, *open, *close).map_or(after.len(), |at| at + 1);
            rest = after.get(end..).unwrap_or_default();
            continue;
        }
        if let Some(after) = rest.strip_prefix("(anonymous namespace)") {
            rest = after;
            continue;
        }
        match c {
            '(' => break,
            c if c.is_whitespace() => path.clear(),
            c => path.push(c),
        }
        rest = after;
    }
    path
}

/// The hash at the end of a legacy Rust name: `h` and 16 hexadecimal digits.
fn is_hash(segment: &str) -> bool {
    segment.len() == 17 && segment.strip_prefix('h').is_some_and(|digits| digits.bytes().all(|b| b.is_ascii_hexdigit()))
}

#[cfg(test)]
mod tests {
    use super::{matches, normalised};

    #[test]
    fn names_of_all_kinds() {
        for (name, expected) in [
            (
                "<std[e28293b1aa0f68bd]::sys::sync::mutex::futex::Mutex>::lock_contended",
                "std::sys::sync::mutex::futex::Mutex::lock_contended",
            ),
            (
                "std::sys::sync::mutex::futex::Mutex::lock_contended",
                "std::sys::sync::mutex::futex::Mutex::lock_contended",
            ),
            (
                "parking_lot::raw_mutex::RawMutex::lock_slow::hafa5f9d901788627",
                "parking_lot::raw_mutex::RawMutex::lock_slow",
            ),
            (
                "<tokio::runtime::blocking::task::BlockingTask<T> as core::future::future::Future>::poll::h29e5f785834222fc",
                "tokio::runtime::blocking::task::BlockingTask::poll",
            ),
            (
                "<&std[e28293b1aa0f68bd]::io::stdio::Stdout as std[e28293b1aa0f68bd]::io::Write>::write_fmt",
                "std::io::stdio::Stdout::write_fmt",
            ),
            (
                "std::sync::mpmc::list::Channel<T>::recv::{{closure}}::h36e68d45c2fc6879",
                "std::sync::mpmc::list::Channel::recv",
            ),
            ("<std::sync::mpmc::list::Channel<()>>::recv::{closure#1}", "std::sync::mpmc::list::Channel::recv"),
            (
                "<rayon_core::job::StackJob<L,F,R> as rayon_core::job::Job>::execute",
                "rayon_core::job::StackJob::execute",
            ),
            (
                "tokio::runtime::task::raw::poll::<tk::handler::{closure#0}, alloc::sync::Arc<Handle>>",
                "tokio::runtime::task::raw::poll",
            ),
            ("void std::__detail::__platform_wait<int>(int const*, int)", "std::__detail::__platform_wait"),
            ("node::(anonymous namespace)::PlatformWorkerThread(void*)", "node::PlatformWorkerThread"),
            (
                "node::worker::Worker::StartThread(v8::FunctionCallbackInfo<v8::Value> const&)::{lambda(void*)#1}::_FUN(void*)",
                "node::worker::Worker::StartThread",
            ),
            ("jni_invoke_static(JNIEnv_*, JavaValue*) [clone .constprop.1]", "jni_invoke_static"),
            ("WatcherThread::sleep() const", "WatcherThread::sleep"),
            ("__new_sem_wait_slow64.constprop.0", "__new_sem_wait_slow64"),
            ("pthread_cond_wait@@GLIBC_2.3.2", "pthread_cond_wait"),
            ("runtime.futex.abi0", "runtime.futex"),
            ("operator->", "operator->"),
            ("<", ""),
            ("<<<>::", ""),
            ("", ""),
        ] {
            assert_eq!(normalised(name), expected, "{name}");
        }
    }

    #[test]
    fn patterns() {
        for (pattern, name, expected) in [
            ("pthread_mutex_lock", "___pthread_mutex_lock", true),
            ("__lll_lock_wait", "__GI___lll_lock_wait", true),
            ("worker", "pool::worker", false),
            ("Mutex::lock_contended", "std::sys::sync::mutex::futex::Mutex::lock_contended", true),
            ("Mutex::lock_contended", "my::FairMutex::lock_contended", false),
            ("Once::call", "call", false),
            ("pthread_cond_*", "pthread_cond_clockwait", true),
            ("mpmc::*::Channel::recv", "std::sync::mpmc::list::Channel::recv", true),
        ] {
            assert_eq!(matches(pattern, name), expected, "{pattern} on {name}");
        }
    }
}
