//! Binaries of all kinds: what is read from them, and where probes go.

use beeline_site::{
    Binary, Libc, Linkage, Location, OpenError, Refusal, ResolveError, Resolved, Room, WINDOW_MIN,
    find_library, hides_unwinder, plan, plan_return, plan_returns, resolve, unwinder_entries,
};
use std::path::{Path, PathBuf};
use std::process::Command;

const SOURCE: &str = r#"
#include <stdio.h>
__thread int per_thread;
int exported(int a, int b) { per_thread++; return a * 3 + b; }
static int __attribute__((noinline)) hidden(int n) { return n < 2 ? n : hidden(n - 1) + hidden(n - 2); }
int choose(int n) {
    switch (n) {
    case 0: return exported(1, 2); case 1: puts("one"); return 7; case 2: return hidden(4);
    case 3: puts("three"); return 8; case 4: return 12 + hidden(n); case 5: puts("five"); return 9;
    case 6: return 1; case 7: puts("seven"); return 3;
    default: return -1;
    }
}
int pause(void);
int pthread_cancel(unsigned long);
int main(int argc, char **argv) { if (argc > 100) return pause() + pthread_cancel(0); return choose(argc) + hidden(argc); }
"#;

/// A scratch directory with the test program's source.
fn scratch() -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("a.c"), SOURCE).unwrap();
    directory
}

/// Compiles; none (with a note) when the tool chain is not there.
fn build(directory: &Path, compiler: &str, arguments: &[&str]) -> Option<PathBuf> {
    let output = directory.join("out");
    let result = Command::new(compiler)
        .current_dir(directory)
        .args(["-O2", "a.c", "-o", "out"])
        .args(arguments)
        .output();
    match result {
        Ok(done) if done.status.success() => Some(output),
        Ok(done) => {
            println!("skipped: {compiler} {arguments:?}: {}", String::from_utf8_lossy(&done.stderr));
            None
        }
        Err(error) => {
            println!("skipped: {compiler}: {error}");
            None
        }
    }
}

fn symbol(name: &str, offset: u64) -> Location {
    Location::Symbol { name: name.to_owned(), offset }
}

/// Resolves a function by name, plans it, and compares the plan's bytes with those of the file.
fn check_function(binary: &Binary, name: &str) -> Resolved {
    let found = resolve(binary, &symbol(name, 0)).unwrap();
    assert!(found.is_entry);
    assert_eq!(found.function.as_ref().unwrap().name, name);
    let by_offset = resolve(binary, &Location::FileOffset(found.file_offset)).unwrap();
    assert_eq!(by_offset, found, "the same place by file offset");
    let plan = plan(binary, found.vaddr).unwrap();
    let at = plan.file_offset as usize;
    assert_eq!(binary.data()[at..at + plan.original.len()], plan.original);
    assert!(plan.original.len() >= 5);
    assert_eq!(plan.boundaries[0], 0);
    found
}

#[test]
fn layouts_of_all_linkers() {
    for linker in ["bfd", "gold", "lld", "mold"] {
        for kind in [&["-pie"][..], &["-no-pie"], &["-shared", "-fPIC"]] {
            let directory = scratch();
            let option = format!("-fuse-ld={linker}");
            let mut arguments = vec![option.as_str()];
            arguments.extend(kind);
            let compiler = if linker == "bfd" { "gcc" } else { "clang" };
            let Some(path) = build(directory.path(), compiler, &arguments) else { continue };
            let binary = Binary::open(&path).unwrap();
            let function = check_function(&binary, "exported");
            check_function(&binary, "hidden");
            check_function(&binary, "choose");
            let nm = Command::new("nm").arg(&path).output().unwrap();
            let nm = String::from_utf8_lossy(&nm.stdout).into_owned();
            let line = nm.lines().find(|l| l.ends_with(" exported")).unwrap();
            assert_eq!(u64::from_str_radix(&line[..16], 16).unwrap(), function.vaddr);
            assert_eq!(binary.is_fixed(), kind == ["-no-pie"]);
            let expected = if kind[0] == "-shared" { Linkage::Library } else { Linkage::Dynamic };
            assert_eq!(binary.linkage(), expected, "{linker} {kind:?}");
            assert!(binary.has_tls());
            assert!(!binary.is_go());
            assert_eq!(binary.libc(), Some(Libc::Glibc));
            assert!(binary.needed().iter().any(|n| n == "libc.so.6"));
        }
    }
}

