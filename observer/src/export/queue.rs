//! A bounded queue between the loop and a sink: the loop never waits, the oldest is lost first.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// What a queue has, had and lost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QueueStats {
    /// Items in it.
    pub length: usize,
    /// Items it may have.
    pub capacity: usize,
    /// Items lost because it was full, since the start.
    pub dropped: u64,
    /// Items taken in, since the start.
    pub offered: u64,
}

/// A bounded queue for one reader.
#[derive(Debug)]
pub struct Queue<T> {
    capacity: usize,
    most_bytes: usize,
    weigh: fn(&T) -> usize,
    inner: Mutex<Inner<T>>,
    filled: Condvar,
}

#[derive(Debug)]
struct Inner<T> {
    items: VecDeque<T>,
    bytes: usize,
    dropped: u64,
    offered: u64,
    closed: bool,
}

impl<T> Queue<T> {
    /// A queue for so many items, at least one.
    pub fn new(capacity: usize) -> Self {
        Self::weighed(capacity, usize::MAX, |_| 0)
    }

    /// A queue for so many items that together have so many bytes, by `weigh`; at least one item, whatever its size.
    pub fn weighed(capacity: usize, most_bytes: usize, weigh: fn(&T) -> usize) -> Self {
        let inner = Inner { items: VecDeque::new(), bytes: 0, dropped: 0, offered: 0, closed: false };
        Self { capacity: capacity.max(1), most_bytes, weigh, inner: Mutex::new(inner), filled: Condvar::new() }
    }

    /// Whether an item of this size has no room.
    fn is_full(&self, inner: &Inner<T>, bytes: usize) -> bool {
        let too_heavy = inner.bytes.saturating_add(bytes) > self.most_bytes;
        !inner.items.is_empty() && (inner.items.len() >= self.capacity || too_heavy)
    }

    fn lock(&self) -> MutexGuard<'_, Inner<T>> {
        // A reader that panicked has left the queue itself whole.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts an item in; loses the oldest if there is no room. Never waits for the reader.
    pub fn offer(&self, item: T) {
        let mut inner = self.lock();
        inner.offered += 1;
        if inner.closed {
            inner.dropped += 1;
            return;
        }
        let bytes = (self.weigh)(&item);
        while self.is_full(&inner, bytes) {
            let lost = inner.items.pop_front().map_or(0, |item| (self.weigh)(&item));
            inner.bytes = inner.bytes.saturating_sub(lost);
            inner.dropped += 1;
        }
        inner.bytes = inner.bytes.saturating_add(bytes);
        inner.items.push_back(item);
        drop(inner);
        self.filled.notify_one();
    }

    /// Takes up to `most` items; waits for the first one until `until`. Nothing: the time is up, or the queue is closed and empty.
    pub fn take(&self, most: usize, until: Instant) -> Vec<T> {
        let mut inner = self.lock();
        while inner.items.is_empty() && !inner.closed {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            inner = self
                .filled
                .wait_timeout(inner, left.min(Duration::from_secs(3600)))
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
        let count = most.min(inner.items.len());
        let taken: Vec<T> = inner.items.drain(..count).collect();
        let bytes: usize = taken.iter().map(self.weigh).sum();
        inner.bytes = inner.bytes.saturating_sub(bytes);
        taken
    }

    /// Puts items back that were taken and could not be sent, oldest first; those for which there is no room by now are lost.
    pub fn put_back(&self, items: Vec<T>) {
        let mut inner = self.lock();
        let mut is_full = false;
        for item in items.into_iter().rev() {
            let bytes = (self.weigh)(&item);
            if is_full || self.is_full(&inner, bytes) {
                // Whatever is older has no room either.
                is_full = true;
                inner.dropped += 1;
            } else {
                inner.bytes = inner.bytes.saturating_add(bytes);
                inner.items.push_front(item);
            }
        }
    }

    /// Takes nothing in any more; the reader gets what is left.
    pub fn close(&self) {
        self.lock().closed = true;
        self.filled.notify_all();
    }

    /// Closed, and nothing left.
    pub fn is_done(&self) -> bool {
        let inner = self.lock();
        inner.closed && inner.items.is_empty()
    }

    /// What it has, had and lost.
    pub fn stats(&self) -> QueueStats {
        let inner = self.lock();
        QueueStats {
            length: inner.items.len(),
            capacity: self.capacity,
            dropped: inner.dropped,
            offered: inner.offered,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn soon() -> Instant {
        Instant::now() + Duration::from_millis(20)
    }

    #[test]
    fn the_oldest_is_lost_first_and_counted() {
        let queue = Queue::new(3);
        (0..5).for_each(|n| queue.offer(n));
        assert_eq!(queue.stats(), QueueStats { length: 3, capacity: 3, dropped: 2, offered: 5 });
        assert_eq!(queue.take(2, soon()), [2, 3]);
        queue.offer(5);
        queue.put_back(vec![2, 3]);
        assert_eq!(queue.take(9, soon()), [3, 4, 5], "of what is put back the oldest has no room");
        assert_eq!(queue.stats().dropped, 3);
        assert!(queue.take(9, soon()).is_empty());
    }

    #[test]
    fn what_items_weigh_bounds_them_too() {
        let queue = Queue::weighed(9, 10, |weight: &usize| *weight);
        [4, 4, 2, 3].into_iter().for_each(|weight| queue.offer(weight));
        assert_eq!(queue.stats().dropped, 1, "the first made room for the last");
        assert_eq!(queue.take(2, soon()), [4, 2]);
        queue.offer(6);
        queue.put_back(vec![1, 4, 1]);
        assert_eq!(
            queue.take(9, soon()),
            [1, 3, 6],
            "an order without gaps: older than what had no room is lost as well"
        );
        assert_eq!(queue.stats().dropped, 3);
        queue.offer(99);
        assert_eq!(queue.take(9, soon()), [99], "one item always has room");
        assert_eq!(queue.lock().bytes, 0);
    }

    #[test]
    fn a_closed_queue_gives_what_it_has_and_takes_nothing() {
        let queue = Queue::new(3);
        queue.offer(1);
        queue.close();
        queue.offer(2);
        let later = Instant::now() + Duration::from_secs(3600);
        assert_eq!(queue.take(9, later), [1]);
        assert!(queue.take(9, later).is_empty(), "without waiting");
        assert!(queue.is_done());
        assert_eq!(queue.stats().dropped, 1);
    }

    #[test]
    fn a_reader_that_waits_is_woken() {
        let queue = std::sync::Arc::new(Queue::new(3));
        let reader = std::thread::spawn({
            let queue = queue.clone();
            move || queue.take(1, Instant::now() + Duration::from_secs(60))
        });
        queue.offer(7);
        assert_eq!(reader.join().ok(), Some(vec![7]));
    }
}
