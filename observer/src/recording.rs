//! Observations to a file and back.
