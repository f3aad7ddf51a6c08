//! What others have a follower do: it alone is the tracer of what it follows.
//!
//! ```text
//! another command ─▶ socket of the follower's process ─▶ attendant (an OS thread): makes the request anew ─▶ tracer: does it
//!                 ◀─ how it went                      ◀─                                                  ◀─
//! ```
//!
//! The socket has a name of Linux's own, with the process id of the follower, and no file: it goes with its process. Both sides ask
//! the kernel who the other is. A line each way: `renew PID STORE` or `release PID STORE`, and the answer.

use crate::bell::without_signals;
use crate::error::TargetRefused;
use crate::report::AttachReport;
use crate::report::ProbeState;
use crate::request::Request;
use beeline_ptrace::{Waker, read_status};
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// How long a tracer may take for an errand. It may be busy with a program that is being executed.
const ERRAND_TIMEOUT: Duration = Duration::from_secs(10);
/// How often it is reminded of one that it could not do at once.
const REMINDER: Duration = Duration::from_millis(50);
/// How long the other side of a connection may take.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(20);
/// More than a line of ours has.
const LINE_MAX: u64 = 4096;

/// What is to be done for a process that is followed.
#[derive(Debug)]
pub(crate) enum Errand {
    /// It gets what this request says, and so does what is executed and loaded from now on.
    Renew(Arc<Request>),
    /// It is not followed any more.
    Release,
}

/// An errand that waits to be done.
#[derive(Debug)]
pub(crate) struct Asked {
    pub(crate) pid: i32,
    pub(crate) errand: Errand,
    answer: Sender<Result<Option<AttachReport>, TargetRefused>>,
}

impl Asked {
    /// Tells whoever has asked. It may have given up.
    pub(crate) fn done(self, result: Result<Option<AttachReport>, TargetRefused>) {
        let _ = self.answer.send(result);
    }
}

#[derive(Debug)]
struct Tracer {
    waker: Waker,
    tid: i32,
}

/// The errands of one follower.
#[derive(Debug, Default)]
pub struct Errands {
    asked: Mutex<Vec<Asked>>,
    tracer: Mutex<Option<Tracer>>,
}

impl Errands {
    /// They are this OS thread's while the result lives.
    pub(crate) fn served_by(&self, waker: Waker) -> Serving<'_> {
        let tid = nix::unistd::gettid().as_raw();
        *self.tracer.lock().unwrap_or_else(PoisonError::into_inner) = Some(Tracer { waker, tid });
        Serving(self)
    }

    /// Takes those that wait.
    pub(crate) fn take(&self) -> Vec<Asked> {
        std::mem::take(&mut *self.asked.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// One could not be done yet.
    pub(crate) fn put_back(&self, asked: Asked) {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner).push(asked);
    }

    /// Its tracer is that of the process.
    fn follows(&self, pid: i32) -> bool {
        let tracer = self.tracer.lock().unwrap_or_else(PoisonError::into_inner);
        let tid = tracer.as_ref().map(|tracer| tracer.tid);
        read_status(pid).is_ok_and(|status| Some(status.tracer) == tid)
    }

    /// Has it done.
    fn ask(&self, pid: i32, errand: Errand) -> Result<Option<AttachReport>, TargetRefused> {
        let (answer, answered) = channel();
        self.put_back(Asked { pid, errand, answer });
        let begin = Instant::now();
        loop {
            match &*self.tracer.lock().unwrap_or_else(PoisonError::into_inner) {
                Some(tracer) => tracer.waker.wake(),
                None => return Err(TargetRefused::FollowerBusy { pid }),
            }
            match answered.recv_timeout(REMINDER) {
                Ok(result) => return result,
                Err(RecvTimeoutError::Timeout) if begin.elapsed() < ERRAND_TIMEOUT => {}
                Err(_) => {
                    // Nobody is to do it when nobody expects it any more.
                    self.asked.lock().unwrap_or_else(PoisonError::into_inner).retain(|it| it.pid != pid);
                    return Err(TargetRefused::FollowerBusy { pid });
                }
            }
        }
    }
}

/// Somebody serves the errands.
#[derive(Debug)]
pub(crate) struct Serving<'a>(&'a Errands);

impl Drop for Serving<'_> {
    fn drop(&mut self) {
        *self.0.tracer.lock().unwrap_or_else(PoisonError::into_inner) = None;
        // Who waits for them waits no more.
        drop(self.0.take());
    }
}

