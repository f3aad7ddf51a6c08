//! Every example, run as its README says.

use beeline_tests::{Store, Target, build_dir, comes, gcc, have, object, root};
use serde_json::Value;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::FromRawFd;
use std::process::{Command, Stdio};

/// What `events --json --no-follow` prints: one event a line.
fn events(store: &Store, map: &str, type_name: &str) -> Vec<Value> {
    let text = store.ok(&["--json", "events", map, "--type", type_name, "--no-follow"]);
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}")))
        .collect()
}

/// A field of an event, wherever the command puts the typed value.
fn field<'a>(event: &'a Value, name: &str) -> &'a Value {
    match event {
        Value::Object(fields) => match fields.get(name) {
            Some(value) => value,
            None => {
                fields.values().map(|it| field(it, name)).find(|it| !it.is_null()).unwrap_or(&Value::Null)
            }
        },
        _ => &Value::Null,
    }
}

fn load(store: &Store, source: &str, attach: &[String]) {
    let options: Vec<&str> = attach.iter().flat_map(|spec| ["--attach", spec]).collect();
    load_with(store, source, &options);
}

fn load_with(store: &Store, source: &str, options: &[&str]) {
    let path = object(source).to_string_lossy().into_owned();
    store.ok(&[&["load", &path], options].concat());
}

#[test]
fn malloc_counter() {
    let store = Store::new();
    load(&store, "examples/malloc-counter/malloc.bpf.c", &[]);
    store.ok(&["start", "--", "/bin/ls", "-l", "/"]);
    let total = store.percpu_sum("total", 0);
    let (_, usage) = store.entries("by_process").remove(0);
    assert!(total > 10);
    assert_eq!(usage["calls"].as_u64(), Some(total));
    assert!(usage["bytes"].as_u64() >= Some(total));
}

#[test]
fn function_latency() {
    let program = gcc("examples/function-latency/sorter.c");
    let place = format!("{}:sort_once", program.display());
    let store = Store::new();
    let attach = [format!("enter=uprobe:{place}"), format!("leave=uretprobe:{place}")];
    load(&store, "examples/function-latency/latency.bpf.c", &attach);
    store.ok(&["start", "--", &program.to_string_lossy(), "500"]);
    let dump = store.json(&["map", "dump", "latency"]);
    let mut calls = 0;
    sum_slots(&dump, &mut calls);
    assert_eq!(calls, 500, "{dump}");
    assert!(store.entries("started").is_empty(), "every call that began has ended");
}

/// Adds up everything in arrays called `slots`, once: typed values stand beside their bytes in the output.
fn sum_slots(value: &Value, sum: &mut u64) {
    match value {
        Value::Object(fields) => {
            for (name, field) in fields {
                match field {
                    Value::Array(slots) if name == "slots" => {
                        *sum += slots.iter().filter_map(Value::as_u64).sum::<u64>();
                    }
                    _ => sum_slots(field, sum),
                }
            }
        }
        Value::Array(items) => items.iter().for_each(|item| sum_slots(item, sum)),
        _ => {}
    }
}

#[test]
fn error_injection() {
    let program = gcc("examples/error-injection/buffers.c");
    let store = Store::new();
    load(&store, "examples/error-injection/inject.bpf.c", &[]);
    let printed = store.ok(&["start", "--", &program.to_string_lossy(), "30"]);
    assert_eq!(printed, "10 of 30 buffers were not there\n");
    assert_eq!((store.global("seen"), store.global("failed")), (30, 10));
}

/// A client of the hot-patch example's server.
struct Client {
    input: std::io::BufReader<std::net::TcpStream>,
}

impl Client {
    fn connect(port: &str) -> Client {
        let address = format!("127.0.0.1:{port}");
        Client { input: std::io::BufReader::new(std::net::TcpStream::connect(address).expect("it listens")) }
    }

