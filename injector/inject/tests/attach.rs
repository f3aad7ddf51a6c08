//! Probes in real processes: exact counts, and no trace of them afterwards.

mod support;

use beeline_inject::{
    DetachOptions, Ended, ProbeKind, ProbeState, StartCommand, TargetRefused, attach, attached_processes,
    detach, inspect, start,
};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use support::targets::{Target, compile};
use support::{Store, descriptors, snapshot, symbol};

/// Reads a number, calls `probed` so many times in each of four threads, prints the sum of the results.
const CALLER: &str = r#"
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>
__attribute__((noinline, noclone)) long probed(long a, long b) { __asm__ volatile(""); return a * 3 + b; }
__attribute__((noinline, noclone)) long outer(long a) { long r = probed(a, 1); __asm__ volatile("" : "+r"(r)); return r + 1; }
__attribute__((noinline, noclone)) long deep(long n) { if (n == 0) return 0; long r = deep(n - 1); __asm__ volatile("" : "+r"(r)); return r + 1; }
static long count;
static void *run(void *arg) {
    long sum = 0;
    for (long i = 0; i < count; i++) sum += outer(i);
    sum += deep(100);
    return (void *)sum;
}
int main(void) {
    setvbuf(stdin, 0, _IONBF, 0);
    printf("ready %d\n", getpid()); fflush(stdout);
    while (scanf("%ld", &count) == 1) {
        pthread_t t[4]; long sum = 0;
        for (int i = 0; i < 4; i++) pthread_create(&t[i], 0, run, 0);
        for (int i = 0; i < 4; i++) { void *r; pthread_join(t[i], &r); sum += (long)r; }
        printf("%ld\n", sum); fflush(stdout);
    }
    return 7;
}
"#;

fn expected(count: i64) -> String {
    (4 * ((0..count).map(|a| a * 3 + 2).sum::<i64>() + 100)).to_string()
}

/// The caller, and where its file is.
fn caller(name: &str) -> Option<(Target, PathBuf)> {
    let target = Target::start(name, CALLER)?;
    let path = std::fs::read_link(format!("/proc/{}/exe", target.pid())).unwrap();
    Some((target, path))
}

impl Target {
    fn ask(&mut self, count: i64) {
        writeln!(self.child.stdin.as_mut().unwrap(), "{count}").unwrap();
        assert_eq!(self.line(), expected(count));
    }
}

#[test]
fn counts_are_exact_and_everything_comes_out() {
    let Some((mut target, path)) = caller("exact") else { return };
    let pid = target.pid();
    let mut store = Store::new();
    let map = store.array(8);
    store.count(map, 0, ProbeKind::Entry, &path, "probed");
    store.count(map, 1, ProbeKind::Return, &path, "outer");
    store.count(map, 2, ProbeKind::Entry, &path, "deep");
    store.count(map, 3, ProbeKind::Return, &path, "deep");
    target.ask(10);
    let before = snapshot(pid);
    let files = descriptors(pid);
    assert_eq!(inspect(pid).unwrap(), None);
    for round in 1..=3 {
        let report = attach(pid, &store.request).unwrap();
        assert!(report.first);
        assert_eq!(report.in_force(), 4, "{report:?}");
        let attached = inspect(pid).unwrap().unwrap();
        assert_eq!(attached.links(), [300, 301, 302, 303]);
        assert!(!attached.incomplete && attached.sites.iter().all(|site| site.in_place), "{attached:?}");
        assert!(attached_processes().iter().any(|attached| attached.pid == pid));
        target.ask(1000);
        let counts: Vec<u64> = (0..4).map(|index| store.value(map, index)).collect();
        assert_eq!(counts, [4000 * round, 4000 * round, 404 * round, 404 * round]);
        assert_eq!(descriptors(pid), files);
        let report = detach(pid, &DetachOptions::default()).unwrap();
        assert_eq!((report.restored, report.left), (3, None));
        assert_eq!(inspect(pid).unwrap(), None);
        target.ask(10);
    }
    let after = snapshot(pid);
    // Stacks of ended threads stay mapped in the C library's cache; what it keeps there is its own affair.
    assert_eq!(before.len(), after.len(), "{:#?}", after.iter().map(|m| &m.0).collect::<Vec<_>>());
    assert!(before == after);
    assert_eq!((0..4).map(|link| store.missed(300 + link)).sum::<u64>(), 0);
}

