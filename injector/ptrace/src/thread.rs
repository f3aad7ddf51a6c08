//! One thread under trace: [`Running`] or [`Stopped`], or dead.

use crate::arch;
use crate::request;
use crate::{Registers, Tid};
use std::cell::RefCell;
use std::collections::HashMap;
use std::ffi::c_int;
use std::io;
use std::marker::PhantomData;
use std::time::{Duration, Instant};

/// Why a thread could not be traced further.
#[derive(Debug, thiserror::Error)]
pub enum PtraceError {
    /// The thread is gone, or was never ours.
    #[error("thread {tid} is gone")]
    Gone {
        /// Its id.
        tid: Tid,
    },
    /// The thread did not stop in time.
    #[error("thread {tid} did not stop within {waited_ms} ms")]
    Timeout {
        /// Its id.
        tid: Tid,
        /// How long it was waited for.
        waited_ms: u64,
    },
    /// A request failed.
    #[error("cannot {what} of thread {tid}: {source}")]
    Request {
        /// What was tried.
        what: &'static str,
        /// On which thread.
        tid: Tid,
        /// The kernel's answer.
        source: io::Error,
    },
}

impl PtraceError {
    fn new(what: &'static str, tid: Tid, source: io::Error) -> PtraceError {
        match source.raw_os_error() {
            Some(libc::ESRCH | libc::ECHILD) => PtraceError::Gone { tid },
            _ => PtraceError::Request { what, tid, source },
        }
    }
}

/// How a thread ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Death {
    /// It exited with this status.
    Exited(i32),
    /// This signal killed it.
    Killed(i32),
}

/// What a wait brought.
#[derive(Debug)]
pub enum Waited {
    /// The thread stands still.
    Stopped(Stopped, Stop),
    /// The thread is dead.
    Dead(Death),
}

/// Why a thread stands still.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stop {
    /// Interrupted by us, or in a group stop by the given signal; nothing is pending.
    Interrupted {
        /// `SIGSTOP`, `SIGTSTP`, `SIGTTIN` or `SIGTTOU` when the whole process is stopped by it.
        group: Option<i32>,
    },
    /// At the entry or the exit of a system call.
    Syscall,
    /// About to receive this signal. It is delivered when the thread goes on, unless it is resumed otherwise.
    Signal(i32),
    /// In the new program after `execve`.
    Exec,
    /// Any other `PTRACE_EVENT_*`.
    Event(i32),
}

/// What [`Stopped::follow`] asks for.
const FOLLOW: c_int = libc::PTRACE_O_TRACESYSGOOD
    | libc::PTRACE_O_TRACEFORK
    | libc::PTRACE_O_TRACEVFORK
    | libc::PTRACE_O_TRACECLONE
    | libc::PTRACE_O_TRACEEXEC;

/// What came of stopping a followed thread.
#[derive(Debug)]
pub(crate) enum Settled {
    /// It stands still.
    Stopped(Stopped),
    /// It is dead.
    Ended,
    /// It has executed a program.
    Executes,
}

/// How a stopped thread goes on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Resume {
    /// Until something happens.
    Continue,
    /// Until the next entry or exit of a system call.
    ToSyscall,
    /// Not at all: it stays in its group stop, and reports when that ends.
    Listen,
}

/// The `struct rseq` of a thread, as registered with the kernel.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Rseq {
    /// Its address, 0 = not registered.
    pub address: u64,
    /// Its registered size in bytes.
    pub size: u32,
    /// Signature before an abort handler.
    pub signature: u32,
}

/// How a thread has its system calls dispatched: it gets `SIGSYS` in their place
/// (`Documentation/admin-guide/syscall-user-dispatch.rst`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Dispatch {
    /// First address from which calls are made as always.
    pub start: u64,
    /// Bytes from which they are.
    pub len: u64,
    /// Address of the byte that lets calls through while it is [`Dispatch::ALLOW`]; 0 = there is none.
    pub selector: u64,
}

impl Dispatch {
    /// `SYSCALL_DISPATCH_FILTER_ALLOW`.
    pub const ALLOW: u8 = 0;
}

thread_local! {
    /// Wait statuses of tracees of this OS thread that nobody has asked for yet.
    static EVENTS: RefCell<HashMap<Tid, c_int>> = RefCell::new(HashMap::new());
}

/// A traced thread that runs, or is about to report a stop.
#[derive(Debug)]
pub struct Running {
    tid: Tid,
    /// It was started by us, and is killed rather than let go by accident.
    doomed: bool,
    _not_send: PhantomData<*const ()>,
}

