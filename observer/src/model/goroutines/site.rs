//! Where goroutines stand, in words of the program: what they wait for, the line of its own code, and who started them.

use crate::proc::{Frame, GoState, GoroutineGroup, Stack, base_name};

/// A place in a source file.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    /// Function, as Go names it: `main.(*Cache).Get`.
    pub function: String,
    /// File; empty if unknown.
    pub file: String,
    /// Line in it; 0 if unknown.
    pub line: u32,
}

impl Place {
    pub(super) fn of(frame: &Frame) -> Option<Self> {
        let function = frame.function.clone()?;
        Some(Self { function, file: frame.file.clone().unwrap_or_default(), line: frame.line.unwrap_or(0) })
    }

    /// `main.leak (leak.go:12)`.
    pub fn describe(&self) -> String {
        let file = base_name(&self.file);
        match (file, self.line) {
            ("", _) => self.function.clone(),
            (file, 0) => format!("{} ({file})", self.function),
            (file, line) => format!("{} ({file}:{line})", self.function),
        }
    }
}

/// What kind of wait it is, by the runtime's reason and the frames under it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum GoClass {
    /// Not parked: in a run queue, on a thread, on its way.
    Active,
    /// In a system call or in C.
    Syscall,
    /// A send or a receive on a nil channel, or a `select` without cases: never ends.
    Forever,
    /// `chan send`.
    Send,
    /// `chan receive`.
    Receive,
    /// `select`.
    Select,
    /// A lock of `sync`.
    Lock,
    /// `sync.WaitGroup.Wait`.
    WaitGroup,
    /// `sync.Cond.Wait`.
    Cond,
    /// A semaphore of which the frames say no more, of `internal/poll` for example.
    Semaphore,
    /// The network poller.
    Io,
    /// `time.Sleep`.
    Sleep,
    /// The collector holds it up.
    Gc,
    /// Anything else, the runtime's own rest included.
    Other,
}

/// Group of goroutines that count as the same: however they came there.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Site {
    /// What they do.
    pub state: GoState,
    /// What kind of wait it is.
    pub class: GoClass,
    /// The reason in the runtime's words; empty unless they wait.
    pub reason: String,
    /// Innermost frame of the program's own code, or of the libraries it uses; of the standard library where no other is.
    pub place: Place,
    /// The `go` statement that started them.
    pub created_by: Option<Place>,
    /// Part of the runtime.
    pub is_system: bool,
}

impl Site {
    /// The site of a group. `None` if it has no stack: nothing can be said of where it stands.
    pub fn of(group: &GoroutineGroup) -> Option<Self> {
        let place = place(&group.stack)?;
        let created_by = group.created_by.as_ref();
        let created_by = created_by.map(|(function, file, line)| Place {
            function: function.clone(),
            file: file.clone(),
            line: *line,
        });
        let (state, is_system) = (group.state, group.is_system);
        Some(Self { state, class: class(group), reason: group.reason.clone(), place, created_by, is_system })
    }

    /// Whether place or creator is the program's own code.
    pub fn is_own(&self) -> bool {
        let created = self.created_by.as_ref();
        !is_standard(&self.place.function) || created.is_some_and(|place| !is_standard(&place.function))
    }

    /// Tells sites of one process apart, the same in every run.
    pub fn key(&self) -> String {
        let created = self.created_by.as_ref().map(Place::describe).unwrap_or_default();
        format!("{}/{}/{created}", self.reason, self.place.describe())
    }
}

/// Packages of the standard library, by the first part of their path.
const STANDARD: [&str; 52] = [
    "archive",
    "bufio",
    "builtin",
    "bytes",
    "cmp",
    "compress",
    "container",
    "context",
    "crypto",
    "database",
    "debug",
    "embed",
    "encoding",
    "errors",
    "expvar",
    "flag",
    "fmt",
    "go",
    "hash",
    "html",
    "image",
    "index",
    "internal",
    "io",
    "iter",
    "log",
    "maps",
    "math",
    "mime",
    "net",
    "os",
    "path",
    "plugin",
    "reflect",
    "regexp",
    "runtime",
    "slices",
    "sort",
    "strconv",
    "strings",
    "structs",
    "sync",
    "syscall",
    "testing",
    "text",
    "time",
    "unicode",
    "unique",
    "unsafe",
    "vendor",
    "weak",
    "golang_org",
];

