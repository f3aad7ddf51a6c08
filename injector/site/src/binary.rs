//! An ELF file for x86-64: segments, sections, identity. Opened once, shared by all probes in it.

use crate::analysis::Analysis;
use crate::dynamic::Dynamic;
use crate::error::OpenError;
use crate::resolve::FunctionRange;
use crate::symbols::{self, SymbolKind, Symbols};
use crate::system_calls::{self, SystemCalls};
use crate::unwind::Unwind;
use object::LittleEndian;
use object::elf;
use object::read::elf::{FileHeader, ProgramHeader, SectionHeader};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

type Header = elf::FileHeader64<LittleEndian>;
const LE: LittleEndian = LittleEndian;

/// A loadable segment (`PT_LOAD`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Segment {
    /// Link-time address of its first byte.
    pub vaddr: u64,
    /// Bytes in memory.
    pub mem_size: u64,
    /// Offset of its first byte in the file.
    pub file_offset: u64,
    /// Bytes in the file.
    pub file_size: u64,
    /// It is mapped executable.
    pub executable: bool,
    /// It is mapped writable.
    pub writable: bool,
}

impl Segment {
    fn holds(&self, vaddr: u64) -> bool {
        vaddr.wrapping_sub(self.vaddr) < self.file_size
    }
}

/// A section; without section headers, a segment in the place of one: its code may hold data, too.
#[derive(Clone, Debug)]
pub(crate) struct Section {
    pub(crate) name: String,
    pub(crate) vaddr: u64,
    pub(crate) bytes: Range<usize>,
    pub(crate) executable: bool,
    pub(crate) kind: u32,
}

impl Section {
    pub(crate) fn holds(&self, vaddr: u64) -> bool {
        vaddr.wrapping_sub(self.vaddr) < self.bytes.len() as u64
    }

    /// It may hold data: no code, or a segment with all that is not written.
    pub(crate) fn may_hold_words(&self) -> bool {
        !self.executable || self.name.is_empty()
    }

    /// A procedure linkage table: entries that jump through the global offset table.
    pub(crate) fn is_linkage_table(&self) -> bool {
        self.name == ".iplt" || self.name == ".plt" || self.name.starts_with(".plt.")
    }
}

/// How an object is put together.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Linkage {
    /// A shared library (or the dynamic loader itself).
    Library,
    /// An executable that a dynamic loader completes.
    Dynamic,
    /// A static executable at a fixed address.
    Static,
    /// A static executable that relocates itself.
    StaticPie,
}

/// Which C library an object is made for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Libc {
    /// The GNU C library.
    Glibc,
    /// musl.
    Musl,
}

/// An ELF executable or shared object for x86-64. All look-ups are lazy, made once, and shared by threads.
pub struct Binary {
    path: Option<PathBuf>,
    data: Vec<u8>,
    kind: u16,
    entry: u64,
    segments: Vec<Segment>,
    sections: Vec<Section>,
    notes: Vec<Range<usize>>,
    interpreter: Option<String>,
    has_tls: bool,
    symbols: OnceLock<Symbols>,
    dynamic: OnceLock<Dynamic>,
    unwind: OnceLock<Unwind>,
    analysis: OnceLock<Analysis>,
    restartable: OnceLock<Vec<Range<u64>>>,
    system_calls: OnceLock<SystemCalls>,
}

impl std::fmt::Debug for Binary {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Binary")
            .field("path", &self.path)
            .field("bytes", &self.data.len())
            .finish_non_exhaustive()
    }
}

impl Binary {
    /// Reads the file at `path`.
    ///
    /// # Errors
    /// [`OpenError`] when it cannot be read or is not an x86-64 executable or shared object.
    pub fn open(path: impl AsRef<Path>) -> Result<Binary, OpenError> {
        let path = path.as_ref();
        let data = std::fs::read(path).map_err(|source| OpenError::Read { path: path.to_owned(), source })?;
        let mut binary = Binary::from_bytes(data)?;
        binary.path = Some(path.to_owned());
        Ok(binary)
    }

