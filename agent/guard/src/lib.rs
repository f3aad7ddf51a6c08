//! The image that is mapped where a process has breakpoints: handler, and what stands between system calls and the agent.
//!
//! Only exports are here; the logic is in `beeline-agent-core`, which knows what it must not do. All of it is one executable mapping without
//! relocations or variables; the injector enters the address of the process's `Guard` in [`beeline_guard_block`].
#![no_std]

#[path = "../../image/src/memory.rs"]
mod memory;

use beeline_abi::guard::Guard;
use beeline_abi::regs::PtRegs;
use beeline_abi::system_call::SystemCalls;
use beeline_abi::thread::ThreadSlot;
use beeline_agent_core::guard;
use core::arch::{asm, naked_asm};

/// The address of the process's `Guard`.
#[unsafe(no_mangle)]
#[used]
#[allow(non_upper_case_globals, reason = "it is a symbol of the image")]
pub static beeline_guard_block: u64 = 0;

fn block() -> *const Guard {
    let address: *const Guard;
    // SAFETY: reads a word of the image. The compiler must not know what it is: the injector writes it.
    unsafe {
        asm!("mov {}, qword ptr [rip + {}]", out(reg) address, sym beeline_guard_block,
            options(pure, readonly, nostack, preserves_flags));
    }
    address
}

/// See [`guard::enter`].
///
/// # Safety
///
/// That function's.
#[unsafe(no_mangle)]
pub unsafe extern "sysv64" fn beeline_guard_enter(
    registers: *mut PtRegs,
    slot: *mut ThreadSlot,
    calls: *const SystemCalls,
) -> u64 {
    // SAFETY: the caller's contract is the same.
    unsafe { guard::enter(registers, slot, calls, block()) }
}

/// See [`guard::exit`].
///
/// # Safety
///
/// That function's.
#[unsafe(no_mangle)]
pub unsafe extern "sysv64" fn beeline_guard_exit(
    registers: *mut PtRegs,
    slot: *mut ThreadSlot,
    calls: *const SystemCalls,
    number: u64,
) {
    // SAFETY: the caller's contract is the same.
    unsafe { guard::exit(registers, slot, calls, number, block()) }
}

/// See [`guard::missed`].
///
/// # Safety
///
/// That function's.
#[unsafe(no_mangle)]
pub unsafe extern "sysv64" fn beeline_guard_missed(
    calls: *const SystemCalls,
    number: u64,
    is_exit: u64,
    registers: *mut PtRegs,
) -> u64 {
    // SAFETY: the caller's contract is the same.
    unsafe { guard::missed(calls, number, is_exit, registers, block()) }
}

/// The handler, with `SA_SIGINFO`. The stack is as at its first instruction when it goes on in another.
///
/// # Safety
///
/// Called by the kernel.
#[unsafe(no_mangle)]
#[unsafe(naked)]
pub unsafe extern "sysv64" fn beeline_guard_trap() {
    naked_asm!(
        "push rdi",
        "push rsi",
        "push rdx", // now a multiple of 16, as a call wants it
        "mov rcx, qword ptr [rip + {block}]",
        "call {decide}",
        "pop rdx",
        "pop rsi",
        "pop rdi",
        "test rax, rax",
        "jz 2f",
        "jmp rax",
        "2: ret",
        block = sym beeline_guard_block,
        decide = sym guard::decide,
    )
}

/// Where the handler, and every handler that it goes on in, returns to: `rt_sigreturn`, by the bytes that unwinders know a signal
/// frame by.
///
/// # Safety
///
/// The stack pointer is at a signal frame, behind its return address.
#[unsafe(no_mangle)]
#[unsafe(naked)]
pub unsafe extern "sysv64" fn beeline_guard_restorer() {
    naked_asm!(".byte 0x48, 0xc7, 0xc0, 0x0f, 0, 0, 0", "syscall")
}

/// Never reached, as in the agent's image.
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // SAFETY: stops at once.
    unsafe { core::arch::asm!("ud2", options(noreturn)) }
}
