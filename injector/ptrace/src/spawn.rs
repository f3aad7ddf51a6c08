//! Starting a program under trace, stopped before its first instruction.

use crate::request;
use crate::thread::{Death, PtraceError, Resume, Running, Stop, Stopped, Waited};
use std::ffi::{CString, OsStr, OsString};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A program to start.
#[derive(Clone, Debug)]
pub struct Command {
    /// Path of the file; no search is made.
    pub path: PathBuf,
    /// All arguments, with the program's name first.
    pub arguments: Vec<OsString>,
    /// The whole environment.
    pub environment: Vec<(OsString, OsString)>,
}

/// Why a program did not start.
#[derive(Debug, thiserror::Error)]
pub enum SpawnError {
    /// A string contains a NUL byte.
    #[error("an argument or variable of {path} contains a NUL byte")]
    Nul {
        /// The program.
        path: PathBuf,
    },
    /// `fork` or a preparation of it failed.
    #[error("cannot start a process: {0}")]
    Fork(io::Error),
    /// `execve` failed.
    #[error("cannot execute {path}: {source}")]
    Exec {
        /// The program.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The child cannot be traced.
    #[error("cannot trace the new process: {0}")]
    Seize(io::Error),
    /// A request failed.
    #[error(transparent)]
    Ptrace(#[from] PtraceError),
    /// The child ended before it executed the program.
    #[error("the new process ended before it executed {path}: {how:?}")]
    Died {
        /// The program.
        path: PathBuf,
        /// How.
        how: Death,
    },
}

/// The strings of an `execve`, made before the fork: nothing may be allocated after it.
struct Prepared {
    path: CString,
    arguments: Vec<CString>,
    environment: Vec<CString>,
}

impl Prepared {
    fn new(command: &Command) -> Result<Prepared, SpawnError> {
        let nul = |_| SpawnError::Nul { path: command.path.clone() };
        let string = |text: &OsStr| CString::new(text.as_bytes());
        let variable = |(name, value): &(OsString, OsString)| {
            CString::new([name.as_bytes(), b"=", value.as_bytes()].concat())
        };
        Ok(Prepared {
            path: string(command.path.as_os_str()).map_err(nul)?,
            arguments: command
                .arguments
                .iter()
                .map(|text| string(text))
                .collect::<Result<_, _>>()
                .map_err(nul)?,
            environment: command.environment.iter().map(variable).collect::<Result<_, _>>().map_err(nul)?,
        })
    }
}

/// How long the new process may take from `fork` to the end of `execve`.
const START_TIMEOUT: Duration = Duration::from_secs(20);

/// Starts `command` and returns its only thread, stopped at the end of `execve`: the new program is mapped, not one
/// of its instructions has run. The child has the caller's files, group and signal mask; `SIGPIPE` is at its default.
///
/// The calling OS thread becomes the tracer and has to stay alive as long as tracing is wanted. Until it is detached,
/// dropping the new process kills it.
///
/// # Errors
/// [`SpawnError::Exec`] with the reason when the file cannot be executed; nothing is left running in any case.
pub fn spawn(command: &Command) -> Result<Stopped, SpawnError> {
    let prepared = Prepared::new(command)?;
    let arguments = pointers(&prepared.arguments);
    let environment = pointers(&prepared.environment);
    let (go_read, go_write) = pipe().map_err(SpawnError::Fork)?;
    let (failed_read, failed_write) = pipe().map_err(SpawnError::Fork)?;
    // SAFETY: the child runs only `child`, which makes async-signal-safe calls only and never returns.
    let pid = match unsafe { libc::fork() } {
        -1 => return Err(SpawnError::Fork(io::Error::last_os_error())),
        0 => {
            // SAFETY: both arrays end with a null pointer, and the strings outlive the call.
            unsafe {
                child(
                    &prepared.path,
                    &arguments,
                    &environment,
                    [go_read.as_raw_fd(), go_write.as_raw_fd()],
                    failed_write.as_raw_fd(),
                )
            }
        }
        pid => pid,
    };
    drop((go_read, failed_write));
    if let Err(error) = request::seize(pid, libc::PTRACE_O_TRACESYSGOOD | libc::PTRACE_O_TRACEEXEC) {
        drop(go_write);
        reap(pid);
        return Err(SpawnError::Seize(error));
    }
    // Closing the pipe lets the child go on to its execve.
    drop(go_write);
    until_exec(Running::from_tracee(pid, true), &command.path, &failed_read)
}

fn until_exec(thread: Running, path: &Path, failed: &OwnedFd) -> Result<Stopped, SpawnError> {
    let mut thread = thread;
    loop {
        match thread.wait(START_TIMEOUT)? {
            Waited::Stopped(stopped, Stop::Exec) => return Ok(stopped),
            Waited::Stopped(stopped, _) => thread = stopped.resume(Resume::Continue)?,
            Waited::Dead(how) => {
                return Err(match exec_error(failed) {
                    Some(source) => SpawnError::Exec { path: path.to_owned(), source },
                    None => SpawnError::Died { path: path.to_owned(), how },
                });
            }
        }
    }
}

/// The error number that the child wrote before it ended.
fn exec_error(failed: &OwnedFd) -> Option<io::Error> {
    let mut bytes = [0u8; 4];
    // SAFETY: the buffer has four bytes.
    let count = unsafe { libc::read(failed.as_raw_fd(), bytes.as_mut_ptr().cast(), 4) };
    (count == 4).then(|| io::Error::from_raw_os_error(i32::from_ne_bytes(bytes)))
}

/// The new process between `fork` and `execve`.
///
/// # Safety
/// To be called in a freshly forked child. `arguments` and `environment` end with a null pointer.
unsafe fn child(
    path: &CString,
    arguments: &[*const libc::c_char],
    environment: &[*const libc::c_char],
    go: [RawFd; 2],
    failed: RawFd,
) -> ! {
    // SAFETY: plain system calls on our own descriptors and buffers. Our copy of the pipe's write end is closed
    // first, so that the read ends when the parent, which has seized us by then, closes its own.
    unsafe {
        libc::close(go[1]);
        let mut byte = 0u8;
        while libc::read(go[0], (&raw mut byte).cast(), 1) == -1 && *libc::__errno_location() == libc::EINTR {
        }
        libc::signal(libc::SIGPIPE, libc::SIG_DFL);
        libc::execve(path.as_ptr(), arguments.as_ptr(), environment.as_ptr());
        let error: [u8; 4] = (*libc::__errno_location()).to_ne_bytes();
        libc::write(failed, error.as_ptr().cast(), 4);
        libc::_exit(127)
    }
}

fn pointers(strings: &[CString]) -> Vec<*const libc::c_char> {
    strings.iter().map(|string| string.as_ptr()).chain([std::ptr::null()]).collect()
}

fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let mut ends = [0; 2];
    // SAFETY: `ends` has room for both descriptors.
    if unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) } == -1 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: both are new descriptors that nobody else owns.
    Ok(unsafe { (OwnedFd::from_raw_fd(ends[0]), OwnedFd::from_raw_fd(ends[1])) })
}

fn reap(pid: libc::pid_t) {
    // SAFETY: no status is asked for. The child is ours and ends by itself or by this signal.
    unsafe {
        libc::kill(pid, libc::SIGKILL);
        libc::waitpid(pid, std::ptr::null_mut(), libc::__WALL);
    }
}
