//! `kill -9` of the command at random moments of `load`, `attach`, `detach` and `unload`: no target dies or hangs, the store
//! stays usable, the next command succeeds.

use beeline_tests::{Store, Target, gcc, object, rounds};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Starts the command and kills it after `delay`; true when it was still running.
fn run_and_kill(store: &Store, arguments: &[&str], delay: Duration) -> bool {
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

/// How long the command takes when it is left alone: kills fall anywhere in this time.
fn duration_of(store: &Store, arguments: &[&str]) -> Duration {
    let start = Instant::now();
    store.ok(arguments);
    start.elapsed()
}

/// Small generator with a fixed seed, so that a failure can be looked for again.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit.max(1)
    }
}

#[test]
fn kill_the_command_at_any_moment() {
    let program = gcc("tests/targets/sleepers.c");
    let object = object("tests/programs/counts.bpf.c").to_string_lossy().into_owned();
    let place = format!("{}:work", program.display());
    let (entry, leave) = (format!("on_entry=uprobe:{place}"), format!("on_return=uretprobe:{place}"));
    let load = ["load", &object, "--attach", &entry, "--attach", &leave];
    let store = Store::new();
    let mut target = Target::spawn(Command::new(&program).args(["6", "eintr"]));
    assert_eq!(target.line(), "ready");
    let pid = target.pid();

    // The shortest of three: most kills shall find the command running.
    let mut times = [Duration::MAX; 4];
    for _ in 0..3 {
        let once = [
            duration_of(&store, &load),
            duration_of(&store, &["attach", &pid]),
            duration_of(&store, &["detach", &pid]),
            duration_of(&store, &["unload", "counts"]),
        ];
        times = std::array::from_fn(|which| times[which].min(once[which]));
    }
    let mut random = Random(0x9E37_79B9_7F4A_7C15);
    let mut killed = [0u64; 4];
    let total = rounds(60);
    for round in 0..3 * total {
        if killed.iter().sum::<u64>() >= total {
            break;
        }
        let which = (round % 4) as usize;
        // What the killed command needs to be there, or not there.
        if which == 0 {
            let _ = store.output(&["unload", "counts"]);
        } else if store.json(&["prog", "list"]).as_array().is_some_and(Vec::is_empty) {
            store.ok(&load);
        }
        if which == 2 {
            store.ok(&["attach", &pid]);
        }
        let arguments: &[&str] = match which {
            0 => &load,
            1 => &["attach", &pid],
            2 => &["detach", &pid],
            _ => &["unload", "counts"],
        };
        let delay = Duration::from_nanos(random.below(times[which].as_nanos() as u64));
        killed[which] += u64::from(run_and_kill(&store, arguments, delay));
        assert!(
            target.is_alive(),
            "round {round}: the target died after a kill in {arguments:?} at {delay:?}"
        );

        // The next command of every kind succeeds.
        if store.json(&["prog", "list"]).as_array().is_some_and(Vec::is_empty) {
            store.ok(&load);
        }
        store.ok(&["attach", &pid]);
        let before = store.number("shared", 0);
        let counts_again = || store.number("shared", 0) > before;
        if !wait_until(counts_again) {
            let links = store.ok(&["link", "list"]);
            let processes = store.ok(&["--json", "ps"]);
            panic!(
                "round {round}: the probe does not count after a kill in {arguments:?} at {delay:?}\n{links}{processes}"
            );
        }
        store.ok(&["detach", &pid]);
    }
    target.send("stop");
    assert_eq!(target.finish().trim(), "disturbed 0");
    println!("killed while running: load, attach, detach, unload = {killed:?}");
    assert!(killed.iter().sum::<u64>() >= total, "too few kills found the command running");
}

/// Waits for something that must come; the limit only keeps a failure from hanging.
fn wait_until(condition: impl Fn() -> bool) -> bool {
    for _ in 0..600 {
        if condition() {
            return true;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    false
}
