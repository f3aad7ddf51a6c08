//! What the verifier is given: a program, its maps, what its types say. Plain data, owned.

use crate::types::Types;
use beeline_abi::code::HostValue;
use beeline_abi::map::MapShape;
use beeline_isa::Insn;

/// `enum bpf_prog_type` (`include/uapi/linux/bpf.h`), by number: types that are not known here exist too.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct ProgType(pub u32);

#[allow(missing_docs, reason = "the names are the kernel's")]
impl ProgType {
    pub const SOCKET_FILTER: ProgType = ProgType(1);
    pub const KPROBE: ProgType = ProgType(2);
    pub const SCHED_CLS: ProgType = ProgType(3);
    pub const SCHED_ACT: ProgType = ProgType(4);
    pub const TRACEPOINT: ProgType = ProgType(5);
    pub const XDP: ProgType = ProgType(6);
    pub const PERF_EVENT: ProgType = ProgType(7);
    pub const RAW_TRACEPOINT: ProgType = ProgType(17);
    pub const RAW_TRACEPOINT_WRITABLE: ProgType = ProgType(24);
    pub const TRACING: ProgType = ProgType(26);
    pub const SYSCALL: ProgType = ProgType(31);
}

/// Part of a map's value that only certain helpers touch (`struct btf_field`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SpecialField {
    /// What it is.
    pub kind: SpecialKind,
    /// Byte offset in the value.
    pub offset: u32,
}

/// Types of members that are special.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SpecialKind {
    /// `struct bpf_spin_lock`.
    SpinLock,
    /// `struct bpf_timer`.
    Timer,
    /// `struct bpf_wq`.
    WorkQueue,
}

impl SpecialKind {
    /// The name of its type, without `struct`.
    pub fn name(self) -> &'static str {
        match self {
            SpecialKind::SpinLock => "bpf_spin_lock",
            SpecialKind::Timer => "bpf_timer",
            SpecialKind::WorkQueue => "bpf_wq",
        }
    }

    /// Its size in bytes.
    pub fn size(self) -> u32 {
        match self {
            SpecialKind::SpinLock => 4,
            SpecialKind::Timer | SpecialKind::WorkQueue => 16,
        }
    }

    /// All of them.
    pub const ALL: [SpecialKind; 3] = [SpecialKind::SpinLock, SpecialKind::Timer, SpecialKind::WorkQueue];
}

/// A map as a program sees it.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct MapInfo {
    /// For messages.
    pub name: String,
    /// Type, sizes, flags.
    pub shape: MapShape,
    /// Of a map of maps: what its members look like.
    pub inner: Option<Box<MapInfo>>,
    /// Parts of its values that only certain helpers touch, by the type of the value.
    pub special: Vec<SpecialField>,
    /// The value of element 0 of an array that is frozen and read-only for programs: loads from it are constants.
    pub frozen_contents: Option<Vec<u8>>,
}

/// What an argument of a global subprogram is, by its BTF type.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum GlobalArg {
    /// A number.
    Scalar,
    /// The program's context.
    Ctx,
    /// Memory of so many bytes, or a null pointer unless `nonnull` is tagged.
    Mem {
        /// Bytes.
        size: u32,
        /// Tagged `nonnull`.
        nonnull: bool,
    },
}

/// The type of a global subprogram.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct GlobalSignature {
    /// At most five.
    pub args: Vec<GlobalArg>,
    /// It returns nothing: r0 is unreadable after a call.
    pub returns_void: bool,
}

/// An argument of a host function, by its BTF type.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum HostArg {
    /// A number.
    Number(HostValue),
    /// An address of the target, which is a number for the program; never its own memory.
    Address,
    /// An address of the target, or memory of the program of this size.
    Memory {
        /// Bytes.
        size: u32,
        /// The function only reads it.
        read_only: bool,
    },
    /// The same, with its size in the next argument (`__sz`).
    SizedMemory {
        /// The function only reads it.
        read_only: bool,
        /// The size is a constant (`__szk`).
        constant: bool,
    },
    /// A string that never changes, or an address of the target (`__str`).
    String,
}

