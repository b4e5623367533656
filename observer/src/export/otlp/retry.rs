//! What an answer means for what was sent, by the OTLP specification, and how long to wait. Pure.

use std::time::Duration;
use tonic::Code;

/// The first pause.
const FIRST: Duration = Duration::from_millis(500);
/// The longest pause that we choose.
const LONGEST: Duration = Duration::from_secs(10);
/// The longest pause that a receiver may ask for: a broken one must not silence us for a day.
const LONGEST_ASKED: Duration = Duration::from_secs(300);

/// What an answer means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// It was taken, less so many records.
    Taken {
        /// Records that were not.
        rejected: u64,
        /// What the receiver says about them, or warns of.
        message: String,
    },
    /// To be sent again, not before the time the receiver asked for.
    Again {
        /// What the receiver asked for.
        after: Option<Duration>,
        /// Why.
        why: String,
    },
    /// Not to be sent again.
    Refused {
        /// A short name: becomes an attribute.
        reason: String,
        /// What the receiver says.
        message: String,
    },
}

/// The outcome of an HTTP status that is no success.
pub(super) fn of_http(status: u16, retry_after: Option<&str>, now: jiff::Timestamp, message: String) -> Outcome {
    match status {
        429 | 502 | 503 | 504 => {
            let after = retry_after.and_then(|text| asked(text, now));
            Outcome::Again { after, why: format!("HTTP {status} {message}") }
        }
        _ => Outcome::Refused { reason: format!("http_{status}"), message },
    }
}

/// The outcome of a gRPC status that is no success. `RESOURCE_EXHAUSTED` is for ever unless it says when to come again.
pub(super) fn of_grpc(code: Code, retry_info: Option<Duration>, message: String) -> Outcome {
    let retryable = match code {
        Code::Cancelled
        | Code::DeadlineExceeded
        | Code::Aborted
        | Code::OutOfRange
        | Code::Unavailable
        | Code::DataLoss => true,
        Code::ResourceExhausted => retry_info.is_some(),
        _ => false,
    };
    let name = name(code);
    if retryable {
        let after = retry_info.map(|after| after.min(LONGEST_ASKED));
        Outcome::Again { after, why: format!("gRPC {name} {message}") }
    } else {
        Outcome::Refused { reason: format!("grpc_{name}"), message }
    }
}

/// Whether that reason means that the receiver does not know what was sent, whatever is in it.
pub(super) fn is_unknown_signal(reason: &str) -> bool {
    ["http_404", "http_405", "http_501", "grpc_unimplemented"].contains(&reason)
}

fn name(code: Code) -> &'static str {
    match code {
        Code::Ok => "ok",
        Code::Cancelled => "cancelled",
        Code::Unknown => "unknown",
        Code::InvalidArgument => "invalid_argument",
        Code::DeadlineExceeded => "deadline_exceeded",
        Code::NotFound => "not_found",
        Code::AlreadyExists => "already_exists",
        Code::PermissionDenied => "permission_denied",
        Code::ResourceExhausted => "resource_exhausted",
        Code::FailedPrecondition => "failed_precondition",
        Code::Aborted => "aborted",
        Code::OutOfRange => "out_of_range",
        Code::Unimplemented => "unimplemented",
        Code::Internal => "internal",
        Code::Unavailable => "unavailable",
        Code::DataLoss => "data_loss",
        Code::Unauthenticated => "unauthenticated",
    }
}

/// `Retry-After`: seconds, or a date.
fn asked(text: &str, now: jiff::Timestamp) -> Option<Duration> {
    let text = text.trim();
    let after = match text.parse::<u64>() {
        Ok(seconds) => Duration::from_secs(seconds),
        Err(_) => {
            let then = jiff::fmt::rfc2822::DateTimeParser::new().relaxed_weekday(true).parse_timestamp(text).ok()?;
            // One that is past means at once.
            Duration::try_from(then.duration_since(now)).unwrap_or_default()
        }
    };
    Some(after.min(LONGEST_ASKED))
}

/// Pauses that double, with jitter, so that a thousand nodes do not come back at once.
#[derive(Debug, Default)]
pub(super) struct Backoff {
    failures: u32,
}

