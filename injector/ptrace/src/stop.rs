//! All threads of a process, stopped.

use crate::status::{RunState, Status, read_status, thread_ids};
use crate::thread::{Death, PtraceError, Resume, Running, Stop, Stopped, Waited};
use crate::urgency::Urgency;
use crate::{Tid, arch};
use std::collections::HashSet;
use std::fmt;
use std::fs;
use std::io;
use std::time::{Duration, Instant};

/// Why a process cannot be stopped. The process runs on as it was.
#[derive(Debug, thiserror::Error)]
pub enum StopError {
    /// There is no such process.
    #[error("there is no process {pid}")]
    NoSuchProcess {
        /// The id asked for.
        pid: Tid,
    },
    /// The process is the tracer's own.
    #[error("process {pid} cannot trace itself")]
    Itself {
        /// The id asked for.
        pid: Tid,
    },
    /// The process is dead and waits to be collected by its parent.
    #[error("process {pid} ({name}) has exited already; its parent has not collected it yet")]
    Zombie {
        /// The id asked for.
        pid: Tid,
        /// Its name.
        name: String,
    },
    /// The id belongs to a thread of the kernel.
    #[error("{pid} ({name}) is a kernel thread")]
    KernelThread {
        /// The id asked for.
        pid: Tid,
        /// Its name.
        name: String,
    },
    /// Somebody else traces it.
    #[error(
        "process {pid} is being traced by process {tracer} ({tracer_name}); only one tracer is possible at a time"
    )]
    AlreadyTraced {
        /// The id asked for.
        pid: Tid,
        /// Who traces it.
        tracer: Tid,
        /// Its name.
        tracer_name: String,
    },
    /// The kernel does not allow it.
    #[error("not permitted to trace process {pid}: {why}")]
    NotPermitted {
        /// The id asked for.
        pid: Tid,
        /// What stands in the way, and what would help.
        why: Denial,
    },
    /// A thread stays in the kernel.
    #[error(
        "thread {tid} of process {pid} does not stop: it has been in state {state} in the kernel ({place}) for {waited_ms} ms"
    )]
    Stuck {
        /// The process.
        pid: Tid,
        /// The thread.
        tid: Tid,
        /// State letter of `/proc/PID/status`; D is an uninterruptible wait.
        state: char,
        /// The kernel function it waits in, `?` when that is not told.
        place: String,
        /// How long it was waited for.
        waited_ms: u64,
    },
    /// New threads appear faster than they can be stopped.
    #[error("process {pid} creates threads faster than they can be stopped")]
    TooManyThreads {
        /// The process.
        pid: Tid,
    },
    /// The process ended while it was being stopped.
    #[error("process {pid} ended while it was being stopped")]
    Died {
        /// The process.
        pid: Tid,
        /// How, where it is known.
        how: Option<Death>,
    },
    /// The kernel refused a request.
    #[error(transparent)]
    Ptrace(#[from] PtraceError),
    /// `/proc` could not be read.
    #[error("cannot read the threads of process {pid}: {source}")]
    Proc {
        /// The process.
        pid: Tid,
        /// The reason.
        source: io::Error,
    },
}

/// Why the kernel does not let us trace.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Denial {
    /// The target belongs to another user.
    OtherUser {
        /// Its real user id.
        target: u32,
        /// Our effective one.
        ours: u32,
    },
    /// `kernel.yama.ptrace_scope` forbids it: 1 allows descendants only, 2 needs a capability, 3 nobody.
    Yama {
        /// The value.
        scope: u32,
    },
    /// Same user, no Yama: the target is not dumpable (it changed its ids or holds more capabilities), lives in a
    /// parent user namespace, or a security module says no.
    Other,
}

impl fmt::Display for Denial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Denial::OtherUser { target, ours } => write!(
                f,
                "it belongs to user {target} and we are user {ours}; run as that user or as root (CAP_SYS_PTRACE)"
            ),
            Denial::Yama { scope: 3 } => f.write_str(
                "kernel.yama.ptrace_scope is 3, which forbids tracing until the next boot, for root too",
            ),
            Denial::Yama { scope } => write!(
                f,
                "kernel.yama.ptrace_scope is {scope}; run as root (CAP_SYS_PTRACE), or set it to 0 with \
                 `sysctl kernel.yama.ptrace_scope=0`"
            ),
            Denial::Other => f.write_str(
                "it is not dumpable, has more capabilities than we have, or a security module forbids it; run as root \
                 (CAP_SYS_PTRACE) in its user namespace",
            ),
        }
    }
}

/// How patiently a process is stopped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct StopOptions {
    /// How long a single thread may take to stop.
    pub timeout: Duration,
}

