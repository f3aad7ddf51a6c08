//! An open store, and what can be asked of it.
//!
//! ```text
//! <store>/                0700
//!   store cpus trace      header.rs
//!   lock                  lock.rs
//!   objects/<object>/     one per loaded object; appears and disappears in one step
//!     meta btf            object.rs
//!     maps/<map> types/<map>   a map; BTF of a map whose types are not this object's
//!     progs/<program> links/<link>
//!   pins/<name> pin-types/<name>   second names of map files, and the BTF that describes them
//!   processes/<pid>       processes.rs
//!   staging/              half-made objects; whoever holds the lock may remove what is there
//! ```

use crate::directory::Directory;
use crate::header::{self, Header};
use crate::lock::{LOCK, Lock, is_orphan};
use crate::name::{StoreName, check_name, from_file_name};
use crate::processes::PROCESSES;
use crate::program::Program;
use crate::publish::REMOVING;
use crate::trace::TraceReader;
use crate::{StoreError, record};
use rustix::io::Errno;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};

/// Directory of the loaded objects.
pub(crate) const OBJECTS: &str = "objects";
/// Directory of what is being made or taken apart.
pub(crate) const STAGING: &str = "staging";
/// Directory of pinned maps.
pub(crate) const PINS: &str = "pins";
/// Directory of the BTF of pinned maps.
pub(crate) const PIN_TYPES: &str = "pin-types";

/// An open store.
#[derive(Debug)]
pub struct Store {
    pub(crate) root: Directory,
    pub(crate) header: Header,
}

impl Store {
    /// Opens a store that exists.
    ///
    /// # Errors
    /// [`StoreError::Missing`] when it does not; otherwise whatever makes it untrustworthy or unreadable.
    pub fn open(name: &StoreName) -> Result<Store, StoreError> {
        let path = name.directory(rustix::process::geteuid().as_raw());
        if let StoreName::Named(_) = name
            && let Some(parent) = path.parent()
        {
            open_or_missing(parent, &path)?;
        }
        Store::open_directory(open_or_missing(&path, &path)?)
    }

    /// Opens a store, and makes it first when it does not exist. Its parent directory must exist, but for the
    /// directory of this user's stores.
    ///
    /// # Errors
    /// As [`Store::open`], and whatever prevents its creation.
    pub fn open_or_create(name: &StoreName) -> Result<Store, StoreError> {
        match Store::open(name) {
            Err(StoreError::Missing { .. }) => {}
            result => return result,
        }
        let path = name.directory(rustix::process::geteuid().as_raw());
        let parent = match (name, path.parent()) {
            (StoreName::Named(_), Some(parent)) => Directory::create_or_open(parent)?,
            (StoreName::Path(_), Some(parent)) if parent != Path::new("") => {
                Directory::open_anybodys(parent)?
            }
            _ => Directory::open_anybodys(Path::new("."))?,
        };
        parent.require_tmpfs()?;
        let last = path.file_name().and_then(|last| last.to_str()).unwrap_or_default();
        check_name("a store", last)?;
        create(&parent, last)?;
        Store::open(name)
    }

    fn open_directory(root: Directory) -> Result<Store, StoreError> {
        root.require_tmpfs()?;
        let header = Header::open(&root)?;
        Ok(Store { root, header })
    }

    /// The store's directory.
    pub fn path(&self) -> &Path {
        self.root.path()
    }

    /// The random number by which processes know that they are attached to this store.
    pub fn uuid(&self) -> [u64; 2] {
        self.header.uuid
    }

    /// Number of possible CPUs: copies in each per-CPU value.
    pub fn cpus(&self) -> u32 {
        self.header.cpus
    }

    /// The file of [`CpuSlot`](beeline_abi::process::CpuSlot)s, for mapping into a target.
    ///
    /// # Errors
    /// When it is not there, too short or not ours.
    pub fn cpu_slots(&self) -> Result<OwnedFd, StoreError> {
        self.own_file(header::CPUS, header::cpu_slots_len(self.header.cpus))
    }

    /// The file of the `trace_printk` log, for mapping into a target.
    ///
    /// # Errors
    /// As [`Store::cpu_slots`].
    pub fn trace_log(&self) -> Result<OwnedFd, StoreError> {
        self.own_file(header::TRACE, beeline_abi::trace::TRACE_FILE_LEN)
    }

    /// A reader of the `trace_printk` log that begins with its oldest line.
    ///
    /// # Errors
    /// As [`Store::cpu_slots`].
    pub fn trace(&self) -> Result<TraceReader, StoreError> {
        TraceReader::open(&self.trace_log()?, &self.root.join(header::TRACE))
    }

    /// The programs of an object, in order of their files' names. A damaged file is an error in its place.
    ///
    /// # Errors
    /// When the object is not there, or cannot be read.
    pub fn programs_of(&self, object: &str) -> Result<Vec<Result<Program, StoreError>>, StoreError> {
        self.files_of(object, "progs", |directory, name| {
            let bytes = directory.read(name, record::RECORD_MAX)?;
            record::decode(record::PROGRAM, &bytes, &directory.join(name))
        })
    }

