//! Putting an object into the store: made aside, then moved into place in one step.
//!
//! A loader that is killed leaves a directory under `staging/`, which no reader looks at and the next one to change
//! the store removes. What has to happen after the move (pins) is written down in the object first, in `pending`, and
//! done by the next one if need be. Unloading marks the object with `removing` before anything else, for the same end.

use crate::directory::Directory;
use crate::link::{Link, LinkFile, ProbeKind, Target};
use crate::lock::{Lock, own};
use crate::mapping::map::{self, MapParameters};
use crate::mapping::owner::Ownership;
use crate::name::{check_name, to_file_name};
use crate::program::Program;
use crate::store::{OBJECTS, PIN_TYPES, PINS, STAGING, files_in, is_removing};
use crate::{MapFile, NO_TASK_LAYOUT, ObjectInfo, Store, StoreError, record};
use beeline_abi::map::MapShape;
use beeline_abi::process::TaskLayout;
use beeline_jit::CodeImage;
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use std::fs::File;

/// What is to be loaded.
#[derive(Clone, Debug, Default)]
pub struct NewObject {
    /// Its name in the store.
    pub name: String,
    /// The file that it came from.
    pub source: String,
    /// Its licence, empty when it has none.
    pub license: String,
    /// Its BTF, raw; empty when it has none.
    pub btf: Vec<u8>,
    /// CLOCK_REALTIME seconds.
    pub loaded_at: u64,
    /// Where the fields of `task_struct` lie in the BTF that its programs were relocated against.
    pub task_layout: Option<TaskLayout>,
    /// Its maps.
    pub maps: Vec<NewMap>,
    /// Its programs.
    pub programs: Vec<NewProgram>,
    /// Where its programs go.
    pub links: Vec<NewLink>,
    /// It ends with who publishes it: see [`Store::publish_owned`].
    pub owned: bool,
}

/// A map to be made.
#[derive(Clone, Debug, Default)]
pub struct NewMap {
    /// Its name.
    pub name: String,
    /// What it is; `cpus` is filled in by the store.
    pub shape: MapShape,
    /// BTF id of the key's type, 0 for none.
    pub btf_key_type_id: u32,
    /// BTF id of the value's type, 0 for none.
    pub btf_value_type_id: u32,
    /// First contents: key and value.
    pub initial: Vec<(Vec<u8>, InitialValue)>,
    /// User space may not change it afterwards.
    pub frozen: bool,
    /// Shared by name between objects (`LIBBPF_PIN_BY_NAME`): the pin is used when it is there, else made.
    pub pinned: bool,
}

/// A first value.
#[derive(Clone, Debug)]
pub enum InitialValue {
    /// Bytes of the value's size.
    Bytes(Vec<u8>),
    /// The id of the object's program with this index.
    Program(usize),
}

/// A program to be stored.
#[derive(Clone, Debug)]
pub struct NewProgram {
    /// The program; its ids and its code are filled in by the store.
    pub program: Program,
    /// Its code. Only what was verified can be compiled to one: the store takes no other.
    pub image: CodeImage,
    /// Its maps: indexes into [`NewObject::maps`].
    pub maps: Vec<usize>,
}

/// A link to be made.
#[derive(Clone, Debug)]
pub struct NewLink {
    /// Index of its program.
    pub program: usize,
    /// When it runs.
    pub kind: ProbeKind,
    /// Where.
    pub target: Target,
    /// Only in this process.
    pub pid: Option<u32>,
    /// Count its hits.
    pub count_hits: bool,
    /// Its program may skip and change system calls.
    pub may_override: bool,
}

/// What is in the store now.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Published {
    /// The object's id.
    pub id: u32,
    /// Ids of its maps, in the order given.
    pub maps: Vec<u32>,
    /// Which of them were pinned already and are shared.
    pub reused: Vec<bool>,
    /// Ids of its programs, in the order given.
    pub programs: Vec<u32>,
    /// Ids of its links, in the order given.
    pub links: Vec<u32>,
}

