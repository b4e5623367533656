//! Waits, locks and owners of one host; pure: no I/O, no clock.