    /// Takes the contents of a file.
    ///
    /// # Errors
    /// [`OpenError`] when they are not an x86-64 executable or shared object.
    pub fn from_bytes(data: Vec<u8>) -> Result<Binary, OpenError> {
        check_identity(&data)?;
        let bytes = data.as_slice();
        let header = Header::parse(bytes).map_err(|_| OpenError::Damaged { what: "file header" })?;
        let (kind, entry) = (header.e_type.get(LE), header.e_entry.get(LE));
        let kind_value = kind.0;
        let programs = header
            .program_headers(LE, bytes)
            .map_err(|_| OpenError::Damaged { what: "program headers lie outside the file" })?;
        let segments = load_segments(programs, data.len() as u64)?;
        let mut sections = read_sections(header, bytes);
        if !sections.iter().any(|s| s.executable) {
            sections.extend(segments.iter().map(segment_as_section));
        }
        let ranges = |wanted: u32| {
            programs.iter().filter(move |p| p.p_type(LE).0 == wanted).filter_map(|p| {
                let start = usize::try_from(p.p_offset(LE)).ok()?;
                let end = start.checked_add(usize::try_from(p.p_filesz(LE)).ok()?)?;
                (end <= bytes.len()).then_some(start..end)
            })
        };
        let notes: Vec<_> = ranges(elf::PT_NOTE.0).collect();
        let interpreter = ranges(elf::PT_INTERP.0).next().map(|r| text(&bytes[r]));
        let has_tls = programs.iter().any(|p| p.p_type(LE) == elf::PT_TLS);
        Ok(Binary {
            path: None,
            kind: kind_value,
            entry,
            segments,
            sections,
            notes,
            interpreter,
            has_tls,
            data,
            symbols: OnceLock::new(),
            dynamic: OnceLock::new(),
            unwind: OnceLock::new(),
            analysis: OnceLock::new(),
            restartable: OnceLock::new(),
            system_calls: OnceLock::new(),
        })
    }

    /// Where the file was read from, if it was.
    pub fn path(&self) -> Option<&Path> {
        self.path.as_deref()
    }

    /// The file's bytes.
    pub fn data(&self) -> &[u8] {
        &self.data
    }

    /// The loadable segments in the order of the file.
    pub fn segments(&self) -> &[Segment] {
        &self.segments
    }

    /// Link-time address of the first instruction (`e_entry`).
    pub fn entry(&self) -> u64 {
        self.entry
    }

    /// The object is mapped at its link-time addresses (`ET_EXEC`).
    pub fn is_fixed(&self) -> bool {
        self.kind == elf::ET_EXEC.0
    }

    /// Path of the dynamic loader that it asks for.
    pub fn interpreter(&self) -> Option<&str> {
        self.interpreter.as_deref()
    }

    /// It has a thread-local storage segment.
    pub fn has_tls(&self) -> bool {
        self.has_tls
    }

    /// Names of the libraries that it needs (`DT_NEEDED`).
    pub fn needed(&self) -> &[String] {
        &self.dynamic().needed
    }

    /// `dlclose` never unmaps it (`-z nodelete`).
    pub fn is_never_unloaded(&self) -> bool {
        self.dynamic().is_never_unloaded
    }

    /// Its own name as a library (`DT_SONAME`).
    pub fn soname(&self) -> Option<&str> {
        self.dynamic().soname.as_deref()
    }

    /// The build id (`NT_GNU_BUILD_ID`).
    pub fn build_id(&self) -> Option<&[u8]> {
        self.note(b"GNU", 3)
    }

    /// How it is put together.
    pub fn linkage(&self) -> Linkage {
        if self.interpreter.is_some() {
            Linkage::Dynamic
        } else if self.is_fixed() {
            Linkage::Static
        } else if self.dynamic().is_pie {
            Linkage::StaticPie
        } else {
            Linkage::Library
        }
    }

