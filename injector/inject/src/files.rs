//! The executable files that a process has mapped, and which of them a probe means.

use crate::request::FileIdentity;
use beeline_remote::{Mapping, Mappings, Process};
use beeline_site::Binary;
use std::cell::{OnceCell, RefCell};
use std::collections::HashMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;

/// A file with executable mappings.
#[derive(Debug)]
pub(crate) struct MappedFile {
    pub(crate) mappings: Vec<Mapping>,
    binary: OnceCell<Result<Rc<Binary>, String>>,
}

impl MappedFile {
    fn name(&self) -> &str {
        let name = &self.mappings[0].name;
        name.strip_suffix(" (deleted)").unwrap_or(name)
    }

    /// By its name it is a C library.
    pub(crate) fn is_libc(&self) -> bool {
        let name =
            Path::new(self.name()).file_name().map_or(String::new(), |name| name.to_string_lossy().into());
        ["libc.so", "libc-", "ld-musl-", "libc.musl-"].iter().any(|start| name.starts_with(start))
    }

    /// The file's contents; the reason when it cannot be read or is no executable.
    pub(crate) fn binary(&self, process: &Process) -> Result<&Binary, &str> {
        let open = || {
            let path = process.file_of(&self.mappings[0]).map_err(|error| error.to_string())?;
            opened(path)
        };
        self.binary.get_or_init(open).as_deref().map_err(String::as_str)
    }

    /// Addresses at which the byte at `offset` of the file is executable: one for each time that it is mapped.
    pub(crate) fn addresses(&self, offset: u64) -> Vec<u64> {
        let address = |mapping: &Mapping| {
            let distance = offset.checked_sub(mapping.offset).filter(|&distance| distance < mapping.len())?;
            Some(mapping.start + distance)
        };
        self.mappings.iter().filter_map(address).collect()
    }

    fn is(&self, identity: &FileIdentity, process: &Process) -> bool {
        let mapping = &self.mappings[0];
        if mapping.inode == identity.inode {
            // Some file systems show another device in the list of mappings than in `stat`.
            if mapping.device == identity.device || Path::new(self.name()) == identity.path {
                return true;
            }
        }
        let Some(wanted) = &identity.build_id else { return false };
        let same_name = Path::new(self.name()).file_name() == identity.path.file_name();
        same_name && self.binary(process).is_ok_and(|binary| binary.build_id() == Some(wanted))
    }
}

/// What tells files apart, and states of the same file: device, inode, bytes, time of the last change.
type FileKey = (u64, u64, u64, i64, i64);

thread_local! {
    /// Files that this tracer has read. Processes that are started one after the other have most of theirs in common.
    static OPENED: RefCell<HashMap<FileKey, Rc<Binary>>> = RefCell::default();
}

/// Files that are kept.
const OPENED_MAX: usize = 64;

/// Reads a file, unless it was read before and has not changed since.
fn opened(path: PathBuf) -> Result<Rc<Binary>, String> {
    let data = path.metadata().map_err(|error| format!("{}: {error}", path.display()))?;
    let key = (data.dev(), data.ino(), data.len(), data.ctime(), data.ctime_nsec());
    if let Some(known) = OPENED.with_borrow(|files| files.get(&key).cloned()) {
        return Ok(known);
    }
    let binary = Rc::new(Binary::open(path).map_err(|error| error.to_string())?);
    OPENED.with_borrow_mut(|files| {
        if files.len() >= OPENED_MAX {
            files.clear();
        }
        files.insert(key, Rc::clone(&binary));
    });
    Ok(binary)
}

/// All executable files of a process.
#[derive(Debug)]
pub(crate) struct MappedFiles(Vec<MappedFile>);

impl MappedFiles {
    pub(crate) fn of(maps: &Mappings) -> MappedFiles {
        let mut files: Vec<MappedFile> = Vec::new();
        for mapping in maps.iter().filter(|mapping| mapping.execute && mapping.inode != 0) {
            let same = |file: &&mut MappedFile| {
                (file.mappings[0].device, file.mappings[0].inode) == (mapping.device, mapping.inode)
            };
            match files.iter_mut().find(same) {
                Some(file) => file.mappings.push(mapping.clone()),
                None => files.push(MappedFile { mappings: vec![mapping.clone()], binary: OnceCell::new() }),
            }
        }
        MappedFiles(files)
    }

    /// The files that a probe means: mostly one.
    pub(crate) fn matching(&self, identity: &FileIdentity, process: &Process) -> Vec<&MappedFile> {
        self.0.iter().filter(|file| file.is(identity, process)).collect()
    }

    /// The file of which the mapping that holds `address` is a part.
    pub(crate) fn at(&self, address: u64) -> Option<&MappedFile> {
        self.0.iter().find(|file| file.mappings.iter().any(|mapping| mapping.holds(address)))
    }

    /// All of them.
    pub(crate) fn iter(&self) -> std::slice::Iter<'_, MappedFile> {
        self.0.iter()
    }
}