/// The file in an object's directory that says what is left to do after it was moved into place.
pub(crate) const PENDING: &str = "pending";
/// The file in an object's directory that says that it is being unloaded.
pub(crate) const REMOVING: &str = "removing";

#[derive(Serialize, Deserialize)]
struct Pending {
    pins: Vec<String>,
}

impl Store {
    /// Puts an object into the store. Either all of it is there afterwards, or nothing.
    ///
    /// # Errors
    /// [`StoreError::Exists`], [`StoreError::Full`], [`StoreError::MapCreate`], [`StoreError::PinMismatch`] and others.
    pub fn publish(&self, object: &NewObject) -> Result<Published, StoreError> {
        Ok(self.publish_with_lock(object)?.0)
    }

    fn publish_with_lock(&self, object: &NewObject) -> Result<(Published, Option<File>), StoreError> {
        check_name("an object", &object.name)?;
        let lock = self.lock()?;
        self.recover(&lock)?;
        let objects = self.root.directory(OBJECTS)?;
        let exists = || StoreError::Exists { name: object.name.clone() };
        if objects.entries()?.contains(&object.name) {
            return Err(exists());
        }
        let staging = self.root.directory(STAGING)?;
        let aside = format!("{}.{}", object.name, std::process::id());
        let result = Staged::write(self, &staging, &aside, object).and_then(|staged| {
            match staging.rename_new(&aside, &objects, &object.name) {
                Ok(()) => Ok(staged),
                Err(Errno::EXIST) => Err(exists()),
                Err(errno) => Err(StoreError::io("publish", objects.join(&object.name), 0)(errno)),
            }
        });
        let (published, owner) = match result {
            Ok(staged) => staged,
            Err(error) => {
                staging.remove_tree(&aside)?;
                return Err(error);
            }
        };
        if let Err(error) = self.finish_pending(&objects, &object.name) {
            self.remove_locked(&lock, &object.name)?;
            return Err(error);
        }
        Ok((published, owner))
    }

    /// As [`Store::publish`], of an object that ends with the value that is returned, or with this process.
    ///
    /// # Errors
    /// As [`Store::publish`], and when the links cannot be owned.
    pub fn publish_owned(&self, object: &NewObject) -> Result<(Published, Ownership), StoreError> {
        let owned = NewObject { owned: true, ..object.clone() };
        let (published, lock) = self.publish_with_lock(&owned)?;
        let path = self.root.join(&object.name);
        let lock = lock.ok_or_else(|| StoreError::corrupt(&path, "it has no owner"))?;
        let links = self.links_of(&object.name)?.into_iter().collect::<Result<Vec<_>, _>>()?;
        let ownership = Ownership::take(lock, &links).map_err(StoreError::io("own the links of", path, 0))?;
        Ok((published, ownership))
    }

    /// Takes an object out of the store: its links are off in all processes at once, its files are removed. Maps that
    /// are pinned, and whatever a process has mapped, live on.
    ///
    /// # Errors
    /// [`StoreError::NotFound`] when there is no such object.
    pub fn remove(&self, object: &str) -> Result<(), StoreError> {
        let lock = self.lock()?;
        self.recover(&lock)?;
        self.object(object)?;
        self.remove_locked(&lock, object)
    }

    fn remove_locked(&self, _lock: &Lock, object: &str) -> Result<(), StoreError> {
        let objects = self.root.directory(OBJECTS)?;
        let staging = self.root.directory(STAGING)?;
        let directory = objects.directory(object)?;
        if directory.try_file(REMOVING)?.is_none() {
            directory.create_file(REMOVING)?;
        }
        // What cannot be read cannot be turned off, and is no reason to keep it.
        for link in files_in(&directory, "links", LinkFile::open).into_iter().flatten().flatten() {
            link.set_enabled(false);
        }
        let aside = format!("{object}.{}.out", std::process::id());
        objects.rename_new(object, &staging, &aside).map_err(StoreError::io(
            "unload",
            objects.join(object),
            0,
        ))?;
        staging.remove_tree(&aside)
    }

