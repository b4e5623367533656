//! One connection from listing to listing.

use crate::proc::{Connection, StreamKind};

/// A greeting is no longer than so many bytes: a handshake of TLS and the answer to an upgrade, or to a login.
const GREETING: u64 = 8 << 10;

/// What happened last on a connection, as far as the kernel keeps it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Last {
    /// Data came, and nothing was sent since: when.
    Received(u64),
    /// Data were sent, and nothing came since: when.
    Sent(u64),
    /// Nothing yet, or it is not known (unix sockets).
    None,
}

/// What moved since the listing before.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Moved {
    pub(super) read: u64,
    pub(super) sent: u64,
}

/// A connection.
#[derive(Debug)]
pub struct Line {
    /// As listed last.
    pub at: Connection,
    /// When it was listed first.
    pub first_ns: u64,
    /// Since when, at least, bytes lie there and nothing of them is read.
    pub unread_since_ns: Option<u64>,
    /// Since when, at least, bytes are on their way and none of them is taken.
    pub unsent_since_ns: Option<u64>,
    /// Since when the first request that was not answered is there: later data may belong to it, or be another.
    asked_ns: Option<u64>,
    /// Answers that were seen on it.
    answers: u32,
    /// Bytes that had come when nothing of them was owed or unread; `None` if that was not seen.
    at_rest: Option<u64>,
    pub(super) moved: Option<Moved>,
}

impl Line {
    /// Whether a socket of this inode number is the same connection: numbers are used again.
    pub(super) fn is_same(&self, now: &Connection) -> bool {
        let before = &self.at;
        before.kind == now.kind
            && before.remote == now.remote
            && before.local == now.local
            && grows(before.received, now.received)
            && grows(before.sent, now.sent)
    }

    /// The connection as it is now, and an answer that was sent since the listing before: when asked, when sent. `is_watched`: that
    /// was a moment ago. Counts of bytes bridge any time; how much lies in a queue says nothing of what went through it.
    pub(super) fn learn(
        before: Option<Self>,
        now: &Connection,
        taken_ns: u64,
        is_watched: bool,
    ) -> (Self, Option<(u64, u64)>) {
        let mut at = now.clone();
        let Some(before) = before else {
            let answer = answered(&at, None);
            let some = |bytes: u64| (bytes > 0).then_some(taken_ns);
            let (unread_since_ns, unsent_since_ns) = (some(at.unread), some(at.unsent));
            let answers = u32::from(answer.is_some());
            let mut line = Self {
                at,
                first_ns: taken_ns,
                unread_since_ns,
                unsent_since_ns,
                asked_ns: None,
                answers,
                at_rest: None,
                moved: None,
            };
            line.asked_ns = line.received_since();
            line.at_rest = line.rests_at().or((line.at.sent == Some(0)).then_some(0));
            return (line, answer);
        };
        // The kernel tells how long ago, in ticks: the same moment, computed twice, must not seem to move.
        if at.received.is_some() && at.received == before.at.received {
            at.last_received_ns = before.at.last_received_ns.or(at.last_received_ns);
        }
        if at.sent.is_some() && at.sent == before.at.sent && at.unsent == before.at.unsent {
            at.last_sent_ns = before.at.last_sent_ns.or(at.last_sent_ns);
        }
        let read = |of: &Connection| of.received.map(|received| received.saturating_sub(of.unread));
        let has_read = match (read(&before.at), read(&at)) {
            (Some(before), Some(now)) => now > before,
            _ => !is_watched || at.unread < before.at.unread,
        };
        let has_sent = match (before.at.sent, at.sent) {
            (Some(before), Some(now)) => now > before,
            _ => !is_watched || at.unsent < before.at.unsent,
        };
        let since = |bytes: u64, has_moved: bool, known: Option<u64>| match bytes {
            0 => None,
            _ if has_moved => Some(taken_ns),
            _ => Some(known.unwrap_or(taken_ns)),
        };
        let moved = Moved {
            read: read(&at).unwrap_or(0).saturating_sub(read(&before.at).unwrap_or(0)),
            sent: at.sent.unwrap_or(0).saturating_sub(before.at.sent.unwrap_or(0)),
        };
        let mut line = Self {
            first_ns: before.first_ns,
            unread_since_ns: since(at.unread, has_read, before.unread_since_ns),
            unsent_since_ns: since(at.unsent, has_sent, before.unsent_since_ns),
            asked_ns: None,
            answers: before.answers,
            at_rest: None,
            moved: Some(moved),
            at,
        };
        // What was answered without being seen at rest moved that mark, nobody knows where to.
        line.at_rest = line.rests_at().or(before.at_rest.filter(|_| !has_sent));
        line.asked_ns = match before.asked_ns.filter(|_| line.at.last_sent_ns == before.at.last_sent_ns) {
            Some(asked) => Some(asked),
            None => line.received_since(),
        };
        let answer = answered(&line.at, Some(&before));
        line.answers = line.answers.saturating_add(u32::from(answer.is_some()));
        (line, answer)
    }

