//! The freestanding image that is injected into a target.
//!
//! Only exports and what a compiler expects of every program are here; the logic is in `beeline-agent-core` and
//! `beeline-helpers`. The table of exports is in ARCHITECTURE.md.
//!
//! Built with SSE turned off, so that no function can change a vector register, which the stubs do not save. A test of
//! `injector/inject` looks at the finished bytes: no undefined symbol, only RELATIVE relocations, no TLS, no vector
//! instruction, nothing of the panic machinery.
#![no_std]

mod memory;

use beeline_abi::ABI_VERSION;
use beeline_abi::calls::CallGate;
use beeline_abi::link::{LINK_MAGIC, LinkRuntime, LinkShared};
use beeline_abi::process::ProcessBlock;
use beeline_abi::regs::PtRegs;
use beeline_abi::run::RunContext;
use beeline_abi::system_call::SystemCalls;
use beeline_abi::thread::{ReturnSlot, ThreadSlot};
use beeline_agent_core::{cpu, libraries, process, returns, seccomp, slot, system_calls};
use beeline_helpers::table::BY_ID;
use beeline_helpers::{HELPERS_LEN, HelperFn};
use core::sync::atomic::{AtomicU32, AtomicU64};

/// The address of each helper by id, 0 = none.
#[unsafe(no_mangle)]
#[used]
#[allow(non_upper_case_globals, reason = "it is a symbol of the image")]
pub static beeline_helpers: [Option<HelperFn>; HELPERS_LEN] = BY_ID;

/// Exports a function of the agent's logic under the name that the injector knows.
macro_rules! export {
    ($name:ident ($($argument:ident: $kind:ty),*) $(-> $result:ty)?, $function:path) => {
        /// See the function that it calls.
        ///
        /// # Safety
        ///
        /// That function's.
        #[unsafe(no_mangle)]
        pub unsafe extern "sysv64" fn $name($($argument: $kind),*) $(-> $result)? {
            // SAFETY: the caller's contract is the same.
            unsafe { $function($($argument),*) }
        }
    };
}

export!(beeline_init(block: *mut ProcessBlock) -> i64, process::init);
export!(beeline_claim_slot(key: u64, block: *mut ProcessBlock, sp: u64) -> *mut ThreadSlot, slot::claim);
export!(beeline_guard(slot: *mut ThreadSlot, sp: u64) -> u64, slot::guard);
export!(beeline_missed(links: *const LinkRuntime, count: u64, first: u64, second: u64), process::missed);
export!(beeline_claim_cpu(run: *mut RunContext) -> u64, cpu::claim);
export!(beeline_release_cpu(run: *mut RunContext), cpu::release);
export!(beeline_return_room(slot: *mut ThreadSlot, sp: u64) -> u64, returns::room);
export!(beeline_return_find(slot: *mut ThreadSlot, sp: u64, stub: u64) -> *mut ReturnSlot, returns::find);

export!(beeline_return_restore(context: *mut u8, run: *mut RunContext) -> u64, returns::restore);

export!(beeline_seccomp_prctl(context: *mut u8, run: *mut RunContext) -> u64, seccomp::prctl);
export!(beeline_seccomp_syscall(context: *mut u8, run: *mut RunContext) -> u64, seccomp::syscall);
export!(beeline_seccomp_go(context: *mut u8, run: *mut RunContext) -> u64, seccomp::go_syscall);

export!(beeline_system_call_enter(registers: *mut PtRegs, slot: *mut ThreadSlot, calls: *const SystemCalls) -> u64, system_calls::enter);
export!(beeline_system_call_exit(registers: *mut PtRegs, slot: *mut ThreadSlot, calls: *const SystemCalls, number: u64), system_calls::exit);
export!(beeline_libraries_changed(context: *mut u8, run: *mut RunContext) -> u64, libraries::changed);
export!(beeline_system_call_missed(calls: *const SystemCalls, number: u64, is_exit: u64) -> u64, system_calls::missed);

/// The address of the gate of system calls.
#[unsafe(no_mangle)]
#[used]
#[allow(non_upper_case_globals, reason = "it is a symbol of the image")]
pub static beeline_call_gate: &CallGate = &beeline_maps::CALL_GATE;

/// The shared words of links that the agent has with itself: always in force.
#[unsafe(no_mangle)]
#[used]
#[allow(non_upper_case_globals, reason = "it is a symbol of the image")]
pub static beeline_own_link: LinkShared = LinkShared {
    magic: LINK_MAGIC,
    version: ABI_VERSION,
    id: LinkRuntime::OWN,
    enabled: AtomicU32::new(1),
    prog_id: AtomicU32::new(0),
    missed: AtomicU64::new(0),
    hits: AtomicU64::new(0),
    owner: AtomicU32::new(0),
    reserved: [0; 5],
};

/// Never reached: no function of the image refers to it, so the linker drops it. A test sees to that.
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // SAFETY: stops at once.
    unsafe { core::arch::asm!("ud2", options(noreturn)) }
}
