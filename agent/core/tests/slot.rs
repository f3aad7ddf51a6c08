//! The thread table and the guard word.

mod world;

use beeline_abi::process::ProcessBlock;
use beeline_abi::run::RunContext;
use beeline_abi::thread::{RETURN_SLOTS, ReturnSlot, THREAD_SLOTS, ThreadSlot, home_index};
use beeline_agent_core::slot;
use beeline_helpers::{identity, sys};
use std::collections::HashSet;
use std::sync::Barrier;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use world::{World, fs_base};

fn claim(world: &World, key: u64) -> *mut ThreadSlot {
    // SAFETY: no other thread uses these keys.
    unsafe { slot::claim(key, world.block_at(), 0) }
}

#[test]
fn every_thread_has_one_slot() {
    const THREADS: usize = 50;
    let world = World::new();
    let barrier = Barrier::new(THREADS);
    let slots: HashSet<u64> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS)
            .map(|_| {
                scope.spawn(|| {
                    let slot = world.slot();
                    assert_eq!(world.slot(), slot);
                    // SAFETY: the slot is this thread's.
                    unsafe {
                        assert_eq!((*slot).key.load(Relaxed), fs_base());
                        assert_eq!(
                            ((*slot).run.tid, (*slot).run.tgid),
                            (sys::thread_id(), sys::process_id())
                        );
                        assert_eq!(identity::access(&raw mut (*slot).run).owner as u32, sys::thread_id());
                        assert_eq!((*slot).run.access.cpu, RunContext::NO_CPU);
                        assert_eq!((*slot).run.process, world.block_at() as u64);
                        assert_eq!((*slot).returns_top, (*slot).returns_base);
                        assert_eq!(
                            (*slot).returns_end - (*slot).returns_base,
                            RETURN_SLOTS * size_of::<ReturnSlot>() as u64
                        );
                        // Its memory is there, and nobody else's.
                        std::ptr::write_bytes((*slot).run.scratch as *mut u8, 0xff, 32 << 10);
                        std::ptr::write_bytes(
                            (*slot).returns_base as *mut u8,
                            0xff,
                            (RETURN_SLOTS as usize + 1) * size_of::<ReturnSlot>(),
                        );
                        barrier.wait();
                        (*slot).memory
                    }
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert_eq!(slots.len(), THREADS);
}

#[test]
fn collisions_are_probed() {
    let world = World::new();
    let home = home_index(0x1000);
    let colliding: Vec<u64> =
        (1u64..).map(|n| n * 64).filter(|&key| home_index(key) == home).take(130).collect();
    let slots: Vec<_> = colliding.iter().map(|&key| claim(&world, key)).collect();
    assert!(
        slots.iter().all(|slot| !slot.is_null()),
        "keys of no thread give way when no slot is free in reach"
    );
    assert_eq!(slots.iter().collect::<HashSet<_>>().len(), 128);
    for (&key, &slot) in colliding.iter().zip(&slots).take(128).skip(1) {
        assert_eq!(claim(&world, key), slot);
    }
}

#[test]
fn a_full_table_refuses_when_it_cannot_tell_the_dead() {
    let mut world = World::new();
    world.block.tid_offset = 0;
    for slot in &world.threads {
        slot.key.store(0x10, Relaxed);
    }
    assert!(claim(&world, fs_base()).is_null());
}

#[test]
fn living_threads_keep_their_slots() {
    let world = World::new();
    let base = fs_base();
    // Every slot in reach belongs to this very living thread's control block, under another name.
    for slot in &world.threads {
        slot.key.store(base, Relaxed);
    }
    assert!(claim(&world, base + 64).is_null());
}

#[test]
fn garbage_keys_do_no_harm() {
    let world = World::new();
    for (i, slot) in world.threads.iter().enumerate() {
        slot.key.store((i as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15) | 2, Relaxed);
    }
    let slot = world.slot();
    assert_eq!(world.slot(), slot);
    assert!(claim(&world, 0).is_null() && claim(&world, 1).is_null());
}

#[test]
fn an_unfinished_slot() {
    let world = World::new();
    let key = fs_base();
    let home = &world.threads[home_index(key) as usize];
    home.key.store(key | 1, Relaxed);
    let home = (&raw const *home).cast_mut();
    // SAFETY: the slot is this thread's.
    unsafe {
        (*home).run.tid = sys::thread_id();
        assert!(claim(&world, key).is_null(), "below us this thread is setting it up");
        (*home).run.tid = sys::thread_id() + 1;
        assert_eq!(claim(&world, key), home, "a thread that is gone was");
        assert_eq!((*home).key.load(Relaxed), key);
    }
}

#[test]
fn the_guard() {
    let world = World::new();
    let slot = world.slot();
    let check = move |guard: u64, sp: u64, expected: u64, what: &str| {
        // SAFETY: the slot is this thread's.
        unsafe {
            (*slot).guard.store(guard, Relaxed);
            assert_eq!(slot::guard(slot, sp), expected, "{what}");
        }
    };
    check(0, 0x5000, 1, "no program runs");
    check(0x6000, 0x5000, 0, "a handler below the program's frame");
    check(0x6000, 0x6000, 1, "another run has its frame there");
    check(0x6000, 0x7000, 1, "the program's frame is gone");
    let mut stack = vec![0u8; 64 << 10];
    let within = stack.as_mut_ptr() as u64 + 4096;
    let alternate = libc::stack_t { ss_sp: stack.as_mut_ptr().cast(), ss_flags: 0, ss_size: stack.len() };
    // SAFETY: the stack outlives the test's signals, of which there are none.
    unsafe { assert_eq!(libc::sigaltstack(&alternate, std::ptr::null_mut()), 0) };
    check(0x6000, within, 0, "a handler on the alternate stack, though that lies higher");
    check(within, 0x6000, 1, "the handler's program was left by longjmp, though that stack lies lower");
    check(within, within - 64, 1, "both there, without room for a signal frame between them");
    check(within - 64, within, 1, "both there, abandoned");
    let off = libc::stack_t { ss_sp: std::ptr::null_mut(), ss_flags: libc::SS_DISABLE, ss_size: 0 };
    // SAFETY: as above.
    unsafe {
        libc::sigaltstack(&off, std::ptr::null_mut());
        (&raw mut (*slot).run.tid).write(sys::thread_id() + 1);
    }
    check(0x6000, 0x5000, 1, "another thread with this fs base left it");
}

/// What the handler in [`the_guard_and_a_handler`] finds: the slot, and whether it may run programs.
static HANDLER: [AtomicU64; 2] = [AtomicU64::new(0), AtomicU64::new(u64::MAX)];

extern "C" fn handler(_: i32) {
    let here = 0u64;
    let slot = HANDLER[0].load(Relaxed) as *mut ThreadSlot;
    // SAFETY: the slot is this thread's.
    HANDLER[1].store(unsafe { slot::guard(slot, &raw const here as u64) }, Relaxed);
}

/// A handler that interrupts a program is known by its signal frame; what has left the program by `longjmp` calls from below it some time.
#[test]
fn the_guard_and_a_handler() {
    let world = World::new();
    let slot = world.slot();
    HANDLER[0].store(slot as u64, Relaxed);
    let mut stack = vec![0u64; 16 << 10];
    let top = (stack.as_mut_ptr() as u64 + 8 * stack.len() as u64) & !15;
    let guard = top - 64;
    // SAFETY: the handler and the call on another stack end before the stack does; the slot is this thread's.
    unsafe {
        libc::signal(libc::SIGUSR1, handler as *const () as usize);
        (*slot).guard.store(guard, Relaxed);
        let (pid, tid) = (u64::from(sys::process_id()), u64::from(sys::thread_id()));
        std::arch::asm!(
            "xchg r12, rsp", "syscall", "xchg r12, rsp", in("r12") guard - 256,
            inlateout("rax") 234u64 => _, in("rdi") pid, in("rsi") tid, in("rdx") libc::SIGUSR1 as u64,
            out("rcx") _, out("r11") _
        );
        assert_eq!(HANDLER[1].load(Relaxed), 0, "it is nested");
        assert_eq!(slot::guard(slot, guard - 1024), 1, "above the end of any signal frame");
        assert_eq!(slot::guard(slot, guard - (16 << 10)), 0, "the frame stands there still, as it seems");
        stack.fill(0);
        assert_eq!(slot::guard(slot, guard - (16 << 10)), 1, "nothing of it is left");
        assert_eq!(slot::guard(slot, guard - (80 << 10)), 0, "another stack");
    }
}

/// Threads with one thread pointer: the slot is nobody's as soon as one finds the other's run in it.
#[test]
fn a_shared_slot() {
    let world = World::new();
    let slot = world.slot();
    let key = fs_base();
    // SAFETY: the slot is this thread's.
    unsafe {
        let tid = identity::ids(&raw mut (*slot).run).tid;
        (*slot).guard.store(0x6000, Relaxed);
        // The control block names the other one.
        let named = (key + u64::from(world.block.tid_offset)) as *mut u32;
        named.write(tid + 1);
        (*slot).run.tid = tid + 1;
        let nested = slot::guard(slot, 0x7000);
        named.write(tid);
        assert_eq!(nested, 0, "its program runs");
        assert_eq!((*slot).key.load(Relaxed), key | ThreadSlot::SHARED);
    }
    assert!(claim(&world, key).is_null());
}

/// A function of the target that a program has called: it has left its frame when another word stands for its return address.
#[test]
fn the_guard_of_a_host_function() {
    let world = World::new();
    let slot = world.slot();
    let mut words = [0u64; 4];
    let guard = &raw mut words[3] as u64;
    // SAFETY: the slot is this thread's; nobody else knows the words.
    unsafe {
        let mut check = |sp: u64, word: u64, expected: u64, what: &str| {
            (*slot).guard.store(guard, Relaxed);
            (*slot).host_return = 0x1234;
            (&raw mut words[2]).write_volatile(word);
            assert_eq!(slot::guard(slot, sp), expected, "{what}");
            assert_eq!((*slot).host_return, if expected == 0 { 0x1234 } else { 0 }, "{what}");
        };
        check(guard - 64, 0x1234, 0, "it runs");
        check(guard - 64, 0x1235, 1, "something else is where it was");
        check(guard + 64, 0x1234, 1, "nothing has been there since");
        // Its stack is gone.
        (*slot).guard.store(64, Relaxed);
        (*slot).host_return = 0x1234;
        assert_eq!(slot::guard(slot, 32), 1);
    }
}

#[test]
fn small_stacks_get_a_private_one() {
    let mut world = World::new();
    world.block.flags |= ProcessBlock::FLAG_SMALL_STACKS;
    let slot = world.slot();
    // SAFETY: the slot is this thread's.
    unsafe {
        let top = (*slot).stack_top;
        assert!(top.is_multiple_of(16) && top != 0);
        std::ptr::write_bytes((top - (64 << 10)) as *mut u8, 1, 64 << 10);
        (*slot).guard.store(0x6000, Relaxed);
        assert_eq!(slot::guard(slot, top - 64), 0, "only programs run there");
    }
}

#[test]
fn many_threads_memory_is_recorded() {
    let world = World::new();
    for n in 0..THREAD_SLOTS / 2 {
        assert!(!claim(&world, 0x1000 + n * 0x40).is_null());
    }
    let regions = &world.block.regions[..world.block.region_count as usize];
    assert!(regions.iter().all(|region| region.len == 4 << 20 && region.start.is_multiple_of(4 << 20)));
    for slot in world.threads.iter().filter(|slot| slot.memory != 0) {
        let end = slot.returns_end + 32;
        let within = |region: &&beeline_abi::process::Region| {
            region.start <= slot.memory && end <= region.start + region.len
        };
        assert!(regions.iter().any(|region| within(&region)));
    }
}
