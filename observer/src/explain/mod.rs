//! What is only worked out for what will be reported.
