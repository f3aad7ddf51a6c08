//! What is refused, and how the reason reads: it names the section, symbol, offset or map at fault.

mod support;

use beeline_object::{Object, Options};

/// What parsing `bytes` with `options` says.
fn message(bytes: &[u8], options: &Options) -> String {
    match Object::parse(bytes, options) {
        Ok(_) => "accepted".into(),
        Err(error) => error.to_string(),
    }
}

/// The message for a program text.
fn compiled(text: &str, flags: &[&str]) -> Option<String> {
    if !support::can_compile() {
        println!("skipped: clang with -target bpf and libbpf's headers are needed");
        return None;
    }
    let text = format!("#include \"kernel.h\"\n#include <bpf/bpf_helpers.h>\n{text}\n");
    let bytes = support::compile_text(&text, flags).unwrap_or_else(|error| panic!("{error}"));
    Some(message(&bytes, &Options::default()))
}

/// Every part of `expected` is in the message.
#[track_caller]
fn check(text: &str, flags: &[&str], expected: &[&str]) {
    let Some(message) = compiled(text, flags) else { return };
    for part in expected {
        assert!(message.contains(part), "'{part}' is not in: {message}");
    }
}

const PROGRAM: &str = "SEC(\"uprobe\") int program(void *ctx) { return 0; }";

#[test]
fn files_that_are_no_bpf_objects() {
    let check = |bytes: &[u8], expected: &str| assert_eq!(message(bytes, &Options::default()), expected);
    check(b"", "not an ELF file");
    check(b"#!/bin/sh\n", "not an ELF file");
    check(b"\x7fELF", "ELF header: at offset 0x4: the file ends here");
    let own = std::fs::read("/proc/self/exe").expect("this test");
    check(&own, "not a BPF object: it is for x86-64; compile with clang -g -O2 -target bpf");
}

#[test]
fn changed_headers() {
    let Some(fixture) = support::fixture("counter") else { return };
    let changed = |at: usize, byte: u8| {
        let mut bytes = fixture.bytes.clone();
        bytes[at] = byte;
        message(&bytes, &Options::default())
    };
    assert_eq!(changed(4, 1), "not a 64-bit ELF file");
    assert_eq!(changed(16, 3), "not a relocatable object but a shared object");
    assert!(changed(5, 7).contains("unknown byte order"), "{}", changed(5, 7));
    // The offset of the section headers.
    assert!(changed(45, 0xff).contains("section headers"), "{}", changed(45, 0xff));
}

#[test]
fn big_endian() {
    let Some(message) = compiled(PROGRAM, &["-target", "bpfeb"]) else { return };
    assert!(message.contains("big-endian"), "{message}");
}

#[test]
fn no_type_information() {
    let map = "struct { __uint(type, BPF_MAP_TYPE_HASH); __type(key, int); __type(value, int); } m SEC(\".maps\");\n\
               SEC(\"uprobe\") int program(void *ctx) { int k = 0; return bpf_map_lookup_elem(&m, &k) != 0; }";
    check(map, &["-g0"], &["no BTF", ".maps", "clang -g"]);
    check(
        "extern int CONFIG_X __kconfig; SEC(\"uprobe\") int p(void *ctx) { return CONFIG_X; }",
        &["-g0"],
        &["no BTF", "extern 'CONFIG_X'"],
    );
    // Programs without maps need none.
    let Some(message) = compiled(PROGRAM, &["-g0"]) else { return };
    assert_eq!(message, "accepted");
}

#[test]
fn sections() {
    check(
        "SEC(\"uprob/a:b\") int program(void *ctx) { return 0; }",
        &[],
        &["program 'program'", "SEC(\"uprob/a:b\")", "such as \"uprobe\""],
    );
    check("SEC(\"maps\") int legacy = 1;", &[], &["section 'maps'", "legacy"]);
    check("SEC(\".struct_ops\") long operations = 1;", &[], &["section '.struct_ops'", "not supported"]);
    check("SEC(\".addr_space.1\") long arena = 1;", &[], &["section '.addr_space.1'", "arena"]);
    check("short number SEC(\"version\") = 1;", &[], &["section 'version'", "four bytes"]);
}

#[test]
fn programs() {
    check(
        "SEC(\"uprobe\") static int program(void *ctx) { return 0; }\nvoid *keep = program;",
        &[],
        &["section 'uprobe'", "program 'program'", "static"],
    );
    check(
        "SEC(\"uprobe\") __noinline int callee(void *ctx) { asm volatile(\"\"); return 1; }\n\
         SEC(\"kprobe\") int program(void *ctx) { return callee(ctx); }",
        &[],
        &["section 'kprobe'", "'callee'", "section 'uprobe'", "offset"],
    );
}

