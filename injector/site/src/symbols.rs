//! The symbol tables of a file: dynamic and full, with versions.

use crate::Binary;
use crate::gopclntab::{self, GoFunction};
use object::LittleEndian;
use object::elf;
use object::read::elf::{FileHeader, SectionTable, Sym};
use std::collections::HashMap;
use std::ops::Range;

const LE: LittleEndian = LittleEndian;
type Header = elf::FileHeader64<LittleEndian>;

/// What a symbol stands for.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum SymbolKind {
    /// A function.
    Function,
    /// A function that chooses the implementation at load time (`STT_GNU_IFUNC`).
    Ifunc,
    /// A label without a type, as hand-written assembly has.
    Label,
}

/// A symbol that is defined in the file's code.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Symbol {
    /// Link-time address.
    pub vaddr: u64,
    /// Bytes; 0 when unknown.
    pub size: u64,
    /// What it stands for.
    pub kind: SymbolKind,
    /// It is not local.
    pub global: bool,
    /// It is weak.
    pub weak: bool,
    /// Its version is the default one (`name@@VERSION`), or it has none.
    pub default_version: bool,
    /// Index of its version name; 0 = none.
    version: u16,
    name: Range<usize>,
}

/// The code symbols of a file.
#[derive(Debug, Default)]
pub struct Symbols {
    names: Vec<u8>,
    /// In order of address, the longest first.
    all: Vec<Symbol>,
    /// Running maximum of symbol ends, for look-ups of what covers an address.
    ends: Vec<u64>,
    by_name: HashMap<u64, Vec<u32>>,
    imported: HashMap<u64, ()>,
    versions: Vec<String>,
    stripped: bool,
}

/// Link-time address of the variable (`STT_OBJECT`) of this name that `binary` defines.
pub(crate) fn variable(binary: &Binary, name: &str) -> Option<u64> {
    let data = binary.data();
    let sections = Header::parse(data).ok()?.sections(LE, data).ok()?;
    [elf::SHT_DYNSYM, elf::SHT_SYMTAB].into_iter().find_map(|kind| {
        let table = sections.symbols(LE, data, kind).ok()?;
        let is_wanted = |symbol: &&elf::Sym64<LittleEndian>| {
            symbol.st_type() == elf::STT_OBJECT
                && !symbol.is_undefined(LE)
                && symbol.name(LE, table.strings()).is_ok_and(|it| split_embedded(it).0 == name.as_bytes())
        };
        table.iter().find(is_wanted).map(|symbol| symbol.st_value(LE))
    })
}

/// Differences that a similar name may have.
const NEAR_EDITS_MAX: usize = 3;

impl Symbols {
    /// Reads both tables, and Go's own when it is stripped; a damaged table counts as absent.
    pub(crate) fn read(binary: &Binary) -> Symbols {
        let mut symbols = Symbols { stripped: true, ..Symbols::default() };
        symbols.add_tables(binary.data());
        if symbols.stripped {
            for function in gopclntab::functions(binary) {
                symbols.add_go(&function);
                symbols.stripped = false;
            }
        }
        symbols.index();
        symbols
    }

    /// Every symbol, in order of address.
    pub fn iter(&self) -> impl Iterator<Item = &Symbol> {
        self.all.iter()
    }

    /// A symbol's name without its version.
    pub fn name(&self, symbol: &Symbol) -> &str {
        std::str::from_utf8(self.names.get(symbol.name.clone()).unwrap_or_default()).unwrap_or_default()
    }

    /// The file has no full symbol table.
    pub fn stripped(&self) -> bool {
        self.stripped
    }

    /// A function of this name is defined here.
    pub fn defines(&self, name: &str) -> bool {
        !self.named(name).is_empty()
    }

    /// The symbols of this name; it may carry a version (`name@VERSION`, `name@@VERSION`).
    pub fn named(&self, name: &str) -> Vec<Symbol> {
        let (plain, version) = split_version(name);
        let with_version = |s: &&Symbol| match version {
            None => true,
            Some(wanted) => self.versions.get(s.version as usize).is_some_and(|v| v == wanted),
        };
        let same = |s: &&Symbol| self.name(s) == plain;
        let places = self.by_name.get(&hash(plain.as_bytes())).map(Vec::as_slice).unwrap_or_default();
        places.iter().map(|&i| &self.all[i as usize]).filter(same).filter(with_version).cloned().collect()
    }

    /// The file refers to this symbol without defining it.
    pub fn imports(&self, name: &str) -> bool {
        self.imported.contains_key(&hash(split_version(name).0.as_bytes()))
    }

