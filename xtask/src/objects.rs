//! Compiles the examples: eBPF programs with clang, targets with gcc and go.

use crate::workspace::{root, run, target_dir};
use anyhow::{Context, Result};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Where the results are put.
pub(crate) fn output_dir() -> PathBuf {
    target_dir().join("examples")
}

/// Compiles every example; returns what was made.
pub(crate) fn build_all() -> Result<Vec<PathBuf>> {
    let mut built = Vec::new();
    let examples = root().join("examples");
    let mut folders: Vec<_> = examples
        .read_dir()
        .context("examples/ is missing")?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .collect();
    folders.sort();
    for folder in folders.iter().filter(|path| path.is_dir()) {
        let mut files: Vec<_> = folder.read_dir()?.filter_map(|entry| Some(entry.ok()?.path())).collect();
        files.sort();
        for source in files {
            let name = source.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if name.ends_with(".bpf.c") {
                built.push(bpf_object(&source)?);
            } else if name.ends_with(".c") {
                built.push(c_target(&source)?);
            }
        }
    }
    Ok(built)
}

/// Compiles one eBPF program the way libbpf's users do.
pub(crate) fn bpf_object(source: &Path) -> Result<PathBuf> {
    let output = output_path(source, "o")?;
    let machine = format!("/usr/include/{}-linux-gnu", std::env::consts::ARCH);
    run(Command::new("clang")
        .args(["-g", "-O2", "-target", "bpf", "-D__TARGET_ARCH_x86", "-Wall", "-I", &machine, "-c"])
        .arg(source)
        .arg("-o")
        .arg(&output))?;
    Ok(output)
}

/// Compiles one C target. A first line `// link: -lssl` names its libraries.
fn c_target(source: &Path) -> Result<PathBuf> {
    let output = output_path(source, "")?;
    let text = std::fs::read_to_string(source)?;
    let libraries = text.lines().next().and_then(|line| line.strip_prefix("// link: ")).unwrap_or("");
    run(Command::new("gcc")
        .args(["-O2", "-g", "-Wall", "-o"])
        .arg(&output)
        .arg(source)
        .args(libraries.split_whitespace()))?;
    Ok(output)
}

fn output_path(source: &Path, extension: &str) -> Result<PathBuf> {
    let dir = output_dir();
    std::fs::create_dir_all(&dir)?;
    let stem = source.with_extension(extension);
    Ok(dir.join(stem.file_name().context("a source file has a name")?))
}