    /// It is executed, never loaded as a library: at fixed addresses, or marked as a position-independent program (`DF_1_PIE`).
    pub fn is_program(&self) -> bool {
        self.is_fixed() || self.dynamic().is_pie
    }

    /// It was made by the Go tool chain.
    pub fn is_go(&self) -> bool {
        self.section(".go.buildinfo").is_some()
            || self.section(".gopclntab").is_some()
            || self.note(b"Go", 4).is_some()
    }

    /// Which C library it is made for, as far as the file tells.
    pub fn libc(&self) -> Option<Libc> {
        let interpreter = self.interpreter().unwrap_or_default();
        let named = |part: &str| interpreter.contains(part) || self.needed().iter().any(|n| n.contains(part));
        let soname = self.soname().unwrap_or_default();
        let is = |name: &str| soname.starts_with(name);
        let defines = |name: &str| self.symbols().defines(name);
        if named("ld-musl") || named("libc.musl") || is("libc.musl") {
            return Some(Libc::Musl);
        }
        let glibc = named("ld-linux") || named("libc.so.6") || is("libc.so.6") || is("ld-linux");
        if glibc || defines("gnu_get_libc_version") || defines("__libc_setup_tls") {
            return Some(Libc::Glibc);
        }
        (defines("__init_libc") || defines("libc_start_main_stage2")).then_some(Libc::Musl)
    }

    /// Every system call, and where it can be traced.
    pub fn system_calls(&self) -> &SystemCalls {
        self.system_calls.get_or_init(|| system_calls::find(self))
    }

    /// The symbol tables.
    pub fn symbols(&self) -> &Symbols {
        self.symbols.get_or_init(|| Symbols::read(self))
    }

    /// Link-time address of a variable that the file defines. Looks through the whole symbol table at each call.
    pub fn variable(&self, name: &str) -> Option<u64> {
        symbols::variable(self, name)
    }

    /// The function around `vaddr`: the symbol with the smallest range that holds it, else the unwind entry.
    pub fn function_at(&self, vaddr: u64) -> Option<FunctionRange> {
        if let Some(symbol) = self.symbols().covering(vaddr) {
            let end = symbol.vaddr.saturating_add(symbol.size);
            return Some(FunctionRange {
                name: self.symbols().name(&symbol).to_owned(),
                start: symbol.vaddr,
                end,
            });
        }
        let range = self.unwind().covering(vaddr)?;
        Some(FunctionRange { name: String::new(), start: range.start, end: range.end })
    }

    /// Every function that a symbol or an unwind entry shows, by its range, in order of address.
    pub fn functions(&self) -> Vec<Range<u64>> {
        let symbols = self.symbols().iter().filter(|s| s.kind == SymbolKind::Function && s.size > 0);
        let symbols = symbols.map(|s| s.vaddr..s.vaddr.saturating_add(s.size));
        let mut all: Vec<Range<u64>> = symbols.chain(self.unwind().functions().cloned()).collect();
        all.retain(|r| {
            self.is_executable(r.start) && self.section_at(r.start).is_some_and(|s| !s.is_linkage_table())
        });
        all.sort_unstable_by_key(|r| (r.start, r.end));
        all.dedup_by_key(|r| r.start);
        all
    }

    /// Offset in the file of the byte at `vaddr`; none when the file does not hold it.
    pub fn file_offset_of(&self, vaddr: u64) -> Option<u64> {
        let segment = self.segments.iter().find(|s| s.holds(vaddr))?;
        Some(vaddr - segment.vaddr + segment.file_offset)
    }

    /// Link-time address of the byte at `file_offset`. Where two segments share a page of the file (lld, mold), the
    /// executable one is meant.
    pub fn vaddr_of(&self, file_offset: u64) -> Option<u64> {
        let holds = |s: &&Segment| file_offset.wrapping_sub(s.file_offset) < s.file_size;
        let mut candidates = self.segments.iter().filter(holds);
        let first =
            self.segments.iter().filter(|s| s.executable).find(holds).or_else(|| candidates.next())?;
        Some(file_offset - first.file_offset + first.vaddr)
    }

