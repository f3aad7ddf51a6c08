//! System calls of the guard, through the gate of its process.

use beeline_abi::call_by_gate;
use beeline_abi::calls::{CallGate, NOT_MADE};
use beeline_abi::errno::EFAULT;
use beeline_abi::guard::Guard;
use core::arch::asm;

const GETPID: u64 = 39;
const GETTID: u64 = 186;
const TGKILL: u64 = 234;
const PROCESS_VM_READV: u64 = 310;
const PROCESS_VM_WRITEV: u64 = 311;

/// Makes a call, unless a filter may object to it.
///
/// # Safety
///
/// The arguments are valid for call `number`.
pub(super) unsafe fn call(guard: &Guard, number: u64, arguments: [u64; 6]) -> i64 {
    // SAFETY: the caller's contract.
    unsafe { call_as(guard, number, number, arguments) }
}

/// The same for a call that the gate knows by another number.
///
/// # Safety
///
/// As for [`call`].
#[inline(never)]
pub(super) unsafe fn call_as(guard: &Guard, gate_number: u64, number: u64, arguments: [u64; 6]) -> i64 {
    // SAFETY: the injector wrote the address of the agent's gate.
    let gate = unsafe { &*(guard.call_gate as *const CallGate) };
    if !gate.passes(gate_number) {
        return NOT_MADE;
    }
    let [a, b, c, d, e, f] = arguments;
    let result: i64;
    // SAFETY: the caller's contract; the kernel preserves all registers but rax, rcx, r11.
    unsafe {
        asm!(call_by_gate!(), at = in(reg) gate.instruction(), inlateout("rax") number => result, in("rdi") a, in("rsi") b, in("rdx") c, in("r10") d,
            in("r8") e, in("r9") f, lateout("rcx") _, lateout("r11") _);
    }
    result
}

/// The process's id; less than 1 when it forbids to ask.
pub(super) fn process_id(guard: &Guard) -> i64 {
    // SAFETY: it takes no argument.
    unsafe { call(guard, GETPID, [0; 6]) }
}

/// The calling thread's id; 0 when the process forbids to ask.
pub(super) fn thread_id(guard: &Guard) -> u32 {
    // SAFETY: it takes no argument.
    unsafe { call(guard, GETTID, [0; 6]).max(0) as u32 }
}

/// Sends the calling thread a signal.
pub(super) fn raise(guard: &Guard, signal: u64) {
    // SAFETY: neither takes an address.
    unsafe {
        let thread = u64::from(thread_id(guard));
        call(guard, TGKILL, [process_id(guard) as u64, thread, signal, 0, 0, 0]);
    }
}

/// Copies `N` words from the process's memory; none where it cannot be read. Where the kernel does not copy for us (a filter that was
/// put on later) the address is taken for a good one: of the calls that come here it nearly always is, and a blocked signal kills.
pub(super) fn read<const N: usize>(guard: &Guard, address: u64) -> Option<[u64; N]> {
    let mut words = [0u64; N];
    match transfer(guard, PROCESS_VM_READV, (&raw mut words) as u64, address, 8 * N as u64) {
        0 => {}
        errno if errno == -EFAULT => return None,
        // SAFETY: see above.
        _ => words = unsafe { (address as *const [u64; N]).read_unaligned() },
    }
    Some(words)
}

/// The same in the other direction; false where it cannot be written.
pub(super) fn write<const N: usize>(guard: &Guard, address: u64, words: [u64; N]) -> bool {
    match transfer(guard, PROCESS_VM_WRITEV, (&raw const words) as u64, address, 8 * N as u64) {
        0 => true,
        errno if errno == -EFAULT => false,
        _ => {
            // SAFETY: see `read`.
            unsafe { (address as *mut [u64; N]).write_unaligned(words) };
            true
        }
    }
}

fn transfer(guard: &Guard, number: u64, local: u64, remote: u64, len: u64) -> i64 {
    let (local, remote) = ([local, len], [remote, len]);
    let process = process_id(guard) as u64;
    let arguments = [process, (&raw const local) as u64, 1, (&raw const remote) as u64, 1, 0];
    // SAFETY: the kernel checks every address; `local` is the caller's.
    match unsafe { call(guard, number, arguments) } {
        copied if copied as u64 == len => 0,
        copied if copied >= 0 => -EFAULT,
        errno => errno,
    }
}
