//! ARCHITECTURE.md as a test: who may import whom, and where `unsafe` may stand.

use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Layer of each crate, and its place in the layer: a crate imports only what is lower, or further left on its line.
const LAYERS: &[&[&str]] = &[
    &["beeline-isa", "beeline-abi", "beeline-maps", "beeline-helpers", "beeline-watchdog"],
    &["beeline-object", "beeline-verifier", "beeline-robust", "beeline-ptrace", "beeline-site"],
    &[
        "beeline-interp",
        "beeline-jit",
        "beeline-store",
        "beeline-frames",
        "beeline-remote",
        "beeline-stub",
        "beeline-agent-core",
    ],
    &["beeline-engine", "beeline-inject", "beeline-agent", "beeline-guard"],
    &["beeline", "beeline-vm", "beeline-adversary", "beeline-tests", "beeline-benches", "xtask"],
];

/// Crates whose neighbours on the same line they do not know, whatever their order.
const STRANGERS: &[(&str, &str)] = &[
    ("beeline-inject", "beeline-engine"),
    ("beeline-engine", "beeline-inject"),
    ("beeline-jit", "beeline-interp"),
    ("beeline-stub", "beeline-remote"),
    ("beeline-verifier", "beeline-object"),
    ("beeline-site", "beeline-ptrace"),
];

/// All that these may see of the workspace.
const CLOSED: &[(&str, &[&str])] = &[
    ("beeline-agent-core", &["beeline-abi", "beeline-maps", "beeline-helpers"]),
    ("beeline-agent", &["beeline-abi", "beeline-maps", "beeline-helpers", "beeline-agent-core"]),
    ("beeline-guard", &["beeline-abi", "beeline-agent-core"]),
    ("beeline-ptrace", &[]),
    ("beeline-robust", &[]),
    ("beeline-remote", &["beeline-ptrace", "beeline-robust"]),
    ("beeline-site", &[]),
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests lie in the workspace").to_path_buf()
}

/// Workspace crates and what each imports of the workspace, development dependencies left out.
fn imports() -> BTreeMap<String, Vec<String>> {
    let mut manifests = vec![root().join("Cargo.toml")];
    // The images are built apart from the workspace, with their own profile.
    manifests.extend(["agent/image", "agent/guard"].map(|image| root().join(image).join("Cargo.toml")));
    let mut imports = BTreeMap::new();
    for manifest in manifests {
        let output = Command::new(env!("CARGO"))
            .args(["metadata", "--no-deps", "--format-version", "1", "--manifest-path"])
            .arg(&manifest)
            .output()
            .expect("cargo runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let metadata: Value = serde_json::from_slice(&output.stdout).expect("cargo metadata prints JSON");
        for package in metadata["packages"].as_array().expect("packages") {
            let dependencies = package["dependencies"].as_array().expect("dependencies");
            let ours = dependencies
                .iter()
                .filter(|dependency| dependency["kind"] != "dev" && dependency["path"].is_string())
                .map(|dependency| dependency["name"].as_str().expect("name").to_owned())
                .collect();
            imports.insert(package["name"].as_str().expect("name").to_owned(), ours);
        }
    }
    imports
}

fn place(name: &str) -> (usize, usize) {
    LAYERS
        .iter()
        .enumerate()
        .find_map(|(layer, crates)| Some((layer, crates.iter().position(|&it| it == name)?)))
        .unwrap_or_else(|| panic!("{name} has no place in LAYERS and ARCHITECTURE.md: give it one"))
}

#[test]
fn imports_go_down_only() {
    for (importer, imported) in imports() {
        let from = place(&importer);
        for name in imported {
            let to = place(&name);
            assert!(
                to.0 < from.0 || (to.0 == from.0 && to.1 < from.1),
                "{importer} imports {name}, which is not below it"
            );
            assert!(
                !STRANGERS.contains(&(importer.as_str(), name.as_str())),
                "{importer} must not know {name}"
            );
        }
    }
}

#[test]
fn closed_crates_see_only_their_floor() {
    let imports = imports();
    for (name, allowed) in CLOSED {
        for imported in &imports[*name] {
            assert!(
                allowed.contains(&imported.as_str()),
                "{name} imports {imported}; it may see {allowed:?} only"
            );
        }
    }
}

/// Crates that declare `#![forbid(unsafe_code)]`.
const SAFE: &[&str] =
    &["runtime/isa", "runtime/abi", "runtime/object", "runtime/verifier", "injector/site", "cli"];

#[test]
fn safe_crates_forbid_unsafe_code() {
    for folder in SAFE {
        let source = root().join(folder).join("src");
        let entry =
            ["lib.rs", "main.rs"].map(|file| source.join(file)).into_iter().find(|path| path.exists());
        let text = std::fs::read_to_string(entry.expect("a crate has a root file")).expect("readable");
        assert!(text.contains("#![forbid(unsafe_code)]"), "{folder} does not forbid unsafe code");
    }
}

/// Files (or folders) that may hold `unsafe`, as ARCHITECTURE.md lists them.
const UNSAFE_ALLOWED: &[&str] = &[
    "runtime/maps/src",
    "runtime/helpers/src",
    "agent/core/src",
    "agent/image/src",
    "agent/guard/src",
    "runtime/robust/src",
    "runtime/store/src/mapping",
    "runtime/interp/src/memory",
    "runtime/engine/src/testrun",
    "runtime/vm/src/corpus/run.rs",
    "runtime/vm/src/engine.rs",
    "runtime/vm/src/main.rs",
    "runtime/vm/src/native.rs",
    "runtime/adversary/src/compiled.rs",
    "runtime/adversary/src/kernel.rs",
    "injector/ptrace/src",
    "injector/remote/src",
];

#[test]
fn unsafe_stands_only_where_it_may() {
    let mut found = Vec::new();
    for top in ["runtime", "agent", "injector", "cli"] {
        walk(&root().join(top), &mut |path| {
            let relative = path.strip_prefix(root()).expect("under the root").to_string_lossy().into_owned();
            let is_source = relative.contains("/src/") && relative.ends_with(".rs");
            if !is_source || UNSAFE_ALLOWED.iter().any(|allowed| relative.starts_with(allowed)) {
                return;
            }
            let text = std::fs::read_to_string(path).expect("readable");
            let code = text.split("#[cfg(test)]").next().unwrap_or_default();
            for (number, line) in code.lines().enumerate() {
                let line = line.split("//").next().unwrap_or_default();
                if line.contains("unsafe {") || line.contains("unsafe fn") || line.contains("unsafe impl") {
                    found.push(format!("{relative}:{}", number + 1));
                }
            }
        });
    }
    assert!(
        found.is_empty(),
        "unsafe code outside the modules that ARCHITECTURE.md lists:\n{}",
        found.join("\n")
    );
}

fn walk(folder: &Path, visit: &mut dyn FnMut(&Path)) {
    let Ok(entries) = folder.read_dir() else { return };
    for path in entries.filter_map(|entry| Some(entry.ok()?.path())) {
        if path.is_dir() {
            if path.file_name().is_some_and(|name| name != "target") {
                walk(&path, visit);
            }
        } else {
            visit(&path);
        }
    }
}
