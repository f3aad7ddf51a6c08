//! The oracle: libbpf itself reads every fixture and example, over a `bpf(2)` that only records, and what it would
//! hand to the kernel must be what this crate makes of the same object: instructions, function and line information,
//! BTF, and maps with their contents.
//!
//! A symbol `syscall` in this binary takes precedence over the C library's, so libbpf's own calls land here.

mod support;

use std::collections::HashMap;
use std::ffi::{CStr, CString, c_int, c_long, c_void};
use std::ptr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use beeline_isa::{Insn, opcode};
use beeline_object::btf::builtin;
use beeline_object::{Btf, Kconfig, MapKind, Object, Options};
use libbpf_sys as sys;
use object::read::{Object as _, ObjectSection as _};
use support::Fixture;

const SYS_BPF: c_long = 321;
const SYS_DUP3: c_long = 292;
const SYS_MEMFD_CREATE: c_long = 319;

/// Only while libbpf loads an object are its calls taken.
static RECORDING: AtomicBool = AtomicBool::new(false);
static RECORD: Mutex<Option<Record>> = Mutex::new(None);

/// What libbpf handed to `bpf(2)`.
#[derive(Default)]
struct Record {
    maps: HashMap<c_int, RecordedMap>,
    programs: Vec<RecordedProgram>,
    btf: Vec<Vec<u8>>,
}

#[derive(Clone, Debug, Default)]
struct RecordedMap {
    map_type: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    map_flags: u32,
    has_inner: bool,
    name: String,
    btf_key: u32,
    btf_value: u32,
    map_extra: u64,
    contents: Option<Vec<u8>>,
    frozen: bool,
}

#[derive(Clone, Debug)]
struct RecordedProgram {
    name: String,
    prog_type: u32,
    attach_type: u32,
    flags: u32,
    insns: Vec<Insn>,
    license: String,
    func_info: Vec<[u32; 2]>,
    line_info: Vec<[u32; 4]>,
}

/// # Safety
///
/// As `syscall(2)`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn syscall(
    number: c_long,
    a: c_long,
    b: c_long,
    c: c_long,
    d: c_long,
    e: c_long,
    f: c_long,
) -> c_long {
    if RECORDING.load(Ordering::Relaxed) {
        if number == SYS_BPF {
            // SAFETY: libbpf passes a command and its attribute.
            return unsafe { fake_bpf(a, b as *const u8) };
        }
        if number == SYS_DUP3 {
            forget_name(a as c_int, b as c_int);
        }
    }
    // SAFETY: the caller's own system call.
    let result = unsafe { raw(number, a, b, c, d, e, f) };
    if (-4095..0).contains(&result) {
        return fail(-result as c_int);
    }
    result
}

fn fail(errno: c_int) -> c_long {
    // SAFETY: the C library's errno of this thread.
    unsafe { *libc::__errno_location() = errno };
    -1
}

/// # Safety
///
/// As the system call itself.
unsafe fn raw(number: c_long, a: c_long, b: c_long, c: c_long, d: c_long, e: c_long, f: c_long) -> c_long {
    let result;
    // SAFETY: the x86-64 system call convention; the kernel clobbers rcx and r11 only.
    unsafe {
        std::arch::asm!("syscall", inlateout("rax") number => result, in("rdi") a, in("rsi") b, in("rdx") c,
            in("r10") d, in("r8") e, in("r9") f, out("rcx") _, out("r11") _);
    }
    result
}

/// libbpf keeps placeholder descriptors and later points them at the map.
fn forget_name(from: c_int, to: c_int) {
    let mut record = RECORD.lock().expect("record");
    let record = record.get_or_insert_default();
    if let Some(map) = record.maps.get(&from).cloned() {
        record.maps.insert(to, map);
    }
}

