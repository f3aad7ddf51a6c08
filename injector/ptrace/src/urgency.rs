//! Loops over many threads of a target, made without being preempted by the very threads that they wake.
//!
//! Each thread that is asked to stop, or let go on, becomes runnable; where it comes to our CPU, the scheduler mostly lets it
//! run first, and a loop over 500 threads takes 500 switches there and back. At real-time priority it takes none. Where that
//! is not allowed everything works as well, only more slowly.

use crate::request;
use std::marker::PhantomData;

/// While it lives, the calling OS thread gives way to none of ordinary priority. For loops that never wait.
#[derive(Debug)]
pub(crate) struct Urgency {
    raised: bool,
    _not_send: PhantomData<*const ()>,
}

/// Loops over fewer threads are over before they are disturbed.
const THREADS_MIN: usize = 8;

impl Urgency {
    /// For a loop over this many threads.
    pub(crate) fn begin(threads: usize) -> Urgency {
        Urgency { raised: threads >= THREADS_MIN && request::raise_priority(), _not_send: PhantomData }
    }
}

impl Drop for Urgency {
    fn drop(&mut self) {
        if self.raised {
            request::lower_priority();
        }
    }
}
