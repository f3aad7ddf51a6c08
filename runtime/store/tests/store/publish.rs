//! What is published is there, and goes.

use crate::{Scratch, array, object};
use beeline_store::{NewObject, ProbeKind, Store, StoreError};

#[test]
fn everything_is_there_after_publishing() {
    let scratch = Scratch::new();
    let store = scratch.store();
    let published = store.publish(&object("one")).unwrap();
    let store = Store::open(&scratch.name()).unwrap();

    assert_eq!(store.object_names().unwrap(), ["one"]);
    let info = store.object_info("one").unwrap();
    assert_eq!((info.id, info.name.as_str(), info.source.as_str()), (published.id, "one", "one.bpf.o"));
    assert_eq!(store.btf_of("one").unwrap().as_deref(), Some(&b"btf"[..]));

    let programs: Vec<_> = store.programs_of("one").unwrap().into_iter().map(Result::unwrap).collect();
    assert_eq!(programs.iter().map(|it| it.name.as_str()).collect::<Vec<_>>(), ["first", "second"]);
    assert_eq!(programs.iter().map(|it| it.id).collect::<Vec<_>>(), published.programs);
    assert_eq!(programs[0].map_ids, [published.maps[1], published.maps[0]]);
    assert_eq!(programs[0].insns, crate::program("first").insns);
    assert!(!programs[0].code.is_empty() && programs[0].functions[0].offset == 0);

    let maps = store.maps().unwrap();
    assert!(maps.damaged.is_empty());
    assert_eq!(maps.maps.iter().map(|it| it.name.as_str()).collect::<Vec<_>>(), ["counts", "data"]);
    assert_eq!(maps.maps.iter().map(|it| it.file.id()).collect::<Vec<_>>(), published.maps);
    assert_eq!(maps.maps[0].file.shape().cpus, store.cpus());
    assert!(maps.maps[1].file.is_frozen() && !maps.maps[0].file.is_frozen());

    let links: Vec<_> = store.links_of("one").unwrap().into_iter().map(Result::unwrap).collect();
    assert_eq!(
        links.iter().map(|it| it.link.name.as_str()).collect::<Vec<_>>(),
        ["first", "first.2", "second"]
    );
    assert_eq!(links.iter().map(|it| it.link.id).collect::<Vec<_>>(), published.links);
    assert_eq!(links[1].link.kind, ProbeKind::Return);
    assert!(links.iter().all(|link| link.is_enabled() && link.missed() == 0));
}

#[test]
fn ids_are_never_shared_and_never_come_back() {
    let scratch = Scratch::new();
    let store = scratch.store();
    let mut seen = std::collections::BTreeSet::new();
    for round in 0..5 {
        let published = store.publish(&object("one")).unwrap();
        let ids = [&[published.id][..], &published.maps, &published.programs, &published.links].concat();
        for id in ids {
            assert!(seen.last().is_none_or(|&last| id > last), "round {round}: {id} after {seen:?}");
            seen.insert(id);
        }
        store.remove("one").unwrap();
    }
}

/// Whoever began to unload was killed: some links may be off, so nobody may see the object any more.
#[test]
fn what_is_being_unloaded_is_gone() {
    let scratch = Scratch::new();
    let store = scratch.store();
    store.publish(&object("one")).unwrap();
    std::fs::write(store.path().join("objects/one/removing"), "").unwrap();
    assert!(store.object_names().unwrap().is_empty());
    assert!(store.maps().unwrap().maps.is_empty());
    assert!(matches!(store.links_of("one"), Err(StoreError::NotFound { .. })));
    // The next command that changes something completes it; the name is free.
    store.publish(&object("one")).unwrap();
    assert_eq!(store.links_of("one").unwrap().len(), 3);
}

#[test]
fn a_name_is_taken_once() {
    let scratch = Scratch::new();
    let store = scratch.store();
    let first = store.publish(&object("one")).unwrap();
    assert!(matches!(store.publish(&object("one")), Err(StoreError::Exists { name }) if name == "one"));
    assert_eq!(store.object_info("one").unwrap().id, first.id);
    store.publish(&object("two")).unwrap();
    assert_eq!(store.object_names().unwrap(), ["one", "two"]);
}