    /// The answer to a request, empty when the server is gone.
    fn ask(&mut self, request: &str) -> String {
        use std::io::{BufRead, Write};
        let mut answer = String::new();
        let asked = self.input.get_mut().write_all(format!("{request}\n").as_bytes());
        if asked.is_ok() && self.input.read_line(&mut answer).is_err() {
            answer.clear();
        }
        answer.trim_end().to_owned()
    }
}

/// A fault is taken out of a server that runs, and is back when the program is gone. Nobody is disconnected.
#[test]
fn hot_patch() {
    let program = gcc("examples/hot-patch/server.c");
    let mut unpatched = Target::spawn(&mut Command::new(&program));
    let port = unpatched.line();
    assert_eq!(Client::connect(&port).ask("share 100 0"), "", "the fault is there");

    let mut server = Target::spawn(&mut Command::new(&program));
    let port = server.line();
    let mut client = Client::connect(&port);
    assert_eq!(client.ask("share 100 4"), "25");
    let store = Store::new();
    let attach = [format!("fix_share=uprobe:{}:share_of", program.display())];
    load(&store, "examples/hot-patch/fix.bpf.c", &attach);
    let mut busy: Vec<Client> = (0..4).map(|_| Client::connect(&port)).collect();
    std::thread::scope(|scope| {
        let rounds = busy.iter_mut().map(|client| {
            scope.spawn(move || {
                for guests in 1..=2000i64 {
                    let answer = client.ask(&format!("share 1000000 {guests}"));
                    assert_eq!(answer, (1_000_000 / guests).to_string(), "{guests} guests");
                }
            })
        });
        let rounds: Vec<_> = rounds.collect();
        store.ok(&["attach", &server.pid()]);
        for round in rounds {
            round.join().expect("every answer is right");
        }
    });
    for _ in 0..10 {
        assert_eq!(client.ask("share 100 0"), "0", "the fault is gone");
        assert_eq!(client.ask("share 100 -5"), "-20");
    }
    assert_eq!(store.global("averted"), 10);
    assert_eq!(client.ask("served"), (1 + 4 * 2000 + 10).to_string(), "skipped calls were skipped");
    store.ok(&["detach", &server.pid()]);
    store.ok(&["unload", "fix"]);
    assert_eq!(client.ask("share 90 3"), "30", "the same connection");
    assert!(server.is_alive());
    assert_eq!(client.ask("share 100 0"), "", "the fault is back");
}

#[test]
fn repair() {
    let program = gcc("examples/repair/server.c");
    let mut server = Target::spawn(&mut Command::new(&program));
    let port = server.line();
    let mut client = Client::connect(&port);
    assert_eq!(client.ask("get alpha"), "1");
    assert_eq!(["put zebra 26", "put aardvark 7"].map(|line| client.ask(line)), ["ok", "ok"]);
    assert_eq!(client.ask("get aardvark"), "none", "the fault is there");

    let store = Store::new();
    let object = object("examples/repair/repair.bpf.c").to_string_lossy().into_owned();
    let host = format!("sort_table={}:sort_table", program.display());
    let attach = format!("repair=uretprobe:{}:put", program.display());
    store.ok(&["load", &object, "--attach", &attach, "--host-function", &host]);
    store.ok(&["attach", &server.pid()]);
    let mut busy: Vec<Client> = (0..4).map(|_| Client::connect(&port)).collect();
    std::thread::scope(|scope| {
        for (number, client) in busy.iter_mut().enumerate() {
            scope.spawn(move || {
                for value in (0..200).rev() {
                    assert_eq!(client.ask(&format!("put name-{number}-{value} {value}")), "ok");
                    assert_eq!(client.ask(&format!("get name-{number}-{value}")), value.to_string());
                }
            });
        }
    });
    assert_eq!(["get aardvark", "get zebra"].map(|line| client.ask(line)), ["7", "26"]);
    assert_eq!([store.global("repairs"), store.global("entries")], [800, 805]);
    store.ok(&["detach", &server.pid()]);
    assert_eq!(client.ask("put abacus 1"), "ok");
    assert_eq!(client.ask("get abacus"), "none", "the fault is back");
    assert!(server.is_alive());
}

