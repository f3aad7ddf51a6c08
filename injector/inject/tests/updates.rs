//! Programs of links are replaced again and again, and everything else that a process carries comes and goes.

mod support;

use beeline_inject::{DetachOptions, ProbeKind, attach, detach};
use std::io::Write;
use support::targets::Target;
use support::{Store, mappings_of_ours, snapshot};

/// Calls `first` and `second` in four threads from a line to the next one, which it answers with the number of calls.
const CALLER: &str = r#"
#include <pthread.h>
#include <stdio.h>
#include <unistd.h>
__attribute__((noinline, noclone)) long first(long a) { __asm__ volatile(""); return a + 1; }
__attribute__((noinline, noclone)) long second(long a) { __asm__ volatile(""); return a + 2; }
static volatile int stop;
static void *run(void *arg) {
    long calls = 0, sum = 0;
    for (; !stop; calls++) sum += first(calls) + second(calls);
    __asm__ volatile("" :: "r"(sum));
    return (void *)calls;
}
int main(void) {
    char c[16];
    printf("ready\n"); fflush(stdout);
    while (read(0, c, sizeof c) > 0) {
        pthread_t t[4]; long all = 0;
        stop = 0;
        for (int i = 0; i < 4; i++) pthread_create(&t[i], 0, run, 0);
        if (read(0, c, sizeof c) <= 0) return 1;
        stop = 1;
        for (int i = 0; i < 4; i++) { void *calls; pthread_join(t[i], &calls); all += (long)calls; }
        printf("%ld\n", all); fflush(stdout);
    }
    return 0;
}
"#;

/// Replacements that are made.
fn updates() -> u64 {
    std::env::var("BEELINE_SOAK").ok().and_then(|text| text.parse().ok()).unwrap_or(60)
}

/// Mappings of ours that may be there at a time, above those at the beginning: threads are in the way of a few.
const TRANSIENT_MAX: usize = 40;

#[test]
fn replaced_programs_leave_nothing_behind() {
    let Some(mut target) = Target::start("updates", CALLER) else { return };
    let pid = target.pid();
    let path = std::fs::read_link(format!("/proc/{pid}/exe")).unwrap();
    let mut store = Store::new();
    let maps = [store.array(1), store.array(2)];
    let say = |target: &mut Target| target.child.stdin.as_mut().unwrap().write_all(b"x\n").unwrap();
    let before = snapshot(pid);
    store.count(maps[0], 0, ProbeKind::Entry, &path, "first");
    store.count(maps[1], 0, ProbeKind::Entry, &path, "second");
    store.count(maps[1], 1, ProbeKind::Return, &path, "second");
    assert_eq!(attach(pid, &store.request).unwrap().in_force(), 3);
    let update = |store: &mut Store| {
        // As a tool does that is loaded anew each time: a new program for the link, with a new map.
        let map = store.array(1);
        let program = store.counter(map, 0);
        store.request.probes[0].program_id = program;
        let used: Vec<u32> = store.request.probes.iter().map(|probe| probe.program_id).collect();
        store.request.programs.retain(|program| used.contains(&program.id));
        let used: Vec<u32> = store.request.programs.iter().flat_map(|program| program.maps.clone()).collect();
        store.request.maps.retain(|map| used.contains(&map.id));
        let report = attach(pid, &store.request).unwrap();
        assert_eq!(report.in_force(), 3, "{report:?}");
        map
    };
    let mut counted: Vec<u32> = (0..4).map(|_| update(&mut store)).collect();
    let few = mappings_of_ours(pid);
    say(&mut target);
    let mut most = 0;
    for round in 0..updates() {
        counted.push(update(&mut store));
        let now = mappings_of_ours(pid);
        most = most.max(now);
        assert!(
            now <= few + TRANSIENT_MAX,
            "{now} mappings of ours after {round} replacements, {few} at first"
        );
    }
    say(&mut target);
    let calls: u64 = target.line().parse().unwrap();
    let all: u64 = counted.iter().map(|&map| store.value(map, 0)).sum();
    assert_eq!(all + store.missed(300), calls, "each call ran one program");
    assert_eq!([0, 1].map(|index| store.value(maps[1], index) + store.missed(301 + index)), [calls; 2]);
    // Nobody is in the way now.
    for _ in 0..2 {
        update(&mut store);
    }
    assert_eq!(mappings_of_ours(pid), few);
    println!("{} replacements, at most {most} mappings of ours, {few} at the end", updates());
    let report = detach(pid, &DetachOptions::default()).unwrap();
    assert_eq!((report.restored, report.left), (2, None));
    let after = snapshot(pid);
    let code = |all: &[(String, Vec<u8>)]| {
        all.iter().filter(|(name, _)| name.contains("r-xp")).cloned().collect::<Vec<_>>()
    };
    assert!(code(&before) == code(&after));
    assert_eq!(mappings_of_ours(pid), 0);
}
