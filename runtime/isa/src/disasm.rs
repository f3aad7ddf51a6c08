//! Text of instructions as the kernel writes it in its verifier log and bpftool in `dump xlated`:
//! `(b7) r0 = 0`, `(85) call bpf_map_lookup_elem#1`.

use crate::decode::{AluOp, AtomicOp, Call, Endianness, Imm64, JumpOp, Op, Operand, Size, Width, decode};
use crate::insn::{Insn, Reg};
use crate::opcode::HOST_CALL;
use core::fmt::{self, Display, Formatter, Write};

/// Names of what instructions refer to by number. The defaults know none.
pub trait Names {
    /// The helper's name with its prefix, as `bpf_map_lookup_elem`.
    fn helper(&self, id: i32) -> Option<&str> {
        let _ = id;
        None
    }

    /// Name of the function that starts at a slot.
    fn function(&self, start: u32) -> Option<&str> {
        let _ = start;
        None
    }

    /// Writes what stands for a map, by index into the program's map list: `map[idx:0]`, or `map[id:7]`.
    ///
    /// # Errors
    /// Only what `out` returns.
    fn map(&self, index: u32, out: &mut dyn Write) -> fmt::Result {
        write!(out, "map[idx:{index}]")
    }
}

/// No names at all.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoNames;

impl Names for NoNames {}

/// One instruction of a program, for printing.
#[derive(Clone, Copy)]
pub struct Line<'a> {
    insns: &'a [Insn],
    pc: usize,
    names: &'a dyn Names,
}

impl<'a> Line<'a> {
    /// The instruction at slot `pc` of a program.
    pub fn new(insns: &'a [Insn], pc: usize, names: &'a dyn Names) -> Line<'a> {
        Line { insns, pc, names }
    }
}

impl Display for Line<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let slots = self.insns.get(self.pc..).unwrap_or_default();
        let Some(first) = slots.first() else { return f.write_str("(end of program)") };
        write!(f, "({:02x}) ", first.code)?;
        match decode(slots) {
            Ok(op) => self.operation(f, op),
            Err(_) => write!(f, "BUG_{:02x}", first.code),
        }
    }
}

impl Line<'_> {
    fn operation(&self, f: &mut Formatter<'_>, op: Op) -> fmt::Result {
        match op {
            Op::Alu { width, op, dst, src } => {
                write!(f, "{} {}= {}", Named(width, dst), alu_symbol(op), Second(width, src))
            }
            Op::Mov { width, dst, src } => write!(f, "{} = {}", Named(width, dst), Second(width, src)),
            Op::MovSx { width, dst, src, bits } => {
                write!(f, "{} = (s{bits}){}", Named(width, dst), Named(width, src))
            }
            Op::Neg { width, dst } => write!(f, "{0} = -{0}", Named(width, dst)),
            Op::Endian { kind, dst, bits } => {
                write!(f, "{0} = {1}{bits} {0}", Named(Width::W64, dst), endian_name(kind))
            }
            Op::LoadImm64 { dst, value } => self.immediate(f, dst, value),
            Op::Load { size, signed, dst, base, off } | Op::ProbeLoad { size, signed, dst, base, off } => {
                let sign = if signed { 's' } else { 'u' };
                write!(f, "r{} = *({sign}{} *)(r{} {off:+})", dst.0, size.bytes() * 8, base.0)
            }
            Op::LoadPacket { size, index: None, imm } => {
                write!(f, "r0 = *(u{} *)skb[{imm}]", size.bytes() * 8)
            }
            Op::LoadPacket { size, index: Some(index), imm } => {
                write!(f, "r0 = *(u{} *)skb[r{} + {imm}]", size.bytes() * 8, index.0)
            }
            Op::Store { size, base, off, src } => {
                write!(f, "*{} = {}", Place { size, base, off }, Second(Width::W64, src))
            }
            Op::Atomic { size, op, fetch, base, off, src } => {
                atomic(f, Place { size, base, off }, op, fetch, src)
            }
            Op::Ja { target } => {
                let name = if self.insns[self.pc].code & 7 == crate::opcode::JMP { "goto" } else { "gotol" };
                write!(f, "{name} pc{target:+}")
            }
            Op::Jump { width, op, dst, src, target } => {
                write!(f, "if {} {} ", Named(width, dst), jump_symbol(op))?;
                match src {
                    Operand::Reg(src) => write!(f, "{}", Named(width, src))?,
                    Operand::Imm(number) => write!(f, "{number:#x}")?,
                }
                write!(f, " goto pc{target:+}")
            }
            Op::MayGoto { target } => write!(f, "may_goto pc{target:+}"),
            Op::Call(callee) => self.call(f, callee),
            Op::Exit => f.write_str("exit"),
        }
    }

    fn immediate(&self, f: &mut Formatter<'_>, dst: Reg, value: Imm64) -> fmt::Result {
        write!(f, "r{} = ", dst.0)?;
        match value {
            Imm64::Value(number) => write!(f, "{number:#x}"),
            Imm64::Map(map) => self.names.map(map, f),
            Imm64::MapValue { map, offset } => {
                self.names.map(map, f)?;
                write!(f, "[0]+{offset}")
            }
            Imm64::BtfId(id) => write!(f, "btf_id[{id}]"),
            Imm64::Func(relative) => match self.function(relative) {
                Some(name) => write!(f, "subprog[{relative:+}]#{name}"),
                None => write!(f, "subprog[{relative:+}]"),
            },
        }
    }

    fn call(&self, f: &mut Formatter<'_>, callee: Call) -> fmt::Result {
        match callee {
            Call::Helper(id) => write!(f, "call {}#{id}", self.names.helper(id).unwrap_or("unknown")),
            Call::Local(relative) => match self.function(relative) {
                Some(name) => write!(f, "call pc{relative:+}#{name}"),
                None => write!(f, "call pc{relative:+}"),
            },
            Call::Kfunc { btf_id, btf_fd_idx: HOST_CALL } => write!(f, "call host-function#{btf_id}"),
            Call::Kfunc { btf_id, .. } => write!(f, "call kernel-function#{btf_id}"),
            Call::Register(register) => write!(f, "callx r{}", register.0),
        }
    }

    /// Name of the function `relative` slots behind the next one.
    fn function(&self, relative: i32) -> Option<&str> {
        let start = self.pc as i64 + 1 + i64::from(relative);
        self.names.function(u32::try_from(start).ok()?)
    }
}

