//! The encoding's constants, named as in `include/uapi/linux/bpf.h` without the `BPF_` prefix.
#![allow(missing_docs, reason = "the names are the kernel's; a sentence on each would repeat them")]

pub const CLASS_MASK: u8 = 0x07;
pub const LD: u8 = 0x00;
pub const LDX: u8 = 0x01;
pub const ST: u8 = 0x02;
pub const STX: u8 = 0x03;
pub const ALU: u8 = 0x04;
pub const JMP: u8 = 0x05;
pub const JMP32: u8 = 0x06;
pub const ALU64: u8 = 0x07;

pub const SIZE_MASK: u8 = 0x18;
pub const W: u8 = 0x00;
pub const H: u8 = 0x08;
pub const B: u8 = 0x10;
pub const DW: u8 = 0x18;

pub const MODE_MASK: u8 = 0xe0;
pub const IMM: u8 = 0x00;
pub const ABS: u8 = 0x20;
pub const IND: u8 = 0x40;
pub const MEM: u8 = 0x60;
pub const MEMSX: u8 = 0x80;
pub const ATOMIC: u8 = 0xc0;

/// Mode of `LDX`, made by the verifier alone (`BPF_PROBE_MEM`): a load through an address that may be bad gives 0 then.
pub const PROBE_MEM: u8 = 0x20;
/// The same, sign-extended (`BPF_PROBE_MEMSX`).
pub const PROBE_MEMSX: u8 = 0x40;

pub const OP_MASK: u8 = 0xf0;
pub const SRC_REG: u8 = 0x08;

pub const ADD: u8 = 0x00;
pub const SUB: u8 = 0x10;
pub const MUL: u8 = 0x20;
pub const DIV: u8 = 0x30;
pub const OR: u8 = 0x40;
pub const AND: u8 = 0x50;
pub const LSH: u8 = 0x60;
pub const RSH: u8 = 0x70;
pub const NEG: u8 = 0x80;
pub const MOD: u8 = 0x90;
pub const XOR: u8 = 0xa0;
pub const MOV: u8 = 0xb0;
pub const ARSH: u8 = 0xc0;
pub const END: u8 = 0xd0;

pub const JA: u8 = 0x00;
pub const JEQ: u8 = 0x10;
pub const JGT: u8 = 0x20;
pub const JGE: u8 = 0x30;
pub const JSET: u8 = 0x40;
pub const JNE: u8 = 0x50;
pub const JSGT: u8 = 0x60;
pub const JSGE: u8 = 0x70;
pub const CALL: u8 = 0x80;
pub const EXIT: u8 = 0x90;
pub const JLT: u8 = 0xa0;
pub const JLE: u8 = 0xb0;
pub const JSLT: u8 = 0xc0;
pub const JSLE: u8 = 0xd0;
pub const JCOND: u8 = 0xe0;

pub const FETCH: i32 = 0x01;
pub const XCHG: i32 = 0xe0 | FETCH;
pub const CMPXCHG: i32 = 0xf0 | FETCH;
pub const LOAD_ACQ: i32 = 0x100;
pub const STORE_REL: i32 = 0x110;

/// `LD | IMM | DW`: the two-slot 64-bit immediate.
pub const LD_IMM64: u8 = 0x18;

/// `src` of `ld_imm64`: `imm` names a map (an fd for the kernel; for beeline the index into the program's map list).
pub const PSEUDO_MAP_FD: u8 = 1;
/// `src` of `ld_imm64`: address of byte `next.imm` of the value of element 0 of map `imm`.
pub const PSEUDO_MAP_VALUE: u8 = 2;
/// `src` of `ld_imm64`: address of the kernel variable with BTF id `imm`.
pub const PSEUDO_BTF_ID: u8 = 3;
/// `src` of `ld_imm64`: the subprogram at `pc + imm + 1`, for callbacks.
pub const PSEUDO_FUNC: u8 = 4;
/// `src` of `ld_imm64`: as `PSEUDO_MAP_FD` with an index into `fd_array`.
pub const PSEUDO_MAP_IDX: u8 = 5;
/// `src` of `ld_imm64`: as `PSEUDO_MAP_VALUE` with an index into `fd_array`.
pub const PSEUDO_MAP_IDX_VALUE: u8 = 6;

/// `src` of `call`: a subprogram at `pc + imm + 1`.
pub const PSEUDO_CALL: u8 = 1;
/// `src` of `call`: the kernel function with BTF id `imm`.
pub const PSEUDO_KFUNC_CALL: u8 = 2;
/// `off` of such a call: the function of the target with index `imm` in the program's list of them. The kernel knows no such call.
pub const HOST_CALL: i16 = -1;
