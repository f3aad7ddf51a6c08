//! Writes a resolved relocation into its instruction, or poisons it.

use beeline_isa::Insn;
use beeline_isa::opcode as o;

use super::{CoReError, Resolution};

/// The helper id that a poisoned instruction calls: `0xbad2310`, "bad relo". If it can be reached, a verifier says
/// `invalid func unknown#195896080`.
pub const POISON_HELPER: i32 = 195_896_080;

/// What libbpf replaces an instruction with whose relocation failed.
pub const POISON: Insn = Insn { code: o::JMP | o::CALL, regs: 0, off: 0, imm: POISON_HELPER };

/// Applies `resolution` to instruction `index`.
pub fn patch(insns: &mut [Insn], index: usize, resolution: &Resolution) -> Result<(), CoReError> {
    let Some(insn) = insns.get(index).copied() else {
        return Err(CoReError::Instruction { code: 0, reason: "out of range".into() });
    };
    let fail = |reason: String| CoReError::Instruction { code: insn.code, reason };
    if resolution.poison {
        poison(insns, index);
        return Ok(());
    }
    let expect = |held: u64| {
        if !resolution.validate || held == resolution.original {
            return Ok(());
        }
        Err(fail(format!("it holds {held}, by the object's own types it should be {}", resolution.original)))
    };
    match insn.code & o::CLASS_MASK {
        o::ALU | o::ALU64 => {
            if insn.code & o::SRC_REG != 0 {
                return Err(fail("it has no immediate".into()));
            }
            expect(i64::from(insn.imm) as u64)?;
            insns[index].imm = resolution.new as i32;
        }
        o::LDX | o::ST | o::STX => {
            expect(i64::from(insn.off) as u64)?;
            let off = i16::try_from(resolution.new)
                .map_err(|_| fail(format!("offset {} does not fit into 15 bits", resolution.new)))?;
            if resolution.access_mismatch {
                poison(insns, index);
                return Ok(());
            }
            insns[index].off = off;
            if resolution.new_size != resolution.original_size {
                insns[index].code = resized(insn.code, resolution)
                    .map_err(|reason| CoReError::Instruction { code: insn.code, reason })?;
            }
        }
        o::LD => {
            let next = insns.get(index + 1).copied();
            let next = next.filter(|next| {
                insn.is_wide()
                    && insn.src() == 0
                    && insn.off == 0
                    && next.code == 0
                    && next.regs == 0
                    && next.off == 0
            });
            let next = next.ok_or(fail("not a plain 64-bit immediate".into()))?;
            expect(u64::from(insn.imm as u32) | u64::from(next.imm as u32) << 32)?;
            insns[index].imm = resolution.new as i32;
            insns[index + 1].imm = (resolution.new >> 32) as i32;
        }
        _ => return Err(fail("not one that CO-RE patches".into())),
    }
    Ok(())
}

fn poison(insns: &mut [Insn], index: usize) {
    if insns[index].is_wide()
        && let Some(second) = insns.get_mut(index + 1)
    {
        *second = POISON;
    }
    insns[index] = POISON;
}

/// The opcode of a load or store for the field's size in the target.
fn resized(code: u8, resolution: &Resolution) -> Result<u8, String> {
    let bytes = match code & o::SIZE_MASK {
        o::DW => 8,
        o::W => 4,
        o::H => 2,
        _ => 1,
    };
    if bytes != resolution.original_size {
        return Err(format!("it accesses {bytes} bytes of a field of {}", resolution.original_size));
    }
    let size = match resolution.new_size {
        8 => o::DW,
        4 => o::W,
        2 => o::H,
        1 => o::B,
        size => return Err(format!("no instruction accesses {size} bytes")),
    };
    Ok((code & !o::SIZE_MASK) | size)
}
