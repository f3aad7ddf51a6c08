//! The ELF file: sections, symbols and relocations of a little-endian relocatable BPF object, checked for range.

use std::collections::HashMap;

use object::LittleEndian as LE;
use object::elf::{self, FileHeader64, SectionHeader64, Sym64};
use object::read::SymbolIndex;
use object::read::elf::{FileHeader, Rel as _, SectionHeader, SectionTable, Sym as _, SymbolTable};

use crate::error::ObjectError;

/// `SHN_LORESERVE`: section indexes from here on are special.
pub(crate) const SHN_LORESERVE: u32 = 0xff00;

/// A section.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Section<'a> {
    /// Its name.
    pub name: &'a str,
    /// `SHT_*`.
    pub kind: u32,
    /// `SHF_*`.
    pub flags: u64,
    /// `sh_info`: of a relocation section the section that it is for.
    pub info: u32,
    /// `sh_size`; equal to `data.len()` but for `SHT_NOBITS`.
    pub size: u64,
    /// Contents; empty for `SHT_NOBITS`.
    pub data: &'a [u8],
}

impl Section<'_> {
    /// Contains instructions.
    pub(crate) fn is_code(&self) -> bool {
        self.kind == elf::SHT_PROGBITS.0 && self.flags & elf::SHF_EXECINSTR.0 != 0
    }

    /// Occupies no bytes of the file.
    pub(crate) fn is_nobits(&self) -> bool {
        self.kind == elf::SHT_NOBITS.0
    }
}

/// A symbol.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Symbol<'a> {
    /// Its name; empty for a section symbol.
    pub name: &'a str,
    /// Offset in its section.
    pub value: u64,
    /// Bytes.
    pub size: u64,
    /// `STB_*`.
    pub bind: u8,
    /// `STT_*`.
    pub kind: u8,
    /// Hidden or internal.
    pub hidden: bool,
    /// Section index or `SHN_*`.
    pub section: u32,
}

impl Symbol<'_> {
    /// Local, global or weak.
    pub(crate) fn is_local(&self) -> bool {
        self.bind == elf::STB_LOCAL.0
    }

    /// Global or weak: other objects see it.
    pub(crate) fn is_visible(&self) -> bool {
        self.bind == elf::STB_GLOBAL.0 || self.is_weak()
    }

    /// May stay undefined.
    pub(crate) fn is_weak(&self) -> bool {
        self.bind == elf::STB_WEAK.0
    }

    /// A function.
    pub(crate) fn is_function(&self) -> bool {
        self.kind == elf::STT_FUNC.0
    }

    /// A variable.
    pub(crate) fn is_object(&self) -> bool {
        self.kind == elf::STT_OBJECT.0
    }

    /// Stands for its section.
    pub(crate) fn is_section(&self) -> bool {
        self.kind == elf::STT_SECTION.0
    }

    /// Defined elsewhere: by the kernel or its configuration.
    pub(crate) fn is_extern(&self) -> bool {
        self.section == u32::from(elf::SHN_UNDEF.0) && self.is_visible() && self.kind == elf::STT_NOTYPE.0
    }
}

/// A relocation.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reloc {
    /// Byte offset in the section that it is for.
    pub offset: u64,
    /// Index of its symbol.
    pub symbol: usize,
}

/// A parsed object file.
#[derive(Debug)]
pub(crate) struct Elf<'a> {
    pub sections: Vec<Section<'a>>,
    pub symbols: Vec<Symbol<'a>>,
    /// The first section of each name.
    by_name: HashMap<&'a str, u32>,
}

/// Checks names, and that all of them together are not absurdly long: many may share one long string.
#[derive(Default)]
struct Names {
    total: usize,
}

impl Names {
    /// Bytes of all names together.
    const MAX: usize = 64 << 20;

    fn check<'a>(&mut self, name: &'a [u8], table: &str, index: usize) -> Result<&'a str, ObjectError> {
        self.total += name.len();
        if self.total > Names::MAX {
            return Err(ObjectError::TooLarge { what: "the length of all names", limit: Names::MAX as u64 });
        }
        std::str::from_utf8(name).map_err(|_| corrupt_at(table, index as u64, "a name is not text"))
    }
}

fn section<'a>(
    bytes: &'a [u8],
    table: &SectionTable<'a, FileHeader64<LE>>,
    index: usize,
    header: &SectionHeader64<LE>,
    names: &mut Names,
) -> Result<Section<'a>, ObjectError> {
    let name =
        table.section_name(LE, header).map_err(|error| corrupt("section headers", index as u64, error))?;
    let name = names.check(name, "section headers", index)?;
    let data = header
        .data(LE, bytes)
        .map_err(|error| corrupt(&format!("section '{name}'"), header.sh_offset(LE), error))?;
    Ok(Section {
        name,
        kind: header.sh_type(LE).0,
        flags: header.sh_flags(LE).0,
        info: header.sh_info(LE),
        size: header.sh_size(LE),
        data,
    })
}

fn symbol<'a>(
    table: &SymbolTable<'a, FileHeader64<LE>>,
    index: SymbolIndex,
    entry: &Sym64<LE>,
    names: &mut Names,
) -> Result<Symbol<'a>, ObjectError> {
    let section = match table.symbol_section(LE, entry, index) {
        Ok(Some(section)) => section.0 as u32,
        _ => u32::from(entry.st_shndx(LE).0),
    };
    let name =
        entry.name(LE, table.strings()).map_err(|error| corrupt("symbol table", index.0 as u64, error))?;
    Ok(Symbol {
        name: names.check(name, "symbol table", index.0)?,
        value: entry.st_value(LE),
        size: entry.st_size(LE),
        bind: entry.st_bind().0,
        kind: entry.st_type().0,
        hidden: matches!(entry.st_visibility(), elf::STV_HIDDEN | elf::STV_INTERNAL),
        section,
    })
}

