//! Signals at any instruction of a stub: handlers that hit probes, handlers that never come back.

#[path = "harness/mod.rs"]
mod harness;
#[path = "harness/programs.rs"]
mod programs;

use beeline_abi::code::ContextUse;
use beeline_abi::thread::ReturnSlot;
use harness::{World, in_child, warm_returns};
use iced_x86::code_asm::*;
use programs::counter;
use std::sync::atomic::{AtomicU64, Ordering};

/// The function that the handler calls, and how often it did.
static FUNCTION: AtomicU64 = AtomicU64::new(0);
static HANDLED: AtomicU64 = AtomicU64::new(0);
/// Address of {stack pointer, landing, armed} that a jumping handler goes to; 0: it returns.
static LANDING: AtomicU64 = AtomicU64::new(0);

/// f(n) = n == 0 ? 0 : f(n - 1) + n.
fn sum(world: &mut World) -> (u64, usize) {
    let start = world.next_code();
    let at = world.assemble(|asm| {
        let mut zero = asm.create_label();
        asm.push(rbx).unwrap();
        asm.mov(rbx, rdi).unwrap();
        asm.nop().unwrap();
        asm.test(rdi, rdi).unwrap();
        asm.je(zero).unwrap();
        asm.sub(rdi, 1).unwrap();
        asm.call(start).unwrap();
        asm.add(rbx, rax).unwrap();
        asm.set_label(&mut zero).unwrap();
        asm.mov(rax, rbx).unwrap();
        asm.pop(rbx).unwrap();
        asm.ret().unwrap();
    });
    (at, (world.next_code() - at) as usize)
}

extern "C" fn handler(_: libc::c_int, _: *mut libc::siginfo_t, context: *mut libc::ucontext_t) {
    let function = FUNCTION.load(Ordering::Relaxed);
    // SAFETY: the address of `sum`.
    let function: extern "sysv64" fn(u64) -> u64 = unsafe { std::mem::transmute(function) };
    if function(3) != 6 {
        // SAFETY: ends the child at once.
        unsafe { libc::_exit(3) };
    }
    let count = HANDLED.fetch_add(1, Ordering::Relaxed);
    let landing = LANDING.load(Ordering::Relaxed) as *mut u64;
    if !landing.is_null() && count.is_multiple_of(3) {
        // SAFETY: the words of the test; when armed, the frame that they describe is live.
        unsafe {
            if *landing.add(2) != 0 {
                let registers = &mut (*context).uc_mcontext.gregs;
                registers[libc::REG_RSP as usize] = *landing as i64;
                registers[libc::REG_RIP as usize] = *landing.add(1) as i64;
            }
        }
    }
}

/// SIGALRM every 40 µs until `work` is done. In a process with one thread.
fn under_signals(work: impl FnOnce()) {
    // SAFETY: installs the handler above, and a timer.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = handler as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_RESTART;
        assert_eq!(libc::sigaction(libc::SIGALRM, &raw const action, std::ptr::null_mut()), 0);
    }
    let timer = |microseconds| {
        let time = libc::timeval { tv_sec: 0, tv_usec: microseconds };
        let value = libc::itimerval { it_interval: time, it_value: time };
        // SAFETY: a valid value.
        assert_eq!(unsafe { libc::setitimer(libc::ITIMER_REAL, &raw const value, std::ptr::null_mut()) }, 0);
    };
    timer(40);
    work();
    timer(0);
}

/// The probed `sum` with an entry and a return link; where they count.
fn probed(world: &mut World) -> (u64, [*mut u64; 2], [beeline_stub::LinkCode; 2]) {
    let counts = [world.data(1), world.data(1)];
    let (entered, returned) = (counter(world, counts[0]), counter(world, counts[1]));
    let (at, len) = sum(world);
    let links = [world.link(entered, ContextUse::ALL, false), world.link(returned, ContextUse::ALL, true)];
    let plan = world.plan(at, len, 0, true);
    world.probe(&plan, at, &links);
    FUNCTION.store(at, Ordering::Relaxed);
    (at, counts, links)
}

