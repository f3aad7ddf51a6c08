//! Stopping a process all of whose threads this OS thread follows already, and letting it go on under trace.
//!
//! ```text
//! Running ─▶ interrupt ─▶ StoppedProcess ─▶ resume_followed ─▶ Running, in its group stop if it was in one
//! ```
//!
//! What a thread does meanwhile that concerns its follower, executing a program or ending, is kept for
//! [`next_event`](crate::next_event).

use crate::stop::{StopError, StoppedProcess};
use crate::thread::{PtraceError, Resume, Running, Settled, Stopped};
use crate::{RunState, Tid, read_status, thread_ids};
use std::collections::HashSet;
use std::time::{Duration, Instant};

/// Rounds over the threads, each of which can begin others until it stands still.
const ROUNDS_MAX: usize = 100;

impl StoppedProcess {
    /// Stops all threads of process `pid`, which this OS thread follows. None when that is not possible now: a thread has just
    /// executed a program, has not stopped within `timeout`, or the process has ended. Whatever was stopped goes on then; the
    /// reason is in [`next_event`](crate::next_event), or it helps to try again.
    ///
    /// # Errors
    /// [`StopError::NotPermitted`] when a living thread is not ours; nothing stays stopped.
    pub fn stop_followed(pid: Tid, timeout: Duration) -> Result<Option<StoppedProcess>, StopError> {
        let begin = Instant::now();
        let mut seen = HashSet::new();
        let mut stopped = Vec::new();
        for _ in 0..ROUNDS_MAX {
            let Ok(ids) = thread_ids(pid) else { break };
            let new: Vec<Tid> = ids.into_iter().filter(|&tid| seen.insert(tid)).collect();
            if new.is_empty() {
                if stopped.is_empty() {
                    break;
                }
                return Ok(Some(StoppedProcess::of(pid, stopped, begin)));
            }
            match stop_all(pid, new, timeout, &mut stopped) {
                Ok(true) => {}
                Ok(false) => break,
                Err(error) => {
                    go_on(stopped);
                    return Err(error);
                }
            }
        }
        go_on(stopped);
        Ok(None)
    }

    /// Lets every thread go on under trace, with all that is followed of it; how long the process stood still.
    pub fn resume_followed(self) -> Duration {
        let begin = self.begin();
        go_on(self.into_threads().0);
        begin.elapsed()
    }
}

/// Interrupts threads and waits for them; false when one of them cannot be had now.
fn stop_all(
    pid: Tid,
    threads: Vec<Tid>,
    timeout: Duration,
    stopped: &mut Vec<Stopped>,
) -> Result<bool, StopError> {
    let mut running = Vec::new();
    for tid in threads {
        // A leader that has ended while others go on never stops, and does not report before they have ended, too.
        if tid == pid && read_status(tid).is_ok_and(|status| status.state == RunState::Zombie) {
            continue;
        }
        let thread = Running::with_event(tid);
        match thread.interrupt() {
            Ok(()) => running.push(thread),
            // It is dead, or another's.
            Err(_) if read_status(tid).map_or(true, |status| status.state == RunState::Zombie) => {}
            Err(_) => return Err(StoppedProcess::refusal(pid)),
        }
    }
    let mut all = true;
    for thread in running {
        // After a failure the others are still waited for, briefly: they are to go on.
        let patience = if all { timeout } else { Duration::from_millis(20) };
        match thread.settle_followed(patience) {
            Ok(Settled::Stopped(thread)) => stopped.push(thread),
            Ok(Settled::Ended) | Err(PtraceError::Gone { .. }) => {}
            // One that stops later reports it, and is let go on then.
            Ok(Settled::Executes) | Err(_) => all = false,
        }
    }
    Ok(all)
}

fn go_on(threads: Vec<Stopped>) {
    for mut thread in threads {
        let how = if thread.is_in_group_stop() { Resume::Listen } else { Resume::Continue };
        // Killed meanwhile: it reports that next.
        if thread.follow().is_ok() {
            let _ = thread.resume(how);
        }
    }
}
