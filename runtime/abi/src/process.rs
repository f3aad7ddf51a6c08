//! The agent's block in a target: everything process-wide, in one private mapping.
//!
//! ```text
//! memfd "beeline-agent", mapped private:   image text | image data
//! anonymous:   ProcessBlock | map handles | link runtimes | site runtimes | program table | thread table | ...
//! arenas (within ±2 GiB of the text they serve):   stubs | displaced code | linked programs
//! ```
//!
//! The injector writes it while every thread is stopped, and reads it back at the next attach or detach: by then it is
//! the target's word, and each field is checked before use.

use core::sync::atomic::{AtomicU32, AtomicU64};

/// `"beeproc\0"` read as a little-endian word.
pub const PROCESS_MAGIC: u64 = u64::from_le_bytes(*b"beeproc\0");

/// How a stub finds its thread's slot key.
#[allow(missing_docs, reason = "the values say it")]
#[allow(non_snake_case)]
pub mod Locator {
    /// `mov %fs:0`: the thread control block's self pointer (glibc, musl).
    pub const FS_SELF: u32 = 1;
    /// `rdfsbase`: targets whose `%fs:0` is not a self pointer (Go, early start-up).
    pub const FS_BASE: u32 = 2;
}

/// The agent's process-wide state.
#[repr(C)]
#[derive(Debug)]
pub struct ProcessBlock {
    /// [`PROCESS_MAGIC`].
    pub magic: u64,
    /// [`ABI_VERSION`](crate::ABI_VERSION).
    pub version: u32,
    /// [`Locator`].
    pub locator: u32,
    /// Store identity: random number of the store's directory.
    pub store_uuid: [u64; 2],
    /// Address of `__vdso_clock_gettime`, 0 = use the system call.
    pub vdso_clock_gettime: u64,
    /// fs-relative offset of the thread's `struct rseq` (glibc 2.35's `__rseq_offset`), valid with `FLAG_RSEQ`.
    pub rseq_offset: i64,
    /// fs-relative offset of the thread id in the thread control block, proven for every thread at attach; 0 = none.
    pub tid_offset: u32,
    /// `FLAG_*`.
    pub flags: u32,
    /// Number of possible CPUs; entries in `cpu_slots`.
    pub cpus: u32,
    /// Entries in the map table.
    pub map_count: u32,
    /// Address of the store's [`CpuSlot`]s, shared by all processes of the store.
    pub cpu_slots: u64,
    /// Address of the [`ThreadSlot`](crate::thread::ThreadSlot)s.
    pub threads: u64,
    /// Address of the map table: [`MapHandle`](crate::map::MapHandle)s in order of id.
    pub maps: u64,
    /// Address of the program table: [`ProgramRuntime`]s in order of id.
    pub programs: u64,
    /// Entries in the program table.
    pub program_count: u32,
    /// Entries in the site table.
    pub site_count: u32,
    /// Address of the [`SiteRuntime`]s.
    pub sites: u64,
    /// Address of the [`TraceHeader`](crate::trace::TraceHeader), 0 = none.
    pub trace: u64,
    /// Address of the [`UnwindText`](crate::unwind::UnwindText)s, 0 = stacks are walked by frame pointers alone.
    pub texts: u64,
    /// Entries in that table.
    pub text_count: u32,
    /// Zero.
    pub reserved: u32,
    /// Address of the [`ForkPage`].
    pub fork_page: u64,
    /// Address of the memory of the synthetic tasks ([`TaskLayout::memory_len`] bytes, zero), 0 = none.
    pub task: u64,
    /// Bytes of it.
    pub task_len: u32,
    /// Entries in the region table.
    pub region_count: u32,
    /// Where the fields lie in the synthetic task.
    pub task_layout: TaskLayout,
    /// Next free byte of the chunk that the agent cuts threads' memory from; 0 = no chunk yet. Written by the agent.
    pub pool: AtomicU64,
    /// Next free byte of the memory that the injector mapped for threads: it is used up before the first chunk is mapped.
    /// Written by the agent.
    pub reserve: AtomicU64,
    /// Where that memory ends.
    pub reserve_end: u64,
    /// Address of the [`SystemCalls`](crate::system_call::SystemCalls), 0 = none are traced.
    pub system_calls: u64,
    /// Address of the [`Guard`](crate::guard::Guard), 0 = the process never had a breakpoint, nor dispatched calls.
    pub guard: u64,
    /// Every mapping that belongs to us, for detach.
    pub regions: [Region; REGIONS_MAX],
}

/// Mappings of ours that one process can have.
pub const REGIONS_MAX: usize = 1024;

impl ProcessBlock {
    /// Threads have a `struct rseq` at `rseq_offset`.
    pub const FLAG_RSEQ: u32 = 1;
    /// The target's stacks are small (Go): stubs switch to the slot's private stack.
    pub const FLAG_SMALL_STACKS: u32 = 2;
    /// The process's pid or time namespace is not that of the store's other processes: nobody can tell from an owner
    /// word whether its threads live (see [`OWNER_FOREIGN`]).
    pub const FLAG_FOREIGN_IDS: u32 = 4;
    /// Attaching or detaching is under way, or was interrupted: some sites may be patched and others not.
    pub const FLAG_UNFINISHED: u32 = 8;
    /// It was attached to before its first instruction: what was not known of its threads then is still to be entered.
    pub const FLAG_EARLY: u32 = 16;
}

