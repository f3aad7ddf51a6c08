//! The system calls of a process that programs want: what stubs at calls test, and whom the agent runs.
//!
//! ```text
//! ProcessBlock::system_calls ─▶ SystemCalls:   wanted                a byte for each number, not 0 = somebody wants it
//!                                              code                  for each number
//!                                              entered │ left        a list for each number
//!                                              links ─▶ [address of a LinkRuntime], the lists one behind the other
//! ```
//!
//! Only calls whose number is no constant are looked up in `wanted`; the agent, which runs what the code for a number cannot, has the lists.
//! It stays where it is while the agent is in the process; the injector writes it while every thread is stopped.

/// Numbers that have a list of their own; the last list is that of all others.
pub const NUMBERS: usize = 512;

/// Bytes of the table that stubs look at: the lower half of a number's word finds its byte.
pub const WANTED_LEN: usize = 1 << 16;

/// `clone`, `fork`, `vfork`, `clone3`: whoever traces any call looks at the ends of these, which happen in the child, too.
pub const CLONES: [u64; 4] = [56, 57, 58, 435];

/// `clone`, `clone3`: and at the begins of these, which may make a thread that shares its maker's thread pointer.
pub const SHARING: [u64; 2] = [56, 435];

/// `prctl`, `seccomp`: whoever traces any call looks at the begins of these, by which seccomp filters are installed.
pub const FILTERING: [u64; 2] = [157, 317];

/// `arch_prctl`, `rseq`: before these a thread gives up the `struct rseq` that the agent has registered for it. It gets another slot with
/// its thread pointer, and libc registers an area of its own.
pub const REGISTERING: [u64; 2] = [158, 334];

/// Some of the addresses at [`SystemCalls::links`].
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct List {
    /// Index of the first.
    pub first: u32,
    /// How many.
    pub count: u32,
}

/// The code for a number. Both words lie in one cache line.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct CodeAt {
    /// Address of what is to be called before a call; 0 = nothing.
    pub before: u64,
    /// Behind it.
    pub behind: u64,
}

/// Which programs run at which calls.
#[repr(C)]
#[derive(Debug)]
pub struct SystemCalls {
    /// [`SystemCalls::ENTER`] and [`SystemCalls::EXIT`].
    pub wanted: [u8; WANTED_LEN],
    /// What is to be called for a number.
    pub code: [CodeAt; NUMBERS + 1],
    /// Address of the addresses of [`LinkRuntime`](crate::link::LinkRuntime)s.
    pub links: u64,
    /// Who runs before a call, by its number.
    pub entered: [List; NUMBERS + 1],
    /// Who runs behind a call, by its number.
    pub left: [List; NUMBERS + 1],
}

const _: () = assert!(size_of::<List>() == 8);
impl SystemCalls {
    /// In `wanted`: programs run before the call with this number.
    pub const ENTER: u8 = 1;
    /// Programs run behind it.
    pub const EXIT: u8 = 2;
}

const _: () = assert!(size_of::<CodeAt>() == 16);
const _: () = assert!(core::mem::offset_of!(SystemCalls, code) == WANTED_LEN);
const _: () = assert!(size_of::<SystemCalls>() == WANTED_LEN + 8 + 32 * (NUMBERS + 1));

/// The last bytes of a stub at a system call: where its hooks are, which call the programs.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Hooks {
    /// The number of the call; [`Hooks::NO_NUMBER`] when it is no constant.
    pub number: u32,
    /// Offset from the start of the stub of the hook before the call; [`Hooks::NONE`].
    pub enter: u16,
    /// Of the hook behind it.
    pub exit: u16,
}

impl Hooks {
    /// In `number`: it is no constant.
    pub const NO_NUMBER: u32 = u32::MAX;
    /// There is no such hook.
    pub const NONE: u16 = u16::MAX;
    /// Bytes of it.
    pub const LEN: usize = size_of::<Hooks>();

    /// As they stand in memory.
    pub fn to_bytes(self) -> [u8; Hooks::LEN] {
        let mut bytes = [0; Hooks::LEN];
        bytes[..4].copy_from_slice(&self.number.to_le_bytes());
        bytes[4..6].copy_from_slice(&self.enter.to_le_bytes());
        bytes[6..].copy_from_slice(&self.exit.to_le_bytes());
        bytes
    }

    /// What [`to_bytes`](Hooks::to_bytes) wrote.
    pub fn from_bytes([a, b, c, d, e, f, g, h]: [u8; Hooks::LEN]) -> Hooks {
        Hooks {
            number: u32::from_le_bytes([a, b, c, d]),
            enter: u16::from_le_bytes([e, f]),
            exit: u16::from_le_bytes([g, h]),
        }
    }
}

/// A call whose number only the stub before it knew: it stands in its thread's slot until it returns.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct PendingCall {
    /// The stack pointer at the call; with [`PendingCall::IN_CHILD`] in a call that has returned in a child on the same memory, and has yet
    /// to in the parent.
    pub sp: u64,
    /// Its number.
    pub number: u64,
}

impl PendingCall {
    /// Bit of `sp`, which is even at a call.
    pub const IN_CHILD: u64 = 1;
    /// What stubs add to the number of a call whose end they have found by such a note.
    pub const NOTED: u64 = 1 << 32;
    /// What stubs say of a number that is neither a constant nor that of the newest note. No call has it: numbers are ints.
    pub const UNKNOWN: u64 = 1 << 33;
}

/// Calls that a thread can have pending: one, and those of signal handlers that interrupted it. The oldest is forgotten.
pub const PENDING: usize = 8;

/// What a program sees before a call: `struct trace_event_raw_sys_enter` of the kernel's `raw_syscalls:sys_enter`. The records of
/// `syscalls:sys_enter_*` lie the same.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct EnterRecord {
    /// `struct trace_entry`, which no program may read.
    pub common: u64,
    /// The number.
    pub id: u64,
    /// The arguments.
    pub arguments: [u64; 6],
}

/// What a program sees behind a call: `struct trace_event_raw_sys_exit`; `syscalls:sys_exit_*` the same.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ExitRecord {
    /// `struct trace_entry`, which no program may read.
    pub common: u64,
    /// The number.
    pub id: u64,
    /// The result, negative for an error.
    pub result: i64,
}

/// What a raw tracepoint's program sees: the address of the `pt_regs`, and the number before the call, the result behind it.
pub type RawArguments = [u64; 2];

const _: () = assert!(size_of::<EnterRecord>() == 64 && size_of::<ExitRecord>() == 24);
