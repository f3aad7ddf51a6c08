//! Every byte layout that two parties share: the loader, the injector, the compiled code, the agent in the target.
//!
//! A layout is defined here once, with explicit widths, no padding that is not named, and compile-time checks of its
//! size and offsets. Addresses of another process are `u64`, never pointers. Nothing here *does* anything: algorithms
//! over these bytes live in `beeline-maps`, `beeline-helpers` and the agent. The exception is [`calls`], where injector and
//! agent have to come to the same judgement.
//!
//! | module | bytes | written by | read by |
//! |---|---|---|---|
//! | [`map`] | a map file's header; a process's private handle to it | store, map operations | everybody |
//! | [`code`] | what compiled code needs patched when it is linked | compiler | linker in the injector |
//! | [`bell`] | how a process tells its follower of libraries | agent, injector | injector, agent |
//! | [`link`] | the shared words of a link | CLI, owner | stubs |
//! | [`run`] | what a program run knows: thread, CPU, link | stubs, agent | helpers, compiled code |
//! | [`thread`] | a thread's slot and return stack | agent, stubs | agent, stubs, injector at detach |
//! | [`process`] | the agent's block in a target | injector | agent, injector at detach |
//! | [`trace`] | the `trace_printk` log | helpers | CLI |
//! | [`regs`] | `struct pt_regs` | stubs | programs |
//! | [`system_call`] | the system calls that programs want | injector | stubs, agent |
//! | [`unwind`] | tables for walking stacks | injector | helpers |
//! | [`guard`] | what keeps the signal of breakpoints deliverable | injector, the guard's code | the guard's code, injector |
//! | [`dispatch`] | calls that the kernel hands to the process, of code that is in no file | injector, the guard's code | stubs, the guard's code, injector |
//! | [`calls`] | the system calls that the agent may make | injector, agent | agent, injector |
#![no_std]
#![forbid(unsafe_code)]

pub mod bell;
pub mod calls;
pub mod code;
pub mod dispatch;
pub mod errno;
pub mod guard;
pub mod link;
pub mod map;
pub mod process;
pub mod regs;
pub mod run;
pub mod system_call;
pub mod thread;
pub mod trace;
pub mod unwind;

/// Version of every layout in this crate. A file or a block with another version is refused, never guessed at.
pub const ABI_VERSION: u32 = 7;

/// Size of a page, and the alignment of everything that is mapped (x86-64).
pub const PAGE_SIZE: u64 = 4096;