#[test]
fn static_ones() {
    let cases = [("gcc", &["-static"][..], Linkage::Static), ("gcc", &["-static-pie"], Linkage::StaticPie)];
    for (compiler, arguments, linkage) in cases {
        let directory = scratch();
        let Some(path) = build(directory.path(), compiler, arguments) else { continue };
        let binary = Binary::open(&path).unwrap();
        assert_eq!(binary.linkage(), linkage);
        assert_eq!(binary.libc(), Some(Libc::Glibc));
        assert_eq!(binary.interpreter(), None);
        check_function(&binary, "exported");
        check_function(&binary, "malloc");
        let error = resolve(&binary, &symbol("memcpy", 0)).unwrap_err();
        let ResolveError::Ifunc { implementations, .. } = &error else { panic!("{error}") };
        assert!(implementations.iter().any(|n| n.contains("avx")), "{error}");
    }
}

#[test]
fn musl() {
    let directory = scratch();
    let Some(path) = build(directory.path(), "musl-gcc", &[]) else { return };
    let binary = Binary::open(&path).unwrap();
    assert_eq!((binary.libc(), binary.linkage()), (Some(Libc::Musl), Linkage::Dynamic));
    check_function(&binary, "exported");
    let directory = scratch();
    let path = build(directory.path(), "musl-gcc", &["-static"]).unwrap();
    let binary = Binary::open(&path).unwrap();
    assert_eq!((binary.libc(), binary.linkage()), (Some(Libc::Musl), Linkage::Static));
    check_function(&binary, "exported");
    let cancellable = binary.symbols().named("__syscall_cp_asm").pop().unwrap();
    assert!(matches!(plan(&binary, cancellable.vaddr), Err(Refusal::CancellableCall { .. })));
    let restorer = binary.symbols().named("__restore_rt").pop().unwrap();
    assert!(matches!(plan(&binary, restorer.vaddr), Err(Refusal::SignalReturn { .. })));
}

#[test]
fn go() {
    let directory = tempfile::tempdir().unwrap();
    let source = "package main\nimport (\"fmt\"; \"os\")\n//go:noinline\nfunc Work(n int) string { return fmt.Sprint(n, len(os.Args)) }\nfunc main() { fmt.Println(Work(3)) }\n";
    std::fs::write(directory.path().join("a.go"), source).unwrap();
    let go = |arguments: &[&str]| {
        let built = Command::new("go")
            .current_dir(directory.path())
            .env("GOCACHE", directory.path().join("cache"))
            .env("GOFLAGS", "-mod=mod")
            .env("HOME", directory.path())
            .arg("build")
            .args(arguments)
            .arg("a.go")
            .output();
        built.is_ok_and(|b| b.status.success())
    };
    if !go(&["-o", "out"]) {
        println!("skipped: no go");
        return;
    }
    let binary = Binary::open(directory.path().join("out")).unwrap();
    assert!(binary.is_go());
    assert_eq!((binary.linkage(), binary.libc()), (Linkage::Static, None));
    let work = check_function(&binary, "main.Work");
    assert_eq!(plan_return(&binary, work.vaddr), Err(Refusal::GoReturn));
    let (mut planned, mut all) = (0, 0);
    for function in binary.symbols().iter().filter(|s| s.size > 0) {
        all += 1;
        match plan(&binary, function.vaddr) {
            Ok(_) => planned += 1,
            Err(refusal) => println!("{}: {refusal}", binary.symbols().name(function)),
        }
    }
    println!("go: {planned} of {all}");
    assert!(planned * 100 >= all * 98);
    go_returns(&binary, work.vaddr);
    assert!(go(&["-ldflags=-s -w", "-o", "stripped"]));
    let stripped = Binary::open(directory.path().join("stripped")).unwrap();
    let mut known = 0;
    for function in binary.symbols().iter().filter(|s| s.size > 0) {
        // An assembly function and its wrapper have one name there.
        let name = binary.symbols().name(function).trim_end_matches(".abi0");
        known += usize::from(stripped.symbols().named(name).iter().any(|s| s.vaddr == function.vaddr));
    }
    assert!(known * 10 >= all * 9, "Go's line table names {known} of {all} functions");
    check_function(&stripped, "main.Work");
    if go(&["-buildmode=pie", "-ldflags=-s -w", "-o", "pie"]) {
        check_function(&Binary::open(directory.path().join("pie")).unwrap(), "main.Work");
    }
}

