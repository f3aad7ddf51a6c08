//! From encoding to meaning. The one place that knows which bit patterns are instructions.

use crate::insn::{Insn, Reg};
use crate::opcode as o;
use core::fmt;

/// Width of an arithmetic or comparison: 32-bit results are zero-extended to 64.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Width {
    /// The low 32 bits.
    W32,
    /// All 64 bits.
    W64,
}

/// Size of a memory access.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Size {
    /// One byte.
    B,
    /// Two bytes.
    H,
    /// Four bytes.
    W,
    /// Eight bytes.
    DW,
}

impl Size {
    /// Number of bytes: 1, 2, 4 or 8.
    pub const fn bytes(self) -> u32 {
        match self {
            Size::B => 1,
            Size::H => 2,
            Size::W => 4,
            Size::DW => 8,
        }
    }

    const fn from_code(code: u8) -> Size {
        match code & o::SIZE_MASK {
            o::B => Size::B,
            o::H => Size::H,
            o::W => Size::W,
            _ => Size::DW,
        }
    }
}

/// Second operand.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Operand {
    /// A register.
    Reg(Reg),
    /// An immediate, to be sign-extended to the operation's width.
    Imm(i32),
}

/// Binary arithmetic. Division by zero gives 0, modulo by zero gives the dividend; shift counts are masked to the width.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum AluOp {
    /// Addition, wrapping.
    Add,
    /// Subtraction, wrapping.
    Sub,
    /// Multiplication, wrapping.
    Mul,
    /// Unsigned division; x / 0 = 0.
    Div,
    /// Signed division; x / 0 = 0, MIN / -1 = MIN.
    SDiv,
    /// Unsigned remainder; x % 0 = x.
    Mod,
    /// Signed remainder; x % 0 = x, MIN % -1 = 0.
    SMod,
    /// Bitwise or.
    Or,
    /// Bitwise and.
    And,
    /// Bitwise exclusive or.
    Xor,
    /// Left shift, count masked.
    Lsh,
    /// Logical right shift, count masked.
    Rsh,
    /// Arithmetic right shift, count masked.
    Arsh,
}

/// What `bswap`, `le` and `be` do.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Endianness {
    /// Convert to little-endian: truncates on a little-endian machine.
    ToLittle,
    /// Convert to big-endian: swaps on a little-endian machine.
    ToBig,
    /// Swap unconditionally (ISA v4).
    Swap,
}

/// Comparison of a conditional jump.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[allow(missing_docs, reason = "the operator names explain themselves")]
pub enum JumpOp {
    Eq,
    Ne,
    /// `dst & src != 0`.
    Set,
    Gt,
    Ge,
    Lt,
    Le,
    SGt,
    SGe,
    SLt,
    SLe,
}

/// Atomic memory operation.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum AtomicOp {
    /// `*p += src`.
    Add,
    /// `*p |= src`.
    Or,
    /// `*p &= src`.
    And,
    /// `*p ^= src`.
    Xor,
    /// `src = xchg(p, src)`; always fetches.
    Xchg,
    /// `r0 = cmpxchg(p, r0, src)`; always fetches, into r0.
    Cmpxchg,
    /// `dst = *p` with acquire ordering; `base` is the source register, the instruction's `dst` receives the value.
    LoadAcquire,
    /// `*p = src` with release ordering.
    StoreRelease,
}

/// Whom a call goes to.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Call {
    /// A helper by id.
    Helper(i32),
    /// A subprogram, in slots relative to the next instruction.
    Local(i32),
    /// A kernel function by BTF id (`imm`) and BTF object (`off`).
    Kfunc {
        /// BTF id of the function.
        btf_id: i32,
        /// Index into `fd_array`, 0 for vmlinux; or [`HOST_CALL`](crate::opcode::HOST_CALL).
        btf_fd_idx: i16,
    },
    /// A function whose id is in a register (`callx`, RFC 9669 conformance group; the kernel refuses it).
    Register(Reg),
}

/// What a 64-bit immediate stands for.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Imm64 {
    /// A number.
    Value(u64),
    /// A map, by index into the program's map list.
    Map(u32),
    /// Byte `offset` of element 0 of a map's value.
    MapValue {
        /// Index into the program's map list.
        map: u32,
        /// Offset in bytes into the value.
        offset: u32,
    },
    /// A kernel variable by BTF id.
    BtfId(u32),
    /// A subprogram used as callback, in slots relative to the next slot of the first half.
    Func(i32),
}

