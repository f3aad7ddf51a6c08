//! Targets with seccomp filters: from before attach, or installed while the probes are in them.

mod support;

use beeline_inject::{
    DetachOptions, Ended, ProbeKind, StartCommand, TargetRefused, attach, detach, inspect, start,
};
use std::io::Write;
use std::path::{Path, PathBuf};
use support::targets::{Target, compile};
use support::{Store, snapshot, symbol};

/// Reads words: `filter`, `strict` install what it was compiled with; a number calls `probed` so many times in each of
/// four new threads and in a forked child, and prints the sum of the threads' results.
const SANDBOXED: &str = r#"
#define _GNU_SOURCE
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>
__attribute__((noinline, noclone)) long probed(long a, long b) { __asm__ volatile(""); return a * 3 + b; }
__attribute__((noinline, noclone)) long outer(long a) { long r = probed(a, 1); __asm__ volatile("" : "+r"(r)); return r + 1; }
static long count;
static void *run(void *arg) {
    long sum = 0;
    for (long i = 0; i < count; i++) sum += outer(i);
    return (void *)sum;
}
static const int allowed[] = { ALLOWED };
static void install(int by_prctl) {
    static struct sock_filter filter[600];
    int n = 0;
    filter[n++] = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, arch));
    filter[n++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, 0xc000003e, 1, 0);
    filter[n++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS);
    filter[n++] = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr));
    for (unsigned i = 0; i < sizeof(allowed) / sizeof(*allowed); i++) {
        filter[n++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, allowed[i], 0, 1);
        filter[n++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
    }
    filter[n++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, OTHERWISE);
    struct sock_fprog program = { n, filter };
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)) abort();
    if (by_prctl ? prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) : syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_TSYNC, &program)) abort();
}
int main(int argc, char **argv) {
    setvbuf(stdin, 0, _IONBF, 0);
    if (argc > 1) install(1);
    printf("ready\n"); fflush(stdout);
    if (argc > 2) { count = 10; return (long)run(0) == 155 ? 7 : 8; }
    char word[20];
    while (scanf("%19s", word) == 1) {
        if (!strcmp(word, "prctl") || !strcmp(word, "seccomp")) {
            install(!strcmp(word, "prctl"));
            printf("installed\n"); fflush(stdout);
            continue;
        }
        count = atol(word);
        pthread_t t[4]; long sum = 0;
        for (int i = 0; i < 4; i++) if (pthread_create(&t[i], 0, run, 0)) abort();
        for (int i = 0; i < 4; i++) { void *r; pthread_join(t[i], &r); sum += (long)r; }
        pid_t child = fork();
        if (child == 0) _exit((long)run(0) == sum / 4 ? 3 : 4);
        int status;
        if (waitpid(child, &status, 0) != child || !WIFEXITED(status) || WEXITSTATUS(status) != 3) abort();
        printf("%ld\n", sum); fflush(stdout);
    }
    return 7;
}
"#;

/// What the target needs itself: threads, a child, input and output.
const OWN_CALLS: &str = "SYS_read, SYS_write, SYS_clone, SYS_clone3, SYS_mmap, SYS_mprotect, SYS_munmap, SYS_madvise, \
     SYS_rt_sigprocmask, SYS_set_robust_list, SYS_rseq, SYS_exit, SYS_exit_group, SYS_wait4, SYS_futex, SYS_brk, \
     SYS_rt_sigreturn, SYS_newfstatat, SYS_getrandom, SYS_rt_sigaction";

/// What a container's usual filter allows besides, as far as it concerns us.
const CONTAINER_CALLS: &str = "SYS_open, SYS_openat, SYS_close, SYS_getpid, SYS_gettid, SYS_sched_yield, SYS_nanosleep, \
     SYS_clock_nanosleep, SYS_kill, SYS_tgkill, SYS_getuid, SYS_getgid, SYS_getppid, SYS_sigaltstack, SYS_prctl, \
     SYS_seccomp, SYS_clock_gettime, SYS_clock_getres, SYS_getcpu, SYS_socketpair, SYS_recvmsg, \
     SYS_close_range, SYS_restart_syscall";

fn sandboxed(name: &str, allowed: &str, otherwise: &str) -> Option<PathBuf> {
    let source = SANDBOXED.replace("ALLOWED", allowed).replace("OTHERWISE", otherwise);
    // Parallel runs of this test have programs of their own.
    compile(&format!("{name}-{}", std::process::id()), &source)
}

fn run(path: &Path, arguments: &[&str]) -> Target {
    let mut target = Target::run_with(path, arguments);
    target.say("5");
    assert_eq!(target.line(), expected(5));
    target
}

impl Target {
    fn say(&mut self, word: &str) {
        writeln!(self.child.stdin.as_mut().unwrap(), "{word}").unwrap();
    }
}

fn expected(count: i64) -> String {
    (4 * (0..count).map(|a| a * 3 + 2).sum::<i64>()).to_string()
}

/// Counters of entries, returns, runs on a CPU, and the sum of thread ids.
fn probes(path: &Path) -> (Store, u32, u32) {
    let mut store = Store::new();
    let map = store.array(4);
    store.count(map, 0, ProbeKind::Entry, path, "probed");
    store.count(map, 1, ProbeKind::Return, path, "outer");
    let ids = store.thread_id_adder(map, 2);
    store.probe(ids, ProbeKind::Entry, path, symbol("outer"));
    let cpus = store.array(8 * 64);
    let counter = store.cpu_counter(cpus, 0);
    store.probe(counter, ProbeKind::Entry, path, symbol("probed"));
    (store, map, cpus)
}

