//! Breakpoints: exact counts, and a process that uses the signal itself, blocks it, forks, executes.

#[path = "../support/mod.rs"]
mod support;

use beeline_inject::{
    BreakpointUse, DetachOptions, Ended, ProbeKind, ProbeState, StartCommand, attach, detach, inspect, start,
};
use beeline_ptrace::read_status;
use std::io::Write;
use std::path::{Path, PathBuf};
use support::targets::Target;
use support::{Store, snapshot};

const TARGET: &str = include_str!("target.c");

fn target(name: &str) -> Option<(Target, PathBuf)> {
    let target = Target::start(&format!("breakpoints-{name}{}", std::process::id()), TARGET)?;
    let path = std::fs::read_link(format!("/proc/{}/exe", target.pid())).unwrap();
    Some((target, path))
}

fn say(target: &mut Target, what: &str) {
    writeln!(target.child.stdin.as_mut().unwrap(), "{what}").unwrap();
    assert_eq!(target.line(), "0", "{what}: the line of the target at which something went wrong");
}

/// Probes of three functions and of the return of one, all of them breakpoints; how often each is hit by one check.
fn probes(path: &Path) -> (Store, u32, [u64; 4]) {
    let mut store = Store::new();
    let map = store.array(8);
    store.count(map, 0, ProbeKind::Entry, path, "probed");
    store.count(map, 1, ProbeKind::Return, path, "outer");
    store.count(map, 2, ProbeKind::Entry, path, "outer");
    store.count(map, 3, ProbeKind::Entry, path, "looped");
    store.request.breakpoints = BreakpointUse::Everywhere;
    (store, map, [3, 3, 3, 1])
}

fn refusals(report: &beeline_inject::AttachReport) -> Vec<String> {
    let refused = report.probes.iter().filter_map(|probe| match &probe.state {
        ProbeState::Refused { reason } => Some(reason.clone()),
        _ => None,
    });
    refused.collect()
}

/// What the kernel does with signals: ignored, caught.
fn signals(pid: i32) -> Vec<String> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    status
        .lines()
        .filter(|line| line.starts_with("SigIgn") || line.starts_with("SigCgt"))
        .map(str::to_owned)
        .collect()
}

#[test]
fn counts_are_exact_and_everything_comes_out() {
    let Some((mut target, path)) = target("exact") else { return };
    let pid = target.pid();
    say(&mut target, "10");
    let (before, signals_before) = (snapshot(pid), signals(pid));
    let (store, map, hits) = probes(&path);
    for round in 1..=3 {
        let report = attach(pid, &store.request).unwrap();
        assert_eq!(report.in_force(), 4, "{report:#?}");
        let attached = inspect(pid).unwrap().unwrap();
        assert!(attached.sites.iter().all(|site| site.in_place && site.is_breakpoint), "{attached:#?}");
        assert_ne!(signals(pid), signals_before);
        say(&mut target, "1000");
        for (index, hits) in hits.into_iter().enumerate() {
            assert_eq!(store.value(map, index as u32), 3000 * hits * round, "{index}");
        }
        let report = detach(pid, &DetachOptions::default()).unwrap();
        assert_eq!((report.restored, report.left), (3, None));
        assert_eq!(signals(pid), signals_before);
        say(&mut target, "10");
    }
    assert!(before == snapshot(pid));
}

#[test]
fn a_process_that_uses_and_blocks_the_signal() {
    let Some((mut target, path)) = target("uses") else { return };
    let pid = target.pid();
    for what in ["masks", "errors", "actions", "children"] {
        say(&mut target, what);
    }
    let (store, map, _) = probes(&path);
    let report = attach(pid, &store.request).unwrap();
    assert_eq!(report.in_force(), 4, "{report:#?}");
    for what in ["masks", "errors", "actions", "children", "masks", "10"] {
        say(&mut target, what);
    }
    assert!(store.value(map, 0) > 300, "children count as well");
    say(&mut target, "ignore");
    let report = detach(pid, &DetachOptions::default()).unwrap();
    assert_eq!(report.left, None);
    say(&mut target, "ignored");
    // Recorded again, and put back again.
    attach(pid, &store.request).unwrap();
    say(&mut target, "ignored");
    say(&mut target, "10");
    detach(pid, &DetachOptions::default()).unwrap();
    say(&mut target, "ignored");
}

