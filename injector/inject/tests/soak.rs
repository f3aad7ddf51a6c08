//! Targets survive injectors that are killed at any moment, and cycles of attaching under load.
//!
//! `BEELINE_SOAK` is the number of rounds; CI runs a slice.

mod support;

use beeline_inject::{DetachOptions, ProbeKind, TargetRefused, attach, detach, inspect};
use beeline_watchdog::Watchdog;
use std::io::{Read, Write};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;
use support::targets::Target;
use support::{Store, descriptors, snapshot};

/// Threads that call probed functions, check every result, and are signalled and forked meanwhile.
const BUSY: &str = r#"
#define _GNU_SOURCE
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
static volatile int stop;
static volatile long signals;
static void die(const char *why) { perror(why); abort(); }
__attribute__((noinline, noclone)) long probed(long a, long b) { __asm__ volatile(""); return a * 3 + b; }
__attribute__((noinline, noclone)) long deep(long n) { if (n == 0) return 0; long r = deep(n - 1); __asm__ volatile("" : "+r"(r)); return r + 1; }
__attribute__((noinline, noclone)) double mixed(double d, long n) { long r = probed(n, 1); __asm__ volatile("" : "+r"(r)); return d * 1.5 + r; }
__attribute__((noinline, noclone)) int pause_in(int ms) { int r = poll(0, 0, ms); __asm__ volatile("" : "+r"(r)); return r; }
static void work(void) {
    for (long i = 0; i < 200; i++) {
        if (probed(i, 7) != i * 3 + 7) die("probed");
        if (mixed(i, i) != i * 1.5 + i * 3 + 1) die("mixed");
    }
    if (deep(60) != 60) die("deep");
}
static void *worker(void *a) { while (!stop) { work(); if (pause_in(0) && errno != EINTR) die("poll"); } return 0; }
static void *sleeper(void *a) { while (!stop) { if (pause_in(3) && errno != EINTR) die("poll"); work(); } return 0; }
static void *maker(void *a) {
    while (!stop) {
        pthread_t t;
        static void *once(void *);
        if (pthread_create(&t, 0, once, 0)) die("pthread_create");
        pthread_join(t, 0);
        struct timespec ms = {0, 1000000};
        nanosleep(&ms, 0);
    }
    return 0;
}
static void *once(void *a) { work(); char *p = malloc(100); memset(p, 1, 100); free(p); return 0; }
static void on(int s) { probed(1, 1); signals++; }
static void *forker(void *a) {
    while (!stop) {
        pid_t p = fork();
        if (p == 0) { work(); _exit(5); }
        int status;
        while (waitpid(p, &status, 0) < 0) if (errno != EINTR) die("waitpid");
        if (!WIFEXITED(status) || WEXITSTATUS(status) != 5) die("child");
        struct timespec ms = {0, 5000000};
        nanosleep(&ms, 0);
    }
    return 0;
}
int main(void) {
    struct sigaction sa = {.sa_handler = on, .sa_flags = SA_RESTART};
    sigaction(SIGUSR1, &sa, 0);
    pthread_t t[5];
    void *(*f[])(void *) = {worker, sleeper, maker, forker, worker};
    for (int i = 0; i < 5; i++) pthread_create(&t[i], 0, f[i], 0);
    printf("ready\n"); fflush(stdout);
    char c;
    for (;;) {
        struct pollfd p = {0, POLLIN, 0};
        int n = poll(&p, 1, 2);
        if (n > 0) break;
        if (n == 0) for (int i = 0; i < 2; i++) pthread_kill(t[4 * i], SIGUSR1);
    }
    if (read(0, &c, 1) != 1) die("read");
    stop = 1;
    for (int i = 0; i < 5; i++) pthread_join(t[i], 0);
    sigset_t now; sigprocmask(0, 0, &now);
    int blocked = 0;
    for (int s = 1; s < 64; s++) blocked += sigismember(&now, s);
    printf("done %d\n", blocked);
    return 0;
}
"#;

const CHILD: &str = "BEELINE_TEST_TARGET";

