//! The guard: what keeps signals deliverable that probes depend on: `SIGTRAP` of breakpoints, `SIGSYS` of dispatched calls.
//!
//! ```text
//! ProcessBlock::guard ─▶ Guard:   head │ records       what the process wants done with each of the signals
//!                                      │ masked        arguments of calls in place of the process's own
//!                                      │ scratch       the injector's
//! Guard::breakpoints ─▶ Breakpoints, then that many Breakpoint, in the order of their addresses
//! ```
//!
//! It has a mapping of its own, with the code that serves it in front. The injector makes it when a process gets its first
//! breakpoint, and takes it out with the agent; tables of breakpoints are made anew at each attach.

use crate::dispatch::SIGSYS;
use core::sync::atomic::AtomicU64;

/// `"beeguard"` read as a little-endian word.
pub const GUARD_MAGIC: u64 = u64::from_le_bytes(*b"beeguard");

/// The signal of a breakpoint.
pub const SIGTRAP: u64 = 5;

/// The signals that a guard can keep deliverable, in the order of its records.
pub const GUARDED: [u64; 2] = [SIGTRAP, SIGSYS];

/// The bit of a signal in a mask.
pub const fn bit(signal: u64) -> u64 {
    1 << (signal - 1)
}

/// `rt_sigaction` (`arch/x86/entry/syscalls/syscall_64.tbl`).
pub const RT_SIGACTION: u64 = 13;
/// `rt_sigprocmask`.
pub const RT_SIGPROCMASK: u64 = 14;
/// `rt_sigsuspend`.
pub const RT_SIGSUSPEND: u64 = 130;
/// `pselect6`.
pub const PSELECT6: u64 = 270;
/// `ppoll`.
pub const PPOLL: u64 = 271;
/// `epoll_pwait`.
pub const EPOLL_PWAIT: u64 = 281;
/// `io_pgetevents`.
pub const IO_PGETEVENTS: u64 = 333;
/// `epoll_pwait2`.
pub const EPOLL_PWAIT2: u64 = 441;
/// `clone3`, which can put the actions of all signals back to the default ones in the child.
pub const CLONE3: u64 = 435;

/// Calls with which a process blocks signals: where there is a guard it looks at their begins and ends.
pub const MASKING: [u64; 7] =
    [RT_SIGPROCMASK, RT_SIGSUSPEND, PSELECT6, PPOLL, EPOLL_PWAIT, IO_PGETEVENTS, EPOLL_PWAIT2];

/// What is to be done with a signal: the kernel's `struct sigaction` on x86-64.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Action {
    /// Address of the handler; [`Action::DEFAULT`], [`Action::IGNORE`].
    pub handler: u64,
    /// `SA_*`.
    pub flags: u64,
    /// Where a handler returns to.
    pub restorer: u64,
    /// Signals that are blocked while it runs.
    pub mask: u64,
}

impl Action {
    /// `SIG_DFL`.
    pub const DEFAULT: u64 = 0;
    /// `SIG_IGN`.
    pub const IGNORE: u64 = 1;
    /// `SA_SIGINFO`.
    pub const SIGINFO: u64 = 4;
    /// `SA_RESTORER`.
    pub const RESTORER: u64 = 0x0400_0000;
    /// `SA_ONSTACK`.
    pub const ON_STACK: u64 = 0x0800_0000;
    /// `SA_RESTART`.
    pub const RESTART: u64 = 0x1000_0000;
    /// `SA_NODEFER`.
    pub const NO_DEFER: u64 = 0x4000_0000;
    /// `SA_RESETHAND`.
    pub const RESET_HAND: u64 = 0x8000_0000;
    /// What the guard's own has in any case. It blocks nothing: the handler of the process, which it goes on in, can meet breakpoints.
    pub const OWN: u64 = Action::SIGINFO | Action::RESTORER | Action::NO_DEFER;
}