    /// The function with the smallest range around `vaddr`.
    pub(crate) fn covering(&self, vaddr: u64) -> Option<Symbol> {
        let mut at = self.all.partition_point(|s| s.vaddr <= vaddr);
        let mut best: Option<&Symbol> = None;
        while at > 0 {
            at -= 1;
            if self.ends[at] <= vaddr {
                break;
            }
            let symbol = &self.all[at];
            let covers = vaddr < symbol.vaddr.saturating_add(symbol.size) || symbol.vaddr == vaddr;
            let better = best.is_none_or(|b| self.rank(symbol) < self.rank(b));
            if covers && better && (symbol.size != 0 || symbol.kind != SymbolKind::Label) {
                best = Some(symbol);
            }
        }
        best.cloned()
    }

    /// Symbols at this address.
    pub(crate) fn at(&self, vaddr: u64) -> impl Iterator<Item = &Symbol> {
        let first = self.all.partition_point(|s| s.vaddr < vaddr);
        self.all[first..].iter().take_while(move |s| s.vaddr == vaddr)
    }

    /// Names at this address.
    pub(crate) fn names_at(&self, vaddr: u64) -> impl Iterator<Item = &str> {
        self.at(vaddr).map(|s| self.name(s))
    }

    /// Names that differ little from `name`, at most three, the nearest first.
    pub(crate) fn near(&self, name: &str) -> Vec<String> {
        let (plain, _) = split_version(name);
        if plain.is_empty() {
            return Vec::new();
        }
        let allowed = NEAR_EDITS_MAX.min(1 + plain.len() / 4);
        let mut found: Vec<(usize, &str)> = Vec::new();
        for symbol in &self.all {
            let other = self.name(symbol);
            if let Some(distance) = edits(plain.as_bytes(), other.as_bytes(), allowed) {
                found.push((distance, other));
            }
        }
        found.sort_unstable();
        found.dedup();
        found.into_iter().take(3).map(|(_, name)| name.to_owned()).collect()
    }

    /// Names that look like implementations of an indirect function: `memcpy` is `__memcpy_avx_unaligned` and others.
    pub(crate) fn implementations_of(&self, name: &str) -> Vec<String> {
        let (plain, _) = split_version(name);
        let stem = plain.trim_start_matches('_');
        let mut found: Vec<String> = Vec::new();
        for symbol in self.all.iter().filter(|s| s.kind != SymbolKind::Ifunc) {
            let other = self.name(symbol);
            let rest = other.trim_start_matches('_').strip_prefix(stem);
            if rest.is_some_and(|r| r.starts_with('_')) && !found.iter().any(|f| f == other) {
                found.push(other.to_owned());
            }
        }
        found.truncate(12);
        found
    }

    /// The smaller, the better a symbol describes the code that it covers: the innermost range, the public name (which a
    /// static link may have made local).
    fn rank(&self, symbol: &Symbol) -> (u64, bool, usize, bool, bool, usize) {
        let size = if symbol.size == 0 { u64::MAX } else { symbol.size };
        let name = self.name(symbol);
        let underscores = name.len() - name.trim_start_matches('_').len();
        (size, symbol.kind == SymbolKind::Label, underscores, !symbol.global, symbol.weak, name.len())
    }

    fn add_tables(&mut self, data: &[u8]) {
        let Ok(header) = Header::parse(data) else { return };
        let Ok(sections) = header.sections(LE, data) else { return };
        self.add_table(&sections, data, elf::SHT_DYNSYM);
        let before = self.all.len();
        self.add_table(&sections, data, elf::SHT_SYMTAB);
        self.stripped = self.all.len() == before;
    }

    fn add_go(&mut self, function: &GoFunction<'_>) {
        let start = self.names.len();
        self.names.extend_from_slice(function.name);
        self.all.push(Symbol {
            vaddr: function.vaddr,
            size: function.size,
            kind: SymbolKind::Function,
            global: true,
            weak: false,
            default_version: true,
            version: 0,
            name: start..self.names.len(),
        });
    }

    fn add_table(&mut self, sections: &SectionTable<'_, Header>, data: &[u8], kind: elf::SectionType) {
        let Ok(table) = sections.symbols(LE, data, kind) else { return };
        let versions =
            if kind == elf::SHT_DYNSYM { sections.versions(LE, data).ok().flatten() } else { None };
        for (index, symbol) in table.enumerate() {
            let Ok(name) = symbol.name(LE, table.strings()) else { continue };
            let kind = match symbol.st_type() {
                elf::STT_FUNC => SymbolKind::Function,
                elf::STT_GNU_IFUNC => SymbolKind::Ifunc,
                elf::STT_NOTYPE => SymbolKind::Label,
                _ => continue,
            };
            if name.is_empty() {
                continue;
            }
            let (plain, embedded) = split_embedded(name);
            if symbol.is_undefined(LE) {
                self.imported.insert(hash(plain), ());
                continue;
            }
            if !in_code(sections, symbol) {
                continue;
            }
            let mut version = embedded.map(|(v, _)| v.to_vec());
            let mut default_version = embedded.is_none_or(|(_, default)| default);
            if let Some(table) = &versions {
                let at = table.version_index(LE, index);
                if let Ok(Some(found)) = table.version(at.index()) {
                    version = Some(found.name().to_vec());
                }
                default_version = !at.is_hidden();
            }
            let start = self.names.len();
            self.names.extend_from_slice(plain);
            let version = self.version_index(version);
            self.all.push(Symbol {
                vaddr: symbol.st_value(LE),
                size: symbol.st_size(LE),
                kind,
                global: !symbol.is_local(),
                weak: symbol.is_weak(),
                default_version,
                version,
                name: start..self.names.len(),
            });
        }
    }

