//! What leaving a program or a subprogram requires.

use crate::explore::Explorer;
use crate::refusal::{Checked, refuse};
use crate::state::{Callback, Kind, RegState};
use beeline_isa::Reg;

impl Explorer<'_> {
    /// All that was reserved has been submitted or discarded.
    pub(crate) fn nothing_held(&self) -> Checked {
        match self.state.references.last() {
            Some((id, pc)) => refuse!("Unreleased reference id={id} alloc_insn={pc}"),
            None => Ok(()),
        }
    }

    /// The end of the program.
    pub(crate) fn may_exit(&mut self) -> Checked {
        let returned = self.readable(Reg::R0)?;
        self.unlocked("BPF_EXIT instruction in main prog")?;
        self.nothing_held().map_err(|held| {
            format!("{held}\nBPF_EXIT instruction in main prog would lead to reference leak")
        })?;
        // A session's says whether the program runs at the return; another context that is returned is not looked at by anybody.
        if self.program.is_session() && self.state.frame().subprogram == 0 {
            if returned.kind != Kind::Scalar {
                refuse!("At program exit the register R0 is not a known value ({})", returned.kind.name());
            }
            self.mark_precise(&returned);
            in_range(&returned, "program exit", 1)?;
        }
        Ok(())
    }

    /// The return to another frame: no address of the stack that ends.
    pub(crate) fn may_return(&self) -> Checked {
        if matches!(self.state.reg(Reg::R0).kind, Kind::Stack { .. }) {
            refuse!("cannot return stack pointer to the caller");
        }
        Ok(())
    }

    /// The return to a helper: a number in the range that the helper understands.
    pub(crate) fn may_return_to_helper(&mut self, callback: Callback) -> Checked {
        let returned = self.readable(Reg::R0)?;
        if returned.kind != Kind::Scalar {
            refuse!("R0 not a scalar value");
        }
        self.mark_precise(&returned);
        in_range(&returned, "callback return", callback.returns_max.into())
    }
}

/// The number lies between 0 and `most`.
fn in_range(returned: &RegState, place: &str, most: i64) -> Checked {
    let (min, max) = (returned.value.smin, returned.value.smax);
    if min >= 0 && max <= most {
        return Ok(());
    }
    let (mut known, unknown) = (String::new(), " unknown scalar value");
    if min > i64::MIN {
        known += &format!(" smin={min}");
    }
    if max < i64::MAX {
        known += &format!(" smax={max}");
    }
    let known = if known.is_empty() { unknown } else { &known };
    refuse!("At {place} the register R0 has{known} should have been in [0, {most}]")
}