/// # Safety
///
/// `attr` is the attribute of `command`, as libbpf fills it in.
unsafe fn fake_bpf(command: c_long, attr: *const u8) -> c_long {
    // SAFETY: every field read below is in the attribute of its command.
    let u32_at = |at: usize| unsafe { ptr::read_unaligned(attr.add(at).cast::<u32>()) };
    // SAFETY: as above.
    let u64_at = |at: usize| unsafe { ptr::read_unaligned(attr.add(at).cast::<u64>()) };
    let bytes = |address: u64, len: usize| match len {
        0 => Vec::new(),
        // SAFETY: libbpf's own buffers, of the lengths it says.
        len => unsafe { std::slice::from_raw_parts(address as *const u8, len).to_vec() },
    };
    // SAFETY: NUL-terminated names in the attribute, or a string of libbpf's.
    let text = |at: *const u8| unsafe { CStr::from_ptr(at.cast()).to_string_lossy().into_owned() };
    // SAFETY: a plain system call with a static name.
    let descriptor = || unsafe { raw(SYS_MEMFD_CREATE, c"x".as_ptr() as c_long, 1, 0, 0, 0, 0) };
    let mut record = RECORD.lock().expect("record");
    let record = record.get_or_insert_default();
    match command {
        0 => {
            let fd = descriptor();
            let map = RecordedMap {
                map_type: u32_at(0),
                key_size: u32_at(4),
                value_size: u32_at(8),
                max_entries: u32_at(12),
                map_flags: u32_at(16),
                has_inner: u32_at(20) != 0,
                // SAFETY: inside the attribute.
                name: text(unsafe { attr.add(28) }),
                btf_key: u32_at(52),
                btf_value: u32_at(56),
                map_extra: u64_at(64),
                ..RecordedMap::default()
            };
            record.maps.insert(fd as c_int, map);
            fd
        }
        2 => {
            if let Some(map) = record.maps.get_mut(&(u32_at(0) as c_int)) {
                map.contents = Some(bytes(u64_at(16), map.value_size as usize));
            }
            0
        }
        5 => {
            let words = |address: u64, count: usize, size: usize| {
                let bytes = bytes(address, count * size);
                let record = |record: &[u8]| {
                    record.as_chunks::<4>().0.iter().map(|&word| u32::from_le_bytes(word)).collect::<Vec<_>>()
                };
                bytes.chunks_exact(size.max(4)).map(record).collect::<Vec<_>>()
            };
            let insns = bytes(u64_at(8), u32_at(4) as usize * 8);
            record.programs.push(RecordedProgram {
                prog_type: u32_at(0),
                insns: insns.as_chunks::<8>().0.iter().map(|&bytes| Insn::from_bytes(bytes)).collect(),
                license: text(u64_at(16) as *const u8),
                flags: u32_at(44),
                // SAFETY: inside the attribute.
                name: text(unsafe { attr.add(48) }),
                attach_type: u32_at(68),
                func_info: words(u64_at(80), u32_at(88) as usize, u32_at(76) as usize)
                    .iter()
                    .map(|words| [words[0], words[1]])
                    .collect(),
                line_info: words(u64_at(96), u32_at(104) as usize, u32_at(92) as usize)
                    .iter()
                    .map(|words| [words[0], words[1], words[2], words[3]])
                    .collect(),
            });
            descriptor()
        }
        18 => {
            record.btf.push(bytes(u64_at(0), u32_at(16) as usize));
            descriptor()
        }
        22 => {
            if let Some(map) = record.maps.get_mut(&(u32_at(0) as c_int)) {
                map.frozen = true;
            }
            0
        }
        28 => descriptor(),
        10 | 35 => 0,
        23 => fail(libc::ENOENT),
        _ => fail(libc::EINVAL),
    }
}

/// libbpf's result for one object.
struct Oracle {
    /// Whole programs, as handed to the kernel, by name.
    programs: Vec<RecordedProgram>,
    /// Maps in libbpf's order.
    maps: Vec<RecordedMap>,
    /// Descriptor of each map.
    descriptors: Vec<c_int>,
    btf: Option<Vec<u8>>,
}

/// Loads an object with libbpf. `None` when libbpf refuses it.
fn ask_libbpf(fixture: &Fixture, kconfig: &str, target_btf: Option<&std::path::Path>) -> Option<Oracle> {
    let name = CString::new(fixture.name.as_str()).expect("name");
    let kconfig = CString::new(kconfig).expect("text");
    let target = target_btf.map(|path| CString::new(path.to_str().expect("path")).expect("path"));
    *RECORD.lock().expect("record") = None;
    RECORDING.store(true, Ordering::Relaxed);
    // SAFETY: libbpf's API as documented: the object lives until it is closed, strings outlive the calls.
    let oracle = unsafe {
        sys::libbpf_set_print(None);
        let mut options: sys::bpf_object_open_opts = std::mem::zeroed();
        options.sz = size_of::<sys::bpf_object_open_opts>() as sys::size_t;
        options.object_name = name.as_ptr();
        options.kconfig = kconfig.as_ptr();
        options.btf_custom_path = target.as_ref().map_or(ptr::null(), |path| path.as_ptr());
        let object = sys::bpf_object__open_mem(
            fixture.bytes.as_ptr().cast::<c_void>(),
            fixture.bytes.len() as sys::size_t,
            &options,
        );
        let oracle = if object.is_null() { None } else { load(object) };
        if !object.is_null() {
            sys::bpf_object__close(object);
        }
        oracle
    };
    RECORDING.store(false, Ordering::Relaxed);
    oracle
}