/// The meaning of one instruction.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Op {
    /// `dst = dst op src`.
    Alu {
        /// Width of the operation.
        width: Width,
        /// Which operation.
        op: AluOp,
        /// Destination and first operand.
        dst: Reg,
        /// Second operand.
        src: Operand,
    },
    /// `dst = src`.
    Mov {
        /// Width of the move.
        width: Width,
        /// Destination.
        dst: Reg,
        /// Source.
        src: Operand,
    },
    /// `dst = (width)(sign-extend low `bits` of src)`: `movsx`, bits 8, 16 or 32.
    MovSx {
        /// Width to extend to.
        width: Width,
        /// Destination.
        dst: Reg,
        /// Source.
        src: Reg,
        /// 8, 16 or 32.
        bits: u8,
    },
    /// `dst = -dst`.
    Neg {
        /// Width of the operation.
        width: Width,
        /// Operand and destination.
        dst: Reg,
    },
    /// Byte-order conversion of the low `bits`; the rest of `dst` becomes zero.
    Endian {
        /// Which conversion.
        kind: Endianness,
        /// Operand and destination.
        dst: Reg,
        /// 16, 32 or 64.
        bits: u8,
    },
    /// `dst = imm64`, two slots.
    LoadImm64 {
        /// Destination.
        dst: Reg,
        /// What is loaded.
        value: Imm64,
    },
    /// `dst = *(size *)(base + off)`.
    Load {
        /// Access size.
        size: Size,
        /// Sign-extend to 64 bits (`ldsx`).
        signed: bool,
        /// Destination.
        dst: Reg,
        /// Address register.
        base: Reg,
        /// Offset in bytes.
        off: i16,
    },
    /// `dst = *(size *)(base + off)`, or 0 when there is no memory. The verifier puts it in place of a load through a kernel
    /// object's pointer field; a program that is given with it is refused.
    ProbeLoad {
        /// Bytes read.
        size: Size,
        /// Sign-extend instead of zero-extending.
        signed: bool,
        /// Destination.
        dst: Reg,
        /// Address register.
        base: Reg,
        /// Offset added to `base`.
        off: i16,
    },
    /// `r0 = ntoh(*(size *)(skb->data + imm [+ src]))`: legacy packet access.
    LoadPacket {
        /// Access size.
        size: Size,
        /// Index register of the indirect form.
        index: Option<Reg>,
        /// Constant offset.
        imm: i32,
    },
    /// `*(size *)(base + off) = src`.
    Store {
        /// Access size.
        size: Size,
        /// Address register.
        base: Reg,
        /// Offset in bytes.
        off: i16,
        /// Register or immediate (sign-extended).
        src: Operand,
    },
    /// An atomic operation on `*(size *)(base + off)`.
    Atomic {
        /// Access size: `W` or `DW`; load-acquire and store-release take all four.
        size: Size,
        /// Which operation.
        op: AtomicOp,
        /// The old value is returned, in `src` (in r0 for cmpxchg).
        fetch: bool,
        /// Address register.
        base: Reg,
        /// Offset in bytes.
        off: i16,
        /// Operand register; the destination of a load-acquire.
        src: Reg,
    },
    /// Unconditional jump, in slots relative to the next instruction.
    Ja {
        /// Signed slot count.
        target: i32,
    },
    /// Conditional jump.
    Jump {
        /// Width of the comparison.
        width: Width,
        /// Which comparison.
        op: JumpOp,
        /// First operand.
        dst: Reg,
        /// Second operand.
        src: Operand,
        /// Signed slot count relative to the next instruction.
        target: i16,
    },
    /// `may_goto`: jumps when the loop budget is spent.
    MayGoto {
        /// Signed slot count relative to the next instruction.
        target: i16,
    },
    /// A call.
    Call(Call),
    /// Return r0.
    Exit,
}

