//! Links that end with their owner: the kernel itself turns them off when the owner's thread dies. Their words are
//! [held](beeline_robust) by it; what the kernel leaves of one is no bit of [`LinkShared::ON`].

use crate::link::LinkFile;
use beeline_abi::link::LinkShared;
use beeline_robust::{HELD_MAX, SharedPages};
use rustix::io::Errno;
use std::fs::File;
use std::io;
use std::mem::offset_of;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

/// The links of one object, in force for as long as this value, or its process, lives.
#[derive(Debug)]
pub struct Ownership {
    /// The lock by which others see that the owner lives.
    _lock: File,
    _keepers: Vec<Keeper>,
}

/// A thread that holds links.
#[derive(Debug)]
struct Keeper {
    /// Dropped to end the thread.
    end: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Ownership {
    /// Turns the links on for as long as the owner lives.
    ///
    /// # Errors
    /// When they cannot be mapped, or no thread can be made. They are off then.
    pub(crate) fn take(lock: File, links: &[LinkFile]) -> Result<Ownership, Errno> {
        let mut keepers = Vec::new();
        for part in links.chunks(HELD_MAX) {
            let files = part.iter().map(LinkFile::descriptor).collect::<Result<Vec<_>, _>>();
            let files = files.map_err(|error| errno_of(&error, Errno::MFILE))?;
            let pages = SharedPages::map(&files).map_err(|error| errno_of(&error, Errno::NOMEM))?;
            keepers.push(Keeper::start(pages)?);
        }
        Ok(Ownership { _lock: lock, _keepers: keepers })
    }
}

impl Keeper {
    fn start(pages: SharedPages) -> Result<Keeper, Errno> {
        let (end, ended) = channel();
        let (ready, is_ready) = channel();
        let builder = std::thread::Builder::new().name("beeline-owner".into());
        let thread = builder
            .spawn(move || hold(&pages, &ready, &ended))
            .map_err(|error| errno_of(&error, Errno::AGAIN))?;
        let keeper = Keeper { end: Some(end), thread: Some(thread) };
        let held = is_ready.recv().unwrap_or_else(|_| Err(io::ErrorKind::Other.into()));
        held.map_err(|error| errno_of(&error, Errno::AGAIN))?;
        Ok(keeper)
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        drop(self.end.take());
        if let Some(thread) = self.thread.take() {
            // It cannot panic; were it dead, the kernel would have done its work.
            let _ = thread.join();
        }
    }
}

fn errno_of(error: &io::Error, otherwise: Errno) -> Errno {
    Errno::from_io_error(error).unwrap_or(otherwise)
}

/// Turns the links on, waits, turns them off. What happens when the thread dies in between is the kernel's.
fn hold(pages: &SharedPages, ready: &Sender<io::Result<()>>, ended: &Receiver<()>) {
    let tid = rustix::thread::gettid().as_raw_pid() as u32;
    for index in 0..pages.count() {
        pages.word(index, offset_of!(LinkShared, owner)).store(tid, Ordering::Relaxed);
    }
    match pages.hold(offset_of!(LinkShared, enabled)) {
        Ok(_held) => {
            let _ = ready.send(Ok(()));
            // Ends with an error: the other end is dropped.
            let _ = ended.recv();
        }
        Err(error) => drop(ready.send(Err(error))),
    }
}
