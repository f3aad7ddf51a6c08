//! System calls of code that is in no file: the kernel hands them to the process (`PR_SET_SYSCALL_USER_DISPATCH`), where no jump can be
//! put around them.
//!
//! ```text
//! behind libc's code, to the end of its last page:   return from a handler │ call │ slot │ slot │ ...
//! Guard::dispatch ─▶ Dispatch:   head │ entries, one for each slot
//! Dispatch::known ─▶ Known, then that many KnownRange, in the order of their addresses
//!
//! syscall ─▶ SIGSYS ─▶ an entry has the call's address ─▶ enter: programs ─▶ its slot: syscall ─▶ left: programs ─▶ behind the call
//! ```
//!
//! The kernel lets calls through that are made from one range of addresses: the code of the C library, and what lies behind it on its
//! last page. So libc's calls stay as they are, with the jumps around them, and every call that was handed over is made from a slot.
//! Calls of other files have jumps around them already; they go to slots without programs.

use core::sync::atomic::AtomicU64;

/// `"beedisp\0"` read as a little-endian word.
pub const DISPATCH_MAGIC: u64 = u64::from_le_bytes(*b"beedisp\0");

/// `SIGSYS`.
pub const SIGSYS: u64 = 31;

/// Slots that a process has at most.
pub const SLOTS: usize = 256;

/// Slots for calls that change no register, of which the last ones of a process are: `int 0x80`.
pub const FIXED: usize = 8;

/// Threads of which it is known that they want `SIGSYS` blocked.
pub const BLOCKING: usize = 1024;

/// Bytes of a slot: `syscall`, `lea rcx, [its entry]`, `jmp [where slots go on]`, one byte of filler.
pub const SLOT_LEN: u64 = 16;

/// A call that is on its way through a slot, or was last.
#[repr(C)]
#[derive(Debug)]
pub struct DispatchEntry {
    /// Address behind the call; 0 = the slot was never used.
    pub behind: AtomicU64,
    /// How many threads are on their way, or ended there; with [`DispatchEntry::TAKING`] while somebody gives it another address.
    pub threads: AtomicU64,
    /// Address of its slot.
    pub slot: u64,
    /// Zero.
    pub reserved: u64,
}

impl DispatchEntry {
    /// In `threads`.
    pub const TAKING: u64 = 1 << 63;
}

/// What is added to a thread pointer in [`Dispatch::blocking`].
#[derive(Clone, Copy, Debug)]
pub struct BlockingBits;

impl BlockingBits {
    /// It wants the signal blocked.
    pub const NOW: u64 = 1;
    /// It did before the call of `rt_sigprocmask` that is under way.
    pub const BEFORE: u64 = 2;
    /// It has since before the signal was kept from it, and has not set its mask meanwhile.
    pub const SINCE_ATTACH: u64 = 4;
    /// All of them; thread pointers have none.
    pub const ALL: u64 = 7;
}

/// How the calls of a process are dispatched.
#[repr(C)]
#[derive(Debug)]
pub struct Dispatch {
    /// [`DISPATCH_MAGIC`].
    pub magic: u64,
    /// First address from which calls are let through.
    pub start: u64,
    /// Bytes from which they are.
    pub len: u64,
    /// 1: threads that are made have their calls dispatched as well.
    pub is_on: AtomicU64,
    /// Where a call goes on at which programs run, with rcx = its entry.
    pub enter: AtomicU64,
    /// Where slots go on behind the call, with rcx = the entry: those with programs, those without.
    pub left: [AtomicU64; 2],
    /// Address of the code in the range to which handlers return.
    pub restorer: u64,
    /// First address of what lies behind libc's code.
    pub tail: u64,
    /// Entries with programs: the first ones.
    pub traced: u64,
    /// Entries without: the next ones.
    pub plain: u64,
    /// Entries of `int 0x80`: the last ones. Each keeps its address for good.
    pub fixed: u64,
    /// Address of the [`Known`] ranges; 0 = none.
    pub known: AtomicU64,
    /// Calls at which programs could run.
    pub calls: AtomicU64,
    /// Calls that were made without, because no slot was free or it was no 64-bit call.
    pub missed: AtomicU64,
    /// How many of [`Dispatch::blocking`] are in use, or were.
    pub blocking_top: AtomicU64,
    /// Threads that want `SIGSYS` blocked, which it is not meanwhile: the thread pointer, with [`BlockingBits`]; 0 = free.
    pub blocking: [AtomicU64; BLOCKING],
    /// One for each slot.
    pub entries: [DispatchEntry; SLOTS],
}

/// The head of a table of ranges whose calls need no slot with programs: in order, none in another.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Known {
    /// How many follow.
    pub count: u64,
}

/// Addresses behind calls that have jumps around them, or of code of ours.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct KnownRange {
    /// The first.
    pub start: u64,
    /// Behind the last.
    pub end: u64,
}

const _: () = assert!(size_of::<DispatchEntry>() == 32);
const _: () = assert!(size_of::<Dispatch>() == 128 + 8 * BLOCKING + 32 * SLOTS);
const _: () = assert!(size_of::<KnownRange>() == 16 && size_of::<Known>() == 8);
