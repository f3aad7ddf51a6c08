//! Puts the subprograms behind each other and resolves the references between them.

use crate::arch;
use crate::code::Code;
use crate::error::CompileError;
use crate::image::{Function, Image, Place};
use crate::target::target;
use crate::translate::{EntryConvention, Translator, external};
use beeline_abi::code::{Reloc, RelocKind, Symbol};
use beeline_helpers::HOST_FUNCTION_BASE;
use cranelift_codegen::control::ControlPlane;
use cranelift_codegen::ir::{ExternalName, UserExternalName};
use cranelift_codegen::{CompiledCode, Context, FinalizedMachReloc, FinalizedRelocTarget};

/// A reference to another function of the same image.
struct Internal {
    offset: u32,
    kind: RelocKind,
    function: usize,
    addend: i64,
}

/// Compiles every subprogram.
///
/// # Errors
/// [`CompileError`] from translation, or for something the code generator leaves open that has no [`Reloc`].
pub(crate) fn image(code: &Code<'_>, entry: EntryConvention) -> Result<Image, CompileError> {
    let isa = target()?;
    let mut translator = Translator::new(code, entry);
    let mut context = Context::new();
    let mut image = Image::default();
    let mut internals = Vec::new();
    for (index, subprogram) in code.subprograms.iter().enumerate() {
        translator.translate(index, &mut context.func, isa.frontend_config())?;
        let backend = |reason: String| CompileError::Backend { start: subprogram.start, reason };
        context
            .compile(&*isa, &mut ControlPlane::default())
            .map_err(|error| backend(error.inner.to_string()))?;
        let Some(compiled) = context.compiled_code() else { return Err(backend("no code".into())) };
        let base = image.code.len() as u32;
        let names = context.func.params.user_named_funcs();
        for reloc in compiled.buffer.relocs() {
            let FinalizedRelocTarget::ExternalName(ExternalName::User(name)) = &reloc.target else {
                return Err(backend(format!("reference to {:?}", reloc.target)));
            };
            place_reloc(reloc, &names[*name], base, &mut image, &mut internals).map_err(backend)?;
        }
        append(&mut image, compiled, base);
        image.functions.push(Function {
            start: subprogram.start,
            name: subprogram.name.clone(),
            offset: base,
            len: compiled.code_buffer().len() as u32,
            text_len: text_len(compiled),
        });
        let padded = image.code.len().next_multiple_of(Image::ALIGNMENT as usize);
        image.code.resize(padded, arch::PADDING);
        context.clear();
    }
    for internal in internals {
        resolve(&mut image, &internal);
    }
    Ok(image)
}

/// Constants lie behind the last instruction; only instructions have a source location.
fn text_len(compiled: &CompiledCode) -> u32 {
    compiled.buffer.get_srclocs_sorted().iter().map(|location| location.end).max().unwrap_or(0)
}

fn append(image: &mut Image, compiled: &CompiledCode, base: u32) {
    image.code.extend_from_slice(compiled.code_buffer());
    for location in compiled.buffer.get_srclocs_sorted() {
        if !location.loc.is_default() {
            image.places.push(Place { offset: base + location.start, pc: location.loc.bits() });
        }
    }
}

fn place_reloc(
    reloc: &FinalizedMachReloc,
    name: &UserExternalName,
    base: u32,
    image: &mut Image,
    internals: &mut Vec<Internal>,
) -> Result<(), String> {
    let kind = arch::reloc_kind(reloc.kind).ok_or_else(|| format!("relocation {:?}", reloc.kind))?;
    let (offset, addend) = (base + reloc.offset, reloc.addend);
    let symbol = match name.namespace {
        external::FUNCTION => {
            internals.push(Internal { offset, kind, function: name.index as usize, addend });
            return Ok(());
        }
        external::HELPER => match name.index.checked_sub(HOST_FUNCTION_BASE) {
            Some(index) => Symbol::HostFunction(index),
            None => Symbol::Helper(name.index),
        },
        external::MAP_HANDLE => Symbol::MapHandle(name.index),
        external::MAP_DATA => Symbol::MapData(name.index),
        other => return Err(format!("name space {other}")),
    };
    image.relocs.push(Reloc { offset, kind, symbol, addend });
    Ok(())
}

/// Fills in a distance within the image; an absolute address becomes a [`Symbol::Image`] relocation.
fn resolve(image: &mut Image, internal: &Internal) {
    let target = i64::from(image.functions[internal.function].offset) + internal.addend;
    match internal.kind {
        RelocKind::Rel32 => {
            let at = internal.offset as usize;
            let distance = (target - i64::from(internal.offset)) as i32;
            image.code[at..at + 4].copy_from_slice(&distance.to_le_bytes());
        }
        RelocKind::Abs64 => image.relocs.push(Reloc {
            offset: internal.offset,
            kind: RelocKind::Abs64,
            symbol: Symbol::Image,
            addend: target,
        }),
    }
}
