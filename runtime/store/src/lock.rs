//! The right to change a store: an advisory lock that the kernel takes back from the dead.

use crate::StoreError;
use crate::directory::Directory;
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use std::fs::File;
use std::time::{Duration, Instant};

/// The lock's file name.
pub(crate) const LOCK: &str = "lock";

/// How long to wait for another process that is changing the store: several times what writing a large object takes.
const WAIT_SECONDS_MAX: u64 = 30;

/// Name of the file of an object that ends with its owner, who holds a lock on it.
const OWNER: &str = "owner";

/// Makes the file that says that an object has an owner, and takes its lock.
pub(crate) fn own(object: &Directory) -> Result<File, StoreError> {
    let file = object.create_file(OWNER)?;
    flock(&file, FlockOperation::NonBlockingLockExclusive).map_err(StoreError::io(
        "lock",
        object.join(OWNER),
        0,
    ))?;
    Ok(file)
}

/// The object had an owner, who has ended.
pub(crate) fn is_orphan(object: &Directory) -> Result<bool, StoreError> {
    let Some(file) = object.try_file(OWNER)? else { return Ok(false) };
    match flock(&file, FlockOperation::NonBlockingLockShared) {
        Ok(()) => Ok(true),
        Err(Errno::AGAIN | Errno::INTR) => Ok(false),
        Err(errno) => Err(StoreError::io("look at the lock", object.join(OWNER), 0)(errno)),
    }
}

/// Held while the store is changed. Readers need none: what they see was moved into place in one step.
#[derive(Debug)]
pub(crate) struct Lock {
    _file: File,
}

impl Lock {
    /// Waits for the lock, not for ever.
    pub(crate) fn take(directory: &Directory) -> Result<Lock, StoreError> {
        let file = directory.file(LOCK)?;
        let path = directory.join(LOCK);
        let start = Instant::now();
        loop {
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(Lock { _file: file }),
                Err(Errno::AGAIN | Errno::INTR) if start.elapsed().as_secs() < WAIT_SECONDS_MAX => {
                    std::thread::sleep(Duration::from_millis(5));
                }
                Err(Errno::AGAIN | Errno::INTR) => {
                    return Err(StoreError::Busy { path, seconds: WAIT_SECONDS_MAX });
                }
                Err(errno) => return Err(StoreError::io("lock", path, 0)(errno)),
            }
        }
    }
}
