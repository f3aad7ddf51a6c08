//! What leaving a program or a subprogram requires.

use crate::explore::Explorer;
use crate::refusal::{Checked, refuse};
use crate::state::{Callback, Kind};
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
        // A context that is returned is not looked at by anybody.
        let _ = returned;
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
        let (min, max) = (returned.value.smin, returned.value.smax);
        if min < 0 || max > i64::from(callback.returns_max) {
            let (mut known, unknown) = (String::new(), " unknown scalar value");
            if min > i64::MIN {
                known += &format!(" smin={min}");
            }
            if max < i64::MAX {
                known += &format!(" smax={max}");
            }
            refuse!(
                "At callback return the register R0 has{} should have been in [0, {}]",
                if known.is_empty() { unknown } else { &known },
                callback.returns_max
            );
        }
        Ok(())
    }
}