impl Backoff {
    /// It worked: the next failure is the first again.
    pub(super) fn reset(&mut self) {
        self.failures = 0;
    }

    /// The pause after one more failure, at least what was asked for. `dice` is uniform in 0..1.
    pub(super) fn next(&mut self, asked: Option<Duration>, dice: f64) -> Duration {
        let doubled = FIRST.saturating_mul(1_u32 << self.failures.min(16)).min(LONGEST);
        self.failures = self.failures.saturating_add(1);
        match asked {
            // Never earlier than asked, and not all at the same moment.
            Some(asked) => asked + FIRST.mul_f64(dice),
            None => doubled.mul_f64(0.5 + dice / 2.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> jiff::Timestamp {
        text.parse().unwrap_or_default()
    }

    fn http(status: u16, retry_after: Option<&str>) -> Outcome {
        of_http(status, retry_after, at("2015-10-21T07:27:30Z"), String::new())
    }

    fn wait(outcome: &Outcome) -> Option<Option<u64>> {
        match outcome {
            Outcome::Again { after, .. } => Some(after.map(|after| after.as_secs())),
            _ => None,
        }
    }

    #[test]
    fn of_http_only_these_are_sent_again() {
        let again: Vec<u16> = (300..600).filter(|status| wait(&http(*status, None)).is_some()).collect();
        assert_eq!(again, [429, 502, 503, 504]);
        let refused = Outcome::Refused { reason: "http_400".to_owned(), message: String::new() };
        assert_eq!(http(400, Some("1")), refused);
    }

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        for (text, seconds) in [
            ("7", Some(7)),
            (" 0 ", Some(0)),
            ("Wed, 21 Oct 2015 07:28:00 GMT", Some(30)),
            ("Wed, 21 Oct 2015 07:20:00 GMT", Some(0)),
            ("99999999999", Some(300)),
            ("Wed, 21 Oct 2099 07:20:00 GMT", Some(300)),
            ("-1", None),
            ("soon", None),
            ("", None),
        ] {
            assert_eq!(wait(&http(429, Some(text))), Some(seconds), "{text:?}");
        }
    }

    #[test]
    fn of_grpc_only_these_are_sent_again() {
        let again = |retry: Option<Duration>| -> Vec<i32> {
            (1..17).filter(|code| wait(&of_grpc(Code::from_i32(*code), retry, String::new())).is_some()).collect()
        };
        // CANCELLED, DEADLINE_EXCEEDED, ABORTED, OUT_OF_RANGE, UNAVAILABLE, DATA_LOSS; RESOURCE_EXHAUSTED with RetryInfo.
        assert_eq!(again(None), [1, 4, 10, 11, 14, 15]);
        assert_eq!(again(Some(Duration::from_secs(3))), [1, 4, 8, 10, 11, 14, 15]);
        assert_eq!(wait(&of_grpc(Code::Unavailable, Some(Duration::from_secs(3)), String::new())), Some(Some(3)));
        assert_eq!(wait(&of_grpc(Code::Unavailable, Some(Duration::from_secs(9999)), String::new())), Some(Some(300)));
        let refused = Outcome::Refused { reason: "grpc_resource_exhausted".to_owned(), message: String::new() };
        assert_eq!(of_grpc(Code::ResourceExhausted, None, String::new()), refused);
    }

    #[test]
    fn pauses_double_up_to_a_bound_and_never_undercut_the_receiver() {
        let mut backoff = Backoff::default();
        let most: Vec<u128> = (0..7).map(|_| backoff.next(None, 1.0).as_millis()).collect();
        assert_eq!(most, [500, 1000, 2000, 4000, 8000, 10_000, 10_000]);
        assert_eq!(backoff.next(None, 0.0), LONGEST / 2);
        assert_eq!(backoff.next(Some(Duration::from_secs(60)), 0.0), Duration::from_secs(60));
        (0..100).for_each(|_| assert!(backoff.next(None, 1.0) <= LONGEST));
        backoff.reset();
        assert_eq!(backoff.next(None, 1.0), FIRST);
    }
}
