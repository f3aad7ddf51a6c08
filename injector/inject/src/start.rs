//! Runs a program with probes in it from the beginning.
//!
//! ```text
//! execve ─▶ stopped before the first instruction; where system calls are traced, those of the loader are from here on (`early`)
//!   dynamic:  run to the loader's debugger hook, all libraries mapped and relocated, no constructor run
//!   static:   run to where the C library has set up thread pointers, or to the entry point
//! ─▶ attach as to any process ─▶ let go
//! ```

use crate::attach::{Failure, Prepared};
use crate::bell::FollowerBell;
use crate::early::{self, Early};
use crate::error::TargetRefused;
use crate::files::MappedFiles;
use crate::follow::PASSED_ON;
use crate::generation::Generation;
use crate::report::AttachReport;
use crate::request::Request;
use crate::target::{self, remote};
use crate::tracer;
use beeline_ptrace::{
    Command, Death, PtraceError, Registers, Resume, SpawnError, Stop, StopError, StopOptions, Stopped,
    StoppedProcess, Waited, spawn,
};
use beeline_remote::{Process, RemoteError};
use beeline_site::Binary;
use iced_x86::{Decoder, DecoderOptions, Mnemonic};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, SigmaskHow, Signal, kill};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use std::cell::Cell;
use std::env;
use std::ffi::OsString;
use std::io;
use std::marker::PhantomData;
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long a program may take to its first instruction of interest. Libraries come from slow disks.
const LOAD_TIMEOUT: Duration = Duration::from_secs(120);
/// How often an attempt is made again.
const ATTEMPTS_MAX: usize = 8;

/// A program to start.
#[derive(Clone, Debug)]
pub struct StartCommand {
    /// Its file; searched in `PATH` when it has no slash.
    pub program: PathBuf,
    /// Its arguments, without its own name.
    pub arguments: Vec<OsString>,
    /// Its whole environment; none for ours.
    pub environment: Option<Vec<(OsString, OsString)>>,
}

/// A program that runs with probes in it. It is our child and no longer traced. While this lives, the calling OS thread blocks the
/// signals that [`Started::wait`] passes on: one that comes as soon as the program runs is not lost.
#[derive(Debug)]
pub struct Started {
    /// Its process id.
    pub pid: i32,
    /// What was put into it.
    pub report: AttachReport,
    _held: HeldSignals,
}

/// The signals of [`PASSED_ON`] are blocked in this OS thread; afterwards its mask is as it was.
#[derive(Debug)]
struct HeldSignals {
    before: SigSet,
    _of_this_thread: PhantomData<*const ()>,
}

impl HeldSignals {
    fn hold() -> io::Result<HeldSignals> {
        let signals: SigSet = PASSED_ON.into_iter().collect();
        let before = signals.thread_swap_mask(SigmaskHow::SIG_BLOCK)?;
        Ok(HeldSignals { before, _of_this_thread: PhantomData })
    }
}

impl Drop for HeldSignals {
    fn drop(&mut self) {
        let _ = self.before.thread_set_mask();
    }
}

/// How a program ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ended {
    /// With this exit status.
    Exited(i32),
    /// Killed by this signal.
    Killed(i32),
}

impl Ended {
    /// What a shell makes of it: 128 + signal for a killed program.
    pub fn exit_code(self) -> i32 {
        match self {
            Ended::Exited(status) => status,
            Ended::Killed(signal) => 128 + signal,
        }
    }
}

/// Starts a program with the request's probes in it.
///
/// # Errors
/// [`TargetRefused`]; nothing is left running then.
pub fn start(command: &StartCommand, request: &Request) -> Result<Started, TargetRefused> {
    let failed = |source| TargetRefused::System { what: "block signals", source };
    let held = HeldSignals::hold().map_err(failed)?;
    let before = held.before;
    let (pid, report) = tracer::run(move || {
        // The program has our mask as it was; from when it runs on the signals are for whoever passes them on.
        let _ = before.thread_set_mask();
        let (stopped, report) = begin(command, request, None)?;
        let _ = PASSED_ON.into_iter().collect::<SigSet>().thread_block();
        let pid = stopped.tid();
        // Killed meanwhile: whoever waits for it finds out.
        let _ = stopped.detach();
        Ok::<_, TargetRefused>((pid, report))
    })?;
    Ok(Started { pid, report, _held: held })
}

