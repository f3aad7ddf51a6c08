//! Maps: those that `SEC(".maps")` declares, and those that hold the object's global data.

use std::collections::{BTreeMap, HashMap, HashSet};

use crate::btf::{Btf, Kind, Member, Type, VAR_GLOBAL, VAR_STATIC};
use crate::elf::{Elf, Section, Symbol};
use crate::error::ObjectError;
use crate::externs::KCONFIG_SECTION;
use crate::program::Function;

/// ELF section of declared maps.
pub(crate) const MAPS_SECTION: &str = ".maps";

/// Bytes of all global data together that an object may have.
const DATA_MAX: u64 = 256 << 20;

/// Characters of a map's or program's name that the kernel keeps (`BPF_OBJ_NAME_LEN` less the NUL).
pub const KERNEL_NAME_LEN: usize = 15;

mod map_type {
    pub(super) const ARRAY: u32 = 2;
    pub(super) const PROG_ARRAY: u32 = 3;
    pub(super) const PERF_EVENT_ARRAY: u32 = 4;
    pub(super) const ARRAY_OF_MAPS: u32 = 12;
    pub(super) const HASH_OF_MAPS: u32 = 13;
    pub(super) const RINGBUF: u32 = 27;
    pub(super) const USER_RINGBUF: u32 = 31;
    /// Types whose keys and values have no BTF: perf event, cgroup and stack trace arrays, maps in maps, device, CPU
    /// and socket maps, queues, stacks, arenas.
    pub(super) const WITHOUT_BTF: [u32; 14] = [4, 7, 8, 12, 13, 14, 15, 16, 17, 18, 22, 23, 25, 33];
}

/// `BPF_F_RDONLY_PROG`: programs cannot write it.
const RDONLY_PROG: u32 = 1 << 7;
/// `BPF_F_MMAPABLE`: user space can map it.
const MMAPABLE: u32 = 1 << 10;

/// A map to create.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MapDef {
    /// Its name: declared, or for global data the one that libbpf gives (`malloc.rodata`).
    pub name: String,
    /// `BPF_MAP_TYPE_*`.
    pub map_type: u32,
    /// Bytes of a key.
    pub key_size: u32,
    /// Bytes of a value.
    pub value_size: u32,
    /// Elements; bytes of a ring buffer (rounded up to a power-of-two number of pages).
    pub max_entries: u32,
    /// `BPF_F_*`.
    pub map_flags: u32,
    /// `map_extra`: number of hash functions of a bloom filter, ...
    pub map_extra: u64,
    /// NUMA node; counts only with `BPF_F_NUMA_NODE`.
    pub numa_node: u32,
    /// Shared by name with other objects (`LIBBPF_PIN_BY_NAME`).
    pub pinned_by_name: bool,
    /// Type of a key in the object's BTF, 0 = none.
    pub btf_key_type_id: u32,
    /// Type of a value, of global data the data section; 0 = none.
    pub btf_value_type_id: u32,
    /// What the maps in a map of maps are.
    pub inner: Option<Box<MapDef>>,
    /// Elements that are there from the start, by index.
    pub initial: Vec<(u32, InitialValue)>,
    /// Declared, or global data.
    pub kind: MapKind,
    /// Constant once loaded: `.rodata`, `.kconfig`.
    pub frozen: bool,
}

/// An element that is in a map from the start.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum InitialValue {
    /// The program of this name, in a program array.
    Program(String),
    /// The map of this name, in a map of maps.
    Map(String),
}

/// Where a map comes from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum MapKind {
    /// `SEC(".maps")`.
    Declared,
    /// Global data: one element, with these contents.
    Data {
        /// The ELF section: `.data`, `.rodata.x`, `.bss`, or `.kconfig`.
        section: String,
        /// Its bytes, `value_size` of them.
        contents: Vec<u8>,
    },
}

impl MapDef {
    /// The name that the kernel shows: the first fifteen characters.
    pub fn kernel_name(&self) -> &str {
        let end = self
            .name
            .char_indices()
            .map(|(at, c)| at + c.len_utf8())
            .take_while(|&end| end <= KERNEL_NAME_LEN)
            .last();
        &self.name[..end.unwrap_or(0)]
    }

    /// User space may map it.
    pub fn is_mmapable(&self) -> bool {
        self.map_flags & MMAPABLE != 0
    }

    /// The ELF section of global data.
    pub fn section(&self) -> Option<&str> {
        match &self.kind {
            MapKind::Declared => None,
            MapKind::Data { section, .. } => Some(section),
        }
    }
}

