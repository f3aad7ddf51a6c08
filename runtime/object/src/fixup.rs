//! What the compiler could not write into the object's BTF, filled in from the ELF file: sizes of data sections,
//! offsets of variables, and `static` for what is hidden.

use std::collections::{HashMap, HashSet};

use crate::btf::{Btf, FUNC_GLOBAL, FUNC_STATIC, Kind, SectionVar, Type, VAR_EXTERN, VAR_STATIC};
use crate::elf::{Elf, Symbol};
use crate::error::ObjectError;
use crate::externs::KCONFIG_SECTION;

fn fail(section: &str, reason: String) -> ObjectError {
    ObjectError::Corrupt { place: format!("BTF of section '{section}'"), offset: 0, reason }
}

/// Completes every data section, as libbpf's `bpf_object_fixup_btf`.
pub(crate) fn complete_data_sections(elf: &Elf<'_>, btf: &mut Btf) -> Result<(), ObjectError> {
    let mut symbols = HashMap::new();
    for symbol in elf.symbols.iter().filter(|symbol| symbol.is_object() && symbol.is_visible()) {
        symbols.entry(symbol.name).or_insert(*symbol);
    }
    let sections: Vec<u32> = btf.types().filter(|ty| ty.kind() == Kind::DataSec).map(Type::id).collect();
    for id in sections {
        complete(elf, btf, id, &symbols)?;
    }
    Ok(())
}

fn complete(
    elf: &Elf<'_>,
    btf: &mut Btf,
    id: u32,
    symbols: &HashMap<&str, Symbol<'_>>,
) -> Result<(), ObjectError> {
    let name = btf.type_or_void(id).name().to_owned();
    let mut vars: Vec<SectionVar> = btf.type_or_void(id).section_vars().collect();
    if name != KCONFIG_SECTION && name != ".ksyms" {
        // The static linker has done this already in what it linked.
        let complete_offsets = btf.type_or_void(id).size() == 0;
        if complete_offsets {
            let section = elf.section_named(&name).and_then(|index| elf.section(index));
            let size = section.map_or(0, |section| section.size);
            let size = u32::try_from(size).ok().filter(|&size| size > 0);
            let size = size.ok_or_else(|| fail(&name, "there is no such section in the file".into()))?;
            btf.set_word(id, 2, size);
        }
        for var in &mut vars {
            complete_variable(btf, &name, var, complete_offsets, symbols)?;
        }
    }
    vars.sort_by_key(|var| var.offset);
    let words: Vec<u32> = vars.iter().flat_map(|var| [var.type_id, var.offset, var.size]).collect();
    btf.set_trailer(id, &words);
    Ok(())
}

fn complete_variable(
    btf: &mut Btf,
    section: &str,
    var: &mut SectionVar,
    complete_offset: bool,
    symbols: &HashMap<&str, Symbol<'_>>,
) -> Result<(), ObjectError> {
    let ty = btf.type_or_void(var.type_id);
    if ty.kind() != Kind::Var {
        return Err(fail(section, format!("type [{}] is not a variable", var.type_id)));
    }
    if matches!(ty.linkage(), VAR_STATIC | VAR_EXTERN) {
        return Ok(());
    }
    let symbol = symbols.get(ty.name());
    let symbol = symbol.ok_or_else(|| fail(section, format!("variable '{}' has no symbol", ty.name())))?;
    if complete_offset {
        var.offset = symbol.value as u32;
    }
    if symbol.hidden {
        btf.set_word(var.type_id, 3, VAR_STATIC);
    }
    Ok(())
}

/// Makes the BTF of hidden global functions static: they are then verified in the context of their callers.
pub(crate) fn hide_functions<'a>(btf: &mut Btf, names: impl Iterator<Item = &'a str>) {
    let mut names: HashSet<&str> = names.collect();
    let is_global = |ty: &Type<'_>| ty.kind() == Kind::Func && ty.linkage() == FUNC_GLOBAL;
    // Of several functions of one name, the first.
    let hidden: Vec<u32> =
        btf.types().filter(is_global).filter(|ty| names.remove(ty.name())).map(Type::id).collect();
    for id in hidden {
        btf.set_word(id, 1, (Kind::Func as u32) << 24 | FUNC_STATIC);
    }
}