impl HostArg {
    /// How it is handed on.
    pub fn value(self) -> HostValue {
        match self {
            HostArg::Number(value) => value,
            _ => HostValue::WORD,
        }
    }
}

/// A function of the target that a program may call.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct HostFunction {
    /// Its name in the object.
    pub name: String,
    /// At most five.
    pub args: Vec<HostArg>,
    /// What it returns.
    pub returns: HostValue,
}

/// What is known of a subprogram beside its instructions.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct SubprogramInfo {
    /// Index of its first instruction slot.
    pub start: u32,
    /// For messages and listings.
    pub name: String,
    /// A global function's type: it is verified by itself, for all arguments of that type. `None`: it is verified anew
    /// at each call.
    pub global: Option<GlobalSignature>,
}

/// A program to be verified.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Program {
    /// For messages and listings.
    pub name: String,
    /// `BPF_PROG_TYPE_*`.
    pub prog_type: ProgType,
    /// `BPF_*` attach type, 0 when none is given.
    pub expected_attach_type: u32,
    /// Its licence allows GPL-only helpers.
    pub gpl_compatible: bool,
    /// It may sleep (`BPF_F_SLEEPABLE`).
    pub sleepable: bool,
    /// The instructions. The immediate of a map's `ld_imm64` is an index into `maps`.
    pub insns: Vec<Insn>,
    /// The maps it refers to.
    pub maps: Vec<MapInfo>,
    /// What is known of its subprograms, in any order; those not listed are static and without a name.
    pub subprograms: Vec<SubprogramInfo>,
    /// Source lines for the log: instruction and text, in order of instruction.
    pub line_info: Vec<(u32, String)>,
    /// Functions of the target, by the index that calls name ([`HOST_CALL`](beeline_isa::opcode::HOST_CALL)).
    pub host_functions: Vec<HostFunction>,
    /// The kernel's types that it was relocated against. `None`: kernel objects can be passed on, not looked into.
    pub types: Option<Types>,
}

impl Program {
    /// It runs at the entry of functions and at their return (`BPF_TRACE_KPROBE_SESSION`, `BPF_TRACE_UPROBE_SESSION`).
    pub(crate) fn is_session(&self) -> bool {
        self.prog_type == ProgType::KPROBE && matches!(self.expected_attach_type, 56 | 57)
    }
}

impl Default for ProgType {
    fn default() -> ProgType {
        ProgType::SOCKET_FILTER
    }
}

/// How to verify.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Options {
    /// Bits as in `bpf_attr.log_level`: 1 = the path that fails, 2 = every path, 4 = statistics. 0: a short log on rejection.
    pub log_level: u32,
    /// Refuse accesses that are not naturally aligned (`BPF_F_STRICT_ALIGNMENT`). x86-64 does not need it.
    pub strict_alignment: bool,
    /// How much work may be done.
    pub limits: Limits,
}

/// Bounds of the work; past them the program is refused. The first two defaults are the kernel's.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// Instructions processed over all paths (`BPF_COMPLEXITY_LIMIT_INSNS`).
    pub insns_processed_max: u32,
    /// Branches waiting to be explored (`BPF_COMPLEXITY_LIMIT_JMP_SEQ`).
    pub branches_pending_max: u32,
    /// Bytes of all states that are kept at a time with what is known of their values' origins, about.
    pub state_bytes_max: usize,
    /// Registers and stack slots that are copied or compared over all paths: what bounds the time when states are large.
    pub work_max: u64,
    /// Bytes of log; the rest is cut off.
    pub log_bytes_max: usize,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            insns_processed_max: 1_000_000,
            branches_pending_max: 8192,
            state_bytes_max: 192 << 20,
            work_max: 32_000_000,
            log_bytes_max: 16 << 20,
        }
    }
}

/// Most instruction slots of a program.
pub const INSNS_MAX: usize = 1_000_000;

/// Most frames of a call chain (`MAX_CALL_FRAMES`).
pub const FRAMES_MAX: usize = 8;

/// Bytes of stack over all frames of a call chain (`MAX_BPF_STACK`).
pub const STACK_BYTES_MAX: u32 = 512;