impl Default for StopOptions {
    fn default() -> StopOptions {
        StopOptions { timeout: Duration::from_secs(2) }
    }
}

/// Rounds over `/proc/PID/task` after which a process is taken for one that outruns us. Every round stops all threads
/// that it sees, so only threads made in that round are left to the next.
const ROUNDS_MAX: usize = 100;

/// Every thread of one process, each of them stopped. Dropping it lets all of them go on.
#[derive(Debug)]
pub struct StoppedProcess {
    pid: Tid,
    threads: Vec<Stopped>,
    begin: Instant,
}

impl StoppedProcess {
    /// Stops all threads of the process that `pid` (or the thread `pid`) belongs to.
    ///
    /// Signals that arrive meanwhile are delivered. System calls that are interrupted are restarted by the kernel when
    /// the threads go on.
    ///
    /// # Errors
    /// See [`StopError`]. Every thread goes on in each of these cases; a [`StopError::Stuck`] one when the calling OS
    /// thread ends, because a thread that does not stop cannot be detached earlier.
    pub fn stop(pid: Tid, options: StopOptions) -> Result<StoppedProcess, StopError> {
        let status = check(pid)?;
        let process = StoppedProcess { pid: status.tgid, threads: Vec::new(), begin: Instant::now() };
        process.stop_others(HashSet::new(), options)
    }

    /// What can be said of a process before anything is touched: its status.
    ///
    /// # Errors
    /// As for [`StoppedProcess::stop`], but for what only trying shows.
    pub fn check(pid: Tid) -> Result<Status, StopError> {
        check(pid)
    }

    /// Why the kernel does not let us look into process `pid`.
    pub fn refusal(pid: Tid) -> StopError {
        match read_status(pid) {
            Ok(status) => refused(pid, &status),
            Err(_) => StopError::NoSuchProcess { pid },
        }
    }

    /// The process of a thread that stands still already; its other threads, if there are any, are stopped.
    ///
    /// # Errors
    /// As for [`StoppedProcess::stop`].
    pub fn around(thread: Stopped, options: StopOptions) -> Result<StoppedProcess, StopError> {
        let tid = thread.tid();
        let pid = read_status(tid).map_or(tid, |status| status.tgid);
        let process = StoppedProcess { pid, threads: vec![thread], begin: Instant::now() };
        process.stop_others(HashSet::from([tid]), options)
    }

    /// Threads that stand still already.
    pub(crate) fn of(pid: Tid, threads: Vec<Stopped>, begin: Instant) -> StoppedProcess {
        StoppedProcess { pid, threads, begin }
    }

    fn stop_others(
        mut self,
        mut seen: HashSet<Tid>,
        options: StopOptions,
    ) -> Result<StoppedProcess, StopError> {
        self.await_blocked(&seen, options)?;
        // The threads that are there are seized while all of them run: only then the process begins to stand still.
        let mut seized = Vec::new();
        let mut refusal = self.seize_new(&mut seen, &mut seized).err();
        self.begin = Instant::now();
        for _ in 0..ROUNDS_MAX {
            self.stop_seized(seized, refusal, options)?;
            seized = Vec::new();
            refusal = self.seize_new(&mut seen, &mut seized).err();
            if seized.is_empty() && refusal.is_none() {
                return if self.threads.is_empty() {
                    Err(StopError::Died { pid: self.pid, how: None })
                } else {
                    Ok(self)
                };
            }
        }
        Err(StopError::TooManyThreads { pid: self.pid })
    }

