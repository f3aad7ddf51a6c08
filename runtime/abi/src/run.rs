//! What one run of a program knows. It lies in the thread's slot, so that the stub only stores what changes.

use crate::map::Access;
use crate::thread::SESSIONS;

/// Second argument of every program, sixth of every helper.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct RunContext {
    /// Who runs: owner word and claimed CPU. Between runs `cpu` may name the one that was claimed last; see `NO_CPU`.
    pub access: Access,
    /// Address of the [`ProcessBlock`](crate::process::ProcessBlock).
    pub process: u64,
    /// Address of the [`LinkRuntime`](crate::link::LinkRuntime) whose program runs; 0 for a test run.
    pub link: u64,
    /// Address of the [`PtRegs`](crate::regs::PtRegs) of a probe; 0 when the context is something else.
    pub regs: u64,
    /// Thread id as the kernel knows it, 0 = not known yet. Valid while `ids_epoch` equals the process's.
    pub tid: u32,
    /// Process id (thread group), 0 = not known yet.
    pub tgid: u32,
    /// Epoch for which `tid` and `tgid` hold (see [`ForkPage`](crate::process::ForkPage)).
    pub ids_epoch: u64,
    /// Tail calls made in this run.
    pub tail_calls: u32,
    /// [`RunContext::OVERRIDE`].
    pub flags: u32,
    /// State of the pseudo-random generator.
    pub random: u64,
    /// Free for helpers that need a scratch area larger than the stack: its address, 0 = none yet.
    pub scratch: u64,
    /// Handles of the ring buffers that the thread reserved records in, newest first: committing a record names no map.
    pub rings: [u64; 4],
    /// What the probed function returns when it is skipped.
    pub override_value: u64,
    /// Process id (upper half) and thread id of a child of `vfork` that runs in this thread's place, on its memory; 0 = none does.
    pub borrowed_by: u64,
    /// `bpf_session_cookie`, of each session of the site: what its program keeps from the entry of a function to its return.
    pub session_cookies: [u64; SESSIONS],
    /// Of the session whose program runs: the address of its word in `session_cookies`, plus 1 at the return of the function.
    pub session: u64,
}

impl RunContext {
    /// `access.cpu` while a program runs that calls something and owns no CPU. Not what the kernel has in a `struct rseq` that is not
    /// registered (-1, -2), which stubs compare with.
    pub const NO_CPU: u32 = u32::MAX - 15;
    /// Bit of `flags`: a program of this hit wants the probed function skipped (`bpf_override_return`).
    pub const OVERRIDE: u32 = 1;
    /// Bit of `flags`: the first session of the site does not run when the function returns. Those of the others follow.
    pub const SESSION_SKIP: u32 = 2;
    /// Most tail calls in one run (`MAX_TAIL_CALL_CNT`).
    pub const TAIL_CALLS_MAX: u32 = 33;
}

const _: () = assert!(size_of::<RunContext>() == 160);
const _: () = assert!(core::mem::offset_of!(RunContext, access) == 0);
const _: () = assert!(core::mem::offset_of!(RunContext, link) == 24);
const _: () = assert!(core::mem::offset_of!(RunContext, tail_calls) == 56);