/// `calls` calls of both functions were seen by all four probes.
fn assert_counts(store: &Store, (map, cpus): (u32, u32), calls: u64) {
    let missed: Vec<u64> = (300..303).map(|link| store.missed(link)).collect();
    assert_eq!(missed, [0; 3]);
    assert_eq!([0, 1].map(|index| store.value(map, index)), [calls; 2]);
    assert!(store.value(map, 2) >= calls, "thread ids are not 0");
    // Where nothing may be called, a CPU cannot be waited for as patiently as elsewhere.
    assert_eq!(store.cpu_value(cpus, 0) + store.missed(303), calls);
    assert!(store.cpu_value(cpus, 0) > calls / 2);
}

/// A call that is not on a list like that of containers fails; the agent does without it.
#[test]
fn filters_that_allow_what_we_need() {
    let calls = format!("{OWN_CALLS}, {CONTAINER_CALLS}");
    for (name, otherwise) in
        [("container", "SECCOMP_RET_ERRNO | 1"), ("container-kills", "SECCOMP_RET_KILL_PROCESS")]
    {
        let Some(path) = sandboxed(name, &calls, otherwise) else { return };
        let mut target = run(&path, &["filter"]);
        let pid = target.pid();
        let before = snapshot(pid).len();
        let (store, map, cpus) = probes(&path);
        for round in 1..=3 {
            assert_eq!(attach(pid, &store.request).unwrap().in_force(), 4, "{name}");
            target.say("1000");
            assert_eq!(target.line(), expected(1000), "{name}");
            assert_counts(&store, (map, cpus), 5000 * round);
            assert_eq!(detach(pid, &DetachOptions::default()).unwrap().left, None, "{name}");
            target.say("10");
            assert_eq!(target.line(), expected(10), "{name}");
        }
        assert_eq!(snapshot(pid).len(), before, "{name}");
        std::fs::remove_file(path).unwrap();
    }
}

#[test]
fn filters_that_do_not_are_named() {
    for missing in ["SYS_recvmsg", "SYS_munmap", "SYS_rt_sigprocmask"] {
        let calls = format!("{OWN_CALLS}, {CONTAINER_CALLS}").replace(missing, "SYS_read");
        let Some(path) = sandboxed(&format!("lacks-{missing}"), &calls, "SECCOMP_RET_KILL_PROCESS") else {
            return;
        };
        // A process that may not unmap or change its mask has no threads; it only answers.
        let mut target = Target::run_with(&path, &["filter"]);
        let (store, map, _) = probes(&path);
        let error = attach(target.pid(), &store.request).unwrap_err();
        let name = missing.trim_start_matches("SYS_");
        assert!(matches!(error, TargetRefused::Seccomp { .. }), "{error}");
        assert!(error.to_string().contains(name), "{error}");
        assert_eq!(store.value(map, 0), 0);
        assert_eq!(inspect(target.pid()).unwrap(), None);
        drop(target.child.stdin.take());
        assert_eq!(target.child.wait().unwrap().code(), Some(7), "it reads the end of its input, and ends");
        std::fs::remove_file(path).unwrap();
    }
}

/// The filter comes when the probes are there, and kills for any call that is not the target's own.
#[test]
fn filters_installed_under_probes() {
    for way in ["prctl", "seccomp"] {
        let Some(path) = sandboxed(&format!("late-{way}"), OWN_CALLS, "SECCOMP_RET_KILL_PROCESS") else {
            return;
        };
        let mut target = run(&path, &[]);
        let pid = target.pid();
        let (store, map, cpus) = probes(&path);
        assert_eq!(attach(pid, &store.request).unwrap().in_force(), 4);
        target.say("10");
        assert_eq!(target.line(), expected(10));
        target.say(way);
        assert_eq!(target.line(), "installed");
        for _ in 0..20 {
            target.say("1000");
            assert_eq!(target.line(), expected(1000), "{way}");
        }
        assert_counts(&store, (map, cpus), 50 + 20 * 5000);
        // The probes go; what is mapped for them stays, because unmapping it safely needs more calls than it allows.
        let report = detach(pid, &DetachOptions::default()).unwrap();
        assert_eq!(report.restored, 2);
        assert!(report.left.is_some_and(|reason| reason.contains("does not allow close")), "{way}");
        target.say("1000");
        assert_eq!(target.line(), expected(1000), "{way}");
        assert_counts(&store, (map, cpus), 50 + 20 * 5000);
        drop(target.child.stdin.take());
        assert_eq!(target.child.wait().unwrap().code(), Some(7), "{way}");
        std::fs::remove_file(path).unwrap();
    }
}

#[test]
fn filters_installed_by_started_programs() {
    let Some(path) = sandboxed("started", OWN_CALLS, "SECCOMP_RET_KILL_PROCESS") else { return };
    let (store, map, cpus) = probes(&path);
    let command = StartCommand {
        program: path.clone(),
        arguments: vec!["filter".into(), "once".into()],
        environment: None,
    };
    let started = start(&command, &store.request).unwrap();
    assert_eq!(started.report.in_force(), 4);
    assert_eq!(started.wait().unwrap(), Ended::Exited(7));
    assert_counts(&store, (map, cpus), 10);
    std::fs::remove_file(path).unwrap();
}
