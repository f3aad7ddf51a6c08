//! Waiting for tracees and for other OS threads of ours at the same time.
//!
//! `waitpid` waits for nothing else than children; a signal that is sent to the OS thread ends it. It can come just before the
//! wait begins, and is lost then: so it is sent until it has been noticed.

use crate::Tid;
use crate::request;
use crate::thread::{next_known_event, wait_interruptibly};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::Duration;

/// How long a signal gets to be noticed.
const PATIENCE: Duration = Duration::from_micros(500);

/// What a follower waits for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Event {
    /// This tracee has something to tell.
    Of(Tid),
    /// A [`Waker`] was used.
    Wakened,
    /// No tracee is left.
    Nobody,
}

#[derive(Debug, Default)]
struct State {
    /// The OS thread is in its wait, or about to be.
    waits: AtomicBool,
    /// It is to wake up.
    wakened: AtomicBool,
    /// It waits no more.
    over: AtomicBool,
}

/// The side of the OS thread that waits.
#[derive(Debug)]
pub struct Wakened {
    state: Arc<State>,
}

/// The side of the others.
#[derive(Clone, Debug)]
pub struct Waker {
    state: Arc<State>,
    tid: Tid,
}

impl Wakened {
    /// For the calling OS thread. It does without `SIGURG` from now on; a handler of the process for it stays.
    ///
    /// # Errors
    /// When the kernel does not let us receive the signal.
    pub fn new() -> io::Result<(Wakened, Waker)> {
        request::receive_wake_signal()?;
        let state = Arc::new(State::default());
        Ok((Wakened { state: Arc::clone(&state) }, Waker { state, tid: request::own_tid() }))
    }

    /// Waits until a tracee of this OS thread has stopped or ended, or somebody wants us to wake up.
    ///
    /// # Errors
    /// When the kernel does not let us wait.
    pub fn next_event(&self) -> io::Result<Event> {
        loop {
            if let Some(tid) = next_known_event() {
                return Ok(Event::Of(tid));
            }
            self.state.waits.store(true, SeqCst);
            let wakened = self.state.wakened.swap(false, SeqCst);
            let waited = if wakened { Ok(None) } else { wait_interruptibly() };
            self.state.waits.store(false, SeqCst);
            match waited? {
                None if wakened || self.state.wakened.swap(false, SeqCst) => return Ok(Event::Wakened),
                None => {}
                Some(false) => return Ok(Event::Nobody),
                Some(true) => {}
            }
        }
    }
}

impl Drop for Wakened {
    fn drop(&mut self) {
        self.state.over.store(true, SeqCst);
    }
}

impl Waker {
    /// Has the other OS thread wake up from its wait, or not begin the next one. Returns when it has noticed, or is busy with
    /// something else and will.
    pub fn wake(&self) {
        self.state.wakened.store(true, SeqCst);
        while self.state.wakened.load(SeqCst)
            && self.state.waits.load(SeqCst)
            && !self.state.over.load(SeqCst)
        {
            request::send_wake_signal(self.tid);
            std::thread::sleep(PATIENCE);
        }
    }
}
