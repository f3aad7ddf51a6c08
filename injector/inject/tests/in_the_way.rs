//! A signal handler that is about to return into the middle of the bytes that attach wants to replace.

mod support;

use beeline_inject::{DetachOptions, ProbeKind, ProbeState, attach, detach};
use std::io::Write;
use support::targets::Target;
use support::{Store, snapshot};

/// On a line calls `load` with a null pointer: its second instruction faults, and the handler finds itself about to return there.
/// It waits until its thread has stood still once (`s`), or for another line (any other letter), and gives `load` a pointer. On
/// further lines `load` is called with one.
const FAULTS: &str = r#"
#define _GNU_SOURCE
#include <signal.h>
#include <stdio.h>
#include <sys/resource.h>
#include <ucontext.h>
#include <unistd.h>
long load(long *place);
__asm__(".text\n.globl load\n.type load,@function\n.p2align 4\n"
        "load: push %rbx\n mov (%rdi),%rax\n pop %rbx\n ret\n.size load,.-load\n.p2align 4\n");
static long word = 42;
static char line[8];
static long times_off_the_cpu(void) {
    struct rusage usage;
    getrusage(RUSAGE_THREAD, &usage);
    return usage.ru_nvcsw;
}
static void give_it_a_pointer(int signal, siginfo_t *info, void *context) {
    if (write(1, "handler\n", 8) != 8) _exit(2);
    if (line[0] == 's')
        for (long before = times_off_the_cpu(); times_off_the_cpu() == before;);
    else if (read(0, line, sizeof line) <= 0)
        _exit(3);
    ((ucontext_t *)context)->uc_mcontext.gregs[REG_RDI] = (long)&word;
}
int main(void) {
    struct sigaction action = { .sa_sigaction = give_it_a_pointer, .sa_flags = SA_SIGINFO };
    sigaction(SIGSEGV, &action, 0);
    printf("ready\n"); fflush(stdout);
    long *place = 0;
    while (read(0, line, sizeof line) > 0) {
        printf("%ld\n", load(place)); fflush(stdout);
        place = &word;
    }
    return 0;
}
"#;

struct Faulting {
    target: Target,
    store: Store,
    map: u32,
}

impl Faulting {
    /// Its handler is in the way. None without a C compiler.
    fn start(name: &str, line: &str) -> Option<Faulting> {
        let target = Target::start(name, FAULTS)?;
        let path = std::fs::read_link(format!("/proc/{}/exe", target.pid())).unwrap();
        let mut store = Store::new();
        let map = store.array(1);
        store.count(map, 0, ProbeKind::Entry, &path, "load");
        let mut faulting = Faulting { target, store, map };
        assert_eq!(faulting.say(line), "handler");
        Some(faulting)
    }

    fn tell(&mut self, line: &str) {
        // In one piece: each that arrives is a line to it.
        self.target.child.stdin.as_mut().unwrap().write_all(format!("{line}\n").as_bytes()).unwrap();
    }

    fn say(&mut self, line: &str) -> String {
        self.tell(line);
        self.target.line()
    }

    /// The probe is in force; it counts, and goes.
    fn check(&mut self) {
        assert_eq!(self.say("again"), "42");
        assert_eq!((self.store.value(self.map, 0), self.store.missed(300)), (1, 0));
        let report = detach(self.target.pid(), &DetachOptions::default()).unwrap();
        assert_eq!((report.restored, report.left), (1, None));
        assert_eq!(self.say("more"), "42");
        assert_eq!(self.store.value(self.map, 0), 1);
    }
}

#[test]
fn attach_waits_for_it() {
    let Some(mut faulting) = Faulting::start("in-the-way", "s") else { return };
    let report = attach(faulting.target.pid(), &faulting.store.request).unwrap();
    assert_eq!(report.in_force(), 1, "{report:?}");
    assert_eq!(faulting.target.line(), "42");
    faulting.check();
}

#[test]
fn attach_says_so_when_it_stays() {
    let Some(mut faulting) = Faulting::start("stays-in-the-way", "x") else { return };
    let pid = faulting.target.pid();
    let before = snapshot(pid);
    let report = attach(pid, &faulting.store.request).unwrap();
    let [outcome] = &report.probes[..] else { panic!("{report:?}") };
    let ProbeState::Refused { reason } = &outcome.state else { panic!("{report:?}") };
    assert!(reason.contains("signal handler") && reason.contains("try again"), "{reason}");
    // What goes with the probes is there, for the next one.
    assert_eq!(detach(pid, &DetachOptions::default()).unwrap().restored, 0);
    assert!(before == snapshot(pid));
    assert_eq!(faulting.say("go on"), "42");
    let report = attach(pid, &faulting.store.request).unwrap();
    assert_eq!(report.in_force(), 1, "{report:?}");
    faulting.check();
}
