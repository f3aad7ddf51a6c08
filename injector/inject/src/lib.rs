//! Puts the agent, programs and probes into a process, takes them out again.
//!
//! ```text
//! attach(pid, &Request)          -> Result<AttachReport, TargetRefused>
//! detach(pid, &DetachOptions)    -> Result<DetachReport, TargetRefused>
//! start(&StartCommand, &Request) -> Result<Started, TargetRefused>        Started::wait() -> exit status
//! start_followed(&StartCommand, request, &Errands, tell) -> Result<Ended, TargetRefused>
//! attach_followed(pid, request, &Errands, tell)          -> Result<(), TargetRefused>
//! renew_followed(pid, store), release_followed(pid, store)    what another process has the follower do
//! inspect(pid)                   -> Result<Option<Attached>, TargetRefused>
//! attached_processes()           -> Vec<Attached>
//! ```
//!
//! **Invariant.** The order of operations leaves the target harmless at every point: if the injector is killed, the
//! kernel lets the target's threads go on, and each of them finds its way back by itself. What is left over then is
//! recognised by the next attach or detach.
#![forbid(unsafe_code)]

mod agent;
mod attach;
mod bell;
mod detach;
mod dispatch;
mod early;
mod errands;
mod error;
mod existing;
mod files;
mod fit;
mod follow;
mod gdb;
mod generation;
mod gone;
mod goroutines;
mod group;
mod guard;
mod host;
mod image;
mod ingredients;
mod inspect;
mod libraries;
mod maps;
mod obstacles;
mod patch;
mod report;
mod request;
mod seccomp;
mod semaphore;
mod sequences;
mod sites;
mod space;
mod stack;
mod start;
mod sweep;
mod system_calls;
mod target;
mod texts;
mod tracer;
mod wire;

pub use attach::attach;
pub use beeline_site::Location;
pub use detach::{DetachOptions, detach};
pub use errands::{Errands, Renew, Renewed, attended, release_followed, renew_followed};
pub use error::TargetRefused;
pub use follow::{Followed, Tell, attach_followed, start_followed};
pub use gdb::gdb_script;
pub use image::{AGENT_IMAGE, GUARD_IMAGE};
pub use inspect::{attached_processes, inspect};
pub use report::{
    AttachReport, Attached, AttachedLink, AttachedSite, DetachReport, ProbeOutcome, ProbeState,
};
pub use request::{
    BreakpointUse, CallContext, FileIdentity, HostFunctionRequest, MapRequest, ProbeKind, ProbeRequest,
    ProgramRequest, Request, SystemCallRequest,
};
pub use start::{Ended, StartCommand, Started, start};
pub use system_calls::{CallCoverage, call_coverage};
