//! Decoded instructions.

use beeline_isa::{DecodeError, Insn, Op, decode};

/// A program ready to be interpreted. What is not an instruction traps only when it is reached: dead code may hold
/// anything.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Program {
    slots: Vec<Result<Op, DecodeError>>,
}

impl Program {
    /// Decodes all slots. The second slot of a wide immediate is no instruction of its own.
    pub fn new(insns: &[Insn]) -> Program {
        let mut slots = Vec::with_capacity(insns.len());
        while slots.len() < insns.len() {
            let op = decode(&insns[slots.len()..]);
            slots.push(op);
            if matches!(op, Ok(Op::LoadImm64 { .. })) {
                slots.push(Err(DecodeError::BadWideImmediate));
            }
        }
        Program { slots }
    }

    /// Number of slots.
    pub fn len(&self) -> usize {
        self.slots.len()
    }

    /// True when there is no slot at all.
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// The instruction at a slot; none: outside.
    #[inline(always)]
    pub(crate) fn slot(&self, pc: u64) -> Option<&Result<Op, DecodeError>> {
        self.slots.get(usize::try_from(pc).ok()?)
    }
}
