//! Reading an object from its bytes to programs that are ready to be verified.

use std::sync::Arc;

use beeline_isa::Insn;

use crate::btf::ext::{Ext, LineInfo};
use crate::btf::{Btf, BtfError};
use crate::core_relo::{Resolver, patch};
use crate::elf::Elf;
use crate::error::ObjectError;
use crate::externs::HostFunctionDef;
use crate::link::{Linker, unlinked};
use crate::map::{self, MapDef, MapKind, PlacedMap};
use crate::options::Options;
use crate::program::{self, Function, ProgramDef, function_at};
use crate::relocate::Context;
use crate::{elf, externs, fixup, section};

/// A BPF object: maps to create and programs to verify.
#[derive(Clone, Debug)]
pub struct Object {
    /// Its name.
    pub name: String,
    /// `SEC("license")`, at most 63 bytes; empty when missing, which is not GPL.
    pub license: String,
    /// `SEC("version")`, 0 when missing.
    pub kernel_version: u32,
    /// Maps, in libbpf's order: declared, global data, `.kconfig`.
    pub maps: Vec<MapDef>,
    /// Programs, by section and place in it.
    pub programs: Vec<ProgramDef>,
    /// Functions of the target that its programs may call.
    pub host_functions: Vec<HostFunctionDef>,
    /// The object's own BTF as libbpf would load it: section sizes, offsets and externs filled in.
    pub btf: Option<Arc<Btf>>,
    /// The types that its programs were relocated against: the kernel's, or [`builtin`](crate::btf::builtin) ones.
    pub target_btf: Arc<Btf>,
}

/// A line of source.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SourceLine<'a> {
    /// Path of the file as compiled.
    pub file: &'a str,
    /// Line number, from 1.
    pub line: u32,
    /// Column, from 1; 0 when unknown.
    pub column: u32,
    /// The text of the line.
    pub text: &'a str,
}

impl Object {
    /// Reads an object file. Never panics, whatever the bytes; an error names section, symbol and offset.
    pub fn parse(bytes: &[u8], options: &Options) -> Result<Object, ObjectError> {
        let elf = Elf::parse(bytes)?;
        refuse_unsupported(&elf)?;
        let license = license(&elf);
        let kernel_version = version(&elf)?;
        let mut functions = program::functions(&elf, &options.autoload)?;
        let (mut btf, ext) = type_information(&elf)?;
        let mut externs = externs::collect(&elf, btf.as_mut())?;
        if let Some(btf) = &mut btf {
            fixup::complete_data_sections(&elf, btf)?;
        }
        let (mut maps, kconfig_map) = maps(&elf, btf.as_ref(), options, externs::kconfig_size(&externs))?;
        check_sections(&functions)?;
        Context::new(&elf, &maps, &externs).collect(&mut functions)?;
        map::initial_values(&elf, btf.as_ref(), &mut maps, &functions)?;
        if let Some(btf) = &btf {
            let kconfig = kconfig_map.and_then(|index| match &mut maps[index].def.kind {
                MapKind::Data { contents, .. } => Some(contents.as_mut_slice()),
                MapKind::Declared => None,
            });
            externs::resolve(&mut externs, btf, options, kconfig.unwrap_or_default())?;
            apply_core(&elf, btf, &ext, options, &mut functions)?;
        }
        let linker = Linker::new(&elf, &functions, &externs, kconfig_map, &ext);
        let entries = functions.iter().enumerate().filter(|(_, function)| !function.is_subprogram);
        let programs = entries
            .map(
                |(index, function)| {
                    if function.autoload { linker.link(index) } else { Ok(unlinked(function)) }
                },
            )
            .collect::<Result<Vec<_>, _>>()?;
        if let Some(btf) = &mut btf {
            let hidden = functions.iter().filter(|function| function.is_subprogram && function.hidden);
            fixup::hide_functions(btf, hidden.map(|function| function.name.as_str()));
        }
        Ok(Object {
            name: options.object_name.clone(),
            license,
            kernel_version,
            maps: maps.into_iter().map(|map| map.def).collect(),
            programs,
            host_functions: externs::host_functions(&externs),
            btf: btf.map(Arc::new),
            target_btf: options.target(),
        })
    }

    /// The program of this name.
    pub fn program(&self, name: &str) -> Option<&ProgramDef> {
        self.programs.iter().find(|program| program.name == name)
    }

    /// The map of this name; a data map also by its section's name.
    pub fn map(&self, name: &str) -> Option<&MapDef> {
        let by_name = self.maps.iter().find(|map| map.name == name);
        by_name.or_else(|| self.maps.iter().find(|map| map.section() == Some(name)))
    }

    /// The source of a line record.
    pub fn source_line(&self, info: &LineInfo) -> Option<SourceLine<'_>> {
        let btf = self.btf.as_deref()?;
        Some(SourceLine {
            file: btf.string(info.file_name_off),
            line: info.line(),
            column: info.column(),
            text: btf.string(info.line_off),
        })
    }

    /// The license lets programs call helpers that are for GPL-compatible programs only
    /// (`include/linux/license.h`).
    pub fn is_gpl_compatible(&self) -> bool {
        matches!(
            self.license.as_str(),
            "GPL" | "GPL v2" | "GPL and additional rights" | "Dual BSD/GPL" | "Dual MIT/GPL" | "Dual MPL/GPL"
        )
    }
}