    /// Completes what a process that was killed had begun. Whoever holds the lock may do so: nobody else is at it.
    pub(crate) fn recover(&self, lock: &Lock) -> Result<(), StoreError> {
        let staging = self.root.directory(STAGING)?;
        for entry in staging.entries()? {
            staging.remove_tree(&entry)?;
        }
        let objects = self.root.directory(OBJECTS)?;
        for name in self.all_object_names()? {
            let Ok(directory) = objects.directory(&name) else { continue };
            let entries = directory.entries()?;
            if is_removing(&directory)? {
                self.remove_locked(lock, &name)?;
            } else if entries.iter().any(|entry| entry == PENDING) {
                match self.finish_pending(&objects, &name) {
                    // A journal that nobody can follow must not stand in everybody's way.
                    Err(
                        StoreError::Corrupt { .. }
                        | StoreError::Version { .. }
                        | StoreError::PinExists { .. },
                    ) => {
                        directory.unlink(PENDING)?;
                    }
                    result => result?,
                }
            }
        }
        self.forget_ended_processes()
    }

    /// Makes the pins that an object still lacks.
    fn finish_pending(&self, objects: &Directory, object: &str) -> Result<(), StoreError> {
        let directory = objects.directory(object)?;
        if directory.try_file(PENDING)?.is_none() {
            return Ok(());
        }
        let bytes = directory.read(PENDING, record::RECORD_MAX)?;
        let pending: Pending = record::decode(record::PENDING, &bytes, &directory.join(PENDING))?;
        for name in &pending.pins {
            self.pin_file(&directory, name, name)?;
        }
        directory.unlink(PENDING)
    }

    /// Gives an object's map a name under `pins/`; a pin of that very map may be there already.
    pub(crate) fn pin_file(&self, object: &Directory, map: &str, pin: &str) -> Result<(), StoreError> {
        let file = to_file_name("a map", map)?;
        let pin_file = to_file_name("a pin", pin)?;
        let (maps, pins) = (object.directory("maps")?, self.root.directory(PINS)?);
        match maps.link(&file, &pins, &pin_file) {
            Ok(()) => {}
            Err(Errno::EXIST) if pins.identity(&pin_file)? == maps.identity(&file)? => {}
            Err(Errno::EXIST) => return Err(StoreError::PinExists { name: pin.into() }),
            Err(Errno::NOENT) => return Err(StoreError::NotFound { what: "map", name: map.into() }),
            Err(errno) => return Err(StoreError::io("pin", pins.join(&pin_file), 0)(errno)),
        }
        let types = self.root.directory(PIN_TYPES)?;
        let own = object.try_directory("types")?;
        let linked = match &own {
            Some(own) if own.try_file(&file)?.is_some() => own.link(&file, &types, &pin_file),
            _ => object.link("btf", &types, &pin_file),
        };
        match linked {
            Ok(()) | Err(Errno::EXIST | Errno::NOENT) => Ok(()),
            Err(errno) => Err(StoreError::io("pin", types.join(&pin_file), 0)(errno)),
        }
    }
}

/// The writing of an object under `staging/`.
struct Staged<'a> {
    store: &'a Store,
    object: &'a NewObject,
    directory: Directory,
    published: Published,
}

