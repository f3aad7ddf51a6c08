//! Programs and the kernel's verdicts on them, as text: `tests/verdicts/*.bpf`.
//!
//! ```text
//! case a name
//! type socket_filter                 the program's type; raw_tracepoint when not given
//! license Proprietary                GPL when not given
//! map ring ringbuf:0:0:4096          a map, as `corpus` describes it; r1 = map[ring] in the code
//!     r0 = 0                         instructions, as `assemble` reads them
//!     exit
//! unasked                            the kernel wants type information for such a program, which a case does not have
//! accept 0                           or `accept` where the result cannot be compared, or `reject last line of the log`
//! advice what to change              what is said here beside that
//! ```
//!
//! What stands there was said by a 6.18 kernel. Where `../shared/oracle/koracle` and permission to load programs are at hand,
//! the kernel is asked again.

use beeline_vm::{assemble, corpus};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

struct Case {
    name: String,
    prog_type: String,
    maps: Vec<(String, Value)>,
    code: String,
    expected: String,
    unasked: bool,
    license: String,
    advice: Option<String>,
}

fn cases(text: &str) -> Vec<Case> {
    let mut cases: Vec<Case> = Vec::new();
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
        if word == "case" {
            cases.push(Case {
                name: rest.into(),
                prog_type: "raw_tracepoint".into(),
                maps: Vec::new(),
                code: String::new(),
                expected: String::new(),
                unasked: false,
                license: "GPL".into(),
                advice: None,
            });
            continue;
        }
        let case = cases.last_mut().expect("a case begins the file");
        match word {
            "license" => case.license = rest.into(),
            "advice" => case.advice = Some(rest.into()),
            "type" => case.prog_type = rest.into(),
            "map" => {
                let (name, spec) = rest.split_once(' ').expect("a map has a name and a description");
                let spec = serde_json::from_str(spec).unwrap_or_else(|_| spec.into());
                case.maps.push((name.into(), spec));
            }
            "unasked" => case.unasked = true,
            "accept" | "reject" => case.expected = line.into(),
            _ => case.code += &format!("{line}\n"),
        }
    }
    cases
}

/// The case as a row of a corpus, which the verifier here and the kernel read.
fn row(case: &Case) -> Value {
    let mut code = case.code.clone();
    for (index, (name, _)) in case.maps.iter().enumerate() {
        code = code.replace(&format!("map[{name}]"), &format!("map[idx:{index}]"));
    }
    let mut insns = assemble::assemble(&code).unwrap_or_else(|error| panic!("{}: {error}", case.name));
    let mut fixups = serde_json::Map::new();
    let mut pc = 0;
    while pc < insns.len() {
        if insns[pc].is_wide() && matches!(insns[pc].src(), 1 | 2) {
            let (name, _) = &case.maps[insns[pc].imm as usize];
            insns[pc].imm = 0;
            let places = fixups.entry(name.clone()).or_insert_with(|| json!([]));
            places.as_array_mut().expect("a list").push(pc.into());
        }
        pc += if insns[pc].is_wide() { 2 } else { 1 };
    }
    let hex: String =
        insns.iter().flat_map(|insn| insn.to_bytes()).map(|byte| format!("{byte:02x}")).collect();
    let maps: serde_json::Map<_, _> = case.maps.iter().cloned().collect();
    let flags = if case.prog_type == "syscall" { 16 } else { 0 };
    json!({"id": case.name, "insns": hex, "prog_type": case.prog_type, "maps": maps, "fixups": fixups, "prog_flags": flags, "license": case.license})
}

/// An answer in the words of a case.
fn said(answer: &Value, expected: &str) -> String {
    match answer["verdict"].as_str() {
        Some("accept") if expected == "accept" => "accept".into(),
        Some("accept") => format!("accept {}", answer["retval"]),
        _ => format!("reject {}", answer["reason"].as_str().unwrap_or("?")),
    }
}

fn all_cases() -> Vec<Case> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/verdicts");
    let files = std::fs::read_dir(folder).expect("tests/verdicts").map(|entry| entry.expect("a file").path());
    let mut files: Vec<PathBuf> = files.collect();
    files.sort();
    let text = |path: &PathBuf| std::fs::read_to_string(path).expect("text");
    files.iter().flat_map(|path| cases(&text(path))).collect()
}

#[test]
fn verdicts_here() {
    let mut failures = Vec::new();
    let cases = all_cases();
    for case in &cases {
        let answer = corpus::answer(&row(case).to_string());
        let found = said(&answer, &case.expected);
        if found != case.expected {
            let why = answer.get("not_run").map(|why| format!(" ({why})")).unwrap_or_default();
            failures.push(format!("{}:\n    {found}{why}\n    {}", case.name, case.expected));
        }
        let advice = answer["advice"].as_str();
        if case.advice.as_deref().is_some_and(|expected| advice != Some(expected)) {
            failures.push(format!("{}:\n    advice {}", case.name, advice.unwrap_or_default()));
        }
    }
    assert!(failures.is_empty(), "{} of {} differ:\n{}", failures.len(), cases.len(), failures.join("\n"));
}

#[test]
fn verdicts_of_the_kernel() {
    // What stands here was said by that kernel.
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    if !release.starts_with("6.18.") {
        println!("skipped: this kernel is {}, not 6.18", release.trim());
        return;
    }
    let shared = std::env::var_os("BEELINE_SHARED")
        .map_or(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared"), PathBuf::from);
    let oracle = shared.join("oracle/koracle");
    let mut cases = all_cases();
    cases.retain(|case| !case.unasked);
    let rows: String = cases.iter().map(|case| format!("{}\n", row(case))).collect();
    let file = std::env::temp_dir().join(format!("beeline-verdicts-{}.jsonl", std::process::id()));
    std::fs::write(&file, rows).expect("a temporary file");
    let output = Command::new(&oracle).arg("--jsonl").arg(&file).stdin(Stdio::null()).output();
    let _ = std::fs::remove_file(&file);
    let Ok(output) = output else {
        println!("skipped: no {}", oracle.display());
        return;
    };
    let text = String::from_utf8_lossy(&output.stdout);
    let answers: Vec<Value> = text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    if answers.iter().all(|answer| answer["verdict"] == "error" || answer["errno"] == "EPERM") {
        println!("skipped: no permission to load eBPF programs");
        return;
    }
    assert_eq!(answers.len(), cases.len(), "{}", String::from_utf8_lossy(&output.stderr));
    let mut failures = Vec::new();
    for (case, answer) in cases.iter().zip(&answers) {
        let found = said(answer, &case.expected);
        if found != case.expected {
            failures.push(format!("{}:\n    kernel {found}\n    {}", case.name, case.expected));
        }
    }
    assert!(failures.is_empty(), "{} of {} differ:\n{}", failures.len(), cases.len(), failures.join("\n"));
}