impl Running {
    /// Begins to trace `tid`, which goes on running. System-call stops are told apart from signals.
    ///
    /// # Errors
    /// `EPERM` when this is not allowed or the thread is traced already, `ESRCH` when it is gone.
    pub fn seize(tid: Tid) -> io::Result<Running> {
        request::seize(tid, libc::PTRACE_O_TRACESYSGOOD)?;
        Ok(Running::from_tracee(tid, false))
    }

    /// Begins to trace `tid` with all that it starts: see [`Stopped::follow`].
    ///
    /// # Errors
    /// As for [`Running::seize`].
    pub fn seize_following(tid: Tid) -> io::Result<()> {
        request::seize(tid, FOLLOW)
    }

    /// A tracee of this OS thread about which [`next_event`] has something to tell.
    pub fn with_event(tid: Tid) -> Running {
        Running { tid, doomed: false, _not_send: PhantomData }
    }

    pub(crate) fn from_tracee(tid: Tid, doomed: bool) -> Running {
        // A status left over from an earlier life of this id says nothing about the new one.
        EVENTS.with_borrow_mut(|events| events.remove(&tid));
        Running { tid, doomed, _not_send: PhantomData }
    }

    /// The thread's id.
    pub fn tid(&self) -> Tid {
        self.tid
    }

    /// Asks the thread to stop; [`Running::wait`] tells when it has.
    ///
    /// # Errors
    /// [`PtraceError::Gone`] when it is dead.
    pub fn interrupt(&self) -> Result<(), PtraceError> {
        request::interrupt(self.tid).map_err(|error| PtraceError::new("stop", self.tid, error))
    }

    /// Waits until the thread stops or is dead, for at most `timeout`.
    ///
    /// # Errors
    /// [`PtraceError::Timeout`]; the thread then runs on under trace until this OS thread ends.
    pub fn wait(self, timeout: Duration) -> Result<Waited, PtraceError> {
        let status = wait_status(self.tid, timeout)?;
        if libc::WIFEXITED(status) {
            return Ok(Waited::Dead(Death::Exited(libc::WEXITSTATUS(status))));
        }
        if libc::WIFSIGNALED(status) {
            return Ok(Waited::Dead(Death::Killed(libc::WTERMSIG(status))));
        }
        let (thread, stop) = self.stopped(status);
        Ok(Waited::Stopped(thread, stop))
    }

    /// The thread of a wait status that tells of a stop.
    fn stopped(&self, status: c_int) -> (Stopped, Stop) {
        let stop = classify(status);
        let pending = if let Stop::Signal(signal) = stop { signal } else { 0 };
        let group_stop = matches!(stop, Stop::Interrupted { group: Some(_) });
        let tid = self.tid;
        let doomed = self.doomed;
        let registers = RefCell::default();
        (
            Stopped { tid, doomed, pending, group_stop, attached: true, registers, _not_send: PhantomData },
            stop,
        )
    }

    /// Waits until a followed thread that was interrupted stands still with nothing pending. That it has executed a program, or
    /// is dead, is left for [`next_event`].
    pub(crate) fn settle_followed(self, timeout: Duration) -> Result<Settled, PtraceError> {
        let mut thread = self;
        loop {
            let status = wait_status(thread.tid, timeout)?;
            let dead = !libc::WIFSTOPPED(status);
            if dead || classify(status) == Stop::Exec {
                EVENTS.with_borrow_mut(|events| events.insert(thread.tid, status));
                return Ok(if dead { Settled::Ended } else { Settled::Executes });
            }
            match thread.stopped(status) {
                (stopped, Stop::Interrupted { .. }) => {
                    arch::restart_interrupted_call(&stopped)?;
                    return Ok(Settled::Stopped(stopped));
                }
                (stopped, _) => {
                    stopped.hide_from_call()?;
                    thread = stopped.resume(Resume::Continue)?;
                }
            }
        }
    }
}

fn classify(status: c_int) -> Stop {
    let signal = libc::WSTOPSIG(status);
    match status >> 16 {
        request::EVENT_STOP => Stop::Interrupted { group: (signal != libc::SIGTRAP).then_some(signal) },
        libc::PTRACE_EVENT_EXEC => Stop::Exec,
        0 if signal == libc::SIGTRAP | 0x80 => Stop::Syscall,
        0 => Stop::Signal(signal),
        event => Stop::Event(event),
    }
}