/// Every `ret` of a Go function has a window, in which it is the last instruction; but for the few that no jump fits at.
fn go_returns(binary: &Binary, work: u64) {
    let leaves = plan_returns(binary, work, Room::Jump).unwrap();
    assert!(leaves.iter().all(|plan| plan.leave.is_some_and(|leave| leave.function == work
        && leave.at + 1 == plan.code_len
        && plan.original[usize::from(leave.at)] == 0xc3)));
    let (mut planned, mut returning) = (0, 0);
    for function in binary.functions() {
        match plan_returns(binary, function.start, Room::Jump) {
            Ok(plans) => {
                planned += 1;
                assert!(
                    plans.iter().all(|plan| usize::from(plan.jump_len) == WINDOW_MIN),
                    "{:#x}",
                    function.start
                );
            }
            Err(Refusal::NeverReturns { .. } | Refusal::LeavesOtherwise { .. }) => continue,
            Err(_) => {}
        }
        returning += 1;
    }
    println!("go: returns of {planned} of {returning} functions");
    assert!(planned * 100 >= returning * 97);
    // Goroutines return to the second byte; the other is made to run at any instruction.
    let special = |name: &str| {
        binary.symbols().iter().find(|s| binary.symbols().name(s).starts_with(name)).unwrap().vaddr
    };
    let exit = special("runtime.goexit.abi0");
    assert_eq!(plan(binary, exit), Err(Refusal::BranchInside { target: exit + 1 }));
    let injected = special("runtime.asyncPreempt.abi0");
    assert!(!plan(binary, injected).unwrap().is_entry);
    assert!(matches!(plan_returns(binary, injected, Room::Any), Err(Refusal::LooksAtCaller { .. })));
}

#[test]
fn stripped_ones_know_their_exports_and_their_unwind_table() {
    let directory = scratch();
    let Some(path) = build(directory.path(), "gcc", &["-shared", "-fPIC"]) else { return };
    let full = Binary::open(&path).unwrap();
    let hidden = resolve(&full, &symbol("hidden", 0)).unwrap();
    if !Command::new("strip").arg(&path).status().is_ok_and(|s| s.success()) {
        println!("skipped: no strip");
        return;
    }
    let binary = Binary::open(&path).unwrap();
    check_function(&binary, "exported");
    let error = resolve(&binary, &symbol("hidden", 0)).unwrap_err();
    assert!(matches!(&error, ResolveError::NoSymbol { stripped: true, .. }), "{error}");
    let found = resolve(&binary, &Location::FileOffset(hidden.file_offset)).unwrap();
    assert_eq!(found.vaddr, hidden.vaddr);
    assert_eq!(found.function.unwrap().start, hidden.vaddr, "the unwind table knows the function");
    assert!(plan(&binary, hidden.vaddr).unwrap().is_entry);
}

#[test]
fn errors_help() {
    let Ok(libc) = find_library("libc.so.6") else {
        println!("skipped: no libc");
        return;
    };
    let binary = Binary::open(libc).unwrap();
    let error = resolve(&binary, &symbol("mallok", 0)).unwrap_err();
    let ResolveError::NoSymbol { near, .. } = &error else { panic!("{error}") };
    assert_eq!(near[0], "malloc");
    assert!(error.to_string().contains("stripped"));
    assert!(matches!(resolve(&binary, &symbol("strlen", 0)), Err(ResolveError::Ifunc { .. })));
    assert!(matches!(
        resolve(&binary, &symbol("malloc", 1 << 20)),
        Err(ResolveError::OutsideFunction { .. })
    ));
    let nowhere = Location::FileOffset(1 << 40);
    assert!(matches!(resolve(&binary, &nowhere), Err(ResolveError::NotExecutable { .. })));
    assert!(matches!(resolve(&binary, &Location::FileOffset(0)), Err(ResolveError::NotExecutable { .. })));
    // Two versions: the default one is meant.
    let default = resolve(&binary, &symbol("pthread_cond_wait", 0)).unwrap();
    let versioned = resolve(&binary, &symbol("pthread_cond_wait@GLIBC_2.3.2", 0)).unwrap();
    let old = resolve(&binary, &symbol("pthread_cond_wait@GLIBC_2.2.5", 0)).unwrap();
    assert_eq!(default.vaddr, versioned.vaddr);
    assert_ne!(default.vaddr, old.vaddr);
}