/// Makes the request of a process anew, from what the store holds now; an error in words.
pub type Renew<'a> = &'a (dyn Fn(i32) -> Result<Arc<Request>, String> + Sync);

/// Runs `follow`, which serves these errands, while others may ask for them. Without a socket nobody can ask, which is no error.
pub fn attended<T>(errands: &[&Errands], renew: Renew<'_>, follow: impl FnOnce() -> T) -> T {
    let own = std::process::id() as i32;
    let listener = address(own).and_then(|address| UnixListener::bind_addr(&address));
    let Ok(listener) = listener else { return follow() };
    let over = &AtomicBool::new(false);
    thread::scope(|scope| {
        let attendant = thread::Builder::new().name("beeline-errands".to_owned());
        let attend = move || attend(&listener, errands, renew, over);
        // Without it nobody can ask, either.
        let _ = without_signals(|| attendant.spawn_scoped(scope, attend));
        let _over = Over(over, own);
        follow()
    })
}

/// Ends the attendant.
struct Over<'a>(&'a AtomicBool, i32);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
        // It waits for somebody to come.
        let _ = address(self.1).and_then(|address| UnixStream::connect_addr(&address));
    }
}

fn address(pid: i32) -> io::Result<SocketAddr> {
    SocketAddr::from_abstract_name(format!("beeline-follower-{pid}"))
}

fn attend(listener: &UnixListener, errands: &[&Errands], renew: Renew<'_>, over: &AtomicBool) {
    while let Ok((stream, _)) = listener.accept() {
        if over.load(Ordering::SeqCst) {
            return;
        }
        // Who does not take the answer does without.
        let _ = converse(stream, errands, renew);
    }
}

fn converse(mut stream: UnixStream, errands: &[&Errands], renew: Renew<'_>) -> io::Result<()> {
    stream.set_read_timeout(Some(REMINDER * 20))?;
    stream.set_write_timeout(Some(REMINDER * 20))?;
    if !is_trusted(&stream, None) {
        return writeln!(stream, "failed its follower belongs to another user");
    }
    let line = read_line(&stream)?;
    match serve(&line, errands, renew) {
        Ok(answer) => writeln!(stream, "{answer}"),
        Err(reason) => writeln!(stream, "failed {}", reason.replace('\n', " ")),
    }
}

fn serve(line: &str, errands: &[&Errands], renew: Renew<'_>) -> Result<String, String> {
    let mut words = line.split_whitespace();
    let (what, pid, store) = (words.next(), words.next().and_then(|pid| pid.parse().ok()), words.next());
    let pid: i32 = pid.ok_or("that is no errand")?;
    let follower = errands.iter().find(|it| it.follows(pid)).ok_or("it is not followed any more")?;
    let request = renew(pid)?;
    if store != Some(&store_word(request.store_uuid)) {
        return Err("it carries the probes of another store".to_owned());
    }
    let errand = match what {
        Some("renew") => Errand::Renew(request),
        Some("release") => Errand::Release,
        _ => return Err("that is no errand".to_owned()),
    };
    let report = follower.ask(pid, errand).map_err(|reason| reason.to_string())?;
    Ok(report.map_or_else(|| "done".to_owned(), |report| Renewed::of(&report).to_line()))
}

fn store_word(uuid: [u64; 2]) -> String {
    format!("{:016x}{:016x}", uuid[0], uuid[1])
}

/// What a follower has put into a process.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Renewed {
    /// Probes that were placed just now.
    pub placed: usize,
    /// Probes that were in force.
    pub already: usize,
    /// Probes that were refused.
    pub refused: usize,
    /// Threads that stood still.
    pub threads: usize,
    /// How long, in nanoseconds.
    pub stopped_ns: u64,
}

impl Renewed {
    fn of(report: &AttachReport) -> Renewed {
        let count = |is_it: fn(&ProbeState) -> bool| {
            report.probes.iter().filter(|outcome| is_it(&outcome.state)).count()
        };
        Renewed {
            placed: count(|state| matches!(state, ProbeState::Placed { .. })),
            already: count(|state| matches!(state, ProbeState::AlreadyInForce)),
            refused: count(|state| matches!(state, ProbeState::Refused { .. })),
            threads: report.threads,
            stopped_ns: u64::try_from(report.stopped.as_nanos()).unwrap_or(u64::MAX),
        }
    }

    fn to_line(self) -> String {
        let Renewed { placed, already, refused, threads, stopped_ns } = self;
        format!("done {placed} {already} {refused} {threads} {stopped_ns}")
    }