/// The next status of `tid`. Statuses of others are kept: a leader is reported dead only after its threads have been
/// collected, so waiting for one id alone can block for ever.
fn wait_status(tid: Tid, timeout: Duration) -> Result<c_int, PtraceError> {
    /// The kernel finds one tracee at once, but goes through all of them to find any: that is done less often.
    const LOOKS_AT_ONE: u32 = 8;
    request::sleep_exactly();
    let begin = Instant::now();
    let mut looks = 0;
    loop {
        if let Some(status) = EVENTS.with_borrow_mut(|events| events.remove(&tid)) {
            return Ok(status);
        }
        looks += 1;
        match request::wait_for(tid) {
            Ok(Some(status)) => return Ok(status),
            Ok(None) if looks % LOOKS_AT_ONE != 0 => {}
            Ok(None) | Err(_) => match request::wait_any() {
                Ok(Some((who, status))) => {
                    EVENTS.with_borrow_mut(|events| events.insert(who, status));
                    continue;
                }
                Ok(None) => {}
                Err(error) if error.raw_os_error() == Some(libc::EINTR) => continue,
                Err(error) => return Err(PtraceError::new("wait for a stop", tid, error)),
            },
        }
        let waited = begin.elapsed();
        if waited > timeout {
            return Err(PtraceError::Timeout { tid, waited_ms: waited.as_millis() as u64 });
        }
        relax(waited);
    }
}

/// Waits until a tracee or child of this OS thread has stopped or ended; none when there is nobody left.
///
/// # Errors
/// When the kernel does not let us wait.
pub fn next_event() -> io::Result<Option<Tid>> {
    loop {
        if let Some(tid) = EVENTS.with_borrow(|events| events.keys().next().copied()) {
            return Ok(Some(tid));
        }
        match request::wait_for_any() {
            Ok((tid, status)) => EVENTS.with_borrow_mut(|events| events.insert(tid, status)),
            Err(error) if error.raw_os_error() == Some(libc::EINTR) => continue,
            Err(error) if error.raw_os_error() == Some(libc::ECHILD) => return Ok(None),
            Err(error) => return Err(error),
        };
    }
}

/// A tracee with an event that was seen and that nobody has asked for.
pub(crate) fn next_known_event() -> Option<Tid> {
    EVENTS.with_borrow(|events| events.keys().next().copied())
}

/// Waits for an event; whether there will ever be one, none when a signal came.
pub(crate) fn wait_interruptibly() -> io::Result<Option<bool>> {
    match request::wait_for_any() {
        Ok((tid, status)) => {
            EVENTS.with_borrow_mut(|events| events.insert(tid, status));
            Ok(Some(true))
        }
        Err(error) if error.raw_os_error() == Some(libc::EINTR) => Ok(None),
        Err(error) if error.raw_os_error() == Some(libc::ECHILD) => Ok(Some(false)),
        Err(error) => Err(error),
    }
}

/// A tracee on another CPU mostly stops within microseconds. One that wants ours gets it when we sleep; yielding would
/// put us behind everybody else on a busy machine.
fn relax(waited: Duration) {
    if waited < Duration::from_micros(15) {
        std::hint::spin_loop();
    } else {
        std::thread::sleep((waited / 8).clamp(Duration::from_micros(5), Duration::from_millis(1)));
    }
}

/// A traced thread that stands still. Dropping it detaches it; one that [`spawn`](crate::spawn()) started is killed
/// instead, because what it was started for has failed.
#[derive(Debug)]
pub struct Stopped {
    tid: Tid,
    doomed: bool,
    /// Signal that is delivered when the thread goes on, 0 = none.
    pending: i32,
    /// The whole process is stopped by a signal.
    group_stop: bool,
    attached: bool,
    /// Its registers, where they were asked for: they stay as they are while it stands still.
    registers: RefCell<Option<Box<Registers>>>,
    _not_send: PhantomData<*const ()>,
}

impl Stopped {
    /// The thread's id.
    pub fn tid(&self) -> Tid {
        self.tid
    }

    /// The whole process was stopped by a signal when the thread stopped.
    pub fn is_in_group_stop(&self) -> bool {
        self.group_stop
    }

    /// Its general registers.
    ///
    /// # Errors
    /// [`PtraceError::Gone`] when it was killed meanwhile.
    pub fn registers(&self) -> Result<Registers, PtraceError> {
        let registers = request::registers(self.tid)
            .map_err(|error| PtraceError::new("read registers", self.tid, error))?;
        self.registers.replace(Some(Box::new(registers)));
        Ok(registers)
    }