#[test]
fn returns_of_functions_that_look_at_their_caller_are_refused() {
    let Ok(libc) = find_library("libc.so.6") else {
        println!("skipped: no libc");
        return;
    };
    let binary = Binary::open(libc).unwrap();
    let refused = [
        "setjmp",
        "_setjmp",
        "__sigsetjmp",
        "vfork",
        "getcontext",
        "makecontext",
        "swapcontext",
        "setcontext",
        "dlsym",
        "dlopen",
        "dlvsym",
        "longjmp",
        "siglongjmp",
        "__libc_start_main",
        "clone",
    ];
    for name in refused {
        let Ok(found) = resolve(&binary, &symbol(name, 0)) else { panic!("no {name}") };
        let refusal = plan_return(&binary, found.vaddr);
        assert!(matches!(refusal, Err(Refusal::LooksAtCaller { .. })), "{name}: {refusal:?}");
        assert!(plan(&binary, found.vaddr).is_ok(), "{name}: its entry can be probed");
    }
    for name in [
        "malloc",
        "free",
        "open",
        "read",
        "exit",
        "_exit",
        "abort",
        "pthread_create",
        "qsort",
        "__tls_get_addr",
    ] {
        let Ok(found) = resolve(&binary, &symbol(name, 0)) else { continue };
        assert!(plan_return(&binary, found.vaddr).is_ok(), "{name}: {:?}", plan_return(&binary, found.vaddr));
    }
    let malloc = resolve(&binary, &symbol("malloc", 0)).unwrap();
    let inside = plan(&binary, malloc.vaddr).unwrap();
    let next = malloc.vaddr + inside.original.len() as u64;
    assert!(!inside.collides_with(malloc.vaddr) && !inside.collides_with(next));
    assert!(inside.collides_with(malloc.vaddr + 4) && inside.collides_with(malloc.vaddr - 4));
    assert!(matches!(plan_return(&binary, next), Err(Refusal::NotAnEntry { .. })));
}

#[test]
fn unwinders_are_found_where_they_are() {
    let Ok(path) = find_library("libgcc_s.so.1") else {
        println!("skipped: no libgcc_s");
        return;
    };
    let binary = Binary::open(path).unwrap();
    let found = unwinder_entries(&binary);
    assert_eq!(found.len(), 4);
    assert!(found.iter().all(|plan| plan.is_entry));
    let libc = Binary::open(find_library("libc.so.6").unwrap()).unwrap();
    assert!(unwinder_entries(&libc).is_empty(), "libc only uses it");
}

#[test]
fn functions_that_jump_to_such_are_refused() {
    const TEXT: &str = "#include <dlfcn.h>\n#include <ucontext.h>\n#include <unistd.h>\n\
        ucontext_t a, b;\n#define ENTRY __attribute__((noipa))\n\
        ENTRY int switches(int n) { return swapcontext(&a, &b); }\n\
        ENTRY void *finds(const char *it) { return dlsym(RTLD_DEFAULT, it); }\n\
        ENTRY void *reads(void) { return __builtin_return_address(0); }\n\
        ENTRY void *asks(int n) { return reads(); }\n\
        ENTRY void *asks_again(int n) { return asks(n); }\n\
        ENTRY int waits(int n) { return sleep(n); }\n\
        ENTRY int calls(int n) { return swapcontext(&a, &b) + n; }\n\
        int main(int n, char **it) { return switches(n) + waits(n) + calls(n) + (finds(*it) == asks_again(n)); }";
    for arguments in [&["-fno-plt", "-D_GNU_SOURCE"][..], &["-D_GNU_SOURCE"], &["-static", "-D_GNU_SOURCE"]] {
        let directory = scratch();
        std::fs::write(directory.path().join("a.c"), TEXT).unwrap();
        let Some(path) = build(directory.path(), "gcc", arguments) else { continue };
        let binary = Binary::open(path).unwrap();
        let returns = |name| plan_return(&binary, resolve(&binary, &symbol(name, 0)).unwrap().vaddr);
        for name in ["switches", "finds", "asks", "asks_again"] {
            let refusal = returns(name);
            assert!(
                matches!(refusal, Err(Refusal::LooksAtCaller { .. })),
                "{arguments:?}: {name}: {refusal:?}"
            );
        }
        for name in ["waits", "calls", "main"] {
            assert!(returns(name).is_ok(), "{arguments:?}: {name}: {:?}", returns(name));
        }
    }
}

