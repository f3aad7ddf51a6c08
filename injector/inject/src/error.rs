//! Why a process was left as it was.

use beeline_ptrace::StopError;
use beeline_remote::RemoteError;
use std::io;
use std::path::PathBuf;

/// A process was not changed, or was put back to what it was. Probes that cannot be placed one by one are not errors:
/// they are reported with their reason.
#[derive(Debug, thiserror::Error)]
pub enum TargetRefused {
    /// It cannot be stopped: dead, a kernel thread, traced by somebody else, not permitted.
    #[error(transparent)]
    Stop(#[from] StopError),
    /// It is no 64-bit x86 process.
    #[error("process {pid} is not a 64-bit x86 process ({exe})")]
    WrongArchitecture {
        /// The process.
        pid: i32,
        /// What it runs.
        exe: PathBuf,
    },
    /// It filters system calls in a way in which ours, or the agent's, would fail or kill it.
    #[error("process {pid} forbids system calls (seccomp): {reason}")]
    Seccomp {
        /// The process.
        pid: i32,
        /// What stands in the way.
        reason: String,
    },
    /// Threads made by `clone` without a thread pointer of their own: nothing tells their hits apart.
    #[error("threads {tids:?} of process {pid} share a thread pointer, by which hits are told apart")]
    SharedThreadPointer {
        /// The process.
        pid: i32,
        /// Two of them.
        tids: [i32; 2],
    },
    /// One of its threads takes its system calls itself: it would get those of the agent, too.
    #[error(
        "thread {tid} of process {pid} dispatches its system calls itself (PR_SET_SYSCALL_USER_DISPATCH)"
    )]
    Dispatches {
        /// The process.
        pid: i32,
        /// The thread.
        tid: i32,
    },
    /// Not every call of its code can be traced, as was asked for.
    #[error("not all system calls of process {pid} can be traced (--complete): {reason}")]
    NotComplete {
        /// The process.
        pid: i32,
        /// What stands in the way.
        reason: String,
    },
    /// It carries the probes of another store.
    #[error("process {pid} carries the probes of another store; detach it first")]
    OtherStore {
        /// The process.
        pid: i32,
    },
    /// It carries an agent of another version, or one whose bookkeeping is damaged.
    #[error("the agent in process {pid} cannot be used: {reason}")]
    ForeignAgent {
        /// The process.
        pid: i32,
        /// What is wrong with it.
        reason: String,
    },
    /// It carries no agent.
    #[error("process {pid} carries no probes")]
    NotAttached {
        /// The process.
        pid: i32,
    },
    /// Something in the process failed.
    #[error("in process {pid}: {source}")]
    Remote {
        /// The process.
        pid: i32,
        /// What failed.
        source: RemoteError,
    },
    /// There is no room for our code near the code of the target, or a limit of ours is reached.
    #[error("process {pid}: no room for {what}")]
    NoRoom {
        /// The process.
        pid: i32,
        /// What does not fit.
        what: String,
    },
    /// The agent did not come up.
    #[error("the agent does not start in process {pid}: error {errno}")]
    AgentFailed {
        /// The process.
        pid: i32,
        /// Its error number.
        errno: i64,
    },
    /// The beeline that follows it does not do what it was asked for.
    #[error("process {pid} is followed by another beeline command, which was asked to do it: {reason}")]
    FollowerFailed {
        /// The process.
        pid: i32,
        /// Why not.
        reason: String,
    },
    /// The follower's tracer has not come to it.
    #[error("the threads of process {pid} do not stop, or its follower is busy")]
    FollowerBusy {
        /// The process.
        pid: i32,
    },
    /// Valgrind runs it.
    #[error(
        "process {pid} is a tool of valgrind ({exe}), which executes copies of the code that it has made itself: probes in it are not hit"
    )]
    Translated {
        /// The process.
        pid: i32,
        /// What it runs.
        exe: PathBuf,
    },
    /// The request contradicts itself, or one of its files is not what it says. A defect of the caller, or a damaged
    /// store.
    #[error("{what}")]
    BadRequest {
        /// What is wrong, as a sentence.
        what: String,
    },
    /// The program could not be started.
    #[error("cannot start {path}: {reason}")]
    NotStarted {
        /// The program.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// The program ended before the probes could be placed.
    #[error("{path} ended before it reached its first instruction of interest ({how})")]
    Ended {
        /// The program.
        path: PathBuf,
        /// Exit status or signal.
        how: String,
    },
    /// A system call of ours failed.
    #[error("cannot {what}: {source}")]
    System {
        /// What was tried.
        what: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
}
