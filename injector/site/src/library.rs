//! From a name to a file, as libbpf finds the binary of a `SEC("uprobe/...")` (`resolve_full_path` in libbpf.c).

use std::env;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// Where libraries lie when `LD_LIBRARY_PATH` does not say otherwise.
const LIBRARY_DIRECTORIES: [&str; 8] = [
    "/lib/x86_64-linux-gnu",
    "/usr/lib/x86_64-linux-gnu",
    "/usr/lib64",
    "/lib64",
    "/usr/lib",
    "/lib",
    "/usr/local/lib64",
    "/usr/local/lib",
];

/// Where executables lie when `PATH` does not say otherwise.
const PROGRAM_DIRECTORIES: [&str; 6] =
    ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"];

/// No file for a name.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("no file `{name}` in {}", searched.iter().map(|d| d.display().to_string()).collect::<Vec<_>>().join(":"))]
pub struct LibraryNotFound {
    /// The name asked for.
    pub name: String,
    /// The directories looked at.
    pub searched: Vec<PathBuf>,
}

/// Finds the file that `name` stands for: a path as it is, `libc.so.6` and `libc` in the directories of libraries
/// (`LD_LIBRARY_PATH` first), anything else in `PATH`.
///
/// # Errors
/// [`LibraryNotFound`] with the directories that were looked at.
pub fn find_library(name: &str) -> Result<PathBuf, LibraryNotFound> {
    if name.contains('/') {
        let path = PathBuf::from(name);
        return if path.is_file() {
            Ok(path)
        } else {
            Err(LibraryNotFound {
                name: name.to_owned(),
                searched: vec![path.parent().unwrap_or(&path).to_owned()],
            })
        };
    }
    let libraries = directories("LD_LIBRARY_PATH", &LIBRARY_DIRECTORIES);
    if name.contains(".so") {
        return find_in(&libraries, name, false).ok_or_else(|| not_found(name, libraries));
    }
    let programs = directories("PATH", &PROGRAM_DIRECTORIES);
    find_in(&programs, name, true)
        .or_else(|| bare_library(&libraries, name))
        .ok_or_else(|| not_found(name, programs.into_iter().chain(libraries).collect()))
}

fn not_found(name: &str, searched: Vec<PathBuf>) -> LibraryNotFound {
    LibraryNotFound { name: name.to_owned(), searched }
}

fn directories(variable: &str, defaults: &[&str]) -> Vec<PathBuf> {
    let given = env::var_os(variable).unwrap_or_default();
    let mut all: Vec<PathBuf> = env::split_paths(&given).filter(|p| p.is_absolute()).collect();
    for directory in defaults.iter().map(PathBuf::from) {
        if !all.contains(&directory) {
            all.push(directory);
        }
    }
    all
}

fn find_in(directories: &[PathBuf], name: &str, executable: bool) -> Option<PathBuf> {
    directories.iter().map(|d| d.join(name)).find(|p| usable(p, executable))
}

fn usable(path: &Path, executable: bool) -> bool {
    let Ok(meta) = path.metadata() else { return false };
    meta.is_file() && (!executable || meta.permissions().mode() & 0o111 != 0)
}

/// `libc` → `libc.so.6`, `c` → `libc.so.6`: the run-time name with the highest version; a linker script is not one.
fn bare_library(directories: &[PathBuf], name: &str) -> Option<PathBuf> {
    let stem = if name.starts_with("lib") { name.to_owned() } else { format!("lib{name}") };
    let prefix = format!("{stem}.so");
    for directory in directories {
        let Ok(entries) = directory.read_dir() else { continue };
        let mut found: Vec<(Vec<u64>, PathBuf)> = entries
            .filter_map(|e| {
                let path = e.ok()?.path();
                let file_name = path.file_name()?.to_str()?;
                let rest = file_name.strip_prefix(&prefix)?;
                let numbers: Option<Vec<u64>> =
                    rest.split('.').filter(|p| !p.is_empty()).map(|p| p.parse().ok()).collect();
                let is_name = rest.is_empty() || rest.starts_with('.');
                (is_name && usable(&path, false) && is_elf(&path))
                    .then(|| numbers.map(|n| (n, path.clone())))?
            })
            .collect();
        found.sort();
        // `libx.so.1` rather than its target `libx.so.1.2.3`: the name that programs load.
        let best = found.iter().rev().find(|(n, _)| n.len() == 1).or_else(|| found.last());
        if let Some((_, path)) = best {
            return Some(path.clone());
        }
    }
    None
}

fn is_elf(path: &Path) -> bool {
    use std::io::Read;
    let mut magic = [0; 4];
    std::fs::File::open(path).and_then(|mut f| f.read_exact(&mut magic)).is_ok() && magic == *b"\x7fELF"
}
