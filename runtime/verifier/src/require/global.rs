//! What a call of a global subprogram requires: arguments of the declared types. It is verified by itself for all of them.

use crate::explore::Explorer;
use crate::program::{GlobalArg, GlobalSignature};
use crate::refusal::{Checked, refuse};
use crate::state::Kind;
use beeline_helpers::proto::MemAccess;
use beeline_isa::Reg;

impl Explorer<'_> {
    /// The type of a subprogram that is verified by itself.
    pub(crate) fn global_signature(&self, subprogram: usize) -> Option<GlobalSignature> {
        let start = self.code.subprograms.get(subprogram)?.start;
        let infos = &self.program.subprograms;
        infos.iter().find(|info| info.start as usize == start)?.global.clone()
    }

    /// The arguments of the current call are of these types.
    pub(crate) fn global_arguments(&mut self, signature: &GlobalSignature) -> Checked {
        for (index, arg) in signature.args.iter().take(5).enumerate() {
            let reg = Reg(index as u8 + 1);
            let state = self.readable(reg)?;
            match *arg {
                GlobalArg::Scalar if state.kind == Kind::Scalar => {}
                GlobalArg::Scalar => refuse!("R{} is not a scalar", reg.0),
                GlobalArg::Ctx if state.kind == Kind::Ctx && state.const_offset() == Some(0) => {}
                GlobalArg::Ctx => refuse!("R{} is not a pointer to ctx", reg.0),
                GlobalArg::Mem { nonnull: false, .. } if state.is_null() => self.mark_precise(&state),
                GlobalArg::Mem { size, nonnull } => {
                    let mut pointer = state;
                    if !nonnull {
                        pointer.kind = pointer.kind.non_null();
                    }
                    self.memory(reg, &pointer, size, MemAccess::ReadWrite, false)?;
                }
            }
        }
        Ok(())
    }
}
