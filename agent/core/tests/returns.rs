//! Return stacks: order, `longjmp`, tail calls, other stacks, other threads, depth.

mod world;

use beeline_abi::thread::{RETURN_SLOTS, ReturnSlot, ThreadSlot};
use beeline_agent_core::returns;
use std::sync::Barrier;
use std::sync::atomic::Ordering::Relaxed;
use world::World;

/// Bytes of an entry of the return stack.
const ENTRY: u64 = size_of::<ReturnSlot>() as u64;

const TRAMPOLINE: u64 = 0x7100_0000;

/// A stack of the target: word `i` lies at `at(i)`.
struct Stack(Box<[u64]>);

impl Stack {
    fn new() -> Stack {
        Stack(vec![0; 1024].into())
    }

    fn at(&self, word: usize) -> u64 {
        &raw const self.0[word] as u64
    }

    /// What a stub does at the entry of a function whose return address lies in this word; false when it is missed.
    fn enter(&self, slot: *mut ThreadSlot, word: usize, return_address: u64) -> bool {
        self.enter_by(slot, word, return_address, TRAMPOLINE)
    }

    /// The same with the return point of a certain function.
    fn enter_by(&self, slot: *mut ThreadSlot, word: usize, return_address: u64, trampoline: u64) -> bool {
        let sp = self.at(word);
        // SAFETY: the slot is the test's own.
        unsafe {
            let top = (*slot).returns_top;
            let in_order = top == (*slot).returns_base || (*((top - ENTRY) as *const ReturnSlot)).sp > sp;
            if (top == (*slot).returns_end || !in_order) && returns::room(slot, sp) == 0 {
                return false;
            }
            let entry = (*slot).returns_top as *mut ReturnSlot;
            entry.write(ReturnSlot { return_address, sp, trampoline, ..ReturnSlot::EMPTY });
            (*slot).returns_top += ENTRY;
            (sp as *mut u64).write_volatile(trampoline);
        }
        true
    }

    /// What a stub does when the function returns: the address that it returns to. The word is reused afterwards.
    fn leave(&self, slot: *mut ThreadSlot, word: usize) -> Option<u64> {
        let sp = self.at(word);
        // SAFETY: the slot is the test's own.
        unsafe {
            if self.0[word] == 0 {
                // As it is when a function returns.
                (sp as *mut u64).write_volatile(TRAMPOLINE);
            }
            if let Some(slot) = slot.as_ref() {
                slot.guard.store(sp - 64, Relaxed);
            }
            let entry = returns::find(slot, sp, TRAMPOLINE);
            let return_address = entry.as_ref()?.return_address;
            if !slot.is_null() && ((*slot).returns_base..(*slot).returns_top).contains(&(entry as u64)) {
                assert_eq!((*slot).returns_top, entry as u64 + ENTRY, "it is the top one");
                (*slot).returns_top = entry as u64;
            }
            (sp as *mut u64).write_volatile(0);
            Some(return_address)
        }
    }
}

fn depth(slot: *mut ThreadSlot) -> u64 {
    // SAFETY: the slot is the test's own.
    unsafe { ((*slot).returns_top - (*slot).returns_base) / ENTRY }
}

#[test]
fn calls_nest() {
    let (world, stack) = (World::new(), Stack::new());
    let slot = world.slot();
    for level in 0..10 {
        assert!(stack.enter(slot, 900 - level, level as u64));
    }
    for level in (0..10).rev() {
        assert_eq!(stack.leave(slot, 900 - level), Some(level as u64));
    }
    assert_eq!(depth(slot), 0);
    assert_eq!(stack.leave(slot, 900), None);
}

#[test]
fn longjmp_leaves_entries_that_go_later() {
    let (world, stack) = (World::new(), Stack::new());
    let slot = world.slot();
    assert!(stack.enter(slot, 900, 1));
    assert!(stack.enter(slot, 800, 2));
    assert!(stack.enter(slot, 700, 3));
    // Both inner frames are left; the outer function calls again, from where the old words are not overwritten yet.
    assert!(stack.enter(slot, 850, 4));
    assert_eq!(stack.leave(slot, 850), Some(4));
    // Now they are.
    // SAFETY: words of the stack.
    unsafe {
        (stack.at(800) as *mut u64).write_volatile(0);
        (stack.at(700) as *mut u64).write_volatile(0);
    }
    assert!(stack.enter(slot, 850, 5));
    assert_eq!(depth(slot), 2);
    assert_eq!(stack.leave(slot, 850), Some(5));
    assert_eq!(stack.leave(slot, 900), Some(1));
}

