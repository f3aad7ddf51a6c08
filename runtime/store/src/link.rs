//! A link's file: a page that targets map, then what the link is.
//!
//! ```text
//! 0      beeline_abi::link::LinkShared   mapped by every process that carries the probe
//! 4096   record of `Link`
//! ```

use crate::directory::{Directory, read_all};
use crate::mapping::Mapping;
use crate::name::to_file_name;
use crate::record;
use crate::{Store, StoreError};
use beeline_abi::link::{LINK_MAGIC, LinkShared};
use beeline_abi::{ABI_VERSION, PAGE_SIZE};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::mem::offset_of;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

/// When a link's program runs.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub enum ProbeKind {
    /// Before the instruction at the place.
    Entry,
    /// When the function at the place returns.
    Return,
    /// Both, as one session: when the function returns only where the program returned 0 at its entry.
    Session,
}

/// Places in a file.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Target {
    /// The file, as resolved at load.
    pub path: PathBuf,
    /// Its device.
    pub device: u64,
    /// Its inode.
    pub inode: u64,
    /// Its build-id, empty when it has none.
    pub build_id: Vec<u8>,
    /// How the places were named.
    pub form: TargetForm,
    /// The places; at least one.
    pub places: Vec<Place>,
}

/// How the places of a link were named.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum TargetForm {
    /// One by one.
    Places,
    /// By a pattern of function names with `*` and `?`.
    Pattern(String),
    /// As a statically defined probe.
    Usdt {
        /// Who defines it.
        provider: String,
        /// Its name.
        name: String,
    },
    /// No file: system calls, wherever they are made. The one place only holds the cookie.
    SystemCall {
        /// Which; none for all.
        number: Option<u32>,
        /// What the program sees.
        context: CallContext,
    },
}

/// What a program at a system call sees.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub enum CallContext {
    /// The record of a tracepoint.
    Record,
    /// The arguments of a raw tracepoint.
    Raw,
    /// The registers of the kernel's function for the call.
    Registers,
}

/// A place in a file.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Place {
    /// The symbol by which it was given.
    pub symbol: Option<String>,
    /// Bytes behind the symbol; without a symbol, behind the start of the file.
    pub offset: u64,
    /// Its offset in the file.
    pub file_offset: u64,
    /// `bpf_get_attach_cookie` of a hit here.
    pub cookie: u64,
    /// Link-time address of a 16-bit count of those who want the probe (`ref_ctr`).
    pub semaphore: Option<u64>,
}

/// A program at its places.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Link {
    /// Its id in the store.
    pub id: u32,
    /// Its name within its object: the program's, with a number when the program has several links.
    pub name: String,
    /// The program's id.
    pub prog_id: u32,
    /// When it runs.
    pub kind: ProbeKind,
    /// Where.
    pub target: Target,
    /// Only in the process with this id.
    pub pid: Option<u32>,
    /// Hits are counted, at the price of an atomic increment each.
    pub count_hits: bool,
    /// Its program may skip and change system calls.
    pub may_override: bool,
}

/// A link's open file.
#[derive(Debug)]
pub struct LinkFile {
    /// What it is.
    pub link: Link,
    file: File,
    shared: Mapping,
}

impl LinkFile {
    /// Whether the program runs at a hit.
    pub fn is_enabled(&self) -> bool {
        self.enabled_word().load(Ordering::Relaxed) & LinkShared::ON != 0
    }

    /// Makes the program run, or not, in all processes at once.
    pub fn set_enabled(&self, enabled: bool) {
        // Of a link that has an owner only the owner's id is taken back when the owner ends.
        let on = self.owner().unwrap_or(1);
        self.enabled_word().store(if enabled { on } else { 0 }, Ordering::Release);
    }

    /// Thread id of the owner with which the link ends; none when it outlives who made it.
    pub fn owner(&self) -> Option<u32> {
        let owner = self.half(offset_of!(LinkShared, owner)).load(Ordering::Relaxed) & LinkShared::ON;
        (owner != 0).then_some(owner)
    }

    /// Makes another program the link's. Processes go on with the one that they have until they are told.
    pub fn set_program(&self, prog_id: u32) {
        self.half(offset_of!(LinkShared, prog_id)).store(prog_id, Ordering::Release);
    }

