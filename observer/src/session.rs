//! The loop that wires the rooms: census, facts, model, findings.