    fn version_index(&mut self, version: Option<Vec<u8>>) -> u16 {
        if self.versions.is_empty() {
            self.versions.push(String::new());
        }
        let Some(version) = version else { return 0 };
        let text = String::from_utf8_lossy(&version);
        if let Some(found) = self.versions.iter().position(|v| *v == text) {
            return found as u16;
        }
        if self.versions.len() > usize::from(u16::MAX) {
            return 0;
        }
        self.versions.push(text.into_owned());
        (self.versions.len() - 1) as u16
    }

    fn index(&mut self) {
        self.all.sort_by(|a, b| (a.vaddr, b.size).cmp(&(b.vaddr, a.size)));
        let mut end = 0;
        for (i, symbol) in self.all.iter().enumerate() {
            end = end.max(symbol.vaddr.saturating_add(symbol.size.max(1)));
            self.ends.push(end);
            let name = self.names.get(symbol.name.clone()).unwrap_or_default();
            self.by_name.entry(hash(name)).or_default().push(i as u32);
        }
    }
}

/// The symbol lies in an executable section.
fn in_code(sections: &SectionTable<'_, Header>, symbol: &elf::Sym64<LittleEndian>) -> bool {
    use object::read::elf::SectionHeader;
    let index = symbol.st_shndx(LE);
    let section = sections.section(object::SectionIndex(usize::from(index.0)));
    section.is_ok_and(|s| s.sh_flags(LE).0 & elf::SHF_EXECINSTR.0 != 0)
}

/// A name without its version.
pub(crate) fn plain_name(name: &str) -> &str {
    split_version(name).0
}

fn split_version(name: &str) -> (&str, Option<&str>) {
    match name.find('@') {
        Some(at) if at > 0 => (&name[..at], Some(name[at..].trim_start_matches('@'))),
        _ => (name, None),
    }
}

/// `name@VERSION` and `name@@VERSION` as linkers write them into full symbol tables: name, version, is it the default.
fn split_embedded(name: &[u8]) -> (&[u8], Option<(&[u8], bool)>) {
    match name.iter().position(|&b| b == b'@') {
        Some(at) if at > 0 => {
            let rest = &name[at + 1..];
            match rest.strip_prefix(b"@") {
                Some(version) => (&name[..at], Some((version, true))),
                None => (&name[..at], Some((rest, false))),
            }
        }
        _ => (name, None),
    }
}

/// FNV-1a: names are compared after it.
fn hash(name: &[u8]) -> u64 {
    name.iter().fold(0xcbf2_9ce4_8422_2325, |h, &b| (h ^ u64::from(b)).wrapping_mul(0x0000_0100_0000_01b3))
}

/// Levenshtein distance when it is at most `limit`.
fn edits(a: &[u8], b: &[u8], limit: usize) -> Option<usize> {
    if a.len().abs_diff(b.len()) > limit {
        return None;
    }
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, &x) in a.iter().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        let mut least = row[0];
        for (j, &y) in b.iter().enumerate() {
            let substituted = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(diagonal + 1).min(row[j] + 1);
            least = least.min(row[j + 1]);
        }
        if least > limit {
            return None;
        }
    }
    row.last().copied().filter(|&d| d <= limit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn edit_distance() {
        assert_eq!(edits(b"malloc", b"malloc", 2), Some(0));
        assert_eq!(edits(b"maloc", b"malloc", 2), Some(1));
        assert_eq!(edits(b"mallco", b"malloc", 2), Some(2));
        assert_eq!(edits(b"mallco", b"malloc", 1), None);
        assert_eq!(edits(b"", b"ab", 2), Some(2));
    }

    #[test]
    fn versions_in_names() {
        assert_eq!(split_version("memcpy@@GLIBC_2.14"), ("memcpy", Some("GLIBC_2.14")));
        assert_eq!(split_version("memcpy@GLIBC_2.14"), ("memcpy", Some("GLIBC_2.14")));
        assert_eq!(split_version("memcpy"), ("memcpy", None));
        assert_eq!(split_embedded(b"a@@V"), (b"a".as_slice(), Some((b"V".as_slice(), true))));
        assert_eq!(split_embedded(b"a@V"), (b"a".as_slice(), Some((b"V".as_slice(), false))));
    }
}
