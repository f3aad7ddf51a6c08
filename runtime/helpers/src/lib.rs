//! The eBPF helper functions: one table of ids, names, prototypes, implementations.
#![no_std]

pub mod proto;
