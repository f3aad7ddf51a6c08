//! Targets that live on signals of their own instructions: trapped system calls, breakpoints, dispatched calls.

mod support;

use beeline_inject::{DetachOptions, ProbeKind, TargetRefused, attach, detach};
use std::io::Write;
use std::path::{Path, PathBuf};
use support::targets::{Target, compile};
use support::{Store, symbol};

/// Does nothing but to raise a signal by an instruction, in the handler of which the result comes to be, until its input ends; then
/// it prints how many results were wrong. KIND: `SECCOMP` traps a system call, `BREAKPOINT` is an `int3`, `DISPATCH` has its calls
/// dispatched but in the handler.
const TRAPPING: &str = r#"
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <ucontext.h>
#include <unistd.h>
#define SECCOMP 1
#define BREAKPOINT 2
#define DISPATCH 3
#define ASKED 1234567
#define ANSWER 4711
static volatile char blocks;
static volatile long foreign;
static void answer(int signal, siginfo_t *info, void *context) {
    greg_t *registers = ((ucontext_t *)context)->uc_mcontext.gregs;
    blocks = 0;
    if (registers[REG_RAX] != ASKED) foreign++;
    registers[REG_RAX] = ANSWER;
}
__attribute__((noinline, noclone)) long probed(long a) { __asm__ volatile(""); return a + 1; }
static long ask(void) {
    long result = ASKED;
    blocks = KIND == DISPATCH;
    if (KIND == BREAKPOINT) __asm__ volatile("int3" : "+a"(result) : : "memory");
    else __asm__ volatile("syscall" : "+a"(result) : : "rcx", "r11", "memory");
    return result;
}
int main(void) {
    struct sigaction action = { .sa_sigaction = answer, .sa_flags = SA_SIGINFO };
    sigaction(KIND == BREAKPOINT ? SIGTRAP : SIGSYS, &action, 0);
    if (KIND == SECCOMP) {
        struct sock_filter filter[] = {
            BPF_STMT(BPF_LD | BPF_W | BPF_ABS, 0),
            BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, ASKED, 0, 1),
            BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_TRAP),
            BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
        };
        struct sock_fprog program = { 4, filter };
        if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program)) abort();
    }
    fcntl(0, F_SETFL, O_NONBLOCK);
    puts("ready"); fflush(stdout);
    if (KIND == DISPATCH && prctl(59, 1, 0, 0, &blocks)) { puts("not here"); return 0; }
    long wrong = 0;
    char c;
    do {
        for (int i = 0; i < 200; i++) { wrong += ask() != ANSWER; wrong += probed(i) != i + 1; }
    } while (read(0, &c, 1) != 0);
    printf("%ld wrong, %ld foreign\n", wrong, foreign);
    return 0;
}
"#;

fn trapping(kind: &str) -> Option<(PathBuf, Target)> {
    let name = format!("trapping-{kind}-{}", std::process::id());
    let path = compile(&name, &TRAPPING.replace("KIND", kind))?;
    let target = Target::run(&path);
    Some((path, target))
}

fn counting(path: &Path) -> (Store, u32) {
    let mut store = Store::new();
    let map = store.array(1);
    store.count(map, 0, ProbeKind::Entry, path, "probed");
    (store, map)
}

/// Ends the target; nothing went wrong in it.
fn assert_unharmed(mut target: Target) {
    drop(target.child.stdin.take());
    assert_eq!(target.line(), "0 wrong, 0 foreign");
    assert!(target.child.wait().unwrap().success());
}

/// The only thread is nearly always about to receive the signal of its last instruction.
fn probes_come_and_go(kind: &str) {
    let Some((path, target)) = trapping(kind) else { return };
    let (store, map) = counting(&path);
    for _ in 0..20 {
        let report = attach(target.pid(), &store.request).unwrap();
        assert_eq!(report.in_force(), 1, "{report:?}");
        let before = store.value(map, 0);
        while store.value(map, 0) == before {
            std::thread::yield_now();
        }
        assert_eq!(detach(target.pid(), &DetachOptions::default()).unwrap().left, None);
    }
    assert_unharmed(target);
}

