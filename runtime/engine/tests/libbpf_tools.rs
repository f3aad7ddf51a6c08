//! The programs of Debian's `libbpf-tools` (0.26), taken from the commands that carry them: those that trace userspace or
//! system calls are accepted, all of them; of the others each is accepted or refused for a reason that is known.
//!
//! Without the package the tests say so and pass.

use beeline_engine::{EngineError, verify};
use beeline_object::embedded;
use std::path::Path;

/// Commands whose probes are in userspace or at system calls.
const USERSPACE: [&str; 12] = [
    "bashreadline",
    "execsnoop",
    "exitsnoop",
    "funclatency",
    "gethostlatency",
    "javagc",
    "killsnoop",
    "mountsnoop",
    "opensnoop",
    "sigsnoop",
    "statsnoop",
    "syscount",
];

/// The others: what happens there, a process does not see.
const KERNEL: [&str; 40] = [
    "bindsnoop",
    "biolatency",
    "biopattern",
    "biosnoop",
    "biostacks",
    "biotop",
    "bitesize",
    "cachestat",
    "capable",
    "cpudist",
    "cpufreq",
    "drsnoop",
    "filelife",
    "filetop",
    "fsdist",
    "fsslower",
    "hardirqs",
    "klockstat",
    "ksnoop",
    "llcstat",
    "mdflush",
    "numamove",
    "offcputime",
    "oomkill",
    "readahead",
    "runqlat",
    "runqlen",
    "runqslower",
    "slabratetop",
    "softirqs",
    "solisten",
    "tcpconnect",
    "tcpconnlat",
    "tcplife",
    "tcprtt",
    "tcpstates",
    "tcpsynbl",
    "tcptop",
    "tcptracer",
    "vfsstat",
];

/// Why a program of a kernel's tool may be refused.
const REASONS: [&str; 2] = [
    // fentry, fexit and tp_btf: functions and tracepoints of a kernel.
    "program type 26 is not supported in userspace",
    // libbpf's mark of a field that this kernel's types do not have: such programs are refused by the kernel too, and the
    // tools leave them out when they see that.
    "invalid func unknown#195896080",
];

/// Most instructions that any of them takes to verify; ksnoop, whose loops are unrolled, takes ten times what the second does.
const INSNS_PROCESSED_MAX: u64 = 20_000;

/// One program of a tool: its name, instructions processed or why it is refused.
type Outcome = (String, Result<u64, String>);

/// Verifies what a command carries. `None` when it is not installed.
fn outcomes(tool: &str) -> Option<Vec<Outcome>> {
    let file = std::fs::read(Path::new("/usr/sbin").join(tool)).ok()?;
    let mut outcomes = Vec::new();
    for range in embedded::objects(&file) {
        // libbpf names maps after the object.
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join(format!("{tool}.bpf.o"));
        std::fs::write(&path, &file[range]).expect("a file");
        let verdicts = verify(&path, None, &[], 0).unwrap_or_else(|error| panic!("{tool}: {error}"));
        outcomes.extend(verdicts.into_iter().map(|verdict| {
            let result = verdict.result.map(|stats| stats.insns_processed).map_err(|error| match error {
                EngineError::Rejected { rejection, .. } => rejection.reason,
                error => error.to_string(),
            });
            (format!("{tool} {} ({})", verdict.program, verdict.section), result)
        }));
    }
    Some(outcomes)
}

fn is_installed() -> bool {
    let is_there = Path::new("/usr/sbin/execsnoop").exists() && Path::new("/usr/sbin/javagc").exists();
    if !is_there {
        println!("skipped: the package libbpf-tools is not installed");
    }
    is_there
}

#[test]
fn tools_for_userspace_are_accepted() {
    if !is_installed() {
        return;
    }
    let (mut accepted, mut refused) = (0, Vec::new());
    for tool in USERSPACE {
        let outcomes = outcomes(tool).unwrap_or_else(|| panic!("{tool} is not in the package"));
        assert!(!outcomes.is_empty(), "{tool} carries no programs");
        for (program, result) in outcomes {
            match result {
                Ok(insns) => {
                    accepted += 1;
                    assert!(insns <= INSNS_PROCESSED_MAX, "{program}: {insns} instructions processed");
                }
                Err(reason) => refused.push(format!("{program}: {reason}")),
            }
        }
    }
    println!("{accepted} accepted");
    assert!(refused.is_empty(), "{}", refused.join("\n"));
}

#[test]
fn the_others_are_accepted_or_refused_for_a_known_reason() {
    if !is_installed() {
        return;
    }
    let (mut accepted, mut refused) = (0, Vec::new());
    for tool in KERNEL {
        for (program, result) in outcomes(tool).unwrap_or_else(|| panic!("{tool} is not in the package")) {
            match result {
                Ok(insns) => {
                    accepted += 1;
                    assert!(insns <= INSNS_PROCESSED_MAX, "{program}: {insns} instructions processed");
                }
                Err(reason) => refused.push(format!("{program}: {reason}")),
            }
        }
    }
    println!("{accepted} accepted, refused:\n{}", refused.join("\n"));
    let unknown: Vec<_> =
        refused.iter().filter(|line| !REASONS.iter().any(|reason| line.contains(reason))).collect();
    assert!(unknown.is_empty(), "{unknown:#?}");
    assert!(accepted > refused.len(), "{accepted} accepted, {} refused", refused.len());
}
