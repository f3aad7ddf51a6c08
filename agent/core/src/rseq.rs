//! Restartable sequences: taking a CPU without a locked instruction.
//!
//! ```text
//!   start:        eax = rseq.cpu_id
//!                 slot[eax].owner == 0, or our own?
//!                 slot[eax].owner = owner           <- the commit
//!   post_commit:
//! ```
//!
//! When the thread is preempted, migrated or signalled between `start` and `post_commit`, the kernel continues it at the
//! abort handler instead, so test and store happen on one CPU without another thread of that CPU in between.
//!
//! The sequence's descriptor is in the agent's image, which goes away at detach: the word that refers to it is cleared at
//! every way out.

use beeline_abi::process::CpuSlot;
use beeline_abi::thread::{RSEQ_LEN, RSEQ_SIG};
use beeline_helpers::sys::{self, nr};
use core::arch::global_asm;

/// Outcome of one try.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Claim {
    /// The CPU with this number is ours.
    Taken(u32),
    /// Another thread owns this CPU.
    Busy(u32),
    /// The kernel does not keep this area up to date: it is not registered.
    Unregistered,
    /// Interrupted again and again.
    Interrupted,
}

/// Set in the result of the sequence when the CPU in the low half is another's.
const BUSY: u64 = 1 << 32;
/// The result when `cpu_id` is no CPU's.
const UNREGISTERED: u64 = 1 << 33;
/// The result after too many aborts.
const INTERRUPTED: u64 = 1 << 34;

unsafe extern "sysv64" {
    /// `(struct rseq *, CpuSlot *, cpus, owner) -> cpu | flags above`
    fn beeline_rseq_claim(area: *mut u64, slots: *const CpuSlot, cpus: u64, owner: u64) -> u64;
}

global_asm!(
    ".pushsection .data.rel.ro.beeline_rseq, \"aw\", @progbits",
    ".balign 32",
    ".Lbeeline_rseq_cs:",
    ".long 0, 0", // version, flags
    ".quad .Lbeeline_rseq_start",
    ".quad .Lbeeline_rseq_commit - .Lbeeline_rseq_start",
    ".quad .Lbeeline_rseq_abort",
    ".popsection",
    ".pushsection .text.beeline_rseq_claim, \"ax\", @progbits",
    ".globl beeline_rseq_claim",
    ".hidden beeline_rseq_claim",
    ".type beeline_rseq_claim, @function",
    ".balign 16",
    "beeline_rseq_claim:",
    "    mov r9d, 1000", // aborts that are borne
    "2:",
    "    lea rax, [rip + .Lbeeline_rseq_cs]",
    "    mov [rdi + 8], rax", // rseq_cs
    ".Lbeeline_rseq_start:",
    "    mov eax, [rdi + 4]", // cpu_id; above all CPUs while unregistered
    "    cmp rax, rdx",
    "    jae 4f",
    "    mov r10, rax",
    "    shl r10, 6", // size of a CpuSlot
    "    mov r11, [rsi + r10]",
    "    test r11, r11",
    "    jz 3f",
    "    cmp r11, rcx", // our own, of a run that was abandoned
    "    jne 5f",
    "3:  mov [rsi + r10], rcx",
    ".Lbeeline_rseq_commit:",
    "    mov qword ptr [rdi + 8], 0",
    "    ret",
    "4:  mov eax, 2",
    "    shl rax, 32",
    "    jmp 6f",
    "5:  bts rax, 32",
    "6:  mov qword ptr [rdi + 8], 0",
    "    ret",
    "    .byte 0x0f, 0xb9, 0x3d", // the signature, as the displacement of a `ud1`
    "    .long {signature}",
    ".Lbeeline_rseq_abort:", // the kernel has cleared rseq_cs; all registers are as they were
    "    dec r9d",
    "    jnz 2b",
    "    mov eax, 4",
    "    shl rax, 32",
    "    jmp 6b",
    ".size beeline_rseq_claim, . - beeline_rseq_claim",
    ".popsection",
    signature = const RSEQ_SIG,
);

/// Tries once to own the CPU that the thread runs on.
///
/// # Safety
///
/// `area` is the calling thread's `struct rseq`, `slots` has `cpus` entries.
#[inline]
pub unsafe fn claim(area: *mut u64, slots: *const CpuSlot, cpus: u32, owner: u64) -> Claim {
    // SAFETY: the caller's contract.
    let result = unsafe { beeline_rseq_claim(area, slots, u64::from(cpus), owner) };
    match result {
        cpu if cpu < BUSY => Claim::Taken(cpu as u32),
        busy if busy < UNREGISTERED => Claim::Busy(busy as u32),
        UNREGISTERED => Claim::Unregistered,
        INTERRUPTED.. => Claim::Interrupted,
        _ => Claim::Unregistered,
    }
}

/// Registers `area` (32 bytes, aligned to 32) for the calling thread; true when the kernel keeps it up to date from now
/// on, also when it already did.
///
/// # Safety
///
/// `area` stays mapped until the thread ends or unregisters it.
pub unsafe fn register(area: *mut u64) -> bool {
    const EBUSY: i64 = -16;
    // SAFETY: the caller's contract; the kernel writes 32 bytes.
    let result = unsafe { sys::call4(nr::RSEQ, area as u64, u64::from(RSEQ_LEN), 0, u64::from(RSEQ_SIG)) };
    result == 0 || result == EBUSY
}

/// Ends the registration of `area` for the calling thread; true when it was registered.
pub fn unregister(area: *mut u64) -> bool {
    const UNREGISTER: u64 = 1;
    // SAFETY: the kernel only compares the address, and resets the area when it is the registered one.
    unsafe { sys::call4(nr::RSEQ, area as u64, u64::from(RSEQ_LEN), UNREGISTER, u64::from(RSEQ_SIG)) == 0 }
}