#[test]
fn more_links_in_steps() {
    let Some((mut target, path)) = caller("steps") else { return };
    let pid = target.pid();
    let mut store = Store::new();
    let map = store.array(8);
    store.count(map, 0, ProbeKind::Entry, &path, "probed");
    assert_eq!(attach(pid, &store.request).unwrap().in_force(), 1);
    target.ask(100);
    // A second program on the same site, a new map, a return probe, another function.
    let other = store.array(8);
    store.count(other, 0, ProbeKind::Entry, &path, "probed");
    store.count(other, 1, ProbeKind::Return, &path, "probed");
    store.count(map, 1, ProbeKind::Entry, &path, "outer");
    let report = attach(pid, &store.request).unwrap();
    assert!(!report.first);
    assert_eq!(report.probes[0].state, ProbeState::AlreadyInForce);
    assert_eq!(report.in_force(), 4, "{report:?}");
    target.ask(100);
    assert_eq!([0, 1].map(|index| store.value(map, index)), [800, 400]);
    assert_eq!([0, 1].map(|index| store.value(other, index)), [400, 400]);
    // Nothing new is nothing to do.
    let report = attach(pid, &store.request).unwrap();
    assert_eq!((report.in_force(), report.threads), (4, 0));
    let attached = inspect(pid).unwrap().unwrap();
    assert_eq!((attached.sites.len(), attached.links().len(), attached.maps.len()), (2, 4, 2));
    let report = detach(pid, &DetachOptions::default()).unwrap();
    assert_eq!((report.restored, report.left), (2, None));
    target.ask(100);
    assert_eq!([0, 1].map(|index| store.value(map, index)), [800, 400]);
}

#[test]
fn helpers_are_linked() {
    let Some((mut target, path)) = caller("helpers") else { return };
    let pid = target.pid();
    let mut store = Store::new();
    let map = store.array(1);
    let program = store.thread_id_adder(map, 0);
    // `puts` or `printf` of the main thread alone: once for an answer.
    let libc = libc_of(pid);
    store.probe(program, ProbeKind::Entry, &libc, symbol("fflush"));
    assert_eq!(attach(pid, &store.request).unwrap().in_force(), 1);
    target.ask(1);
    target.ask(1);
    assert_eq!(store.value(map, 0), 2 * pid as u64);
    let _ = path;
    detach(pid, &DetachOptions::default()).unwrap();
}

fn libc_of(pid: i32) -> PathBuf {
    let process = beeline_remote::Process::open(pid, false).unwrap();
    let maps = process.maps().unwrap();
    let found =
        maps.iter().find(|mapping| mapping.name.contains("libc.so") || mapping.name.contains("libc-"));
    PathBuf::from(&found.expect("a C library").name)
}

#[test]
fn malloc_of_the_c_library() {
    let Some((mut target, _)) = caller("malloc") else { return };
    let pid = target.pid();
    let libc = libc_of(pid);
    let mut store = Store::new();
    let map = store.array(16);
    for (index, function) in ["malloc", "free", "calloc", "read", "write"].into_iter().enumerate() {
        store.count(map, index as u32, ProbeKind::Entry, &libc, function);
        store.count(map, 8 + index as u32, ProbeKind::Return, &libc, function);
    }
    let report = attach(pid, &store.request).unwrap();
    assert_eq!(report.in_force(), 10, "{report:?}");
    for _ in 0..20 {
        target.ask(10);
    }
    // The main thread waits in read(): its return probe is outstanding, and is put back.
    let report = detach(pid, &DetachOptions::default()).unwrap();
    assert_eq!((report.restored, report.left), (5, None));
    assert!(report.returns > 0);
    let written = store.value(map, 4);
    assert_eq!(written, 20);
    // The last one may not have returned when its return address was put back.
    assert!((19..=20).contains(&store.value(map, 12)));
    target.ask(10);
    assert_eq!(store.value(map, 4), written);
}

