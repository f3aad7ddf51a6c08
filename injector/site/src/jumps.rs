//! Jumps to addresses that code computes: `jmp *%rax`, where rax is a sum of a base and an offset from a table.
//!
//! A pointer that is loaded, handed over or returned is known elsewhere: whoever made it has taken an address, or the loader has
//! stored it.

use crate::plan::{ends_flow, is_call};
use iced_x86::{
    FlowControl, Instruction, InstructionInfoFactory, Mnemonic, OpAccess, OpKind, Register as Reg,
};

/// How many instructions before a jump, or before what writes one of its registers, are looked at.
const BEFORE_MAX: usize = 4096;

/// A jump to a sum.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Computed {
    /// The jump.
    pub(crate) at: u64,
    /// Constants that are added, as far as the code before it shows: tables, or labels.
    pub(crate) bases: Vec<u64>,
    /// The jump is to an address out of a table at the base: `jmp *table(,%rdi,8)`.
    pub(crate) is_loaded: bool,
}

/// The instruction jumps to where a register says, or to an address out of a table that it names.
pub(crate) fn may_be_computed(instruction: &Instruction) -> bool {
    let is_register = instruction.op_count() > 0 && instruction.op0_kind() == OpKind::Register;
    instruction.flow_control() == FlowControl::IndirectBranch && (is_register || names_table(instruction))
}

fn names_table(jump: &Instruction) -> bool {
    jump.memory_base() == Reg::None && jump.memory_index() != Reg::None
}

/// The computed jumps of a piece of code. Code is looked at as it lies there, backwards from the jump: branches are not followed.
pub(crate) fn computed(code: &[Instruction]) -> Vec<Computed> {
    let jumps = code.iter().enumerate().filter(|(_, instruction)| may_be_computed(instruction));
    let mut trace = Trace { code, info: InstructionInfoFactory::new() };
    let computed = |(index, jump): (usize, &Instruction)| {
        let is_loaded = names_table(jump);
        let bases = if is_loaded {
            vec![jump.memory_displacement64()]
        } else {
            trace.sum(index, jump.op0_register())?
        };
        Some(Computed { at: jump.ip(), bases, is_loaded })
    };
    jumps.filter_map(computed).collect()
}

struct Trace<'c> {
    code: &'c [Instruction],
    info: InstructionInfoFactory,
}

impl Trace<'_> {
    /// The constants in the sum that the register holds before the instruction at `index`; none when it holds a pointer.
    fn sum(&mut self, mut index: usize, mut register: Reg) -> Option<Vec<u64>> {
        let jump = index;
        loop {
            index = self.writer(index, register)?;
            let between = &self.code[index + 1..jump];
            // Registers of the caller are restored: a call of another function, at the end of this one.
            if between.iter().zip(&self.code[index..]).any(|(it, before)| is_restored(it, before)) {
                return None;
            }
            let writer = &self.code[index];
            match writer.mnemonic() {
                // The C library keeps pointers in a changed form; one of two pointers.
                Mnemonic::Rol | Mnemonic::Ror => {}
                Mnemonic::Xor if writer.memory_segment() == Reg::FS => {}
                mnemonic if is_conditional_move(mnemonic) => {}
                Mnemonic::Mov if register_moved(writer).is_some() => {
                    register = register_moved(writer)?;
                }
                // A pointer out of memory, a constant, what a function has returned.
                Mnemonic::Mov if writer.op0_register().is_gpr64() || has_immediate(writer) => return None,
                Mnemonic::Pop | Mnemonic::Call => return None,
                Mnemonic::Lea if writer.is_ip_rel_memory_operand() => return None,
                // Where the jump is reached from elsewhere, others may add something else.
                Mnemonic::Lea | Mnemonic::Add if between.iter().any(ends_flow) => return Some(Vec::new()),
                Mnemonic::Lea | Mnemonic::Add => return Some(self.constants(index, register)),
                _ => return Some(Vec::new()),
            }
        }
    }

    /// The constants that the instruction at `index` adds up.
    fn constants(&mut self, index: usize, register: Reg) -> Vec<u64> {
        let sum = &self.code[index];
        let mut constants = Vec::new();
        let mut registers = vec![sum.memory_base(), sum.memory_index()];
        if sum.mnemonic() == Mnemonic::Add {
            registers.push(register);
            match sum.op1_kind() {
                OpKind::Register => registers.push(sum.op1_register()),
                OpKind::Memory => {}
                _ => constants.push(sum.immediate(1)),
            }
        } else {
            constants.push(sum.memory_displacement64());
        }
        for register in registers.into_iter().filter(|register| register.is_gpr()) {
            constants.extend(self.constant(index, register));
        }
        constants.retain(|&constant| constant != 0);
        constants
    }

    /// The constant that the register holds before the instruction at `index`.
    fn constant(&mut self, mut index: usize, mut register: Reg) -> Option<u64> {
        loop {
            index = self.writer(index, register)?;
            let writer = &self.code[index];
            match writer.mnemonic() {
                Mnemonic::Lea if writer.is_ip_rel_memory_operand() => {
                    return Some(writer.ip_rel_memory_address());
                }
                Mnemonic::Mov if has_immediate(writer) => return Some(writer.immediate(1)),
                Mnemonic::Mov => register = register_moved(writer)?,
                _ => return None,
            }
        }
    }

    /// The last instruction before `index` that writes the register.
    fn writer(&mut self, index: usize, register: Reg) -> Option<usize> {
        (index.saturating_sub(BEFORE_MAX)..index).rev().find(|&at| self.writes(at, register))
    }

    fn writes(&mut self, at: usize, register: Reg) -> bool {
        let instruction = &self.code[at];
        if is_call(instruction) {
            return register.full_register() == Reg::RAX;
        }
        let used = self.info.info(instruction).used_registers();
        used.iter().any(|used| {
            used.register().full_register() == register.full_register()
                && matches!(
                    used.access(),
                    OpAccess::Write | OpAccess::CondWrite | OpAccess::ReadWrite | OpAccess::ReadCondWrite
                )
        })
    }
}

