//! Facts about this machine: capability, BTF, kernel symbols, clocks.
