//! What programs compiled by clang may do, case by case: `tests/programs/*.bpf.c`.
//!
//! A case is a comment in the source, `CASE == 3 /* what it shows: accept 7 */`; it is compiled by itself. What is accepted
//! runs on both engines and returns the number. The same is asked of the kernel where `bpftool` may load programs.

use beeline_engine::{Engine, EngineError, LoadOptions, RunOptions, StoreName};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

struct Case {
    number: u32,
    name: String,
    /// `accept 7`, `reject`, `reject part of the reason`.
    expected: String,
}

fn cases(source: &str) -> Vec<Case> {
    let found = source.split("CASE == ").skip(1).filter_map(|part| {
        let (number, rest) = part.split_once(" /* ")?;
        let (name, expected) =
            rest.split_once(" */")?.0.rsplit_once(": ").unwrap_or_else(|| panic!("{rest}"));
        Some(Case { number: number.parse().ok()?, name: name.into(), expected: expected.into() })
    });
    found.collect()
}

struct Scratch(tempfile::TempDir);

impl Scratch {
    fn new() -> Scratch {
        Scratch(tempfile::Builder::new().prefix("beeline-cases-").tempdir_in("/dev/shm").expect("tmpfs"))
    }

    fn engine(&self) -> Engine {
        Engine::open_or_create(&StoreName::Path(self.0.path().join("store"))).expect("a new store")
    }

    /// Compiles one case; `None`, with a message, where there is no clang for BPF.
    fn compile(&self, source: &Path, case: u32) -> Option<PathBuf> {
        let output = self.0.path().join(format!("case{case}.o"));
        let clang = Command::new("clang")
            .args(["-g", "-O2", "-mcpu=v3", "-target", "bpf", &format!("-DCASE={case}"), "-c"])
            .arg(source)
            .arg("-o")
            .arg(&output)
            .output();
        match clang {
            Ok(result) => assert!(result.status.success(), "{}", String::from_utf8_lossy(&result.stderr)),
            Err(error) => {
                println!("skipped: clang does not run: {error}");
                return None;
            }
        }
        Some(output)
    }
}

/// What comes of a program here, in the words of a case.
fn here(engine: &Engine, object: &Path) -> String {
    let loaded = match engine.load(object, &LoadOptions::default()) {
        Ok(loaded) => loaded,
        Err(EngineError::Rejected { rejection, .. }) => return format!("reject {}", rejection.reason),
        Err(error) => return format!("error {error}"),
    };
    let programs = engine.programs().expect("programs");
    let entry = programs.items.iter().find(|entry| entry.program.id == loaded.programs[0].id).expect("it");
    let run = |interpreter| {
        let options = RunOptions { interpreter, ..RunOptions::default() };
        engine
            .test_run(&entry.program, &options)
            .map_or_else(|error| error.to_string(), |run| run.result.to_string())
    };
    let (compiled, interpreted) = (run(false), run(true));
    engine.unload(&loaded.name).expect("unloaded");
    if compiled == interpreted {
        format!("accept {compiled}")
    } else {
        format!("accept {compiled} compiled, {interpreted} interpreted")
    }
}

fn agrees(found: &str, expected: &str) -> bool {
    found == expected || expected.starts_with("reject") && found.starts_with(expected)
}

fn check(file: &str) {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/programs").join(file);
    let text = std::fs::read_to_string(&source).expect("a source");
    let cases = cases(&text);
    assert!(cases.len() > 5, "{file} has cases");
    let scratch = Scratch::new();
    let engine = scratch.engine();
    let mut failures = Vec::new();
    let mut asked = 0;
    for case in &cases {
        let Some(object) = scratch.compile(&source, case.number) else { return };
        let found = here(&engine, &object);
        if !agrees(&found, &case.expected) {
            failures.push(format!("{} {}: {found}, not {}", case.number, case.name, case.expected));
        }
        let Some(kernel) = kernel(&object) else { continue };
        asked += 1;
        if !agrees(&kernel, case.expected.split(' ').next().unwrap_or("")) && !agrees(&kernel, &case.expected)
        {
            failures.push(format!("{} {}: the kernel says {kernel}", case.number, case.name));
        }
    }
    println!("{file}: {} cases, the kernel asked for {asked}", cases.len());
    assert!(failures.is_empty(), "{file}:\n{}", failures.join("\n"));
}

/// The kernel's verdict through bpftool; `None` where it cannot be asked.
fn kernel(object: &Path) -> Option<String> {
    static PINS: AtomicU32 = AtomicU32::new(0);
    let number = PINS.fetch_add(1, Ordering::Relaxed);
    let pin = format!("/sys/fs/bpf/beeline-case-{}-{number}", std::process::id());
    let bpftool = ["bpftool", "/usr/sbin/bpftool"];
    let mut outputs = bpftool
        .iter()
        .filter_map(|tool| Command::new(tool).args(["prog", "load"]).arg(object).arg(&pin).output().ok());
    let output = outputs.next()?;
    let _ = std::fs::remove_file(&pin);
    let log = String::from_utf8_lossy(&output.stderr).into_owned();
    if output.status.success() {
        return Some("accept".into());
    }
    let before = log.lines().take_while(|line| !line.starts_with("processed ")).last();
    // Without a log it was not the verifier who refused.
    log.contains("\nprocessed ").then(|| format!("reject {}", before.unwrap_or("")))
}

#[test]
fn iterators() {
    check("iterators.bpf.c");
}

#[test]
fn kernel_objects_and_maps() {
    check("objects.bpf.c");
}