    /// The same, from memory when they were read or replaced before: they do not change while it stands still.
    ///
    /// # Errors
    /// [`PtraceError::Gone`] when it was killed meanwhile; not noticed when they are known.
    pub fn known_registers(&self) -> Result<Registers, PtraceError> {
        let known = self.registers.borrow().as_deref().copied();
        known.map_or_else(|| self.registers(), Ok)
    }

    /// Replaces its general registers.
    ///
    /// # Errors
    /// [`PtraceError::Gone`] when it was killed meanwhile; `EIO` for values that user mode may not have.
    pub fn set_registers(&self, registers: &Registers) -> Result<(), PtraceError> {
        self.registers.replace(None);
        request::set_registers(self.tid, registers)
            .map_err(|error| PtraceError::new("write registers", self.tid, error))?;
        self.registers.replace(Some(Box::new(*registers)));
        Ok(())
    }

    /// The signals it blocks, bit n - 1 for signal n. In a call like `ppoll` the mask that holds afterwards.
    ///
    /// # Errors
    /// [`PtraceError::Gone`] when it was killed meanwhile.
    pub fn signal_mask(&self) -> Result<u64, PtraceError> {
        request::signal_mask(self.tid)
            .map_err(|error| PtraceError::new("read the signal mask", self.tid, error))
    }

    /// Replaces the signals it blocks.
    ///
    /// # Errors
    /// [`PtraceError::Gone`] when it was killed meanwhile.
    pub fn set_signal_mask(&self, mask: u64) -> Result<(), PtraceError> {
        request::set_signal_mask(self.tid, mask)
            .map_err(|error| PtraceError::new("write the signal mask", self.tid, error))
    }

    /// Its registered `struct rseq`; none on kernels before 5.13, which do not tell.
    ///
    /// # Errors
    /// [`PtraceError::Gone`] when it was killed meanwhile.
    pub fn rseq(&self) -> Result<Option<Rseq>, PtraceError> {
        match request::rseq(self.tid) {
            Ok(found) if found.pointer == 0 => Ok(None),
            Ok(found) => {
                Ok(Some(Rseq { address: found.pointer, size: found.size, signature: found.signature }))
            }
            Err(error) if error.raw_os_error() == Some(libc::EIO) => Ok(None),
            Err(error) => Err(PtraceError::new("find struct rseq", self.tid, error)),
        }
    }

    /// How it has its system calls dispatched; none when it has not, and on kernels before 6.4, which do not tell.
    ///
    /// # Errors
    /// [`PtraceError::Gone`] when it was killed meanwhile.
    pub fn dispatch(&self) -> Result<Option<Dispatch>, PtraceError> {
        match request::dispatch(self.tid) {
            Ok(found) if found.mode == 0 => Ok(None),
            Ok(found) => Ok(Some(Dispatch { start: found.offset, len: found.len, selector: found.selector })),
            Err(error) if error.raw_os_error() == Some(libc::EIO) => Ok(None),
            Err(error) => Err(PtraceError::new("find the dispatch of system calls", self.tid, error)),
        }
    }

    /// Has its system calls dispatched like this, or not at all.
    ///
    /// # Errors
    /// [`PtraceError::Request`] with `EIO` on kernels before 6.4; [`PtraceError::Gone`] when it was killed meanwhile.
    pub fn set_dispatch(&self, how: Option<Dispatch>) -> Result<(), PtraceError> {
        let configuration = how.map_or_else(request::DispatchConfiguration::default, |how| {
            let Dispatch { start, len, selector } = how;
            request::DispatchConfiguration { mode: 1, selector, offset: start, len }
        });
        let set = request::set_dispatch(self.tid, configuration);
        set.map_err(|error| PtraceError::new("set the dispatch of system calls", self.tid, error))
    }