#[test]
fn counters_of_each_cpu_are_exact() {
    let Some((mut target, path)) = caller("per-cpu") else { return };
    let pid = target.pid();
    let mut store = Store::new();
    let map = store.array(8 * 64);
    let program = store.cpu_counter(map, 0);
    let entry = store.probe(program, ProbeKind::Entry, &path, symbol("probed"));
    let program = store.cpu_counter(map, 1);
    let returning = store.probe(program, ProbeKind::Return, &path, symbol("outer"));
    assert_eq!(attach(pid, &store.request).unwrap().in_force(), 2);
    for _ in 0..5 {
        target.ask(50_000);
    }
    let found = [store.cpu_value(map, 0), store.cpu_value(map, 1)];
    let missed = [store.missed(entry), store.missed(returning)];
    assert_eq!((found, missed), ([1_000_000, 1_000_000], [0, 0]));
    assert_eq!(detach(pid, &DetachOptions::default()).unwrap().left, None);
    target.ask(10);
}

#[test]
fn refusals() {
    let Some((mut target, path)) = caller("refusals") else { return };
    let pid = target.pid();
    let mut store = Store::new();
    let map = store.array(1);
    let program = store.counter(map, 0);
    store.probe(program, ProbeKind::Entry, &path, symbol("prob"));
    store.probe(program, ProbeKind::Entry, Path::new("/proc/self/exe"), symbol("main"));
    store.probe(program, ProbeKind::Entry, &path, symbol("probed"));
    target.ask(5);
    let before = snapshot(pid);
    assert!(matches!(detach(pid, &DetachOptions::default()), Err(TargetRefused::NotAttached { .. })));
    let report = attach(pid, &store.request).unwrap();
    assert!(
        matches!(&report.probes[0].state, ProbeState::Refused { reason } if reason.contains("probed")),
        "{report:?}"
    );
    assert!(matches!(&report.probes[1].state, ProbeState::NotMapped { .. }), "{report:?}");
    assert!(matches!(&report.probes[2].state, ProbeState::Placed { .. }), "{report:?}");
    target.ask(5);
    assert_eq!(store.value(map, 0), 20);
    // Another store's probes do not go into the same process.
    let mut other = Store::new();
    other.request.store_uuid = [9, 9];
    let map = other.array(1);
    other.count(map, 0, ProbeKind::Entry, &path, "probed");
    assert!(matches!(attach(pid, &other.request), Err(TargetRefused::OtherStore { .. })));
    detach(pid, &DetachOptions::default()).unwrap();
    target.ask(5);
    assert_eq!(before.len(), snapshot(pid).len());
    assert!(matches!(attach(0x3fff_ffff, &other.request), Err(TargetRefused::Stop(_))));
}

#[test]
fn started_from_the_first_instruction() {
    let source = CALLER.replace(
        "int main(void) {",
        "__attribute__((constructor)) static void early(void) { outer(1); }\nint main(void) {\n    for (long i = 0; i < 50; i++) outer(i);",
    );
    let source = source.replace(
        "while (scanf(\"%ld\", &count) == 1)",
        "count = 10; for (int round = 0; round < 2; round++)",
    );
    let Some(path) = compile("started", &source) else { return };
    let mut store = Store::new();
    let map = store.array(2);
    store.count(map, 0, ProbeKind::Entry, &path, "probed");
    store.count(map, 1, ProbeKind::Return, &path, "probed");
    let command = StartCommand { program: path.clone(), arguments: Vec::new(), environment: None };
    let started = start(&command, &store.request).unwrap();
    assert_eq!(started.report.in_force(), 2, "{:?}", started.report);
    assert_eq!(started.wait().unwrap(), Ended::Exited(7));
    assert_eq!([0, 1].map(|index| store.value(map, index)), [131, 131]);
    let absent = StartCommand { program: "/absent".into(), ..command };
    assert!(matches!(start(&absent, &store.request), Err(TargetRefused::NotStarted { .. })));
}

