//! A program's instructions, decoded, divided into subprograms, with all jumps inside their subprogram.
//!
//! What is checked here does not depend on any value: encodings, jump targets, ends of subprograms, map references.

use crate::program::{INSNS_MAX, Program};
use crate::refusal::Refusal;
use beeline_abi::map::MapType;
use beeline_isa::{Call, DecodeError, Imm64, Insn, Op, decode, opcode};

/// A stretch of code that is entered by calls.
#[derive(Clone, Debug)]
pub(crate) struct Range {
    /// First slot.
    pub(crate) start: usize,
    /// One past the last slot.
    pub(crate) end: usize,
}

/// The decoded program.
pub(crate) struct Code {
    /// Per slot: what it means; `None` for the second half of a wide instruction.
    pub(crate) ops: Vec<Option<Op>>,
    /// In order of address; the first is the program itself.
    pub(crate) subprograms: Vec<Range>,
}

impl Code {
    /// Decodes and divides `program`.
    pub(crate) fn new(program: &Program) -> Result<Code, Refusal> {
        let insns = &program.insns;
        if insns.is_empty() || insns.len() > INSNS_MAX {
            return Err(Refusal::at(
                0,
                format!("program has {} instructions, not 1 to {INSNS_MAX}", insns.len()),
            ));
        }
        let ops = decode_all(insns)?;
        let subprograms = divide(&ops)?;
        let code = Code { ops, subprograms };
        code.check_jumps()?;
        for pc in 0..insns.len() {
            check_immediate(program, &code, pc).map_err(|reason| Refusal::at(pc, reason))?;
        }
        Ok(code)
    }

    /// The operation at `pc`, which is not a second half.
    pub(crate) fn op(&self, pc: usize) -> Option<Op> {
        self.ops.get(pc).copied().flatten()
    }

    /// Which subprogram starts at `pc`.
    pub(crate) fn subprogram_starting(&self, pc: usize) -> Option<usize> {
        self.subprograms.binary_search_by_key(&pc, |range| range.start).ok()
    }

    /// The slot after the instruction at `pc`.
    pub(crate) fn next(&self, pc: usize) -> usize {
        if matches!(self.op(pc), Some(Op::LoadImm64 { .. })) { pc + 2 } else { pc + 1 }
    }

    /// Where control can go from `pc` inside its subprogram.
    pub(crate) fn successors(&self, pc: usize) -> [Option<usize>; 2] {
        match self.op(pc) {
            None | Some(Op::Exit) => [None, None],
            Some(Op::Ja { target }) => [Some(jump_target(pc, target.into())), None],
            Some(Op::Jump { target, .. } | Op::MayGoto { target }) => {
                [Some(pc + 1), Some(jump_target(pc, target.into()))]
            }
            Some(_) => [Some(self.next(pc)), None],
        }
    }

    /// The subprogram that the instruction at `pc` calls or names.
    pub(crate) fn callee(&self, pc: usize) -> Option<usize> {
        let target = match self.op(pc)? {
            Op::Call(Call::Local(imm)) | Op::LoadImm64 { value: Imm64::Func(imm), .. } => {
                jump_target(pc, imm.into())
            }
            _ => return None,
        };
        self.subprogram_starting(target)
    }

    fn check_jumps(&self) -> Result<(), Refusal> {
        for range in &self.subprograms {
            for pc in range.start..range.end {
                let target = match self.op(pc) {
                    Some(Op::Ja { target }) => i64::from(target),
                    Some(Op::Jump { target, .. } | Op::MayGoto { target }) => i64::from(target),
                    _ => continue,
                };
                let to = pc as i64 + 1 + target;
                if to < range.start as i64 || to >= range.end as i64 {
                    return Err(Refusal::at(pc, format!("jump out of range from insn {pc} to {to}")));
                }
            }
            let last = range.end - 1;
            if !matches!(self.op(last), Some(Op::Exit | Op::Ja { .. })) {
                return Err(Refusal::at(last, "last insn is not an exit or jmp"));
            }
        }
        Ok(())
    }
}

/// The slot that is `relative` slots behind the one after `pc`. Only for targets that were checked.
pub(crate) fn jump_target(pc: usize, relative: i64) -> usize {
    (pc as i64 + 1 + relative).max(0) as usize
}

fn decode_all(insns: &[Insn]) -> Result<Vec<Option<Op>>, Refusal> {
    let mut ops = Vec::with_capacity(insns.len());
    while ops.len() < insns.len() {
        let pc = ops.len();
        let insn = insns[pc];
        let op = decode(&insns[pc..]).map_err(|e| Refusal::at(pc, encoding(&insns[pc..], e)))?;
        if matches!(op, Op::ProbeLoad { .. }) {
            return Err(Refusal::at(pc, encoding(&insns[pc..], DecodeError::UnknownOpcode(insn.code))));
        }
        ops.push(Some(op));
        if insn.is_wide() {
            ops.push(None);
        }
    }
    Ok(ops)
}