/// # Safety
///
/// `object` was opened and not closed.
unsafe fn load(object: *mut sys::bpf_object) -> Option<Oracle> {
    // SAFETY: as above; pointers from libbpf's iterators are valid while the object is.
    unsafe {
        if sys::bpf_object__load(object) != 0 {
            return None;
        }
        let mut record = RECORD.lock().expect("record");
        let record = record.get_or_insert_default();
        let (mut maps, mut descriptors) = (Vec::new(), Vec::new());
        let mut map = ptr::null_mut();
        loop {
            map = sys::bpf_object__next_map(object, map);
            if map.is_null() {
                break;
            }
            let fd = sys::bpf_map__fd(map);
            maps.push(record.maps.get(&fd).cloned().unwrap_or_default());
            descriptors.push(fd);
        }
        let mut names = Vec::new();
        let mut program = ptr::null_mut();
        loop {
            program = sys::bpf_object__next_program(object, program);
            if program.is_null() {
                break;
            }
            if sys::bpf_program__autoload(program) {
                names.push(CStr::from_ptr(sys::bpf_program__name(program)).to_string_lossy().into_owned());
            }
        }
        // Feature probes come before and in between: from the end, the next of each name is the program.
        let mut recorded = record.programs.iter().rev();
        let mut programs: Vec<_> = names
            .into_iter()
            .rev()
            .map(|name| {
                let short: String = name.chars().take(15).collect();
                let found = recorded.find(|recorded| recorded.name == short).expect("a loaded program");
                RecordedProgram { name, ..found.clone() }
            })
            .collect();
        programs.reverse();
        let has_btf = !sys::bpf_object__btf(object).is_null();
        let btf = record.btf.last().cloned().filter(|_| has_btf);
        Some(Oracle { programs, maps, descriptors, btf })
    }
}

/// Replaces descriptors by indexes.
fn normalise(insns: &[Insn], descriptors: &[c_int]) -> Vec<Insn> {
    insns
        .iter()
        .map(|insn| match insn.src() {
            opcode::PSEUDO_MAP_FD | opcode::PSEUDO_MAP_VALUE if insn.is_wide() => {
                let index = descriptors.iter().position(|&fd| fd == insn.imm).expect("a map of the object");
                Insn { imm: index as i32, ..*insn }
            }
            _ => *insn,
        })
        .collect()
}

fn compare_programs(context: &str, object: &Object, oracle: &Oracle) -> usize {
    let loaded: Vec<_> = object.programs.iter().filter(|program| program.autoload).collect();
    let names: Vec<_> = loaded.iter().map(|program| program.name.as_str()).collect();
    let expected: Vec<_> = oracle.programs.iter().map(|program| program.name.as_str()).collect();
    assert_eq!(names, expected, "{context}: programs");
    for (program, expected) in loaded.iter().zip(&oracle.programs) {
        let context = format!("{context}: program {}", program.name);
        let insns = normalise(&expected.insns, &oracle.descriptors);
        assert_eq!(program.insns.len(), insns.len(), "{context}: number of instructions");
        for (pc, (ours, theirs)) in program.insns.iter().zip(&insns).enumerate() {
            assert_eq!(ours, theirs, "{context}: instruction {pc}");
        }
        assert_eq!(program.prog_type, expected.prog_type, "{context}: type");
        let usdt = program.spec.as_ref().is_some_and(|spec| spec.is_usdt());
        if !usdt {
            assert_eq!(program.expected_attach_type, expected.attach_type, "{context}: attach type");
        }
        assert_eq!(program.flags, expected.flags, "{context}: flags");
        assert_eq!(object.license, expected.license, "{context}: licence");
        let func_info: Vec<_> = program.func_info.iter().map(|info| [info.insn_off, info.type_id]).collect();
        assert_eq!(func_info, expected.func_info, "{context}: function information");
        let line_info: Vec<_> = program
            .line_info
            .iter()
            .map(|info| [info.insn_off, info.file_name_off, info.line_off, info.line_col])
            .collect();
        assert_eq!(line_info, expected.line_info, "{context}: line information");
    }
    loaded.len()
}

