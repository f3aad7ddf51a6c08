//! An engine: a store, and what can be done with it.

use crate::{EngineError, right};
use beeline_store::{LinkFile, MapList, ObjectInfo, Program, Store, StoreError, StoreName};
use rustix::io::Errno;

/// The public face of one store.
#[derive(Debug)]
pub struct Engine {
    store: Store,
}

/// What was found, and why other things could not be read.
#[derive(Debug)]
pub struct Listing<T> {
    /// What was found.
    pub items: Vec<T>,
    /// One for each file that is damaged or not trusted.
    pub damaged: Vec<StoreError>,
}

impl<T> Default for Listing<T> {
    fn default() -> Listing<T> {
        Listing { items: Vec::new(), damaged: Vec::new() }
    }
}

/// A program and the object that it belongs to.
#[derive(Clone, Debug)]
pub struct ProgramEntry {
    /// Name of the object.
    pub object: String,
    /// The program.
    pub program: Program,
}

/// A link and what it belongs to.
#[derive(Debug)]
pub struct LinkEntry {
    /// Name of the object.
    pub object: String,
    /// Name of the program.
    pub program: String,
    /// The link.
    pub file: LinkFile,
}

impl Engine {
    /// Opens a store; `None` when it does not exist, that is, when nothing was ever loaded into it.
    ///
    /// # Errors
    /// When the store is not to be trusted or cannot be read.
    pub fn open(name: &StoreName) -> Result<Option<Engine>, EngineError> {
        match Store::open(name) {
            Ok(store) => Ok(Some(Engine { store })),
            Err(StoreError::Missing { .. }) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Opens a store, and makes it first when it does not exist.
    ///
    /// # Errors
    /// As [`Engine::open`], or when it cannot be made.
    pub fn open_or_create(name: &StoreName) -> Result<Engine, EngineError> {
        Ok(Engine { store: Store::open_or_create(name)? })
    }

    /// The store.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// Takes an object out of the store; its links are off in all processes at once.
    ///
    /// # Errors
    /// When there is no such object, or a link of another one has a program of it.
    pub fn unload(&self, object: &str) -> Result<(), EngineError> {
        let programs: Vec<u32> =
            self.programs()?.items.iter().filter(|it| it.object == object).map(|it| it.program.id).collect();
        let in_use = |link: &LinkEntry| link.object != object && programs.contains(&link.file.link.prog_id);
        if let Some(link) = self.links()?.items.iter().find(|link| in_use(link)) {
            return Err(EngineError::InUse {
                program: link.program.clone(),
                link: format!("{}/{}", link.object, link.file.link.name),
            });
        }
        Ok(self.store.remove(object)?)
    }

    /// Takes every object out of the store.
    ///
    /// # Errors
    /// When one cannot be removed.
    pub fn unload_all(&self) -> Result<Vec<String>, EngineError> {
        let names = self.store.object_names()?;
        for name in &names {
            self.store.remove(name)?;
        }
        Ok(names)
    }

    /// Gives a link another program, which may be another object's. A process goes over to it at the next attach: no hit is
    /// without a program meanwhile, and none runs both.
    ///
    /// # Errors
    /// When the program is of another kind than the link's.
    pub fn update_link(&self, link: &LinkEntry, program: &ProgramEntry) -> Result<(), EngineError> {
        let new = &program.program;
        let old = self.programs()?.items.into_iter().find(|it| it.program.id == link.file.link.prog_id);
        let old_type = old.map_or(new.prog_type, |old| old.program.prog_type);
        if old_type != new.prog_type {
            let [old, new_type] = [old_type, new.prog_type].map(crate::program_type_name);
            return Err(EngineError::CannotAttach {
                program: new.name.clone(),
                section: new.section.clone(),
                reason: format!("the link has a {old} program, this is a {new_type} program"),
            });
        }
        if right::is_at_calls(&link.file.link.target) && !link.file.link.may_override {
            right::only_looks(&new.name, &new.section, &new.relocs)?;
        }
        link.file.set_program(new.id);
        Ok(())
    }

    /// Takes a link out of its object; it is off in all processes at once.
    ///
    /// # Errors
    /// When it is not there any more.
    pub fn remove_link(&self, link: &LinkEntry) -> Result<(), EngineError> {
        Ok(self.store.remove_link(&link.object, &link.file.link.name)?)
    }

    /// The loaded objects in order of name.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn objects(&self) -> Result<Listing<ObjectInfo>, EngineError> {
        let mut listing = Listing::default();
        for name in self.store.object_names()? {
            listing.take(self.store.object_info(&name));
        }
        Ok(listing)
    }

    /// All programs in order of id.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn programs(&self) -> Result<Listing<ProgramEntry>, EngineError> {
        let mut listing = Listing::default();
        for object in self.store.object_names()? {
            let entry = |program| ProgramEntry { object: object.clone(), program };
            match self.store.programs_of(&object) {
                Ok(programs) => programs.into_iter().for_each(|it| listing.take(it.map(entry))),
                Err(error) if error.is_exhaustion() => return Err(error.into()),
                Err(error) => listing.damage(error),
            }
        }
        listing.items.sort_by_key(|entry| entry.program.id);
        Ok(listing)
    }

    /// All maps in order of id.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn maps(&self) -> Result<MapList, EngineError> {
        Ok(self.store.maps()?)
    }

    /// All links in order of id.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn links(&self) -> Result<Listing<LinkEntry>, EngineError> {
        let programs = self.programs()?;
        let mut listing = Listing::default();
        for object in self.store.object_names()? {
            let entry = |file: LinkFile| {
                let of = |it: &&ProgramEntry| it.program.id == file.link.prog_id;
                let program = programs.items.iter().find(of).map(|it| it.program.name.clone());
                LinkEntry { object: object.clone(), program: program.unwrap_or_default(), file }
            };
            match self.store.links_of(&object) {
                Ok(links) => links.into_iter().for_each(|it| listing.take(it.map(entry))),
                Err(error) if error.is_exhaustion() => return Err(error.into()),
                Err(error) => listing.damage(error),
            }
        }
        listing.items.sort_by_key(|entry| entry.file.link.id);
        Ok(listing)
    }
}

impl<T> Listing<T> {
    fn take(&mut self, item: Result<T, StoreError>) {
        match item {
            Ok(item) => self.items.push(item),
            Err(error) => self.damage(error),
        }
    }

    /// Notes an error, unless it says that the thing was unloaded meanwhile.
    fn damage(&mut self, error: StoreError) {
        let gone = matches!(error, StoreError::NotFound { .. } | StoreError::Io { source: Errno::NOENT, .. });
        if !gone {
            self.damaged.push(error);
        }
    }
}
