//! Stopping and running threads of another process, as typestate.
//!
//! ```text
//!            seize                 wait                    resume
//!   thread ─────────▶ Running ─────────────▶ Stopped ───────────────▶ Running
//!                        │                      │ detach, drop
//!                        └────────▶ Death       └──────────▶ thread, as it was
//! ```
//!
//! - A [`Running`] thread can only be waited for; a [`Stopped`] one can be looked at and changed. Death is a value,
//!   never a surprise: a tracee can be killed at any moment.
//! - Dropping a [`Stopped`] detaches it, so an error path or a panic never leaves a target stopped. When the tracer
//!   itself dies, the kernel detaches.
//! - [`StoppedProcess`] is all threads of a process, each of them stopped.
//!
//! **Invariants.** A tracee belongs to the OS thread that seized it, so none of the types is `Send`. That OS thread has no
//! other children: [`Running::wait`] collects every child's events. Signals that arrive are delivered before a thread
//! counts as stopped; none is lost. Nothing here relies on `SIGTRAP`, whose disposition belongs to the target.
//!
//! Nothing here knows of eBPF.

mod arch;
mod followed;
mod request;
mod spawn;
mod status;
mod stop;
mod thread;
mod urgency;
mod wake;

pub use arch::Registers;
pub use spawn::{Command, SpawnError, spawn};
pub use status::{RunState, Status, read_status, thread_ids};
pub use stop::{Denial, StopError, StopOptions, StoppedProcess};
pub use thread::{Death, Dispatch, PtraceError, Resume, Rseq, Running, Stop, Stopped, Waited, next_event};
pub use wake::{Event, Wakened, Waker};

/// A thread or process id as the kernel knows it.
pub type Tid = i32;
