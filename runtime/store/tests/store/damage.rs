//! Files that beeline did not write, or that somebody spoiled, are refused by name.

use crate::{Scratch, object};
use beeline_store::{Store, StoreError, StoreName};
use std::fs::{self, OpenOptions};
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

fn published() -> (Scratch, Store) {
    let scratch = Scratch::new();
    let store = scratch.store();
    store.publish(&object("one")).unwrap();
    (scratch, store)
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { found.extend(files(&path)) } else { found.push(path) }
    }
    found.sort();
    found
}

/// Reads everything that can be read; the errors.
fn read_all(name: &StoreName) -> Vec<StoreError> {
    let store = match Store::open(name) {
        Ok(store) => store,
        Err(error) => return vec![error],
    };
    let mut errors = Vec::new();
    match store.maps() {
        Ok(list) => errors.extend(list.damaged),
        Err(error) => errors.push(error),
    }
    errors.extend(store.cpu_slots().err());
    errors.extend(store.trace().err());
    for object in store.object_names().unwrap_or_default() {
        errors.extend(store.object_info(&object).err());
        errors.extend(store.btf_of(&object).err());
        match store.programs_of(&object) {
            Ok(programs) => errors.extend(programs.into_iter().filter_map(Result::err)),
            Err(error) => errors.push(error),
        }
        match store.links_of(&object) {
            Ok(links) => errors.extend(links.into_iter().filter_map(Result::err)),
            Err(error) => errors.push(error),
        }
    }
    errors
}

#[test]
fn an_intact_store_has_no_errors() {
    let (scratch, _store) = published();
    assert!(read_all(&scratch.name()).is_empty());
}

#[test]
fn every_truncated_file_is_named() {
    let (scratch, _) = published();
    for path in files(&scratch.path()) {
        let whole = fs::read(&path).unwrap();
        let plain = path.ends_with("objects/one/btf") || whole.is_empty();
        for len in [whole.len() / 2, 30, 0] {
            if plain || len >= whole.len() {
                continue;
            }
            fs::write(&path, &whole[..len]).unwrap();
            let errors = read_all(&scratch.name());
            let text = path.display().to_string();
            assert!(
                errors.iter().any(|it| it.to_string().contains(&text)),
                "{text}, {len} bytes: {errors:?}"
            );
        }
        fs::write(&path, &whole).unwrap();
    }
    assert!(read_all(&scratch.name()).is_empty());
}

#[test]
fn garbage_in_any_header_is_found() {
    let (scratch, _) = published();
    for path in files(&scratch.path()) {
        let whole = fs::read(&path).unwrap();
        if path.ends_with("btf") || whole.is_empty() || path.ends_with("cpus") {
            continue;
        }
        let file = OpenOptions::new().write(true).open(&path).unwrap();
        for at in [0, 8] {
            file.write_all_at(&[0xff; 4], at).unwrap();
            let errors = read_all(&scratch.name());
            let text = path.display().to_string();
            assert!(errors.iter().any(|it| it.to_string().contains(&text)), "{text} at {at}: {errors:?}");
            file.write_all_at(&whole[at as usize..at as usize + 4], at).unwrap();
        }
    }
    assert!(read_all(&scratch.name()).is_empty());
}

/// Bytes are spoiled at random, also behind the headers and while everything is open: wrong answers are allowed,
/// panics, faults and endless walks are not.
#[test]
fn garbage_anywhere_does_no_harm() {
    let scratch = Scratch::new();
    let store = scratch.store();
    let mut new = object("one");
    for (index, map_type) in [1, 5, 9, 27, 4, 3].into_iter().enumerate() {
        let shape = beeline_abi::map::MapShape {
            map_type,
            key_size: if map_type == 27 { 0 } else { 4 },
            value_size: if map_type == 27 { 0 } else { 4 },
            max_entries: if map_type == 27 { 4096 } else { 32 },
            ..Default::default()
        };
        let name = format!("map{index}");
        new.maps.push(beeline_store::NewMap { name, shape, ..Default::default() });
    }
    store.publish(&new).unwrap();
    let open = store.maps().unwrap();
    let mut trace = store.trace().unwrap();
    let paths = files(&scratch.path());
    let mut random = 0x9E37_79B9_7F4A_7C15u64;
    let mut next = |below: u64| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random % below
    };
    for round in 0..400 {
        let path = &paths[next(paths.len() as u64) as usize];
        let file = OpenOptions::new().read(true).write(true).open(path).unwrap();
        let len = file.metadata().unwrap().len();
        if len < 8 {
            continue;
        }
        // Headers more often than the middle of nowhere.
        let at = if round % 2 == 0 { next(len.min(1024) - 7) } else { next(len - 7) };
        let mut before = [0; 8];
        file.read_exact_at(&mut before, at).unwrap();
        file.write_all_at(&next(u64::MAX).to_ne_bytes(), at).unwrap();
        read_all(&scratch.name());
        for map in &open.maps {
            let entries = map.file.entries();
            if let Ok(entries) = &entries {
                assert!(entries.len() <= 256, "{} has {} entries", map.name, entries.len());
            }
            let _ = map.file.update(&[7, 0, 0, 0], &vec![1; map.file.value_len()], 0);
            let _ = map.file.delete(&[7, 0, 0, 0]);
            if let Ok(mut events) = map.file.events() {
                (0..100).for_each(|_| drop(events.poll()));
            }
        }
        (0..100).for_each(|_| drop(trace.poll()));
        if round % 3 != 0 {
            file.write_all_at(&before, at).unwrap();
        }
    }
}