    /// What happened last. Where both happened within a tick of the kernel's clock it was an answer.
    pub fn last(&self) -> Last {
        match (self.at.last_received_ns, self.at.last_sent_ns) {
            (Some(received), Some(sent)) if received > sent => Last::Received(received),
            (Some(received), Some(sent)) if sent > received => Last::Sent(sent),
            (Some(both), Some(_)) if self.at.inbound => Last::Sent(both),
            (Some(received), _) => Last::Received(received),
            (None, Some(sent)) => Last::Sent(sent),
            (None, None) => Last::None,
        }
    }

    fn received_since(&self) -> Option<u64> {
        match self.last() {
            Last::Received(since) if self.at.inbound => Some(since),
            _ => None,
        }
    }

    /// Bytes that have come, if all of them are read and answered.
    fn rests_at(&self) -> Option<u64> {
        self.at.received.filter(|_| self.at.unread == 0 && matches!(self.last(), Last::Sent(_)))
    }

    /// Whether a part of what came since it was at rest has been read, and nothing more has come since the remainder was seen to lie there:
    /// the body of a request that is at work, or the record that ends it. Who does not read at all, or leaves a stream, is not meant.
    pub fn is_begun(&self) -> bool {
        let read = self.at.received.map(|received| received.saturating_sub(self.at.unread));
        let is_part = read.zip(self.at_rest).is_some_and(|(read, rest)| read > rest);
        is_part && self.at.last_received_ns.zip(self.unread_since_ns).is_some_and(|(last, since)| last <= since)
    }

    /// Open both ways.
    pub fn is_open(&self) -> bool {
        self.at.state == "ESTAB"
    }

    /// Since when it owes the peer an answer: when data came last.
    pub fn owes_since(&self) -> Option<u64> {
        self.received_since().filter(|_| self.is_open())
    }

    /// Since when the peer, who has closed its end since, was not answered.
    pub fn abandoned_since(&self) -> Option<u64> {
        self.received_since().filter(|_| self.at.state == "CLOSE-WAIT")
    }

    /// When the first of what was not answered came, as far as that was seen.
    pub fn asked_since(&self) -> Option<u64> {
        self.received_since().map(|last| self.asked_ns.map_or(last, |first| first.min(last)))
    }

    /// Whether the peer sends on, for so long, and hears nothing, nor ever heard more than a greeting: a stream in one direction
    /// (samples, logs), none of whose pieces is a request.
    pub fn is_one_way(&self, long_ns: u64) -> bool {
        let spoken = self.received_since().zip(self.asked_since());
        // Of answers before the first listing there is only their size.
        let heard = self.answers > 1 || self.at.sent.is_some_and(|sent| sent > GREETING);
        !heard && spoken.is_some_and(|(last, first)| last.saturating_sub(first) >= long_ns)
    }

    /// Since when an answer is awaited on it: a request was sent, and nothing came since.
    pub fn awaits_since(&self) -> Option<u64> {
        match self.last() {
            Last::Sent(since) if !self.at.inbound && self.is_open() => Some(since),
            _ => None,
        }
    }

    /// Whether data were sent over it since the listing before.
    pub fn has_sent(&self) -> bool {
        self.moved.is_some_and(|moved| moved.sent > 0)
    }

    /// When data came or went last.
    pub fn active_ns(&self) -> Option<u64> {
        self.at.last_received_ns.max(self.at.last_sent_ns)
    }

    /// A connection to a service with nothing outstanding: open, nothing unread, nothing on its way, no answer awaited.
    pub fn is_in_hand(&self) -> bool {
        let nothing_awaited = match self.last() {
            Last::Received(_) => true,
            Last::None => self.at.kind == StreamKind::Unix || self.at.sent == Some(0),
            Last::Sent(_) => false,
        };
        !self.at.inbound && self.is_open() && self.at.unread == 0 && self.at.unsent == 0 && nothing_awaited
    }
}

/// Whether a sum went on; a listing that could not tell it says nothing.
fn grows(before: Option<u64>, now: Option<u64>) -> bool {
    before.zip(now).is_none_or(|(before, now)| before <= now)
}

/// The last answer on an inbound connection, if it is new: when asked, when sent. Of a long answer it is the end that is known.
fn answered(now: &Connection, before: Option<&Line>) -> Option<(u64, u64)> {
    let sent = now.last_sent_ns.filter(|_| now.inbound)?;
    let received = now.last_received_ns?;
    let Some(before) = before else {
        return (sent >= received).then_some((received, sent));
    };
    // The one before may have been a listing without times: what it did not tell is not new.
    if before.at.last_sent_ns.is_some_and(|earlier| sent <= earlier) || before.at.received.is_none() {
        return None;
    }
    match before.asked_ns {
        // The next request may have come since, behind the answer: the first was answered by then.
        Some(asked) if received >= sent || before.at.last_received_ns == Some(received) => Some((asked, sent)),
        Some(_) => Some((received, sent)),
        // Asked and answered between two listings, perhaps several times; what goes on with an old answer is none.
        None => (before.at.last_received_ns != Some(received) && sent >= received).then_some((received, sent)),
    }
}
