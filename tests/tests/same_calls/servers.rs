//! Servers under load, watched by strace and by a recording program at the same time: of one run, each thread's calls are the same,
//! with the same arguments and results to the bit.

use super::{Folder, calls};
use beeline_tests::servers::{Server, assert_clean, go, nginx, redis, redis_benchmark};
use beeline_tests::{Store, have, object, wait_until};
use calls::{Call, Images, NOT_TOLD};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::{Command, Stdio};

/// Each thread of the process is traced.
fn is_traced(pid: &str) -> bool {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).expect("it lives");
    tasks.flatten().all(|task| {
        let status = std::fs::read_to_string(task.path().join("status")).unwrap_or_default();
        !status.contains("TracerPid:\t0\n")
    })
}

/// Calls with which the agent gets to know a thread, at most. They are in the target, and no program's.
const OF_THE_AGENT: usize = 8;

/// strace's calls stand among ours. Its first and its last may be halves: it came and went in them.
fn stand_among(theirs: &[Call], ours: &[Call]) -> bool {
    let same = |(ours, theirs): (&Call, &Call)| {
        let arguments = ours.arguments.iter().zip(&theirs.arguments).all(|(ours, theirs)| ours == theirs);
        let result = ours.result == theirs.result || theirs.result == NOT_TOLD;
        ours.name == theirs.name && arguments && result
    };
    (1..=1 + OF_THE_AGENT).any(|skipped| {
        let whole = theirs.get(skipped..theirs.len().saturating_sub(1)).unwrap_or_default();
        (0..=ours.len().saturating_sub(whole.len()))
            .any(|at| ours.len() >= whole.len() && ours[at..].iter().zip(whole).all(same))
    })
}

/// Without the asking for the thread's id: where no libc has it, the recording program's helper asks the kernel.
fn without_ids(images: &Images) -> Vec<Call> {
    images.iter().flatten().filter(|call| call.name != "gettid").cloned().collect()
}

/// Runs `load` on a server that both watch.
fn watched_by_both(name: &str, server: &mut Server, load: impl FnOnce(&Server)) {
    let folder = Folder::new(name);
    let store = Store::new();
    store.ok(&["load", &object("tests/programs/call_record.bpf.c").to_string_lossy()]);
    let pids = server.pids().to_vec();
    for pid in &pids {
        store.ok(&["attach", pid]);
    }
    let mut strace = Command::new("strace");
    strace.args(["-ff", "-qq", "-e", "raw=all", "-e", "signal=none", "-o", &folder.path("of")]);
    for pid in &pids {
        strace.args(["-p", pid]);
    }
    let mut strace = strace.stdin(Stdio::null()).stderr(Stdio::null()).spawn().expect("strace runs");
    wait_until(|| pids.iter().all(|pid| is_traced(pid)));
    load(server);
    // SAFETY: a signal to a child that has not been waited for.
    unsafe { libc::kill(strace.id() as i32, libc::SIGINT) };
    strace.wait().expect("a child of ours");
    for pid in &pids {
        store.ok(&["detach", pid]);
    }
    assert!(server.is_alive());

    let ours = calls::recorded_threads(&store);
    let (mut threads, mut compared) = (0, 0);
    for (tid, theirs) in calls::shown_threads(&folder.0) {
        let theirs = without_ids(&theirs);
        if theirs.len() < 3 {
            continue;
        }
        let ours = ours.get(&tid).map(without_ids).unwrap_or_default();
        assert!(
            stand_among(&theirs, &ours),
            "{name}, thread {tid}: {} calls for strace, {} for us\n{theirs:x?}\n{ours:x?}",
            theirs.len(),
            ours.len()
        );
        threads += 1;
        compared += theirs.len();
    }
    println!("{name}: {compared} calls of {threads} threads are the same");
    assert!(compared > 500, "{compared} calls");
}

/// Requests by several clients at a time, each answered.
fn requests(port: u16) {
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..60 {
                    let mut connection = TcpStream::connect(("127.0.0.1", port)).expect("it listens");
                    let request = b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
                    connection.write_all(request).expect("it reads");
                    let mut answer = String::new();
                    connection.read_to_string(&mut answer).expect("it answers");
                    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
                }
            });
        }
    });
}

#[test]
fn redis_under_load() {
    if have(&["strace", "redis-server", "redis-cli", "redis-benchmark"]) {
        watched_by_both("redis", &mut redis(1), |server| {
            assert_clean(&redis_benchmark(server, 300).output().expect("it runs"));
        });
    }
}

#[test]
fn nginx_under_load() {
    if have(&["strace", "nginx"]) {
        let (mut server, port) = nginx(2);
        watched_by_both("nginx", &mut server, |_| requests(port));
    }
}

#[test]
fn go_under_load() {
    if have(&["strace", "go"]) {
        let mut server = go();
        let port = server.port().expect("it serves over HTTP");
        watched_by_both("go", &mut server, |_| requests(port));
    }
}
