//! How to walk the stacks of code that keeps no frame pointers: tables prepared outside of the process.
//!
//! ```text
//! ProcessBlock::texts ──▶ [UnwindText]   executable mappings, in order of address
//!                            rows ──▶ [UnwindRow]   of that file, in order of address: from here on, this rule
//! ```
//!
//! A row says where the caller's frame is when the thread stands at its address; the return address lies right below it.
//! The tables are read-only, and complete before the block names them.

/// An executable mapping of a file.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct UnwindText {
    /// First byte of the mapping.
    pub start: u64,
    /// Behind its last byte.
    pub end: u64,
    /// Where the byte at `start` is in the file.
    pub file_offset: u64,
    /// The address that the rows' offsets count from.
    pub base: u64,
    /// Address of the first [`UnwindRow`].
    pub rows: u64,
    /// How many there are.
    pub row_count: u32,
    /// Bytes of the build id, 0 = the file has none.
    pub build_id_len: u32,
    /// The file's build id, zero behind its end.
    pub build_id: [u8; BUILD_ID_MAX],
    /// Zero.
    pub reserved: u32,
    /// The file's device.
    pub device: u64,
    /// The file's inode.
    pub inode: u64,
}

/// Longest build id that is kept (`BPF_BUILD_ID_SIZE`).
pub const BUILD_ID_MAX: usize = 20;

const _: () = assert!(size_of::<UnwindText>() == 88);

/// The rule from one address on, up to the next row's.
///
/// CFA is the stack pointer before the call that made the frame; the return address lies at CFA - 8 (System V AMD64 ABI,
/// 3.6.2).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct UnwindRow {
    /// Where it begins, in bytes behind [`UnwindText::base`].
    pub start: u32,
    /// Bytes to be added; see [`UnwindRow::cfa`].
    pub cfa_offset: i32,
    /// Bytes to be added; see [`UnwindRow::rbp`].
    pub rbp_offset: i16,
    /// [`Cfa`]: how the caller's frame is found.
    pub cfa: u8,
    /// [`Rbp`]: where the caller's rbp is.
    pub rbp: u8,
}

const _: () = assert!(size_of::<UnwindRow>() == 12);

/// How the CFA is found: the values of [`UnwindRow::cfa`].
#[allow(non_snake_case)]
pub mod Cfa {
    /// There is no rule: frame pointers are all there is.
    pub const UNKNOWN: u8 = 0;
    /// Nobody called this: the outermost frame.
    pub const OUTERMOST: u8 = 1;
    /// A signal's frame: the kernel saved the registers at the stack pointer (`struct rt_sigframe` behind its return
    /// address).
    pub const SIGNAL: u8 = 2;
    /// rsp + 8, and 8 more when the low four bits of the address are at least `cfa_offset`: a procedure linkage table.
    pub const LINKAGE: u8 = 3;
    /// A register + `cfa_offset`: this plus its DWARF number (6 = rbp, 7 = rsp). Others than those two are known in the
    /// innermost frame only.
    pub const REGISTER: u8 = 0x10;
    /// The word at rsp or rbp + `cfa_offset`: this plus the register's DWARF number.
    pub const MEMORY: u8 = 0x20;
    /// The same, plus 8.
    pub const MEMORY_PLUS_8: u8 = 0x30;
}

/// Where the caller's rbp is: the values of [`UnwindRow::rbp`].
#[allow(non_snake_case)]
pub mod Rbp {
    /// Still in rbp.
    pub const SAME: u8 = 0;
    /// At CFA + `rbp_offset`.
    pub const AT_CFA: u8 = 1;
    /// At rbp + `rbp_offset`.
    pub const AT_RBP: u8 = 2;
    /// Nowhere.
    pub const LOST: u8 = 3;
}

/// DWARF number of rbp (System V AMD64 ABI, figure 3.36).
pub const DWARF_RBP: u8 = 6;
/// DWARF number of rsp.
pub const DWARF_RSP: u8 = 7;