/// Starts a program; its only thread stands before the first instruction of interest, with the probes in place. The calling
/// OS thread is the tracer.
pub(crate) fn begin(
    command: &StartCommand,
    request: &Request,
    bell: Option<&FollowerBell>,
) -> Result<(Stopped, AttachReport), TargetRefused> {
    let path = find_program(command)?;
    refuse_set_id(&path)?;
    let mut arguments = vec![command.program.clone().into_os_string()];
    arguments.extend(command.arguments.iter().cloned());
    let environment = command.environment.clone().unwrap_or_else(|| env::vars_os().collect());
    let command = Command { path, arguments, environment };
    let stopped = spawn(&command).map_err(|error| not_started(&command.path, error))?;
    let pid = stopped.tid();
    let result = place(&command.path, request, stopped, bell, Completeness::Needed).and_then(
        |(report, mut threads)| {
            // A new program has one thread.
            let only = threads.pop().ok_or(StopError::Died { pid, how: None })?;
            Ok((only, report))
        },
    );
    if result.is_err() {
        // It has done nothing yet, and does not run without what it was started for. Mostly it is killed already.
        let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        let _ = waitpid(Pid::from_raw(pid), Some(WaitPidFlag::__WALL));
    }
    result
}

impl Started {
    /// Waits for the program's end. Signals that are sent to us meanwhile are passed on to it; those from the
    /// terminal reach it anyway.
    ///
    /// # Errors
    /// When it cannot be waited for.
    pub fn wait(self) -> io::Result<Ended> {
        self.wait_with(&PASSED_ON.into_iter().collect())
    }