/// An interactive shell on a pseudo-terminal.
struct Shell {
    child: std::process::Child,
    terminal: File,
}

impl Shell {
    fn start() -> Shell {
        let (mut master, mut slave) = (0, 0);
        let null = std::ptr::null_mut();
        // SAFETY: openpty fills two descriptors, which are ours from then on.
        let (terminal, other) = unsafe {
            assert_eq!(libc::openpty(&mut master, &mut slave, null, null as *const _, null as *const _), 0);
            (File::from_raw_fd(master), File::from_raw_fd(slave))
        };
        let end = || Stdio::from(other.try_clone().expect("descriptor"));
        let child = Command::new("/bin/bash")
            .args(["--norc", "--noprofile", "-i"])
            .env("PS1", "> ")
            .stdin(end())
            .stdout(end())
            .stderr(end())
            .spawn()
            .expect("bash runs");
        Shell { child, terminal }
    }

    /// Types a line and waits until the shell has answered with `answer`.
    fn line(&mut self, line: &str, answer: &str) {
        self.terminal.write_all(format!("{line}\n").as_bytes()).expect("the shell reads");
        self.wait_for(answer);
    }

    fn wait_for(&mut self, answer: &str) {
        let mut seen = String::new();
        let mut buffer = [0; 256];
        while !seen.contains(answer) {
            let n = self.terminal.read(&mut buffer).expect("the shell answers");
            seen.push_str(&String::from_utf8_lossy(&buffer[..n]));
        }
    }
}