/// A map with what relocations find it by.
#[derive(Clone, Debug)]
pub(crate) struct PlacedMap {
    pub def: MapDef,
    /// Index of the ELF section that it stands for.
    pub section: u32,
    /// Byte offset in `.maps`.
    pub offset: u32,
    /// Bytes that it occupies in `.maps`.
    size: u32,
    /// Type id of its definition.
    definition: u32,
}

fn fail(map: &str, reason: impl Into<String>) -> ObjectError {
    ObjectError::Map { map: map.to_owned(), reason: reason.into() }
}

/// The maps of `SEC(".maps")`, in order of their place in it.
pub(crate) fn declared(
    elf: &Elf<'_>,
    btf: Option<&Btf>,
    possible_cpus: u32,
) -> Result<Vec<PlacedMap>, ObjectError> {
    let Some(index) = elf.section_named(MAPS_SECTION) else { return Ok(Vec::new()) };
    let size = elf.section(index).map_or(0, |section| section.size);
    let needs = || ObjectError::MissingBtf { needed_by: "SEC(\".maps\")".into() };
    let btf = btf.ok_or_else(needs)?;
    let section =
        btf.types().find(|ty| ty.kind() == Kind::DataSec && ty.name() == MAPS_SECTION).ok_or_else(needs)?;
    let mut maps: Vec<PlacedMap> = Vec::with_capacity(section.vlen());
    let mut names = HashSet::new();
    for var in section.section_vars() {
        let variable = btf.type_or_void(var.type_id);
        let name = variable.name();
        if name.is_empty() {
            return Err(fail("<anon>", "a map without a name"));
        }
        if u64::from(var.offset) + u64::from(var.size) > size {
            return Err(fail(name, format!("at offset {:#x} of section '.maps': out of range", var.offset)));
        }
        if !names.insert(name) {
            return Err(fail(name, "defined twice"));
        }
        let definition = definition_of(btf, variable, var.size)?;
        let mut def = parse_definition(name, definition, Nesting::Outer)?;
        finish(&mut def, possible_cpus);
        maps.push(PlacedMap {
            def,
            section: index,
            offset: var.offset,
            size: var.size,
            definition: definition.id(),
        });
    }
    Ok(maps)
}

/// The struct that defines a map.
fn definition_of<'a>(btf: &'a Btf, variable: Type<'a>, size: u32) -> Result<Type<'a>, ObjectError> {
    let name = variable.name();
    if variable.kind() != Kind::Var {
        return Err(fail(name, format!("unexpected kind {}", variable.kind().name())));
    }
    if variable.linkage() != VAR_GLOBAL {
        return Err(fail(name, "a map must be a global variable, neither static nor extern"));
    }
    let definition = btf.resolve(variable.type_id()).filter(|ty| ty.kind() == Kind::Struct);
    let definition = definition.ok_or_else(|| fail(name, "its type is not a struct"))?;
    if definition.size() > size {
        return Err(fail(name, "its definition is larger than the variable"));
    }
    Ok(definition)
}

