//! Real servers under load: probes come and go, no client notices.

mod support;

use beeline_inject::{DetachOptions, ProbeKind, ProbeState, attach, detach, inspect};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use support::Store;

/// A process that is killed when the test ends.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn rounds(default: u64) -> u64 {
    std::env::var("BEELINE_SOAK").ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// A port that nobody listens on. It is none that the kernel hands out by itself: a client that tries such a port before
/// the server is there may be connected with itself.
fn free_port() -> u16 {
    let first = 20_000 + (std::process::id() % 10_000) as u16;
    let mut ports = (first..32_000).chain(20_000..first);
    ports.find(|&port| TcpListener::bind(("127.0.0.1", port)).is_ok()).expect("a free port")
}

fn mapped(pid: i32, part: &str) -> PathBuf {
    let process = beeline_remote::Process::open(pid, false).unwrap();
    let maps = process.maps().unwrap();
    let found = maps.iter().find(|mapping| mapping.execute && mapping.name.contains(part));
    PathBuf::from(&found.unwrap_or_else(|| panic!("no mapping of {part}")).name)
}

/// Entry and return of functions that a server calls all the time.
fn probes(pid: i32) -> (Store, u32) {
    let libc = mapped(pid, "libc.so");
    let mut store = Store::new();
    let map = store.array(64);
    let functions = ["malloc", "free", "read", "write", "epoll_wait", "calloc", "realloc", "gettimeofday"];
    for (index, function) in functions.into_iter().enumerate() {
        store.count(map, index as u32, ProbeKind::Entry, &libc, function);
        store.count(map, 32 + index as u32, ProbeKind::Return, &libc, function);
    }
    (store, map)
}

/// Waits until a redis server answers. Connecting is not enough: in the moment in which [`free_port`] looks, a process
/// that is being forked by another test inherits the listening socket, and keeps it until it executes its program.
fn wait_for_redis(server: &mut Server, port: u16) {
    let answers = || {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(1))).ok()?;
        stream.write_all(b"PING\r\n").ok()?;
        let mut answer = [0; 5];
        stream.read_exact(&mut answer).ok()?;
        (answer == *b"+PONG").then_some(())
    };
    while answers().is_none() {
        assert!(server.0.try_wait().unwrap().is_none(), "redis-server ended");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn redis_under_benchmark() {
    let port = free_port();
    // Not --io-threads: redis hands work to them by spinning, which takes minutes on two CPUs with something else to do.
    let spawned = Command::new("redis-server")
        .args(["--port", &port.to_string(), "--save", "", "--appendonly", "no"])
        .stdout(Stdio::null())
        .spawn();
    let Ok(child) = spawned else {
        println!("skipped: no redis-server");
        return;
    };
    let mut server = Server(child);
    let pid = server.0.id() as i32;
    wait_for_redis(&mut server, port);
    let (store, map) = probes(pid);
    // Not -q: its progress lines fill a pipe that is read only at the end.
    let mut benchmark = Command::new("redis-benchmark")
        .args(["-p", &port.to_string(), "-n", "60000", "-c", "20", "--csv"])
        .args(["-t", "set,get,lpush,lrange_100"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let code = support::snapshot(pid);
    let mut cycles = 0;
    let watchdog = beeline_watchdog::Watchdog::new("redis under benchmark");
    while benchmark.try_wait().unwrap().is_none() || cycles < rounds(20) {
        let report = attach(pid, &store.request).unwrap();
        assert!(report.in_force() >= 10, "{report:?}");
        let report = detach(pid, &DetachOptions::default()).unwrap();
        assert_eq!(report.left, None, "cycle {cycles}");
        assert!(report.foreign.is_empty());
        cycles += 1;
        watchdog.alive();
        // The server gets the machine in between.
        std::thread::sleep(Duration::from_millis(50));
        assert!(server.0.try_wait().unwrap().is_none(), "redis-server died in cycle {cycles}");
    }
    let output = benchmark.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && !text.contains("Error"), "{text}");
    assert_eq!(inspect(pid).unwrap(), None);
    assert!(store.value(map, 2) > 0);
    println!("{cycles} cycles, {} calls of read", store.value(map, 2));
    let after = support::snapshot(pid);
    for (mapping, bytes) in code.iter().filter(|(_, bytes)| !bytes.is_empty()) {
        assert!(after.iter().any(|(other, now)| other == mapping && now == bytes), "{mapping} differs");
    }
}

#[test]
fn every_function_of_a_library_at_once() {
    // python3 runs a script while half of the entries of its C library carry a probe.
    let script = "import json, hashlib\nfor i in range(200):\n  d = json.dumps({str(k): [k] * 5 for k in range(100)})\n  \
                  assert len(json.loads(d)) == 100\n  hashlib.sha256(d.encode()).hexdigest()\nprint('fine')";
    let Ok(output) = Command::new("python3").arg("-c").arg("import sys; print(sys.executable)").output()
    else {
        println!("skipped: no python3");
        return;
    };
    let python = PathBuf::from(String::from_utf8_lossy(&output.stdout).trim());
    let libc = mapped(std::process::id() as i32, "libc.so");
    let binary = beeline_site::Binary::open(&libc).unwrap();
    let mut store = Store::new();
    let map = store.array(1);
    let program = store.counter(map, 0);
    let mut names: Vec<String> = binary
        .symbols()
        .iter()
        .filter(|symbol| symbol.kind == beeline_site::SymbolKind::Function)
        .map(|symbol| binary.symbols().name(symbol).to_owned())
        .collect();
    names.sort_unstable();
    names.dedup();
    for name in names.iter().step_by(2) {
        store.probe(program, ProbeKind::Entry, &libc, support::symbol(name));
    }
    let command = beeline_inject::StartCommand {
        program: python,
        arguments: vec!["-c".into(), script.into()],
        environment: None,
    };
    let started = beeline_inject::start(&command, &store.request).unwrap();
    let placed = started.report.in_force();
    let refused = started
        .report
        .probes
        .iter()
        .filter(|probe| matches!(probe.state, ProbeState::Refused { .. }))
        .count();
    println!("{placed} placed, {refused} refused, stopped for {:?}", started.report.stopped);
    assert!(placed > names.len() / 3, "{placed} of {}", names.len());
    assert_eq!(started.wait().unwrap(), beeline_inject::Ended::Exited(0));
    assert!(store.value(map, 0) > 10_000);
}
