//! A process seen from outside: its mappings, memory, calls made in it.
//!
//! - [`Process`], [`Mappings`], [`Memory`]: looking. All of it is the process's word.
//! - [`Borrowed`]: a stopped thread makes system calls and function calls for us.
//! - [`SharedPage`]: words by which it and we tell each other something.
//! - [`thread_pointer`], [`vdso`]: facts about its threads and about the kernel's code in it.
//!
//! **Invariant.** If we are killed at any instruction, each thread of the process goes on as if nothing had happened.
//!
//! Nothing here knows of eBPF.

mod borrow;
mod calls;
mod error;
mod files;
mod maps;
mod memory;
mod process;
pub mod reach;
mod shared_page;
pub mod thread_pointer;
mod trampoline;
pub mod vdso;

pub use borrow::{Borrowed, SCRATCH_LEN, can_be_borrowed};
pub use calls::{Descriptor, FileMapping, SystemCall};
pub use error::RemoteError;
pub use files::{FILES_MAX, Received};
pub use maps::{Mapping, Mappings};
pub use memory::Memory;
pub use process::Process;
pub use shared_page::SharedPage;