/// Why eight bytes are not an instruction.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DecodeError {
    /// No such opcode.
    UnknownOpcode(u8),
    /// A register above r10, or a write to r10.
    BadRegister(u8),
    /// A field that the opcode does not use is not zero.
    ReservedField,
    /// `ld_imm64` without its second slot, or with a second slot that is not zero where it must be.
    BadWideImmediate,
    /// An atomic operation that does not exist.
    UnknownAtomic(i32),
}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            DecodeError::UnknownOpcode(code) => write!(f, "unknown opcode {code:02x}"),
            DecodeError::BadRegister(r) => write!(f, "R{r} is invalid"),
            DecodeError::ReservedField => f.write_str("reserved fields are used"),
            DecodeError::BadWideImmediate => f.write_str("invalid bpf_ld_imm64 insn"),
            DecodeError::UnknownAtomic(imm) => write!(f, "invalid atomic opcode {imm:02x}"),
        }
    }
}

impl core::error::Error for DecodeError {}

/// Decodes the instruction that starts at `insns[0]`; a wide immediate also reads `insns[1]`.
///
/// Returns the meaning; its length is two slots for [`Op::LoadImm64`], else one. Reserved fields must be zero, as
/// the kernel demands (`kernel/bpf/verifier.c`, `check_alu_op`, `do_check`).
///
/// # Errors
/// [`DecodeError`] for anything that is not an instruction, and for an empty slice.
pub fn decode(insns: &[Insn]) -> Result<Op, DecodeError> {
    let Some(&insn) = insns.first() else { return Err(DecodeError::BadWideImmediate) };
    match insn.code & o::CLASS_MASK {
        o::LD => load_immediate_or_packet(insn, insns.get(1).copied()),
        o::LDX => load(insn),
        o::ST => store_immediate(insn),
        o::STX => store_register(insn),
        o::ALU => alu(insn, Width::W32),
        o::ALU64 => alu(insn, Width::W64),
        o::JMP => jump(insn, Width::W64),
        _ => jump(insn, Width::W32),
    }
}

fn reg(number: u8) -> Result<Reg, DecodeError> {
    if number > 10 { Err(DecodeError::BadRegister(number)) } else { Ok(Reg(number)) }
}

/// A register to be read; `frame pointer is read only` is the verifier's rule, not the encoding's.
fn dst(insn: Insn) -> Result<Reg, DecodeError> {
    reg(insn.dst())
}

fn zero(ok: bool) -> Result<(), DecodeError> {
    if ok { Ok(()) } else { Err(DecodeError::ReservedField) }
}

/// The second operand of an ALU or jump instruction, with the unused one checked to be zero.
fn operand(insn: Insn) -> Result<Operand, DecodeError> {
    if insn.code & o::SRC_REG != 0 {
        zero(insn.imm == 0)?;
        Ok(Operand::Reg(reg(insn.src())?))
    } else {
        zero(insn.src() == 0)?;
        Ok(Operand::Imm(insn.imm))
    }
}

fn load_immediate_or_packet(insn: Insn, next: Option<Insn>) -> Result<Op, DecodeError> {
    if insn.code == o::LD_IMM64 {
        return load_imm64(insn, next.ok_or(DecodeError::BadWideImmediate)?);
    }
    let size = Size::from_code(insn.code);
    if size == Size::DW {
        return Err(DecodeError::UnknownOpcode(insn.code));
    }
    zero(insn.dst() == 0 && insn.off == 0)?;
    match insn.code & o::MODE_MASK {
        o::ABS => {
            zero(insn.src() == 0)?;
            Ok(Op::LoadPacket { size, index: None, imm: insn.imm })
        }
        o::IND => Ok(Op::LoadPacket { size, index: Some(reg(insn.src())?), imm: insn.imm }),
        _ => Err(DecodeError::UnknownOpcode(insn.code)),
    }
}

fn load_imm64(insn: Insn, next: Insn) -> Result<Op, DecodeError> {
    let dst = dst(insn)?;
    if next.code != 0 || next.regs != 0 || next.off != 0 {
        return Err(DecodeError::BadWideImmediate);
    }
    zero(insn.off == 0)?;
    let low = insn.imm as u32;
    let high = next.imm as u32;
    let plain = |value| if high == 0 { Ok(value) } else { Err(DecodeError::BadWideImmediate) };
    let value = match insn.src() {
        0 => Imm64::Value(u64::from(low) | u64::from(high) << 32),
        o::PSEUDO_MAP_FD | o::PSEUDO_MAP_IDX => plain(Imm64::Map(low))?,
        o::PSEUDO_MAP_VALUE | o::PSEUDO_MAP_IDX_VALUE => Imm64::MapValue { map: low, offset: high },
        o::PSEUDO_BTF_ID => Imm64::BtfId(low),
        o::PSEUDO_FUNC => plain(Imm64::Func(insn.imm))?,
        _ => return Err(DecodeError::ReservedField),
    };
    Ok(Op::LoadImm64 { dst, value })
}

