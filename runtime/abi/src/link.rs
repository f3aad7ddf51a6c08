//! The shared words of a link: one page at the start of its file, mapped by every process that carries the probe.

use core::sync::atomic::{AtomicU32, AtomicU64};

/// `"beelink\0"` read as a little-endian word.
pub const LINK_MAGIC: u64 = u64::from_le_bytes(*b"beelink\0");

/// First page of a link's file. Stubs test `enabled` at every hit; a link whose owner is gone has it cleared.
#[repr(C)]
#[derive(Debug)]
pub struct LinkShared {
    /// [`LINK_MAGIC`].
    pub magic: u64,
    /// [`ABI_VERSION`](crate::ABI_VERSION).
    pub version: u32,
    /// The link's id in its store.
    pub id: u32,
    /// The program runs at a hit when one of the bits of [`LinkShared::ON`] is set; else the stub goes straight on. 1, or
    /// the thread id of an owner: the word is a robust futex, and when the owner ends, however it does, the kernel leaves
    /// only `FUTEX_OWNER_DIED` in it (`include/uapi/linux/futex.h`).
    pub enabled: AtomicU32,
    /// The program's id; it can be replaced. 0 = the one that the link's file names.
    pub prog_id: AtomicU32,
    /// Hits on which the program did not run because the thread was inside a program already, or had no slot.
    pub missed: AtomicU64,
    /// Hits on which the program ran, where they are counted.
    pub hits: AtomicU64,
    /// Thread id of the owner, 0 = the link outlives who made it.
    pub owner: AtomicU32,
    /// Zero, to the end of a cache line.
    pub reserved: [u32; 5],
}

impl LinkShared {
    /// Bits of `enabled` that turn the link on (`FUTEX_TID_MASK`).
    pub const ON: u32 = 0x3fff_ffff;
}

const _: () = assert!(size_of::<LinkShared>() == 64);
const _: () = assert!(core::mem::offset_of!(LinkShared, enabled) == 16);
const _: () = assert!(core::mem::offset_of!(LinkShared, missed) == 24);

/// What the agent knows of a link in force, in the target's private memory. Written by the injector.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct LinkRuntime {
    /// Address of the [`LinkShared`] page in this process.
    pub shared: u64,
    /// `bpf_get_attach_cookie`.
    pub cookie: u64,
    /// `bpf_get_func_ip`: address of the probed instruction; of the function for a return probe; 0 for a system call.
    pub func_ip: u64,
    /// Address of the program's entry in this process.
    pub entry: u64,
    /// The link's id.
    pub link_id: u32,
    /// The program's id.
    pub prog_id: u32,
    /// [`LinkRuntime::RETURN`] and others.
    pub flags: u32,
    /// The program runs only in the process with this id, not in its fork's children; 0 = everywhere.
    pub pid: u32,
    /// Address of a 16-bit count of those who want the probe (`ref_ctr`), 0 = none. For a system call 0, or its number + 1.
    pub semaphore: u64,
    /// Hits in this process on which the program ran, where they are counted.
    pub hits: u64,
    /// Hits in this process on which it did not run.
    pub missed: u64,
}

impl LinkRuntime {
    /// The program runs when the function returns.
    pub const RETURN: u32 = 1;
    /// The program needs a claimed CPU.
    pub const NEEDS_CPU: u32 = 2;
    /// The agent's own program that looks for seccomp filters that are installed.
    pub const SEES_SECCOMP: u32 = 1 << 31;
    /// It stands at a function whose first argument is the number of the call.
    pub const SEES_NUMBER: u32 = 1 << 30;
    /// The program may have the probed function skipped (`bpf_override_return`).
    pub const OVERRIDES: u32 = 4;
    /// Its hits are counted.
    pub const COUNTS_HITS: u32 = 8;
    /// It is a system call's, and its program sees the record of a tracepoint.
    pub const RECORD: u32 = 32;
    /// It is a system call's, and its program sees the arguments of a raw tracepoint.
    pub const RAW: u32 = 64;
    /// It is a system call's, and its program sees the registers of the kernel's function for the call.
    pub const REGISTERS: u32 = 128;
    /// All three of them.
    pub const SYSTEM_CALL: u32 = LinkRuntime::RECORD | LinkRuntime::RAW | LinkRuntime::REGISTERS;
    /// We are counted in its semaphore.
    pub const IN_SEMAPHORE: u32 = 16;
    /// It is one half of a session: the program runs at the entry, and again when the function returns, if it returned 0.
    pub const SESSION: u32 = 256;
    /// `link_id` of what the agent does for itself; the store's ids begin at 1.
    pub const OWN: u32 = 0;
}

const _: () = assert!(size_of::<LinkRuntime>() == 72);
