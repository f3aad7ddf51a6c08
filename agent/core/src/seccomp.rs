//! Seccomp filters that the process installs while the agent is in it.
//!
//! The agent's own programs stand at the entries through which libraries install filters; where system calls are traced it looks at the
//! calls themselves (`abi::system_call::FILTERING`). It narrows the gate of system
//! calls *before* the filter is in force, by what the filter says; a filter that cannot be read closes it. An installation
//! that fails afterwards has narrowed it for nothing, which costs only convenience.
//!
//! A thread that from now on dispatches its system calls closes the gate as well: it would get the agent's.
//!
//! A filter holds for the thread that installs it, or for all; the gate is one for the process.

use beeline_abi::calls::{FILTER_LEN_MAX, Instruction};
use beeline_abi::regs::PtRegs;
use beeline_abi::run::RunContext;
use beeline_helpers::read;
use beeline_maps::CALL_GATE;

/// `prctl`, `seccomp` (`arch/x86/entry/syscalls/syscall_64.tbl`).
const PRCTL: u64 = 157;
const SECCOMP: u64 = 317;

/// At the entry of `prctl(option, mode, filter)`.
///
/// # Safety
///
/// `context` is the `pt_regs` of a probe, `run` that of the calling thread's slot.
pub unsafe extern "sysv64" fn prctl(context: *mut u8, run: *mut RunContext) -> u64 {
    // SAFETY: the caller's contract.
    unsafe {
        let registers = &*context.cast::<PtRegs>();
        examine(run, PRCTL, [registers.di, registers.si, registers.dx]);
    }
    0
}

/// At the entry of `syscall(number, ...)`.
///
/// # Safety
///
/// As for [`prctl`].
pub unsafe extern "sysv64" fn syscall(context: *mut u8, run: *mut RunContext) -> u64 {
    // SAFETY: the caller's contract.
    unsafe {
        let registers = &*context.cast::<PtRegs>();
        examine(run, registers.di, [registers.si, registers.dx, registers.cx]);
    }
    0
}

/// At the entry of Go's `Syscall6`: number in rax, arguments in rbx, rcx, rdi (Go's internal ABI, amd64).
///
/// # Safety
///
/// As for [`prctl`].
pub unsafe extern "sysv64" fn go_syscall(context: *mut u8, run: *mut RunContext) -> u64 {
    // SAFETY: the caller's contract.
    unsafe {
        let registers = &*context.cast::<PtRegs>();
        examine(run, registers.ax, [registers.bx, registers.cx, registers.di]);
    }
    0
}

/// Looks at a system call that is about to be made.
///
/// # Safety
///
/// `run` is that of the calling thread's slot.
pub(crate) unsafe fn examine(run: *mut RunContext, number: u64, arguments: [u64; 3]) {
    const PR_SET_SECCOMP: u64 = 22;
    const PR_SET_SYSCALL_USER_DISPATCH: u64 = 59;
    const PR_SYS_DISPATCH_OFF: u64 = 0;
    const MODE_STRICT: u64 = 1;
    const MODE_FILTER: u64 = 2;
    const SET_MODE_STRICT: u64 = 0;
    const SET_MODE_FILTER: u64 = 1;
    match (number, arguments) {
        (PRCTL, [PR_SET_SYSCALL_USER_DISPATCH, mode, _]) if mode != PR_SYS_DISPATCH_OFF => CALL_GATE.close(),
        (PRCTL, [PR_SET_SECCOMP, MODE_STRICT, _]) | (SECCOMP, [SET_MODE_STRICT, ..]) => CALL_GATE.close(),
        (PRCTL, [PR_SET_SECCOMP, MODE_FILTER, filter]) | (SECCOMP, [SET_MODE_FILTER, _, filter]) => {
            // SAFETY: the caller's run.
            unsafe { narrow(run, filter) }
        }
        _ => {}
    }
}

/// `struct sock_fprog`.
#[repr(C)]
#[derive(Default)]
struct Program {
    len: u16,
    reserved: [u16; 3],
    filter: u64,
}

/// Instructions that are read at once.
const CHUNK: usize = 32;

/// Narrows the gate by the filter that a `struct sock_fprog` describes.
unsafe fn narrow(run: *mut RunContext, address: u64) {
    let mut program = Program::default();
    // SAFETY: the run is the caller's; whatever cannot be read gives an error.
    unsafe {
        let len = size_of::<Program>();
        if !read::copy(run, (&raw mut program).cast(), len, address)
            || u32::from(program.len) > FILTER_LEN_MAX
        {
            CALL_GATE.close();
            return;
        }
        let count = usize::from(program.len);
        let mut chunk = [Instruction::default(); CHUNK];
        let mut first = usize::MAX;
        let mut fetch = |index: u32| {
            let index = index as usize;
            if index / CHUNK != first {
                let start = index - index % CHUNK;
                let bytes = count.saturating_sub(start).min(CHUNK) * size_of::<Instruction>();
                let source = program.filter.wrapping_add((start * size_of::<Instruction>()) as u64);
                first = usize::MAX;
                if !read::copy(run, chunk.as_mut_ptr().cast(), bytes, source) {
                    return None;
                }
                first = index / CHUNK;
            }
            chunk.get(index % CHUNK).copied()
        };
        CALL_GATE.narrow(u32::from(program.len), &mut fetch);
    }
}