#[test]
fn more_links_in_steps() {
    let Some((mut target, path)) = target("steps") else { return };
    let pid = target.pid();
    let mut store = Store::new();
    let map = store.array(8);
    store.count(map, 0, ProbeKind::Entry, &path, "probed");
    assert_eq!(attach(pid, &store.request).unwrap().in_force(), 1);
    say(&mut target, "100");
    // The first one stays a jump.
    store.request.breakpoints = BreakpointUse::Everywhere;
    store.count(map, 1, ProbeKind::Entry, &path, "looped");
    store.count(map, 2, ProbeKind::Entry, &path, "probed");
    assert_eq!(attach(pid, &store.request).unwrap().in_force(), 3);
    say(&mut target, "100");
    store.request.breakpoints = BreakpointUse::Never;
    store.count(map, 3, ProbeKind::Return, &path, "looped");
    let report = attach(pid, &store.request).unwrap();
    assert_eq!(report.in_force(), 4, "{report:#?}");
    say(&mut target, "masks");
    let before = [0, 1, 2, 3].map(|index| store.value(map, index));
    say(&mut target, "100");
    let counts: Vec<u64> = (0..4).map(|index| store.value(map, index) - before[index as usize]).collect();
    assert_eq!(counts, [900, 300, 900, 300]);
    let breakpoints = inspect(pid).unwrap().unwrap().sites.iter().filter(|site| site.is_breakpoint).count();
    assert_eq!(breakpoints, 1);
    detach(pid, &DetachOptions::default()).unwrap();
    say(&mut target, "masks");
}

#[test]
fn only_where_no_jump_fits_and_only_when_asked() {
    let Some((mut target, path)) = target("asked") else { return };
    let pid = target.pid();
    let (mut store, map, _) = probes(&path);
    // Its one byte is all there is: the next instruction is jumped to, and has a probe of its own.
    let program = store.counter(map, 4);
    let place = |offset| beeline_inject::Location::Symbol { name: "looped".to_owned(), offset };
    store.probe(program, ProbeKind::Entry, &path, place(1));
    store.request.breakpoints = BreakpointUse::Never;
    let report = attach(pid, &store.request).unwrap();
    let reasons = refusals(&report);
    assert!(reasons.len() == 1 && reasons[0].contains("--breakpoints"), "{reasons:?}");
    assert!(inspect(pid).unwrap().unwrap().sites.iter().all(|site| !site.is_breakpoint));
    store.request.breakpoints = BreakpointUse::WhereNoJumpFits;
    let report = attach(pid, &store.request).unwrap();
    assert_eq!(refusals(&report), Vec::<String>::new());
    let attached = inspect(pid).unwrap().unwrap();
    assert_eq!(attached.sites.iter().filter(|site| site.is_breakpoint).count(), 1, "{attached:#?}");
    say(&mut target, "100");
    assert_eq!((store.value(map, 3), store.value(map, 4)), (300, 1200));
    say(&mut target, "masks");
    detach(pid, &DetachOptions::default()).unwrap();
    say(&mut target, "masks");
}

#[test]
fn a_thread_that_blocks_the_signal_is_a_reason() {
    let Some((mut target, path)) = target("blocked") else { return };
    let pid = target.pid();
    say(&mut target, "block");
    let (mut store, map, _) = probes(&path);
    let report = attach(pid, &store.request).unwrap();
    let reasons = refusals(&report);
    assert_eq!(reasons.len(), 4, "{report:#?}");
    assert!(reasons.iter().all(|reason| reason.contains("blocks SIGTRAP")), "{reasons:?}");
    say(&mut target, "10");
    say(&mut target, "unblock");
    assert_eq!(attach(pid, &store.request).unwrap().in_force(), 4);
    say(&mut target, "100");
    assert_eq!(store.value(map, 0), 900);
    // By now nobody can block it.
    say(&mut target, "block");
    let blocked = read_status(pid).unwrap().blocked;
    assert_eq!(blocked & 0x10, 0, "{blocked:#x}");
    say(&mut target, "100");
    store.request.probes.truncate(1);
    detach(pid, &DetachOptions::default()).unwrap();
    say(&mut target, "100");
}

