//! What can go wrong with a store; every variant names the file.

use rustix::io::Errno;
use std::path::PathBuf;

/// Why the store did not do what it was asked. Nothing is left half-done behind any of these.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A name that cannot be a file name.
    #[error(
        "{name:?} is not a name for {what}: use 1 to {max} letters, digits, '_', '-' or '.', not starting with '.'"
    )]
    BadName {
        /// What was to be named.
        what: &'static str,
        /// The name.
        name: String,
        /// Most bytes a name may have.
        max: usize,
    },
    /// The store does not exist (nothing was ever loaded into it).
    #[error("{}: there is no such store", path.display())]
    Missing {
        /// Its directory.
        path: PathBuf,
    },
    /// The directory lies on a file system that is not memory.
    #[error("{}: a store must be on tmpfs", path.display())]
    NotTmpfs {
        /// The directory.
        path: PathBuf,
    },
    /// The file belongs to somebody else.
    #[error("{}: is owned by user {owner}, whom user {user} does not trust", path.display())]
    ForeignOwner {
        /// The file.
        path: PathBuf,
        /// Its owner's user id.
        owner: u32,
        /// The effective user id of this process.
        user: u32,
    },
    /// Others than the owner can write the file.
    #[error("{}: can be written by others than its owner (mode {mode:04o})", path.display())]
    WritableByOthers {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// A symbolic link, a pipe, a directory: not what should be there.
    #[error("{}: is not a {expected}", path.display())]
    WrongKind {
        /// The file.
        path: PathBuf,
        /// What it should be.
        expected: &'static str,
    },
    /// The contents are not what beeline wrote.
    #[error("{}: is damaged: {reason}", path.display())]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// Written by another version of beeline.
    #[error("{}: has layout version {found}, this beeline reads version {expected}", path.display())]
    Version {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: u32,
        /// Ours.
        expected: u32,
    },
    /// The machine's number of possible CPUs is not the one that the store was made for.
    #[error("{}: was made for {found} possible CPUs, this machine has {expected}", path.display())]
    CpuCount {
        /// The store.
        path: PathBuf,
        /// CPUs in its header.
        found: u32,
        /// CPUs of the machine.
        expected: u32,
    },
    /// An object of this name is loaded already.
    #[error("an object named {name} is loaded already")]
    Exists {
        /// The name.
        name: String,
    },
    /// No object, map, program, link or pin is called so.
    #[error("there is no {what} {name} in the store")]
    NotFound {
        /// Kind of thing.
        what: &'static str,
        /// Its name.
        name: String,
    },
    /// Two maps, programs or links of one object have the same name.
    #[error("object {object}: two {what}s are named {name}")]
    Duplicate {
        /// The object.
        object: String,
        /// Kind of thing.
        what: &'static str,
        /// The name they share.
        name: String,
    },
    /// tmpfs is full, or the file would exceed a limit.
    #[error("{}: no space left on tmpfs for {needed} bytes", path.display())]
    Full {
        /// The file that could not be made.
        path: PathBuf,
        /// Bytes that it needs.
        needed: u64,
    },
    /// A map with these parameters cannot exist.
    #[error("map {name}: cannot be created: {source}")]
    MapCreate {
        /// The map.
        name: String,
        /// The kernel's error number for it.
        source: Errno,
    },
    /// A pinned map of the name is there, and is another kind of map (libbpf: -EINVAL).
    #[error("couldn't reuse pinned map {name}: parameter mismatch: {mismatch}")]
    PinMismatch {
        /// The map.
        name: String,
        /// Which parameters differ.
        mismatch: String,
    },
    /// A pin of the name is there already.
    #[error("a map is pinned as {name} already")]
    PinExists {
        /// The pin.
        name: String,
    },
    /// Another process has been changing the store for longer than one waits.
    #[error("{}: another process has been changing the store for {seconds} s", path.display())]
    Busy {
        /// The lock file.
        path: PathBuf,
        /// How long was waited.
        seconds: u64,
    },
    /// 2^32 - 1 ids have been given out.
    #[error("{}: the store has no ids left", path.display())]
    IdsExhausted {
        /// The store.
        path: PathBuf,
    },
    /// A system call failed.
    #[error("{}: cannot {action}: {source}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        source: Errno,
    },
}

impl StoreError {
    /// For `map_err`: a failed system call on `path`; a full file system becomes [`StoreError::Full`].
    pub(crate) fn io(
        action: &'static str,
        path: impl Into<PathBuf>,
        needed: u64,
    ) -> impl FnOnce(Errno) -> StoreError {
        let path = path.into();
        move |source| match source {
            Errno::NOSPC | Errno::DQUOT | Errno::FBIG => StoreError::Full { path, needed },
            _ => StoreError::Io { action, path, source },
        }
    }

    /// This process, or the system, has no descriptors or memory left: it says nothing about the file.
    pub fn is_exhaustion(&self) -> bool {
        let exhausted = [Errno::MFILE, Errno::NFILE, Errno::NOMEM];
        matches!(self, StoreError::Io { source, .. } if exhausted.contains(source))
    }

    /// A file whose contents make no sense.
    pub(crate) fn corrupt(path: impl Into<PathBuf>, reason: impl Into<String>) -> StoreError {
        StoreError::Corrupt { path: path.into(), reason: reason.into() }
    }
}
