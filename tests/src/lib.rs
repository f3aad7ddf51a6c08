//! What the end-to-end tests share: a store of their own, the `beeline` command, targets and eBPF programs compiled on
//! the spot, processes that are ended with the test.

pub mod servers;

use serde_json::Value;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// The workspace's root folder.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests lie in the workspace").to_path_buf()
}

/// Folder of the build's results: the one that this test binary lies in.
pub fn build_dir() -> PathBuf {
    let test = std::env::current_exe().expect("a test has a path");
    test.ancestors()
        .find(|dir| dir.ends_with("release") || dir.ends_with("debug"))
        .expect("cargo's layout")
        .into()
}

/// The `beeline` command, built by `cargo xtask test` (or `cargo build --release`).
pub fn beeline_path() -> PathBuf {
    let path = build_dir().join("beeline");
    assert!(path.exists(), "{} is missing: run `cargo build --release` first", path.display());
    path
}

/// How many rounds a test makes: `BEELINE_SOAK` for long runs, else `default`.
pub fn rounds(default: u64) -> u64 {
    std::env::var("BEELINE_SOAK").ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// True when all of these programs are there; says which is not.
pub fn have(programs: &[&str]) -> bool {
    let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default());
    let missing: Vec<_> = programs
        .iter()
        .filter(|name| !std::env::split_paths(&path).any(|dir| dir.join(name).is_file()))
        .collect();
    if !missing.is_empty() {
        eprintln!("skipped: {missing:?} not installed (cargo xtask setup)");
    }
    missing.is_empty()
}

/// True when this kernel lets a tracer set the dispatch of system calls, which `--complete` needs (from 6.4 on); says when it does not.
pub fn can_be_complete() -> bool {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let mut numbers = release.split('.').map_while(|number| number.parse::<u32>().ok());
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    if version < (6, 4) {
        eprintln!("skipped: --complete needs Linux 6.4, this is {}", release.trim());
    }
    version >= (6, 4)
}

fn compiled_dir() -> PathBuf {
    let dir = build_dir().join("end-to-end");
    std::fs::create_dir_all(&dir).expect("target folder is writable");
    dir
}

/// Makes a file from `source` unless it is there already. Nobody runs or reads what another is about to write: it is
/// written aside and moved into place.
fn once(source: &Path, output: PathBuf, make: impl FnOnce(&Path)) -> PathBuf {
    static MADE: Mutex<()> = Mutex::new(());
    let _made = MADE.lock().unwrap_or_else(PoisonError::into_inner);
    let changed = |path: &Path| path.metadata().and_then(|data| data.modified()).ok();
    if changed(&output).is_none_or(|made| changed(source).is_none_or(|written| made <= written)) {
        // Compilers put what they make in between beside it, and rustc names that by all but the last extension.
        let name = output.file_name().unwrap_or_default().to_string_lossy().replace('.', "-");
        let aside = output.with_file_name(format!("{name}-{}.tmp", std::process::id()));
        make(&aside);
        std::fs::rename(&aside, &output).expect("one folder");
    }
    output
}

fn must_succeed(command: &mut Command) {
    let output = command.output().unwrap_or_else(|error| panic!("cannot run {command:?}: {error}"));
    assert!(output.status.success(), "{command:?}:\n{}", String::from_utf8_lossy(&output.stderr));
}

/// Compiles an eBPF program given by its path under the root.
pub fn object(source: &str) -> PathBuf {
    let source = root().join(source);
    let output = compiled_dir().join(source.with_extension("o").file_name().expect("a file name"));
    let machine = format!("/usr/include/{}-linux-gnu", std::env::consts::ARCH);
    once(&source, output, |output| {
        must_succeed(
            Command::new("clang")
                .args(["-g", "-O2", "-target", "bpf", "-D__TARGET_ARCH_x86", "-I", &machine, "-c"])
                .arg(&source)
                .arg("-o")
                .arg(output),
        );
    })
}

/// Copies a program that is to be executed. In a process of its own: a child that another thread begins meanwhile would keep
/// the copy open for writing until it executes something else, and the copy could not be executed.
pub fn copy(from: &Path, to: &Path) {
    let status = Command::new("cp").arg(from).arg(to).status().expect("cp runs");
    assert!(status.success(), "{} is not copied to {}", from.display(), to.display());
}

/// Compiles a target given by its path under the root, optimised. `variant` names the result apart, `flags` go to `compiler`.
pub fn target(source: &str, variant: &str, compiler: &str, flags: &[&str]) -> PathBuf {
    let source = root().join(source);
    let text = std::fs::read_to_string(&source).expect("readable");
    let libraries = text.lines().next().and_then(|line| line.strip_prefix("// link: ")).unwrap_or("");
    // Two folders may have sources of one name.
    let folder = source.parent().and_then(Path::file_name).expect("a folder").to_string_lossy();
    let prefix = if folder == "targets" { String::new() } else { format!("{folder}-") };
    let stem = source.file_stem().expect("a file name").to_string_lossy();
    let output = compiled_dir().join(format!("{prefix}{stem}-{variant}"));
    once(&source, output, |output| {
        must_succeed(
            Command::new(compiler)
                .args(if compiler == "rustc" { ["-O", "-g", "-o"] } else { ["-O2", "-g", "-o"] })
                .arg(output)
                .arg(&source)
                .args(flags)
                .args(libraries.split_whitespace()),
        );
    })
}