/// What is wrong with a 64-bit immediate, in the kernel's words.
fn wide(slots: &[Insn]) -> &'static str {
    let plain = |second: &Insn| second.code == 0 && second.dst() == 0 && second.src() == 0 && second.off == 0;
    match slots {
        [first, second, ..] if plain(second) => {
            let known = first.src() == 0 || second.imm == 0;
            if first.off != 0 && known {
                "BPF_LD_IMM64 uses reserved fields"
            } else {
                "unrecognized bpf_ld_imm64 insn"
            }
        }
        _ => "invalid bpf_ld_imm64 insn",
    }
}

/// A refusal to decode, in the kernel's words.
fn encoding(slots: &[Insn], error: DecodeError) -> String {
    let insn = slots[0];
    match error {
        DecodeError::UnknownOpcode(code) => format!("unknown opcode {code:02x}"),
        DecodeError::BadRegister(10) => "frame pointer is read only".into(),
        DecodeError::BadRegister(reg) => format!("R{reg} is invalid"),
        DecodeError::BadWideImmediate | DecodeError::ReservedField if insn.is_wide() => wide(slots).into(),
        DecodeError::BadWideImmediate => "invalid bpf_ld_imm64 insn".into(),
        DecodeError::UnknownAtomic(_) => format!("BPF_ATOMIC uses invalid atomic opcode {:02x}", insn.imm),
        DecodeError::ReservedField => {
            const CLASSES: [&str; 8] = ["LD", "LDX", "ST", "STX", "ALU", "JMP", "JMP32", "ALU64"];
            let name = match (insn.code & opcode::CLASS_MASK, insn.code & opcode::OP_MASK) {
                (opcode::JMP, opcode::CALL) => "CALL",
                (opcode::JMP, opcode::EXIT) => "EXIT",
                (opcode::JMP, opcode::JA) => "JA",
                (class, _) => CLASSES[usize::from(class)],
            };
            format!("BPF_{name} uses reserved fields")
        }
    }
}

/// Finds the starts of subprograms: slot 0 and every target of a call or of a callback's address.
fn divide(ops: &[Option<Op>]) -> Result<Vec<Range>, Refusal> {
    let mut starts = vec![0];
    for (pc, op) in ops.iter().enumerate() {
        let imm = match op {
            Some(Op::Call(Call::Local(imm)) | Op::LoadImm64 { value: Imm64::Func(imm), .. }) => *imm,
            _ => continue,
        };
        let target = pc as i64 + 1 + i64::from(imm);
        if target < 0 || target >= ops.len() as i64 || ops[target as usize].is_none() {
            return Err(Refusal::at(pc, "call to invalid destination"));
        }
        starts.push(target as usize);
    }
    starts.sort_unstable();
    starts.dedup();
    if starts.len() > 256 {
        return Err(Refusal::at(starts[256], "too many subprograms"));
    }
    let ends = starts.iter().skip(1).copied().chain([ops.len()]).collect::<Vec<_>>();
    let ranges = starts.into_iter().zip(ends).map(|(start, end)| Range { start, end }).collect::<Vec<_>>();
    for range in &ranges {
        if range.end < ops.len() && ops[range.end].is_none() {
            return Err(Refusal::at(range.end, "jump into the middle of ldimm64 insn"));
        }
    }
    Ok(ranges)
}

/// What the 64-bit immediate at `pc` refers to exists.
fn check_immediate(program: &Program, code: &Code, pc: usize) -> Result<(), String> {
    let Some(Op::LoadImm64 { value, .. }) = code.op(pc) else { return Ok(()) };
    match value {
        Imm64::Value(_) => Ok(()),
        Imm64::Func(_) if code.callee(pc).is_some_and(|callee| callee > 0) => Ok(()),
        Imm64::Func(_) => Err("callback function not static".into()),
        Imm64::BtfId(id) => Err(format!("kernel variable with BTF id {id} is not supported in userspace")),
        Imm64::Map(map) if (map as usize) < program.maps.len() => Ok(()),
        Imm64::Map(map) => Err(format!("fd {map} is not pointing to valid bpf_map")),
        Imm64::MapValue { map, offset } => {
            let Some(info) = program.maps.get(map as usize) else {
                return Err(format!("fd {map} is not pointing to valid bpf_map"));
            };
            if offset >= 1 << 29 {
                return Err(format!("direct value offset of {offset} is not allowed"));
            }
            if info.shape.map_type != MapType::ARRAY
                || info.shape.max_entries != 1
                || offset >= info.shape.value_size
            {
                let size = info.shape.value_size;
                return Err(format!("invalid access to map value pointer, value_size={size} off={offset}"));
            }
            Ok(())
        }
    }
}
