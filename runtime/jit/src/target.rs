//! The code generator's configuration, made once in a process.

use crate::arch;
use crate::error::CompileError;
use cranelift_codegen::isa::OwnedTargetIsa;
use cranelift_codegen::settings::{self, Configurable, SetError};
use std::sync::OnceLock;

/// The code generator for this machine.
///
/// # Errors
/// [`CompileError::Machine`] when there is none.
pub(crate) fn target() -> Result<OwnedTargetIsa, CompileError> {
    static TARGET: OnceLock<Result<OwnedTargetIsa, CompileError>> = OnceLock::new();
    TARGET.get_or_init(build).clone()
}

fn build() -> Result<OwnedTargetIsa, CompileError> {
    let flags = flags().map_err(|error| CompileError::Machine(error.to_string()))?;
    let builder = cranelift_native::builder().map_err(|error| CompileError::Machine(error.into()))?;
    arch::check(builder.triple())?;
    builder.finish(settings::Flags::new(flags)).map_err(|error| CompileError::Machine(error.to_string()))
}

fn flags() -> Result<settings::Builder, SetError> {
    let mut flags = settings::builder();
    flags.set("opt_level", "speed")?;
    // Not "pic" in the sense of ELF, which goes through a GOT: own functions and helpers are reached rip-relative, maps
    // by absolute addresses that the linker fills in.
    flags.set("is_pic", "false")?;
    // A probe would call or touch pages; frames are far smaller than a page.
    flags.set("enable_probestack", "false")?;
    // On x86-64 the generator makes a frame in any case; with it, stacks can be walked through programs.
    flags.set("preserve_frame_pointers", "true")?;
    flags.set("unwind_info", "false")?;
    let verify = if cfg!(debug_assertions) { "true" } else { "false" };
    flags.set("enable_verifier", verify)?;
    Ok(flags)
}