fn compare_maps(context: &str, object: &Object, oracle: &Oracle) {
    let names: Vec<_> = object.maps.iter().map(|map| map.kernel_name()).collect();
    let expected: Vec<_> = oracle.maps.iter().map(|map| map.name.as_str()).collect();
    assert_eq!(names, expected, "{context}: maps");
    for (map, expected) in object.maps.iter().zip(&oracle.maps) {
        let context = format!("{context}: map {}", map.name);
        let ours = [map.map_type, map.key_size, map.value_size, map.max_entries, map.map_flags];
        let theirs = [
            expected.map_type,
            expected.key_size,
            expected.value_size,
            expected.max_entries,
            expected.map_flags,
        ];
        assert_eq!(ours, theirs, "{context}: shape");
        assert_eq!(map.map_extra, expected.map_extra, "{context}: extra");
        assert_eq!(map.inner.is_some(), expected.has_inner, "{context}: inner map");
        assert_eq!(
            [map.btf_key_type_id, map.btf_value_type_id],
            [expected.btf_key, expected.btf_value],
            "{context}: BTF"
        );
        assert_eq!(map.frozen, expected.frozen, "{context}: frozen");
        if let MapKind::Data { contents, .. } = &map.kind {
            // libbpf does not write what is zero already.
            let theirs = expected.contents.clone().unwrap_or_else(|| vec![0; contents.len()]);
            assert_eq!(contents, &theirs, "{context}: contents");
        }
    }
}

/// Compares one object; returns the number of programs.
fn compare(fixture: &Fixture, options: &Options, kconfig: &str, target: Option<&std::path::Path>) -> usize {
    let oracle = ask_libbpf(fixture, kconfig, target);
    let options = Options { object_name: fixture.name.clone(), ..options.clone() };
    let ours = Object::parse(&fixture.bytes, &options);
    let context = &fixture.name;
    let (object, oracle) = match (ours, oracle) {
        (Ok(object), Some(oracle)) => (object, oracle),
        (Err(error), None) => {
            println!("{context}: both refuse it: {error}");
            return 0;
        }
        (Ok(_), None) => panic!("{context}: libbpf refuses it, we do not"),
        (Err(error), Some(_)) => panic!("{context}: libbpf takes it, we do not: {error}"),
    };
    let count = compare_programs(context, &object, &oracle);
    compare_maps(context, &object, &oracle);
    if let (Some(ours), Some(theirs)) = (&object.btf, &oracle.btf) {
        compare_btf(context, ours, theirs);
    }
    assert_eq!(object.btf.is_some(), oracle.btf.is_some(), "{context}: BTF");
    count
}

fn compare_btf(context: &str, ours: &Btf, theirs: &[u8]) {
    let expected = Btf::parse(theirs).unwrap_or_else(|error| panic!("{context}: libbpf's BTF: {error}"));
    assert_eq!(ours.len(), expected.len(), "{context}: number of types");
    for (ours, theirs) in ours.types().zip(expected.types()) {
        let (id, ours, theirs) = (ours.id(), ours.describe(), theirs.describe());
        assert_eq!(ours, theirs, "{context}: type [{id}]");
    }
}

/// Values that the fixtures' configuration externs have.
const KCONFIG: &str = "CONFIG_BOOL=y\nCONFIG_TRISTATE=m\nCONFIG_CHAR=n\nCONFIG_STRING=\"longer than it fits\"\nCONFIG_LONG=0x123456789a\nCONFIG_SHORT=-7\n";

fn options(target: Option<Btf>) -> Options {
    let mut kconfig = Kconfig::of_this_machine();
    for line in KCONFIG.lines() {
        let (name, value) = line.split_once('=').expect("an assignment");
        kconfig.set(name, value);
    }
    Options { target_btf: target.map(Arc::new), kconfig, kernel_symbols: true, ..Options::of_this_machine() }
}

#[test]
fn bytecode_and_maps_equal_libbpfs() {
    let mut fixtures = support::fixtures().to_vec();
    if fixtures.is_empty() {
        return;
    }
    fixtures.extend(examples());
    fixtures.extend(fixtures.iter().find(|fixture| fixture.name == "core_types").map(with_type_matches));
    let has_config = !Kconfig::of_this_machine().is_empty();
    let mut compared = 0;
    match Btf::load_kernel() {
        Err(error) => println!("skipped: the kernel's own types: {error}"),
        Ok(kernel) => {
            let mut options = options(Some(kernel));
            options.has_syscall_wrapper = libbpf_sees_wrapper(&options);
            for fixture in fixtures.iter().filter(|fixture| has_config || !needs_config(fixture)) {
                compared += compare(fixture, &options, KCONFIG, None);
            }
            compared += compare_given_objects(&options);
        }
    }
    // The same against the built-in types. libbpf looks up kernel symbols in the kernel's types even then.
    let file = tempfile::NamedTempFile::new().expect("temporary file");
    std::fs::write(file.path(), builtin::btf().to_bytes()).expect("temporary file");
    let mut options = options(Some((*builtin::btf()).clone()));
    options.has_syscall_wrapper = libbpf_sees_wrapper(&options);
    for fixture in
        fixtures.iter().filter(|fixture| fixture.name != "ksyms" && (has_config || !needs_config(fixture)))
    {
        compared += compare(fixture, &options, KCONFIG, Some(file.path()));
    }
    println!("{compared} programs equal libbpf's");
    assert!(compared > 60, "only {compared} programs were compared");
}

