//! The right to change system calls: links are made with it, or their programs only look.

use crate::EngineError;
use beeline_abi::code::{Reloc, Symbol};
use beeline_store::{Target, TargetForm};

/// Helpers by which a program at a system call changes it: skips it, gives it another result, writes to its arguments.
const CHANGING: [u32; 2] = [36, 58];

/// The helper by which a program at system calls would change them.
fn changing_helper(relocs: &[Reloc]) -> Option<&'static str> {
    let helpers = relocs.iter().filter_map(|reloc| match reloc.symbol {
        Symbol::Helper(id) if CHANGING.contains(&id) => beeline_helpers::table::by_id(id),
        _ => None,
    });
    helpers.map(|helper| helper.proto.name).next()
}

/// A link to this place is at system calls.
pub(crate) fn is_at_calls(target: &Target) -> bool {
    matches!(target.form, TargetForm::SystemCall { .. })
}

/// The program leaves system calls as they are.
///
/// # Errors
/// [`EngineError::NoRight`] when it does not.
pub(crate) fn only_looks(program: &str, section: &str, relocs: &[Reloc]) -> Result<(), EngineError> {
    match changing_helper(relocs) {
        None => Ok(()),
        Some(helper) => {
            Err(EngineError::NoRight { program: program.to_owned(), section: section.to_owned(), helper })
        }
    }
}
