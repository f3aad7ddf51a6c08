//! What a program as a whole requires.

use crate::context;
use crate::program::Program;
use crate::refusal::{Checked, refuse};

/// The program's type is one whose context is known.
pub(crate) fn check(program: &Program) -> Checked {
    if !context::is_known(program.prog_type) {
        refuse!("program type {} is not supported in userspace", program.prog_type.0);
    }
    Ok(())
}