#[test]
fn the_same_word_again_after_longjmp() {
    let (world, stack) = (World::new(), Stack::new());
    let slot = world.slot();
    assert!(stack.enter(slot, 900, 1));
    assert!(stack.enter(slot, 800, 2));
    // `longjmp` to the outer one, whose next call pushes its return address to the same word.
    // SAFETY: a word of the stack.
    unsafe { (stack.at(800) as *mut u64).write_volatile(0xca11) };
    assert!(stack.enter(slot, 800, 3));
    assert_eq!(depth(slot), 2);
    assert_eq!(stack.leave(slot, 800), Some(3));
    assert_eq!(stack.leave(slot, 900), Some(1));
}

#[test]
fn a_tail_call_puts_two_entries_on_one_word() {
    let (world, stack) = (World::new(), Stack::new());
    let slot = world.slot();
    assert!(stack.enter(slot, 900, 1));
    // The probed function jumps to another probed one, whose return address is our trampoline.
    assert!(stack.enter(slot, 900, TRAMPOLINE));
    assert_eq!(depth(slot), 2);
    assert_eq!(stack.leave(slot, 900), Some(TRAMPOLINE));
    assert_eq!(stack.leave(slot, 900), Some(1));
}

#[test]
fn tail_calls_survive_the_sweep_of_a_full_stack() {
    let (world, stack) = (World::new(), Stack::new());
    let slot = world.slot();
    // Each function jumps to a second and that to a third, which calls the next: three entries on each word.
    let [first, second, third] = [TRAMPOLINE, TRAMPOLINE + 16, TRAMPOLINE + 32];
    let levels = RETURN_SLOTS as usize / 3;
    for level in 0..levels {
        assert!(stack.enter_by(slot, 1000 - level, level as u64, first));
        assert!(stack.enter_by(slot, 1000 - level, first, second));
        assert!(stack.enter_by(slot, 1000 - level, second, third));
    }
    let rest = RETURN_SLOTS as usize % 3;
    for extra in 0..rest {
        assert!(stack.enter(slot, 500 - extra, 7));
    }
    // Full; a call from a frame that is no lower than all others has the stack swept.
    assert!(!stack.enter(slot, 500 - rest, 7));
    assert!(!stack.enter(slot, 501 - rest, 7));
    assert_eq!(depth(slot), RETURN_SLOTS);
    for extra in (0..rest).rev() {
        assert_eq!(stack.leave(slot, 500 - extra), Some(7));
    }
    for level in (0..levels).rev() {
        assert_eq!(stack.leave(slot, 1000 - level), Some(second));
        assert_eq!(stack.leave(slot, 1000 - level), Some(first));
        assert_eq!(stack.leave(slot, 1000 - level), Some(level as u64));
    }
}

#[test]
fn frames_on_another_stack_are_kept() {
    let (world, low, high) = (World::new(), Stack::new(), Stack::new());
    let slot = world.slot();
    let (low, high) = if low.at(0) < high.at(0) { (low, high) } else { (high, low) };
    assert!(low.enter(slot, 900, 1));
    assert!(high.enter(slot, 900, 2), "a coroutine on a stack that lies higher");
    assert!(high.enter(slot, 800, 3));
    assert_eq!(high.leave(slot, 800), Some(3));
    assert_eq!(high.leave(slot, 900), Some(2));
    assert_eq!(low.leave(slot, 900), Some(1));
}

#[test]
fn too_deep_a_recursion_is_missed() {
    let (world, stack) = (World::new(), Stack::new());
    let slot = world.slot();
    for level in 0..RETURN_SLOTS as usize {
        assert!(stack.enter(slot, 1000 - level, level as u64));
    }
    assert!(!stack.enter(slot, 400, 0));
    assert_eq!(depth(slot), RETURN_SLOTS);
    for level in (0..RETURN_SLOTS as usize).rev() {
        assert_eq!(stack.leave(slot, 1000 - level), Some(level as u64));
    }
}

