//! Sites where the long jump does not fit: a short one goes to padding, or to room that a neighbour gives.

mod support;

use beeline_inject::{DetachOptions, Location, ProbeKind, attach, detach, inspect};
use std::io::Write;
use std::path::{Path, PathBuf};
use support::targets::Target;
use support::{Store, snapshot, symbol};

/// Functions written by hand; `check` calls all of them and looks at the results. With a number as its line, the program calls
/// `check` so many times in each of two threads; with "run", threads call it all the time until "stop".
const TARGET: &str = r#"
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
long looped(long), tiny(void), tiny2(void), pair(long), head(long), big(long), before(long);
#define FUNCTION(name) ".globl " name "\n.type " name ",@function\n" name ":\n"
#define END(name) ".size " name ",.-" name "\n"
__asm__(".text\n.p2align 6\n"
    /* Jumps to its own fourth byte; padding follows. */
    FUNCTION("looped") "mov %rdi,%rax\n1: dec %rdi\n jz 2f\n inc %rax\n jmp 1b\n2: ret\n" END("looped")
    ".p2align 6\n"
    /* Two probes three bytes apart. */
    FUNCTION("pair") "mov %rdi,%rax\n add $1,%rax\n add $2,%rax\n ret\n" END("pair")
    ".p2align 6\n"
    /* Jumps to its entry. */
    FUNCTION("head") "dec %rdi\n jnz head\n mov $9,%eax\n ret\n" END("head")
    ".p2align 6\n"
    /* No padding far and wide. */
    FUNCTION("before") "mov %rdi,%rax\n .rept 60\n lea 1(%rax),%rax\n .endr\n ret\n" END("before")
    FUNCTION("tiny") "xor %eax,%eax\n ret\n" END("tiny")
    FUNCTION("tiny2") "mov $7,%al\n ret\n" END("tiny2")
    FUNCTION("big") "mov %rdi,%rax\n .rept 60\n lea 2(%rax),%rax\n .endr\n ret\n" END("big")
);
static volatile int stop, bad;
static long count;
static void check(void) {
    if (looped(5) != 9 || pair(4) != 7 || head(3) != 9) bad = 1;
    if (before(1) != 61 || tiny() != 0 || (tiny2() & 255) != 7 || big(2) != 122) bad = 2;
}
static void *some(void *a) { for (long i = 0; i < count; i++) check(); return 0; }
static void *run(void *a) { while (!stop) check(); return 0; }
int main(void) {
    char line[100]; pthread_t t[2];
    setvbuf(stdin, 0, _IONBF, 0);
    printf("ready\n"); fflush(stdout);
    while (fgets(line, sizeof line, stdin)) {
        if (!strcmp(line, "run\n")) {
            stop = 0;
            for (int i = 0; i < 2; i++) pthread_create(&t[i], 0, run, 0);
        } else {
            count = atol(line);
            if (!strcmp(line, "stop\n")) stop = 1;
            else for (int i = 0; i < 2; i++) pthread_create(&t[i], 0, some, 0);
            for (int i = 0; i < 2; i++) pthread_join(t[i], 0);
        }
        printf("%d\n", bad); fflush(stdout);
    }
    return 0;
}
"#;

fn target(name: &str) -> Option<(Target, PathBuf)> {
    let target = Target::start(&format!("{name}{}", std::process::id()), TARGET)?;
    let path = std::fs::read_link(format!("/proc/{}/exe", target.pid())).unwrap();
    Some((target, path))
}

fn say(target: &mut Target, what: &str) {
    writeln!(target.child.stdin.as_mut().unwrap(), "{what}").unwrap();
    assert_eq!(target.line(), "0", "a function has gone wrong");
}

fn at(name: &str, offset: u64) -> Location {
    Location::Symbol { name: name.to_owned(), offset }
}

/// Places that are hit so many times by one `check`.
const PLACES: [(&str, u64, u64); 9] = [
    ("looped", 0, 1),
    ("looped", 3, 5),
    ("pair", 0, 1),
    ("pair", 3, 1),
    ("head", 0, 3),
    ("before", 0, 1),
    ("tiny", 0, 1),
    ("tiny2", 0, 1),
    ("big", 0, 1),
];

fn probe_all(store: &mut Store, map: u32, path: &Path) {
    for (index, (name, offset, _)) in PLACES.into_iter().enumerate() {
        let program = store.counter(map, index as u32);
        store.probe(program, ProbeKind::Entry, path, at(name, offset));
    }
}