#[test]
fn a_damaged_object_can_be_removed() {
    let (scratch, store) = published();
    let objects = scratch.path().join("objects/one");
    fs::write(objects.join("meta"), b"").unwrap();
    fs::write(objects.join("links/first"), b"x").unwrap();
    fs::write(objects.join("maps/counts"), b"x").unwrap();
    assert!(!read_all(&scratch.name()).is_empty());
    store.remove("one").unwrap();
    assert!(read_all(&scratch.name()).is_empty());
    store.publish(&object("one")).unwrap();
}

#[test]
fn a_damaged_journal_stands_in_nobodys_way() {
    let (scratch, store) = published();
    fs::write(scratch.path().join("objects/one/pending"), b"nonsense").unwrap();
    store.publish(&object("two")).unwrap();
    assert!(!scratch.path().join("objects/one/pending").exists());
    fs::write(scratch.path().join("objects/one/pending"), b"").unwrap();
    store.remove("one").unwrap();
    assert_eq!(store.object_names().unwrap(), ["two"]);
}

#[test]
fn symbolic_links_are_never_followed() {
    let (scratch, store) = published();
    let target = scratch.folder.path().join("elsewhere");
    for name in ["objects/one/progs/first", "objects/one/maps/counts", "trace", "store"] {
        let path = scratch.path().join(name);
        fs::rename(&path, &target).unwrap();
        symlink(&target, &path).unwrap();
        let errors = read_all(&scratch.name());
        let refused =
            |it: &StoreError| matches!(it, StoreError::WrongKind { path: found, .. } if *found == path);
        assert!(errors.iter().any(refused), "{name}: {errors:?}");
        fs::rename(&target, &path).unwrap();
    }
    // A directory of ours replaced by a link, and the store itself reached by one.
    let outside = scratch.folder.path().join("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("precious"), b"x").unwrap();
    symlink(&outside, scratch.path().join("staging/trap")).unwrap();
    store.publish(&object("two")).unwrap();
    assert!(outside.join("precious").exists(), "cleaning up does not leave the store");
    symlink(scratch.path(), scratch.folder.path().join("alias")).unwrap();
    let alias = StoreName::Path(scratch.folder.path().join("alias"));
    assert!(matches!(Store::open(&alias), Err(StoreError::WrongKind { .. })));
}

#[test]
fn what_others_can_write_is_refused() {
    let (scratch, _) = published();
    for name in ["", "store", "objects", "objects/one", "objects/one/links/first", "objects/one/maps"] {
        let path = scratch.path().join(name);
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode | 0o020)).unwrap();
        let errors = read_all(&scratch.name());
        assert!(
            errors.iter().any(|it| matches!(it, StoreError::WritableByOthers { .. })),
            "{name}: {errors:?}"
        );
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
    }
    assert!(read_all(&scratch.name()).is_empty());
}

#[test]
fn what_others_own_is_refused() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: only root can give files away");
        return;
    }
    let (scratch, _) = published();
    for name in ["", "store", "cpus", "objects/one", "objects/one/progs/first", "objects/one/maps/counts"] {
        let path = scratch.path().join(name);
        std::os::unix::fs::chown(&path, Some(65534), None).unwrap();
        let errors = read_all(&scratch.name());
        let foreign = |it: &StoreError| matches!(it, StoreError::ForeignOwner { owner: 65534, .. });
        assert!(errors.iter().any(foreign), "{name}: {errors:?}");
        std::os::unix::fs::chown(&path, Some(0), None).unwrap();
    }
    assert!(read_all(&scratch.name()).is_empty());
}

#[test]
fn files_that_block_are_not_waited_for() {
    let (scratch, _) = published();
    let path = scratch.path().join("objects/one/progs/first");
    fs::remove_file(&path).unwrap();
    let made =
        crate::spawn(std::process::Command::new("mkfifo").arg(&path)).and_then(|mut child| child.wait());
    assert!(made.is_ok_and(|status| status.success()));
    assert!(read_all(&scratch.name()).iter().any(|it| matches!(it, StoreError::WrongKind { .. })));
}

#[test]
fn other_directories_are_not_stores() {
    let folder = tempfile::tempdir_in("/dev/shm").unwrap();
    assert!(matches!(Store::open(&StoreName::Path(folder.path().into())), Err(StoreError::Corrupt { .. })));
    let file = folder.path().join("file");
    fs::write(&file, b"x").unwrap();
    assert!(matches!(Store::open(&StoreName::Path(file)), Err(StoreError::WrongKind { .. })));
    assert!(matches!(
        Store::open_or_create(&StoreName::Path("/proc/x".into())),
        Err(StoreError::NotTmpfs { .. })
    ));
}
