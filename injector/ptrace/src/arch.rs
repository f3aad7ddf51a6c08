//! What depends on the architecture: the general registers of a stopped thread (x86-64).

use crate::thread::{PtraceError, Stopped};

/// General registers of a thread in 64-bit mode (`struct user_regs_struct`).
///
/// `orig_rax` is the number of the interrupted system call, or -1 when there is none; with `rax` at -512 to -516 the
/// kernel restarts that call when the thread goes on. Whoever changes `rip` sets `orig_rax` to -1.
pub type Registers = libc::user_regs_struct;

/// Calls that end with `EINTR` when their thread is stopped, though no handler runs (signal(7), "Interruption of system
/// calls and library functions by stop signals"; sockets with a timeout), and that have done nothing then.
const INTERRUPTED_BY_STOPS: [i64; 15] = [
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_readv,
    libc::SYS_writev,
    libc::SYS_accept,
    libc::SYS_accept4,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_epoll_wait,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
    libc::SYS_semop,
    libc::SYS_semtimedop,
    libc::SYS_rt_sigtimedwait,
    libc::SYS_io_getevents,
];

/// `-ERESTARTNOHAND`: the kernel makes the call again unless a handler runs before.
const RESTART_UNLESS_HANDLED: u64 = -514i64 as u64;

/// Hides a stop from a thread that was in one of the calls which the kernel does not restart by itself.
pub(crate) fn restart_interrupted_call(thread: &Stopped) -> Result<(), PtraceError> {
    let registers = thread.registers()?;
    let interrupted = registers.rax as i64 == -i64::from(libc::EINTR);
    if interrupted && INTERRUPTED_BY_STOPS.contains(&(registers.orig_rax as i64)) {
        thread.set_registers(&Registers { rax: RESTART_UNLESS_HANDLED, ..registers })?;
    }
    Ok(())
}