#[test]
fn a_full_stack_of_dead_entries_is_swept() {
    let (world, stack) = (World::new(), Stack::new());
    let slot = world.slot();
    for level in 0..RETURN_SLOTS as usize {
        assert!(stack.enter(slot, 1000 - level, level as u64));
    }
    // All frames but the outermost are gone, and their words overwritten except for some.
    for level in 1..RETURN_SLOTS as usize {
        if level % 100 != 0 {
            // SAFETY: words of the stack.
            unsafe { (stack.at(1000 - level) as *mut u64).write_volatile(0) };
        }
    }
    // The newest entry looks alive, so only the sweep of a full stack finds the others.
    // SAFETY: a word of the stack.
    unsafe { (stack.at(1001 - RETURN_SLOTS as usize) as *mut u64).write_volatile(TRAMPOLINE) };
    assert!(stack.enter(slot, 999, 7));
    assert_eq!(depth(slot), 1 + 5 + 1 + 1);
    assert_eq!(stack.leave(slot, 999), Some(7));
    assert_eq!(stack.leave(slot, 1000), Some(0));
}

/// Puts `calls` entries on one word, each the tail call of the one before, so that none is ever dead.
fn tail_calls(stack: &Stack, slot: *mut ThreadSlot, word: usize, calls: u64) {
    assert!(stack.enter_by(slot, word, 1, TRAMPOLINE));
    for call in 1..calls {
        assert!(stack.enter_by(slot, word, TRAMPOLINE + 16 * (call - 1), TRAMPOLINE + 16 * call));
    }
}

#[test]
fn sweeps_in_vain_become_few() {
    let (world, stack) = (World::new(), Stack::new());
    let slot = world.slot();
    tail_calls(&stack, slot, 900, RETURN_SLOTS / 2);
    tail_calls(&stack, slot, 800, RETURN_SLOTS / 2);
    // Each time that a call finds all of them alive, more of the next ones do not look.
    for _ in 0..5000 {
        assert!(!stack.enter(slot, 801, 7));
    }
    assert_eq!(depth(slot), RETURN_SLOTS);
    // The older half dies, which is found some time.
    // SAFETY: a word of the stack.
    unsafe { (stack.at(900) as *mut u64).write_volatile(0xca11) };
    let mut missed = 0;
    while !stack.enter(slot, 801, 5) {
        missed += 1;
        assert!(missed <= 1024, "the entries are looked at again");
    }
    assert!(missed > 0, "but not at every call");
    assert_eq!(depth(slot), RETURN_SLOTS / 2 + 1);
    assert_eq!(stack.leave(slot, 801), Some(5));
}

#[test]
fn the_whole_of_a_chain_of_tail_calls_is_kept() {
    let (world, stack) = (World::new(), Stack::new());
    let slot = world.slot();
    tail_calls(&stack, slot, 900, RETURN_SLOTS);
    assert!(!stack.enter(slot, 900, 7));
    for call in (1..RETURN_SLOTS).rev() {
        assert_eq!(stack.leave(slot, 900), Some(TRAMPOLINE + 16 * (call - 1)));
    }
    assert_eq!(stack.leave(slot, 900), Some(1));
}

#[test]
fn entries_left_on_another_stack_are_found_from_below() {
    let (world, low, high) = (World::new(), Stack::new(), Stack::new());
    let slot = world.slot();
    let (low, high) = if low.at(0) < high.at(0) { (low, high) } else { (high, low) };
    for level in 0..RETURN_SLOTS as usize {
        assert!(high.enter(slot, 1000 - level, level as u64));
    }
    assert!(!low.enter(slot, 900, 7));
    for level in 0..RETURN_SLOTS as usize {
        // SAFETY: a word of the stack.
        unsafe { (high.at(1000 - level) as *mut u64).write_volatile(0) };
    }
    // Every call looks like deeper recursion. Some of them look all the same.
    let mut missed = 0;
    while !low.enter(slot, 900, 8) {
        missed += 1;
        assert!(missed <= 1024, "the entries are looked at again");
    }
    assert_eq!(depth(slot), 1);
    assert_eq!(low.leave(slot, 900), Some(8));
}