#[test]
fn removal_turns_links_off_and_leaves_nothing() {
    let scratch = Scratch::new();
    let store = scratch.store();
    store.publish(&object("one")).unwrap();
    let links: Vec<_> = store.links_of("one").unwrap().into_iter().map(Result::unwrap).collect();
    store.remove("one").unwrap();
    assert!(links.iter().all(|link| !link.is_enabled()), "seen by whoever has the page mapped");
    assert!(store.object_names().unwrap().is_empty());
    assert!(store.maps().unwrap().maps.is_empty());
    assert!(matches!(store.remove("one"), Err(StoreError::NotFound { .. })));
    for path in ["../x", "", ".", "..", "a/b"] {
        assert!(matches!(store.remove(path), Err(StoreError::NotFound { .. })), "{path:?}");
    }
    assert_eq!(std::fs::read_dir(scratch.path().join("staging")).unwrap().count(), 0);
}

#[test]
fn an_object_that_cannot_be_made_leaves_nothing() {
    let scratch = Scratch::new();
    let store = scratch.store();
    let mut twice = object("one");
    twice.maps.push(array("counts", 8, 1));
    let mut impossible = object("one");
    impossible.maps.push(array("none", 8, 0));
    let mut unknown = object("one");
    unknown.maps[0].shape.map_type = 777;
    let mut dangling = object("one");
    dangling.links[2].program = 9;
    let mut nameless = object("one");
    nameless.programs[1].program.name = String::new();
    for (bad, what) in
        [(twice, "two maps"), (impossible, "none"), (unknown, "counts"), (dangling, "9"), (nameless, "")]
    {
        let error = store.publish(&bad).unwrap_err().to_string();
        assert!(error.contains(what), "{error}");
        assert!(store.object_names().unwrap().is_empty());
        assert_eq!(std::fs::read_dir(scratch.path().join("staging")).unwrap().count(), 0);
    }
    for name in ["", "a/b", ".x", "a b"] {
        assert!(matches!(store.publish(&object(name)), Err(StoreError::BadName { .. })), "{name:?}");
    }
}

fn pinned(name: &str) -> NewObject {
    let mut new = object(name);
    new.maps[0].pinned = true;
    new
}

#[test]
fn maps_pinned_by_name_are_shared_and_outlive_their_objects() {
    let scratch = Scratch::new();
    let store = scratch.store();
    let one = store.publish(&pinned("one")).unwrap();
    let two = store.publish(&pinned("two")).unwrap();
    assert_eq!((one.reused, two.reused), (vec![false, false], vec![true, false]));
    assert_eq!(one.maps[0], two.maps[0]);
    assert_ne!(one.maps[1], two.maps[1]);
    let maps = store.maps().unwrap().maps;
    assert_eq!(maps.len(), 3);
    assert_eq!((maps[0].objects.len(), maps[0].pins.as_slice()), (2, &["counts".to_owned()][..]));
    assert_eq!(store.btf_of_map(&maps[0]).unwrap().as_deref(), Some(&b"btf"[..]));

    store.remove("one").unwrap();
    store.remove("two").unwrap();
    let maps = store.maps().unwrap().maps;
    assert_eq!((maps.len(), maps[0].file.id(), maps[0].objects.len()), (1, one.maps[0], 0));
    assert_eq!(store.btf_of_map(&maps[0]).unwrap().as_deref(), Some(&b"btf"[..]));

    let mut other = pinned("three");
    other.maps[0].shape.value_size = 16;
    let error = store.publish(&other).unwrap_err().to_string();
    assert_eq!(error, "couldn't reuse pinned map counts: parameter mismatch: value size is 8, not 16");
    assert!(store.object_names().unwrap().is_empty());

    store.unpin("counts").unwrap();
    assert!(store.maps().unwrap().maps.is_empty());
    assert!(matches!(store.unpin("counts"), Err(StoreError::NotFound { .. })));
}

#[test]
fn maps_are_pinned_by_hand() {
    let scratch = Scratch::new();
    let store = scratch.store();
    store.publish(&object("one")).unwrap();
    store.pin("one", "counts", "kept").unwrap();
    store.pin("one", "counts", "kept").unwrap();
    assert!(matches!(store.pin("one", "data", "kept"), Err(StoreError::PinExists { .. })));
    assert!(matches!(store.pin("one", "nothing", "other"), Err(StoreError::NotFound { .. })));
    assert!(matches!(store.pin("none", "counts", "other"), Err(StoreError::NotFound { .. })));
    store.remove("one").unwrap();
    assert_eq!(store.maps().unwrap().maps[0].name, "kept");
}

