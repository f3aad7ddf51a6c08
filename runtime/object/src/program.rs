//! Programs: what becomes of them, and the functions of the file that they are made of.

use std::collections::BTreeMap;

use beeline_isa::Insn;

use crate::btf::ext::{FuncInfo, LineInfo};
use crate::elf::{Elf, Section, Symbol};
use crate::error::ObjectError;
use crate::section::SectionSpec;

/// Instructions that all functions of a file may have together; the kernel's limit for one program is a million.
const INSNS_MAX: u64 = 4 << 20;

/// ELF section of subprograms.
pub(crate) const TEXT_SECTION: &str = ".text";

/// A program, ready to be verified.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ProgramDef {
    /// The name of its function.
    pub name: String,
    /// Its ELF section, without a leading `?`.
    pub section: String,
    /// What the section's name says. `None` only for a program that is not prepared (`autoload` false).
    pub spec: Option<SectionSpec>,
    /// `BPF_PROG_TYPE_*`, 0 = unknown.
    pub prog_type: u32,
    /// `expected_attach_type`.
    pub expected_attach_type: u32,
    /// `BPF_F_*` of program loading.
    pub flags: u32,
    /// The final bytecode, subprograms appended. In `ld_imm64` with `PSEUDO_MAP_FD` or `PSEUDO_MAP_VALUE` the
    /// immediate is the index into [`Object::maps`](crate::Object). When `autoload` is false these are the section's
    /// own, unrelocated instructions.
    pub insns: Vec<Insn>,
    /// Indexes of the maps that instructions refer to, ascending.
    pub map_refs: Vec<u32>,
    /// Where functions start, in instructions of the final bytecode; empty without BTF.
    pub func_info: Vec<FuncInfo>,
    /// Where source lines start, in instructions of the final bytecode; empty without BTF.
    pub line_info: Vec<LineInfo>,
    /// The program itself and what was appended to it.
    pub subprograms: Vec<Subprogram>,
    /// False for `SEC("?...")`: it is not prepared unless [`Options::autoload`](crate::Options) says so.
    pub autoload: bool,
    /// May sleep.
    pub sleepable: bool,
}

/// A function in a program's final bytecode.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Subprogram {
    /// Index of its first instruction.
    pub offset: u32,
    /// Number of its instructions.
    pub len: u32,
    /// Its name.
    pub name: String,
    /// Verified by itself, without regard to its callers: not static and not hidden.
    pub global: bool,
}

/// A function of the file: a program's entry, or a subprogram in `.text`.
#[derive(Clone, Debug)]
pub(crate) struct Function {
    pub name: String,
    /// Index of its section.
    pub section: u32,
    /// Without a leading `?`.
    pub section_name: String,
    /// Its first instruction in the section.
    pub offset: usize,
    /// Its instructions; CO-RE is applied in place.
    pub insns: Vec<Insn>,
    /// Sorted by instruction.
    pub relocs: Vec<FunctionReloc>,
    /// In `.text`.
    pub is_subprogram: bool,
    /// Not static.
    pub global: bool,
    /// Global, but hidden: its BTF becomes static.
    pub hidden: bool,
    pub autoload: bool,
    pub spec: Option<SectionSpec>,
}

/// A relocation of one instruction.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct FunctionReloc {
    /// Index of the instruction in its function.
    pub insn: usize,
    pub kind: RelocKind,
}

/// What an instruction refers to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum RelocKind {
    /// A map, by index.
    Map(usize),
    /// Byte `addend` (plus what the instruction holds) of a data map.
    Data { map: usize, addend: u64 },
    /// The subprogram at this byte of `.text`, plus what the instruction holds.
    Call(u64),
    /// Likewise, its address.
    SubprogramAddress(u64),
    /// The value or address of an extern, by index.
    ExternValue(usize),
    /// A call of an extern function, by index.
    ExternCall(usize),
}