#[test]
fn entries_of_an_unmapped_stack_are_dead() {
    let (world, stack) = (World::new(), Stack::new());
    let slot = world.slot();
    assert!(stack.enter(slot, 900, 1));
    // SAFETY: the slot is the test's own; the entry is that of a stack that is gone.
    unsafe {
        let entry = (*slot).returns_top as *mut ReturnSlot;
        entry.write(ReturnSlot { return_address: 9, sp: 64, ..ReturnSlot::EMPTY });
        (*slot).returns_top += ENTRY;
    }
    assert!(stack.enter(slot, 800, 2));
    assert_eq!(depth(slot), 2);
}

#[test]
fn a_coroutine_returns_on_another_thread() {
    let (world, stack) = (World::new(), Stack::new());
    let elsewhere = world.slot_of_another();
    assert!(stack.enter(elsewhere, 900, 41));
    assert!(stack.enter(elsewhere, 800, 42));
    assert!(stack.enter(elsewhere, 700, 43));
    let slot = world.slot();
    assert!(stack.enter(slot, 500, 1));
    assert_eq!(stack.leave(slot, 800), Some(42));
    assert_eq!(stack.leave(slot, 800), None, "it was moved, not copied");
    assert_eq!(depth(slot), 1);
    assert_eq!(stack.leave(elsewhere, 700), Some(43));
    assert!(stack.enter(elsewhere, 600, 44), "the taken entry does not stand in the way");
    assert_eq!(depth(elsewhere), 2);
    assert_eq!(stack.leave(elsewhere, 600), Some(44));
    assert_eq!(stack.leave(elsewhere, 900), Some(41));
}

#[test]
fn a_return_whose_address_was_put_back_meanwhile() {
    let (world, stack) = (World::new(), Stack::new());
    let slot = world.slot();
    assert!(stack.enter(slot, 900, 1));
    // An unwinder on the thread that made the entry has walked by.
    let elsewhere = world.slot_of_another();
    assert!(stack.enter(elsewhere, 800, 0x1234_5678));
    // SAFETY: the test's own slots; there are no sites in which misses are counted.
    unsafe {
        (stack.at(800) as *mut u64).write_volatile(0x1234_5678);
        returns::restore(std::ptr::null_mut(), &raw mut (*elsewhere).run);
    }
    assert_eq!(depth(elsewhere), 0);
    assert_eq!(stack.leave(slot, 800), Some(0x1234_5678));
    assert_eq!(stack.leave(slot, 900), Some(1));
}

/// Coroutines return on other threads while the one that called them moves its entries to and fro.
#[test]
fn coroutines_return_elsewhere_while_entries_move() {
    const COROUTINES: usize = 24;
    const ROUNDS: u64 = 200;
    let world = World::new();
    let stacks: Vec<Stack> = (0..COROUTINES).map(|_| Stack::new()).collect();
    let own = Stack::new();
    let maker = world.slot_of_another() as u64;
    let (begin, end) = (Barrier::new(3), Barrier::new(3));
    std::thread::scope(|scope| {
        for part in 0..2 {
            let (world, stacks, begin, end) = (&world, &stacks, &begin, &end);
            scope.spawn(move || {
                let slot = world.slot();
                for round in 0..ROUNDS {
                    begin.wait();
                    for (index, stack) in stacks.iter().enumerate().filter(|(index, _)| index % 2 == part) {
                        assert_eq!(stack.leave(slot, 900), Some(round * 1000 + index as u64));
                    }
                    assert_eq!(depth(slot), 0);
                    end.wait();
                }
            });
        }
        let slot = maker as *mut ThreadSlot;
        for round in 0..ROUNDS {
            assert!(own.enter(slot, 1000, 7));
            for (index, stack) in stacks.iter().enumerate() {
                assert!(stack.enter(slot, 900, round * 1000 + index as u64));
            }
            begin.wait();
            for word in (900..930).rev() {
                assert!(own.enter(slot, word, word as u64));
            }
            // The oldest first: what is above it moves.
            for word in (900..930).rev() {
                assert_eq!(own.leave(slot, word), Some(word as u64));
            }
            end.wait();
            assert_eq!(own.leave(slot, 1000), Some(7));
            assert_eq!(depth(slot), 0);
        }
    });
}