fn blank(name: String, kind: MapKind) -> MapDef {
    MapDef {
        name,
        map_type: 0,
        key_size: 0,
        value_size: 0,
        max_entries: 0,
        map_flags: 0,
        map_extra: 0,
        numa_node: 0,
        pinned_by_name: false,
        btf_key_type_id: 0,
        btf_value_type_id: 0,
        inner: None,
        initial: Vec::new(),
        kind,
        frozen: false,
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Nesting {
    Outer,
    Inner,
}

/// Reads the members of a definition: `__uint(max_entries, 16)` and the like.
fn parse_definition(name: &str, definition: Type<'_>, nesting: Nesting) -> Result<MapDef, ObjectError> {
    let btf = definition.btf();
    let mut def = blank(name.to_owned(), MapKind::Declared);
    let last = definition.vlen().saturating_sub(1);
    for (index, member) in definition.members().enumerate() {
        let number = || number_field(btf, name, member);
        match member.name {
            "type" => def.map_type = number()?,
            "max_entries" => def.max_entries = number()?,
            "map_flags" => def.map_flags = number()?,
            "numa_node" => def.numa_node = number()?,
            "key_size" => set_size(name, "key", &mut def.key_size, number()?)?,
            "value_size" => set_size(name, "value", &mut def.value_size, number()?)?,
            "key" => {
                let (id, size) = typed_field(btf, name, member)?;
                set_size(name, "key", &mut def.key_size, size)?;
                def.btf_key_type_id = id;
            }
            "value" => {
                let (id, size) = typed_field(btf, name, member)?;
                set_size(name, "value", &mut def.value_size, size)?;
                def.btf_value_type_id = id;
            }
            "values" if nesting == Nesting::Inner => {
                return Err(fail(name, "multi-level inner maps are not supported"));
            }
            "values" if index != last => return Err(fail(name, "'values' must be the last member")),
            "values" => parse_values(&mut def, btf, member)?,
            "pinning" if nesting == Nesting::Inner => {
                return Err(fail(name, "an inner map cannot be pinned"));
            }
            "pinning" => match number()? {
                value @ 0..=1 => def.pinned_by_name = value == 1,
                value => return Err(fail(name, format!("invalid pinning value {value}"))),
            },
            "map_extra" => def.map_extra = long_field(btf, name, member)?,
            other => return Err(fail(name, format!("unknown field '{other}'"))),
        }
    }
    if def.map_type == 0 {
        return Err(fail(name, "the map's type is not specified"));
    }
    Ok(def)
}

fn set_size(map: &str, what: &str, size: &mut u32, value: u32) -> Result<(), ObjectError> {
    if *size != 0 && *size != value {
        return Err(fail(map, format!("conflicting {what} size {size} != {value}")));
    }
    *size = value;
    Ok(())
}

/// `__uint(name, N)`: a pointer to an array of N.
fn number_field(btf: &Btf, map: &str, member: Member<'_>) -> Result<u32, ObjectError> {
    let pointer = btf.resolve(member.type_id).filter(|ty| ty.kind() == Kind::Ptr);
    let array = pointer.and_then(|ty| btf.get(ty.type_id())).filter(|ty| ty.kind() == Kind::Array);
    let wrong = || fail(map, format!("field '{}' is not made by __uint", member.name));
    Ok(array.ok_or_else(wrong)?.array().len)
}

/// `__uint` or `__ulong(name, N)`: an enum with one value N.
fn long_field(btf: &Btf, map: &str, member: Member<'_>) -> Result<u64, ObjectError> {
    let ty = btf.resolve(member.type_id).filter(|ty| ty.kind().is_enum() && ty.vlen() == 1);
    match ty.and_then(|ty| ty.enumerator(0)) {
        Some(enumerator) => Ok(enumerator.bits),
        None => number_field(btf, map, member).map(u64::from),
    }
}

/// `__type(key, T)`: a pointer to T.
fn typed_field(btf: &Btf, map: &str, member: Member<'_>) -> Result<(u32, u32), ObjectError> {
    let wrong = || fail(map, format!("field '{}' is not made by __type", member.name));
    let pointer = btf.get(member.type_id).filter(|ty| ty.kind() == Kind::Ptr).ok_or_else(wrong)?;
    let size =
        btf.size_of(pointer.type_id()).map_err(|error| fail(map, format!("{}: {error}", member.name)))?;
    Ok((pointer.type_id(), size))
}

/// `__array(values, T)`: inner maps or programs.
fn parse_values(def: &mut MapDef, btf: &Btf, member: Member<'_>) -> Result<(), ObjectError> {
    let is_map_in_map = matches!(def.map_type, map_type::ARRAY_OF_MAPS | map_type::HASH_OF_MAPS);
    if !is_map_in_map && def.map_type != map_type::PROG_ARRAY {
        return Err(fail(&def.name, "only a map of maps or a program array has 'values'"));
    }
    set_size(&def.name, "value", &mut def.value_size, 4)?;
    let array = btf.get(member.type_id).filter(|ty| ty.kind() == Kind::Array && ty.array().len == 0);
    let array = array.ok_or_else(|| fail(&def.name, "'values' is not a zero-sized array"))?.array();
    let pointee = btf
        .resolve(array.element)
        .filter(|ty| ty.kind() == Kind::Ptr)
        .and_then(|ty| btf.resolve(ty.type_id()))
        .ok_or_else(|| fail(&def.name, "'values' has elements that are no pointers"))?;
    match pointee.kind() {
        Kind::FuncProto if !is_map_in_map => Ok(()),
        Kind::Struct if is_map_in_map => {
            let name = format!("{}.inner", def.name);
            def.inner = Some(Box::new(parse_definition(&name, pointee, Nesting::Inner)?));
            Ok(())
        }
        kind => Err(fail(&def.name, format!("'values' points to an unexpected kind {}", kind.name()))),
    }
}

/// What libbpf does to a definition when it creates the map.
fn finish(def: &mut MapDef, possible_cpus: u32) {
    match def.map_type {
        map_type::RINGBUF | map_type::USER_RINGBUF => def.max_entries = ring_size(def.max_entries),
        map_type::PERF_EVENT_ARRAY if def.max_entries == 0 => def.max_entries = possible_cpus,
        _ => {}
    }
    if map_type::WITHOUT_BTF.contains(&def.map_type) {
        def.btf_key_type_id = 0;
        def.btf_value_type_id = 0;
    }
    if let Some(inner) = &mut def.inner {
        finish(inner, possible_cpus);
    }
}

/// The next power-of-two number of pages; unchanged when it is one, is 0, or when there is none.
fn ring_size(bytes: u32) -> u32 {
    const PAGE: u32 = 4096;
    if bytes == 0 || (bytes.is_multiple_of(PAGE) && bytes.is_power_of_two()) {
        return bytes;
    }
    bytes.max(PAGE).checked_next_power_of_two().unwrap_or(bytes)
}

/// One map per section of global data.
pub(crate) fn global_data(
    elf: &Elf<'_>,
    btf: Option<&Btf>,
    object_name: &str,
) -> Result<Vec<PlacedMap>, ObjectError> {
    let mut maps = Vec::new();
    let mut total = 0u64;
    for (index, section) in elf.sections.iter().enumerate() {
        let is = |name: &str| {
            section.name == name || section.name.strip_prefix(name).is_some_and(|rest| rest.starts_with('.'))
        };
        let is_bytes = section.kind == object::elf::SHT_PROGBITS.0 && !section.is_code();
        let read_only = is_bytes && is(".rodata");
        let is_data = read_only || (is_bytes && is(".data")) || (section.is_nobits() && is(".bss"));
        if !is_data || section.size == 0 {
            continue;
        }
        total = total.saturating_add(section.size);
        if total > DATA_MAX {
            return Err(ObjectError::TooLarge { what: "global data", limit: DATA_MAX });
        }
        let contents =
            if section.is_nobits() { vec![0; section.size as usize] } else { section.data.to_vec() };
        maps.push(data_map(section.name, index as u32, contents, read_only, btf, object_name));
    }
    Ok(maps)
}

/// The map of `.kconfig`; its contents are filled in when externs are resolved.
pub(crate) fn kconfig(size: u32, btf: Option<&Btf>, object_name: &str) -> PlacedMap {
    data_map(KCONFIG_SECTION, u32::MAX, vec![0; size as usize], true, btf, object_name)
}

fn data_map(
    section: &str,
    index: u32,
    contents: Vec<u8>,
    read_only: bool,
    btf: Option<&Btf>,
    object_name: &str,
) -> PlacedMap {
    let datasec = btf.and_then(|btf| btf.find_any(section));
    let mmapable = datasec.is_some_and(has_visible_variable);
    let value_size = contents.len() as u32;
    let def = MapDef {
        map_type: map_type::ARRAY,
        key_size: 4,
        value_size,
        max_entries: 1,
        map_flags: if read_only { RDONLY_PROG } else { 0 } | if mmapable { MMAPABLE } else { 0 },
        btf_value_type_id: datasec.map_or(0, Type::id),
        frozen: read_only,
        ..blank(data_map_name(object_name, section), MapKind::Data { section: section.to_owned(), contents })
    };
    PlacedMap { def, section: index, offset: 0, size: 0, definition: 0 }
}

/// Only then is the section's map of use to user space.
fn has_visible_variable(section: Type<'_>) -> bool {
    section.section_vars().any(|var| {
        let variable = section.btf().type_or_void(var.type_id);
        variable.kind() == Kind::Var && variable.linkage() != VAR_STATIC
    })
}

/// libbpf's name of a data map: as much of the object's name as fits before the section's, of which seven
/// characters are reserved; sections with a second dot stand alone.
fn data_map_name(object_name: &str, section: &str) -> String {
    let reserved = section.len().clamp(7, KERNEL_NAME_LEN);
    let is_custom = section.get(1..).is_some_and(|rest| rest.contains('.'));
    let prefix = if is_custom { 0 } else { KERNEL_NAME_LEN - reserved };
    let take = |text: &str, len: usize| text.bytes().take(len).collect::<Vec<u8>>();
    let mut name = take(object_name, prefix);
    name.extend(take(section, reserved));
    name.into_iter()
        .map(
            |byte| {
                if byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'.' { byte as char } else { '_' }
            },
        )
        .collect()
}

/// Reads the elements that maps have from the start, from the relocations of `.maps`.
pub(crate) fn initial_values(
    elf: &Elf<'_>,
    btf: Option<&Btf>,
    maps: &mut [PlacedMap],
    functions: &[Function],
) -> Result<(), ObjectError> {
    let Some(index) = elf.section_named(MAPS_SECTION) else { return Ok(()) };
    let Some(btf) = btf else { return Ok(()) };
    let entries = functions.iter().filter(|function| !function.is_subprogram);
    let names = Names {
        maps: maps.iter().filter(|map| map.section == index).map(|map| map.def.name.clone()).collect(),
        entries: entries
            .map(|entry| (entry.name.as_str(), (entry.section, entry.offset as u64 * 8)))
            .collect(),
    };
    let mut found: BTreeMap<(usize, u32), InitialValue> = BTreeMap::new();
    let is_ours = |table: &&Section<'_>| table.kind == object::elf::SHT_REL.0 && table.info == index;
    for table in elf.sections.iter().filter(is_ours) {
        for reloc in elf.relocs(table)? {
            let symbol = elf.symbols.get(reloc.symbol);
            let name = symbol.map_or("<none>", |symbol| elf.symbol_name(symbol));
            let fail = |reason: &'static str| ObjectError::Relocation {
                section: MAPS_SECTION.into(),
                symbol: name.into(),
                offset: reloc.offset,
                reason: reason.into(),
            };
            let symbol = symbol.ok_or_else(|| fail("no such symbol"))?;
            let map = map_at(maps, index, reloc.offset).ok_or_else(|| fail("it is in no map"))?;
            let value = names.value(&maps[map].def, symbol, name, index).map_err(fail)?;
            let slot = slot_of(btf, &maps[map], reloc.offset).ok_or_else(|| fail("it is not in 'values'"))?;
            found.insert((map, slot), value);
        }
    }
    for ((map, slot), value) in found {
        maps[map].def.initial.push((slot, value));
    }
    Ok(())
}

/// What the elements of maps can be.
struct Names<'a> {
    /// Declared maps.
    maps: HashSet<String>,
    /// Programs: section and byte offset.
    entries: HashMap<&'a str, (u32, u64)>,
}

