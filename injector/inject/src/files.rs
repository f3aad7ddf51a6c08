//! The executable files that a process has mapped, and which of them a probe means.

use crate::request::FileIdentity;
use beeline_remote::{Mapping, Mappings, Process};
use beeline_site::Binary;
use std::cell::{OnceCell, RefCell};
use std::collections::HashMap;
use std::ffi::OsStr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;

/// A file with executable mappings.
#[derive(Debug)]
pub(crate) struct MappedFile {
    pub(crate) mappings: Vec<Mapping>,
    binary: OnceCell<Result<Rc<Binary>, String>>,
    /// Files of other inodes whose code was compared with this one's, and whether it is the same.
    compared: RefCell<HashMap<(u64, u64), bool>>,
}

impl MappedFile {
    fn name(&self) -> &str {
        let name = &self.mappings[0].name;
        name.strip_suffix(" (deleted)").unwrap_or(name)
    }

    /// Its name without folders.
    pub(crate) fn file_name(&self) -> &str {
        Path::new(self.name()).file_name().and_then(OsStr::to_str).unwrap_or_default()
    }

    /// By its name it is a C library.
    pub(crate) fn is_libc(&self) -> bool {
        let name = self.file_name();
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

    /// It is the inode that is meant.
    fn is_inode(&self, identity: &FileIdentity) -> bool {
        let mapping = &self.mappings[0];
        // Some file systems show another device in the list of mappings than in `stat`.
        mapping.inode == identity.inode
            && (mapping.device == identity.device || Path::new(self.name()) == identity.path)
    }

    /// A file that is meant holds what it held when the link was made; else what is different.
    pub(crate) fn check(&self, identity: &FileIdentity, process: &Process) -> Result<(), String> {
        let binary = self.binary(process)?;
        if let Some(wanted) = &identity.build_id
            && binary.build_id() != Some(wanted)
        {
            return Err(format!("{} has changed since the link was made", identity.path.display()));
        }
        if !self.is_inode(identity) && !self.has_code_of(identity, binary) {
            let path = identity.path.display();
            return Err(format!("it runs other code than {path}, with the same name and build id"));
        }
        Ok(())
    }

    /// The code is that of the file that is meant, as far as that can still be read.
    fn has_code_of(&self, identity: &FileIdentity, binary: &Binary) -> bool {
        let compare = || {
            let data = identity.path.metadata().ok()?;
            let is_it = (data.dev(), data.ino()) == (identity.device, identity.inode);
            let meant = is_it.then(|| opened(identity.path.clone()).ok())??;
            Some(code(binary).eq(code(&meant)))
        };
        let key = (identity.device, identity.inode);
        *self.compared.borrow_mut().entry(key).or_insert_with(|| compare().unwrap_or(true))
    }

    fn is(&self, identity: &FileIdentity, process: &Process) -> bool {
        if self.is_inode(identity) {
            return true;
        }
        let Some(wanted) = &identity.build_id else { return false };
        let same_name = Path::new(self.name()).file_name() == identity.path.file_name();
        same_name && self.binary(process).is_ok_and(|binary| binary.build_id() == Some(wanted))
    }
}

/// The bytes of a file that are executed, with their places in it.
fn code(binary: &Binary) -> impl Iterator<Item = (u64, &[u8])> {
    let segments = binary.segments().iter().filter(|segment| segment.executable);
    segments.map(|segment| {
        let start = (segment.file_offset as usize).min(binary.data().len());
        let end = start.saturating_add(segment.file_size as usize).min(binary.data().len());
        (segment.file_offset, &binary.data()[start..end])
    })
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
pub(crate) fn opened(path: PathBuf) -> Result<Rc<Binary>, String> {
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
                None => files.push(MappedFile {
                    mappings: vec![mapping.clone()],
                    binary: OnceCell::new(),
                    compared: RefCell::default(),
                }),
            }
        }
        MappedFiles(files)
    }

    /// The files that a probe means: mostly one.
    pub(crate) fn matching(&self, identity: &FileIdentity, process: &Process) -> Vec<&MappedFile> {
        self.0.iter().filter(|file| file.is(identity, process)).collect()
    }

    /// One of them has this path, in the process's view.
    pub(crate) fn has_name(&self, path: &Path) -> bool {
        self.0.iter().any(|file| Path::new(file.name()) == path)
    }

    /// The file of which the mapping that holds `address` is a part.
    pub(crate) fn at(&self, address: u64) -> Option<&MappedFile> {
        self.0.iter().find(|file| file.mappings.iter().any(|mapping| mapping.holds(address)))
    }

    /// Without the file of which the mapping that holds `address` is a part.
    pub(crate) fn without(mut self, address: u64) -> MappedFiles {
        self.0.retain(|file| !file.mappings.iter().any(|mapping| mapping.holds(address)));
        self
    }

    /// All of them.
    pub(crate) fn iter(&self) -> std::slice::Iter<'_, MappedFile> {
        self.0.iter()
    }
}