#[test]
fn static_programs() {
    for (name, compiler, flags) in [
        ("static", "gcc", &["-static", "-O1", "-pthread"][..]),
        ("static-pie", "gcc", &["-static-pie", "-O1", "-pthread"][..]),
        ("musl", "musl-gcc", &["-O1", "-pthread"][..]),
        ("musl-static", "musl-gcc", &["-static", "-O1", "-pthread"][..]),
    ] {
        let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
        let (source, path) = (folder.join(format!("caller-{name}.c")), folder.join(format!("caller-{name}")));
        std::fs::write(&source, CALLER).unwrap();
        match Command::new(compiler).args(flags).arg("-o").arg(&path).arg(&source).status() {
            Ok(status) => assert!(status.success(), "{compiler} fails"),
            Err(_) => {
                println!("skipped: {name}, no {compiler}");
                continue;
            }
        }
        let mut target = Target::run(&path);
        let pid = target.pid();
        let mut store = Store::new();
        let map = store.array(4);
        store.count(map, 0, ProbeKind::Entry, &path, "probed");
        store.count(map, 1, ProbeKind::Return, &path, "deep");
        store.count(map, 2, ProbeKind::Entry, &path, "main");
        let cpus = store.array(8 * 64);
        let program = store.cpu_counter(cpus, 0);
        let per_cpu = store.probe(program, ProbeKind::Entry, &path, symbol("outer"));
        target.ask(10);
        let before = snapshot(pid).len();
        assert_eq!(attach(pid, &store.request).unwrap().in_force(), 4, "{name}");
        target.ask(1000);
        assert_eq!((store.cpu_value(cpus, 0), store.missed(per_cpu)), (4000, 0), "{name}");
        assert_eq!([0, 1].map(|index| store.value(map, index)), [4000, 404], "{name}");
        assert_eq!(detach(pid, &DetachOptions::default()).unwrap().left, None, "{name}");
        target.ask(10);
        assert_eq!(snapshot(pid).len(), before, "{name}");
        // And from the beginning: it reads no number and ends.
        let command = StartCommand { program: path.clone(), arguments: Vec::new(), environment: None };
        let started = start(&command, &store.request).unwrap();
        assert_eq!(started.report.in_force(), 4, "{name}: {:?}", started.report);
        assert_eq!(started.wait().unwrap(), Ended::Exited(7), "{name}");
        assert_eq!(store.value(map, 2), 1, "{name}");
    }
}

/// Goroutines that grow their stacks and are preempted, and call the probed function meanwhile.
const GO: &str = r#"
package main

import (
	"bufio"
	"fmt"
	"os"
	"sync"
)

//go:noinline
func probed(a, b int64) int64 { return a*3 + b }

//go:noinline
func deep(n int64) int64 {
	var room [64]int64
	room[n%64] = n
	if n == 0 {
		return 0
	}
	return deep(n-1) + 1 + room[(n+1)%64]
}

func main() {
	fmt.Println("ready")
	in := bufio.NewReader(os.Stdin)
	for {
		var count int64
		if _, err := fmt.Fscan(in, &count); err != nil {
			os.Exit(7)
		}
		var wait sync.WaitGroup
		var lock sync.Mutex
		var sum int64
		for i := 0; i < 8; i++ {
			wait.Add(1)
			go func() {
				defer wait.Done()
				var mine int64
				for j := int64(0); j < count; j++ {
					mine += probed(j, 2)
				}
				mine += deep(1000)
				lock.Lock()
				sum += mine
				lock.Unlock()
			}()
		}
		wait.Wait()
		fmt.Println(sum)
	}
}
"#;

#[test]
fn go_programs() {
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
    let (source, path) = (folder.join("caller.go"), folder.join("caller-go"));
    std::fs::write(&source, GO).unwrap();
    let build = Command::new("go")
        .args(["build", "-o"])
        .arg(&path)
        .arg(&source)
        .env("CGO_ENABLED", "0")
        .env("GOCACHE", folder.join("go-cache"))
        .env("GO111MODULE", "off")
        .status();
    match build {
        Ok(status) => assert!(status.success(), "go build fails"),
        Err(_) => {
            println!("skipped: no go");
            return;
        }
    }
    let mut target = Target::run(&path);
    let pid = target.pid();
    let ask = |target: &mut Target, count: i64| {
        writeln!(target.child.stdin.as_mut().unwrap(), "{count}").unwrap();
        assert_eq!(target.line(), (8 * ((0..count).map(|a| a * 3 + 2).sum::<i64>() + 1000)).to_string());
    };
    let mut store = Store::new();
    let map = store.array(4);
    let probed = store.count(map, 0, ProbeKind::Entry, &path, "main.probed");
    store.count(map, 1, ProbeKind::Entry, &path, "main.main");
    let returning = store.count(map, 2, ProbeKind::Return, &path, "main.probed");
    ask(&mut target, 100);
    let report = attach(pid, &store.request).unwrap();
    let state = |link: u32| &report.probes.iter().find(|probe| probe.link_id == link).unwrap().state;
    assert!(matches!(state(probed), ProbeState::Placed { .. }), "{report:?}");
    assert!(matches!(state(returning), ProbeState::Placed { .. }), "{report:?}");
    for _ in 0..10 {
        ask(&mut target, 1000);
    }
    assert_eq!(store.value(map, 0) + store.missed(probed), 80_000);
    assert_eq!(store.missed(probed), 0);
    assert_eq!(store.value(map, 2) + store.missed(returning), 80_000);
    assert_eq!(detach(pid, &DetachOptions::default()).unwrap().left, None);
    ask(&mut target, 1000);
    // And from the beginning.
    let command = StartCommand { program: path.clone(), arguments: Vec::new(), environment: None };
    let started = start(&command, &store.request).unwrap();
    assert_eq!(started.wait().unwrap(), Ended::Exited(7));
    assert_eq!(store.value(map, 1), 1);
}