impl Names<'_> {
    /// The element that `symbol` stands for in `map`.
    fn value(
        &self,
        map: &MapDef,
        symbol: &Symbol<'_>,
        name: &str,
        maps_section: u32,
    ) -> Result<InitialValue, &'static str> {
        match map.map_type {
            map_type::ARRAY_OF_MAPS | map_type::HASH_OF_MAPS => {
                if symbol.section != maps_section || !self.maps.contains(name) {
                    return Err("it is not a map of SEC(\".maps\")");
                }
                if map.map_type == map_type::HASH_OF_MAPS && map.key_size != 4 {
                    return Err("a hash of maps needs a key of 4 bytes to be filled");
                }
                Ok(InitialValue::Map(name.to_owned()))
            }
            map_type::PROG_ARRAY if self.entries.get(name) == Some(&(symbol.section, symbol.value)) => {
                Ok(InitialValue::Program(name.to_owned()))
            }
            map_type::PROG_ARRAY => Err("it is not an entry-point program"),
            _ => Err("only a map of maps or a program array can be filled"),
        }
    }
}

/// The map that has the pointer at byte `offset` of `.maps`. Declared maps come first, in order of their place.
fn map_at(maps: &[PlacedMap], section: u32, offset: u64) -> Option<usize> {
    let after = maps.partition_point(|map| map.section == section && u64::from(map.offset) <= offset);
    let index = after.checked_sub(1)?;
    let end = u64::from(maps[index].offset) + u64::from(maps[index].size);
    (offset.checked_add(8)? <= end).then_some(index)
}

