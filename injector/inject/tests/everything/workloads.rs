//! Programs of the machine and of our own, and what they are to do.

use crate::cases::{Case, Probes, ROUNDS};
use std::path::Path;
use std::process::Command;

mod sources;

pub(crate) fn cases() -> Vec<Case> {
    let mut cases = vec![
        Case {
            command: Box::new(|_| program(PYTHON, &["-c", sources::PYTHON])),
            ..case("python", &["libc.so.6", "libm.so.6"], true)
        },
        Case {
            command: Box::new(|folder| {
                let script = folder.join("script.py");
                std::fs::write(&script, sources::PYTHON).expect("a scratch file");
                let launcher = compile(folder, "gcc", sources::LAUNCHER, &["-l:libpython3.11.so.1.0"])?;
                Ok(vec![launcher, script.display().to_string()])
            }),
            ..case("libpython", &["libpython3.11.so.1.0", "libc.so.6"], true)
        },
        Case {
            command: Box::new(|_| program(PYTHON, &[PYTHON_TESTS, PYTHON_TESTS_SLICE].concat())),
            essence: unittest_results,
            ..case("python-tests-slice", PYTHON_FILES, true)
        },
        Case {
            command: Box::new(|folder| {
                let source = folder.join("script.sh");
                std::fs::write(&source, sources::BASH).expect("a scratch file");
                program("/bin/bash", &[&source.display().to_string()])
            }),
            ..case("bash", &["/bin/bash", "libc.so.6"], true)
        },
        Case {
            command: Box::new(|folder| {
                compile(folder, "g++", sources::CPLUSPLUS, &["-x", "c++", "-O2", "-pthread"])
                    .map(|path| vec![path])
            }),
            ..case("c++", &["libstdc++.so.6", "libgcc_s.so.1", "libc.so.6", "libm.so.6"], true)
        },
        Case {
            command: Box::new(|folder| {
                compile(folder, "gcc", sources::TLS, &["-O1", "-lssl", "-lcrypto"]).map(|path| vec![path])
            }),
            ..case("tls", &["libssl.so.3", "libcrypto.so.3", "libc.so.6"], true)
        },
        Case {
            command: Box::new(|_| {
                program(
                    "/usr/bin/openssl",
                    &["speed", "-seconds", "1", "-bytes", "1024", "sha256", "rsa2048"],
                )
            }),
            essence: |_| String::new(),
            ..case("openssl-speed", &["libcrypto.so.3", "libssl.so.3", "libc.so.6"], true)
        },
        Case {
            command: Box::new(|folder| {
                go(folder, "returns.go").map(|program| vec![program, "300".to_owned()])
            }),
            ..case("go", &["program"], true)
        },
        Case {
            command: Box::new(|_| {
                program(GOFMT, &["-d", "-s", "/usr/lib/go/src/fmt", "/usr/lib/go/src/net"])
            }),
            ..case("gofmt", &[GOFMT], false)
        },
        Case {
            command: Box::new(redis_server),
            essence: |_| String::new(),
            driver: Some(redis_driver),
            ..case("redis", &["/usr/bin/redis-server", "libc.so.6"], true)
        },
    ];
    cases.extend(runtimes());
    cases.extend(python_tests());
    cases.extend(tools());
    cases
}

fn case(name: &str, files: &'static [&'static str], in_slice: bool) -> Case {
    Case {
        name: name.to_owned(),
        files,
        command: Box::new(|_| Err("nothing to run".to_owned())),
        essence: whole,
        driver: None,
        hits: 100,
        may_fail: false,
        in_slice,
        rounds: ROUNDS,
    }
}

fn whole(text: &str) -> String {
    text.to_owned()
}

/// Programs that compile themselves while they run, with all of the C library probed.
fn runtimes() -> Vec<Case> {
    let java = |folder: &Path| {
        let source = folder.join("Work.java");
        std::fs::write(&source, sources::JAVA).expect("a scratch file");
        program("/usr/bin/java", &["-Xmx200m", &source.display().to_string()])
    };
    vec![
        Case {
            command: Box::new(|_| program("/usr/bin/node", &["-e", sources::NODE])),
            ..case("node", &["libc.so.6"], false)
        },
        Case { command: Box::new(java), ..case("java", &["libc.so.6"], false) },
    ]
}

