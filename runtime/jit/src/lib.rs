//! Compiles verified programs to position-independent machine code.
//!
//! ```text
//! Verified ─▶ Code ─▶ translate: one Cranelift function per subprogram ─▶ link: one Image, internal calls resolved
//! ```
//!
//! - [`compile`] is the shipping path: only a `Verified` becomes a [`CodeImage`], and only that goes into the store.
//! - [`compile_unverified`] serves the conformance binary and the tests; its [`RawCode`] is another type.
//!
//! **Invariants.** The code touches no vector register, has no stack probe and no call but to helpers, to its own
//! functions and through a tail call. Every access to memory that is not the program's own stack frame is executed as
//! often and in the order that the program says: another process may be looking.
#![forbid(unsafe_code)]

mod arch;
mod code;
mod error;
mod image;
mod link;
mod target;
mod translate;
mod verified;

pub use code::{CallFacts, Code, Conformance, FRAME_BYTES_MAX, Subprogram};
pub use error::CompileError;
pub use image::{CodeImage, Function, Image, Place, RawCode};
pub use verified::CompileOptions;

use beeline_verifier::Verified;

/// Bit of `RunContext::flags`: the conformance suite's unwind helper ended the program.
pub const RUN_UNWOUND: u32 = 1;
/// Bit of `RunContext::flags`: a `callx` named a helper that does not exist; the program was ended.
pub const RUN_BAD_CALL: u32 = 2;

/// Compiles a verified program.
///
/// # Errors
/// [`CompileError`] for what has no machine code: legacy packet access, kernel functions, kernel variables, helpers that
/// only a kernel can serve.
pub fn compile(verified: &Verified, options: &CompileOptions) -> Result<CodeImage, CompileError> {
    verified::check_helpers(verified)?;
    let code = verified::code(verified, options);
    Ok(CodeImage { image: link::image(&code, translate::EntryConvention::Program)? })
}

/// Compiles instructions that nobody verified. Running the result can do anything.
///
/// # Errors
/// [`CompileError`] for what has no machine code.
pub fn compile_unverified(code: &Code<'_>) -> Result<RawCode, CompileError> {
    Ok(RawCode { image: link::image(code, translate::EntryConvention::Helper)? })
}