/// Finds every function, sorted by section and offset.
pub(crate) fn functions(
    elf: &Elf<'_>,
    autoload: &BTreeMap<String, bool>,
) -> Result<Vec<Function>, ObjectError> {
    let mut functions = Vec::new();
    let mut total = 0;
    for symbol in elf.symbols.iter().filter(|symbol| symbol.is_function()) {
        let Some(section) = elf.section(symbol.section) else { continue };
        if !section.is_code() || section.data.is_empty() || is_ignored(section.name) {
            continue;
        }
        total += symbol.size / 8;
        if total > INSNS_MAX {
            return Err(ObjectError::TooLarge { what: "the number of instructions", limit: INSNS_MAX });
        }
        functions.push(function(symbol, section, autoload)?);
    }
    functions.sort_by_key(|function| (function.section, function.offset));
    check_names(&functions)?;
    Ok(functions)
}

/// Sections that never hold programs, whatever their flags say.
fn is_ignored(name: &str) -> bool {
    name.starts_with(".debug_") || matches!(name, "license" | "version" | ".maps" | ".BTF" | ".BTF.ext")
}

fn function(
    symbol: &Symbol<'_>,
    section: &Section<'_>,
    autoload: &BTreeMap<String, bool>,
) -> Result<Function, ObjectError> {
    let fail = |reason: String| ObjectError::Program {
        program: symbol.name.to_owned(),
        section: section.name.to_owned(),
        reason,
    };
    let end = symbol.value.checked_add(symbol.size).filter(|&end| end <= section.data.len() as u64);
    let end = end.ok_or_else(|| {
        fail(format!(
            "at offset {:#x}, {} bytes: it crosses the end of the section",
            symbol.value, symbol.size
        ))
    })?;
    if symbol.size == 0 || !symbol.size.is_multiple_of(8) || !symbol.value.is_multiple_of(8) {
        return Err(fail(format!(
            "at offset {:#x}, {} bytes: not a whole number of instructions",
            symbol.value, symbol.size
        )));
    }
    let is_subprogram = section.name == TEXT_SECTION;
    if symbol.is_local() && !is_subprogram {
        return Err(fail("a static function outside of .text is not supported".into()));
    }
    let bytes = &section.data[symbol.value as usize..end as usize];
    let (insns, _) = bytes.as_chunks::<8>();
    let (section_name, optional) = match section.name.strip_prefix('?') {
        Some(rest) => (rest, true),
        None => (section.name, false),
    };
    let autoload = autoload.get(symbol.name).copied().unwrap_or(!optional);
    Ok(Function {
        name: symbol.name.to_owned(),
        section: symbol.section,
        section_name: section_name.to_owned(),
        offset: (symbol.value / 8) as usize,
        insns: insns.iter().map(|&bytes| Insn::from_bytes(bytes)).collect(),
        relocs: Vec::new(),
        is_subprogram,
        global: !symbol.is_local(),
        hidden: !symbol.is_local() && symbol.hidden,
        autoload: autoload || is_subprogram,
        spec: if is_subprogram { None } else { SectionSpec::parse(section_name) },
    })
}

/// Programs are found by name: two of the same name cannot be told apart.
fn check_names(functions: &[Function]) -> Result<(), ObjectError> {
    let mut seen = std::collections::HashSet::new();
    for function in functions.iter().filter(|function| !function.is_subprogram) {
        if !seen.insert(function.name.as_str()) {
            return Err(ObjectError::Program {
                program: function.name.clone(),
                section: function.section_name.clone(),
                reason: "defined twice".into(),
            });
        }
    }
    Ok(())
}

/// The function that has instruction `insn` of a section. Among functions at the same offset the last.
pub(crate) fn function_at(functions: &[Function], section: u32, insn: usize) -> Option<usize> {
    let after = functions.partition_point(|function| (function.section, function.offset) <= (section, insn));
    let index = after.checked_sub(1)?;
    let function = &functions[index];
    (function.section == section && insn < function.offset + function.insns.len()).then_some(index)
}

impl Function {
    /// The relocation of instruction `insn`, if it has one.
    pub(crate) fn reloc(&self, insn: usize) -> Option<RelocKind> {
        let index = self.relocs.binary_search_by_key(&insn, |reloc| reloc.insn).ok()?;
        Some(self.relocs[index].kind)
    }
}