    fn wait_with(&self, signals: &SigSet) -> io::Result<Ended> {
        let pid = Pid::from_raw(self.pid);
        let target = rustix::process::Pid::from_raw(self.pid).ok_or(io::ErrorKind::InvalidInput)?;
        let target = rustix::process::pidfd_open(target, rustix::process::PidfdFlags::empty())?;
        let arrived = SignalFd::with_flags(signals, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
        loop {
            match waitpid(pid, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Exited(_, status)) => return Ok(Ended::Exited(status)),
                Ok(WaitStatus::Signaled(_, signal, _)) => return Ok(Ended::Killed(signal as i32)),
                Ok(_) | Err(nix::Error::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
            let mut ready = [
                PollFd::new(target.as_fd(), PollFlags::POLLIN),
                PollFd::new(arrived.as_fd(), PollFlags::POLLIN),
            ];
            match poll(&mut ready, PollTimeout::NONE) {
                Ok(_) | Err(nix::Error::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
            while let Some(info) = arrived.read_signal()? {
                pass_on(pid, info.ssi_signo, info.ssi_code);
            }
        }
    }
}

/// Sends the program a signal that somebody sent us.
pub(crate) fn pass_on(pid: Pid, signal: u32, code: i32) {
    /// `si_code` of a signal that the kernel sent, for the terminal.
    const SI_KERNEL: i32 = 0x80;
    if code != SI_KERNEL {
        // It may just have ended.
        let _ = kill(pid, Signal::try_from(signal as i32).ok());
    }
}

/// What becomes of a program whose calls cannot all be traced as the request wants it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Completeness {
    /// It is refused: it is the one that was asked for.
    Needed,
    /// It gets what is possible.
    IfPossible,
}

/// Puts the request's probes into a program that stands before its first instruction. Its threads stand before its first
/// instruction of interest then: one, unless a constructor of the loader's made more.
pub(crate) fn place(
    path: &Path,
    request: &Request,
    stopped: Stopped,
    bell: Option<&FollowerBell>,
    completeness: Completeness,
) -> Result<(AttachReport, Vec<Stopped>), TargetRefused> {
    let (stopped, early) = load(path, request, stopped)?;
    let (report, stopped) = put_in(request, stopped, bell, completeness)?;
    let mut report = match early {
        Some(early) => early.and_then(report),
        None => report,
    };
    let (threads, time) = stopped.into_threads();
    report.stopped = time;
    Ok((report, threads))
}

/// Attaches to a program that stands still, and goes on standing.
fn put_in(
    request: &Request,
    stopped: Stopped,
    bell: Option<&FollowerBell>,
    completeness: Completeness,
) -> Result<(AttachReport, StoppedProcess), TargetRefused> {
    let mut stopped = StoppedProcess::around(stopped, StopOptions::default())?;
    let process = target::open_traced(stopped.pid())?;
    let mut key = None;
    let mut not_complete = None;
    for _ in 0..ATTEMPTS_MAX {
        let prepared = Prepared::new(&process, request, key)?.followed_by(bell);
        let prepared = prepared.without_made_code(not_complete.as_ref());
        let report = |planned: &_, threads| AttachReport {
            not_complete: not_complete.clone(),
            ..prepared.report(planned, threads, Duration::ZERO)
        };
        let mut planned = match prepared.plan() {
            Err(TargetRefused::NotComplete { reason, .. }) if completeness == Completeness::IfPossible => {
                not_complete = Some(reason);
                continue;
            }
            other => other?,
        };
        let threads = stopped.threads().len();
        if prepared.is_empty(&planned) {
            return Ok((report(&planned, threads), stopped));
        }
        let generation = Generation::build(prepared.ingredients(), &mut planned)?;
        match prepared.apply(&mut planned, generation, &mut stopped) {
            Ok(()) => return Ok((report(&planned, threads), stopped)),
            Err(Failure::OtherKey(other)) => key = Some(other),
            Err(Failure::Again | Failure::InTheWay) => {}
            Err(Failure::Refused(TargetRefused::NotComplete { reason, .. }))
                if completeness == Completeness::IfPossible =>
            {
                not_complete = Some(reason);
            }
            Err(Failure::Refused(reason)) => return Err(reason),
        }
    }
    Err(TargetRefused::NoRoom { pid: process.pid(), what: "our mappings".to_owned() })
}

/// Runs a new program to where its libraries are there and nothing of its own has run.
fn load(path: &Path, request: &Request, stopped: Stopped) -> Result<(Stopped, Option<Early>), TargetRefused> {
    let process = target::open_traced(stopped.tid())?;
    target::refuse_translated(&process)?;
    let maps = process.maps().map_err(|error| remote(process.pid(), error))?;
    let files = MappedFiles::of(&maps);
    let program = target::executable(&process, &maps, &files);
    let hook = loader_hook(&process, &files);
    let mut loading = Loading { process: &process, path, stopped_by: Cell::new(None), early: None };
    let mut thread = stopped;
    if !request.system_calls.is_empty() {
        let executed = thread.registers().map_err(|error| loading.failed(error.into()))?;
        // The agent is started by a thread that is in no system call, not at the end of execve either.
        thread = loading.interrupted(thread)?;
        (thread, loading.early) = early::put_in(request, thread, &executed)?;
    }
    let thread = loading.run(thread, program, &files, hook)?;
    if let Some(signal) = loading.stopped_by.get() {
        // It was to stop on its way; it does when it goes on.
        let _ = kill(Pid::from_raw(process.pid()), Signal::try_from(signal).ok());
    }
    Ok((thread, loading.early))
}

impl Loading<'_> {
    fn run(
        &self,
        stopped: Stopped,
        program: Option<&Binary>,
        files: &MappedFiles,
        hook: Option<LoaderHook>,
    ) -> Result<Stopped, TargetRefused> {
        let process = self.process;
        let mut thread = stopped;
        if let Some(hook) = &hook
            && hook.has_room(process)
        {
            return self.run_to_return(thread, hook);
        }
        if let Some(hook) = hook {
            loop {
                thread = self.run_to(thread, hook.address)?;
                if hook.is_consistent(process) {
                    return Ok(thread);
                }
                thread = self.finish_function(thread)?;
            }
        }
        let ready = program.and_then(|program| thread_pointers_ready(process, files, program));
        let entry = process.auxiliary(AT_ENTRY).map_err(|error| remote(process.pid(), error))?;
        match (ready.or(entry), program) {
            (Some(address), _) if ready.is_some() || self.early.is_none() => self.run_to(thread, address),
            (_, Some(program)) => {
                let makes = |number: i64| {
                    let mut sites = program.system_calls().sites.iter();
                    sites.any(|site| site.number.is_some_and(|it| i64::from(it) == number))
                };
                match (makes(libc::SYS_rseq), makes(libc::SYS_arch_prctl)) {
                    (true, _) => self.run_through_set_up(thread, true),
                    (_, true) => self.run_through_set_up(thread, false),
                    _ => Ok(thread),
                }
            }
            _ => Ok(thread),
        }
    }
}

/// `AT_BASE`: where the loader is; `AT_ENTRY`: where the program begins.
const AT_BASE: u64 = 7;
pub(crate) const AT_ENTRY: u64 = 9;

/// A function that the loader calls when the list of libraries changes.
#[derive(Debug)]
pub(crate) struct LoaderHook {
    pub(crate) address: u64,
    /// `struct r_debug`, where its address is known.
    state: Option<u64>,
}

/// What is put over a function that only returns: a system call that does nothing, at which a tracer can stop it. If the tracer
/// is killed before it has put the original back, the function still only returns.
const PAUSE: [u8; 8] = [0xb8, libc::SYS_getpid as u8, 0, 0, 0, 0x0f, 0x05, 0xc3]; // mov $getpid,%eax; syscall; ret
/// Where its system call ends.
const PAUSE_CALL_END: u64 = 7;

impl LoaderHook {
    /// It is a function that only returns, [`PAUSE`] fits over it and the padding behind it, and no filter can object.
    fn has_room(&self, process: &Process) -> bool {
        const ALIGNED: u64 = 16;
        let Ok(bytes) = process.memory().read_array::<{ ALIGNED as usize }>(self.address) else {
            return false;
        };
        let mut decoder = Decoder::with_ip(64, &bytes, self.address, DecoderOptions::NONE);
        let mut returned = false;
        while decoder.position() < PAUSE.len() {
            let mnemonic = decoder.decode().mnemonic();
            match mnemonic {
                Mnemonic::Endbr64 if !returned => {}
                Mnemonic::Ret if !returned => returned = true,
                Mnemonic::Nop | Mnemonic::Int3 if returned => {}
                _ => return false,
            }
        }
        returned && self.address.is_multiple_of(ALIGNED) && process.seccomp().is_ok_and(|mode| mode == 0)
    }

    /// All libraries are there (`RT_CONSISTENT`). musl calls the hook only then.
    pub(crate) fn is_consistent(&self, process: &Process) -> bool {
        // r_version, r_map, r_brk, r_state.
        const R_STATE: u64 = 24;
        self.state
            .is_none_or(|debug| process.memory().read_u32(debug + R_STATE).is_ok_and(|state| state == 0))
    }
}

/// The loader's hook of a process that has a loader.
pub(crate) fn loader_hook(process: &Process, files: &MappedFiles) -> Option<LoaderHook> {
    let base = process.auxiliary(AT_BASE).ok()?.filter(|&base| base != 0)?;
    let file = files
        .iter()
        .find(|file| file.mappings.iter().any(|mapping| mapping.start - mapping.offset == base))?;
    let binary = file.binary(process).ok()?;
    let symbol = |name: &str| Some(base + binary.symbols().named(name).pop()?.vaddr);
    let address = ["_dl_debug_state", "dl_debug_state"].into_iter().find_map(symbol)?;
    Some(LoaderHook { address, state: binary.variable("_r_debug").map(|vaddr| base + vaddr) })
}

/// In a static program: the first function of the C library that runs when thread pointers are set up, and before any
/// constructor.
fn thread_pointers_ready(process: &Process, files: &MappedFiles, program: &Binary) -> Option<u64> {
    if program.is_go() || program.interpreter().is_some() {
        return None;
    }
    let entry = process.auxiliary(AT_ENTRY).ok()??;
    files.at(entry)?;
    let base = entry.wrapping_sub(program.entry());
    // glibc, then musl.
    let symbol = |name: &str| Some(base.wrapping_add(program.symbols().named(name).pop()?.vaddr));
    ["__libc_init_first", "libc_start_main_stage2", "__libc_start_init"].into_iter().find_map(symbol)
}

/// A program on its way to its first instruction of interest.
struct Loading<'a> {
    process: &'a Process,
    path: &'a Path,
    /// The signal that stopped the whole process on its way, unless it was continued since.
    stopped_by: Cell<Option<i32>>,
    /// What was put in before its first instruction.
    early: Option<Early>,
}

impl Loading<'_> {
    /// Runs to `address`.
    fn run_to(&self, thread: Stopped, address: u64) -> Result<Stopped, TargetRefused> {
        const BREAKPOINT: [u8; 1] = [0xcc];
        let memory = self.process.memory();
        let original = memory.read_array::<1>(address).map_err(|error| self.failed(error))?;
        memory.write(address, &BREAKPOINT).map_err(|error| self.failed(error))?;
        let mut thread = thread;
        thread.see_breakpoints(true);
        loop {
            let how = if self.early.is_some() { Resume::ToSyscall } else { Resume::Continue };
            let (mut now, stop) = self.go_on(thread, how)?;
            let registers = now.registers().map_err(|error| self.failed(error.into()))?;
            if stop == Stop::Signal(libc::SIGTRAP) && registers.rip == address + 1 {
                now.take_signal();
                now.see_breakpoints(false);
                memory.write(address, &original).map_err(|error| self.failed(error))?;
                let back = Registers { rip: address, orig_rax: u64::MAX, ..registers };
                now.set_registers(&back).map_err(|error| self.failed(error.into()))?;
                return Ok(now);
            }
            thread = now;
        }
    }

