//! What an object becomes: maps, programs, subprograms, source lines, initial values, options.

mod support;

use std::path::Path;

use beeline_isa::opcode;
use beeline_object::core_relo::patch::POISON_HELPER;
use beeline_object::link::POISON_KFUNC_BASE;
use beeline_object::{Btf, InitialValue, MapKind, Object, Options, Target};

/// The fixture, read with `options`; `None` without clang.
fn read(name: &str, options: &Options) -> Option<Object> {
    let fixture = support::fixture(name)?;
    let options = Options { object_name: name.into(), ..options.clone() };
    Some(Object::parse(&fixture.bytes, &options).unwrap_or_else(|error| panic!("{name}: {error}")))
}

fn contents<'a>(object: &'a Object, section: &str) -> &'a [u8] {
    match &object.map(section).unwrap_or_else(|| panic!("no {section}")).kind {
        MapKind::Data { contents, .. } => contents,
        MapKind::Declared => panic!("{section} is declared"),
    }
}

#[test]
fn a_plain_object() {
    let Some(object) = read("counter", &Options::default()) else { return };
    assert_eq!(object.license, "Dual MIT/GPL");
    assert!(object.is_gpl_compatible());
    let names: Vec<_> = object.maps.iter().map(|map| map.name.as_str()).collect();
    assert_eq!(names, ["counts", "totals"]);
    let counts = &object.maps[0];
    assert_eq!((counts.key_size, counts.value_size, counts.max_entries), (20, 8, 10240));
    let btf = object.btf.as_deref().expect("types");
    let mut key = vec![0; 20];
    key[0] = 7;
    key[4..8].copy_from_slice(b"bash");
    let value = btf.format_value(counts.btf_key_type_id, &key).expect("a value");
    assert_eq!(value.to_string(), r#"{"pid":7,"comm":"bash"}"#);

    let program = object.program("on_malloc").expect("a program");
    let spec = program.spec.as_ref().expect("a section name");
    let target = Target::User { path: "libc.so.6".into(), symbol: "malloc".into(), offset: 0 };
    assert_eq!((&spec.target, spec.is_return()), (&target, false));
    assert_eq!(program.map_refs, [0]);
    assert!(
        object.program("on_malloc_return").expect("a program").spec.as_ref().expect("a name").is_return()
    );
    let references =
        program.insns.iter().filter(|insn| insn.is_wide() && insn.src() == opcode::PSEUDO_MAP_FD);
    assert_eq!(references.map(|insn| insn.imm).collect::<Vec<_>>(), [0, 0]);
    let line = object.source_line(&program.line_info[0]).expect("a line");
    assert!(line.file.ends_with("counter.bpf.c"), "{line:?}");
    assert!(line.text.contains("on_malloc"), "{line:?}");
}

#[test]
fn global_data() {
    let Some(object) = read("globals", &Options::default()) else { return };
    let flags = |section: &str| object.map(section).map(|map| (map.map_flags, map.frozen));
    let (read_only, mmapable) = (1 << 7, 1 << 10);
    assert_eq!(flags(".rodata"), Some((read_only | mmapable, true)));
    assert_eq!(flags(".data"), Some((mmapable, false)));
    assert_eq!(flags(".bss"), Some((mmapable, false)));
    // Only static variables: of no use to user space.
    assert_eq!(flags(".bss.statics"), Some((0, false)));
    assert_eq!(object.map(".rodata").expect("a map").name, "globals.rodata");
    assert_eq!(object.map(".data.custom").expect("a map").name, ".data.custom");
    assert_eq!(contents(&object, ".data.custom"), 5u64.to_le_bytes());
    assert!(contents(&object, ".bss").iter().all(|&byte| byte == 0));
    let btf = object.btf.as_deref().expect("types");
    let rodata = object.map(".rodata").expect("a map");
    let value = btf
        .format_value(rodata.btf_value_type_id, contents(&object, ".rodata"))
        .expect("a value")
        .to_string();
    assert!(value.starts_with(r#"{".rodata":["#), "{value}");
    assert!(value.contains(r#"{"config":{"name":"beeline","limit":7}}"#), "{value}");
    assert!(value.contains(r#"{"verbose":true}"#), "{value}");
}

#[test]
fn subprograms_are_appended_where_they_are_first_called() {
    let Some(object) = read("subprograms", &Options::default()) else { return };
    let parts = |program: &str| {
        let program = object.program(program).expect("a program");
        let mut next = 0;
        for part in &program.subprograms {
            assert_eq!(part.offset, next, "{}", part.name);
            next += part.len;
        }
        assert_eq!(next as usize, program.insns.len());
        let starts: Vec<_> = program.func_info.iter().map(|info| info.insn_off).collect();
        assert_eq!(starts, program.subprograms.iter().map(|part| part.offset).collect::<Vec<_>>());
        program.subprograms.iter().map(|part| part.name.as_str()).collect::<Vec<_>>()
    };
    assert_eq!(parts("first"), ["first", "leaf"]);
    assert_eq!(parts("second"), ["second", "concealed", "exported", "middle", "leaf", "weak_one"]);
    assert_eq!(parts("third"), ["third", "weak_one", "exported", "middle", "leaf"]);
    let global: Vec<_> =
        object.program("second").expect("a program").subprograms.iter().map(|part| part.global).collect();
    assert_eq!(global, [true, false, true, false, false, true]);
}

#[test]
fn callbacks_are_addresses() {
    let Some(object) = read("callbacks", &Options::default()) else { return };
    let program = object.program("for_each").expect("a program");
    let targets: Vec<_> = program
        .insns
        .iter()
        .enumerate()
        .filter(|(_, insn)| insn.is_wide() && insn.src() == opcode::PSEUDO_FUNC)
        .map(|(pc, insn)| (pc as i32 + insn.imm + 1) as u32)
        .collect();
    assert_eq!(targets.len(), 2);
    assert!(targets.iter().all(|&target| program.subprograms.iter().any(|part| part.offset == target)));
}

#[test]
fn maps_that_are_filled_from_the_start() {
    let Some(object) = read("maps_in_maps", &Options::default()) else { return };
    let initial = |name: &str| object.map(name).expect("a map").initial.clone();
    let map = |name: &str| InitialValue::Map(name.into());
    assert_eq!(initial("outer"), [(1, map("inner_one")), (3, map("inner_two"))]);
    assert_eq!(initial("jumps"), [(2, InitialValue::Program("tail".into()))]);
    assert_eq!(initial("outer_hash"), []);
    let inner = object.map("outer_hash").expect("a map").inner.as_deref().expect("an inner map");
    assert_eq!((inner.map_type, inner.key_size, inner.value_size, inner.max_entries), (1, 8, 4, 16));
}

#[test]
fn programs_that_are_not_loaded_unless_asked_for() {
    let Some(object) = read("core_subprograms", &Options::default()) else { return };
    assert!(!object.program("not_loaded").expect("a program").autoload);
    let mut options = Options::default();
    options.autoload.insert("not_loaded".into(), true);
    options.autoload.insert("one".into(), false);
    let object = read("core_subprograms", &options).expect("as before");
    assert!(!object.program("one").expect("a program").autoload);
    let asked = object.program("not_loaded").expect("a program");
    assert!(asked.autoload && asked.section == "uprobe/a:c");
    // The field does not exist: the access is poisoned.
    assert!(asked.insns.iter().any(|insn| insn.code == 0x85 && insn.imm == POISON_HELPER));
}

#[test]
fn kernel_symbols() {
    let Some(without) = read("ksyms", &Options::default()) else { return };
    let poisoned = |object: &Object| {
        let insns = &object.program("ksyms").expect("a program").insns;
        insns.iter().filter(|insn| insn.code == 0x85 && insn.imm >= POISON_KFUNC_BASE).count()
    };
    // All three functions are weak and do not exist.
    assert_eq!(poisoned(&without), 3);
    let Ok(kernel) = Btf::load_kernel() else {
        println!("skipped: no kernel BTF");
        return;
    };
    let has_functions = kernel.find("bpf_task_from_pid", beeline_object::btf::Kind::Func).is_some();
    let target_btf = Some(std::sync::Arc::new(kernel));
    let with = read("ksyms", &Options { kernel_symbols: true, target_btf, ..Options::default() })
        .expect("as before");
    if has_functions {
        assert_eq!(poisoned(&with), 1);
    }
    let mut addresses = Options::default();
    addresses.kernel_addresses.insert("no_such_symbol".into(), 0xffff_ffff_8123_4567);
    let object = read("ksyms", &addresses).expect("as before");
    let insns = &object.program("ksyms").expect("a program").insns;
    let pair = insns.windows(2).find(|pair| pair[0].is_wide() && pair[0].imm == 0x8123_4567_u32 as i32);
    assert_eq!(pair.expect("its address")[1].imm, -1);
}

#[test]
fn configuration() {
    let mut options = Options { kernel_version: 0x060c05, ..Options::default() };
    options.kconfig.set("CONFIG_STRING", "\"a string that is too long\"");
    options.kconfig.set("CONFIG_TRISTATE", "m");
    let Some(object) = read("kconfig", &options) else { return };
    let map = object.map(".kconfig").expect("a map");
    assert!(map.frozen);
    let btf = object.btf.as_deref().expect("types");
    let value =
        btf.format_value(map.btf_value_type_id, contents(&object, ".kconfig")).expect("a value").to_string();
    for part in [
        r#"{"LINUX_KERNEL_VERSION":396293}"#,
        r#"{"LINUX_HAS_BPF_COOKIE":true}"#,
        r#"{"CONFIG_TRISTATE":"TRI_MODULE"}"#,
        r#"{"CONFIG_STRING":"a string th"}"#,
        r#"{"CONFIG_NOT_THERE":0}"#,
    ] {
        assert!(value.contains(part), "{part} is not in {value}");
    }
}

#[test]
fn without_a_licence() {
    let Some(object) = read("no_license", &Options::default()) else { return };
    assert_eq!((object.license.as_str(), object.is_gpl_compatible()), ("", false));
    assert!(object.maps.iter().all(|map| map.section().is_some()));
}

#[test]
fn without_type_information() {
    if !support::can_compile() {
        return;
    }
    let source = std::fs::read_to_string(support::source_dir().join("globals.bpf.c")).expect("source");
    let bytes = support::compile_text(&source, &["-g0"]).unwrap_or_else(|error| panic!("{error}"));
    let object = Object::parse(&bytes, &Options::default()).expect("an object without BTF");
    assert!(object.btf.is_none());
    let program = object.program("globals").expect("a program");
    assert!(program.func_info.is_empty() && program.line_info.is_empty());
    assert_eq!(object.map(".rodata").expect("a map").btf_value_type_id, 0);
}

#[test]
fn statically_linked() {
    let Some(object) = read("linked", &Options::default()) else { return };
    let names: Vec<_> = object.programs.iter().map(|program| program.name.as_str()).collect();
    assert_eq!(names, ["first", "second", "third"]);
    assert!(object.map("shared").is_some());
    // The weak function of the first part is the one that is kept.
    let parts: Vec<_> = object.programs[1].subprograms.iter().map(|part| part.name.as_str()).collect();
    assert_eq!(parts, ["second", "common"]);
}

#[test]
fn types_of_every_fixture_are_those_that_bpftool_sees() {
    let dir = tempfile::tempdir().expect("temporary directory");
    for fixture in support::fixtures() {
        let path = dir.path().join("object.bpf.o");
        std::fs::write(&path, &fixture.bytes).expect("temporary file");
        let dump = std::process::Command::new("bpftool").args(["btf", "dump", "file"]).arg(&path).output();
        let Some(dump) = dump.ok().filter(|dump| dump.status.success()) else {
            println!("skipped: bpftool is needed");
            return;
        };
        let text = String::from_utf8_lossy(&dump.stdout);
        let btf = Btf::load(Path::new(&path)).expect("types");
        let theirs = text.lines().filter(|line| line.starts_with('['));
        let ours = btf.types().map(|ty| {
            let name = if ty.name().is_empty() { "(anon)" } else { ty.name() };
            format!("[{}] {} '{name}'", ty.id(), ty.kind().name().to_uppercase())
        });
        let mut count = 0;
        for (line, expected) in theirs.zip(ours) {
            assert!(line.starts_with(&expected), "{}: {line} / {expected}", fixture.name);
            count += 1;
        }
        assert_eq!(count + 1, btf.len(), "{}", fixture.name);
    }
}

#[test]
fn kernel_types() {
    let started = std::time::Instant::now();
    let Ok(btf) = Btf::load_kernel() else {
        println!("skipped: no kernel BTF");
        return;
    };
    let opened = started.elapsed();
    let layout = btf.task_layout().expect("task_struct");
    let indexed = started.elapsed();
    println!("{} types, opened in {opened:?}, indexed by {indexed:?}", btf.len());
    for offset in
        [layout.pid, layout.tgid, layout.comm, layout.real_parent, layout.group_leader, layout.start_time]
    {
        assert!(offset < layout.size);
    }
    assert_eq!(layout.tgid, layout.pid + 4);
    assert!(layout.nsproxy_mnt_ns < layout.nsproxy_size && layout.mnt_ns_inum < layout.mnt_ns_size);
    let field = btf.field_of("task_struct", "comm").expect("a field");
    assert_eq!(btf.declare(field.type_id, "comm"), "char comm[16]");
    let task = btf.find("task_struct", beeline_object::btf::Kind::Struct).expect("task_struct");
    assert!(btf.define(task.id()).contains("\tstruct task_struct *real_parent;\n"));
}

#[test]
fn values_read_as_bpftool_prints_them() {
    if !support::can_compile() {
        println!("skipped: clang with -target bpf and libbpf's headers are needed");
        return;
    }
    let text = r##"
#include "kernel.h"
#include <bpf/bpf_helpers.h>
enum colour { RED, GREEN = 5, NEG = -3 };
struct inner { u8 a; short b; };
const volatile struct all {
	int i; unsigned u; bool t; char c; signed char sc; unsigned char uc;
	char text[8]; char full[4]; char empty[4]; u8 bytes[3];
	enum colour e1, e2, e3, e4;
	struct inner s[2]; union { int x; int y; }; struct { int anon; };
	void *p; struct inner *q; __int128 w; unsigned __int128 uw; long l; int m[2][3]; int (*fn)(int); char nl[8];
} all = { -1, 3000000000u, 1, 'x', -5, 200, "hi \"q\"", "abcd", "", { 1, 2, 255 }, RED, GREEN, NEG, 7,
	{ { 1, -2 }, { 3, 4 } }, { .x = 5 }, { 9 }, (void *)0x1234, 0, -1, ((unsigned __int128)1 << 100) + 7, -9,
	{ { 1, 2, 3 }, { 4, 5, 6 } }, 0, "a\nb\t\x01" };
const volatile u8 lone = 7;
SEC("kprobe") int p(void *ctx) { return all.i + lone; }
"##;
    // From `bpftool -j map dump` 7.1.0 of the same object in the kernel.
    let expected = r##"{".rodata":[{"all":{"i":-1,"u":3000000000,"t":true,"c":120,"sc":-5,"uc":200,"text":"hi \"q\"","full":[97,98,99,100],"empty":"","bytes":[1,2,255],"e1":"RED","e2":"GREEN","e3":"NEG","e4":7,"s":[{"a":1,"b":-2},{"a":3,"b":4}],"":{"x":5,"y":5},"":{"anon":9},"p":4660,"q":0,"w":"0xffffffffffffffffffffffffffffffff","uw":"0x10000000000000000000000007","l":-9,"m":[[1,2,3],[4,5,6]],"fn":0,"nl":[97,10,98,9,1,0,0,0]}},{"lone":7}]}"##;
    let bytes = support::compile_text(text, &[]).unwrap_or_else(|error| panic!("{error}"));
    let object = Object::parse(&bytes, &Options::default()).expect("an object");
    let map = object.map(".rodata").expect("a map");
    let btf = object.btf.as_deref().expect("types");
    let value = btf.format_value(map.btf_value_type_id, contents(&object, ".rodata")).expect("a value");
    assert_eq!(value.to_string(), expected);
}

/// The definitions in what `bpftool btf dump file FILE format c` writes.
fn definitions_by_bpftool(file: &Path) -> Option<Vec<String>> {
    let dump = std::process::Command::new("bpftool")
        .args(["btf", "dump", "file"])
        .arg(file)
        .args(["format", "c"])
        .output();
    let dump = dump.ok().filter(|dump| dump.status.success())?;
    let text = String::from_utf8_lossy(&dump.stdout).into_owned();
    let is_definition = |block: &&str| {
        ["struct ", "union ", "enum "].iter().any(|kind| block.starts_with(kind)) && block.contains(" {\n")
    };
    Some(text.split("\n\n").filter(is_definition).map(str::to_owned).collect())
}

/// Without what we leave out: padding written as nameless members, and type tags. Qualifiers in our order.
fn plain(definition: &str) -> String {
    let lines = definition.lines().filter(|line| !line.trim_start().starts_with("long: "));
    let text = lines.collect::<Vec<_>>().join("\n");
    text.replace("__attribute__((btf_type_tag(\"user\"))) ", "").replace("volatile const", "const volatile")
}

#[test]
fn definitions_are_those_that_bpftool_writes() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let mut compared = 0;
    for fixture in support::fixtures() {
        let path = dir.path().join("object.bpf.o");
        std::fs::write(&path, &fixture.bytes).expect("temporary file");
        let Some(definitions) = definitions_by_bpftool(&path) else {
            println!("skipped: bpftool is needed");
            return;
        };
        let btf = Btf::load(&path).expect("types");
        for definition in definitions {
            let head = definition.lines().next().unwrap_or_default();
            let name = head.split(' ').nth(1).unwrap_or_default();
            let Some(ty) = btf.find_any(name) else { continue };
            let ours = btf.define(ty.id());
            assert_eq!(ours, plain(&definition), "{}", fixture.name);
            compared += 1;
        }
    }
    assert!(support::fixtures().is_empty() || compared > 50, "only {compared} definitions");
}