/// Which element of `values` lies at byte `offset` of the section.
fn slot_of(btf: &Btf, map: &PlacedMap, offset: u64) -> Option<u32> {
    let definition = btf.get(map.definition)?;
    let values = definition.members().next_back().filter(|member| member.name == "values")?;
    let into = offset.checked_sub(u64::from(map.offset) + u64::from(values.bit_offset / 8))?;
    if into % 8 != 0 { None } else { u32::try_from(into / 8).ok() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_data_maps() {
        for (object, section, expected) in [
            ("my_object_name", ".rodata", "my_objec.rodata"),
            ("my_object_name", ".bss", "my_objec.bss"),
            ("my_object_name", ".kconfig", "my_obje.kconfig"),
            ("a", ".data", "a.data"),
            ("my_object", ".rodata.abracadabra", ".rodata.abracad"),
            ("a-b", ".data", "a_b.data"),
        ] {
            assert_eq!(data_map_name(object, section), expected);
        }
    }

    #[test]
    fn ring_sizes() {
        for (asked, given) in [
            (0, 0),
            (1, 4096),
            (4096, 4096),
            (4097, 8192),
            (12288, 16384),
            (1 << 20, 1 << 20),
            (u32::MAX, u32::MAX),
        ] {
            assert_eq!(ring_size(asked), given);
        }
    }
}