/// The default build of a C target.
pub fn gcc(source: &str) -> PathBuf {
    target(source, "glibc", "gcc", &[])
}

/// A store of its own for one test, removed with it.
pub struct Store {
    name: String,
}

static STORES: AtomicU32 = AtomicU32::new(0);

impl Default for Store {
    fn default() -> Store {
        Store::new()
    }
}

impl Store {
    /// An empty store.
    pub fn new() -> Store {
        let number = STORES.fetch_add(1, Ordering::Relaxed);
        Store { name: format!("test-{}-{number}", std::process::id()) }
    }

    /// The store's name, for `--store`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// `beeline --store NAME arguments…`, not started yet.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(beeline_path());
        command.env("NO_COLOR", "1").args(["--store", &self.name]).args(arguments);
        command
    }

    /// Runs the command to its end.
    pub fn output(&self, arguments: &[&str]) -> Output {
        self.command(arguments).stdin(Stdio::null()).output().expect("beeline runs")
    }

    /// Runs the command, which must succeed; returns what it printed.
    pub fn ok(&self, arguments: &[&str]) -> String {
        let output = self.output(arguments);
        assert!(
            output.status.success(),
            "beeline {arguments:?} ended with {}\nstdout: {}\nstderr: {}",
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).expect("output is UTF-8")
    }

    /// Runs the command, which must fail with a message and without a panic; returns the message.
    pub fn fails(&self, arguments: &[&str]) -> String {
        let output = self.output(arguments);
        let message = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success(), "beeline {arguments:?} should fail");
        assert!(
            output.status.code().is_some_and(|code| code != 101),
            "beeline {arguments:?} died: {message}"
        );
        assert!(!message.trim().is_empty(), "beeline {arguments:?} failed without a word");
        message
    }

    /// Runs the command with `--json`, which must succeed and print JSON.
    pub fn json(&self, arguments: &[&str]) -> Value {
        let text = self.ok(&[&["--json"], arguments].concat());
        serde_json::from_str(&text)
            .unwrap_or_else(|error| panic!("{arguments:?} printed no JSON ({error}): {text}"))
    }

    /// A map's entries as `map dump --json` prints them, typed by BTF: key and value of each.
    pub fn entries(&self, map: &str) -> Vec<(Value, Value)> {
        let dump = self.json(&["map", "dump", map]);
        let entries = dump.as_array().unwrap_or_else(|| panic!("map dump is a list: {dump}"));
        entries
            .iter()
            .map(|entry| {
                let typed = if entry["formatted"].is_object() { &entry["formatted"] } else { entry };
                let value = if typed["values"].is_array() { &typed["values"] } else { &typed["value"] };
                (typed["key"].clone(), value.clone())
            })
            .collect()
    }

    /// The number under an integer key.
    pub fn number(&self, map: &str, key: u64) -> u64 {
        let entries = self.entries(map);
        let value = entries.iter().find(|(it, _)| it.as_u64() == Some(key)).map(|(_, value)| value);
        value
            .and_then(Value::as_u64)
            .unwrap_or_else(|| panic!("{map} has no number under {key}: {entries:?}"))
    }

    /// The sum over all CPUs under an integer key of a per-CPU map.
    pub fn percpu_sum(&self, map: &str, key: u64) -> u64 {
        let entries = self.entries(map);
        let found = entries.iter().find(|(it, _)| it.as_u64() == Some(key));
        let (_, values) = found.unwrap_or_else(|| panic!("{map} has no key {key}: {entries:?}"));
        values
            .as_array()
            .expect("one value a CPU")
            .iter()
            .map(|it| it["value"].as_u64().expect("a number"))
            .sum()
    }

    /// A number in the global data (`.bss`, `.data`, `.rodata`) of the one object that is loaded.
    pub fn global(&self, variable: &str) -> u64 {
        fn find(value: &Value, name: &str) -> Option<u64> {
            match value {
                Value::Object(fields) => match fields.get(name) {
                    Some(number) if number.is_u64() => number.as_u64(),
                    _ => fields.values().find_map(|it| find(it, name)),
                },
                Value::Array(items) => items.iter().find_map(|it| find(it, name)),
                _ => None,
            }
        }
        let maps = self.json(&["map", "list"]);
        let names = maps.as_array().expect("a list").iter().filter_map(|map| map["name"].as_str());
        let mut data = names.filter(|name| [".bss", ".data", ".rodata"].iter().any(|it| name.contains(it)));
        data.find_map(|map| find(&self.json(&["map", "dump", map]), variable))
            .unwrap_or_else(|| panic!("no global variable {variable}"))
    }

    /// Folder of the store.
    pub fn folder(&self) -> PathBuf {
        // SAFETY: geteuid has no preconditions.
        let uid = unsafe { libc::geteuid() };
        PathBuf::from(format!("/dev/shm/beeline-{uid}")).join(&self.name)
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(self.folder());
    }
}