fn register_moved(instruction: &Instruction) -> Option<Reg> {
    (instruction.op1_kind() == OpKind::Register && instruction.op1_register().is_gpr())
        .then(|| instruction.op1_register())
}

/// The instruction restores a register; `push; pop` moves a value.
fn is_restored(instruction: &Instruction, before: &Instruction) -> bool {
    let pops = instruction.mnemonic() == Mnemonic::Pop && before.mnemonic() != Mnemonic::Push;
    pops || instruction.mnemonic() == Mnemonic::Leave
}

fn has_immediate(instruction: &Instruction) -> bool {
    !matches!(instruction.op1_kind(), OpKind::Register | OpKind::Memory)
}

fn is_conditional_move(mnemonic: Mnemonic) -> bool {
    matches!(
        mnemonic,
        Mnemonic::Cmova
            | Mnemonic::Cmovae
            | Mnemonic::Cmovb
            | Mnemonic::Cmovbe
            | Mnemonic::Cmove
            | Mnemonic::Cmovne
            | Mnemonic::Cmovg
            | Mnemonic::Cmovge
            | Mnemonic::Cmovl
            | Mnemonic::Cmovle
            | Mnemonic::Cmovs
            | Mnemonic::Cmovns
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use iced_x86::{Decoder, DecoderOptions};

    fn check(bytes: &[u8], expected: Option<&[u64]>) {
        let code: Vec<_> = Decoder::with_ip(64, bytes, 0x1000, DecoderOptions::NONE).into_iter().collect();
        let found = computed(&code).pop().map(|jump| jump.bases);
        assert_eq!(found.as_deref(), expected, "{bytes:02x?}");
    }

    #[test]
    fn sums_and_pointers() {
        // lea 0x10(%rip),%rdx; movslq (%rdx,%rdi,4),%rax; add %rdx,%rax; jmp *%rax
        let table = [0x48, 0x8d, 0x15, 0x10, 0, 0, 0, 0x48, 0x63, 0x04, 0xba, 0x48, 0x01, 0xd0, 0xff, 0xe0];
        check(&table, Some(&[0x1017]));
        // The same with the base in a register from elsewhere.
        check(&table[7..], Some(&[]));
        // lea 0x10(%rip),%rax; add (%rax,%rdi,8),%rax; jmp *%rax: offsets of 64 bits
        check(
            &[0x48, 0x8d, 0x05, 0x10, 0, 0, 0, 0x48, 0x03, 0x04, 0xf8, 0xff, 0xe0],
            Some(&[0x1017, 0x1017]),
        );
        // movslq 0x402670(,%rdx,4),%rdx; lea 0x4015c2(%rdx),%rdx; jmp *%rdx
        let label =
            [0x48, 0x63, 0x14, 0x95, 0x70, 0x26, 0x40, 0, 0x48, 0x8d, 0x92, 0xc2, 0x15, 0x40, 0, 0xff, 0xe2];
        check(&label, Some(&[0x4015c2]));
        // add $0x401760,%rdx; jmp *%rdx
        check(&[0x48, 0x81, 0xc2, 0x60, 0x17, 0x40, 0, 0xff, 0xe2], Some(&[0x401760]));
        // jmp *%rax alone; mov (%rdi),%rax; ror $17,%rax; xor %fs:0x30,%rax; jmp *%rax; call; jmp *%rax
        check(&[0xff, 0xe0], None);
        check(
            &[
                0x48, 0x8b, 0x07, 0x48, 0xc1, 0xc8, 0x11, 0x64, 0x48, 0x33, 0x04, 0x25, 0x30, 0, 0, 0, 0xff,
                0xe0,
            ],
            None,
        );
        check(&[0x48, 0x01, 0xd0, 0xe8, 0, 0, 0, 0, 0xff, 0xe0], None);
        // add %rdx,%rax; pop %rbx; jmp *%rax
        check(&[0x48, 0x01, 0xd0, 0x5b, 0xff, 0xe0], None);
        // lea 0x10(%rip),%rdx; add %rdx,%rax; ret; nop; jmp *%rax
        check(&[0x48, 0x8d, 0x15, 0x10, 0, 0, 0, 0x48, 0x01, 0xd0, 0xc3, 0x90, 0xff, 0xe0], Some(&[]));
        // movslq (%rdx,%rdi,4),%rax; jmp *%rax
        check(&[0x48, 0x63, 0x04, 0xba, 0xff, 0xe0], Some(&[]));
    }
}