/// A register under the name that its width gives it.
struct Named(Width, Reg);

impl Display for Named {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let letter = if self.0 == Width::W32 { 'w' } else { 'r' };
        write!(f, "{letter}{}", self.1.0)
    }
}

/// A second operand.
struct Second(Width, Operand);

impl Display for Second {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self.1 {
            Operand::Reg(register) => Named(self.0, register).fmt(f),
            Operand::Imm(number) => write!(f, "{number}"),
        }
    }
}

/// A typed address: `(u64 *)(r10 -8)`.
struct Place {
    size: Size,
    base: Reg,
    off: i16,
}

impl Display for Place {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "(u{} *)(r{} {:+})", self.size.bytes() * 8, self.base.0, self.off)
    }
}

fn atomic(f: &mut Formatter<'_>, place: Place, op: AtomicOp, fetch: bool, src: Reg) -> fmt::Result {
    let atomic = if place.size == Size::DW { "atomic64" } else { "atomic" };
    let src = src.0;
    let (name, symbol) = match op {
        AtomicOp::Add => ("add", "+"),
        AtomicOp::Or => ("or", "|"),
        AtomicOp::And => ("and", "&"),
        AtomicOp::Xor => ("xor", "^"),
        AtomicOp::Xchg => return write!(f, "r{src} = {atomic}_xchg({place}, r{src})"),
        AtomicOp::Cmpxchg => return write!(f, "r0 = {atomic}_cmpxchg({place}, r0, r{src})"),
        AtomicOp::LoadAcquire => return write!(f, "r{src} = load_acquire({place})"),
        AtomicOp::StoreRelease => return write!(f, "store_release({place}, r{src})"),
    };
    if fetch {
        write!(f, "r{src} = {atomic}_fetch_{name}({place}, r{src})")
    } else {
        write!(f, "lock *{place} {symbol}= r{src}")
    }
}

fn alu_symbol(op: AluOp) -> &'static str {
    match op {
        AluOp::Add => "+",
        AluOp::Sub => "-",
        AluOp::Mul => "*",
        AluOp::Div => "/",
        AluOp::SDiv => "s/",
        AluOp::Mod => "%",
        AluOp::SMod => "s%",
        AluOp::Or => "|",
        AluOp::And => "&",
        AluOp::Xor => "^",
        AluOp::Lsh => "<<",
        AluOp::Rsh => ">>",
        AluOp::Arsh => "s>>",
    }
}

fn jump_symbol(op: JumpOp) -> &'static str {
    match op {
        JumpOp::Eq => "==",
        JumpOp::Ne => "!=",
        JumpOp::Set => "&",
        JumpOp::Gt => ">",
        JumpOp::Ge => ">=",
        JumpOp::Lt => "<",
        JumpOp::Le => "<=",
        JumpOp::SGt => "s>",
        JumpOp::SGe => "s>=",
        JumpOp::SLt => "s<",
        JumpOp::SLe => "s<=",
    }
}

fn endian_name(kind: Endianness) -> &'static str {
    match kind {
        Endianness::ToLittle => "le",
        Endianness::ToBig => "be",
        Endianness::Swap => "bswap",
    }
}
