//! The page by which followed processes call their follower, seen from the follower.
//!
//! ```text
//! keeper (an OS thread):  holds the link's word, waits for rings ─▶ wakes the tracer
//! tracer:                 looks at who calls, answers
//! ```

use crate::error::TargetRefused;
use crate::maps::SharedFile;
use beeline_abi::bell::{Bell, CALLERS, TICKET_OFFSET, WAIT_NS};
use beeline_abi::link::{LINK_MAGIC, LinkRuntime, LinkShared};
use beeline_abi::{ABI_VERSION, PAGE_SIZE};
use beeline_ptrace::Waker;
use beeline_remote::{Process, SharedPage};
use nix::sys::signal::{SigSet, SigmaskHow};
use std::io;
use std::mem::offset_of;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

const LINK: usize = offset_of!(Bell, link);
const ENABLED: usize = LINK + offset_of!(LinkShared, enabled);
const RINGS: usize = offset_of!(Bell, rings);

/// While somebody calls, the tracer is woken this often: it could not answer at once.
const REMINDER: Duration = Duration::from_nanos(WAIT_NS as u64);
/// Nobody calls.
const LONG: Duration = Duration::from_secs(3600);

/// A follower's bell.
#[derive(Debug)]
pub(crate) struct FollowerBell {
    page: SharedPage,
    identity: u64,
    over: AtomicBool,
    tracer: Mutex<Option<Waker>>,
}

/// Runs `follow` with a bell that is in force meanwhile.
pub(crate) fn with_bell<T>(
    follow: impl FnOnce(&FollowerBell) -> Result<T, TargetRefused>,
) -> Result<T, TargetRefused> {
    let failed = |source| TargetRefused::System { what: "make a page to be called by", source };
    let bell = &FollowerBell::new().map_err(failed)?;
    thread::scope(|scope| {
        let (ready, is_ready) = channel();
        let keeper = thread::Builder::new().name("beeline-bell".to_owned());
        without_signals(|| keeper.spawn_scoped(scope, move || bell.keep(&ready))).map_err(failed)?;
        let _over = Over(bell);
        is_ready.recv().unwrap_or_else(|_| Err(io::ErrorKind::Other.into())).map_err(failed)?;
        follow(bell)
    })
}

/// Runs `begin` with all signals blocked. An OS thread that it makes keeps them so: the kernel gives a signal for the process to
/// any thread that does not block it, past those who wait for it.
pub(crate) fn without_signals<T>(begin: impl FnOnce() -> T) -> T {
    let before = SigSet::all().thread_swap_mask(SigmaskHow::SIG_BLOCK);
    let result = begin();
    if let Ok(before) = before {
        let _ = before.thread_set_mask();
    }
    result
}

/// Ends the keeper.
struct Over<'a>(&'a FollowerBell);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.over.store(true, Ordering::SeqCst);
        self.0.page.word(RINGS).fetch_add(1, Ordering::SeqCst);
        self.0.page.wake(RINGS);
    }
}

impl FollowerBell {
    fn new() -> io::Result<FollowerBell> {
        let page = SharedPage::new(c"beeline-bell")?;
        let mut identity = [0; 8];
        getrandom(&mut identity)?;
        let identity = u64::from_le_bytes(identity) | 1;
        page.long(LINK + offset_of!(LinkShared, magic)).store(LINK_MAGIC, Ordering::Relaxed);
        page.word(LINK + offset_of!(LinkShared, version)).store(ABI_VERSION, Ordering::Relaxed);
        page.word(LINK + offset_of!(LinkShared, id)).store(LinkRuntime::OWN, Ordering::Relaxed);
        page.long(offset_of!(Bell, identity)).store(identity, Ordering::Release);
        Ok(FollowerBell { page, identity, over: AtomicBool::new(false), tracer: Mutex::default() })
    }

    /// Its page, to be mapped by a process.
    pub(crate) fn file(&self) -> SharedFile<'_> {
        let what = "mmap of the follower's page";
        SharedFile { file: self.page.descriptor(), address: 0, len: PAGE_SIZE, again_from: 0, what }
    }

    /// A process has it at `address`.
    pub(crate) fn is_at(&self, process: &Process, address: u64) -> bool {
        let place = address.wrapping_add(offset_of!(Bell, identity) as u64);
        process.memory().read_u64(place).is_ok_and(|identity| identity == self.identity)
    }

    /// Who calls is told to this OS thread from now on.
    pub(crate) fn served_by(&self, tracer: Waker) {
        *self.tracer.lock().unwrap_or_else(PoisonError::into_inner) = Some(tracer);
    }

    /// The words of those who call, each with its place.
    pub(crate) fn callers(&self) -> Vec<(usize, u64)> {
        let word = |place| (place, self.caller(place).load(Ordering::Acquire));
        (0..CALLERS).map(word).filter(|&(_, word)| word != 0).collect()
    }

    /// Lets a caller go on, unless it has already.
    pub(crate) fn answer(&self, place: usize, word: u64) {
        let answered = self.caller(place).compare_exchange(word, 0, Ordering::AcqRel, Ordering::Relaxed);
        if answered.is_ok() {
            self.page.wake(caller_offset(place) + TICKET_OFFSET);
        }
    }

    fn caller(&self, place: usize) -> &std::sync::atomic::AtomicU64 {
        self.page.long(caller_offset(place))
    }

    /// Holds the word that keeps the bell in force, until it is over; wakes the tracer while somebody calls.
    fn keep(&self, ready: &Sender<io::Result<()>>) {
        let held = match self.page.hold(ENABLED) {
            Ok(held) => held,
            Err(error) => return drop(ready.send(Err(error))),
        };
        // Nobody listens any more: it is over then.
        let _ = ready.send(Ok(()));
        while !self.over.load(Ordering::SeqCst) {
            let rings = self.page.word(RINGS).load(Ordering::SeqCst);
            let called = !self.callers().is_empty();
            if called && let Some(tracer) = &*self.tracer.lock().unwrap_or_else(PoisonError::into_inner) {
                tracer.wake();
            }
            if !self.over.load(Ordering::SeqCst) {
                self.page.wait(RINGS, rings, if called { REMINDER } else { LONG });
            }
        }
        drop(held);
        for (place, word) in self.callers() {
            self.answer(place, word);
        }
    }
}

fn caller_offset(place: usize) -> usize {
    offset_of!(Bell, callers) + 8 * place
}

fn getrandom(bytes: &mut [u8]) -> io::Result<()> {
    std::fs::File::open("/dev/urandom").and_then(|mut file| io::Read::read_exact(&mut file, bytes))
}