    /// Hits on which the program did not run.
    pub fn missed(&self) -> u64 {
        self.shared.words()[offset_of!(LinkShared, missed) / 8].load(Ordering::Relaxed)
    }

    /// Hits on which the program ran, where they are counted.
    pub fn hits(&self) -> u64 {
        self.shared.words()[offset_of!(LinkShared, hits) / 8].load(Ordering::Relaxed)
    }

    /// A descriptor of the file; its first page is to be mapped shared and writable.
    ///
    /// # Errors
    /// When the process has no descriptor left.
    pub fn descriptor(&self) -> std::io::Result<OwnedFd> {
        Ok(self.file.try_clone()?.into())
    }

    fn enabled_word(&self) -> &AtomicU32 {
        self.half(offset_of!(LinkShared, enabled))
    }

    fn half(&self, offset: usize) -> &AtomicU32 {
        &self.shared.half_words()[offset / 4]
    }

    /// Writes a new link's file.
    pub(crate) fn create(
        directory: &Directory,
        name: &str,
        link: &Link,
        enabled: bool,
    ) -> Result<(), StoreError> {
        let path = directory.join(name);
        let mut bytes = vec![0; PAGE_SIZE as usize];
        bytes[..8].copy_from_slice(&LINK_MAGIC.to_le_bytes());
        let mut half = |at: usize, value: u32| bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
        half(offset_of!(LinkShared, version), ABI_VERSION);
        half(offset_of!(LinkShared, id), link.id);
        half(offset_of!(LinkShared, enabled), u32::from(enabled));
        bytes.extend_from_slice(&record::encode(record::LINK, link, &path)?);
        directory.write(name, &bytes)
    }

    /// Opens and checks a link's file.
    pub(crate) fn open(directory: &Directory, name: &str) -> Result<LinkFile, StoreError> {
        let path = directory.join(name);
        let file = directory.file(name)?;
        let reader = file
            .try_clone()
            .map_err(|e| StoreError::io("read", &path, 0)(Errno::from_io_error(&e).unwrap_or(Errno::IO)))?;
        let bytes = read_all(reader, &path, record::RECORD_MAX)?;
        let Some((_, payload)) = bytes.split_at_checked(PAGE_SIZE as usize) else {
            return Err(StoreError::corrupt(path, "it is truncated"));
        };
        let mut link: Link = record::decode(record::LINK, payload, &path)?;
        let shared =
            Mapping::new(&file, PAGE_SIZE).map_err(StoreError::io("map", path.clone(), PAGE_SIZE))?;
        let half = |at: usize| shared.half_words()[at / 4].load(Ordering::Relaxed);
        if shared.words()[0].load(Ordering::Relaxed) != LINK_MAGIC {
            return Err(StoreError::corrupt(path, "it is not a link"));
        }
        let found = half(offset_of!(LinkShared, version));
        if found != ABI_VERSION {
            return Err(StoreError::Version { path, found, expected: ABI_VERSION });
        }
        if half(offset_of!(LinkShared, id)) != link.id {
            return Err(StoreError::corrupt(path, "its two ids differ"));
        }
        match half(offset_of!(LinkShared, prog_id)) {
            0 => {}
            replaced => link.prog_id = replaced,
        }
        Ok(LinkFile { link, file, shared })
    }
}

impl Store {
    /// The links of an object, in order of their files' names. A damaged file is an error in its place.
    ///
    /// # Errors
    /// When the object is not there, or cannot be read.
    pub fn links_of(&self, object: &str) -> Result<Vec<Result<LinkFile, StoreError>>, StoreError> {
        self.files_of(object, "links", LinkFile::open)
    }

    /// Takes a link out of its object; it is off in all processes at once.
    ///
    /// # Errors
    /// When the object or the link is not there, or it cannot be removed.
    pub fn remove_link(&self, object: &str, link: &str) -> Result<(), StoreError> {
        let lock = self.lock()?;
        self.recover(&lock)?;
        let file = to_file_name("a link", link)?;
        let missing = || StoreError::NotFound { what: "link", name: link.into() };
        let links = self.object(object)?.try_directory("links")?.ok_or_else(missing)?;
        if links.try_file(&file)?.is_none() {
            return Err(missing());
        }
        // What cannot be read cannot be turned off, and is no reason to keep it.
        if let Ok(link) = LinkFile::open(&links, &file) {
            link.set_enabled(false);
        }
        links.unlink(&file)
    }
}
