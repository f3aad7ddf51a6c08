//! Relocations of code: what each instruction refers to, from the file's `.rel` sections.

use std::collections::HashMap;

use beeline_isa::Insn;
use beeline_isa::opcode as o;

use crate::elf::{Elf, Reloc, SHN_LORESERVE, Section, Symbol};
use crate::error::ObjectError;
use crate::externs::Extern;
use crate::map::{MapKind, PlacedMap};
use crate::program::{Function, FunctionReloc, RelocKind, TEXT_SECTION, function_at};

/// What relocations refer to.
pub(crate) struct Context<'a, 'data> {
    elf: &'a Elf<'data>,
    /// Index of `.maps`, of `.text`.
    maps_section: Option<u32>,
    text_section: Option<u32>,
    /// Externs by symbol.
    externs_by_symbol: HashMap<usize, usize>,
    /// Declared maps by their place, data maps by their section.
    declared: HashMap<u64, usize>,
    data: HashMap<u32, usize>,
}

impl<'a, 'data> Context<'a, 'data> {
    /// Collects what relocations may refer to.
    pub(crate) fn new(elf: &'a Elf<'data>, maps: &[PlacedMap], externs: &[Extern]) -> Self {
        let (mut declared, mut data) = (HashMap::new(), HashMap::new());
        for (index, map) in maps.iter().enumerate() {
            match map.def.kind {
                MapKind::Declared => declared.entry(map.offset.into()).or_insert(index),
                MapKind::Data { .. } => data.entry(map.section).or_insert(index),
            };
        }
        Context {
            elf,
            maps_section: elf.section_named(crate::map::MAPS_SECTION),
            text_section: text_section(elf),
            externs_by_symbol: externs.iter().enumerate().map(|(index, ext)| (ext.symbol, index)).collect(),
            declared,
            data,
        }
    }

    /// Gives every function its relocations.
    pub(crate) fn collect(&self, functions: &mut [Function]) -> Result<(), ObjectError> {
        let tables = self.elf.sections.iter().filter(|section| section.kind == object::elf::SHT_REL.0);
        for table in tables {
            let Some(section) = self.elf.section(table.info).filter(|section| section.is_code()) else {
                continue;
            };
            for reloc in self.elf.relocs(table)? {
                self.collect_one(table.info, section, reloc, functions)?;
            }
        }
        for function in functions {
            function.relocs.sort_by_key(|reloc| reloc.insn);
        }
        Ok(())
    }

    fn collect_one(
        &self,
        section_index: u32,
        section: &Section<'_>,
        reloc: Reloc,
        functions: &mut [Function],
    ) -> Result<(), ObjectError> {
        let symbol = self.elf.symbols.get(reloc.symbol);
        let place = Place {
            section: section.name,
            symbol: symbol.map_or("<none>", |symbol| self.elf.symbol_name(symbol)),
            offset: reloc.offset,
        };
        let symbol = symbol.ok_or_else(|| place.fail("no such symbol"))?;
        if !reloc.offset.is_multiple_of(8) || reloc.offset >= section.data.len() as u64 {
            return Err(place.fail("it is not at an instruction"));
        }
        let insn = (reloc.offset / 8) as usize;
        // Instructions that no function has are left over from a weak function that another one overrode.
        let Some(index) = function_at(functions, section_index, insn) else { return Ok(()) };
        let function = &mut functions[index];
        let insn = insn - function.offset;
        let kind = self.kind(&place, symbol, reloc.symbol, &function.insns[insn..])?;
        function.relocs.push(FunctionReloc { insn, kind });
        Ok(())
    }

    /// What the instruction at the start of `insns` refers to.
    fn kind(
        &self,
        place: &Place<'_>,
        symbol: &Symbol<'_>,
        index: usize,
        insns: &[Insn],
    ) -> Result<RelocKind, ObjectError> {
        let insn = insns[0];
        let is_call = insn.code == o::JMP | o::CALL;
        if !is_call && !insn.is_wide() {
            return Err(
                place.fail(format!("code {:#04x} is neither a call nor a 64-bit immediate", insn.code))
            );
        }
        if insn.is_wide() && insns.len() < 2 {
            return Err(place.fail("half of a 64-bit immediate"));
        }
        if symbol.is_extern() {
            let found = self.externs_by_symbol.get(&index).copied();
            let found = found.ok_or_else(|| place.fail("it is no known extern"))?;
            return Ok(if is_call { RelocKind::ExternCall(found) } else { RelocKind::ExternValue(found) });
        }
        if is_call {
            return self.call(place, symbol, insn);
        }
        if symbol.section == 0 || symbol.section >= SHN_LORESERVE {
            return Err(place.fail("a variable that is defined nowhere; forgot to initialise it?"));
        }
        let is_subprogram =
            (symbol.is_local() && symbol.is_section()) || (symbol.is_visible() && symbol.is_function());
        if self.text_section == Some(symbol.section) && is_subprogram {
            if !symbol.value.is_multiple_of(8) || insn.imm % 8 != 0 {
                return Err(place.fail("not the start of a function"));
            }
            return Ok(RelocKind::SubprogramAddress(symbol.value));
        }
        self.data(place, symbol)
    }

    fn call(&self, place: &Place<'_>, symbol: &Symbol<'_>, insn: Insn) -> Result<RelocKind, ObjectError> {
        if insn.src() != o::PSEUDO_CALL {
            return Err(place.fail("a call, but not of a function in this object"));
        }
        if self.text_section != Some(symbol.section) {
            let section = self.elf.section_name(symbol.section);
            return Err(
                place.fail(format!("calls into section '{section}'; only functions in .text can be called"))
            );
        }
        if !symbol.value.is_multiple_of(8) {
            return Err(place.fail("not the start of a function"));
        }
        Ok(RelocKind::Call(symbol.value))
    }

    fn data(&self, place: &Place<'_>, symbol: &Symbol<'_>) -> Result<RelocKind, ObjectError> {
        if self.maps_section == Some(symbol.section) {
            let found = self.declared.get(&symbol.value);
            return Ok(RelocKind::Map(*found.ok_or_else(|| place.fail("no map starts there"))?));
        }
        match self.data.get(&symbol.section) {
            Some(&map) => Ok(RelocKind::Data { map, addend: symbol.value }),
            None => Err(place.fail(format!(
                "it is in section '{}', which is neither a map nor global data",
                self.elf.section_name(symbol.section)
            ))),
        }
    }
}

/// Index of the section that functions are called in.
pub(crate) fn text_section(elf: &Elf<'_>) -> Option<u32> {
    let is_text = |section: &Section<'_>| section.name == TEXT_SECTION && section.is_code();
    elf.sections.iter().rposition(is_text).map(|index| index as u32)
}

/// Where a relocation is.
struct Place<'a> {
    section: &'a str,
    symbol: &'a str,
    offset: u64,
}

impl Place<'_> {
    fn fail(&self, reason: impl Into<String>) -> ObjectError {
        ObjectError::Relocation {
            section: self.section.to_owned(),
            symbol: self.symbol.to_owned(),
            offset: self.offset,
            reason: reason.into(),
        }
    }
}
