//! What depends on the architecture: the general registers of a stopped thread (x86-64).

use crate::thread::{PtraceError, Stopped};

/// General registers of a thread in 64-bit mode (`struct user_regs_struct`).
///
/// `orig_rax` is the number of the interrupted system call, or -1 when there is none; with `rax` at -512 to -516 the
/// kernel restarts that call when the thread goes on. Whoever changes `rip` sets `orig_rax` to -1.
pub type Registers = libc::user_regs_struct;

/// Calls that end with `EINTR` when their thread is stopped, though no handler runs, and that have done nothing then: those of
/// signal(7), "Interruption of system calls and library functions by stop signals", and whatever else reads or writes a socket
/// with `SO_RCVTIMEO` or `SO_SNDTIMEO` (`sock_intr_errno`); `io_getevents` (`io_pgetevents` is made again by the kernel) and `io_uring_enter`;
/// `fallocate`, which `mm/shmem.c` undoes; `madvise` (`MADV_POPULATE_*`).
///
/// What had done a part of its work returns how much that was, as after any signal. A `connect` that has begun waits on when it
/// is made again (`__inet_stream_connect`, as after the kernel's own restart). A timeout begins again.
const INTERRUPTED_BY_STOPS: [i64; 27] = [
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_readv,
    libc::SYS_writev,
    libc::SYS_preadv2,
    libc::SYS_pwritev2,
    libc::SYS_accept,
    libc::SYS_accept4,
    libc::SYS_connect,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_recvmmsg,
    libc::SYS_sendto,
    libc::SYS_sendmsg,
    libc::SYS_sendmmsg,
    libc::SYS_sendfile,
    libc::SYS_splice,
    libc::SYS_epoll_wait,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
    libc::SYS_semop,
    libc::SYS_semtimedop,
    libc::SYS_rt_sigtimedwait,
    libc::SYS_io_getevents,
    libc::SYS_io_uring_enter,
    libc::SYS_fallocate,
    libc::SYS_madvise,
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
