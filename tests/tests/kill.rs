//! `kill -9` of the command at random moments of `load`, `attach`, `detach` and `unload`, of processes that own links, of
//! targets that are being attached to, and of targets in the middle of programs that share maps with others: no other process
//! dies or hangs, the store stays usable and holds nothing that nobody needs, the next command succeeds.

use beeline_tests::{Random, Store, Target, comes, gcc, load_counts, object, rounds, run_and_kill};
use beeline_watchdog::Watchdog;
use serde_json::Value;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// How long the command takes when it is left alone: kills fall anywhere in this time.
fn duration_of(store: &Store, arguments: &[&str]) -> Duration {
    let start = Instant::now();
    store.ok(arguments);
    start.elapsed()
}

#[test]
fn kill_the_command_at_any_moment() {
    let program = gcc("tests/targets/sleepers.c");
    let object = object("tests/programs/counts.bpf.c").to_string_lossy().into_owned();
    let place = format!("{}:work", program.display());
    let (entry, leave) = (format!("on_entry=uprobe:{place}"), format!("on_return=uretprobe:{place}"));
    let load = ["load", &object, "--attach", &entry, "--attach", &leave];
    let store = Store::new();
    let watchdog = Watchdog::new("kill of commands");
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
    let mut random = Random::new(0x9E37_79B9_7F4A_7C15);
    let mut killed = [0u64; 4];
    let total = rounds(60);
    for round in 0..3 * total {
        if killed.iter().sum::<u64>() >= total {
            break;
        }
        watchdog.alive();
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
        if !comes(counts_again) {
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

/// A process that calls a probed function all the time, and is only there to be killed.
struct Victim(Child);

impl Victim {
    fn new(program: &Path) -> Victim {
        let child = Command::new(program).args(["1", "1000000000000"]).stdout(Stdio::null()).spawn();
        Victim(child.expect("the target runs"))
    }

    fn pid(&self) -> String {
        self.0.id().to_string()
    }
}

impl Drop for Victim {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Targets killed in a round.
const SIBLINGS: usize = 6;
/// The object whose links have an owner.
const OWNED: &str = "owned";
/// Rounds after which everything is loaded anew.
const FRESH: u64 = 50;

#[test]
fn kill_targets_and_owners_at_any_moment() {
    let sleepers = gcc("tests/targets/sleepers.c");
    let worker = gcc("tests/targets/worker.c");
    let store = Store::new();
    let watchdog = Watchdog::new("kill of targets and owners");
    let load = || {
        let places = [&sleepers, &worker].map(|program| format!("{}:work", program.display()));
        load_counts(&store, &places.each_ref().map(String::as_str));
    };
    // What a store holds after everything in it was unloaded.
    load();
    store.ok(&["unload", "--all"]);
    let empty = files(&store.folder());
    let mut survivor = Target::spawn(Command::new(&sleepers).args(["6", "eintr"]));
    assert_eq!(survivor.line(), "ready");
    let pid = survivor.pid();
    let mut random = Random::new(0xD1B5_4A32_D192_ED03);
    let total = rounds(40);
    let (mut targets, mut owners) = (0, 0);
    let mut gone = Vec::new();
    for round in 0.. {
        if targets + owners >= total {
            break;
        }
        watchdog.alive();
        if round % FRESH == 0 {
            store.ok(&["unload", "--all"]);
            load();
            store.ok(&["attach", &pid]);
        }
        let killed = kill_siblings(&store, &worker, &mut random);
        targets += killed.len() as u64;
        gone.extend(killed);
        owners += kill_owner(&store, &sleepers, &mut random);
        assert!(survivor.is_alive(), "round {round}: the survivor died");
        // It still counts, in maps that the dead had locked or owned a CPU of.
        let before = store.number("shared", 0);
        assert!(comes(|| store.number("shared", 0) > before), "round {round}: no probe counts any more");
    }
    store.ok(&["detach", &pid]);
    survivor.send("stop");
    assert_eq!(survivor.finish().trim(), "disturbed 0");
    store.ok(&["unload", "--all"]);
    assert_eq!(files(&store.folder()), empty, "the store holds nothing more than at first");
    // Other tests attach to processes of theirs meanwhile.
    gone.push(pid);
    let attached = store.json(&["ps"]);
    let gone: Vec<u64> = gone.iter().map(|pid| pid.parse().expect("a number")).collect();
    let of_ours = |process: &&Value| process["pid"].as_u64().is_some_and(|pid| gone.contains(&pid));
    let left: Vec<&Value> = attached.as_array().into_iter().flatten().filter(of_ours).collect();
    assert!(left.is_empty(), "processes that are gone are taken for attached: {left:?}");
    println!(
        "killed {targets} targets and {owners} owners; none of the others was harmed, nothing is left in the store"
    );
}

/// Attaches to some targets, one of which is killed meanwhile, and then kills the others in the middle of their programs; whom.
fn kill_siblings(store: &Store, worker: &Path, random: &mut Random) -> Vec<String> {
    let mut victims: Vec<Victim> = (0..SIBLINGS).map(|_| Victim::new(worker)).collect();
    let pids: Vec<String> = victims.iter().map(Victim::pid).collect();
    let arguments: Vec<&str> = std::iter::once("attach").chain(pids.iter().map(String::as_str)).collect();
    let mut command = store.command(&arguments);
    let mut attach = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("beeline runs");
    std::thread::sleep(Duration::from_micros(random.below(40_000)));
    victims.swap_remove(random.below(SIBLINGS as u64) as usize);
    // It cannot succeed for the dead one, unless that had been attached to already.
    let _ = attach.wait().expect("a child of ours");
    while !victims.is_empty() {
        std::thread::sleep(Duration::from_micros(random.below(2_000)));
        victims.swap_remove(random.below(victims.len() as u64) as usize);
    }
    pids
}

/// Kills a process that owns links, while it makes them or later; 1.
fn kill_owner(store: &Store, program: &Path, random: &mut Random) -> u64 {
    let object = object("tests/programs/counts.bpf.c").to_string_lossy().into_owned();
    let (entry, leave) = ("on_entry=uprobe", "on_return=uretprobe");
    let [entry, leave] = [entry, leave].map(|start| format!("{start}:{}:work", program.display()));
    let load = ["load", &object, "--name", OWNED, "--own", "--attach", &entry, "--attach", &leave];
    let mut command = store.command(&load);
    let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
    let owner = Victim(child.expect("beeline runs"));
    std::thread::sleep(Duration::from_micros(random.below(30_000)));
    drop(owner);
    // A link may be left over, but none that is on: nobody has to notice that its owner is dead.
    let links = store.json(&["link", "list"]);
    for link in links.as_array().into_iter().flatten().filter(|link| link["object"] == OWNED) {
        assert_eq!(link["enabled"], false, "a dead owner's link: {link}");
    }
    if store.json(&["prog", "list"]).as_array().into_iter().flatten().any(|it| it["object"] == OWNED) {
        store.ok(&["unload", OWNED]);
    }
    1
}

/// Paths of all files and folders in a folder.
fn files(folder: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("readable")) {
        found.push(entry.path().display().to_string());
        if entry.file_type().expect("known").is_dir() {
            found.extend(files(&entry.path()));
        }
    }
    found.sort_unstable();
    found
}