    /// Runs to the hook's call after which all libraries are there; or to where the loader has them all and begins to relocate.
    /// They make system calls before it calls the hook.
    fn run_to_return(&self, thread: Stopped, hook: &LoaderHook) -> Result<Stopped, TargetRefused> {
        let failed = |error: PtraceError| self.failed(error.into());
        let memory = self.process.memory();
        let original =
            memory.read_array::<{ PAUSE.len() }>(hook.address).map_err(|error| self.failed(error))?;
        memory.write(hook.address, &PAUSE).map_err(|error| self.failed(error))?;
        let mut thread = thread;
        loop {
            let (now, stop) = self.go_on(thread, Resume::ToSyscall)?;
            thread = now;
            let registers = thread.registers().map_err(failed)?;
            if stop == Stop::Syscall && self.early.as_ref().is_some_and(|early| early.relocates(&registers)) {
                memory.write(hook.address, &original).map_err(|error| self.failed(error))?;
                return self.interrupted(thread);
            }
            if stop != Stop::Syscall || registers.rip != hook.address + PAUSE_CALL_END {
                continue;
            }
            let last = hook.is_consistent(self.process);
            // From the entry of the call to its end.
            loop {
                let (now, stop) = self.go_on(thread, Resume::ToSyscall)?;
                thread = now;
                if stop == Stop::Syscall {
                    break;
                }
            }
            if last {
                break;
            }
        }
        // First the thread, then the bytes: if we are killed in between, it makes the call once more.
        let registers = thread.registers().map_err(failed)?;
        let back = Registers { rip: hook.address, orig_rax: u64::MAX, ..registers };
        thread.set_registers(&back).map_err(failed)?;
        memory.write(hook.address, &original).map_err(|error| self.failed(error))?;
        // Before the function's own first instruction.
        self.interrupted(thread)
    }