/// Small programs, with all of the C library probed.
fn tools() -> Vec<Case> {
    macro_rules! tool {
        ($name:literal, $path:literal $(, $argument:literal)*) => {
            Case {
                command: Box::new(|_| program($path, &[$($argument),*])),
                ..case($name, &["libc.so.6"], false)
            }
        };
    }
    vec![
        tool!("ls", "/bin/ls", "-lR", "/usr/include"),
        tool!("sort", "/usr/bin/sort", "-k", "2", "--parallel=4", "-S", "200k", "/etc/services"),
        tool!("sha256sum", "/usr/bin/sha256sum", "/bin/bash", "/etc/passwd", "/bin/ls"),
        tool!("factor", "/usr/bin/factor", "18446744073709551557", "123456789012345678901"),
        tool!("date", "/bin/date", "-d", "2024-02-29 12:34:56 UTC", "+%c %s %j %U"),
        tool!("stat", "/usr/bin/stat", "-c", "%n %s %U %F", "/", "/etc/passwd", "/bin/sh"),
        tool!("seq", "/usr/bin/seq", "-f", "%010.3f", "1", "0.5", "2000"),
        tool!("od", "/usr/bin/od", "-A", "x", "-t", "x1z", "-N", "20000", "/bin/bash"),
        tool!("tac", "/usr/bin/tac", "/etc/services"),
        tool!("cut", "/usr/bin/cut", "-d:", "-f1,3-", "/etc/passwd"),
        tool!("join", "/usr/bin/join", "-t:", "/etc/passwd", "/etc/passwd"),
        tool!("du", "/usr/bin/du", "-a", "/usr/include/linux"),
        tool!("df", "/bin/df", "--output=target", "/"),
        tool!("find", "/usr/bin/find", "/usr/include", "-name", "*.h", "-newer", "/etc/hostname"),
        tool!("grep", "/bin/grep", "-rn", "struct.*{", "/usr/include/linux"),
        tool!("sed", "/bin/sed", "-n", "-E", "s/([a-z]+)\\s+([0-9]+).*/\\2 \\1/p", "/etc/services"),
        tool!(
            "awk",
            "/usr/bin/awk",
            "{ n[length($1)]++ } END { for (i = 0; i < 40; i++) print i, n[i] }",
            "/etc/services"
        ),
        tool!(
            "perl",
            "/usr/bin/perl",
            "-e",
            "my %h; $h{$_ % 97} .= sprintf('%x', $_ ** 2) for 1..20000; print map { \"$_ $h{$_}\\n\" } sort { $a <=> $b } keys %h;"
        ),
        tool!("tar", "/bin/tar", "cf", "-", "--sort=name", "/usr/include/linux/usb"),
        tool!("gzip", "/bin/gzip", "-9", "-c", "-n", "/bin/bash"),
        tool!("timeout", "/usr/bin/timeout", "10", "/bin/echo", "done"),
        tool!(
            "sqlite",
            "/usr/bin/sqlite3",
            ":memory:",
            "with recursive n(i) as (select 1 union all select i + 1 from n where i < 20000) select sum(i), group_concat(i % 7, '') from n;"
        ),
        tool!("gcc", "/usr/bin/gcc", "-dM", "-E", "-x", "c", "/dev/null"),
    ]
}

fn program(path: &str, arguments: &[&str]) -> Result<Vec<String>, String> {
    if !Path::new(path).exists() {
        return Err(format!("no {path}"));
    }
    Ok([path].iter().chain(arguments).map(|word| (*word).to_owned()).collect())
}

/// Compiles `source` in `folder`; the program's path.
pub(crate) fn compile(
    folder: &Path,
    compiler: &str,
    source: &str,
    arguments: &[&str],
) -> Result<String, String> {
    let (path, file) = (folder.join("program"), folder.join("program.c"));
    std::fs::write(&file, source).expect("a scratch file");
    let (before, after): (Vec<&&str>, Vec<&&str>) =
        arguments.iter().partition(|word| !word.starts_with("-l"));
    let done = Command::new(compiler).args(before).arg("-o").arg(&path).arg(&file).args(after).output();
    match done {
        Ok(done) if done.status.success() => Ok(path.display().to_string()),
        Ok(done) => Err(format!("{compiler} fails: {}", String::from_utf8_lossy(&done.stderr))),
        Err(error) => Err(format!("{compiler}: {error}")),
    }
}

/// Which tests of a verbose run there were, how many of each module passed or were skipped, and which failed. How each one
/// ended stands behind its name, but for what its threads print in between.
fn unittest_results(text: &str) -> String {
    const VERDICTS: [&str; 6] = ["OK", "FAILED", "FAIL: ", "ERROR: ", "Result: ", "Tests result: "];
    let mut lines: Vec<&str> = text.lines().map(str::trim_end).filter_map(test_name).collect();
    lines.sort_unstable();
    lines.dedup();
    for line in text.lines().map(str::trim_end) {
        if let Some((count, _)) = line.split_once(" tests in ").filter(|(count, _)| count.starts_with("Ran "))
        {
            lines.push(count);
        } else if VERDICTS.iter().any(|verdict| line.starts_with(verdict)) {
            lines.push(line);
        }
    }
    lines.join("\n")
}