#[test]
fn several_loaders_at_once() {
    let scratch = Scratch::new();
    drop(scratch.store());
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let scratch = &scratch;
            scope.spawn(move || {
                let store = Store::open(&scratch.name()).unwrap();
                for round in 0..5 {
                    let name = format!("object-{thread}-{round}");
                    store.publish(&pinned(&name)).unwrap();
                    if round % 2 == 0 {
                        store.remove(&name).unwrap();
                    }
                }
            });
        }
    });
    let store = Store::open(&scratch.name()).unwrap();
    assert_eq!(store.object_names().unwrap().len(), 8);
    let maps = store.maps().unwrap();
    assert!(maps.damaged.is_empty());
    assert_eq!(maps.maps.len(), 9, "one shared map, one of each object");
}

#[test]
fn several_creators_of_one_store() {
    let scratch = Scratch::new();
    let uuids: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4).map(|_| scope.spawn(|| scratch.store().uuid())).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert!(uuids.iter().all(|uuid| *uuid == uuids[0] && *uuid != [0, 0]), "{uuids:?}");
}

#[test]
fn a_store_that_does_not_exist_is_not_made_by_looking() {
    let scratch = Scratch::new();
    assert!(matches!(Store::open(&scratch.name()), Err(StoreError::Missing { .. })));
    assert!(!scratch.path().exists());
}

#[test]
fn an_owned_object_ends_with_its_owner() {
    // A process that is being started has our locks for a moment.
    let _quiet = crate::quiet();
    let scratch = Scratch::new();
    let store = scratch.store();
    let (published, ownership) = store.publish_owned(&object("mine")).unwrap();
    store.publish(&object("other")).unwrap();
    let links =
        |name: &str| store.links_of(name).unwrap().into_iter().map(Result::unwrap).collect::<Vec<_>>();
    let (mine, others) = (links("mine"), links("other"));
    assert_eq!(mine.iter().map(|it| it.link.id).collect::<Vec<_>>(), published.links);
    assert!(mine.iter().all(|link| link.is_enabled() && link.owner().is_some()));
    assert!(others.iter().all(|link| link.is_enabled() && link.owner().is_none()));
    mine[0].set_enabled(false);
    mine[1].set_enabled(false);
    mine[1].set_enabled(true);
    assert!(!mine[0].is_enabled() && mine[1].is_enabled());
    drop(ownership);
    assert!(mine.iter().all(|link| !link.is_enabled()), "off at once");
    assert!(others.iter().all(|link| link.is_enabled()));
    assert_eq!(store.object_names().unwrap(), ["other"]);
    assert!(matches!(store.remove("mine"), Err(StoreError::NotFound { .. })));
    // Its name is free.
    let (_, again) = store.publish_owned(&object("mine")).unwrap();
    assert!(links("mine").iter().all(|link| link.is_enabled()));
    drop(again);
}

#[test]
fn a_link_gets_another_program_and_goes() {
    let scratch = Scratch::new();
    let store = scratch.store();
    let published = store.publish(&object("one")).unwrap();
    let links = || store.links_of("one").unwrap().into_iter().map(Result::unwrap).collect::<Vec<_>>();
    links()[0].set_program(published.programs[1]);
    let programs: Vec<u32> = links().iter().map(|it| it.link.prog_id).collect();
    assert_eq!(programs, [published.programs[1], published.programs[0], published.programs[1]]);
    let kept = links().remove(0);
    store.remove_link("one", "first").unwrap();
    assert!(!kept.is_enabled(), "whoever has it mapped sees it off");
    assert_eq!(links().iter().map(|it| it.link.name.clone()).collect::<Vec<_>>(), ["first.2", "second"]);
    for (object, link) in [("one", "first"), ("one", "none"), ("two", "first"), ("one", "../meta")] {
        let error = store.remove_link(object, link).unwrap_err();
        assert!(matches!(error, StoreError::NotFound { .. } | StoreError::BadName { .. }), "{link}: {error}");
    }
}