/// Compiles a program from this text and strips it; the program with symbols, and without.
fn stripped(compiler: &str, text: &str, arguments: &[&str]) -> Option<(Binary, Binary)> {
    let directory = scratch();
    std::fs::write(directory.path().join("a.c"), text).unwrap();
    let path = build(directory.path(), compiler, arguments)?;
    let with = Binary::open(&path).unwrap();
    let done = Command::new("strip").arg(&path).status();
    if !done.is_ok_and(|status| status.success()) {
        println!("skipped: no strip");
        return None;
    }
    Some((with, Binary::open(&path).unwrap()))
}

#[test]
fn unwinders_without_names_are_found() {
    const THROWS: &str = "int main(int n, char **) { try { throw n; } catch (int n) { return n - 1; } }";
    for arguments in [&["-xc++", "-static"][..], &["-xc++", "-static-libgcc", "-static-libstdc++"]] {
        let Some((with, without)) = stripped("g++", THROWS, arguments) else { continue };
        assert!(without.symbols().named("_Unwind_RaiseException").is_empty());
        let found: Vec<u64> = unwinder_entries(&without).iter().map(|plan| plan.vaddr).collect();
        for name in ["_Unwind_RaiseException", "_Unwind_ForcedUnwind", "_Unwind_Resume_or_Rethrow"] {
            for symbol in with.symbols().named(name) {
                assert!(found.contains(&symbol.vaddr), "{arguments:?}: {name} in {found:x?}");
            }
        }
        assert!(!found.is_empty() && !hides_unwinder(&without), "{arguments:?}");
    }
    // With a handler, and nothing that looks like an unwinder.
    const HIDES: &str = "volatile int left;\n void _Unwind_Resume(void *it) { __builtin_trap(); }\n\
        int __gcc_personality_v0(void) { return 0; }\n static void leave(int *it) { left = *it; }\n\
        int main(int n, char **a) {\n\
        int it __attribute__((cleanup(leave))) = n; ((void (*)(void))a)(); return left; }";
    let arguments = ["-fexceptions", "-nostartfiles", "-Wl,-e,main", "-nostdlib"];
    if let Some((_, without)) = stripped("gcc", HIDES, &arguments) {
        assert!(hides_unwinder(&without));
    }
}

#[test]
fn special_places_are_refused() {
    let directory = scratch();
    let Some(path) = build(directory.path(), "gcc", &["-pie"]) else { return };
    let binary = Binary::open(&path).unwrap();
    let headers = Command::new("readelf").args(["-SW"]).arg(&path).output().unwrap();
    let headers = String::from_utf8_lossy(&headers.stdout).into_owned();
    let line = headers.lines().find(|l| l.contains(" .plt ")).unwrap();
    let address = line.split_whitespace().nth_back(7).unwrap();
    let vaddr = u64::from_str_radix(address, 16).unwrap();
    assert_eq!(plan(&binary, vaddr), Err(Refusal::LinkageTable { vaddr }));
    let function = resolve(&binary, &symbol("exported", 0)).unwrap();
    let inside = plan(&binary, function.vaddr + 1);
    let first = plan(&binary, function.vaddr).unwrap();
    if first.boundaries.get(1) != Some(&1) {
        assert_eq!(
            inside,
            Err(Refusal::InsideInstruction { vaddr: function.vaddr + 1, start: function.vaddr })
        );
    }
    assert_eq!(plan(&binary, 0), Err(Refusal::NotCode { vaddr: 0 }));
    assert_eq!(plan(&binary, 1 << 50), Err(Refusal::NotCode { vaddr: 1 << 50 }));
    if let Ok(loader) = Binary::open("/lib64/ld-linux-x86-64.so.2")
        && let Ok(hook) = resolve(&loader, &symbol("_dl_debug_state", 0))
    {
        assert!(matches!(plan(&loader, hook.vaddr), Err(Refusal::LoaderHook { .. })));
    }
    if let Ok(libc) = find_library("libc.so.6").map(|p| Binary::open(p).unwrap()) {
        let restorer = [0x48, 0xc7, 0xc0, 0x0f, 0, 0, 0, 0x0f, 0x05];
        let at = libc.data().windows(9).position(|w| w == restorer).unwrap();
        let place = resolve(&libc, &Location::FileOffset(at as u64)).unwrap();
        let refused = plan(&libc, place.vaddr);
        assert!(matches!(refused, Err(Refusal::SignalReturn { .. })), "{refused:?}");
    }
}

