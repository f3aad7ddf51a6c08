//! The agent's logic, testable on the host.
//!
//! What a hit needs beyond the stub's inline paths: finding the thread's slot, telling a nested hit from an abandoned
//! run, owning a CPU, the return stack. `agent/image` exports these functions; the table is in ARCHITECTURE.md.
//!
//! | module | |
//! |---|---|
//! | [`slot`] | the slots of the threads, the guard word |
//! | `signal_frame` | whether a handler has interrupted the run that set it |
//! | [`cpu`] | owning a CPU of the store, by a restartable sequence ([`rseq`]) |
//! | [`returns`] | a thread's outstanding return probes |
//! | [`libraries`] | libraries that come and go while the process is followed |
//! | [`memory`] | where threads' return stacks, scratch and private stacks come from |
//! | [`seccomp`] | filters that the process installs while the agent is in it |
//! | [`system_calls`] | the programs of a system call |
//! | [`guard`] | what keeps the signal of breakpoints deliverable; an image of its own |
//! | [`process`] | what is done once for a process; missed hits |
//!
//! Everything here can be interrupted at any instruction by a signal whose handler hits a probe, takes a bounded time,
//! and harms nobody when it fails: the hit is missed and counted.
#![no_std]

#[cfg(test)]
extern crate std;

pub mod cpu;
pub mod guard;
pub mod libraries;
pub mod memory;
pub mod process;
pub mod returns;
pub mod rseq;
pub mod seccomp;
mod signal_frame;
pub mod slot;
pub mod system_calls;

use beeline_abi::run::RunContext;
use beeline_abi::thread::ThreadSlot;
use core::mem::offset_of;

/// The slot that holds this run context.
#[inline]
fn slot_of(run: *mut RunContext) -> *mut ThreadSlot {
    run.cast::<u8>().wrapping_sub(offset_of!(ThreadSlot, run)).cast()
}