/// Bit of [`Access::owner`](crate::map::Access::owner): thread id and start time mean nothing outside of the owner's
/// namespaces, the owner counts as alive.
pub const OWNER_FOREIGN: u64 = 1 << 31;

/// A mapping of ours in the target.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Region {
    /// First byte.
    pub start: u64,
    /// Bytes.
    pub len: u64,
}

/// Byte offsets of the fields of `task_struct` that the synthetic task has, from the BTF that programs were relocated
/// against. `u32::MAX` = the field does not exist there.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[allow(missing_docs, reason = "the names are the fields'")]
pub struct TaskLayout {
    pub size: u32,
    pub pid: u32,
    pub tgid: u32,
    pub comm: u32,
    pub real_parent: u32,
    pub parent: u32,
    pub group_leader: u32,
    pub start_time: u32,
    pub start_boottime: u32,
    pub nsproxy: u32,
    pub exit_code: u32,
    /// Offset of `mnt_ns` in `struct nsproxy`, and its size.
    pub nsproxy_mnt_ns: u32,
    pub nsproxy_pid_ns_for_children: u32,
    pub nsproxy_size: u32,
    /// Offset of `ns.inum` in `struct mnt_namespace`, and its size.
    pub mnt_ns_inum: u32,
    pub mnt_ns_size: u32,
}

impl TaskLayout {
    /// Bytes of one synthetic task, a multiple of 64.
    pub const fn task_bytes(&self) -> u64 {
        (self.size as u64).next_multiple_of(64)
    }

    /// Bytes that `ProcessBlock::task` needs: the leader's task, the parent's, `nsproxy`, `mnt_namespace`.
    pub const fn memory_len(&self) -> u64 {
        2 * self.task_bytes()
            + (self.nsproxy_size as u64).next_multiple_of(64)
            + (self.mnt_ns_size as u64).next_multiple_of(64)
    }
}

/// A program linked into this process.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct ProgramRuntime {
    /// The program's id in its store.
    pub id: u32,
    /// `LinkRuntime::NEEDS_CPU` when it touches per-CPU data.
    pub flags: u32,
    /// Address of its entry.
    pub entry: u64,
}

/// A patched place.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct SiteRuntime {
    /// Address of the first patched byte.
    pub address: u64,
    /// Address of its stub.
    pub stub: u64,
    /// Bytes of the stub with its displaced code.
    pub stub_len: u32,
    /// Patched bytes, at most 16.
    pub len: u32,
    /// What stood there.
    pub original: [u8; 16],
    /// What stands there now.
    pub patched: [u8; 16],
    /// Address of the first [`LinkRuntime`](crate::link::LinkRuntime) of the site.
    pub links: u64,
    /// How many of them.
    pub link_count: u32,
    /// `SiteRuntime::*` flags.
    pub flags: u32,
}

const _: () = assert!(size_of::<SiteRuntime>() == 72);

impl SiteRuntime {
    /// In `flags`: no site of its own, but the place of another's long jump: the last five of the patched bytes. Before them, a
    /// jump to `stub`, the copy of what stood there; or nothing, when it was padding. It has no links.
    pub const HOLE: u32 = 1;
    /// In `flags`: it is there for system calls; all such sites have the same links. Where the call itself is displaced, bits 8 to
    /// 15 hold the distance from `address` to behind it, bits 16 to 31 that from `stub` to behind its copy; else they are 0.
    pub const SYSTEM_CALL: u32 = 2;
    /// In `flags`: it is the first instruction of a function.
    pub const ENTRY: u32 = 4;
    /// In `flags`: its only patched byte is an `int3`. Its entry in the table of breakpoints leads to the stub.
    pub const BREAKPOINT: u32 = 8;
}

/// One CPU of the store: which thread runs a program that touches this CPU's data.
///
/// Taken inside a restartable sequence on that CPU, so without a locked instruction; released by a plain store. A
/// thread that dies or is stopped for long in between is found by its owner word.
#[repr(C, align(64))]
#[derive(Debug)]
pub struct CpuSlot {
    /// [`Access::owner`](crate::map::Access::owner) of the thread, 0 = free.
    pub owner: AtomicU64,
    /// Zero.
    pub reserved: [u64; 7],
}

const _: () = assert!(size_of::<CpuSlot>() == 64);

/// A page that a fork's child finds zeroed (`MADV_WIPEONFORK`): what is cached of a process's identity.
#[repr(C)]
#[derive(Debug)]
pub struct ForkPage {
    /// Never zero in a process whose identity is cached; a new random number in each process.
    pub epoch: AtomicU64,
    /// Process id.
    pub tgid: AtomicU32,
    /// 1: the process's part of the synthetic task is filled in.
    pub task_filled: AtomicU32,
    /// Parent process whose name the synthetic task holds.
    pub parent: AtomicU32,
    /// 1: the thread control blocks do not hold the threads' ids. The process was forked behind its C library's back.
    pub ids_unknown: AtomicU32,
    /// The process that we were attached to, by its id as the injector knows it. Zero in a fork's child: links of one
    /// process alone do not apply there.
    pub attached: AtomicU32,
    /// Id of the process whose memory this is, where there is a guard: a child of `vfork` has another one.
    pub owner: AtomicU32,
}

const _: () = assert!(size_of::<ForkPage>() == 32);
