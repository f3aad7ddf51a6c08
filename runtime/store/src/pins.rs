//! Maps of the whole store, and names that keep a map when its object goes.

use crate::name::{from_file_name, to_file_name};
use crate::store::{PIN_TYPES, PINS};
use crate::{MapFile, Store, StoreError};
use rustix::io::Errno;

/// A map with all its names.
#[derive(Debug)]
pub struct MapEntry {
    /// Its name.
    pub name: String,
    /// Objects that have it, the one that made it first; empty when only a pin keeps it.
    pub objects: Vec<String>,
    /// Its pins.
    pub pins: Vec<String>,
    /// The map.
    pub file: MapFile,
}

/// All maps, and what was wrong with those that could not be opened.
#[derive(Debug, Default)]
pub struct MapList {
    /// The maps in order of id.
    pub maps: Vec<MapEntry>,
    /// Why others are missing here.
    pub damaged: Vec<StoreError>,
}

impl Store {
    /// Every map of the store.
    ///
    /// # Errors
    /// When the store's directories cannot be read; a damaged map is in [`MapList::damaged`].
    pub fn maps(&self) -> Result<MapList, StoreError> {
        let mut list = MapList::default();
        for object in self.object_names()? {
            match self.files_of(&object, "maps", named) {
                Ok(files) => list.add(files, |entry| entry.objects.push(object.clone())),
                Err(StoreError::NotFound { .. }) => {}
                Err(error) if error.is_exhaustion() => return Err(error),
                Err(error) => list.damaged.push(error),
            }
        }
        let pins = self.root.directory(PINS)?;
        for pin in pins.entries()? {
            let Some(name) = from_file_name(&pin) else { continue };
            list.add(vec![named(&pins, &pin)], |entry| entry.pins.push(name.clone()));
        }
        list.maps.sort_by_key(|entry| entry.file.id());
        Ok(list)
    }

    /// Gives an object's map a name that keeps it.
    ///
    /// # Errors
    /// [`StoreError::PinExists`], [`StoreError::NotFound`].
    pub fn pin(&self, object: &str, map: &str, pin: &str) -> Result<(), StoreError> {
        let lock = self.lock()?;
        self.recover(&lock)?;
        self.pin_file(&self.object(object)?, map, pin)
    }

    /// Takes a pin away; the map goes when no object has it.
    ///
    /// # Errors
    /// [`StoreError::NotFound`].
    pub fn unpin(&self, pin: &str) -> Result<(), StoreError> {
        let lock = self.lock()?;
        self.recover(&lock)?;
        let file = to_file_name("a pin", pin)?;
        let pins = self.root.directory(PINS)?;
        if !pins.entries()?.contains(&file) {
            return Err(StoreError::NotFound { what: "pin", name: pin.into() });
        }
        pins.unlink(&file)?;
        self.root.directory(PIN_TYPES)?.unlink(&file)
    }
}

type Named = (String, MapFile);

fn named(directory: &crate::directory::Directory, file: &str) -> Result<Named, StoreError> {
    let name = from_file_name(file).unwrap_or_else(|| file.to_owned());
    Ok((name, MapFile::open(directory, file)?))
}

impl MapList {
    fn add(&mut self, files: Vec<Result<Named, StoreError>>, mark: impl Fn(&mut MapEntry)) {
        for file in files {
            match file {
                Ok((name, file)) => {
                    let known = self.maps.iter().position(|entry| entry.file.id() == file.id());
                    let index = known.unwrap_or(self.maps.len());
                    if known.is_none() {
                        self.maps.push(MapEntry { name, objects: Vec::new(), pins: Vec::new(), file });
                    }
                    mark(&mut self.maps[index]);
                }
                Err(StoreError::Io { source: Errno::NOENT, .. }) => {}
                Err(error) => self.damaged.push(error),
            }
        }
    }
}