/// Objects of other projects, from the folder that `BEELINE_ORACLE_OBJECTS` names. What libbpf refuses (no such kernel
/// function to attach to) says nothing of us.
fn compare_given_objects(options: &Options) -> usize {
    let Some(dir) = std::env::var_os("BEELINE_ORACLE_OBJECTS") else { return 0 };
    let mut compared = 0;
    for entry in std::fs::read_dir(dir).expect("the folder").flatten() {
        let name = entry.file_name().to_string_lossy().replace(".bpf.o", "");
        let fixture = Fixture { name, bytes: std::fs::read(entry.path()).expect("an object") };
        if ask_libbpf(&fixture, KCONFIG, None).is_none() {
            let ours = Object::parse(&fixture.bytes, options);
            println!(
                "{}: libbpf refuses it; we: {:?}",
                fixture.name,
                ours.map(|object| object.programs.len())
            );
            continue;
        }
        compared += compare(&fixture, options, KCONFIG, None);
    }
    compared
}

/// The fixture with each question whether a type exists turned into whether it matches, which clang asks from version
/// 15 on only.
fn with_type_matches(fixture: &Fixture) -> Fixture {
    const TYPE_EXISTS: u32 = 8;
    const TYPE_MATCHES: u32 = 12;
    let mut bytes = fixture.bytes.clone();
    let file =
        object::read::elf::ElfFile64::<object::LittleEndian>::parse(&*fixture.bytes).expect("an ELF file");
    let section = file.section_by_name(".BTF.ext").expect("relocations");
    let start = section.file_range().expect("a section with bytes").0 as usize;
    let word = |at: usize| u32::from_le_bytes(fixture.bytes[at..at + 4].try_into().expect("four bytes"));
    let table = start + word(start + 4) as usize + word(start + 24) as usize;
    let end = table + word(start + 28) as usize;
    // Record size, then for each section: name, number of records, records.
    let (mut at, mut changed) = (table + 4, 0);
    while at < end {
        let count = word(at + 4) as usize;
        for record in 0..count {
            let kind = at + 8 + 16 * record + 12;
            if word(kind) == TYPE_EXISTS {
                bytes[kind..kind + 4].copy_from_slice(&TYPE_MATCHES.to_le_bytes());
                changed += 1;
            }
        }
        at += 8 + 16 * count;
    }
    assert!(changed >= 4, "{changed} questions");
    Fixture { name: "core_matches".into(), bytes }
}

/// libbpf insists on a configuration file when an extern is in none of what it was given.
fn needs_config(fixture: &Fixture) -> bool {
    fixture.name == "kconfig" || fixture.name.starts_with("linked")
}

/// libbpf finds out by trying a kprobe, which may be forbidden.
fn libbpf_sees_wrapper(options: &Options) -> bool {
    let Some(fixture) = support::fixture("kconfig") else { return true };
    let Some(oracle) = ask_libbpf(fixture, KCONFIG, None) else { return true };
    let theirs =
        oracle.maps.iter().find_map(|map| map.name.ends_with(".kconfig").then(|| map.contents.clone()));
    let object_name = fixture.name.clone();
    let options = Options { has_syscall_wrapper: true, object_name, ..options.clone() };
    let object = Object::parse(&fixture.bytes, &options).expect("the kconfig fixture");
    let ours = object.map(".kconfig").map(|map| map.kind.clone());
    matches!((ours, theirs.flatten()), (Some(MapKind::Data { contents, .. }), Some(theirs)) if contents == theirs)
}

/// The project's example programs.
fn examples() -> Vec<Fixture> {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples");
    let dir = tempfile::tempdir().expect("temporary directory");
    let mut found = Vec::new();
    for source in support::sources(&root) {
        let object = dir.path().join("example.o");
        match support::compile(&source, &object, &[]) {
            Ok(()) => {
                let name = source.file_name().expect("a name").to_string_lossy().replace(".bpf.c", "");
                found.push(Fixture { name, bytes: std::fs::read(&object).expect("compiled") });
            }
            Err(error) => println!("skipped: {}: {error}", source.display()),
        }
    }
    found
}
