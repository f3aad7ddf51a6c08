//! Fixtures: BPF objects compiled by clang into a temporary directory, once per test binary.
#![allow(dead_code, reason = "each test binary uses its own part")]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// A compiled object.
#[derive(Clone, Debug)]
pub(crate) struct Fixture {
    /// File name without `.bpf.c`.
    pub(crate) name: String,
    /// The object.
    pub(crate) bytes: Vec<u8>,
}

/// Where the fixtures' sources are.
pub(crate) fn source_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

/// True when clang can compile for BPF, with libbpf's headers.
pub(crate) fn can_compile() -> bool {
    static CAN: OnceLock<bool> = OnceLock::new();
    *CAN.get_or_init(|| {
        let dir = tempfile::tempdir().expect("temporary directory");
        let source = dir.path().join("probe.bpf.c");
        let text = "#include \"kernel.h\"\n#include <bpf/bpf_helpers.h>\nint x;\n";
        std::fs::write(&source, text).expect("temporary file");
        compile(&source, &dir.path().join("probe.o"), &[]).is_ok()
    })
}

/// Compiles one source file.
pub(crate) fn compile(source: &Path, object: &Path, flags: &[&str]) -> Result<(), String> {
    let include = source_dir().join("include");
    let own = source.parent().unwrap_or(Path::new("."));
    let output = Command::new("clang")
        .args(["-g", "-O2", "-target", "bpf", "-D__TARGET_ARCH_x86", "-c"])
        .args(flags)
        // Debian keeps asm/types.h, which linux/bpf.h wants, here; other systems have no such folder.
        .arg("-I/usr/include/x86_64-linux-gnu")
        .arg("-I")
        .arg(include)
        .arg("-I")
        .arg(own)
        .arg(source)
        .arg("-o")
        .arg(object)
        .output()
        .map_err(|error| format!("clang: {error}"))?;
    match output.status.success() {
        true => Ok(()),
        false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
    }
}

/// Compiles a text.
pub(crate) fn compile_text(text: &str, flags: &[&str]) -> Result<Vec<u8>, String> {
    let dir = tempfile::tempdir().map_err(|error| error.to_string())?;
    let (source, object) = (dir.path().join("text.bpf.c"), dir.path().join("text.o"));
    std::fs::write(&source, text).map_err(|error| error.to_string())?;
    compile(&source, &object, flags)?;
    std::fs::read(&object).map_err(|error| error.to_string())
}

/// All fixtures, compiled; also one that `bpftool gen object` links from two, when bpftool is there. Empty without
/// clang.
pub(crate) fn fixtures() -> &'static [Fixture] {
    static ALL: OnceLock<Vec<Fixture>> = OnceLock::new();
    ALL.get_or_init(|| {
        if !can_compile() {
            println!("skipped: clang with -target bpf and libbpf's headers are needed");
            return Vec::new();
        }
        let dir = tempfile::tempdir().expect("temporary directory");
        let mut all = Vec::new();
        for source in sources(&source_dir()) {
            all.push(build(&source, dir.path(), "", &[]));
            if ["counter", "subprograms", "core_fields"].contains(&all[all.len() - 1].name.as_str()) {
                all.push(build(&source, dir.path(), "_v3", &["-mcpu=v3"]));
            }
        }
        all.extend(link(dir.path(), "linked", &["linked_a", "linked_b"]));
        all.extend(link(dir.path(), "relinked", &["core_fields"]));
        all
    })
}

/// The fixture of this name; `None` without clang.
pub(crate) fn fixture(name: &str) -> Option<&'static Fixture> {
    let found = fixtures().iter().find(|fixture| fixture.name == name);
    assert!(found.is_some() || fixtures().is_empty() || name.contains("linked"), "no fixture {name}");
    found
}

fn build(source: &Path, dir: &Path, suffix: &str, flags: &[&str]) -> Fixture {
    let stem = source.file_name().and_then(|name| name.to_str()).expect("a name").trim_end_matches(".bpf.c");
    let name = format!("{stem}{suffix}");
    let object = dir.join(format!("{name}.bpf.o"));
    compile(source, &object, flags).unwrap_or_else(|error| panic!("{name}: {error}"));
    Fixture { name, bytes: std::fs::read(&object).expect("compiled") }
}

/// `*.bpf.c` in a directory and below it.
pub(crate) fn sources(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            found.extend(sources(&path));
        } else if path.to_string_lossy().ends_with(".bpf.c") {
            found.push(path);
        }
    }
    found.sort();
    found
}

fn link(dir: &Path, name: &str, parts: &[&str]) -> Option<Fixture> {
    let object = dir.join(format!("{name}.bpf.o"));
    let parts = parts.iter().map(|part| dir.join(format!("{part}.bpf.o")));
    let status = Command::new("bpftool").args(["gen", "object"]).arg(&object).args(parts).status();
    match status {
        Ok(status) if status.success() => {
            Some(Fixture { name: name.into(), bytes: std::fs::read(&object).expect("linked") })
        }
        _ => {
            println!("skipped: {name}: bpftool gen object is needed");
            None
        }
    }
}
