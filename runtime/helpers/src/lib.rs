//! The eBPF helper functions: one table of ids, names, prototypes, implementations.
//!
//! [`table`] is the table; every other module holds the functions of one subject. They run in any process: in a target
//! as part of the freestanding agent, in the CLI under the interpreter. So they make raw system calls only ([`sys`]),
//! allocate nothing, panic nowhere, leave `errno` and signal handlers alone, and change no vector register when built
//! for the agent's image.
//!
//! What a helper knows of its surroundings it finds through the [`RunContext`] that it is given as its sixth argument.
//! `run.process` may be 0 (a test run): then it does without what only an attached process has.
//!
//! Results and errors are the kernel's (`kernel/bpf/helpers.c`, `kernel/trace/bpf_trace.c`). Where user space must
//! differ, the function says so under *Differs*.
#![no_std]

#[cfg(test)]
extern crate std;

pub mod control;
pub mod dynptr;
pub mod event;
pub mod format;
pub mod identity;
pub mod iter;
pub mod kernel_only;
pub mod map;
pub mod number;
pub mod owner;
pub mod probe;
pub mod proto;
pub mod read;
mod session;
pub mod signal;
pub mod stack;
pub mod sys;
pub mod system;
pub mod table;
pub mod task;
pub mod time;
pub mod trace;
mod unwind;

pub use table::{HELPERS, HELPERS_LEN, HOST_FUNCTION_BASE, Helper, HelperFn, KFUNC_BASE, by_id, kfunc};

use beeline_abi::process::ProcessBlock;
use beeline_abi::run::RunContext;

/// A negative error number as helpers return it.
#[inline]
pub(crate) const fn error(errno: i64) -> u64 {
    errno.wrapping_neg() as u64
}

/// The block of the process that `run` belongs to; `None` in a test run.
///
/// # Safety
///
/// `run` points to a valid context whose `process` is 0 or the address of a [`ProcessBlock`] that outlives the run.
#[inline]
pub(crate) unsafe fn process<'a>(run: *const RunContext) -> Option<&'a ProcessBlock> {
    // SAFETY: the caller's contract; the block is written only while every thread is stopped.
    unsafe { ((*run).process as *const ProcessBlock).as_ref() }
}
