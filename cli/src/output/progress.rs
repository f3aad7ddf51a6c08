//! A word on standard error about what takes long, when somebody is watching.

use anstream::stream::IsTerminal;
use std::io::Write;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// What is over sooner than this needs no word.
const PATIENCE: Duration = Duration::from_millis(400);
/// How often the time is renewed.
const RENEWAL: Duration = Duration::from_millis(200);

/// Shows what is being done until it is dropped.
pub(crate) struct Progress {
    shown: Option<(Sender<()>, JoinHandle<()>)>,
}

impl Progress {
    /// Begins. Nothing is ever printed when standard error is not a terminal.
    pub(crate) fn begin(what: impl Into<String>) -> Progress {
        let what = what.into();
        let shown = std::io::stderr().is_terminal().then(|| {
            let (done, waiting) = channel();
            let show = move || {
                let start = Instant::now();
                let mut patience = PATIENCE;
                let mut printed = false;
                while waiting.recv_timeout(patience) == Err(RecvTimeoutError::Timeout) {
                    patience = RENEWAL;
                    printed = true;
                    let seconds = start.elapsed().as_secs_f32();
                    let _ = write!(std::io::stderr(), "\r\x1b[K{what} ({seconds:.1} s)");
                }
                if printed {
                    let _ = write!(std::io::stderr(), "\r\x1b[K");
                }
            };
            (done, std::thread::spawn(show))
        });
        Progress { shown }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some((done, thread)) = self.shown.take() {
            drop(done);
            let _ = thread.join();
        }
    }
}