#[test]
fn every_place_is_hit_exactly_and_left_as_it_was() {
    let Some((mut target, path)) = target("short-exact") else { return };
    let pid = target.pid();
    say(&mut target, "10");
    let mut store = Store::new();
    let map = store.array(32);
    probe_all(&mut store, map, &path);
    let before = snapshot(pid);
    for round in 1..=2 {
        let report = attach(pid, &store.request).unwrap();
        assert_eq!(report.in_force(), PLACES.len(), "{report:#?}");
        assert!(inspect(pid).unwrap().unwrap().sites.iter().all(|site| site.in_place));
        say(&mut target, "1000");
        for (index, (name, offset, hits)) in PLACES.into_iter().enumerate() {
            assert_eq!(store.value(map, index as u32), 2000 * hits * round, "{name}+{offset}");
        }
        let report = detach(pid, &DetachOptions::default()).unwrap();
        assert_eq!((report.restored, report.left), (PLACES.len(), None));
        say(&mut target, "10");
    }
    assert!(before == snapshot(pid));
}

#[test]
fn later_links_share_the_hole() {
    let Some((mut target, path)) = target("short-later") else { return };
    let pid = target.pid();
    say(&mut target, "10");
    let before = snapshot(pid);
    let mut store = Store::new();
    let map = store.array(32);
    store.count(map, 0, ProbeKind::Entry, &path, "tiny");
    store.probe(200, ProbeKind::Entry, &path, at("pair", 3));
    assert_eq!(attach(pid, &store.request).unwrap().in_force(), 2);
    say(&mut target, "100");
    assert_eq!(store.value(map, 0), 400);
    // Returns of the same function, and its neighbour; the site before one that is in place gets a short jump.
    store.count(map, 1, ProbeKind::Return, &path, "tiny");
    store.count(map, 2, ProbeKind::Entry, &path, "tiny2");
    store.count(map, 3, ProbeKind::Entry, &path, "pair");
    let report = attach(pid, &store.request).unwrap();
    assert_eq!(report.in_force(), 5, "{report:#?}");
    say(&mut target, "100");
    let counts: Vec<u64> = (0..4).map(|index| store.value(map, index)).collect();
    assert_eq!(counts, [800, 200, 200, 200]);
    // Once more on the site that was made short for its neighbour.
    store.count(map, 4, ProbeKind::Entry, &path, "pair");
    let report = attach(pid, &store.request).unwrap();
    assert_eq!(report.in_force(), 6, "{report:#?}");
    say(&mut target, "100");
    let counts: Vec<u64> = (0..5).map(|index| store.value(map, index)).collect();
    assert_eq!(counts, [1200, 400, 400, 400, 200]);
    detach(pid, &DetachOptions::default()).unwrap();
    say(&mut target, "100");
    assert!(before == snapshot(pid));
    assert_eq!(store.value(map, 0), 1200);
}

#[test]
fn cycles_while_every_place_is_hit() {
    let Some((mut target, path)) = target("short-cycles") else { return };
    let pid = target.pid();
    let mut store = Store::new();
    let map = store.array(32);
    probe_all(&mut store, map, &path);
    let rounds = std::env::var("BEELINE_SOAK").ok().and_then(|text| text.parse().ok()).unwrap_or(40);
    for _ in 0..rounds {
        say(&mut target, "run");
        let report = attach(pid, &store.request).unwrap();
        // A thread may be about to return into the middle of a window from a signal handler; nothing else may be in the way.
        assert_eq!(report.in_force(), PLACES.len(), "{report:#?}");
        let report = detach(pid, &DetachOptions::default()).unwrap();
        assert_eq!((report.restored, report.left), (PLACES.len(), None));
        say(&mut target, "stop");
    }
    assert_eq!(inspect(pid).unwrap(), None);
}

#[test]
fn a_place_without_any_room_is_refused_by_name() {
    let Some((mut target, path)) = target("short-refused") else { return };
    let pid = target.pid();
    let mut store = Store::new();
    let map = store.array(32);
    // One byte apart: no jump is that short.
    let program = store.counter(map, 0);
    store.probe(program, ProbeKind::Entry, &path, symbol("main"));
    store.probe(program, ProbeKind::Entry, &path, at("tiny", 2));
    store.probe(program, ProbeKind::Entry, &path, at("tiny", 1));
    let report = attach(pid, &store.request).unwrap();
    let refused: Vec<String> =
        report.probes.iter().filter(|p| !p.state.is_in_force()).map(|p| format!("{:?}", p.state)).collect();
    assert!(!refused.is_empty(), "{report:#?}");
    assert!(refused.iter().any(|reason| reason.contains("inside the instruction")), "{refused:?}");
    say(&mut target, "10");
    detach(pid, &DetachOptions::default()).unwrap();
    say(&mut target, "10");
}
