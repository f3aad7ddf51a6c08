//! Whether a signal handler has interrupted a program: the kernel's frame lies below the program's then.
//!
//! ```text
//!   guard ▶ │ the program's frame           │
//!           │ its functions, helpers        │ ◀ the stack pointer that the signal frame names
//!           │ red zone                      │
//!   fp    ▶ │ registers of the vector units │   aligned to 64; begins with 512 bytes of `fxsave`
//!           │ siginfo                       │
//!           │ ucontext                      │   of it: flags, stack pointer, code segment, the address `fp`
//!           │ address of the restorer       │   fp - 456
//!      sp ▶ │ the handler's functions       │
//! ```
//!
//! A hit that is nested in a run on the same stack has that frame between itself and the run: nothing but a signal interrupts a program (a
//! function of the target that it calls is known by its return address, [`ThreadSlot::host_return`](beeline_abi::thread::ThreadSlot)).
//! The words looked at are the kernel's, and no handler changes them. So a run that goes on is always recognised, and where there is no
//! such frame the run was abandoned. What a handler has left by `longjmp` looks like one that goes on until a word of its frame is overwritten,
//! but only to hits from below all of it.
//!
//! Where the stack cannot be read from the hit up to the run, the hit is on another stack (a coroutine's, which the handler has gone to),
//! and the run counts as going on. A debugger that calls a function in a thread that it has stopped in a program makes no signal frame: a hit
//! there takes the run for abandoned, and what the rest of the program asks of its run is the hit's.

use beeline_abi::run::RunContext;
use beeline_abi::thread::ThreadSlot;
use beeline_helpers::read;

/// Alignment of `fp` (`fpu__alloc_mathframe`, `arch/x86/kernel/fpu/signal.c`).
const ALIGNMENT: u64 = 64;
/// Bytes of `fxsave` at `fp` and of the red zone: the program's stack pointer is at least so far above `fp`.
const ABOVE: u64 = 512 + 128;
/// From `fp` down to the frame's end: `struct rt_sigframe`, 440 bytes, aligned as at a function's entry (`get_sigframe`,
/// `arch/x86/kernel/signal.c`).
const BELOW: u64 = 456;
/// From `fp` down to the flags of the `ucontext` (`arch/x86/include/uapi/asm/ucontext.h`).
const FLAGS: u64 = 448;
/// From `fp` down to words of its `struct sigcontext`, from the stack pointer to the address `fp`.
const WORDS: u64 = 288;
const STACK_POINTER: usize = 0;
const SEGMENTS: usize = 3;
const VECTORS: usize = 8;

/// Bytes below the run's frame in which it may have been interrupted: a program, what it tail calls, and helpers use less.
const REACH: u64 = 64 << 10;

/// A hit with stack pointer `sp` may be nested in the run with its frame at `guard`, above it on the same stack.
///
/// # Safety
///
/// `slot` is the calling thread's.
pub(crate) unsafe fn may_lie_between(slot: *mut ThreadSlot, sp: u64, guard: u64) -> bool {
    const USER_CODE: u64 = 0x33;
    let mut fp = guard.saturating_sub(ABOVE) & !(ALIGNMENT - 1);
    let end = guard.saturating_sub(REACH);
    let mut words = [0u64; VECTORS + 1];
    // SAFETY: the slot is the calling thread's. Its run is another's at the moment: a copy serves the reads.
    unsafe {
        let mut run = RunContext { regs: 0, ..(*slot).run };
        while fp >= end {
            if fp < sp.saturating_add(BELOW) {
                return false;
            }
            let target = (&raw mut words).cast();
            if !read::copy(&raw mut run, target, size_of_val(&words), fp.wrapping_sub(WORDS)) {
                return true;
            }
            if words[VECTORS] == fp
                && (fp..=guard).contains(&words[STACK_POINTER])
                && words[SEGMENTS] & 0xffff == USER_CODE
                && has_flags(&raw mut run, fp)
            {
                return true;
            }
            fp -= ALIGNMENT;
        }
    }
    // Too far below for a handler's hit on the same stack, or for any that could be told.
    true
}

/// The flags of a `ucontext` lie below `fp`.
unsafe fn has_flags(run: *mut RunContext, fp: u64) -> bool {
    /// `UC_SIGCONTEXT_SS`, `UC_STRICT_RESTORE_SS`, and `UC_FP_XSTATE` where the processor has `xsave`.
    const UC_FLAGS: u64 = 6;
    const UC_FP_XSTATE: u64 = 1;
    let mut flags = 0u64;
    // SAFETY: the caller's run; what cannot be read gives an error.
    let known = unsafe { read::copy(run, (&raw mut flags).cast(), 8, fp.wrapping_sub(FLAGS)) };
    !known || flags & !UC_FP_XSTATE == UC_FLAGS
}