/// Threads that sleep in `nanosleep` until told to call.
const SLEEPERS: &str = r#"
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>
__attribute__((noinline, noclone)) long probed(long a) { __asm__ volatile(""); return a + 1; }
static volatile int go;
static void *run(void *arg) {
    struct timespec ms = {0, 20000000};
    while (!go) if (nanosleep(&ms, 0)) abort();
    long sum = 0;
    for (long i = 0; i < 10; i++) sum += probed(i);
    return (void *)sum;
}
int main(void) {
    static pthread_t t[COUNT];
    pthread_attr_t a; pthread_attr_init(&a); pthread_attr_setstacksize(&a, 65536);
    for (int i = 0; i < COUNT; i++) if (pthread_create(&t[i], &a, run, 0)) abort();
    printf("ready\n"); fflush(stdout);
    char c;
    if (read(0, &c, 1) != 1) abort();
    go = 1;
    long sum = 0;
    for (int i = 0; i < COUNT; i++) { void *r; pthread_join(t[i], &r); sum += (long)r; }
    printf("%ld\n", sum);
    return 0;
}
"#;

#[test]
fn many_threads() {
    for count in [1usize, 50, 500] {
        let source = SLEEPERS.replace("COUNT", &count.to_string());
        let Some(mut target) = Target::start(&format!("sleepers{count}"), &source) else { return };
        let pid = target.pid();
        let path = std::fs::read_link(format!("/proc/{pid}/exe")).unwrap();
        let mut store = Store::new();
        let map = store.array(1);
        store.count(map, 0, ProbeKind::Entry, &path, "probed");
        let report = attach(pid, &store.request).unwrap();
        assert_eq!((report.in_force(), report.threads), (1, count + 1));
        println!("{count} threads: stopped for {:?}", report.stopped);
        target.child.stdin.as_mut().unwrap().write_all(b"x").unwrap();
        assert_eq!(target.line(), (55 * count).to_string());
        assert_eq!(store.value(map, 0), 10 * count as u64);
    }
}

/// A 32-bit program that waits: `mov $29 (pause),%eax; int $0x80; jmp`.
fn program_of_32_bits() -> Vec<u8> {
    let mut file = vec![0x7f, b'E', b'L', b'F', 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 3, 0];
    let base = 0x0804_8000u32;
    for word in [1, base + 84, 52, 0, 0, 52 | 32 << 16, 1, 0] {
        file.extend(u32::to_le_bytes(word));
    }
    for word in [1, 0, base, base, 93, 93, 5, 0x1000] {
        file.extend(u32::to_le_bytes(word));
    }
    file.extend([0xb8, 29, 0, 0, 0, 0xcd, 0x80, 0xeb, 0xf7]);
    file
}

#[test]
fn processes_of_32_bits_are_left_alone() {
    use std::os::unix::fs::PermissionsExt;
    let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("waits-32");
    std::fs::write(&path, program_of_32_bits()).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    let Ok(mut child) = Command::new(&path).spawn() else {
        println!("skipped: this kernel runs no 32-bit programs");
        return;
    };
    let store = Store::new();
    let error = attach(child.id() as i32, &store.request).unwrap_err();
    assert!(matches!(error, TargetRefused::WrongArchitecture { .. }), "{error}");
    child.kill().unwrap();
    child.wait().unwrap();
    let command = StartCommand { program: path, arguments: Vec::new(), environment: None };
    let error = start(&command, &store.request).unwrap_err();
    assert!(matches!(error, TargetRefused::WrongArchitecture { .. }), "{error}");
}