/// Features of libbpf that are recognised and have no meaning here.
fn refuse_unsupported(elf: &Elf<'_>) -> Result<(), ObjectError> {
    for section in elf.sections.iter().filter(|section| section.size > 0) {
        let what = match section.name {
            "maps" => return Err(ObjectError::LegacyMaps),
            ".struct_ops" | ".struct_ops.link" | "?.struct_ops" | "?.struct_ops.link" => {
                "kernel interfaces implemented in BPF (struct_ops) are"
            }
            ".addr_space.1" => "global variables in an arena are",
            ".jumptables" => "jump tables (indirect jumps) are",
            _ => continue,
        };
        if section.kind == object::elf::SHT_PROGBITS.0 && !section.is_code() {
            return Err(ObjectError::Unsupported { section: section.name.to_owned(), what });
        }
    }
    Ok(())
}

fn license(elf: &Elf<'_>) -> String {
    let section = elf.section_named("license").and_then(|index| elf.section(index));
    let bytes = section.map_or(&[][..], |section| section.data);
    let end = bytes.iter().take(63).position(|&byte| byte == 0).unwrap_or(bytes.len().min(63));
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

fn version(elf: &Elf<'_>) -> Result<u32, ObjectError> {
    let Some(section) = elf.section_named("version").and_then(|index| elf.section(index)) else {
        return Ok(0);
    };
    match <[u8; 4]>::try_from(section.data) {
        Ok(bytes) => Ok(u32::from_le_bytes(bytes)),
        Err(_) => Err(elf::corrupt_at("section 'version'", 0, "it is not four bytes")),
    }
}

/// `.BTF` and `.BTF.ext`.
fn type_information(elf: &Elf<'_>) -> Result<(Option<Btf>, Ext), ObjectError> {
    let data = |name: &str| {
        let section = elf.section_named(name).and_then(|index| elf.section(index));
        section.map(|section| section.data)
    };
    let wrap = |section| move |source: BtfError| ObjectError::Btf { section, source };
    let Some(bytes) = data(".BTF") else { return Ok((None, Ext::default())) };
    let btf = Btf::parse_raw(bytes).map_err(wrap(".BTF"))?;
    let ext = match data(".BTF.ext") {
        Some(bytes) => Ext::parse(bytes, &btf).map_err(wrap(".BTF.ext"))?,
        None => Ext::default(),
    };
    Ok((Some(btf), ext))
}

/// All maps, and the index of `.kconfig` among them.
fn maps(
    elf: &Elf<'_>,
    btf: Option<&Btf>,
    options: &Options,
    kconfig_size: u32,
) -> Result<(Vec<PlacedMap>, Option<usize>), ObjectError> {
    const KCONFIG_MAX: u32 = 1 << 20;
    if kconfig_size > KCONFIG_MAX {
        return Err(ObjectError::TooLarge { what: "section .kconfig", limit: KCONFIG_MAX.into() });
    }
    let mut maps = map::declared(elf, btf, options.possible_cpus)?;
    maps.extend(map::global_data(elf, btf, &options.object_name)?);
    if kconfig_size == 0 {
        return Ok((maps, None));
    }
    maps.push(map::kconfig(kconfig_size, btf, &options.object_name));
    let index = maps.len() - 1;
    Ok((maps, Some(index)))
}

/// A program that is to be loaded needs a section name that says what it is.
fn check_sections(functions: &[Function]) -> Result<(), ObjectError> {
    let unknown = functions
        .iter()
        .find(|function| !function.is_subprogram && function.autoload && function.spec.is_none());
    match unknown {
        None => Ok(()),
        Some(function) => Err(ObjectError::UnknownSection {
            program: function.name.clone(),
            section: function.section_name.clone(),
            near: section::nearest(&function.section_name).map(str::to_owned),
        }),
    }
}

/// Adapts every function to the target's types.
fn apply_core(
    elf: &Elf<'_>,
    btf: &Btf,
    ext: &Ext,
    options: &Options,
    functions: &mut [Function],
) -> Result<(), ObjectError> {
    if ext.core_relos.is_empty() {
        return Ok(());
    }
    let target = options.target();
    let mut resolver = Resolver::new(btf, &target);
    for table in &ext.core_relos {
        let missing = || {
            let reason = format!("CO-RE relocations of section '{}', which does not exist", table.section);
            elf::corrupt_at("section '.BTF.ext'", 0, &reason)
        };
        let section = elf.section_named(&table.section).filter(|&index| index != 0).ok_or_else(missing)?;
        for (relo, record) in table.records.iter().enumerate() {
            if record.insn_off % 8 != 0 {
                return Err(elf::corrupt_at(
                    "section '.BTF.ext'",
                    record.insn_off.into(),
                    "not at an instruction",
                ));
            }
            let insn = (record.insn_off / 8) as usize;
            // Of a weak function that was overridden, or of a program that is not loaded.
            let Some(index) = function_at(functions, section, insn) else { continue };
            let function = &mut functions[index];
            if !function.autoload {
                continue;
            }
            let insn = insn - function.offset;
            let insns: &mut [Insn] = &mut function.insns;
            let result =
                resolver.resolve(record).and_then(|resolution| patch::patch(insns, insn, &resolution));
            result.map_err(|source| ObjectError::CoRe {
                program: function.name.clone(),
                section: function.section_name.clone(),
                insn,
                relo,
                source: Box::new(source),
            })?;
        }
    }
    Ok(())
}