    /// To where a static program without symbols has its thread pointer; with a C library that makes further calls for its threads,
    /// and always some more, to the first of those.
    fn run_through_set_up(&self, thread: Stopped, makes_more: bool) -> Result<Stopped, TargetRefused> {
        const OF_THREADS: [i64; 4] =
            [libc::SYS_arch_prctl, libc::SYS_set_tid_address, libc::SYS_set_robust_list, libc::SYS_rseq];
        let mut thread = thread;
        loop {
            let (now, stop) = self.go_on(thread, Resume::ToSyscall)?;
            thread = now;
            let registers = thread.registers().map_err(|error| self.failed(error.into()))?;
            let own = self.early.as_ref().is_some_and(|early| early.is_agent(registers.rip));
            let number = registers.orig_rax as i64;
            let is_over = match makes_more {
                true => number >= 0 && !OF_THREADS.contains(&number),
                false => number == libc::SYS_arch_prctl,
            };
            if stop == Stop::Syscall && registers.fs_base != 0 && is_over && !own {
                return self.interrupted(thread);
            }
        }
    }

    /// To a stop outside of a system call, before anything else is executed.
    fn interrupted(&self, thread: Stopped) -> Result<Stopped, TargetRefused> {
        thread.interrupt_next().map_err(|error| self.failed(error.into()))?;
        let mut thread = thread;
        loop {
            // Any other stop would take this one's place.
            let (now, stop) = self.go_on(thread, Resume::Continue)?;
            thread = now;
            if matches!(stop, Stop::Interrupted { .. }) {
                return Ok(thread);
            }
        }
    }