/// The package of a function: `net/http` of `net/http.(*Server).Serve`.
pub(super) fn package(function: &str) -> &str {
    let after = function.rfind('/').map_or(0, |slash| slash + 1);
    let dot = function.get(after..).and_then(|rest| rest.find('.')).map_or(function.len(), |dot| after + dot);
    function.get(..dot).unwrap_or(function)
}

/// Whether a function belongs to the standard library. A module whose path begins like one of its packages and has no dot
/// is taken for it.
pub fn is_standard(function: &str) -> bool {
    let first = package(function).split('/').next().unwrap_or_default();
    STANDARD.contains(&first)
}

fn is_runtime(function: &str) -> bool {
    matches!(package(function).split('/').next(), Some("runtime" | "internal"))
}

/// The innermost frame of the program's own code.
fn place(stack: &Stack) -> Option<Place> {
    let named = || stack.frames.iter().filter(|frame| frame.function.is_some());
    let is = |test: fn(&str) -> bool| move |frame: &&Frame| frame.function.as_deref().is_some_and(|name| !test(name));
    let own = named().find(is(is_standard));
    let library = || named().find(is(|name| is_runtime(name) || package(name) == "sync"));
    own.or_else(library).or_else(|| named().next()).and_then(Place::of)
}

/// Whether the stack has a frame with this name.
fn has(stack: &Stack, name: &str) -> bool {
    stack.frames.iter().any(|frame| frame.function.as_deref() == Some(name))
}

/// What kind of wait a group is in.
pub(super) fn class(group: &GoroutineGroup) -> GoClass {
    match group.state {
        GoState::Syscall => return GoClass::Syscall,
        GoState::Waiting | GoState::Leaked => {}
        GoState::Runnable | GoState::Running | GoState::Preempted | GoState::Copystack => return GoClass::Active,
    }
    // Newer runtimes add `(durable)` or `(synctest)`.
    let reason = group.reason.strip_suffix(" (durable)").unwrap_or(&group.reason);
    match reason {
        "chan receive (nil chan)" | "chan send (nil chan)" | "select (no cases)" => GoClass::Forever,
        "chan send" => GoClass::Send,
        "chan receive" => GoClass::Receive,
        "select" => GoClass::Select,
        "sync.Mutex.Lock" | "sync.RWMutex.RLock" | "sync.RWMutex.Lock" => GoClass::Lock,
        "sync.WaitGroup.Wait" => GoClass::WaitGroup,
        "sync.Cond.Wait" => GoClass::Cond,
        // Before 1.20 all locks of `sync` are this, and wait groups are up to 1.23.
        "semacquire" => by_frames(&group.stack),
        "IO wait" => GoClass::Io,
        "sleep" => GoClass::Sleep,
        "GC assist marking"
        | "GC assist wait"
        | "wait for GC cycle"
        | "GC weak to strong wait"
        | "stopping the world"
        | "garbage collection"
        | "garbage collection scan" => GoClass::Gc,
        _ => GoClass::Other,
    }
}

fn by_frames(stack: &Stack) -> GoClass {
    const LOCKS: [&str; 5] = [
        "sync.(*Mutex).Lock",
        "sync.(*Mutex).lockSlow",
        "internal/sync.(*Mutex).lockSlow",
        "sync.(*RWMutex).Lock",
        "sync.(*RWMutex).RLock",
    ];
    // What the runtime itself guards with its semaphores: a stop of the world that is under way.
    const OF_GC: [&str; 4] = ["runtime.stopTheWorld", "runtime.stopTheWorldGC", "runtime.GC", "runtime.gcStart"];
    if LOCKS.iter().any(|name| has(stack, name)) {
        GoClass::Lock
    } else if has(stack, "sync.(*WaitGroup).Wait") {
        GoClass::WaitGroup
    } else if OF_GC.iter().any(|name| has(stack, name)) {
        GoClass::Gc
    } else {
        GoClass::Semaphore
    }
}

/// Whether this goroutine is one of `os/signal`: it waits for a signal.
pub fn waits_for_signals(stack: &Stack) -> bool {
    stack.frames.iter().any(|frame| frame.function.as_deref().is_some_and(|name| name.starts_with("os/signal.")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packages() {
        for (function, expected, standard) in [
            ("main.main.func1", "main", false),
            ("net/http.(*persistConn).readLoop", "net/http", true),
            ("github.com/a/b.v2/c.(*T).F", "github.com/a/b.v2/c", false),
            ("internal/poll.(*FD).Read", "internal/poll", true),
            ("shop/cart.Add[...]", "shop/cart", false),
            ("", "", false),
        ] {
            assert_eq!((package(function), is_standard(function)), (expected, standard), "{function}");
        }
    }
}
