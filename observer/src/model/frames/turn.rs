//! Whose turn a worker was in the middle of when it blocked: the outermost frame of the task itself.

use super::table::{self, Means};
use super::{JobKind, name};
use crate::proc::stack::Frame;

/// What runs tasks, and what is around any future: nothing of the program's own.
const AROUND: [&str; 5] = ["tokio::", "core::", "std::", "alloc::", "__rust"];

/// The outermost frame of the task that this thread is in the middle of, if its stack shows one: the future that was
/// spawned, or what it was inlined into. `None` where no frame is that of a task's turn.
pub fn turn_of(frames: &[Frame]) -> Option<&Frame> {
    let names: Vec<Option<String>> =
        frames.iter().map(|frame| frame.function.as_deref().map(name::normalised).filter(|n| !n.is_empty())).collect();
    let is_turn = |at: usize| {
        let outside = names.get(at + 1).and_then(Option::as_deref);
        let row = names.get(at)?.as_deref().and_then(|this| table::row_of(this, outside))?;
        matches!(row.means, Means::Runs(JobKind::Turn)).then_some(at)
    };
    let turn = (0..frames.len()).find_map(is_turn)?;
    (0..turn).rev().find_map(|at| {
        let name = names.get(at)?.as_deref()?;
        let is_own = !AROUND.iter().any(|prefix| name.starts_with(prefix));
        frames.get(at).filter(|_| is_own)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frames(names: &[&str]) -> Vec<Frame> {
        let frame = |name: &&str| Frame { function: Some((*name).to_owned()), ..Frame::default() };
        names.iter().map(frame).collect()
    }

    #[test]
    fn the_future_of_the_task() {
        let stack = frames(&[
            "std::sys::sync::mutex::futex::Mutex::lock_contended",
            "server::lock_it",
            "server::handle::{{closure}}",
            "<core::pin::Pin<P> as core::future::future::Future>::poll",
            "tokio::runtime::task::core::Core<T,S>::poll::{{closure}}",
            "tokio::runtime::task::raw::poll",
            "tokio::runtime::scheduler::multi_thread::worker::Context::run_task",
            "tokio::runtime::scheduler::multi_thread::worker::run",
            "server::start_worker",
        ]);
        assert_eq!(turn_of(&stack).and_then(|frame| frame.function.as_deref()), Some("server::handle::{{closure}}"));
        // Not in a turn; a turn of nothing but the runtime.
        assert_eq!(turn_of(&stack[..5]), None);
        assert_eq!(turn_of(&stack[4..]), None);
        assert_eq!(turn_of(&[]), None);
    }
}