/// The flags of the guard's own action for a signal, with which the process wants these. A breakpoint can be on any stack, and has the
/// alternate one. A dispatched call has it only where the process itself expects handlers there: one that is not used may be gone.
pub const fn own_flags(signal: u64, wanted: u64) -> u64 {
    let stack = if signal == SIGTRAP { Action::ON_STACK } else { wanted & Action::ON_STACK };
    Action::OWN | stack | wanted & Action::RESTART
}

/// One version of the action that the process wants.
#[repr(C)]
#[derive(Debug)]
pub struct Recorded {
    /// Which version stands here; 0 while it is written.
    pub version: AtomicU64,
    /// The words of an [`Action`].
    pub words: [AtomicU64; 4],
}

/// Versions that are kept: who reads one while so many newer ones are written looks again.
pub const RECORDED: usize = 16;

/// What the process wants done with one signal.
#[repr(C)]
#[derive(Debug)]
pub struct Record {
    /// The version of the action that holds.
    pub newest: AtomicU64,
    /// The last version that somebody has begun to write.
    pub claimed: AtomicU64,
    /// Signals whose handlers block this one as the process wants it, and do not: it is put back when the guard goes.
    pub trimmed: AtomicU64,
    /// Version n is entry n % [`RECORDED`].
    pub actions: [Recorded; RECORDED],
}

/// Arguments of a call that would block a guarded signal, in place of the process's own.
#[repr(C)]
#[derive(Debug)]
pub struct Masked {
    /// Stack pointer at the call; 0 = free.
    pub sp: AtomicU64,
    /// The argument as the process gave it.
    pub original: AtomicU64,
    /// What the call gets: the words of an [`Action`], or in the third one a mask, and in the first two its address and size for calls that
    /// want those in memory; without the guarded signals.
    pub words: [AtomicU64; 4],
    /// Zero, to the end of a cache line.
    pub reserved: [u64; 2],
}

/// Calls that can be under way at once.
pub const MASKED: usize = 4096;

/// The guard of a process.
#[repr(C)]
#[derive(Debug)]
pub struct Guard {
    /// [`GUARD_MAGIC`].
    pub magic: u64,
    /// The signals that are guarded, bit n - 1 for signal n; 0 = the handler is not in force.
    pub signals: AtomicU64,
    /// Address of the agent's [`CallGate`](crate::calls::CallGate).
    pub call_gate: u64,
    /// Address of the agent's `beeline_system_call_enter`.
    pub enter: u64,
    /// Address of the agent's `beeline_system_call_exit`.
    pub exit: u64,
    /// Address of the agent's `beeline_system_call_missed`.
    pub missed: u64,
    /// Address of the guard's handler.
    pub handler: u64,
    /// Address of the code that it returns to, but for that of `SIGSYS` ([`Dispatch::restorer`](crate::dispatch::Dispatch::restorer)).
    pub restorer: u64,
    /// Address of the [`Breakpoints`]; 0 = none.
    pub breakpoints: AtomicU64,
    /// Address of the [`ForkPage`](crate::process::ForkPage).
    pub fork_page: u64,
    /// Address of the [`Dispatch`](crate::dispatch::Dispatch); 0 = no calls are dispatched.
    pub dispatch: AtomicU64,
    /// One for each of [`GUARDED`].
    pub records: [Record; GUARDED.len()],
    /// Where the injector has the actions of all signals told.
    pub scratch: [Action; 64],
    /// Calls under way.
    pub masked: [Masked; MASKED],
}

/// The head of a table of breakpoints.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Breakpoints {
    /// How many follow.
    pub count: u64,
}

/// A place with an `int3`.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Breakpoint {
    /// Address of the `int3`.
    pub address: u64,
    /// Where a thread goes on that has met it.
    pub stub: u64,
}

const _: () = assert!(size_of::<Action>() == 32);
const _: () = assert!(size_of::<Recorded>() == 40);
const _: () = assert!(size_of::<Masked>() == 64);
const _: () = assert!(size_of::<Record>() == 24 + 40 * RECORDED);
const _: () = assert!(size_of::<Guard>() == 88 + 2 * size_of::<Record>() + 32 * 64 + 64 * MASKED);
const _: () = assert!(size_of::<Breakpoint>() == 16 && size_of::<Breakpoints>() == 8);