/// Cases of a switch that lie a byte apart, reached through a table of offsets and through one of addresses.
const TABLES: &str = r#"
asm(".text\n.globl relative_cases\n.type by_offset,@function\nby_offset:\n"
    "lea table(%rip), %rdx\nmovslq (%rdx,%rdi,4), %rax\nadd %rdx, %rax\njmp *%rax\n"
    "relative_cases:\nnop\n.Lr1:\nnop\n.Lr2:\nnop\n.Lr3:\nmov $1,%eax\nret\n.size by_offset, .-by_offset\n"
    ".section .rodata\n.balign 4\ntable:\n"
    ".long relative_cases-table\n.long .Lr1-table\n.long .Lr2-table\n.long .Lr3-table\n.text\n");
asm(".text\n.globl absolute_cases\nby_address:\nlea absolute(%rip), %rdx\njmp *(%rdx,%rdi,8)\n"
    "absolute_cases:\nnop\n.La1:\nnop\n.La2:\nnop\n.La3:\nmov $1,%eax\nret\n"
    ".section .data.rel.ro,\"aw\"\n.balign 8\nabsolute:\n.quad absolute_cases\n.quad .La1\n.quad .La2\n.quad .La3\n.text\n");
asm(".text\n.globl by_label\n.type by_label,@function\nby_label:\n"
    "lea distances(%rip), %rdx\nmovslq (%rdx,%rdi,4), %rax\nlea .Lbase(%rip), %rdx\nadd %rdx, %rax\njmp *%rax\n"
    ".Lb0:\nnop\n.Lb1:\nnop\n.Lb2:\nnop\n.Lb3:\nmov $1,%eax\nret\n.Lbase: mov $2,%eax\nret\n"
    ".section .rodata\n.balign 4\ndistances:\n"
    ".long .Lb3-.Lbase\n.long .Lb2-.Lbase\n.long .Lb1-.Lbase\n.long .Lb0-.Lbase\n.text\n");
int main(void) { return 0; }
"#;

#[test]
fn targets_of_jump_tables_are_known() {
    let relr = ["-pie", "-fPIE", "-fuse-ld=lld", "-Wl,-z,pack-relative-relocs"];
    for arguments in [&["-pie", "-fPIE"][..], &["-no-pie", "-fno-pie"], &relr] {
        let directory = scratch();
        std::fs::write(directory.path().join("a.c"), TABLES).unwrap();
        let compiler = if arguments.len() > 2 { "clang" } else { "gcc" };
        let Some(path) = build(directory.path(), compiler, arguments) else { continue };
        let binary = Binary::open(&path).unwrap();
        for (cases, offset) in [("relative_cases", 0), ("absolute_cases", 0), ("by_label", 23)] {
            let start = binary.symbols().named(cases).pop().unwrap().vaddr + offset;
            for case in 0..3 {
                let target = start + case + 1;
                let refused = plan(&binary, start + case);
                assert_eq!(refused, Err(Refusal::BranchInside { target }), "{cases} {arguments:?}");
            }
            assert!(plan(&binary, start + 3).is_ok());
        }
    }
}

