//! What compiled code leaves open until it is linked into a process.
//!
//! A program's image is position-independent; [`Reloc`]s name the few places that depend on the process. Calling
//! conventions (System V AMD64):
//!
//! - program: `fn(context: *mut u8, run: *mut RunContext) -> u64`. Clobbers only what the ABI lets a callee clobber,
//!   never a vector register.
//! - helper: `fn(r1: u64, r2: u64, r3: u64, r4: u64, r5: u64, run: *mut RunContext) -> u64`.
//! - a host function, which is a function of the target: called as a helper, through code that keeps what it may change.

/// What a relocation refers to.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum Symbol {
    /// The [`MapHandle`](crate::map::MapHandle) of the map with this index in the program's map list. This address
    /// is what a program holds as `struct bpf_map *`.
    MapHandle(u32),
    /// The first byte of the data region of the map with this index: element 0 of an array, CPU 0 of a per-CPU array.
    MapData(u32),
    /// The agent's implementation of the helper with this id.
    Helper(u32),
    /// The code through which the program calls the host function with this index in the program's list.
    HostFunction(u32),
    /// The start of this same image (for absolute addresses of its own functions).
    Image,
}

/// How a value is handed to a function of the target, or comes from it.
///
/// A C function may leave the upper bits of a register as they are, and takes those of an argument to be what its type says
/// (System V AMD64 ABI, 3.2.3): whoever calls it extends both.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct HostValue {
    /// Bytes: 1, 2, 4 or 8; 0 = there is none.
    pub size: u8,
    /// It is extended by its sign.
    pub signed: bool,
}

impl HostValue {
    /// A function that returns nothing.
    pub const NONE: HostValue = HostValue { size: 0, signed: false };
    /// An address, or any number of eight bytes.
    pub const WORD: HostValue = HostValue { size: 8, signed: false };
}

/// How the place is patched.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum RelocKind {
    /// Eight bytes: symbol + addend.
    Abs64,
    /// Four bytes: symbol + addend - address of the four bytes (`call`/`jmp rel32` have addend -4).
    Rel32,
}

/// One place in an image that depends on the process it is linked into.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Reloc {
    /// Byte offset in the image.
    pub offset: u32,
    /// How it is patched.
    pub kind: RelocKind,
    /// With whose address.
    pub symbol: Symbol,
    /// Plus this.
    pub addend: i64,
}

/// Which of the 21 words of `pt_regs`, or of the first 21 of a tracepoint's record, a program can read: bit n is the word at byte
/// offset 8 n. A helper that looks at registers has the bits of their words in `pt_regs`, whatever the context is.
///
/// The stub materialises only these. A program whose context escapes (a tail call, a helper that reads it, an address
/// computed at run time) uses [`ContextUse::ALL`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct ContextUse(pub u32);

impl ContextUse {
    /// No word at all.
    pub const NONE: ContextUse = ContextUse(0);
    /// The whole context.
    pub const ALL: ContextUse = ContextUse((1 << 21) - 1);

    /// Both sets together.
    pub const fn union(self, other: ContextUse) -> ContextUse {
        ContextUse(self.0 | other.0)
    }

    /// True when the word at byte `offset` is used.
    pub const fn reads(self, offset: u32) -> bool {
        self.0 & (1 << (offset / 8)) != 0
    }

    /// The set with the words that the `size` bytes at `offset` touch.
    pub const fn with_access(self, offset: u32, size: u32) -> ContextUse {
        let first = offset / 8;
        let last = (offset + size - 1) / 8;
        ContextUse((self.0 | (((1u64 << (last + 1)) - (1u64 << first)) as u32)) & ContextUse::ALL.0)
    }
}

/// What the stub has to provide for a program; proven by the verifier.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct ProgramNeeds {
    /// The words of its context that it can read.
    pub context: ContextUse,
    /// It touches per-CPU data: the stub claims a CPU for the run (see [`process::CpuSlot`](crate::process::CpuSlot)).
    pub cpu: bool,
    /// Worst-case bytes of BPF stack over all frames (at most 512 a frame, eight frames).
    pub stack_bytes: u32,
    /// It makes tail calls: stack use is unbounded by this program alone.
    pub tail_calls: bool,
}