impl<'a> Elf<'a> {
    /// Reads a BPF object; refuses everything else with the reason.
    pub(crate) fn parse(bytes: &'a [u8]) -> Result<Elf<'a>, ObjectError> {
        check_identity(bytes)?;
        let header = FileHeader64::<LE>::parse(bytes).map_err(|error| corrupt("ELF header", 0, error))?;
        let e_type = header.e_type(LE).0;
        if e_type != elf::ET_REL.0 {
            return Err(ObjectError::NotRelocatable { kind: file_type_name(e_type) });
        }
        let table = header.sections(LE, bytes).map_err(|error| corrupt("section headers", 0, error))?;
        let mut names = Names::default();
        let sections = table
            .enumerate()
            .map(|(index, header)| section(bytes, &table, index.0, header, &mut names))
            .collect::<Result<Vec<_>, _>>()?;
        let mut tables = sections.iter().filter(|section| section.kind == elf::SHT_SYMTAB.0);
        tables.next().ok_or(ObjectError::NoSymbolTable)?;
        if let Some(second) = tables.next() {
            return Err(corrupt_at(second.name, 0, "a second symbol table"));
        }
        let table =
            table.symbols(LE, bytes, elf::SHT_SYMTAB).map_err(|error| corrupt("symbol table", 0, error))?;
        let symbols = table
            .enumerate()
            .map(|(index, entry)| symbol(&table, index, entry, &mut names))
            .collect::<Result<_, _>>()?;
        let mut by_name = HashMap::with_capacity(sections.len());
        for (index, section) in sections.iter().enumerate() {
            by_name.entry(section.name).or_insert(index as u32);
        }
        Ok(Elf { sections, symbols, by_name })
    }

    /// The section with this index.
    pub(crate) fn section(&self, index: u32) -> Option<&Section<'a>> {
        self.sections.get(index as usize)
    }

    /// Name of the section with this index, `<none>` when there is none.
    pub(crate) fn section_name(&self, index: u32) -> &'a str {
        self.section(index).map_or("<none>", |section| section.name)
    }

    /// Index of the first section of this name.
    pub(crate) fn section_named(&self, name: &str) -> Option<u32> {
        self.by_name.get(name).copied()
    }

    /// What to call a symbol in a message: its own name, or its section's.
    pub(crate) fn symbol_name(&self, symbol: &Symbol<'a>) -> &'a str {
        if symbol.name.is_empty() { self.section_name(symbol.section) } else { symbol.name }
    }

    /// The relocations in a `SHT_REL` section.
    pub(crate) fn relocs(&self, section: &Section<'a>) -> Result<Vec<Reloc>, ObjectError> {
        let count = section.data.len() / size_of::<elf::Rel64<LE>>();
        let (relocs, _) = object::pod::slice_from_bytes::<elf::Rel64<LE>>(section.data, count)
            .map_err(|()| corrupt_at(section.name, 0, "misaligned relocations"))?;
        Ok(relocs
            .iter()
            .map(|reloc| Reloc { offset: reloc.r_offset(LE), symbol: reloc.r_sym(LE) as usize })
            .collect())
    }

    /// Contents of a section of any 64-bit little-endian ELF file.
    pub(crate) fn section_of_any(bytes: &'a [u8], name: &str) -> Option<&'a [u8]> {
        let header = FileHeader64::<LE>::parse(bytes).ok()?;
        header.endian().ok()?;
        let table = header.sections(LE, bytes).ok()?;
        let (_, section) = table.section_by_name(LE, name.as_bytes())?;
        section.data(LE, bytes).ok()
    }
}

/// Magic, width, byte order and machine: what a user mixes up.
fn check_identity(bytes: &[u8]) -> Result<(), ObjectError> {
    if !bytes.starts_with(b"\x7fELF") {
        return Err(ObjectError::NotElf);
    }
    if bytes.len() < 64 {
        return Err(corrupt_at("ELF header", bytes.len() as u64, "the file ends here"));
    }
    let machine = if bytes[5] == 2 {
        u16::from_be_bytes([bytes[18], bytes[19]])
    } else {
        u16::from_le_bytes([bytes[18], bytes[19]])
    };
    // Old compilers set no machine at all.
    if machine != elf::EM_BPF.0 && machine != elf::EM_NONE.0 {
        return Err(ObjectError::NotBpf { machine: machine_name(machine) });
    }
    if bytes[4] != elf::ELFCLASS64.0 {
        return Err(ObjectError::Not64Bit);
    }
    match bytes[5] {
        1 => Ok(()),
        2 => Err(ObjectError::BigEndian),
        _ => Err(corrupt_at("ELF header", 5, "unknown byte order")),
    }
}

fn machine_name(machine: u16) -> String {
    match machine {
        3 => "x86 (32-bit)".into(),
        62 => "x86-64".into(),
        40 => "ARM (32-bit)".into(),
        183 => "aarch64".into(),
        243 => "RISC-V".into(),
        other => format!("machine {other}"),
    }
}

fn file_type_name(kind: u16) -> String {
    match kind {
        2 => "an executable".into(),
        3 => "a shared object".into(),
        4 => "a core file".into(),
        other => format!("ELF type {other}"),
    }
}

fn corrupt(place: &str, offset: u64, error: object::read::Error) -> ObjectError {
    ObjectError::Corrupt { place: place.into(), offset, reason: error.to_string().to_lowercase() }
}

pub(crate) fn corrupt_at(place: &str, offset: u64, reason: &str) -> ObjectError {
    ObjectError::Corrupt { place: place.into(), offset, reason: reason.into() }
}