    /// Its seccomp filter number `index`, the newest first: the instructions (`struct sock_filter`) as little-endian words.
    /// None when it has no such filter.
    ///
    /// # Errors
    /// [`PtraceError::Request`] without `CAP_SYS_ADMIN`, also when there is no filter.
    pub fn seccomp_filter(&self, index: usize) -> Result<Option<Vec<u64>>, PtraceError> {
        match request::seccomp_filter(self.tid, index) {
            Ok(filter) => Ok(Some(filter)),
            // No such filter; not in filter mode.
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::EINVAL)) => Ok(None),
            Err(error) => Err(PtraceError::new("read the seccomp filter", self.tid, error)),
        }
    }

    /// Switches the thread's seccomp filter off while it is traced.
    ///
    /// # Errors
    /// `EPERM` without `CAP_SYS_ADMIN`, or when the tracer has a filter itself.
    pub fn suspend_seccomp(&self, on: bool) -> Result<(), PtraceError> {
        const SUSPEND_SECCOMP: i32 = 1 << 21;
        let options = libc::PTRACE_O_TRACESYSGOOD | if on { SUSPEND_SECCOMP } else { 0 };
        request::set_options(self.tid, options)
            .map_err(|error| PtraceError::new("suspend the seccomp filter", self.tid, error))
    }

    /// From now on it is for us to see when the thread meets an `int3`: a breakpoint of ours. Else its signal is the thread's own.
    pub fn see_breakpoints(&self, sees: bool) {
        request::see_breakpoints(self.tid, sees);
    }

    /// The signal that would be delivered when the thread goes on was sent by somebody: no instruction of the thread has raised it.
    pub fn signal_was_sent(&self) -> bool {
        request::signal_was_sent(self.tid)
    }

    /// Forgets the signal that would be delivered when the thread goes on; it is returned, to be sent again later.
    pub fn take_signal(&mut self) -> Option<i32> {
        (self.pending != 0).then(|| std::mem::take(&mut self.pending))
    }

    /// From now on the threads and processes that it starts are traced as it is, and stop first thing; so does whoever
    /// executes a program. Every such event stops the thread that caused it, too ([`Stop::Event`], [`Stop::Exec`]). A thread
    /// that was started by us is not killed any more when it is dropped.
    ///
    /// # Errors
    /// [`PtraceError::Gone`] when it was killed meanwhile.
    pub fn follow(&mut self) -> Result<(), PtraceError> {
        request::set_options(self.tid, FOLLOW)
            .map_err(|error| PtraceError::new("follow the children", self.tid, error))?;
        self.doomed = false;
        Ok(())
    }

    /// Asks for another stop as soon as the thread goes on, before it executes anything in user mode.
    ///
    /// # Errors
    /// [`PtraceError::Gone`] when it was killed meanwhile.
    pub fn interrupt_next(&self) -> Result<(), PtraceError> {
        request::interrupt(self.tid).map_err(|error| PtraceError::new("stop", self.tid, error))
    }

    /// Has the kernel make the system call again that the stop has interrupted, unless a handler runs now. A signal that the
    /// thread ignores interrupts it only because it is traced.
    ///
    /// # Errors
    /// [`PtraceError::Gone`] when it was killed meanwhile.
    pub fn hide_from_call(&self) -> Result<(), PtraceError> {
        arch::restart_interrupted_call(self)
    }

    /// Lets the thread go on under trace, delivering a pending signal.
    ///
    /// # Errors
    /// [`PtraceError::Gone`] when it was killed meanwhile.
    pub fn resume(mut self, how: Resume) -> Result<Running, PtraceError> {
        let request = match how {
            Resume::Continue => libc::PTRACE_CONT,
            Resume::ToSyscall => libc::PTRACE_SYSCALL,
            Resume::Listen => libc::PTRACE_LISTEN,
        };
        self.attached = false;
        request::go_on(request, self.tid, self.pending)
            .map_err(|error| PtraceError::new("resume", self.tid, error))?;
        Ok(Running::from_tracee(self.tid, self.doomed))
    }

    /// Ends tracing: the thread goes on, or back into the group stop in which it was found.
    ///
    /// # Errors
    /// [`PtraceError::Gone`] when it was killed meanwhile.
    pub fn detach(mut self) -> Result<(), PtraceError> {
        self.attached = false;
        detach(self.tid, self.pending)
    }
}

/// Detaches a stopped thread. A dead one is collected instead: until then it counts as traced.
fn detach(tid: Tid, signal: i32) -> Result<(), PtraceError> {
    request::go_on(libc::PTRACE_DETACH, tid, signal).map_err(|error| {
        let error = PtraceError::new("detach", tid, error);
        if let PtraceError::Gone { .. } = error {
            let _ = wait_status(tid, COLLECT_TIMEOUT);
        }
        error
    })
}

/// How long a killed thread may take to become collectable; a leader waits for its threads.
const COLLECT_TIMEOUT: Duration = Duration::from_millis(50);

impl Drop for Stopped {
    fn drop(&mut self) {
        if self.attached {
            if self.doomed {
                request::kill(self.tid);
            }
            // The only failure is that the thread is dead, which is no concern of ours any more.
            let _ = detach(self.tid, self.pending);
        }
    }
}