/// A restartable sequence as librseq and tcmalloc describe theirs.
const SEQUENCE: &str = r#"
asm(".text\n.globl sequence\nsequence:\nmov (%rdi), %rax\nadd $1, %rax\nmov %rax, (%rdi)\n"
    ".Lend:\nxor %eax, %eax\nret\n.long 0x53053053\n.globl aborted\naborted:\nmov $1, %eax\nret\n"
    ".section __rseq_cs,\"aw\"\n.balign 32\n.long 0, 0\n.quad sequence, .Lend-sequence, aborted\n.text\n");
int main(void) { return 0; }
"#;

#[test]
fn restartable_sequences_are_left_alone() {
    for arguments in [&["-pie", "-fPIE"][..], &["-no-pie", "-fno-pie"]] {
        let directory = scratch();
        std::fs::write(directory.path().join("a.c"), SEQUENCE).unwrap();
        let Some(path) = build(directory.path(), "gcc", arguments) else { return };
        let binary = Binary::open(&path).unwrap();
        let sequence = binary.symbols().named("sequence").pop().unwrap().vaddr;
        let aborted = binary.symbols().named("aborted").pop().unwrap().vaddr;
        for vaddr in [sequence, sequence + 3] {
            assert_eq!(plan(&binary, vaddr), Err(Refusal::RestartableSequence { vaddr }), "{arguments:?}");
        }
        assert!(plan(&binary, aborted).is_ok());
    }
}

#[test]
fn garbage_is_an_error() {
    assert!(matches!(Binary::from_bytes(Vec::new()), Err(OpenError::NotElf)));
    assert!(matches!(Binary::from_bytes(b"#!/bin/sh\n".to_vec()), Err(OpenError::NotElf)));
    assert!(matches!(Binary::from_bytes(b"\x7fELF\x02\x01".to_vec()), Err(OpenError::Damaged { .. })));
    assert!(matches!(Binary::open("/nonexistent"), Err(OpenError::Read { .. })));
    let mut header = vec![0u8; 64];
    header[..7].copy_from_slice(b"\x7fELF\x01\x01\x01");
    header[16] = 3;
    header[18] = 3;
    assert!(matches!(Binary::from_bytes(header.clone()), Err(OpenError::Not64Bit)));
    header[4] = 2;
    header[18] = 183;
    assert!(matches!(Binary::from_bytes(header.clone()), Err(OpenError::OtherMachine { machine: 183 })));
    header[18] = 62;
    header[16] = 1;
    assert!(matches!(Binary::from_bytes(header.clone()), Err(OpenError::NotLoadable { kind: 1 })));
    header[16] = 3;
    assert!(matches!(Binary::from_bytes(header), Err(OpenError::Damaged { .. })));
}

/// A real file with bytes changed or its end cut off: any answer, but an answer.
#[test]
fn damaged_files_do_not_crash() {
    let directory = scratch();
    let Some(path) = build(directory.path(), "gcc", &["-pie"]) else { return };
    let good = std::fs::read(&path).unwrap();
    let mut random = 0x1234_5678_9abc_def1u64;
    let mut next = || {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random
    };
    for round in 0..300 {
        let mut bytes = good.clone();
        if round % 3 == 0 {
            bytes.truncate(next() as usize % good.len());
        }
        for _ in 0..1 + next() % 40 {
            if bytes.is_empty() {
                break;
            }
            // Headers and tables more often than code.
            let at = if next() % 2 == 0 {
                next() as usize % bytes.len().min(1024)
            } else {
                next() as usize % bytes.len()
            };
            bytes[at] = next() as u8;
        }
        let Ok(binary) = Binary::from_bytes(bytes) else { continue };
        let _ = (binary.build_id(), binary.libc(), binary.linkage(), binary.is_go(), binary.soname());
        let _ = resolve(&binary, &symbol("exported", 0));
        let starts: Vec<u64> = binary.symbols().iter().map(|s| s.vaddr).collect();
        for vaddr in starts.into_iter().take(20).chain([binary.entry(), 0, u64::MAX]) {
            let _ = plan_return(&binary, vaddr);
            let _ = resolve(&binary, &Location::FileOffset(vaddr));
        }
    }
}