    /// From the first instruction of a function to behind its call.
    fn finish_function(&self, thread: Stopped) -> Result<Stopped, TargetRefused> {
        let sp = thread.registers().map_err(|error| self.failed(error.into()))?.rsp;
        let behind = self.process.memory().read_u64(sp).map_err(|error| self.failed(error))?;
        self.run_to(thread, behind)
    }

    /// To the next stop.
    fn go_on(&self, thread: Stopped, how: Resume) -> Result<(Stopped, Stop), TargetRefused> {
        let failed = |error: PtraceError| self.failed(error.into());
        match thread.resume(how).map_err(failed)?.wait(LOAD_TIMEOUT).map_err(failed)? {
            Waited::Stopped(thread, stop) => {
                match stop {
                    Stop::Interrupted { group: Some(signal) } => self.stopped_by.set(Some(signal)),
                    Stop::Signal(libc::SIGCONT) => self.stopped_by.set(None),
                    Stop::Syscall => {
                        if let Some(early) = &self.early {
                            early
                                .at_system_call(self.process, &thread)
                                .map_err(|error| self.failed(error))?;
                        }
                    }
                    _ => {}
                }
                Ok((thread, stop))
            }
            Waited::Dead(how) => {
                let how = match how {
                    Death::Exited(status) => format!("exit status {status}"),
                    Death::Killed(signal) => format!("signal {signal}"),
                };
                Err(TargetRefused::Ended { path: self.path.to_owned(), how })
            }
        }
    }

    fn failed(&self, error: RemoteError) -> TargetRefused {
        remote(self.process.pid(), error)
    }
}

fn find_program(command: &StartCommand) -> Result<PathBuf, TargetRefused> {
    let name = &command.program;
    if name.as_os_str().as_encoded_bytes().contains(&b'/') {
        return Ok(name.clone());
    }
    let given = command.environment.as_ref();
    let path = match given {
        Some(list) => list.iter().find(|(key, _)| key == "PATH").map(|(_, value)| value.clone()),
        None => env::var_os("PATH"),
    };
    let is_program = |path: &PathBuf| {
        path.metadata().is_ok_and(|data| data.is_file() && data.permissions().mode() & 0o111 != 0)
    };
    let folders = path.unwrap_or_else(|| "/bin:/usr/bin".into());
    env::split_paths(&folders).map(|folder| folder.join(name)).find(is_program).ok_or_else(|| {
        TargetRefused::NotStarted {
            path: name.clone(),
            reason: "there is no such program in PATH".to_owned(),
        }
    })
}

/// A traced program does not get the rights of its owner: it would run as something else than its user thinks.
fn refuse_set_id(path: &Path) -> Result<(), TargetRefused> {
    const SET_ID: u32 = 0o6000;
    let set_id = path.metadata().is_ok_and(|data| data.permissions().mode() & SET_ID != 0);
    if set_id && !nix::unistd::geteuid().is_root() {
        let reason =
            "it is set-user-id or set-group-id, and would not get those rights under trace; start it as root";
        return Err(TargetRefused::NotStarted { path: path.to_owned(), reason: reason.to_owned() });
    }
    Ok(())
}

fn not_started(path: &Path, error: SpawnError) -> TargetRefused {
    let reason = match error {
        SpawnError::Exec { source, .. } => source.to_string(),
        other => other.to_string(),
    };
    TargetRefused::NotStarted { path: path.to_owned(), reason }
}