    /// Waits for threads that will not stop now: nobody else is to stand still for one in `vfork`, or one that waits for a disk.
    fn await_blocked(&self, seen: &HashSet<Tid>, options: StopOptions) -> Result<(), StopError> {
        let begin = Instant::now();
        for tid in thread_ids(self.pid).unwrap_or_default().into_iter().filter(|tid| !seen.contains(tid)) {
            while is_blocked(self.pid, tid) {
                let waited = begin.elapsed();
                if waited > options.timeout {
                    return Err(stuck(self.pid, tid, waited.as_millis() as u64));
                }
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        Ok(())
    }

    /// Seizes the threads that are not in `seen`; they run on. After an error those of `seized` are ours all the same.
    fn seize_new(&self, seen: &mut HashSet<Tid>, seized: &mut Vec<Running>) -> Result<(), StopError> {
        let ids = match thread_ids(self.pid) {
            Ok(ids) => ids,
            Err(_) if !self.threads.is_empty() => Vec::new(),
            // The wait for its last thread has collected it.
            Err(source) if source.kind() == io::ErrorKind::NotFound => {
                return Err(StopError::Died { pid: self.pid, how: None });
            }
            Err(source) => return Err(StopError::Proc { pid: self.pid, source }),
        };
        for tid in ids {
            if !seen.insert(tid) {
                continue;
            }
            match Running::seize(tid) {
                Ok(thread) => seized.push(thread),
                Err(error) => self.seize_failed(tid, error)?,
            }
        }
        Ok(())
    }

    /// Stops seized threads; when there is a `refusal` already, only to let them go.
    fn stop_seized(
        &mut self,
        seized: Vec<Running>,
        refusal: Option<StopError>,
        options: StopOptions,
    ) -> Result<(), StopError> {
        let urgency = Urgency::begin(seized.len());
        for thread in &seized {
            // A thread that dies here is reported by the wait below.
            let _ = thread.interrupt();
        }
        drop(urgency);
        let mut failure = refusal;
        for thread in seized {
            let tid = thread.tid();
            // After a failure the others are still waited for, briefly, so that dropping them lets them go on.
            let timeout = if failure.is_none() { options.timeout } else { Duration::from_millis(100) };
            match settle_unless_blocked(self.pid, thread, timeout) {
                Ok(Some(stopped)) => self.threads.push(stopped),
                Ok(None) | Err(PtraceError::Gone { .. }) => {}
                Err(PtraceError::Timeout { waited_ms, .. }) => {
                    failure.get_or_insert_with(|| stuck(self.pid, tid, waited_ms));
                }
                Err(error) => {
                    failure.get_or_insert(error.into());
                }
            }
        }
        failure.map_or(Ok(()), Err)
    }

    /// A thread that is dead or dying is not an error; one that we may not trace is.
    fn seize_failed(&self, tid: Tid, error: io::Error) -> Result<(), StopError> {
        if error.raw_os_error() == Some(libc::ESRCH) {
            return Ok(());
        }
        match read_status(tid) {
            Err(_) => Ok(()),
            Ok(status) if status.state == RunState::Zombie => Ok(()),
            Ok(status) => Err(refused(self.pid, &status)),
        }
    }

    /// The process's id.
    pub fn pid(&self) -> Tid {
        self.pid
    }

    /// When the first thread was asked to stop.
    pub fn begin(&self) -> Instant {
        self.begin
    }

    /// The threads. A leader that has exited while others live is not among them.
    pub fn threads(&self) -> &[Stopped] {
        &self.threads
    }

    /// Takes the thread at `index` out, to run it; [`StoppedProcess::put_back`] when it stands still again.
    pub fn take(&mut self, index: usize) -> Stopped {
        self.threads.swap_remove(index)
    }

    /// Puts a thread back that was taken out.
    pub fn put_back(&mut self, thread: Stopped) {
        self.threads.push(thread);
    }

    /// The threads, still standing, and how long they have by now.
    pub fn into_threads(self) -> (Vec<Stopped>, Duration) {
        (self.threads, self.begin.elapsed())
    }

    /// Lets every thread go on. Returns how long the process stood still.
    pub fn release(self) -> Duration {
        let _urgency = Urgency::begin(self.threads.len());
        // The leader is the first; when all were killed, it can be collected only after the others.
        for thread in self.threads.into_iter().rev() {
            // Killed meanwhile: nothing left to do for it.
            let _ = thread.detach();
        }
        self.begin.elapsed()
    }
}

/// How long threads that stand still wait for one that cannot stop, since it has begun to wait for a disk or in `vfork`.
const BLOCKED_TIMEOUT: Duration = Duration::from_millis(300);

/// As [`settle`], but for at most [`BLOCKED_TIMEOUT`] when the thread cannot stop.
fn settle_unless_blocked(
    pid: Tid,
    thread: Running,
    timeout: Duration,
) -> Result<Option<Stopped>, PtraceError> {
    let tid = thread.tid();
    match settle(thread, timeout.min(BLOCKED_TIMEOUT)) {
        Err(PtraceError::Timeout { .. }) if timeout > BLOCKED_TIMEOUT && !is_blocked(pid, tid) => {
            settle(Running::with_event(tid), timeout)
        }
        settled => settled,
    }
}

/// The thread waits in the kernel and takes no signal meanwhile.
fn is_blocked(pid: Tid, tid: Tid) -> bool {
    // Of all files that tell its state the one that the kernel writes fastest: many threads are looked at.
    let text = fs::read(format!("/proc/{pid}/task/{tid}/stat")).unwrap_or_default();
    let name_end = text.iter().rposition(|&byte| byte == b')');
    name_end.is_some_and(|end| text[end..].starts_with(b") D"))
}

/// Waits until an interrupted thread stands still with nothing pending; `None` when it died.
fn settle(thread: Running, timeout: Duration) -> Result<Option<Stopped>, PtraceError> {
    let mut thread = thread;
    loop {
        match thread.wait(timeout)? {
            Waited::Dead(_) => return Ok(None),
            Waited::Stopped(stopped, Stop::Interrupted { .. }) => {
                arch::restart_interrupted_call(&stopped)?;
                return Ok(Some(stopped));
            }
            // The signal is delivered now; the thread stops again before the handler's first instruction.
            Waited::Stopped(stopped, _) => {
                stopped.hide_from_call()?;
                thread = stopped.resume(Resume::Continue)?;
            }
        }
    }
}

/// What can be said before anything is touched.
fn check(pid: Tid) -> Result<Status, StopError> {
    if pid <= 0 {
        return Err(StopError::NoSuchProcess { pid });
    }
    let status = read_status(pid).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => StopError::NoSuchProcess { pid },
        _ => StopError::Proc { pid, source: error },
    })?;
    if status.tgid == std::process::id() as Tid {
        return Err(StopError::Itself { pid });
    }
    // A leader that has exited while other threads live is a zombie without being the end of the process.
    let alone = thread_ids(status.tgid).is_ok_and(|ids| ids.len() <= 1);
    if status.state == RunState::Zombie && alone {
        return Err(StopError::Zombie { pid, name: status.name });
    }
    if !status.has_memory && status.state != RunState::Zombie && is_kernel_thread(pid) {
        return Err(StopError::KernelThread { pid, name: status.name });
    }
    if status.tracer != 0 {
        return Err(refused(pid, &status));
    }
    Ok(status)
}

