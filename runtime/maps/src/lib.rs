//! The map algorithms, over shared memory, without locks that a dead process can hold.
//!
//! ```text
//! types ── one row per map type: name, what the kernel accepts at creation, layout, operations
//!   layout ── where everything lies in the file        create ── writes a new map's header
//!   handle ── validates a file once, makes the private MapHandle that everything else trusts
//!     ops ── lookup, update, delete, next_key as programs see them     user ── as the system calls do
//!       array · hash, lru (pool, chain, key) · stack_trace · prog_array · ringbuf · perf_event_array
//!                    sweep ── finishes what dead threads left behind
//! ```
//!
//! Two rules hold everywhere:
//! - **What is read from a map file is an allegation.** Sizes and limits come from the [`MapHandle`], which is private
//!   memory; an index read from the file is compared with them at each use, and every walk is bounded. A file full of
//!   garbage gives wrong answers, never an access outside the mapping or an endless loop.
//! - **A process can die at any instruction.** Whatever it leaves behind is either complete, or carries its owner word
//!   ([`Access::owner`]) so that others can finish or undo it.
//!
//! Errors are the kernel's: negative numbers of [`beeline_abi::errno`].
#![no_std]

pub mod array;
pub mod check;
pub mod create;
pub mod for_each;
pub mod handle;
pub mod hash;
pub mod layout;
pub mod ops;
pub mod owner;
pub mod perf_event_array;
pub mod prog_array;
pub mod ringbuf;
pub mod stack_trace;
pub mod sweep;
pub mod types;
pub mod user;

mod chain;
mod key;
mod lru;
mod memory;
mod pool;
mod system;

pub use beeline_abi::map::{Access, MapHandle, MapHeader, MapShape};
pub use system::CALL_GATE;
