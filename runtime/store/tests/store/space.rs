//! A tmpfs that is full: said clearly, nothing left behind, nothing lost.

use crate::{array, object, quiet, spawn};
use beeline_store::{Store, StoreError, StoreName};
use std::path::Path;
use std::process::{Command, Stdio};

/// A small tmpfs, unmounted with it; `None` where it cannot be mounted.
struct Small {
    folder: tempfile::TempDir,
}

impl Small {
    fn mount(options: &str) -> Option<Small> {
        let folder = tempfile::tempdir().expect("a folder");
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", options, "none"]).arg(folder.path()).stderr(Stdio::null());
        let mounted =
            spawn(&mut mount).and_then(|mut child| child.wait()).is_ok_and(|status| status.success());
        if !mounted {
            eprintln!("skipped: cannot mount a tmpfs");
        }
        mounted.then_some(Small { folder })
    }

    fn store(&self) -> StoreName {
        StoreName::Path(self.folder.path().join("store"))
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = spawn(Command::new("umount").arg("-l").arg(self.folder.path()))
            .and_then(|mut child| child.wait());
    }
}

fn used(folder: &Path) -> u64 {
    let stat = rustix::fs::statvfs(folder).unwrap();
    (stat.f_blocks - stat.f_bfree) * stat.f_frsize
}

#[test]
fn a_map_that_does_not_fit() {
    let Some(small) = Small::mount("size=4m,mode=700") else { return };
    let _quiet = quiet();
    let store = Store::open_or_create(&small.store()).unwrap();
    store.publish(&object("small")).unwrap();
    let before = used(small.folder.path());
    let mut large = object("large");
    large.maps.push(array("huge", 1024, 10_000));
    match store.publish(&large) {
        Err(StoreError::Full { path, needed }) => {
            assert!(path.ends_with("maps/huge"), "{}", path.display());
            assert!(needed >= 10_240_000, "{needed}");
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(used(small.folder.path()), before, "all memory is given back");
    assert_eq!(store.object_names().unwrap(), ["small"]);
    assert!(store.programs_of("small").unwrap().iter().all(Result::is_ok));
    store.publish(&object("other")).unwrap();
}

#[test]
fn every_file_in_turn_does_not_fit() {
    let Some(small) = Small::mount("size=4m,mode=700") else { return };
    let _quiet = quiet();
    let store = Store::open_or_create(&small.store()).unwrap();
    for left in (0..16).map(|pages| pages * 4096) {
        let filler = std::fs::File::create(small.folder.path().join("filler")).unwrap();
        let mut len = 0;
        let full = loop {
            match rustix::fs::fallocate(&filler, rustix::fs::FallocateFlags::empty(), len, 4096) {
                Ok(()) => len += 4096,
                Err(rustix::io::Errno::INTR) => {}
                Err(errno) => break errno,
            }
        };
        assert_eq!(full, rustix::io::Errno::NOSPC, "after {len} bytes");
        filler.set_len(len.checked_sub(left).expect("the store leaves room for more")).unwrap();
        let before = used(small.folder.path());
        if let Err(error) = store.publish(&object("one")) {
            assert!(matches!(error, StoreError::Full { .. }), "{left}: {error}");
            assert_eq!(used(small.folder.path()), before, "{left} bytes free");
            assert!(store.object_names().unwrap().is_empty());
        } else {
            store.remove("one").unwrap();
        }
        std::fs::remove_file(small.folder.path().join("filler")).unwrap();
    }
    store.publish(&object("one")).unwrap();
}

#[test]
fn no_inodes_left() {
    let Some(small) = Small::mount("size=16m,nr_inodes=20,mode=700") else { return };
    let _quiet = quiet();
    let store = Store::open_or_create(&small.store()).unwrap();
    let error = store.publish(&object("one")).unwrap_err();
    assert!(matches!(error, StoreError::Full { .. }), "{error}");
    assert!(store.object_names().unwrap().is_empty());
}

#[test]
fn a_store_that_does_not_fit() {
    let Some(small) = Small::mount("size=600k,mode=700") else { return };
    let _quiet = quiet();
    let error = Store::open_or_create(&small.store()).unwrap_err();
    assert!(matches!(error, StoreError::Full { .. }), "{error}");
    assert!(matches!(Store::open(&small.store()), Err(StoreError::Missing { .. })));
    assert_eq!(std::fs::read_dir(small.folder.path()).unwrap().count(), 0);
}
