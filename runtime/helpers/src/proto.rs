//! The types of a helper's row: what each argument must be, what comes back, who may call it.
//!
//! The verifier proves calls against these; it knows nothing else about a helper, except for the few that change the
//! flow of control (tail call, callbacks). Names follow `enum bpf_arg_type` and `enum bpf_return_type`
//! (`include/linux/bpf.h`).

/// What a helper does with memory that an argument points to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MemAccess {
    /// Reads it: every byte must be initialised.
    Read,
    /// Overwrites all of it without reading (`MEM_UNINIT | MEM_WRITE`): it may be uninitialised before.
    Write,
    /// Reads and writes it: initialised and writable.
    ReadWrite,
}

/// What one argument must be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ArgKind {
    /// The helper has no such argument.
    None,
    /// Any initialised value (`ARG_ANYTHING`).
    Anything,
    /// A map (`ARG_CONST_MAP_PTR`). The key and value arguments of the call are sized by it.
    ConstMapPtr,
    /// Memory of the map's key size, read (`ARG_PTR_TO_MAP_KEY`).
    MapKey,
    /// Memory of the map's value size (`ARG_PTR_TO_MAP_VALUE`).
    MapValue(MemAccess),
    /// Memory whose size is the next argument (`ARG_PTR_TO_MEM`).
    Mem {
        /// What the helper does with it.
        access: MemAccess,
        /// A constant 0 is allowed too (`PTR_MAYBE_NULL`).
        nullable: bool,
    },
    /// Memory of a fixed size in bytes, naturally aligned when it is a number (`MEM_FIXED_SIZE`).
    FixedMem {
        /// What the helper does with it.
        access: MemAccess,
        /// Bytes.
        size: u32,
        /// The address must be a multiple of `size` (`MEM_ALIGNED`).
        aligned: bool,
    },
    /// Size of the memory before it, at least 1 (`ARG_CONST_SIZE`).
    Size,
    /// Size of the memory before it, or 0 (`ARG_CONST_SIZE_OR_ZERO`).
    SizeOrZero,
    /// The program's context, unmodified (`ARG_PTR_TO_CTX`).
    Ctx {
        /// A constant 0 is allowed too.
        nullable: bool,
    },
    /// A ring-buffer record from its start (`ARG_PTR_TO_RINGBUF_MEM`).
    RingbufMem {
        /// The helper takes the record: it and its copies are gone afterwards (`OBJ_RELEASE`).
        release: bool,
    },
    /// A constant size of the record that is returned (`ARG_CONST_ALLOC_SIZE_OR_ZERO`).
    AllocSize,
    /// A static subprogram to be called back (`ARG_PTR_TO_FUNC`).
    Func,
    /// The address of anything on the stack, or 0 (`ARG_PTR_TO_STACK_OR_NULL`): handed through to a callback.
    StackOrNull,
    /// A NUL-terminated string in a frozen read-only map (`ARG_PTR_TO_CONST_STR`).
    ConstStr,
    /// A kernel object by the name of its type (`ARG_PTR_TO_BTF_ID`).
    Btf(&'static str),
    /// The spin lock in a map's value, which is taken or given back (`ARG_PTR_TO_SPIN_LOCK`).
    SpinLock {
        /// Taken.
        take: bool,
    },
    /// A number, no pointer (a kernel function's argument of an integer type).
    Scalar,
    /// The id of a structure in the kernel's BTF, a constant.
    TypeId,
    /// An iterator over numbers: 8 bytes of stack that only such functions touch (`struct bpf_iter_num`).
    Iter(IterUse),
    /// A dynptr: 16 bytes of stack that only such helpers touch (`ARG_PTR_TO_DYNPTR`).
    Dynptr(DynptrUse),
}

/// What a kernel function does with an iterator.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum IterUse {
    /// Makes it; it must be destroyed, also when making it failed.
    New,
    /// Takes an element.
    Next,
    /// Ends it.
    Destroy,
}

/// What a helper does with a dynptr.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DynptrUse {
    /// Makes one of the memory that its first argument points to (`DYNPTR_TYPE_LOCAL | MEM_UNINIT`).
    MakeLocal,
    /// Makes one of a ring-buffer record; it must be submitted or discarded, also when there was no room.
    MakeRecord,
    /// Takes the record (`OBJ_RELEASE`).
    Release,
    /// Looks at it.
    Read,
}