    /// The names of the loaded objects, in order.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub fn object_names(&self) -> Result<Vec<String>, StoreError> {
        let objects = self.root.directory(OBJECTS)?;
        let mut names = self.all_object_names()?;
        // One that cannot be looked into is named: what is wrong with it shall be said.
        names.retain(|name| !objects.directory(name).and_then(|it| is_removing(&it)).unwrap_or(false));
        Ok(names)
    }

    /// Objects that are being unloaded included.
    pub(crate) fn all_object_names(&self) -> Result<Vec<String>, StoreError> {
        let names = self.root.directory(OBJECTS)?.entries()?;
        Ok(names.into_iter().filter(|name| check_name("an object", name).is_ok()).collect())
    }

    /// The directory of an object. One whose unloading has begun is gone, even if whoever began it was killed: its links
    /// may be off already.
    pub(crate) fn object(&self, object: &str) -> Result<Directory, StoreError> {
        let missing = || StoreError::NotFound { what: "object", name: object.into() };
        check_name("an object", object).map_err(|_| missing())?;
        let directory = self.root.directory(OBJECTS)?.try_directory(object)?.ok_or_else(missing)?;
        if is_removing(&directory)? { Err(missing()) } else { Ok(directory) }
    }

    /// Opens every file of a kind. Files that vanish meanwhile (their object is being unloaded) are left out.
    pub(crate) fn files_of<T>(
        &self,
        object: &str,
        kind: &str,
        open: impl Fn(&Directory, &str) -> Result<T, StoreError>,
    ) -> Result<Vec<Result<T, StoreError>>, StoreError> {
        files_in(&self.object(object)?, kind, open)
    }

    pub(crate) fn lock(&self) -> Result<Lock, StoreError> {
        Lock::take(&self.root)
    }

    fn own_file(&self, name: &str, len: u64) -> Result<OwnedFd, StoreError> {
        let file = self.root.file(name)?;
        let fail = StoreError::io("inspect", self.root.join(name), 0);
        if rustix::fs::fstat(&file).map_err(fail)?.st_size as u64 != len {
            return Err(StoreError::corrupt(self.root.join(name), format!("it is not {len} bytes long")));
        }
        Ok(file.into())
    }
}

/// The object's unloading has begun, or has to: its owner has ended.
pub(crate) fn is_removing(object: &Directory) -> Result<bool, StoreError> {
    Ok(object.try_file(REMOVING)?.is_some() || is_orphan(object)?)
}

/// As [`Store::files_of`], of an object that may be on its way out.
pub(crate) fn files_in<T>(
    object: &Directory,
    kind: &str,
    open: impl Fn(&Directory, &str) -> Result<T, StoreError>,
) -> Result<Vec<Result<T, StoreError>>, StoreError> {
    let Some(directory) = object.try_directory(kind)? else { return Ok(Vec::new()) };
    let names = directory.entries()?;
    let mut files = Vec::with_capacity(names.len());
    for name in names.iter().filter(|name| from_file_name(name).is_some()) {
        match open(&directory, name) {
            Err(StoreError::Io { source: Errno::NOENT, .. }) => {}
            Err(error) if error.is_exhaustion() => return Err(error),
            file => files.push(file),
        }
    }
    Ok(files)
}

fn open_or_missing(path: &Path, store: &Path) -> Result<Directory, StoreError> {
    Directory::open(path).map_err(|error| match error {
        StoreError::Io { source: Errno::NOENT, .. } => StoreError::Missing { path: store.into() },
        error => error,
    })
}

/// Makes a store aside and moves it into place; another process may be doing the same.
fn create(parent: &Directory, name: &str) -> Result<(), StoreError> {
    let prefix = format!(".new-{name}-");
    for left in parent.entries()?.iter().filter(|entry| is_abandoned(entry, &prefix)) {
        parent.remove_tree(left)?;
    }
    let number = CREATIONS.fetch_add(1, Ordering::Relaxed);
    let aside = format!("{prefix}{}-{number}", std::process::id());
    // What is called so was left by an earlier process with this one's id.
    parent.remove_tree(&aside)?;
    let made = parent.create_directory(&aside).and_then(|directory| fill(&directory));
    let moved = made.and_then(|()| match parent.rename_new(&aside, parent, name) {
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(errno) => Err(StoreError::io("create", parent.join(name), 0)(errno)),
    });
    parent.remove_tree(&aside)?;
    moved
}

/// Stores that this process began to make.
static CREATIONS: AtomicU32 = AtomicU32::new(0);

/// True for a half-made store whose maker is dead.
fn is_abandoned(entry: &str, prefix: &str) -> bool {
    let numbers = entry.strip_prefix(prefix).and_then(|rest| rest.split_once('-'));
    let pid = numbers.and_then(|(pid, _)| pid.parse().ok()).and_then(rustix::process::Pid::from_raw);
    pid.is_some_and(|pid| rustix::process::test_kill_process(pid) == Err(Errno::SRCH))
}

fn fill(directory: &Directory) -> Result<(), StoreError> {
    Header::create(directory)?;
    directory.create_file(LOCK)?;
    for name in [OBJECTS, STAGING, PINS, PIN_TYPES, PROCESSES] {
        directory.create_directory(name)?;
    }
    Ok(())
}
