//! Every operation runs on an OS thread of its own: tracees belong to a thread, and when it ends for whatever reason,
//! the kernel lets all of them go.

use std::panic::resume_unwind;
use std::thread;

/// Runs `operation` as the tracer.
pub(crate) fn run<T: Send>(operation: impl FnOnce() -> T + Send) -> T {
    thread::scope(|scope| scope.spawn(operation).join()).unwrap_or_else(|panic| resume_unwind(panic))
}