    /// The byte at `vaddr` is mapped executable.
    pub fn is_executable(&self, vaddr: u64) -> bool {
        self.segments.iter().any(|s| s.executable && s.holds(vaddr))
    }

    /// The file's bytes from `vaddr` to the end of its section or segment.
    pub fn bytes_from(&self, vaddr: u64) -> Option<&[u8]> {
        if let Some(section) = self.section_at(vaddr) {
            let skip = (vaddr - section.vaddr) as usize;
            return self.data.get(section.bytes.start + skip..section.bytes.end);
        }
        let segment = self.segments.iter().find(|s| s.holds(vaddr))?;
        let skip = vaddr - segment.vaddr;
        let start = (segment.file_offset + skip) as usize;
        self.data.get(start..(segment.file_offset + segment.file_size) as usize)
    }

    pub(crate) fn sections(&self) -> &[Section] {
        &self.sections
    }

    pub(crate) fn section(&self, name: &str) -> Option<&Section> {
        self.sections.iter().find(|s| s.name == name)
    }

    /// The section with file contents that holds `vaddr`; executable ones first.
    pub(crate) fn section_at(&self, vaddr: u64) -> Option<&Section> {
        let mut holding = self.sections.iter().filter(|s| s.vaddr != 0 && s.holds(vaddr));
        self.sections.iter().find(|s| s.executable && s.holds(vaddr)).or_else(|| holding.next())
    }

    /// Where the global offset table may be: what code for any address computes its data's addresses from.
    pub(crate) fn offset_tables(&self) -> Vec<u64> {
        let sections = [".got.plt", ".got"].into_iter().filter_map(|name| self.section(name));
        let mut all: Vec<u64> = sections.map(|it| it.vaddr).chain(self.dynamic().offset_table).collect();
        all.sort_unstable();
        all.dedup();
        all
    }

    pub(crate) fn dynamic(&self) -> &Dynamic {
        self.dynamic.get_or_init(|| Dynamic::read(self))
    }

    pub(crate) fn unwind(&self) -> &Unwind {
        self.unwind.get_or_init(|| Unwind::read(self))
    }

    pub(crate) fn analysis(&self) -> &Analysis {
        self.analysis.get_or_init(|| Analysis::of(self))
    }

    /// Code that belongs to restartable sequences.
    pub(crate) fn restartable(&self) -> &[Range<u64>] {
        self.restartable.get_or_init(|| crate::rseq::read(self))
    }

    /// Where the program header of this type says that its bytes lie in the file.
    pub(crate) fn program_header(&self, wanted: u32) -> Option<(u64, Range<usize>)> {
        let header = Header::parse(self.data.as_slice()).ok()?;
        let programs = header.program_headers(LE, self.data.as_slice()).ok()?;
        let found = programs.iter().find(|p| p.p_type(LE).0 == wanted)?;
        let start = usize::try_from(found.p_offset(LE)).ok()?;
        let end = start.checked_add(usize::try_from(found.p_filesz(LE)).ok()?)?;
        (end <= self.data.len()).then_some((found.p_vaddr(LE), start..end))
    }

    /// The contents of the first note of this owner and type.
    fn note(&self, owner: &[u8], kind: u32) -> Option<&[u8]> {
        let sections = self.sections.iter().filter(|s| s.kind == elf::SHT_NOTE.0).map(|s| s.bytes.clone());
        self.notes.iter().cloned().chain(sections).find_map(|r| find_note(self.data.get(r)?, owner, kind))
    }
}

