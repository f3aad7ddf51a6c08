//! The executable files that a process has mapped, and which of them a probe means.

use crate::request::FileIdentity;
use beeline_remote::{Mapping, Mappings, Process};
use beeline_site::Binary;
use std::cell::OnceCell;
use std::path::Path;

/// A file with executable mappings.
#[derive(Debug)]
pub(crate) struct MappedFile {
    pub(crate) mappings: Vec<Mapping>,
    binary: OnceCell<Result<Binary, String>>,
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
            Binary::open(path).map_err(|error| error.to_string())
        };
        self.binary.get_or_init(open).as_ref().map_err(String::as_str)
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
