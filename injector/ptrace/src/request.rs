//! The raw `ptrace(2)` and `waitpid(2)` calls, one safe function for each request that is used.

use crate::{Registers, Tid};
use std::cell::{Cell, RefCell};
use std::collections::HashSet;
use std::ffi::{c_int, c_long, c_uint, c_void};
use std::io;
use std::mem::MaybeUninit;

/// `PTRACE_EVENT_STOP`, in the high half of a wait status.
pub(crate) const EVENT_STOP: c_int = 128;

/// `PTRACE_GETSIGMASK` (`include/uapi/linux/ptrace.h`).
const GETSIGMASK: c_uint = 0x420a;
/// `PTRACE_SETSIGMASK`.
const SETSIGMASK: c_uint = 0x420b;
/// `PTRACE_SECCOMP_GET_FILTER`, since Linux 4.4.
const SECCOMP_GET_FILTER: c_uint = 0x420c;
/// `PTRACE_GET_RSEQ_CONFIGURATION`, since Linux 5.13.
const GET_RSEQ_CONFIGURATION: c_uint = 0x420f;
/// `PTRACE_SET_SYSCALL_USER_DISPATCH_CONFIG`, since Linux 6.4.
const SET_SYSCALL_USER_DISPATCH_CONFIG: c_uint = 0x4210;
/// `PTRACE_GET_SYSCALL_USER_DISPATCH_CONFIG`, since Linux 6.4.
const GET_SYSCALL_USER_DISPATCH_CONFIG: c_uint = 0x4211;

/// `struct ptrace_rseq_configuration`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub(crate) struct RseqConfiguration {
    pub(crate) pointer: u64,
    pub(crate) size: u32,
    pub(crate) signature: u32,
    pub(crate) flags: u32,
    pub(crate) pad: u32,
}

/// `struct ptrace_sud_config`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub(crate) struct DispatchConfiguration {
    pub(crate) mode: u64,
    pub(crate) selector: u64,
    pub(crate) offset: u64,
    pub(crate) len: u64,
}

