//! A thread's slot in a target: guard word, claim of CPUs, run context, return stack.
//!
//! Slots lie in a table of a power of two, found by a hash of the thread's fs base; a stub looks only at the home slot
//! ([`home_index`]) and leaves the rest to the agent. Slots are never freed while the agent is in the process.

use crate::run::RunContext;
use crate::system_call::{PENDING, PendingCall};
use core::sync::atomic::AtomicU64;

/// Slots in a process's table.
pub const THREAD_SLOTS: u64 = 4096;

/// Multiplier of the Fibonacci hash of an fs base: 2^32 less by its golden section, which fits an instruction's number.
pub const HASH_MULTIPLIER: u64 = 0x61C8_8647;

/// The index of a slot is in the bits of the product from this one on: all bits of an address but the uppermost count for them.
pub const HASH_SHIFT: u32 = 32;

/// Home slot of a thread with this fs base.
pub const fn home_index(fs_base: u64) -> u64 {
    (fs_base.wrapping_mul(HASH_MULTIPLIER) >> HASH_SHIFT) % THREAD_SLOTS
}

/// Returns that one thread can have outstanding: with what the agent keeps behind them, 32 KiB. Beyond it a return probe is missed,
/// never refused.
pub const RETURN_SLOTS: u64 = 510;

/// Sessions that one site can have: each keeps a word for every call.
pub const SESSIONS: usize = 3;

/// A call under a return probe that has not returned yet.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct ReturnSlot {
    /// Where the function returns to.
    pub return_address: u64,
    /// Address of the stack word that held it, which now holds the stub's return point.
    pub sp: u64,
    /// Address of the [`SiteRuntime`](crate::process::SiteRuntime).
    pub site: u64,
    /// The stub's return point, as it stands at `sp`.
    pub trampoline: u64,
    /// `RunContext::flags` as the sessions of the site left them at the entry.
    pub session_flags: u64,
    /// `RunContext::session_cookies` as they left them.
    pub session_cookies: [u64; SESSIONS],
}

impl ReturnSlot {
    /// An entry that is none.
    pub const EMPTY: ReturnSlot = ReturnSlot {
        return_address: 0,
        sp: 0,
        site: 0,
        trampoline: 0,
        session_flags: 0,
        session_cookies: [0; SESSIONS],
    };
}

const _: () = assert!(size_of::<ReturnSlot>() == 64);

/// One thread of the target.
#[repr(C, align(64))]
#[derive(Debug)]
pub struct ThreadSlot {
    /// The thread's fs base; 0 = free. The lowest bits are marks: 1 = being set up, [`ThreadSlot::SHARED`].
    pub key: AtomicU64,
    /// Stack pointer at the entry of the program that runs; 0 = none runs. A later hit whose stack pointer is no smaller, or without a
    /// signal frame between them, shows that the run was abandoned.
    pub guard: AtomicU64,
    /// [`ForkPage::epoch`](crate::process::ForkPage::epoch) of the process for which `claim_*` hold.
    pub claim_epoch: u64,
    /// Address of the thread's `struct rseq`, with which a stub claims a CPU by itself; 0 = it never did. Its `rseq_cs` may name the
    /// stub's descriptor for as long as nobody clears it, also when the thread has ended: before that is unmapped it has to be cleared.
    pub claim_rseq: u64,
    /// Owner word of the thread for which `claim_*` hold.
    pub claim_owner: u64,
    /// Address of the [`CpuSlot`](crate::process::CpuSlot) of `claim_cpu`.
    pub claim_slot: u64,
    /// Where the thread control block holds the thread's id; that of `reserved` where the agent claims.
    pub claim_tid_at: u64,
    /// The CPU that the thread was on when it claimed one last: on another a stub asks the agent.
    pub claim_cpu: u32,
    /// Id of the thread for which `claim_*` hold; [`ThreadSlot::NOBODY`] where the agent claims.
    pub claim_tid: u32,
    /// What the run knows.
    pub run: RunContext,
    /// The thread's `struct rseq` when its libc registers none.
    pub own_rseq: [u64; 4],
    /// Address of the next free [`ReturnSlot`].
    pub returns_top: u64,
    /// Address behind the last one.
    pub returns_end: u64,
    /// Address of the first one; 0 until the agent has made the return stack.
    pub returns_base: u64,
    /// Top of the private stack for targets whose own stacks are too small; 0 = none.
    pub stack_top: u64,
    /// Address of the `struct rseq` that the agent registered for this thread (its `own_rseq`), 0 = none: the thread
    /// has libc's. Before this memory is unmapped the thread must unregister it:
    /// `rseq(rseq, 32, RSEQ_FLAG_UNREGISTER, RSEQ_SIG)`, else the kernel kills the thread at its next preemption.
    pub rseq: u64,
    /// Address of the thread's own memory (private stack, scratch, return stack), 0 = none yet.
    pub memory: u64,
    /// Thread id for which `rseq` is registered, 0 = none.
    pub rseq_tid: u32,
    /// Zero.
    pub reserved: u32,
    /// Owner word of the CPU that this thread waited for in vain the last time; it does not wait for it again.
    pub blocked_by: u64,
    /// Where the function of the target that a program has called returns to, as it stands below the address in `guard` then; 0 = none
    /// is called. When that word is another, the function will not come back.
    pub host_return: u64,
    /// Calls made so far whose number has to be remembered; entry `pending_top % PENDING` is the next to be written.
    pub pending_top: u64,
    /// Those of them that may not have returned.
    pub pending: [PendingCall; PENDING],
    /// Zero.
    pub reserved2: [u64; 6],
}

impl ThreadSlot {
    /// In `claim_tid`: no thread's id.
    pub const NOBODY: u32 = u32::MAX;
    /// In `key`: threads share this thread pointer, and none of them has a slot.
    pub const SHARED: u64 = 2;
}

/// Signature before every abort handler of a restartable sequence (`RSEQ_SIG`, glibc's on x86).
pub const RSEQ_SIG: u32 = 0x5305_3053;

/// Bytes of a `struct rseq` as registered by the agent.
pub const RSEQ_LEN: u32 = 32;

const _: () = assert!(size_of::<ThreadSlot>() == 512);
const _: () = assert!(core::mem::offset_of!(ThreadSlot, guard) == 8);
const _: () = assert!(core::mem::offset_of!(ThreadSlot, run) == 64);
const _: () = assert!(core::mem::offset_of!(ThreadSlot, own_rseq).is_multiple_of(32));
// No entry lies in two cache lines.
const _: () = assert!(core::mem::offset_of!(ThreadSlot, pending).is_multiple_of(size_of::<PendingCall>()));
// What a stub needs to find the slot and to claim a CPU lies in one cache line.
const _: () = assert!(core::mem::offset_of!(ThreadSlot, claim_tid) == 60);