#[test]
fn libraries_are_found_by_name() {
    let Ok(path) = find_library("libc.so.6") else {
        println!("skipped: no libc");
        return;
    };
    assert!(path.ends_with("libc.so.6"));
    assert_eq!(find_library("libc").unwrap(), path);
    assert_eq!(find_library(path.to_str().unwrap()).unwrap(), path);
    assert!(find_library("sh").unwrap().ends_with("sh"));
    let error = find_library("libnothing.so.77").unwrap_err();
    assert!(error.to_string().contains("libnothing.so.77") && !error.searched.is_empty());
    assert!(find_library("/nonexistent/libc.so.6").is_err());
}

#[test]
fn build_ids() {
    let directory = scratch();
    let Some(path) = build(directory.path(), "gcc", &["-Wl,--build-id=0x0123456789abcdef"]) else { return };
    let binary = Binary::open(path).unwrap();
    assert_eq!(binary.build_id(), Some([1, 0x23, 0x45, 0x67, 0x89, 0xab, 0xcd, 0xef].as_slice()));
}

/// In a stripped program at fixed addresses, a table of addresses may be one of functions or a jump table.
#[test]
fn cold_parts_of_functions_are_no_entries() {
    const SOURCE: &str = r#"
__asm__(".text\n.p2align 4\n"
    ".Lfunction: .cfi_startproc\n push %rbx\n .cfi_def_cfa_offset 16\n mov %rdi,%rbx\n pop %rbx\n .cfi_def_cfa_offset 8\n ret\n .cfi_endproc\n"
    ".p2align 4\n"
    ".Lcold: .cfi_startproc\n .cfi_def_cfa_offset 32\n mov (%rsp),%rax\n lea 1(%rax,%rax,2),%rax\n add $24,%rsp\n .cfi_def_cfa_offset 8\n ret\n .cfi_endproc\n"
    ".section .rodata\n .p2align 3\n .globl table\n .type table,@object\ntable: .quad .Lfunction, .Lcold\n .size table,16\n .text\n");
extern long table[2];
int main(void) { return table[0] != table[1] ? 0 : 1; }
"#;
    let directory = scratch();
    std::fs::write(directory.path().join("a.c"), SOURCE).unwrap();
    let Some(path) = build(directory.path(), "gcc", &["-no-pie"]) else { return };
    let binary = Binary::open(&path).unwrap();
    let table = binary.variable("table").expect("a variable");
    let bytes = binary.bytes_from(table).unwrap();
    let word = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
    let (function, cold) = (word(0), word(8));
    assert!(plan(&binary, function).unwrap().is_entry);
    plan_return(&binary, function).unwrap();
    assert!(!plan(&binary, cold).unwrap().is_entry);
    assert_eq!(plan_return(&binary, cold), Err(Refusal::NotAnEntry { vaddr: cold }));
}

/// A function's cold part has a frame, and goes back into the middle of it: neither is a tail jump to what reads its return address.
#[test]
fn a_jump_to_a_cold_part_and_back_is_no_tail_jump() {
    const SOURCE: &str = r#"
__asm__(".text\n.p2align 4\n.globl hot\n.type hot,@function\n"
    "hot: .cfi_startproc\n push %rbx\n .cfi_def_cfa_offset 16\n sub $16,%rsp\n .cfi_def_cfa_offset 32\n"
    " mov %rdi,(%rsp)\n test %rdi,%rdi\n js .Lpart\n.Lback: mov (%rsp),%rax\n add $16,%rsp\n .cfi_def_cfa_offset 16\n"
    " pop %rbx\n .cfi_def_cfa_offset 8\n ret\n .cfi_endproc\n.size hot, .-hot\n"
    ".p2align 4\n"
    ".Lpart: .cfi_startproc\n .cfi_def_cfa_offset 32\n mov (%rsp),%rax\n neg %rax\n mov %rax,(%rsp)\n jmp .Lback\n .cfi_endproc\n");
extern long hot(long);
int main(void) { return hot(-3) == 3 ? 0 : 1; }
"#;
    let directory = scratch();
    std::fs::write(directory.path().join("a.c"), SOURCE).unwrap();
    let Some(path) = build(directory.path(), "gcc", &["-no-pie"]) else { return };
    let binary = Binary::open(&path).unwrap();
    let hot = resolve(&binary, &symbol("hot", 0)).unwrap();
    plan_return(&binary, hot.vaddr).unwrap();
}