/// Runs one request.
///
/// # Safety
/// `address` and `data` are what the request wants: where it reads or writes memory through one of them, that points
/// to memory of the size that the request defines.
unsafe fn ptrace(
    request: c_uint,
    tid: Tid,
    address: *mut c_void,
    data: *mut c_void,
) -> Result<c_long, io::Error> {
    // SAFETY: the caller passes what the request wants.
    let result = unsafe { libc::ptrace(request, tid, address, data) };
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Runs a request whose address and data are plain numbers.
fn plain(request: c_uint, tid: Tid, address: usize, data: usize) -> Result<(), io::Error> {
    // SAFETY: used only with requests that take numbers, see the callers below.
    unsafe { ptrace(request, tid, address as *mut c_void, data as *mut c_void) }.map(drop)
}

/// `PTRACE_SEIZE` with `PTRACE_O_*` options.
pub(crate) fn seize(tid: Tid, options: c_int) -> Result<(), io::Error> {
    plain(libc::PTRACE_SEIZE, tid, 0, options as usize)
}

/// `PTRACE_SETOPTIONS`.
pub(crate) fn set_options(tid: Tid, options: c_int) -> Result<(), io::Error> {
    plain(libc::PTRACE_SETOPTIONS, tid, 0, options as usize)
}

/// `PTRACE_INTERRUPT`.
pub(crate) fn interrupt(tid: Tid) -> Result<(), io::Error> {
    plain(libc::PTRACE_INTERRUPT, tid, 0, 0)
}

/// `PTRACE_CONT`, `PTRACE_LISTEN`, `PTRACE_SYSCALL` or `PTRACE_DETACH`, delivering `signal` when it is not 0.
pub(crate) fn go_on(request: c_uint, tid: Tid, signal: c_int) -> Result<(), io::Error> {
    TO_SYSCALL
        .with_borrow_mut(|it| if request == libc::PTRACE_SYSCALL { it.insert(tid) } else { it.remove(&tid) });
    plain(request, tid, 0, signal as usize)
}

/// `PTRACE_GETREGS`.
pub(crate) fn registers(tid: Tid) -> Result<Registers, io::Error> {
    let mut registers = MaybeUninit::<Registers>::zeroed();
    // SAFETY: the request fills one user_regs_struct through `data`.
    unsafe { ptrace(libc::PTRACE_GETREGS, tid, std::ptr::null_mut(), registers.as_mut_ptr().cast())? };
    // SAFETY: the request succeeded, and all bit patterns of the struct are valid.
    Ok(unsafe { registers.assume_init() })
}

/// `PTRACE_SETREGS`.
pub(crate) fn set_registers(tid: Tid, registers: &Registers) -> Result<(), io::Error> {
    let data = std::ptr::from_ref(registers).cast_mut().cast();
    // SAFETY: the request reads one user_regs_struct through `data`.
    unsafe { ptrace(libc::PTRACE_SETREGS, tid, std::ptr::null_mut(), data) }.map(drop)
}

/// Blocked signals, bit n - 1 for signal n.
pub(crate) fn signal_mask(tid: Tid) -> Result<u64, io::Error> {
    let mut mask = 0u64;
    // SAFETY: the request writes the eight bytes that `address` announces through `data`.
    unsafe { ptrace(GETSIGMASK, tid, 8 as *mut c_void, (&raw mut mask).cast())? };
    Ok(mask)
}

/// Sets the blocked signals.
pub(crate) fn set_signal_mask(tid: Tid, mut mask: u64) -> Result<(), io::Error> {
    // SAFETY: the request reads the eight bytes that `address` announces through `data`.
    unsafe { ptrace(SETSIGMASK, tid, 8 as *mut c_void, (&raw mut mask).cast()) }.map(drop)
}

/// Seccomp filter `index` of the thread, the newest first: its instructions, as words.
pub(crate) fn seccomp_filter(tid: Tid, index: usize) -> Result<Vec<u64>, io::Error> {
    let index = index as *mut c_void;
    // SAFETY: without a buffer the request tells the number of instructions.
    let len = unsafe { ptrace(SECCOMP_GET_FILTER, tid, index, std::ptr::null_mut())? };
    let mut filter = vec![0u64; len as usize];
    // SAFETY: the thread stands still, so its filter has that length; an instruction has eight bytes.
    unsafe { ptrace(SECCOMP_GET_FILTER, tid, index, filter.as_mut_ptr().cast())? };
    Ok(filter)
}

/// Where the thread's `struct rseq` is.
pub(crate) fn rseq(tid: Tid) -> Result<RseqConfiguration, io::Error> {
    let mut configuration = RseqConfiguration::default();
    let size = size_of::<RseqConfiguration>() as *mut c_void;
    // SAFETY: the request writes at most the announced size through `data`.
    unsafe { ptrace(GET_RSEQ_CONFIGURATION, tid, size, (&raw mut configuration).cast())? };
    Ok(configuration)
}

/// How the thread's system calls are dispatched.
pub(crate) fn dispatch(tid: Tid) -> Result<DispatchConfiguration, io::Error> {
    let mut configuration = DispatchConfiguration::default();
    let size = size_of::<DispatchConfiguration>() as *mut c_void;
    // SAFETY: the request writes the announced size through `data`.
    unsafe { ptrace(GET_SYSCALL_USER_DISPATCH_CONFIG, tid, size, (&raw mut configuration).cast())? };
    Ok(configuration)
}

/// Sets how the thread's system calls are dispatched.
pub(crate) fn set_dispatch(tid: Tid, mut configuration: DispatchConfiguration) -> Result<(), io::Error> {
    let size = size_of::<DispatchConfiguration>() as *mut c_void;
    // SAFETY: the request reads the announced size through `data`.
    unsafe { ptrace(SET_SYSCALL_USER_DISPATCH_CONFIG, tid, size, (&raw mut configuration).cast()) }.map(drop)
}

/// One event of any child or tracee of this OS thread: its id and wait status; `None` when nothing has happened.
pub(crate) fn wait_any() -> Result<Option<(Tid, c_int)>, io::Error> {
    take(libc::P_ALL, 0, libc::WNOHANG)
}

/// One event of the tracee `tid`: its wait status; `None` when nothing has happened.
pub(crate) fn wait_for(tid: Tid) -> Result<Option<c_int>, io::Error> {
    Ok(take(libc::P_PID, tid, libc::WNOHANG)?.map(|(_, status)| status))
}

/// As [`wait_any`], but waits until there is an event; `ECHILD` when there is nobody left.
pub(crate) fn wait_for_any() -> Result<(Tid, c_int), io::Error> {
    loop {
        if let Some(event) = take(libc::P_ALL, 0, 0)? {
            return Ok(event);
        }
    }
}

/// Takes an event, but for that of a thread which is about to receive the signal of an `int3`, or of a call that it dispatches: that is
/// delivered without its event being taken. Whoever takes the event of a signal and is killed before the thread goes on has lost the signal (`wait_task_stopped` clears
/// what `ptrace_stop` returns), and a thread that has met a breakpoint would go on in the middle of an instruction, one that makes a call
/// behind it without having made it.
fn take(kind: libc::idtype_t, id: Tid, flags: c_int) -> Result<Option<(Tid, c_int)>, io::Error> {
    const COMMON: c_int = libc::__WALL | libc::__WNOTHREAD;
    loop {
        // SAFETY: zero is a valid `siginfo_t`; the call writes one.
        let (result, seen) = unsafe {
            let mut seen: libc::siginfo_t = std::mem::zeroed();
            let all = COMMON | flags | libc::WEXITED | libc::WSTOPPED | libc::WNOWAIT;
            (libc::waitid(kind, id as libc::id_t, &raw mut seen, all), seen)
        };
        if result == -1 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the call has filled in what belongs to `SIGCHLD`, or left it zero.
        let (tid, what) = unsafe { (seen.si_pid(), seen.si_status()) };
        if tid == 0 {
            return Ok(None);
        }
        let has_its_signal = seen.si_code == libc::CLD_TRAPPED
            && matches!(what, libc::SIGTRAP | libc::SIGSYS)
            && is_of_breakpoint_or_call(tid);
        if has_its_signal {
            let how = if TO_SYSCALL.with_borrow(|it| it.contains(&tid)) {
                libc::PTRACE_SYSCALL
            } else {
                libc::PTRACE_CONT
            };
            // One that was killed meanwhile has another event.
            let _ = go_on(how, tid, what);
            continue;
        }
        let mut status = 0;
        // SAFETY: `status` is a valid place for one int.
        match unsafe { libc::waitpid(tid, &raw mut status, COMMON | libc::WNOHANG) } {
            -1 => return Err(io::Error::last_os_error()),
            // Killed since: it is to be reported as dead.
            0 => continue,
            tid => return Ok(Some((tid, status))),
        }
    }
}

thread_local! {
    /// Tracees of this OS thread that run until the next system call.
    static TO_SYSCALL: RefCell<HashSet<Tid>> = RefCell::default();
    /// Those in whose code there are breakpoints of ours, for us to see.
    static SEES_BREAKPOINTS: RefCell<HashSet<Tid>> = RefCell::default();
}

/// Whether we are to see that this tracee has met a breakpoint.
pub(crate) fn see_breakpoints(tid: Tid, sees: bool) {
    SEES_BREAKPOINTS.with_borrow_mut(|it| if sees { it.insert(tid) } else { it.remove(&tid) });
}

/// The signal that the tracee is about to receive is that of an `int3`, and not for us, or of a call that it dispatches.
fn is_of_breakpoint_or_call(tid: Tid) -> bool {
    /// `SI_KERNEL` (`arch/x86/kernel/traps.c`: `do_int3_user`).
    const SI_KERNEL: c_int = 0x80;
    /// `SYS_USER_DISPATCH` (`include/uapi/asm-generic/siginfo.h`).
    const SYS_USER_DISPATCH: c_int = 2;
    let sees_breakpoints = || SEES_BREAKPOINTS.with_borrow(|it| it.contains(&tid));
    signal_info(tid).is_ok_and(|info| match info.si_signo {
        libc::SIGTRAP => info.si_code == SI_KERNEL && !sees_breakpoints(),
        libc::SIGSYS => info.si_code == SYS_USER_DISPATCH,
        _ => false,
    })
}

/// The signal that the tracee is about to receive.
fn signal_info(tid: Tid) -> Result<libc::siginfo_t, io::Error> {
    // SAFETY: zero is a valid `siginfo_t`; the request writes one through `data`.
    unsafe {
        let mut info: libc::siginfo_t = std::mem::zeroed();
        ptrace(libc::PTRACE_GETSIGINFO, tid, std::ptr::null_mut(), (&raw mut info).cast())?;
        Ok(info)
    }
}

/// The signal that the tracee is about to receive was sent by somebody (`include/uapi/asm-generic/siginfo.h`: `SI_FROMUSER`).
pub(crate) fn signal_was_sent(tid: Tid) -> bool {
    signal_info(tid).is_ok_and(|info| info.si_code <= 0)
}

/// Short sleeps of this OS thread end in time, not up to 50 microseconds later.
pub(crate) fn sleep_exactly() {
    thread_local! {
        static DONE: Cell<bool> = const { Cell::new(false) };
    }
    if !DONE.replace(true) {
        // SAFETY: the request takes a number.
        unsafe {
            libc::prctl(libc::PR_SET_TIMERSLACK, 1);
        }
    }
}

/// Gives the calling OS thread real-time priority, if it has an ordinary one and the kernel allows it; whether it did. What it
/// starts before [`lower_priority`] would have it, too.
pub(crate) fn raise_priority() -> bool {
    // SAFETY: plain system calls on the calling thread; the structure lives through the call.
    unsafe {
        libc::sched_getscheduler(0) == libc::SCHED_OTHER
            && libc::sched_setscheduler(0, libc::SCHED_FIFO, &libc::sched_param { sched_priority: 1 }) == 0
    }
}

/// Gives the calling OS thread ordinary priority again.
pub(crate) fn lower_priority() {
    // SAFETY: a plain system call on the calling thread; the structure lives through the call.
    unsafe {
        libc::sched_setscheduler(0, libc::SCHED_OTHER, &libc::sched_param { sched_priority: 0 });
    }
}

/// Kills a process that we started.
pub(crate) fn kill(pid: Tid) {
    // SAFETY: a plain system call; it fails only when the process is gone.
    unsafe {
        libc::kill(pid, libc::SIGKILL);
    }
}

/// Ends waits of an OS thread; it is ignored unless somebody handles it.
const WAKE_SIGNAL: c_int = libc::SIGURG;

/// The calling OS thread's id.
pub(crate) fn own_tid() -> Tid {
    // SAFETY: it has no preconditions.
    unsafe { libc::gettid() }
}

/// Lets [`WAKE_SIGNAL`] interrupt this OS thread. A handler that is there already does so, too.
pub(crate) fn receive_wake_signal() -> Result<(), io::Error> {
    extern "C" fn nothing(_: c_int) {}
    // SAFETY: zero is a valid `sigaction` and an empty set on Linux; the handler does nothing; every pointer is to a local.
    unsafe {
        let mut known: libc::sigaction = std::mem::zeroed();
        if libc::sigaction(WAKE_SIGNAL, std::ptr::null(), &raw mut known) != 0 {
            return Err(io::Error::last_os_error());
        }
        if [libc::SIG_DFL, libc::SIG_IGN].contains(&known.sa_sigaction) {
            let mut handled: libc::sigaction = std::mem::zeroed();
            // Without SA_RESTART: waits end.
            handled.sa_sigaction = nothing as extern "C" fn(c_int) as usize;
            if libc::sigaction(WAKE_SIGNAL, &raw const handled, std::ptr::null_mut()) != 0 {
                return Err(io::Error::last_os_error());
            }
        }
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigaddset(&raw mut set, WAKE_SIGNAL);
        match libc::pthread_sigmask(libc::SIG_UNBLOCK, &raw const set, std::ptr::null_mut()) {
            0 => Ok(()),
            error => Err(io::Error::from_raw_os_error(error)),
        }
    }
}

/// Sends [`WAKE_SIGNAL`] to an OS thread of ours.
pub(crate) fn send_wake_signal(tid: Tid) {
    // SAFETY: a plain system call; it fails only when the thread is gone.
    unsafe {
        libc::syscall(libc::SYS_tgkill, libc::getpid(), tid, WAKE_SIGNAL);
    }
}