#[test]
fn maps() {
    let map = |body: &str| format!("struct {{ {body} }} m SEC(\".maps\");\n{PROGRAM}");
    let cases = [
        ("__uint(max_entries, 1);", "type is not specified"),
        ("__uint(type, 1); __uint(colour, 1);", "unknown field 'colour'"),
        ("__uint(type, 1); int max_entries;", "field 'max_entries' is not made by __uint"),
        ("__uint(type, 1); __uint(key_size, 8); __type(key, int);", "conflicting key size 8 != 4"),
        ("__uint(type, 1); __type(value, struct nothing);", "value"),
        ("__uint(type, 1); __uint(pinning, 7);", "invalid pinning value 7"),
        ("__uint(type, 1); __array(values, int(void));", "only a map of maps or a program array"),
    ];
    for (body, expected) in cases {
        check(&map(body), &[], &["map 'm'", expected]);
    }
    check(
        &format!("static struct {{ __uint(type, 1); }} m SEC(\".maps\") __attribute__((used));\n{PROGRAM}"),
        &[],
        &["map 'm'", "global"],
    );
}

#[test]
fn externs() {
    let uses =
        |declaration: &str| format!("{declaration}; SEC(\"uprobe\") long p(void *ctx) {{ return (long)X; }}");
    let cases = [
        ("extern int CONFIG_X __kconfig;\n#define X CONFIG_X\n", "extern 'CONFIG_X'", "__weak"),
        ("extern int LINUX_WHAT __kconfig;\n#define X LINUX_WHAT\n", "extern 'LINUX_WHAT'", "virtual"),
        (
            "extern struct { int x, y, z; } CONFIG_X __kconfig;\n#define X CONFIG_X.x\n",
            "extern 'CONFIG_X'",
            "only bool",
        ),
        ("extern const void symbol __ksym;\n#define X &symbol\n", "extern 'symbol'", "does not exist here"),
        (
            "extern long function(void) __ksym;\n#define X function()\n",
            "extern 'function'",
            "cannot be called here",
        ),
        ("extern int somewhere SEC(\".else\");\n#define X somewhere\n", "extern 'somewhere'", ".else"),
    ];
    for (declaration, name, reason) in cases {
        check(&uses(declaration), &[], &[name, reason]);
    }
}

#[test]
fn values_of_configuration_that_do_not_fit() {
    if !support::can_compile() {
        return;
    }
    let parse = |ty: &str, value: &str| {
        let text = format!(
            "#include \"kernel.h\"\n#include <bpf/bpf_helpers.h>\nextern {ty} CONFIG_X __kconfig;\n\
             SEC(\"uprobe\") long p(void *ctx) {{ return *(char *)&CONFIG_X; }}\n"
        );
        let bytes = support::compile_text(&text, &[]).unwrap_or_else(|error| panic!("{error}"));
        let mut options = Options::default();
        options.kconfig.set("CONFIG_X", value);
        message(&bytes, &options)
    };
    assert_eq!(parse("short", "-32768"), "accepted");
    assert!(parse("short", "32768").contains("does not fit into 2 bytes"));
    assert!(parse("unsigned char", "256").contains("does not fit into 1 bytes"));
    assert!(parse("int", "y").contains("implies a bool"));
    assert!(parse("bool", "m").contains("implies a tristate"));
    assert!(parse("int", "12x").contains("not a valid integer"));
    assert!(parse("int", "\"text\"").contains("implies a char array"));
    assert_eq!(parse("char", "0x41"), "accepted");
}

#[test]
fn core_relocations() {
    // The instruction does not hold what the relocation says: its immediate was changed.
    let Some(fixture) = support::fixture("core_types") else { return };
    let mut refused = 0;
    for at in (0..fixture.bytes.len() - 8).step_by(8) {
        let mut bytes = fixture.bytes.clone();
        bytes[at + 4] ^= 0x40;
        let message = message(&bytes, &Options::default());
        if message.contains("CO-RE relocation ") {
            assert!(message.contains("instruction ") && message.contains("section 'uprobe'"), "{message}");
            refused += 1;
        }
    }
    assert!(refused > 5, "only {refused} changes were noticed");
}

#[test]
fn names_that_cannot_be_read() {
    let Some(fixture) = support::fixture("counter") else { return };
    // Each word of a section header that points to a name or to a string table, in turn beyond the file.
    let word = |at: usize| u64::from_le_bytes(fixture.bytes[at..at + 8].try_into().expect("eight bytes"));
    let headers = word(40) as usize;
    let count = (fixture.bytes.len() - headers) / 64;
    let mut refused = 0;
    for index in 1..count {
        let mut bytes = fixture.bytes.clone();
        bytes[headers + 64 * index..][..4].copy_from_slice(&0x0fff_ffff_u32.to_le_bytes());
        let message = message(&bytes, &Options::default());
        assert!(message.starts_with("section headers: at offset"), "{message}");
        refused += 1;
    }
    assert!(refused > 10, "{refused} sections");
}
