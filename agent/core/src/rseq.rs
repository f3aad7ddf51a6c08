//! Restartable sequences: taking a CPU without a locked instruction.
//!
//! ```text
//!                 rseq.rseq_cs = descriptor
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
use core::arch::asm;

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

/// Index of `rseq_cs` in a `struct rseq` of words (`include/uapi/linux/rseq.h`).
const RSEQ_CS: usize = 1;

/// The outcomes of the sequence that are no CPU's number.
const BUSY: u32 = 1;
const UNREGISTERED: u32 = 2;
const INTERRUPTED: u32 = 3;

/// Aborts that are borne by one try.
const ABORTS_MAX: u32 = 1000;

/// Tries once to own the CPU that the thread runs on.
///
/// # Safety
///
/// `area` is the calling thread's `struct rseq`, `slots` has `cpus` entries.
#[inline]
pub unsafe fn claim(area: *mut u64, slots: *const CpuSlot, cpus: u32, owner: u64) -> Claim {
    let cpu: u64;
    let outcome: u32;
    // SAFETY: the caller's contract: `cpu` is compared with `cpus` before the slot is touched. The kernel changes no
    // register when it goes to the abort handler.
    unsafe {
        asm!(
            ".pushsection .data.rel.ro.beeline_rseq, \"aw\", @progbits",
            ".balign 32",
            "20:",
            ".long 0, 0", // version, flags
            ".quad 22f",
            ".quad 23f - 22f",
            ".quad 24f",
            ".popsection",
            ".pushsection .text.beeline_rseq_abort, \"ax\", @progbits",
            ".byte 0x0f, 0xb9, 0x3d", // the signature, as the displacement of a `ud1`
            ".long {signature}",
            "24:", // the kernel has cleared rseq_cs
            "dec {aborts:e}",
            "jnz 21f",
            "mov {outcome:e}, {interrupted}",
            "jmp 25f",
            ".popsection",
            "21:",
            "mov {outcome:e}, {unregistered}",
            "lea {scratch}, [rip + 20b]",
            "mov [{area} + 8], {scratch}", // rseq_cs
            "22:", // right behind the store: the kernel forgets a sequence in which it does not find the thread
            "mov {cpu:e}, [{area} + 4]", // cpu_id; above all CPUs while unregistered
            "cmp {cpu:e}, {cpus:e}",
            "jae 25f",
            "mov {slot}, {cpu}",
            "shl {slot}, 6", // size of a CpuSlot
            "add {slot}, {slots}",
            "mov {scratch}, [{slot}]",
            "test {scratch}, {scratch}",
            "jz 26f",
            "mov {outcome:e}, {busy}",
            "cmp {scratch}, {owner}", // our own, of a run that was abandoned
            "jne 25f",
            "26:",
            "xor {outcome:e}, {outcome:e}",
            "mov [{slot}], {owner}", // the commit
            "23:",
            "25:",
            "mov qword ptr [{area} + 8], 0",
            signature = const RSEQ_SIG,
            busy = const BUSY,
            unregistered = const UNREGISTERED,
            interrupted = const INTERRUPTED,
            area = in(reg) area,
            slots = in(reg) slots,
            cpus = in(reg) cpus,
            owner = in(reg) owner,
            cpu = out(reg) cpu,
            slot = out(reg) _,
            scratch = out(reg) _,
            outcome = out(reg) outcome,
            aborts = inout(reg) ABORTS_MAX => _,
            options(nostack),
        );
    }
    match outcome {
        0 => Claim::Taken(cpu as u32),
        BUSY => Claim::Busy(cpu as u32),
        UNREGISTERED => Claim::Unregistered,
        _ => Claim::Interrupted,
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
    // Of a thread that has ended, whose area this was. Older kernels take it over, and kill when its descriptor is not there any more.
    // SAFETY: the caller's area.
    unsafe { area.add(RSEQ_CS).write(0) };
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
