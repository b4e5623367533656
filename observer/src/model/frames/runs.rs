//! Which initialisers a thread is in the middle of.

use super::table::{self, Means};
use super::{Reading, name};
use crate::proc::stack::Frame;

/// The frames that run something that is done once, by their number as [`Mention`](crate::proc::Mention) counts them:
/// functions that were inlined have none of their own. The one in which the thread only waits for another is not among them.
pub fn runs_once(frames: &[Frame], reading: Option<&Reading>) -> Vec<u32> {
    let waits = reading.is_some_and(|reading| reading.lock.is_some_and(|lock| lock.once));
    let mut found = Vec::new();
    let mut number = 0;
    for (at, frame) in frames.iter().enumerate() {
        let named = |frame: &Frame| frame.function.as_deref().map(name::normalised);
        let outside = frames.get(at + 1).and_then(named);
        let row = named(frame).and_then(|this| table::row_of(&this, outside.as_deref()));
        if row.is_some_and(|row| matches!(row.means, Means::Once(_))) && found.last() != Some(&number) {
            found.push(number);
        }
        number += u32::from(!frame.inlined);
    }
    if waits && !found.is_empty() {
        found.remove(0);
    }
    found
}