fn depth(world: &mut World) -> u64 {
    let slot = world.slot();
    (slot.returns_top - slot.returns_base) / size_of::<ReturnSlot>() as u64
}

const ROUNDS: u64 = 300_000;

/// Every hit is counted or missed, exactly, and every result is right.
#[test]
fn handlers_that_hit_probes() {
    let passed = in_child(|| {
        let mut world = World::new();
        let (at, counts, links) = probed(&mut world);
        world.run();
        warm_returns(&mut world);
        under_signals(|| {
            for _ in 0..ROUNDS {
                assert_eq!(world.call(at, 5, 0), 15);
            }
        });
        let calls = ROUNDS * 6 + HANDLED.load(Ordering::Relaxed) * 4;
        for (count, link) in counts.into_iter().zip(links) {
            // SAFETY: the counter's word.
            let hits = unsafe { *count };
            let missed = world.shared(&link).missed();
            println!("{hits} hits, {missed} missed, {} signals", HANDLED.load(Ordering::Relaxed));
            assert_eq!(hits + missed, calls);
        }
        assert_eq!(depth(&mut world), 0);
        assert_eq!(world.slot().guard.load(Ordering::Relaxed), 0);
        true
    });
    assert!(passed);
}

/// A third of the signals abandon whatever was running, as `siglongjmp` does; all goes on.
#[test]
fn handlers_that_jump_away() {
    let passed = in_child(|| {
        let mut world = World::new();
        let (at, counts, _) = probed(&mut world);
        let landing = world.data(3) as u64;
        // run(n): arm; sum(n); disarm. Landing: disarm, -1.
        let run = world.assemble(|asm| {
            let (mut land, mut out) = (asm.create_label(), asm.create_label());
            for register in [rbx, rbp, r12, r13, r14, r15] {
                asm.push(register).unwrap();
            }
            asm.mov(rcx, landing).unwrap();
            asm.mov(qword_ptr(rcx), rsp).unwrap();
            asm.lea(rax, qword_ptr(land)).unwrap();
            asm.mov(qword_ptr(rcx + 8), rax).unwrap();
            asm.mov(qword_ptr(rcx + 16), 1).unwrap();
            asm.call(at).unwrap();
            asm.mov(rcx, landing).unwrap();
            asm.mov(qword_ptr(rcx + 16), 0).unwrap();
            asm.jmp(out).unwrap();
            asm.set_label(&mut land).unwrap();
            asm.mov(rcx, landing).unwrap();
            asm.mov(qword_ptr(rcx + 16), 0).unwrap();
            asm.mov(rax, -1i64).unwrap();
            asm.set_label(&mut out).unwrap();
            for register in [r15, r14, r13, r12, rbp, rbx] {
                asm.pop(register).unwrap();
            }
            asm.ret().unwrap();
        });
        world.run();
        warm_returns(&mut world);
        LANDING.store(landing, Ordering::Relaxed);
        let mut abandoned = 0;
        under_signals(|| {
            for _ in 0..ROUNDS {
                let result = world.call(run, 5, 0);
                abandoned += u64::from(result == u64::MAX);
                assert!(result == 15 || result == u64::MAX);
            }
        });
        println!("{abandoned} abandoned of {} signals", HANDLED.load(Ordering::Relaxed));
        // SAFETY: the counter's word.
        let before = unsafe { *counts[0] };
        assert_eq!(world.call(at, 5, 0), 15);
        // SAFETY: as above.
        assert_eq!(unsafe { *counts[0] }, before + 6, "a guard that was left behind is seen through");
        assert_eq!(depth(&mut world), 0, "so are returns");
        assert_eq!(world.slot().guard.load(Ordering::Relaxed), 0);
        true
    });
    assert!(passed);
}