#[test]
fn trapped_system_calls_are_not_lost() {
    probes_come_and_go("SECCOMP");
}

#[test]
fn breakpoints_of_its_own_are_not_lost() {
    probes_come_and_go("BREAKPOINT");
}

#[test]
fn who_dispatches_its_calls_is_refused() {
    if !kernel_tells_who_dispatches() {
        println!("skipped: this kernel does not tell who dispatches its calls");
        return;
    }
    let Some((path, mut target)) = trapping("DISPATCH") else { return };
    let (store, map) = counting(&path);
    // It says that it is ready before it dispatches, so the first attempts may come before that.
    let refused = loop {
        match attach(target.pid(), &store.request) {
            Ok(_) => assert_eq!(detach(target.pid(), &DetachOptions::default()).unwrap().left, None),
            Err(reason) => break reason,
        }
        if target.child.try_wait().unwrap().is_some() {
            assert_eq!(target.line(), "not here");
            return;
        }
    };
    assert!(matches!(refused, TargetRefused::Dispatches { .. }), "{refused}");
    let before = store.value(map, 0);
    for _ in 0..20 {
        let refused = attach(target.pid(), &store.request).unwrap_err();
        assert!(matches!(refused, TargetRefused::Dispatches { .. }), "{refused}");
    }
    assert_eq!(store.value(map, 0), before);
    assert_unharmed(target);
}

/// `PTRACE_GET_SYSCALL_USER_DISPATCH_CONFIG` is there since Linux 6.4.
fn kernel_tells_who_dispatches() -> bool {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let mut numbers =
        release.split(|c: char| !c.is_ascii_digit()).map(|word| word.parse::<u32>().unwrap_or(0));
    (numbers.next(), numbers.next()) >= (Some(6), Some(4))
}

/// Its handler gets nothing that it did not ask for, and the probes are hit and taken out.
#[test]
fn who_begins_to_dispatch_keeps_its_probes() {
    let Some(path) = dispatching_later() else { return };
    let mut target = Target::run(&path);
    let (mut store, map) = counting(&path);
    let ids = store.thread_id_adder(map, 0);
    store.probe(ids, ProbeKind::Entry, &path, symbol("outer"));
    attach(target.pid(), &store.request).unwrap();
    writeln!(target.child.stdin.as_mut().unwrap(), "go").unwrap();
    let line = target.line();
    if line == "not here" {
        return;
    }
    assert_eq!(line, "dispatched 1000, foreign 0");
    assert_eq!(store.missed(300) + store.missed(301), 0);
    assert_eq!(detach(target.pid(), &DetachOptions::default()).unwrap().left, None);
    assert_unharmed(target);
}

/// Dispatches its calls when told to, while it calls what is probed a thousand times.
fn dispatching_later() -> Option<PathBuf> {
    let main = r#"
__attribute__((noinline, noclone)) long outer(long a) { long r = probed(a); __asm__ volatile("" : "+r"(r)); return r; }
int main(void) {
    struct sigaction action = { .sa_sigaction = answer, .sa_flags = SA_SIGINFO };
    sigaction(SIGSYS, &action, 0);
    puts("ready"); fflush(stdout);
    char c;
    if (read(0, &c, 1) != 1) abort();
    if (prctl(59, 1, 0, 0, &blocks)) { puts("not here"); return 0; }
    long wrong = 0;
    for (int i = 0; i < 1000; i++) {
        blocks = 1;
        wrong += outer(i) != i + 1;
        wrong += ask() != ANSWER;
    }
    printf("dispatched 1000, foreign %ld\n", foreign); fflush(stdout);
    while (read(0, &c, 1) > 0) {}
    printf("%ld wrong, %ld foreign\n", wrong, foreign);
    return 0;
}
"#;
    let start = TRAPPING.find("int main").unwrap();
    let source = format!("{}{main}", &TRAPPING[..start]).replace("KIND", "DISPATCH");
    compile(&format!("dispatching-{}", std::process::id()), &source)
}
