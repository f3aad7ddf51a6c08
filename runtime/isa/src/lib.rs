//! The eBPF instruction set (RFC 9669 and the kernel's additions to it).
//!
//! - [`Insn`] is the eight bytes as they lie in an ELF section, in the store and in the kernel.
//! - [`Op`] is what an instruction *means*; [`decode()`] is the only place that knows the encoding, so the
//!   verifier, the interpreter, the compiler and the disassembler cannot disagree about it.
//! - [`disasm`] prints them as the kernel does.
//! - [`opcode`] names the encoding's constants as `linux/bpf.h` does.
//!
//! Nothing here knows of maps, helpers or programs.
#![no_std]
#![forbid(unsafe_code)]

pub mod decode;
pub mod disasm;
pub mod insn;
pub mod opcode;

pub use decode::{
    AluOp, AtomicOp, Call, DecodeError, Endianness, Imm64, JumpOp, Op, Operand, Size, Width, decode,
};
pub use insn::{Insn, Reg};
