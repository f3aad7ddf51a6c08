//! The eBPF helper functions: one table of ids, names, prototypes, implementations.
