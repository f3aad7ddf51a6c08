//! The benchmark of system calls runs: every row is there, with figures. What the figures are is no test.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The `beeline` command, where it has been built (`cargo xtask test` does that first).
fn beeline() -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_BIN_EXE_beeline-benches")).with_file_name("beeline");
    path.is_file().then_some(path)
}

fn runs(program: &str) -> bool {
    Command::new(program).arg("--version").output().is_ok_and(|output| output.status.success())
}

/// Why it cannot run here.
fn obstacle() -> Option<&'static str> {
    let user = std::fs::metadata("/proc/self").map(|own| own.uid());
    let libbpf = Path::new("/usr/include/bpf/libbpf.h");
    match () {
        () if beeline().is_none() => Some("no beeline command is built"),
        () if !matches!(user, Ok(0)) => Some("attaching takes root here"),
        () if !runs("clang") || !runs("gcc") => Some("no compilers"),
        () if !libbpf.is_file() => Some("no libbpf"),
        () => None,
    }
}

#[test]
fn every_row_has_figures() {
    if let Some(obstacle) = obstacle() {
        println!("skipped: {obstacle}");
        return;
    }
    let output = Command::new(env!("CARGO_BIN_EXE_beeline-benches"))
        .arg("--beeline")
        .arg(beeline().expect("looked for above"))
        .args(["--rounds", "1", "syscalls"])
        .output()
        .expect("runs");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    for call in ["getppid", "read", "openat + close"] {
        for by in ["libc's function", "syscall(2)"] {
            for tracing in ["enter + exit", "enter", "nobody's, kill is traced"] {
                let title = format!("{:60} ", format!("{call}, {by}, {tracing}"));
                let rows: Vec<&str> =
                    text.lines().skip_while(|line| !line.starts_with(&title)).take(3).collect();
                assert_eq!(rows.len(), 3, "{title}: {text}");
                assert!(figures(rows[0], "none") == 3, "{title}: {text}");
                assert!(
                    rows[1].contains("not measured") || figures(rows[1], "kernel") == 4,
                    "{title}: {text}"
                );
                assert!(figures(rows[2], "beeline") >= 4, "{title}: {text}");
            }
        }
    }
    let server = text.split_once("wrk on nginx").expect("is there").1;
    assert!(server.contains("skipped: ") || server.contains("calls a request"), "{text}");
}

/// How many numbers follow the variant.
fn figures(row: &str, variant: &str) -> usize {
    let Some((_, figures)) = row.split_once(&format!(" {variant} ")) else { return 0 };
    figures.split_whitespace().filter(|word| word.parse::<f64>().is_ok_and(f64::is_finite)).count()
}