fn load(insn: Insn) -> Result<Op, DecodeError> {
    let size = Size::from_code(insn.code);
    let (signed, probe) = match insn.code & o::MODE_MASK {
        o::MEM => (false, false),
        o::MEMSX if size != Size::DW => (true, false),
        o::PROBE_MEM => (false, true),
        o::PROBE_MEMSX if size != Size::DW => (true, true),
        _ => return Err(DecodeError::UnknownOpcode(insn.code)),
    };
    zero(insn.imm == 0)?;
    let (dst, base, off) = (dst(insn)?, reg(insn.src())?, insn.off);
    Ok(match probe {
        true => Op::ProbeLoad { size, signed, dst, base, off },
        false => Op::Load { size, signed, dst, base, off },
    })
}

fn store_immediate(insn: Insn) -> Result<Op, DecodeError> {
    if insn.code & o::MODE_MASK != o::MEM {
        return Err(DecodeError::UnknownOpcode(insn.code));
    }
    zero(insn.src() == 0)?;
    let size = Size::from_code(insn.code);
    Ok(Op::Store { size, base: dst(insn)?, off: insn.off, src: Operand::Imm(insn.imm) })
}

fn store_register(insn: Insn) -> Result<Op, DecodeError> {
    let size = Size::from_code(insn.code);
    match insn.code & o::MODE_MASK {
        o::MEM => {
            zero(insn.imm == 0)?;
            Ok(Op::Store { size, base: dst(insn)?, off: insn.off, src: Operand::Reg(reg(insn.src())?) })
        }
        o::ATOMIC => atomic(insn, size),
        _ => Err(DecodeError::UnknownOpcode(insn.code)),
    }
}

fn atomic(insn: Insn, size: Size) -> Result<Op, DecodeError> {
    let (dst, src, off) = (dst(insn)?, reg(insn.src())?, insn.off);
    match insn.imm {
        o::LOAD_ACQ => {
            return Ok(Op::Atomic { size, op: AtomicOp::LoadAcquire, fetch: true, base: src, off, src: dst });
        }
        o::STORE_REL => {
            return Ok(Op::Atomic { size, op: AtomicOp::StoreRelease, fetch: false, base: dst, off, src });
        }
        _ => {}
    }
    if !matches!(size, Size::W | Size::DW) {
        return Err(DecodeError::UnknownOpcode(insn.code));
    }
    let fetch = insn.imm & o::FETCH != 0;
    let op = match insn.imm {
        o::XCHG => AtomicOp::Xchg,
        o::CMPXCHG => AtomicOp::Cmpxchg,
        imm => match imm & !o::FETCH {
            0x00 => AtomicOp::Add,
            0x40 => AtomicOp::Or,
            0x50 => AtomicOp::And,
            0xa0 => AtomicOp::Xor,
            _ => return Err(DecodeError::UnknownAtomic(imm)),
        },
    };
    Ok(Op::Atomic { size, op, fetch, base: dst, off, src })
}

fn alu(insn: Insn, width: Width) -> Result<Op, DecodeError> {
    let dst = dst(insn)?;
    let code = insn.code & o::OP_MASK;
    match code {
        o::NEG => {
            zero(insn.code & o::SRC_REG == 0 && insn.src() == 0 && insn.off == 0 && insn.imm == 0)?;
            return Ok(Op::Neg { width, dst });
        }
        o::END => return endian(insn, width, dst),
        o::MOV => return mov(insn, width, dst),
        _ => {}
    }
    let signed = match (code, insn.off) {
        (_, 0) => false,
        (o::DIV | o::MOD, 1) => true,
        _ => return Err(DecodeError::ReservedField),
    };
    let op = match code {
        o::ADD => AluOp::Add,
        o::SUB => AluOp::Sub,
        o::MUL => AluOp::Mul,
        o::DIV if signed => AluOp::SDiv,
        o::DIV => AluOp::Div,
        o::OR => AluOp::Or,
        o::AND => AluOp::And,
        o::LSH => AluOp::Lsh,
        o::RSH => AluOp::Rsh,
        o::MOD if signed => AluOp::SMod,
        o::MOD => AluOp::Mod,
        o::XOR => AluOp::Xor,
        o::ARSH => AluOp::Arsh,
        _ => return Err(DecodeError::UnknownOpcode(insn.code)),
    };
    Ok(Op::Alu { width, op, dst, src: operand(insn)? })
}

