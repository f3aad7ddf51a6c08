//! x86-64: total store order, rip-relative calls, 64-bit absolute immediates.

use crate::error::CompileError;
use beeline_abi::code::RelocKind;
use cranelift_codegen::binemit::Reloc;
use cranelift_codegen::ir::{InstBuilder, MemFlagsData, Value};
use cranelift_frontend::FunctionBuilder;

/// Fills the space between functions: `int3`.
pub(crate) const PADDING: u8 = 0xcc;

/// Refuses a machine that this module does not describe.
pub(crate) fn check(triple: &impl std::fmt::Display) -> Result<(), CompileError> {
    let name = triple.to_string();
    if name.starts_with("x86_64") { Ok(()) } else { Err(CompileError::Machine(name)) }
}

/// How the linker patches a place that the code generator left open.
pub(crate) fn reloc_kind(kind: Reloc) -> Option<RelocKind> {
    match kind {
        Reloc::Abs8 => Some(RelocKind::Abs64),
        Reloc::X86PCRel4 | Reloc::X86CallPCRel4 => Some(RelocKind::Rel32),
        _ => None,
    }
}

/// Stores `value` with release ordering: every store has it here, so it only must not be moved or merged.
pub(crate) fn store_release(builder: &mut FunctionBuilder<'_>, value: Value, address: Value) {
    builder.ins().sequence_point();
    builder.ins().store(MemFlagsData::new().with_notrap(), value, address, 0);
    builder.ins().sequence_point();
}