/// What a helper returns.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RetKind {
    /// A number.
    Integer,
    /// Nothing: r0 is unreadable after the call.
    Void,
    /// The address of a value of the map argument, or 0.
    MapValueOrNull,
    /// The address of a record of as many bytes as the [`ArgKind::AllocSize`] argument, or 0. It must be released.
    RingbufMemOrNull,
    /// A kernel object by the name of its type, never 0 (`RET_PTR_TO_BTF_ID`).
    Btf(&'static str),
    /// A kernel object by the name of its type, or 0.
    BtfOrNull(&'static str),
    /// The address of the next element of an iterator, four bytes that may be read, or 0 when there is none.
    IterElementOrNull,
    /// The first argument as the address of a structure of the type that the second one names. Anything may be there.
    Cast,
    /// The address of memory of so many bytes, which the program may read and write, never 0.
    Mem {
        /// Bytes.
        size: u32,
    },
    /// The address of part of a dynptr's memory, as many bytes as the [`ArgKind::AllocSize`] argument says, or 0.
    DynptrMemOrNull,
}

/// A set of program types: bit n is `BPF_PROG_TYPE_*` number n.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ProgramSet(pub u64);

impl ProgramSet {
    /// Every program type: what `bpf_base_func_proto` gives a privileged loader.
    pub const ALL: ProgramSet = ProgramSet(u64::MAX);
    /// No program type.
    pub const NONE: ProgramSet = ProgramSet(0);
    /// `BPF_PROG_TYPE_SOCKET_FILTER`.
    pub const SOCKET_FILTER: ProgramSet = ProgramSet(1 << 1);
    /// `BPF_PROG_TYPE_KPROBE`: uprobes too.
    pub const KPROBE: ProgramSet = ProgramSet(1 << 2);
    /// `BPF_PROG_TYPE_SCHED_CLS` and `SCHED_ACT`: traffic control.
    pub const SCHED: ProgramSet = ProgramSet(1 << 3 | 1 << 4);
    /// `BPF_PROG_TYPE_TRACEPOINT`.
    pub const TRACEPOINT: ProgramSet = ProgramSet(1 << 5);
    /// `BPF_PROG_TYPE_XDP`.
    pub const XDP: ProgramSet = ProgramSet(1 << 6);
    /// `BPF_PROG_TYPE_PERF_EVENT`.
    pub const PERF_EVENT: ProgramSet = ProgramSet(1 << 7);
    /// `BPF_PROG_TYPE_RAW_TRACEPOINT` and its writable form.
    pub const RAW_TRACEPOINT: ProgramSet = ProgramSet(1 << 17 | 1 << 24);
    /// `BPF_PROG_TYPE_TRACING`: fentry, fexit, iterators.
    pub const FENTRY: ProgramSet = ProgramSet(1 << 26);
    /// `BPF_PROG_TYPE_SYSCALL`.
    pub const SYSCALL: ProgramSet = ProgramSet(1 << 31);
    /// What `bpf_tracing_func_proto` serves: kprobe, tracepoint, raw tracepoint, perf event, tracing, and `lsm`.
    pub const TRACING: ProgramSet = ProgramSet::KPROBE
        .union(ProgramSet::TRACEPOINT)
        .union(ProgramSet::PERF_EVENT)
        .union(ProgramSet::RAW_TRACEPOINT)
        .union(ProgramSet::FENTRY)
        .union(ProgramSet(1 << 29));

    /// Both sets together.
    pub const fn union(self, other: ProgramSet) -> ProgramSet {
        ProgramSet(self.0 | other.0)
    }

    /// The set without the types of `other`.
    pub const fn without(self, other: ProgramSet) -> ProgramSet {
        ProgramSet(self.0 & !other.0)
    }

    /// True when `BPF_PROG_TYPE_*` number `prog_type` is in the set.
    pub const fn contains(self, prog_type: u32) -> bool {
        prog_type < 64 && self.0 & (1 << prog_type) != 0
    }
}

/// What the verifier knows of one helper.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HelperProto {
    /// `BPF_FUNC_*`.
    pub id: u32,
    /// The kernel's name, `bpf_` included.
    pub name: &'static str,
    /// r1 to r5.
    pub args: [ArgKind; 5],
    /// r0.
    pub ret: RetKind,
    /// Only programs with a GPL-compatible licence may call it.
    pub gpl_only: bool,
    /// The program types that may call it.
    pub programs: ProgramSet,
    /// Only sleepable programs may call it.
    pub might_sleep: bool,
    /// Its memory arguments may be packet data (`pkt_access`).
    pub packets: bool,
    /// It may move or resize the packet: what was known of packet pointers is void (`bpf_helper_changes_pkt_data`).
    pub changes_packet: bool,
}

impl HelperProto {
    /// A helper for every program type, without GPL restriction. `args` may be shorter than five: pad with
    /// [`ArgKind::None`] by [`args`].
    pub const fn new(id: u32, name: &'static str, args: [ArgKind; 5], ret: RetKind) -> HelperProto {
        HelperProto {
            id,
            name,
            args,
            ret,
            gpl_only: false,
            programs: ProgramSet::ALL,
            might_sleep: false,
            packets: false,
            changes_packet: false,
        }
    }

    /// The same, GPL-only.
    pub const fn gpl(self) -> HelperProto {
        HelperProto { gpl_only: true, ..self }
    }

    /// The same, for these program types only.
    pub const fn only(self, programs: ProgramSet) -> HelperProto {
        HelperProto { programs, ..self }
    }

    /// The same, for sleepable programs only.
    pub const fn sleeps(self) -> HelperProto {
        HelperProto { might_sleep: true, ..self }
    }

    /// The same, with packet data as memory.
    pub const fn packets(self) -> HelperProto {
        HelperProto { packets: true, ..self }
    }

    /// The same, moving or resizing the packet.
    pub const fn changes_packet(self) -> HelperProto {
        HelperProto { changes_packet: true, ..self }
    }
}

/// Five arguments from at most five, padded with [`ArgKind::None`]. Fails to compile with more.
pub const fn args<const N: usize>(given: [ArgKind; N]) -> [ArgKind; 5] {
    assert!(N <= 5);
    let mut all = [ArgKind::None; 5];
    let mut i = 0;
    while i < N {
        all[i] = given[i];
        i += 1;
    }
    all
}
