//! Seccomp filters that the process installs while the agent is in it.
//!
//! The agent's own programs stand at the entries through which libraries install filters; where system calls are traced it looks at the
//! calls themselves (`abi::system_call::FILTERING`). It narrows the gate of system
//! calls *before* the filter is in force, by what the filter says; a filter that cannot be read closes it. An installation
//! that fails afterwards has narrowed it for nothing, which costs only convenience.
//!
//! A filter holds for the thread that installs it, or for all; the gate is one for the process.
//!
//! Seen at the same places: that a thread forbids itself the time stamp counter, or has its system calls handed to itself by a signal.

use beeline_abi::calls::{FILTER_LEN_MAX, Instruction};
use beeline_abi::process::ProcessBlock;
use beeline_abi::regs::PtRegs;
use beeline_abi::run::RunContext;
use beeline_helpers::{read, time};
use beeline_maps::CALL_GATE;

/// `prctl`, `seccomp` (`arch/x86/entry/syscalls/syscall_64.tbl`).
const PRCTL: u64 = 157;
const SECCOMP: u64 = 317;

const PR_SET_SECCOMP: u64 = 22;

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

/// A call that may have forbidden anything was not seen: no call is made any more, and no time stamp counter read.
///
/// # Safety
///
/// `block` is that of the process, or null.
#[cold]
#[inline(never)]
pub(crate) unsafe fn not_seen(block: *mut ProcessBlock) {
    CALL_GATE.close();
    // SAFETY: the caller's contract.
    unsafe { time::leave_time_stamp_counter(block) }
}

/// Looks at a system call that is about to be made; `number` and the first argument as the kernel sees them, which are ints.
///
/// # Safety
///
/// `run` is that of the calling thread's slot.
pub(crate) unsafe fn examine(run: *mut RunContext, number: u64, arguments: [u64; 3]) {
    const MODE_STRICT: u64 = 1;
    const MODE_FILTER: u64 = 2;
    const SET_MODE_STRICT: u64 = 0;
    const SET_MODE_FILTER: u64 = 1;
    const PR_SET_TSC: u64 = 26;
    const PR_SET_SYSCALL_USER_DISPATCH: u64 = 59;
    const PR_SYS_DISPATCH_OFF: u64 = 0;
    let [option, second, third] = arguments;
    match (u64::from(number as u32), [u64::from(option as u32), second, third]) {
        (PRCTL, [PR_SET_SYSCALL_USER_DISPATCH, PR_SYS_DISPATCH_OFF, _]) => {}
        // Calls are dispatched by us: the guard does not let it happen.
        (PRCTL, [PR_SET_SYSCALL_USER_DISPATCH, ..]) if CALL_GATE.instruction() != 0 => {}
        // Strict mode forbids the counter, too (`kernel/seccomp.c`: `seccomp_set_mode_strict`). Where calls are dispatched, ours would
        // come to the process.
        (PRCTL, [PR_SET_SECCOMP, MODE_STRICT, _])
        | (SECCOMP, [SET_MODE_STRICT, ..])
        | (PRCTL, [PR_SET_SYSCALL_USER_DISPATCH, ..]) => {
            // SAFETY: the caller's run.
            unsafe { not_seen((*run).process as *mut ProcessBlock) }
        }
        (PRCTL, [PR_SET_TSC, ..]) => {
            // SAFETY: the caller's run.
            unsafe { time::leave_time_stamp_counter((*run).process as *mut ProcessBlock) }
        }
        (PRCTL, [PR_SET_SECCOMP, MODE_FILTER, filter]) | (SECCOMP, [SET_MODE_FILTER, _, filter]) => {
            // SAFETY: the caller's run.
            unsafe { narrow(run, filter) }
        }
        _ => {}
    }
}

/// `syscall(number, argument, ...)` certainly installs no filter.
///
/// The kernel looks at the lower halves of both.
pub(crate) fn is_harmless(number: u64, argument: u64) -> bool {
    match u64::from(number as u32) {
        PRCTL => u64::from(argument as u32) != PR_SET_SECCOMP,
        number => number != SECCOMP,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_that_install_no_filter() {
        assert!(is_harmless(39, 22) && is_harmless(22, 0) && is_harmless(PRCTL, 15));
        assert!(!is_harmless(SECCOMP, 0) && !is_harmless(PRCTL, PR_SET_SECCOMP));
        // Only lower halves count.
        assert!(!is_harmless(SECCOMP | 1 << 32, 0) && !is_harmless(PRCTL, PR_SET_SECCOMP | 1 << 40));
    }
}