fn rounds(default: u64) -> u64 {
    std::env::var("BEELINE_SOAK").ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

fn busy(name: &str) -> Option<Target> {
    Target::start(
        name,
        &BUSY
            .replace("        static void *once(void *);\n", "")
            .replace("static void *maker(", "static void *once(void *);\nstatic void *maker("),
    )
}

fn probes(pid: i32) -> (Store, u32) {
    let path = std::fs::read_link(format!("/proc/{pid}/exe")).unwrap();
    let mut store = Store::new();
    let map = store.array(16);
    for (index, function) in
        ["probed", "deep", "mixed", "pause_in", "work", "once", "on"].into_iter().enumerate()
    {
        store.count(map, index as u32, ProbeKind::Entry, &path, function);
        if index < 4 {
            store.count(map, 8 + index as u32, ProbeKind::Return, &path, function);
        }
    }
    (store, map)
}

/// Ends the target and looks at whether it found anything wrong.
fn finish(mut target: Target) {
    target.child.stdin.take().unwrap().write_all(b"x").unwrap();
    assert_eq!(target.line(), "done 0");
    assert!(target.child.wait().unwrap().success());
}

/// Not a test of its own: the injector that is killed.
#[test]
fn attaches_in_a_loop() {
    let Ok(pid) = std::env::var(CHILD) else { return };
    let pid: i32 = pid.parse().unwrap();
    let (store, _) = probes(pid);
    println!("begin");
    std::io::stdout().flush().unwrap();
    loop {
        let report = attach(pid, &store.request).unwrap();
        assert!(report.in_force() > 0, "{report:?}");
        std::thread::sleep(Duration::from_millis(1));
        let report = detach(pid, &DetachOptions::default()).unwrap();
        assert_eq!(report.left, None);
    }
}

#[test]
fn injectors_killed_at_any_moment() {
    let Some(mut target) = busy("soak-killed") else { return };
    let pid = target.pid();
    let before = snapshot(pid);
    let files = descriptors(pid);
    let watchdog = Watchdog::new("kill of injectors");
    for round in 0..rounds(100) {
        watchdog.alive();
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "attaches_in_a_loop", "--nocapture"])
            .env(CHILD, pid.to_string())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut output = child.stdout.take().unwrap();
        let mut text = Vec::new();
        while !text.ends_with(b"begin\n") {
            let mut byte = [0];
            assert_eq!(output.read(&mut byte).unwrap(), 1, "the injector ended in round {round}");
            text.push(byte[0]);
        }
        // Any moment will do; this spreads them.
        std::thread::sleep(Duration::from_micros(round.wrapping_mul(7919) % 30_000));
        assert!(child.try_wait().unwrap().is_none(), "the injector failed in round {round}");
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(target.child.try_wait().unwrap().is_none(), "the target died in round {round}");
    }
    // The next command repairs what is left, and works. Probes that are in force count for the store of a killed injector.
    match detach(pid, &DetachOptions::default()) {
        Ok(report) => assert_eq!(report.left, None),
        Err(TargetRefused::NotAttached { .. }) => {}
        Err(error) => panic!("{error}"),
    }
    let (store, map) = probes(pid);
    let report = attach(pid, &store.request).unwrap();
    assert_eq!(report.in_force(), 11, "{report:?}");
    while (0..8).chain(8..12).filter(|&index| index != 7).any(|index| store.value(map, index) == 0) {
        assert!(target.child.try_wait().unwrap().is_none(), "the target died");
        std::thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(detach(pid, &DetachOptions::default()).unwrap().left, None);
    assert_eq!(inspect(pid).unwrap(), None);
    let ours = |what: &(String, Vec<u8>)| what.0.contains("beeline") || what.0.contains("memfd");
    assert!(!snapshot(pid).iter().any(ours));
    code_is_as_before(&before, &snapshot(pid));
    assert!(descriptors(pid) <= files + 1, "descriptors are left open");
    finish(target);
    println!("{} injectors killed, the target is unharmed", rounds(100));
}

/// The code that was there before is the same.
fn code_is_as_before(before: &[(String, Vec<u8>)], after: &[(String, Vec<u8>)]) {
    for (mapping, bytes) in before.iter().filter(|(_, bytes)| !bytes.is_empty()) {
        let now = after.iter().find(|(other, _)| other == mapping);
        assert!(now.is_some_and(|(_, now)| now == bytes), "{mapping} differs");
    }
}

#[test]
fn cycles_under_load() {
    let Some(target) = busy("soak-cycles") else { return };
    let pid = target.pid();
    let before = snapshot(pid);
    let (store, map) = probes(pid);
    let watchdog = Watchdog::new("cycles under load");
    for round in 0..rounds(100) {
        watchdog.alive();
        let report = attach(pid, &store.request).unwrap();
        assert_eq!(report.in_force(), 11, "round {round}: {report:?}");
        let report = detach(pid, &DetachOptions::default()).unwrap();
        assert_eq!(report.left, None, "round {round}");
        assert_eq!(report.restored, 7, "round {round}");
    }
    assert!(matches!(detach(pid, &DetachOptions::default()), Err(TargetRefused::NotAttached { .. })));
    code_is_as_before(&before, &snapshot(pid));
    assert!(store.value(map, 0) > 0);
    finish(target);
}

#[test]
fn children_carry_the_probes() {
    let source = r#"
#include <stdio.h>
#include <unistd.h>
#include <sys/wait.h>
__attribute__((noinline, noclone)) long probed(long a) { __asm__ volatile(""); return a + 1; }
int main(void) {
    printf("ready\n"); fflush(stdout);
    char c;
    if (read(0, &c, 1) != 1) return 1;
    pid_t p = fork();
    long sum = 0;
    if (p == 0) {
        for (long i = 0; i < 10; i++) sum += probed(i);
        printf("%d\n", getpid()); fflush(stdout);
        if (read(0, &c, 1) != 1) return 1;
        for (long i = 0; i < 10; i++) sum += probed(i);
        _exit(sum == 110 ? 9 : 8);
    }
    int status;
    waitpid(p, &status, 0);
    for (long i = 0; i < 10; i++) sum += probed(i);
    printf("%d %ld\n", WEXITSTATUS(status), sum); fflush(stdout);
    read(0, &c, 1);
    return 0;
}
"#;
    let Some(mut target) = Target::start("forked", source) else { return };
    let pid = target.pid();
    let path: PathBuf = std::fs::read_link(format!("/proc/{pid}/exe")).unwrap();
    let mut store = Store::new();
    let map = store.array(1);
    store.count(map, 0, ProbeKind::Entry, &path, "probed");
    attach(pid, &store.request).unwrap();
    target.child.stdin.as_mut().unwrap().write_all(b"x").unwrap();
    let child: i32 = target.line().parse().unwrap();
    assert_eq!(store.value(map, 0), 10);
    assert_eq!(inspect(child).unwrap().unwrap().links(), [300]);
    assert_eq!(detach(child, &DetachOptions::default()).unwrap().left, None);
    assert_eq!(inspect(child).unwrap(), None);
    target.child.stdin.as_mut().unwrap().write_all(b"x").unwrap();
    assert_eq!(target.line(), "9 55");
    assert_eq!(store.value(map, 0), 20);
    assert_eq!(detach(pid, &DetachOptions::default()).unwrap().left, None);
}