    fn parse(words: &str) -> Option<Renewed> {
        let mut numbers = words.split_whitespace().map_while(|word| word.parse::<u64>().ok());
        let mut next = || numbers.next();
        let mut count = || next().and_then(|number| usize::try_from(number).ok());
        let (placed, already, refused, threads) = (count()?, count()?, count()?, count()?);
        Some(Renewed { placed, already, refused, threads, stopped_ns: next()? })
    }
}

/// Has the follower of a process, where it is a beeline's, bring it to what the store holds now. None when it is not followed by one.
///
/// # Errors
/// [`TargetRefused::FollowerFailed`] when it does not do so, or does not answer within 20 seconds.
pub fn renew_followed(pid: i32, store_uuid: [u64; 2]) -> Result<Option<Renewed>, TargetRefused> {
    let Some(answer) = ask(pid, "renew", store_uuid)? else { return Ok(None) };
    let unclear = || follower_failed(pid, format!("it answers {answer:?}"));
    Renewed::parse(&answer).map(Some).ok_or_else(unclear)
}

/// Has the follower of a process, where it is a beeline's, follow it no more: then it can be attached to and detached. Whether it was
/// followed by one.
///
/// # Errors
/// As for [`renew_followed`].
pub fn release_followed(pid: i32, store_uuid: [u64; 2]) -> Result<bool, TargetRefused> {
    Ok(ask(pid, "release", store_uuid)?.is_some())
}

/// The follower's answer, without its first word.
fn ask(pid: i32, what: &str, store_uuid: [u64; 2]) -> Result<Option<String>, TargetRefused> {
    let Some((stream, follower)) = follower_of(pid) else { return Ok(None) };
    let failed =
        |error: io::Error| follower_failed(pid, format!("process {follower} does not answer: {error}"));
    stream.set_read_timeout(Some(ANSWER_TIMEOUT)).map_err(failed)?;
    writeln!(&stream, "{what} {pid} {}", store_word(store_uuid)).map_err(failed)?;
    let line = read_line(&stream).map_err(failed)?;
    match line.trim_end().split_once(' ').unwrap_or((line.trim_end(), "")) {
        ("done", rest) => Ok(Some(rest.to_owned())),
        ("failed", reason) => Err(follower_failed(pid, reason.to_owned())),
        _ => Err(follower_failed(pid, format!("process {follower} hung up"))),
    }
}

fn follower_failed(pid: i32, reason: String) -> TargetRefused {
    TargetRefused::FollowerFailed { pid, reason }
}

/// A connection to the beeline that follows a process, and its process id.
fn follower_of(pid: i32) -> Option<(UnixStream, i32)> {
    let tracer = read_status(pid).ok()?.tracer;
    let follower = read_status(tracer).ok()?.tgid;
    let stream = UnixStream::connect_addr(&address(follower).ok()?).ok()?;
    is_trusted(&stream, Some(follower)).then_some((stream, follower))
}

/// The other side is this process, where one is meant, and belongs to root or to our user.
fn is_trusted(stream: &UnixStream, process: Option<i32>) -> bool {
    let ours = nix::unistd::geteuid().as_raw();
    getsockopt(stream, PeerCredentials).is_ok_and(|other| {
        process.is_none_or(|pid| pid == other.pid()) && (other.uid() == 0 || other.uid() == ours)
    })
}

fn read_line(stream: &UnixStream) -> io::Result<String> {
    let mut line = String::new();
    BufReader::new(stream.take(LINE_MAX)).read_line(&mut line)?;
    Ok(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_done_survives_the_line() {
        let renewed = Renewed { placed: 1, already: 2, refused: 3, threads: 4, stopped_ns: 5 };
        let line = renewed.to_line();
        assert_eq!(Renewed::parse(line.strip_prefix("done ").unwrap()), Some(renewed));
        assert_eq!(Renewed::parse("1 2 3"), None);
        assert_eq!(Renewed::parse("x"), None);
    }

    #[test]
    fn garbage_is_no_errand() {
        let renew = |_| Err("no".to_owned());
        for line in ["", "renew", "renew x", "renew 1 2", "dance 1 2"] {
            assert!(serve(line, &[], &renew).is_err(), "{line}");
        }
    }

    /// Nobody follows us.
    #[test]
    fn a_process_without_follower() {
        assert_eq!(renew_followed(std::process::id() as i32, [1, 2]).unwrap(), None);
    }
}
