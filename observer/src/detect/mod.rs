//! Findings from the model; pure: no I/O, no clock.