/// `PF_KTHREAD` in the flags of `/proc/PID/stat`.
fn is_kernel_thread(pid: Tid) -> bool {
    let Ok(text) = fs::read_to_string(format!("/proc/{pid}/stat")) else { return false };
    let flags = text.rsplit(')').next().and_then(|rest| rest.split_whitespace().nth(6)?.parse::<u64>().ok());
    flags.is_some_and(|flags| flags & 0x0020_0000 != 0)
}

fn refused(pid: Tid, status: &Status) -> StopError {
    if status.tracer != 0 {
        // TracerPid is a thread; the process it belongs to is what a user knows.
        let process = read_status(status.tracer).and_then(|tracer| read_status(tracer.tgid));
        let (tracer, tracer_name) =
            process.map_or_else(|_| (status.tracer, "?".to_owned()), |process| (process.tgid, process.name));
        return StopError::AlreadyTraced { pid, tracer, tracer_name };
    }
    StopError::NotPermitted { pid, why: denial(status) }
}

fn denial(target: &Status) -> Denial {
    let ours = read_status(std::process::id() as Tid);
    let our_uid = ours.as_ref().map_or(u32::MAX, |status| status.uids[1]);
    let scope = fs::read_to_string("/proc/sys/kernel/yama/ptrace_scope")
        .ok()
        .and_then(|text| text.trim().parse::<u32>().ok())
        .unwrap_or(0);
    if scope == 3 {
        Denial::Yama { scope }
    } else if target.uids[..3].iter().any(|&uid| uid != our_uid) && our_uid != 0 {
        Denial::OtherUser { target: target.uids[0], ours: our_uid }
    } else if scope > 0 {
        Denial::Yama { scope }
    } else {
        Denial::Other
    }
}

fn stuck(pid: Tid, tid: Tid, waited_ms: u64) -> StopError {
    let state = read_status(tid).map_or('?', |status| status.state_letter);
    let place = fs::read_to_string(format!("/proc/{tid}/wchan")).unwrap_or_default();
    let call = fs::read_to_string(format!("/proc/{tid}/syscall")).unwrap_or_default();
    let place = match place.as_str() {
        _ if is_vfork(&call) => "vfork, until its child executes a program or ends".to_owned(),
        "" | "0" => "?".to_owned(),
        _ => place,
    };
    // It cannot be detached while it runs; that happens when this OS thread ends.
    StopError::Stuck { pid, tid, state, place, waited_ms }
}

/// The call, a line of `/proc/PID/syscall`, waits for a child.
fn is_vfork(call: &str) -> bool {
    let mut words = call.split_whitespace();
    let number = words.next().and_then(|word| word.parse::<i64>().ok());
    let flags = words.next().and_then(|word| i64::from_str_radix(word.trim_start_matches("0x"), 16).ok());
    match number {
        Some(libc::SYS_vfork) => true,
        Some(libc::SYS_clone) => flags.is_some_and(|flags| flags & i64::from(libc::CLONE_VFORK) != 0),
        _ => false,
    }
}
