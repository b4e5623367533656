//! Victims and scenarios: real programs that hang in a known way, and healthy ones that do not.