fn check_identity(data: &[u8]) -> Result<(), OpenError> {
    if data.get(..4) != Some(b"\x7fELF".as_slice()) {
        return Err(OpenError::NotElf);
    }
    let half = |at: usize| Some(u16::from_le_bytes(data.get(at..at + 2)?.try_into().ok()?));
    let (Some(kind), Some(machine)) = (half(16), half(18)) else {
        return Err(OpenError::Damaged { what: "file header" });
    };
    if data[4] != 2 {
        return Err(OpenError::Not64Bit);
    }
    if data[5] != 1 || machine != elf::EM_X86_64.0 {
        return Err(OpenError::OtherMachine { machine });
    }
    if kind != elf::ET_EXEC.0 && kind != elf::ET_DYN.0 {
        return Err(OpenError::NotLoadable { kind });
    }
    Ok(())
}

fn load_segments(
    programs: &[elf::ProgramHeader64<LittleEndian>],
    file_len: u64,
) -> Result<Vec<Segment>, OpenError> {
    let mut segments = Vec::new();
    for p in programs.iter().filter(|p| p.p_type(LE) == elf::PT_LOAD) {
        let flags = p.p_flags(LE).0;
        let segment = Segment {
            vaddr: p.p_vaddr(LE),
            mem_size: p.p_memsz(LE),
            file_offset: p.p_offset(LE),
            file_size: p.p_filesz(LE),
            executable: flags & 1 != 0,
            writable: flags & 2 != 0,
        };
        let end = segment.file_offset.checked_add(segment.file_size);
        let memory_end = segment.vaddr.checked_add(segment.mem_size.max(segment.file_size));
        if end.is_none_or(|e| e > file_len) || memory_end.is_none() {
            return Err(OpenError::Damaged { what: "a segment lies outside the file" });
        }
        segments.push(segment);
    }
    if segments.is_empty() {
        return Err(OpenError::Damaged { what: "no loadable segment" });
    }
    Ok(segments)
}

/// Sections that are loaded and have contents, and notes. A damaged section table is the same as none: the kernel does not look at
/// it either.
fn read_sections(header: &Header, data: &[u8]) -> Vec<Section> {
    let Ok(table) = header.sections(LE, data) else { return Vec::new() };
    let mut sections = Vec::new();
    for section in table.iter() {
        let flags = section.sh_flags(LE).0;
        let Some((start, len)) = section.file_range(LE) else { continue };
        let (Ok(start), Ok(len)) = (usize::try_from(start), usize::try_from(len)) else { continue };
        let Some(end) = start.checked_add(len).filter(|&e| e <= data.len()) else { continue };
        if flags & elf::SHF_ALLOC.0 == 0 {
            continue;
        }
        let name = table.section_name(LE, section).unwrap_or_default();
        sections.push(Section {
            name: String::from_utf8_lossy(name).into_owned(),
            vaddr: section.sh_addr(LE),
            bytes: start..end,
            executable: flags & elf::SHF_EXECINSTR.0 != 0,
            kind: section.sh_type(LE).0,
        });
    }
    sections
}

fn segment_as_section(segment: &Segment) -> Section {
    let start = segment.file_offset as usize;
    Section {
        name: String::new(),
        vaddr: segment.vaddr,
        bytes: start..start + segment.file_size as usize,
        executable: segment.executable,
        kind: elf::SHT_PROGBITS.0,
    }
}

fn find_note<'a>(mut notes: &'a [u8], owner: &[u8], kind: u32) -> Option<&'a [u8]> {
    loop {
        let word = |at: usize| Some(u32::from_le_bytes(notes.get(at..at + 4)?.try_into().ok()?));
        let (name_len, len, found) = (word(0)? as usize, word(4)? as usize, word(8)?);
        let contents = 12usize.checked_add(name_len.checked_next_multiple_of(4)?)?;
        let end = contents.checked_add(len)?;
        let name = notes.get(12..12usize.checked_add(name_len)?)?;
        if found == kind && name.strip_suffix(b"\0").unwrap_or(name) == owner {
            return notes.get(contents..end);
        }
        notes = notes.get(end.checked_next_multiple_of(4)?..)?;
    }
}

/// Bytes up to the first NUL, as text.
pub(crate) fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|&b| b == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}