/// A process of a test, talked to by lines, killed with the test.
pub struct Target {
    child: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
}

impl Target {
    /// Starts it with pipes on standard input and output.
    pub fn spawn(command: &mut Command) -> Target {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("cannot start {command:?}: {error}"));
        let input = child.stdin.take();
        let output = BufReader::new(child.stdout.take().expect("piped"));
        Target { child, input, output }
    }

    /// Its process id, as text for a command line.
    pub fn pid(&self) -> String {
        self.child.id().to_string()
    }

    /// Next line that it prints, without the line's end; empty at the end.
    pub fn line(&mut self) -> String {
        let mut line = String::new();
        self.output.read_line(&mut line).expect("readable");
        line.trim_end().to_owned()
    }

    /// Gives it a line.
    pub fn send(&mut self, line: &str) {
        let input = self.input.as_mut().expect("input is open");
        writeln!(input, "{line}").expect("the target reads");
        input.flush().expect("the target reads");
    }

    /// Closes its input and waits; it must end with status 0.
    pub fn finish(mut self) -> String {
        drop(self.input.take());
        let mut rest = String::new();
        std::io::Read::read_to_string(&mut self.output, &mut rest).expect("readable");
        let status = self.child.wait().expect("a child of ours");
        assert!(status.success(), "the target ended with {status}; it said: {rest}");
        rest
    }

    /// Waits for its end.
    pub fn status(&mut self) -> std::process::ExitStatus {
        self.child.wait().expect("a child of ours")
    }

    /// True while it runs.
    pub fn is_alive(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Waits for something that must come, two minutes at most: a limit that only keeps a failure from hanging. Whether it came.
pub fn comes(condition: impl Fn() -> bool) -> bool {
    let begin = Instant::now();
    while begin.elapsed() < Duration::from_secs(120) {
        if condition() {
            return true;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    false
}

/// The same, of something without which the test cannot go on.
pub fn wait_until(condition: impl Fn() -> bool) {
    assert!(comes(condition), "waited in vain");
}

/// Entry and return probes of the programs in `tests/programs/counts.bpf.c` at these places.
pub fn load_counts(store: &Store, places: &[&str]) {
    let object = object("tests/programs/counts.bpf.c");
    let mut arguments = vec!["load".to_owned(), object.to_string_lossy().into_owned()];
    for place in places {
        arguments.extend(["--attach".into(), format!("on_entry=uprobe:{place}")]);
        arguments.extend(["--attach".into(), format!("on_return=uretprobe:{place}")]);
    }
    store.ok(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
}

/// Executable mappings of a process that are ours, and the bytes of a function in it, for "as it was" checks.
pub fn our_mappings(pid: &str) -> Vec<String> {
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).unwrap_or_default();
    maps.lines().filter(|line| line.contains("beeline")).map(str::to_owned).collect()
}

/// Lines of /proc/PID/maps without what the target itself changes (heap, stacks, inode of anonymous memory).
pub fn mapping_ranges(pid: &str) -> Vec<String> {
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).unwrap_or_default();
    maps.lines()
        .filter(|line| !line.contains("[stack") && !line.contains("[heap"))
        .map(str::to_owned)
        .collect()
}

/// All bytes of the executable file mappings of a process, with their addresses.
pub fn text_of(pid: &str) -> Vec<(u64, Vec<u8>)> {
    use std::os::unix::fs::FileExt;
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).expect("the target lives");
    let memory = std::fs::File::open(format!("/proc/{pid}/mem")).expect("the target lives");
    let mut texts = Vec::new();
    for line in
        maps.lines().filter(|line| line.contains("r-xp") && line.contains('/') && !line.contains("beeline"))
    {
        let (start, rest) = line.split_once('-').expect("a range");
        let (end, _) = rest.split_once(' ').expect("a range");
        let start = u64::from_str_radix(start, 16).expect("hex");
        let end = u64::from_str_radix(end, 16).expect("hex");
        let mut bytes = vec![0; (end - start) as usize];
        memory.read_exact_at(&mut bytes, start).expect("text is readable");
        texts.push((start, bytes));
    }
    texts
}

/// Starts the command and kills it after `delay`; true when it was still running.
pub fn run_and_kill(store: &Store, arguments: &[&str], delay: Duration) -> bool {
    let mut command = store.command(arguments);
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("beeline runs");
    let start = Instant::now();
    while start.elapsed() < delay {
        std::hint::spin_loop();
    }
    let was_running = matches!(child.try_wait(), Ok(None));
    let _ = child.kill();
    let _ = child.wait();
    was_running
}

/// Small generator with a fixed seed, so that a failure can be looked for again.
pub struct Random(u64);

impl Random {
    /// One with this seed, which is not 0.
    pub fn new(seed: u64) -> Random {
        Random(seed)
    }

    /// A number below `limit`.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit.max(1)
    }
}