impl Drop for Shell {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn bashreadline() {
    let store = Store::new();
    load(&store, "examples/bashreadline/readline.bpf.c", &[]);
    let mut shell = Shell::start();
    // The shell stands in readline() while we attach: only calls that begin later are seen, as under the kernel.
    shell.line("echo $((40 + 2))", "42");
    store.ok(&["attach", &shell.child.id().to_string()]);
    shell.line("echo before-$((1 + 1))", "before-2");
    shell.line("echo first-$((1 + 2))", "first-3");
    shell.line("echo second-$((2 + 2))", "second-4");
    let lines = events(&store, "lines", "line");
    let texts: Vec<_> = lines.iter().filter_map(|line| field(line, "text").as_str()).collect();
    assert!(
        texts.contains(&"echo first-$((1 + 2))") && texts.contains(&"echo second-$((2 + 2))"),
        "{texts:?}"
    );
    assert!(lines.iter().all(|line| field(line, "pid") == shell.child.id() && field(line, "comm") == "bash"));
    // It stands in readline() again, this time under our return probe: detach gives the return address back.
    store.ok(&["detach", &shell.child.id().to_string()]);
    assert!(beeline_tests::our_mappings(&shell.child.id().to_string()).is_empty());
    shell.line("echo after-$((5 + 5))", "after-10");
}

#[test]
fn sslsniff() {
    if !have(&["openssl"]) {
        return;
    }
    let program = gcc("examples/sslsniff/selftalk.c");
    let folder = std::env::temp_dir().join(format!("beeline-ssl-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("writable");
    let (key, certificate) = (folder.join("key.pem"), folder.join("certificate.pem"));
    let made = Command::new("openssl")
        .args(["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=test", "-keyout"])
        .arg(&key)
        .arg("-out")
        .arg(&certificate)
        .output()
        .expect("openssl runs");
    assert!(made.status.success());
    let both = [key, certificate].map(|path| std::fs::read(path).expect("readable")).concat();
    let pem = folder.join("both.pem");
    std::fs::write(&pem, both).expect("writable");

    let store = Store::new();
    load(&store, "examples/sslsniff/sslsniff.bpf.c", &[]);
    store.ok(&["start", "--", &program.to_string_lossy(), &pem.to_string_lossy(), "3"]);
    let messages = events(&store, "messages", "message");
    let texts: Vec<_> = messages.iter().filter_map(|it| field(it, "text").as_str()).collect();
    for i in 0..3 {
        let request = format!("GET /secret/{i} HTTP/1.1");
        let seen = texts.iter().filter(|text| text.starts_with(&request)).count();
        assert_eq!(seen, 2, "written by the client, read by the server: {texts:?}");
    }
    assert_eq!(texts.iter().filter(|text| text.starts_with("HTTP/1.1 200 OK")).count(), 6);
    let _ = std::fs::remove_dir_all(folder);
}

#[test]
fn go_function() {
    if !have(&["go"]) {
        return;
    }
    let output = build_dir().join("end-to-end/gotarget-example");
    let status = Command::new("go")
        .current_dir(root().join("examples/go-function/target"))
        .env("CGO_ENABLED", "0")
        .args(["build", "-o"])
        .arg(&output)
        .arg(".")
        .status()
        .expect("go runs");
    assert!(status.success());
    let store = Store::new();
    load(
        &store,
        "examples/go-function/gofunc.bpf.c",
        &[format!("on_add=uprobe:{}:main.add", output.display())],
    );
    store.ok(&["start", "--", &output.to_string_lossy(), "100"]);
    let (_, stats) = store.entries("stats").remove(0);
    assert_eq!(stats["calls"], 400);
}

#[test]
fn ring_events() {
    let store = Store::new();
    load(&store, "examples/ring-events/events.bpf.c", &[]);
    store.ok(&["start", "--", "/bin/ls", "/"]);
    let events = events(&store, "events", "event");
    let names: Vec<_> = events.iter().filter_map(|it| field(it, "name").as_str()).collect();
    assert!(
        names.contains(&"POSIXLY_CORRECT") || names.contains(&"COLUMNS"),
        "ls asks for its variables: {names:?}"
    );
    assert!(events.iter().all(|it| field(it, "comm") == "ls"));
}

#[test]
fn tail_calls() {
    let program = gcc("tests/targets/worker.c");
    let store = Store::new();
    let attach = [format!("dispatch=uprobe:{}:work", program.display())];
    load(&store, "examples/tail-calls/dispatch.bpf.c", &attach);
    store.ok(&["start", "--", &program.to_string_lossy(), "1", "1000"]);
    // work(sum, i) with sum = 3 sum + i: the sum passes 100 after a few calls, and stays above for an unsigned number.
    let (mut sum, mut small) = (0u64, 0);
    for i in 0..1000u64 {
        small += u64::from(sum < 100);
        sum = sum.wrapping_mul(3).wrapping_add(i);
    }
    assert_eq!(store.number("counts", 0), small);
    assert_eq!(store.number("counts", 1), 1000 - small);
    assert_eq!(store.number("counts", 2), 0, "no tail call failed");
}

/// Programs are taken out of their array and put back, or into other places, while a process runs that was attached to when they
/// were not in it.
#[test]
fn tail_calls_to_programs_that_come_later() {
    let program = gcc("tests/targets/sleepers.c");
    let store = Store::new();
    let attach = [format!("dispatch=uprobe:{}:work", program.display())];
    load(&store, "examples/tail-calls/dispatch.bpf.c", &attach);
    let id = |name: &str| {
        let programs = store.json(&["prog", "list"]);
        let found = programs.as_array().and_then(|all| all.iter().find(|it| it["name"] == name));
        found.and_then(|it| it["id"].as_u64()).expect("the program").to_string()
    };
    let put = |index: &str, name: &str| {
        store.ok(&["map", "update", "handlers", "key", index, "value", &id(name)]);
    };
    for index in ["0", "1"] {
        store.ok(&["map", "delete", "handlers", "key", index]);
    }
    let mut target = Target::spawn(Command::new(&program).args(["1", "eintr"]));
    assert_eq!(target.line(), "ready");
    store.ok(&["attach", &target.pid()]);
    let grows = |key: u64| {
        let before = store.number("counts", key);
        comes(|| store.number("counts", key) > before)
    };
    assert!(grows(2), "nothing to go on in");
    for (name, key) in [("on_small", 0), ("on_large", 1), ("on_small", 0)] {
        put("0", name);
        put("1", name);
        assert!(grows(key), "{name}");
    }
    target.send("stop");
    target.finish();
}

#[test]
fn config() {
    let store = Store::new();
    load(&store, "examples/config/config.bpf.c", &[]);
    store.ok(&["start", "--", "/bin/ls", "/"]);
    let (seen, above) = (store.global("seen"), store.global("above"));
    assert!(seen > 0 && above > 0 && above < seen, "{above} of {seen}");
    assert_eq!(store.global("threshold"), 64);
}

/// What every CPU has counted for a system call, in a per-CPU array whose index is its number.
fn of_call(store: &Store, map: &str, number: i64, name: &str) -> u64 {
    let dump = store.json(&["map", "dump", map]);
    let entries = dump.as_array().expect("an array");
    let entry = entries.iter().find(|entry| entry["formatted"]["key"].as_i64() == Some(number));
    let values = entry.expect("every index is there")["formatted"]["values"].as_array().expect("CPUs").iter();
    values.map(|value| value["value"][name].as_u64().expect("a counter")).sum()
}

/// A file of this test run.
fn scratch(name: &str) -> std::path::PathBuf {
    std::env::temp_dir().join(format!("beeline-{name}-{}", std::process::id()))
}

#[test]
fn opensnoop() {
    let store = Store::new();
    load(&store, "examples/opensnoop/opensnoop.bpf.c", &[]);
    let (there, missing) = (scratch("opened"), scratch("missing"));
    std::fs::write(&there, "text").expect("writable");
    let output =
        store.output(&["start", "--", "/bin/cat", &there.to_string_lossy(), &missing.to_string_lossy()]);
    assert!(String::from_utf8_lossy(&output.stdout).contains("text"));
    std::fs::remove_file(&there).expect("ours");
    let opens = events(&store, "opens", "event");
    let result = |path: &std::path::Path| {
        let found: Vec<_> = opens.iter().filter(|it| *field(it, "path") == *path.to_string_lossy()).collect();
        assert_eq!(found.len(), 1, "{}: {opens:?}", path.display());
        field(found[0], "ret").as_i64().expect("a number")
    };
    assert!(result(&there) >= 3);
    assert_eq!(result(&missing), -i64::from(libc::ENOENT));
    assert!(opens.iter().all(|it| field(it, "comm") == "cat"));
    assert_eq!(store.global("lost"), 0);
    assert!(store.entries("begun").is_empty(), "every call that began has ended");
}

#[test]
fn syscount() {
    let store = Store::new();
    load(&store, "examples/syscount/syscount.bpf.c", &[]);
    let file = scratch("counted");
    let of = format!("of={}", file.display());
    store.ok(&["start", "--", "/bin/dd", "if=/dev/zero", &of, "bs=1", "count=1000", "status=none"]);
    assert_eq!(std::fs::metadata(&file).expect("written").len(), 1000);
    std::fs::remove_file(&file).expect("ours");
    assert_eq!(of_call(&store, "usage", libc::SYS_write, "calls"), 1000);
    assert_eq!(of_call(&store, "usage", libc::SYS_write, "errors"), 0);
    assert!(of_call(&store, "usage", libc::SYS_read, "calls") >= 1000);
    assert_eq!(of_call(&store, "usage", libc::SYS_exit_group, "calls"), 1);
    assert_eq!(of_call(&store, "usage", libc::SYS_getppid, "calls"), 0);
}

#[test]
fn syscall_latency() {
    let store = Store::new();
    load(&store, "examples/syscall-latency/calls.bpf.c", &[]);
    store.ok(&["start", "--", "/bin/sleep", "0.1"]);
    let dump = store.json(&["map", "dump", "durations"]);
    let number = libc::SYS_clock_nanosleep;
    let entry =
        dump.as_array().expect("an array").iter().find(|it| it["formatted"]["key"].as_i64() == Some(number));
    let mut slots = [0; 32];
    for value in entry.expect("every index is there")["formatted"]["values"].as_array().expect("CPUs") {
        for (slot, count) in slots.iter_mut().zip(value["value"]["slots"].as_array().expect("slots")) {
            *slot += count.as_u64().expect("a number");
        }
    }
    // 0.1 s lie in slot 26 (67 to 134 ms); on a busy machine it may take longer, but never less.
    assert_eq!(slots.iter().sum::<u64>(), 1, "one sleep");
    assert_eq!(slots[..26].iter().sum::<u64>(), 0, "{slots:?}");
}

#[test]
fn full_disk() {
    let store = Store::new();
    load_with(&store, "examples/full-disk/full.bpf.c", &["--allow-override"]);
    let file = scratch("full");
    let script = format!(
        "import errno, os\nfd = os.open('{}', os.O_WRONLY | os.O_CREAT)\nfor i in range(9):\n  try:\n    print(os.write(fd, b'x'))\n  \
         except OSError as error:\n    print(errno.errorcode[error.errno])",
        file.display()
    );
    if !have(&["python3"]) {
        return;
    }
    let printed = store.ok(&["start", "--", "python3", "-IBc", &script]);
    assert_eq!(printed, "1\n1\nENOSPC\n".repeat(3));
    assert_eq!(std::fs::read(&file).expect("written"), b"xxxxxx");
    std::fs::remove_file(&file).expect("ours");
    assert_eq!((store.global("seen"), store.global("failed")), (9, 3));
}

#[test]
fn file_policy() {
    let store = Store::new();
    load_with(&store, "examples/file-policy/policy.bpf.c", &["--allow-override"]);
    // The folder needs no file in it: the answer is another one without the guard.
    let output = store.output(&["start", "--", "/bin/cat", "/etc/ssl/nothing-there", "/proc/self/comm"]);
    assert!(!output.status.success());
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("Permission denied"), "{said}");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "cat\n", "other files are open to it");
    assert_eq!(store.global("refused"), 1);
    if have(&["python3"]) {
        let creat = "import ctypes\nlibc = ctypes.CDLL(None, use_errno=True)\nlibc.syscall(85, b'/etc/ssl/none/x', 0o600)\nprint(ctypes.get_errno())";
        assert_eq!(store.ok(&["start", "--", "python3", "-IBc", creat]), "13\n", "EACCES");
    }
    store.ok(&["unload", "policy"]);
    let output = Command::new("/bin/cat").arg("/etc/ssl/nothing-there").output().expect("cat runs");
    assert!(String::from_utf8_lossy(&output.stderr).contains("No such file"));
}

/// A program that is loaded is only run, never changed: the example's README shows the same names.
#[test]
fn every_example_has_a_readme_that_names_its_files() {
    for entry in root().join("examples").read_dir().expect("examples") {
        let folder = entry.expect("an entry").path();
        if !folder.is_dir() {
            continue;
        }
        let readme = std::fs::read_to_string(folder.join("README.md"))
            .unwrap_or_else(|_| panic!("{} has no README.md", folder.display()));
        for file in folder.read_dir().expect("a folder").filter_map(|it| Some(it.ok()?.file_name())) {
            let name = file.to_string_lossy().into_owned();
            if name.ends_with(".c") {
                assert!(readme.contains(&name), "{}: README.md does not name {name}", folder.display());
            }
        }
    }
}

/// The target of a probe goes on unharmed when the shell that started it is gone.
#[test]
fn a_started_program_reads_and_writes_as_without_us() {
    let store = Store::new();
    load(&store, "examples/malloc-counter/malloc.bpf.c", &[]);
    let mut cat = Target::spawn(&mut store.command(&["start", "--", "/bin/cat"]));
    cat.send("through the pipe");
    assert_eq!(cat.line(), "through the pipe");
    cat.finish();
}