#[test]
fn cycles_under_load() {
    let Some((mut target, path)) = target("cycles") else { return };
    let pid = target.pid();
    let (store, map, _) = probes(&path);
    let rounds = std::env::var("BEELINE_SOAK").ok().and_then(|text| text.parse().ok()).unwrap_or(40);
    for round in 0..rounds {
        let load = if round % 2 == 0 { "hit" } else { "run" };
        say(&mut target, load);
        let before = store.value(map, 0);
        let report = attach(pid, &store.request).unwrap();
        let blocked = refusals(&report).iter().all(|reason| reason.contains("SIGTRAP"));
        assert!(report.in_force() == 4 || load == "run" && blocked, "{report:#?}");
        if report.in_force() == 4 {
            while store.value(map, 0) == before {
                std::thread::yield_now();
            }
        }
        let report = detach(pid, &DetachOptions::default()).unwrap();
        assert_eq!(report.left, None, "{report:#?}");
        say(&mut target, "stop");
    }
    assert_eq!(inspect(pid).unwrap(), None);
    say(&mut target, "actions");
}

#[test]
fn threads_that_wait_with_a_copied_mask_keep_waiting_when_it_is_gone() {
    let Some((mut target, path)) = target("waiting") else { return };
    let pid = target.pid();
    let (store, _, _) = probes(&path);
    assert_eq!(attach(pid, &store.request).unwrap().in_force(), 4);
    say(&mut target, "wait");
    // They are in ppoll nearly all the time; its restart reads the mask again.
    std::thread::sleep(std::time::Duration::from_millis(20));
    let report = detach(pid, &DetachOptions::default()).unwrap();
    assert_eq!(report.left, None);
    say(&mut target, "stop");
    assert_eq!(inspect(pid).unwrap(), None);
}

const GO: &str = r#"
package main

import (
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"sync"
	"syscall"
)

//go:noinline
func work(n int) int {
	if n == 0 {
		return 0
	}
	var room [64]byte
	room[n%64] = 1
	return work(n-1) + int(room[n%64])
}

func main() {
	traps := make(chan os.Signal, 10)
	signal.Notify(traps, syscall.SIGTRAP)
	var group sync.WaitGroup
	results := make([]int, 16)
	for i := range results {
		i := i
		group.Add(1)
		go func() {
			defer group.Done()
			for k := 0; k < 50; k++ {
				results[i] += work(100 + k)
				if k%10 == 0 {
					runtime.GC()
				}
			}
		}()
	}
	group.Wait()
	fmt.Println(results)
	syscall.Kill(os.Getpid(), syscall.SIGTRAP)
	fmt.Println(<-traps)
	out, err := exec.Command("/bin/echo", "child").Output()
	fmt.Println(string(out), err)
}
"#;

#[test]
fn go_with_its_small_stacks_and_its_own_handler() {
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
    let (source, program) = (folder.join("breakpoints.go"), folder.join("breakpoints-go"));
    std::fs::write(&source, GO).unwrap();
    let built = std::process::Command::new("go").arg("build").arg("-o").args([&program, &source]).status();
    if !built.is_ok_and(|status| status.success()) {
        println!("skipped: no Go");
        return;
    }
    let mut store = Store::new();
    let map = store.array(8);
    store.count(map, 0, ProbeKind::Entry, &program, "main.work");
    store.count(map, 1, ProbeKind::Entry, &program, "runtime.mallocgc");
    store.count(map, 2, ProbeKind::Entry, &program, "runtime.schedule");
    store.request.breakpoints = BreakpointUse::Everywhere;
    let command = StartCommand { program: program.clone(), arguments: Vec::new(), environment: None };
    let started = start(&command, &store.request).unwrap();
    assert_eq!(started.report.in_force(), 3, "{:#?}", started.report);
    assert_eq!(started.wait().unwrap(), Ended::Exited(0));
    // Each function jumps back to its entry when its stack has grown.
    let calls: u64 = 16 * (0..50).map(|k| 101 + k).sum::<u64>();
    let hits = store.value(map, 0);
    assert!(hits >= calls && hits < calls + 1000, "{hits} of {calls}");
    assert!(store.value(map, 1) > 100 && store.value(map, 2) > 16);
}