impl<'a> Staged<'a> {
    fn write(
        store: &'a Store,
        staging: &Directory,
        aside: &str,
        object: &'a NewObject,
    ) -> Result<(Published, Option<File>), StoreError> {
        let directory = staging.create_directory(aside)?;
        let owner = if object.owned { Some(own(&directory)?) } else { None };
        let count = 1 + object.maps.len() + object.programs.len() + object.links.len();
        let count =
            u32::try_from(count).map_err(|_| StoreError::IdsExhausted { path: store.path().into() })?;
        let first = store.header.take_ids(count, &store.root)?;
        let programs_from = first + 1 + object.maps.len() as u32;
        let links_from = programs_from + object.programs.len() as u32;
        let published = Published {
            id: first,
            maps: (first + 1..programs_from).collect(),
            reused: vec![false; object.maps.len()],
            programs: (programs_from..links_from).collect(),
            links: (links_from..first + count).collect(),
        };
        let mut staged = Staged { store, object, directory, published };
        if !object.btf.is_empty() {
            staged.directory.write("btf", &object.btf)?;
        }
        staged.maps()?;
        staged.programs()?;
        staged.links()?;
        staged.meta()?;
        Ok((staged.published, owner))
    }

    fn maps(&mut self) -> Result<(), StoreError> {
        let directory = self.directory.create_directory("maps")?;
        let pins = self.store.root.directory(PINS)?;
        let mut pending = Pending { pins: Vec::new() };
        for (index, map) in self.object.maps.iter().enumerate() {
            let file = to_file_name("a map", &map.name)?;
            if map.pinned && pins.try_file(&file)?.is_some() {
                self.published.maps[index] = self.reuse(map, &pins, &directory, &file)?;
                self.published.reused[index] = true;
                continue;
            }
            self.create(&directory, &file, map, self.published.maps[index])?;
            if map.pinned {
                pending.pins.push(map.name.clone());
            }
        }
        if pending.pins.is_empty() {
            return Ok(());
        }
        let path = self.directory.join(PENDING);
        self.directory.write(PENDING, &record::encode(record::PENDING, &pending, &path)?)
    }

    fn create(&self, maps: &Directory, file: &str, map: &NewMap, id: u32) -> Result<(), StoreError> {
        if maps.try_file(file)?.is_some() {
            return Err(self.duplicate("map", &map.name));
        }
        let shape = MapShape { cpus: self.store.cpus(), ..map.shape };
        let parameters = MapParameters {
            id,
            name: &map.name,
            shape,
            btf_key_type_id: map.btf_key_type_id,
            btf_value_type_id: map.btf_value_type_id,
        };
        let created = map::create(maps, file, &parameters)?;
        for (key, value) in &map.initial {
            let value = match value {
                InitialValue::Bytes(bytes) => bytes.clone(),
                InitialValue::Program(index) => match self.published.programs.get(*index) {
                    Some(id) => id.to_ne_bytes().to_vec(),
                    None => return Err(StoreError::NotFound { what: "program", name: index.to_string() }),
                },
            };
            created
                .set_initial(key, &value)
                .map_err(|source| StoreError::MapCreate { name: map.name.clone(), source })?;
        }
        if map.frozen {
            created.freeze();
        }
        Ok(())
    }

    /// Takes a pinned map as this object's own, after libbpf's comparison (`bpf_map__reuse_fd`,
    /// `map_is_reuse_compat`: type, sizes, entries, flags).
    fn reuse(&self, map: &NewMap, pins: &Directory, maps: &Directory, file: &str) -> Result<u32, StoreError> {
        let pinned = MapFile::open(pins, file)?;
        let wanted = MapShape { cpus: self.store.cpus(), ..map.shape };
        if let Some(mismatch) = mismatch(&pinned.shape(), &wanted) {
            return Err(StoreError::PinMismatch { name: map.name.clone(), mismatch });
        }
        match pins.link(file, maps, file) {
            Ok(()) => {}
            Err(Errno::EXIST) => return Err(self.duplicate("map", &map.name)),
            Err(errno) => return Err(StoreError::io("share", maps.join(file), 0)(errno)),
        }
        let types = match self.directory.try_directory("types")? {
            Some(types) => types,
            None => self.directory.create_directory("types")?,
        };
        match self.store.root.directory(PIN_TYPES)?.link(file, &types, file) {
            Ok(()) | Err(Errno::NOENT) => Ok(pinned.id()),
            Err(errno) => Err(StoreError::io("share", types.join(file), 0)(errno)),
        }
    }