fn mov(insn: Insn, width: Width, dst: Reg) -> Result<Op, DecodeError> {
    let src = operand(insn)?;
    match (src, insn.off, width) {
        (src, 0, _) => Ok(Op::Mov { width, dst, src }),
        (Operand::Reg(src), bits @ (8 | 16), _) | (Operand::Reg(src), bits @ 32, Width::W64) => {
            Ok(Op::MovSx { width, dst, src, bits: bits as u8 })
        }
        _ => Err(DecodeError::ReservedField),
    }
}

fn endian(insn: Insn, width: Width, dst: Reg) -> Result<Op, DecodeError> {
    zero(insn.off == 0 && insn.src() == 0)?;
    let to_big = insn.code & o::SRC_REG != 0;
    let kind = match (width, to_big) {
        (Width::W32, false) => Endianness::ToLittle,
        (Width::W32, true) => Endianness::ToBig,
        (Width::W64, false) => Endianness::Swap,
        (Width::W64, true) => return Err(DecodeError::ReservedField),
    };
    match insn.imm {
        16 | 32 | 64 => Ok(Op::Endian { kind, dst, bits: insn.imm as u8 }),
        _ => Err(DecodeError::ReservedField),
    }
}

fn jump(insn: Insn, width: Width) -> Result<Op, DecodeError> {
    let op = match insn.code & o::OP_MASK {
        o::JA => return unconditional(insn, width),
        o::CALL if width == Width::W64 => return call(insn),
        o::EXIT if width == Width::W64 => {
            zero(insn.code & o::SRC_REG == 0 && insn.regs == 0 && insn.off == 0 && insn.imm == 0)?;
            return Ok(Op::Exit);
        }
        o::JCOND if width == Width::W64 => {
            zero(insn.code & o::SRC_REG == 0 && insn.regs == 0 && insn.imm == 0)?;
            return Ok(Op::MayGoto { target: insn.off });
        }
        o::JEQ => JumpOp::Eq,
        o::JGT => JumpOp::Gt,
        o::JGE => JumpOp::Ge,
        o::JSET => JumpOp::Set,
        o::JNE => JumpOp::Ne,
        o::JSGT => JumpOp::SGt,
        o::JSGE => JumpOp::SGe,
        o::JLT => JumpOp::Lt,
        o::JLE => JumpOp::Le,
        o::JSLT => JumpOp::SLt,
        o::JSLE => JumpOp::SLe,
        _ => return Err(DecodeError::UnknownOpcode(insn.code)),
    };
    Ok(Op::Jump { width, op, dst: dst(insn)?, src: operand(insn)?, target: insn.off })
}

fn unconditional(insn: Insn, width: Width) -> Result<Op, DecodeError> {
    zero(insn.code & o::SRC_REG == 0 && insn.regs == 0)?;
    match width {
        Width::W64 => {
            zero(insn.imm == 0)?;
            Ok(Op::Ja { target: i32::from(insn.off) })
        }
        Width::W32 => {
            zero(insn.off == 0)?;
            Ok(Op::Ja { target: insn.imm })
        }
    }
}

fn call(insn: Insn) -> Result<Op, DecodeError> {
    if insn.code & o::SRC_REG != 0 {
        // RFC 9669 leaves the register of `callx` to the source and destination nibble; clang uses dst.
        zero(insn.src() == 0 && insn.off == 0 && insn.imm == 0)?;
        return Ok(Op::Call(Call::Register(dst(insn)?)));
    }
    zero(insn.dst() == 0)?;
    match insn.src() {
        0 => {
            zero(insn.off == 0)?;
            Ok(Op::Call(Call::Helper(insn.imm)))
        }
        o::PSEUDO_CALL => {
            zero(insn.off == 0)?;
            Ok(Op::Call(Call::Local(insn.imm)))
        }
        o::PSEUDO_KFUNC_CALL => Ok(Op::Call(Call::Kfunc { btf_id: insn.imm, btf_fd_idx: insn.off })),
        _ => Err(DecodeError::ReservedField),
    }
}
