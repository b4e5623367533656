//! Findings and processes as text and JSON.