    fn programs(&self) -> Result<(), StoreError> {
        let directory = self.directory.create_directory("progs")?;
        for (new, &id) in self.object.programs.iter().zip(&self.published.programs) {
            let map_id = |&index: &usize| self.published.maps.get(index).copied();
            let Some(map_ids) = new.maps.iter().map(map_id).collect() else {
                return Err(StoreError::NotFound { what: "map of program", name: new.program.name.clone() });
            };
            let program = Program { id, map_ids, ..new.program.clone() }.with_code(&new.image);
            let file = to_file_name("a program", &program.name)?;
            if directory.try_file(&file)?.is_some() {
                return Err(self.duplicate("program", &program.name));
            }
            let path = directory.join(&file);
            directory.write(&file, &record::encode(record::PROGRAM, &program, &path)?)?;
        }
        Ok(())
    }

    fn links(&self) -> Result<(), StoreError> {
        let directory = self.directory.create_directory("links")?;
        for (new, &id) in self.object.links.iter().zip(&self.published.links) {
            let (Some(program), Some(&prog_id)) =
                (self.object.programs.get(new.program), self.published.programs.get(new.program))
            else {
                return Err(StoreError::NotFound { what: "program", name: new.program.to_string() });
            };
            let (name, file) = self.link_name(&directory, &program.program.name)?;
            let link = Link {
                id,
                name,
                prog_id,
                kind: new.kind,
                target: new.target.clone(),
                pid: new.pid,
                count_hits: new.count_hits,
                may_override: new.may_override,
            };
            // The owner turns its own on.
            LinkFile::create(&directory, &file, &link, !self.object.owned)?;
        }
        Ok(())
    }

    /// The program's name, with a number from the second link on.
    fn link_name(&self, links: &Directory, program: &str) -> Result<(String, String), StoreError> {
        for number in 1.. {
            let name = if number == 1 { program.to_owned() } else { format!("{program}.{number}") };
            let file = to_file_name("a link", &name)?;
            if links.try_file(&file)?.is_none() {
                return Ok((name, file));
            }
        }
        unreachable!("there are fewer links than numbers")
    }

    fn meta(&self) -> Result<(), StoreError> {
        let info = ObjectInfo {
            id: self.published.id,
            name: self.object.name.clone(),
            source: self.object.source.clone(),
            license: self.object.license.clone(),
            loaded_at: self.object.loaded_at,
            uid: rustix::process::geteuid().as_raw(),
            task_layout: self.object.task_layout.unwrap_or(NO_TASK_LAYOUT),
        };
        let path = self.directory.join("meta");
        self.directory.write("meta", &record::encode(record::OBJECT, &info, &path)?)
    }

    fn duplicate(&self, what: &'static str, name: &str) -> StoreError {
        StoreError::Duplicate { object: self.object.name.clone(), what, name: name.into() }
    }
}

/// The parameters in which two maps differ, in words; `None` when they are the same kind of map.
fn mismatch(found: &MapShape, wanted: &MapShape) -> Option<String> {
    let pairs = [
        ("type", found.map_type, wanted.map_type),
        ("key size", found.key_size, wanted.key_size),
        ("value size", found.value_size, wanted.value_size),
        ("max entries", found.max_entries, wanted.max_entries),
        ("flags", found.map_flags, wanted.map_flags),
    ];
    let differing = pairs.iter().filter(|(_, found, wanted)| found != wanted);
    let words: Vec<_> =
        differing.map(|(what, found, wanted)| format!("{what} is {found}, not {wanted}")).collect();
    (!words.is_empty()).then(|| words.join(", "))
}
