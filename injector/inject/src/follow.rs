//! Follows the children of a process, and what they execute.
//!
//! ```text
//! fork, vfork, clone      the child has the probes already: its memory is a copy
//! execve                  stopped before the first instruction ─▶ probes as at start ─▶ goes on
//! ```
//!
//! The injector stays the tracer of everything that is followed, which costs only when a process or thread begins, executes,
//! ends, or gets a signal. When the injector ends, also by `kill -9`, the kernel lets all of them go: they run on as they are.
//! A stop by a signal stays one, a signal is delivered. A program that traces others itself (strace, gdb, LeakSanitizer) gets its
//! probes and is let go: we would be in its way.

use crate::attach::attach_with;
use crate::bell::{FollowerBell, with_bell};
use crate::errands::{Asked, Errand, Errands};
use crate::error::TargetRefused;
use crate::libraries::{self, Libraries, Looked};
use crate::report::AttachReport;
use crate::request::Request;
use crate::start::{Completeness, Ended, StartCommand, begin, pass_on, place};
use crate::target;
use beeline_ptrace::{
    Death, Event, PtraceError, Resume, Running, Stop, StopError, Stopped, StoppedProcess, Waited, Wakened,
    read_status, thread_ids,
};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, SigmaskHow, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::Pid;
use std::cell::RefCell;
use std::collections::HashSet;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};
use std::thread;
use std::time::Duration;

/// How often the threads of a process are looked for; each look finds those made since the last one.
const LOOKS_MAX: usize = 100;

