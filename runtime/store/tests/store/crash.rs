//! A loader that is killed at any point leaves nothing half-registered.
//!
//! The test binary starts itself again as a loader that publishes and removes for ever, and kills it.

use crate::{Scratch, object};
use beeline_store::{Store, StoreName};
use std::collections::BTreeSet;
use std::io::Read;
use std::process::{Command, Stdio};
use std::time::Duration;

const CHILD: &str = "BEELINE_STORE_TEST_CHILD";
const ROUNDS: u64 = 100;

/// Not a test of its own: what the killed process runs.
#[test]
fn child() {
    let Some(path) = std::env::var_os(CHILD) else { return };
    let store = Store::open(&StoreName::Path(path.into())).unwrap();
    let mut new = object("one");
    new.maps[0].pinned = true;
    println!("ready");
    loop {
        match store.publish(&new) {
            Ok(_) | Err(beeline_store::StoreError::Exists { .. }) => {}
            Err(error) => panic!("{error}"),
        }
        store.remove("one").unwrap();
    }
}

#[test]
fn killed_at_any_point() {
    let rounds = std::env::var("BEELINE_SOAK").ok().and_then(|it| it.parse().ok()).unwrap_or(ROUNDS);
    let scratch = Scratch::new();
    let store = scratch.store();
    let mut seen = BTreeSet::new();
    let (mut found_loaded, mut found_half) = (0, 0);
    let mut random = 0x9E37_79B9_7F4A_7C15u64;
    for round in 0..rounds {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        kill_after(&scratch, Duration::from_micros(random % 3000));
        found_half += std::fs::read_dir(scratch.path().join("staging")).unwrap().count();
        found_loaded += check_whole(&store, round);
        // The next command of any kind works, and finds order.
        let _ = store.remove("one");
        assert!(store.object_names().unwrap().is_empty(), "round {round}");
        assert_eq!(std::fs::read_dir(scratch.path().join("staging")).unwrap().count(), 0, "round {round}");
        let published = store.publish(&object("check")).unwrap();
        assert!(seen.last().is_none_or(|&last| published.id > last), "round {round}: ids go up");
        seen.insert(published.id);
        store.remove("check").unwrap();
    }
    println!("{rounds} rounds: {found_loaded} times the object was there, {found_half} leftovers removed");
}

fn kill_after(scratch: &Scratch, delay: Duration) {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["crash::child", "--exact", "--nocapture", "--test-threads=1"])
        .env(CHILD, scratch.path())
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    let mut child = crate::spawn(&mut command).unwrap();
    let mut output = child.stdout.take().unwrap();
    let mut text = Vec::new();
    let mut byte = [0];
    while !text.ends_with(b"ready\n") {
        assert_eq!(output.read(&mut byte).unwrap(), 1, "the child died: {}", String::from_utf8_lossy(&text));
        text.push(byte[0]);
    }
    std::thread::sleep(delay);
    child.kill().unwrap();
    let status = child.wait().unwrap();
    assert!(
        std::os::unix::process::ExitStatusExt::signal(&status) == Some(9),
        "it was killed, not failed: {status}"
    );
}

/// All that readers see is whole. Returns how many objects there are.
fn check_whole(store: &Store, round: u64) -> usize {
    let names = store.object_names().unwrap();
    for name in &names {
        assert!(store.object_info(name).is_ok(), "round {round}");
        let programs = store.programs_of(name).unwrap();
        assert!(programs.len() == 2 && programs.iter().all(Result::is_ok), "round {round}: {programs:?}");
        let links = store.links_of(name).unwrap();
        assert!(links.len() == 3 && links.iter().all(Result::is_ok), "round {round}: {links:?}");
    }
    let maps = store.maps().unwrap();
    assert!(maps.damaged.is_empty(), "round {round}: {:?}", maps.damaged);
    let own = maps.maps.iter().filter(|map| !map.objects.is_empty()).count();
    assert_eq!(own, 2 * names.len(), "round {round}");
    names.len()
}
