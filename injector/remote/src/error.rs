//! What can go wrong in another process.

use beeline_ptrace::{PtraceError, Tid};
use std::io;

/// Why something could not be read, written or done in another process.
#[derive(Debug, thiserror::Error)]
pub enum RemoteError {
    /// A file of `/proc` could not be read.
    #[error("cannot read {what}: {source}")]
    Proc {
        /// Which file.
        what: String,
        /// The reason.
        source: io::Error,
    },
    /// Memory could not be read or written.
    #[error("cannot {what} {len} bytes at {address:#x}: {source}")]
    Memory {
        /// "read" or "write".
        what: &'static str,
        /// Where.
        address: u64,
        /// How many.
        len: usize,
        /// The reason.
        source: io::Error,
    },
    /// A system call made in the process failed.
    #[error("{what} fails in the process: {source}")]
    SystemCall {
        /// Which call, for what.
        what: &'static str,
        /// The error it returned.
        source: io::Error,
    },
    /// A system call of ours, on the process, failed.
    #[error("cannot {what}: {source}")]
    Local {
        /// What was tried.
        what: &'static str,
        /// The reason.
        source: io::Error,
    },
    /// Tracing failed.
    #[error(transparent)]
    Ptrace(#[from] PtraceError),
    /// The thread died in the middle.
    #[error("thread {tid} died meanwhile")]
    Died {
        /// Its id.
        tid: Tid,
    },
    /// The thread stopped where it should not have.
    #[error("thread {tid} stopped at {pc:#x} in the middle of our call: {why}")]
    Interrupted {
        /// Its id.
        tid: Tid,
        /// Its program counter.
        pc: u64,
        /// What it reported.
        why: String,
    },
    /// A thread still works for an injector that was killed.
    #[error("thread {tid} is still busy with an earlier, interrupted attempt")]
    Busy {
        /// Its id.
        tid: Tid,
    },
    /// A thread cannot make calls for us before it has gone on for a moment.
    #[error("thread {tid} cannot be used now: {why}")]
    NotNow {
        /// Its id.
        tid: Tid,
        /// What stands in the way.
        why: &'static str,
    },
    /// No executable mapping has unused bytes for the few instructions with which a call begins.
    #[error("no unused executable bytes for the first call")]
    NoPadding,
    /// No free addresses where they are needed.
    #[error("no free range of {len:#x} bytes within reach of {near:#x}")]
    NoGap {
        /// How many bytes.
        len: u64,
        /// Near which address.
        near: u64,
    },
}