/// What happened to a process that is followed.
#[derive(Debug)]
pub enum Followed<'a> {
    /// It executes a program, and this was put into it.
    Placed(&'a AttachReport),
    /// It traces others itself: it has its probes, and is not followed any further.
    NotFollowed {
        /// The process.
        pid: i32,
    },
    /// It has loaded libraries, and this was put into them.
    Loaded(&'a AttachReport),
    /// It loads libraries that get no probes.
    NotLoaded {
        /// The process.
        pid: i32,
        /// Why.
        reason: &'a TargetRefused,
    },
    /// It executes a program, without probes and without being followed any further.
    Refused {
        /// The process.
        pid: i32,
        /// Why.
        reason: &'a TargetRefused,
    },
}

/// Where a follower tells what happens, and by which request. It is called on an OS thread of its own.
pub type Tell<'a> = &'a (dyn Fn(&Request, Followed<'_>) + Sync);

/// Starts a program with the request's probes in it, and puts them into whatever it and its children execute until it ends.
/// Its children that are left then run on.
///
/// Signals that are sent to us meanwhile are passed on to it, as by [`Started::wait`](crate::Started::wait).
///
/// # Errors
/// [`TargetRefused`] when it does not start; nothing is left running then.
pub fn start_followed(
    command: &StartCommand,
    request: &Arc<Request>,
    errands: &Errands,
    tell: Tell<'_>,
) -> Result<Ended, TargetRefused> {
    with_bell(|bell| start_with(command, request, Served { bell, errands, tell }))
}

/// Whom a follower serves, and tells what it does.
#[derive(Clone, Copy)]
struct Served<'a> {
    bell: &'a FollowerBell,
    errands: &'a Errands,
    tell: Tell<'a>,
}

fn start_with(
    command: &StartCommand,
    request: &Arc<Request>,
    served: Served<'_>,
) -> Result<Ended, TargetRefused> {
    let pid = AtomicI32::new(0);
    passing_signals_on(&pid, || {
        let (mut stopped, report) = begin(command, request, Some(served.bell))?;
        // The program has our mask as it was; from now on the signals are for whoever passes them on.
        let signals: SigSet = PASSED_ON.into_iter().collect();
        let _ = signals.thread_block();
        let root = stopped.tid();
        pid.store(root, Ordering::Release);
        (served.tell)(request, Followed::Placed(&report));
        if is_tracer(root) {
            (served.tell)(request, Followed::NotFollowed { pid: root });
            stopped.detach().map_err(StopError::from)?;
        } else {
            stopped.follow().map_err(StopError::from)?;
            stopped.resume(Resume::Continue).map_err(StopError::from)?;
        }
        let ended = Follower::new(request, served).run(Some(root))?;
        ended.ok_or(TargetRefused::Stop(StopError::Died { pid: root, how: None }))
    })
}

/// Puts the request's probes into process `pid`, and into whatever it and its children execute from now on. Returns when the
/// process and all of them have ended.
///
/// # Errors
/// [`TargetRefused`] when the process cannot be attached to.
pub fn attach_followed(
    pid: i32,
    request: &Arc<Request>,
    errands: &Errands,
    tell: Tell<'_>,
) -> Result<(), TargetRefused> {
    with_bell(|bell| {
        let report = attach_with(pid, request, Some(bell))?;
        crate::tracer::run(|| {
            seize_all(report.pid)?;
            tell(request, Followed::Placed(&report));
            Follower::new(request, Served { bell, errands, tell }).run(None).map(drop)
        })
    })
}

/// Begins to follow all threads of a process that runs.
fn seize_all(pid: i32) -> Result<(), TargetRefused> {
    StoppedProcess::check(pid)?;
    let mut seen = HashSet::new();
    for _ in 0..LOOKS_MAX {
        let ids = thread_ids(pid).map_err(|source| StopError::Proc { pid, source })?;
        let mut new = false;
        for tid in ids.into_iter().filter(|&tid| seen.insert(tid)) {
            // One that a seized thread has made is traced by us already; one that has ended is no concern.
            let ours = |tid| read_status(tid).is_ok_and(|status| status.tracer != 0);
            match Running::seize_following(tid) {
                Ok(()) => new = true,
                Err(error) if error.raw_os_error() == Some(libc::ESRCH) || ours(tid) => {}
                Err(_) => return Err(StoppedProcess::refusal(pid).into()),
            }
        }
        if !new {
            return Ok(());
        }
    }
    Err(StopError::TooManyThreads { pid }.into())
}

/// The tracer of everything that is followed.
struct Follower<'a> {
    /// What is put into processes; an errand may change it.
    request: RefCell<Arc<Request>>,
    served: Served<'a>,
    libraries: RefCell<Libraries<'a>>,
}

impl<'a> Follower<'a> {
    fn new(request: &Arc<Request>, served: Served<'a>) -> Follower<'a> {
        let libraries = RefCell::new(Libraries::new(served.bell));
        Follower { request: RefCell::new(Arc::clone(request)), served, libraries }
    }

    fn request(&self) -> Arc<Request> {
        Arc::clone(&self.request.borrow())
    }

    /// Handles events until `root` has ended, or nobody is left.
    fn run(&self, root: Option<i32>) -> Result<Option<Ended>, TargetRefused> {
        let failed = |source| TargetRefused::System { what: "wait for what is followed", source };
        let (wakened, waker) = Wakened::new().map_err(failed)?;
        self.served.bell.served_by(waker.clone());
        let _serving = self.served.errands.served_by(waker);
        // Somebody may have called before.
        self.answer();
        loop {
            let tid = match wakened.next_event().map_err(failed)? {
                Event::Of(tid) => tid,
                Event::Wakened => {
                    self.answer();
                    self.served.errands.take().into_iter().for_each(|asked| self.serve(asked));
                    continue;
                }
                Event::Nobody => return Ok(None),
            };
            match Running::with_event(tid).wait(Duration::ZERO) {
                Ok(Waited::Dead(how)) if Some(tid) == root => return Ok(Some(how.into())),
                // Who was killed meanwhile reports that next.
                Ok(Waited::Dead(_)) | Err(_) => {}
                Ok(Waited::Stopped(thread, stop)) => drop(self.handle(thread, stop)),
            }
        }
    }

    /// Serves those who have loaded libraries.
    fn answer(&self) {
        let (request, tell) = (self.request(), self.served.tell);
        self.libraries.borrow_mut().answer(&request, &|pid, result| match result {
            Ok(report) => tell(&request, Followed::Loaded(&report)),
            Err(reason) => tell(&request, Followed::NotLoaded { pid, reason: &reason }),
        });
    }

    /// Does an errand, or leaves it for the next time.
    fn serve(&self, asked: Asked) {
        match self.done(&asked) {
            Ok(None) => self.served.errands.put_back(asked),
            Ok(Some(report)) => asked.done(Ok(report)),
            Err(reason) => asked.done(Err(reason)),
        }
    }

    /// What came of an errand; none when it cannot be done now.
    fn done(&self, asked: &Asked) -> Result<Option<Option<AttachReport>>, TargetRefused> {
        let pid = asked.pid;
        let Errand::Renew(request) = &asked.errand else {
            return Ok(libraries::release(pid)?.then_some(None));
        };
        self.request.replace(Arc::clone(request));
        match libraries::put_into(&target::open_traced(pid)?, request, self.served.bell, &[])? {
            Looked::Later => Ok(None),
            Looked::Nothing(report) => Ok(Some(Some(report))),
            Looked::Placed(report) => {
                (self.served.tell)(request, Followed::Loaded(&report));
                Ok(Some(Some(report)))
            }
        }
    }

    /// Lets a thread go on, with probes if it executes a new program.
    fn handle(&self, thread: Stopped, stop: Stop) -> Result<(), PtraceError> {
        let how = match stop {
            Stop::Exec => return self.executes(thread),
            Stop::Interrupted { group: Some(_) } => Resume::Listen,
            Stop::Signal(_) => {
                thread.hide_from_call()?;
                Resume::Continue
            }
            _ => Resume::Continue,
        };
        thread.resume(how).map(drop)
    }

    /// A new program, before its first instruction.
    fn executes(&self, mut thread: Stopped) -> Result<(), PtraceError> {
        let pid = thread.tid();
        thread.follow()?;
        let (request, tell) = (self.request(), self.served.tell);
        match self.put_into(&request, thread) {
            Ok((report, mut threads)) => {
                tell(&request, Followed::Placed(&report));
                if is_tracer(pid) {
                    tell(&request, Followed::NotFollowed { pid });
                    return threads.into_iter().try_for_each(Stopped::detach);
                }
                for thread in &mut threads {
                    thread.follow()?;
                }
                for thread in threads {
                    thread.resume(Resume::Continue)?;
                }
            }
            Err(reason) => tell(&request, Followed::Refused { pid, reason: &reason }),
        }
        Ok(())
    }

    fn put_into(
        &self,
        request: &Request,
        thread: Stopped,
    ) -> Result<(AttachReport, Vec<Stopped>), TargetRefused> {
        let pid = thread.tid();
        let path =
            target::open_traced(pid)?.exe().unwrap_or_else(|_| PathBuf::from(format!("process {pid}")));
        place(&path, request, thread, Some(self.served.bell), Completeness::IfPossible)
    }
}

/// What it starts is its own to trace.
fn is_tracer(pid: i32) -> bool {
    target::open_traced(pid).is_ok_and(|process| target::is_tracer(&process))
}

impl From<Death> for Ended {
    fn from(how: Death) -> Ended {
        match how {
            Death::Exited(status) => Ended::Exited(status),
            Death::Killed(signal) => Ended::Killed(signal),
        }
    }
}

/// Signals that are passed on to the program that was started.
pub(crate) const PASSED_ON: [Signal; 6] =
    [Signal::SIGHUP, Signal::SIGINT, Signal::SIGQUIT, Signal::SIGTERM, Signal::SIGUSR1, Signal::SIGUSR2];

/// Runs `tracer` on an OS thread of its own, and passes signals on to process `pid` as soon as that is not 0.
fn passing_signals_on<T: Send>(
    pid: &AtomicI32,
    tracer: impl FnOnce() -> Result<T, TargetRefused> + Send,
) -> Result<T, TargetRefused> {
    let failed =
        |what| move |error: nix::Error| TargetRefused::System { what, source: io::Error::from(error) };
    let signals: SigSet = PASSED_ON.into_iter().collect();
    let arrived = SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
        .map_err(failed("look for signals"))?;
    let (over, done) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).map_err(failed("make a pipe"))?;
    // Before the program can run: one that comes as soon as it does is not lost.
    let before = signals.thread_swap_mask(SigmaskHow::SIG_BLOCK).map_err(failed("block signals"))?;
    let ended = thread::scope(|scope| {
        let tracer = scope.spawn(move || {
            let _done: OwnedFd = done;
            let _ = before.thread_set_mask();
            tracer()
        });
        loop {
            let mut ready = [
                PollFd::new(over.as_fd(), PollFlags::POLLIN),
                PollFd::new(arrived.as_fd(), PollFlags::POLLIN),
            ];
            let polled = poll(&mut ready, PollTimeout::NONE);
            if polled.is_ok() && ready[0].revents().is_some_and(|events| !events.is_empty()) {
                break;
            }
            while let Ok(Some(info)) = arrived.read_signal() {
                let pid = pid.load(Ordering::Acquire);
                if pid != 0 {
                    pass_on(Pid::from_raw(pid), info.ssi_signo, info.ssi_code);
                }
            }
        }
        tracer.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    });
    let _ = before.thread_set_mask();
    ended
}