/// `test_name (test.module.Class.test_name)`, wherever it stands in the line.
fn test_name(line: &str) -> Option<&str> {
    let class = line.find(" (test.")?;
    let start = line[..class].rfind(char::is_whitespace).map_or(0, |at| at + 1);
    let end = class + line[class..].find(')')? + 1;
    line[start..class].starts_with("test").then(|| &line[start..end])
}

/// Debian's interpreter, which has `libpython` in itself.
const PYTHON: &str = "/usr/bin/python3";
/// What is probed while it runs.
const PYTHON_FILES: &[&str] = &["libc.so.6", "libm.so.6", PYTHON];
/// Runs its own tests; in virtual machines sockets to the hypervisor wait for ever.
const PYTHON_TESTS: &[&str] = &["-m", "test", "-v", "-i", "*VSOCK*"];
const PYTHON_TESTS_SLICE: &[&str] = &["test_json", "test_struct"];

/// One case for each of CPython's own test modules: all that Debian's `libpython3.11-testsuite` has.
fn python_tests() -> Vec<Case> {
    let listed = Command::new(PYTHON).args(["-m", "test", "--list-tests"]).output();
    let listed =
        listed.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    let test = |module: &str| {
        let module = module.to_owned();
        Case {
            name: format!("python-tests: {module}"),
            command: Box::new(move |_| program(PYTHON, &[PYTHON_TESTS, &[module.as_str()]].concat())),
            essence: unittest_results,
            may_fail: true,
            rounds: &[(Probes::Both, true)],
            ..case("", PYTHON_FILES, false)
        }
    };
    listed.lines().filter(|line| line.starts_with("test_")).map(test).collect()
}

/// Go's own formatter, a Go program.
const GOFMT: &str = "/usr/lib/go/bin/gofmt";

/// Compiles a Go program of the end-to-end tests as `program` in `folder`; its path.
fn go(folder: &Path, source: &str) -> Result<String, String> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/targets").join(source);
    let path = folder.join("program");
    let mut build = Command::new("go");
    build.env("GO111MODULE", "off").env("CGO_ENABLED", "0").args(["build", "-o"]).arg(&path).arg(source);
    match build.output() {
        Ok(done) if done.status.success() => Ok(path.display().to_string()),
        Ok(done) => Err(format!("go fails: {}", String::from_utf8_lossy(&done.stderr))),
        Err(error) => Err(format!("go: {error}")),
    }
}

fn redis_server(folder: &Path) -> Result<Vec<String>, String> {
    let socket = folder.join("redis.sock").display().to_string();
    let folder = folder.display().to_string();
    let arguments = [
        "--port",
        "0",
        "--unixsocket",
        &socket,
        "--dir",
        &folder,
        "--save",
        "",
        "--io-threads",
        "2",
        "--daemonize",
        "no",
    ];
    program("/usr/bin/redis-server", &arguments)
}

/// Works with the server, ends it, and tells what it answered.
fn redis_driver(folder: &Path) -> Result<String, String> {
    let socket = folder.join("redis.sock").display().to_string();
    let run = |name: &str, arguments: &[&str]| -> Result<String, String> {
        let done =
            Command::new(name).args(["-s", &socket]).args(arguments).output().map_err(|e| e.to_string())?;
        let text = String::from_utf8_lossy(&done.stdout).into_owned();
        if done.status.success() { Ok(text) } else { Err(format!("{name} {arguments:?}: {text}")) }
    };
    // The server is there when its socket answers.
    let begin = std::time::Instant::now();
    while run("redis-cli", &["ping"]).is_err() {
        if begin.elapsed() > std::time::Duration::from_secs(120) {
            return Err("the server does not answer".to_owned());
        }
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    run(
        "redis-benchmark",
        &["-q", "-n", "2000", "-c", "8", "-t", "set,get,incr,lpush,lpop,sadd,hset,zadd,mset"],
    )?;
    let mut text = String::new();
    for command in [
        "dbsize",
        "set k v",
        "get k",
        "zrange myzset 0 3",
        "scard myset",
        "object encoding counter:__rand_int__",
    ] {
        let words: Vec<&str> = command.split(' ').collect();
        text += &run("redis-cli", &words)?;
    }
    text += &run("redis-cli", &["eval", "local s = 0 for i = 1, 100000 do s = s + i % 7 end return s", "0"])?;
    let _ = run("redis-cli", &["shutdown", "nosave"]);
    Ok(text)
}
