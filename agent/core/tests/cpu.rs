//! Owning a CPU: exactness under contention, dead, living and absent-minded owners.

mod world;

use beeline_abi::run::RunContext;
use beeline_agent_core::cpu;
use beeline_helpers::{owner, sys};
use std::sync::atomic::Ordering::Relaxed;
use world::{CPUS, World};

/// A counter for each CPU that is incremented without atomic instructions.
struct Counters(Box<[[u64; 8]]>);

// SAFETY: that this is exclusive is what the test is about; accesses are volatile.
unsafe impl Sync for Counters {}

impl Counters {
    fn increment(&self, cpu: u32) {
        let counter = (&raw const self.0[cpu as usize][0]).cast_mut();
        // SAFETY: in bounds.
        unsafe { counter.write_volatile(counter.read_volatile() + 1) };
    }
}

#[test]
fn counts_are_exact() {
    const THREADS: u64 = 8;
    const ROUNDS: u64 = 125_000;
    let world = World::new();
    let counters = Counters(vec![[0; 8]; CPUS].into());
    let taken: u64 = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS)
            .map(|_| {
                scope.spawn(|| {
                    // SAFETY: the slot is this thread's.
                    let run = unsafe { &raw mut (*world.slot()).run };
                    let mut taken = 0;
                    for _ in 0..ROUNDS {
                        // SAFETY: as above.
                        unsafe {
                            if cpu::claim(run) == 1 {
                                taken += 1;
                                counters.increment((*run).access.cpu);
                                cpu::release(run);
                            }
                        }
                    }
                    taken
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).sum()
    });
    let counted: u64 = counters.0.iter().map(|counter| counter[0]).sum();
    assert_eq!(counted, taken);
    assert!(taken > 0);
    assert!(world.cpus.iter().all(|slot| slot.owner.load(Relaxed) == 0));
    println!("taken {taken} of {}", THREADS * ROUNDS);
    println!("registered by {}", if world::libc_rseq().is_some() { "libc" } else { "the agent" });
}

/// The same where libc registers no `struct rseq`, so that the agent does.
#[test]
fn counts_are_exact_without_libc_rseq() {
    let output = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "counts_are_exact", "--nocapture"])
        .env("GLIBC_TUNABLES", "glibc.pthread.rseq=0")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    assert!(text.contains("registered by the agent"), "{text}");
}

#[test]
fn a_dead_owner_is_replaced() {
    let world = World::new();
    let dead = std::thread::spawn(|| owner::current(None, sys::thread_id())).join().unwrap();
    while beeline_maps::owner::is_alive(&Default::default(), dead) {
        sys::yield_now();
    }
    // SAFETY: the slot is this thread's.
    unsafe {
        let run = &raw mut (*world.slot()).run;
        world.cpus.iter().for_each(|slot| slot.owner.store(dead, Relaxed));
        assert_eq!(cpu::claim(run), 1);
        let taken = (*run).access.cpu as usize;
        assert_eq!(world.cpus[taken].owner.load(Relaxed), (*run).access.owner);
        cpu::release(run);
        assert_eq!(world.cpus[taken].owner.load(Relaxed), 0);
        assert_eq!((*run).access.cpu, RunContext::NO_CPU);
    }
}

#[test]
fn a_living_owner_is_respected() {
    let world = World::new();
    let (tell, told) = std::sync::mpsc::channel();
    let (finish, finished) = std::sync::mpsc::channel::<()>();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            tell.send(owner::current(None, sys::thread_id())).unwrap();
            // Ends when the other end is dropped, also by a failing test.
            let _ = finished.recv();
        });
        let _finish = finish;
        let other = told.recv().unwrap();
        // SAFETY: the slot is this thread's.
        unsafe {
            let slot = world.slot();
            let run = &raw mut (*slot).run;
            world.cpus.iter().for_each(|slot| slot.owner.store(other, Relaxed));
            assert_eq!(cpu::claim(run), 0);
            assert_eq!((*slot).blocked_by, other, "the next claim does not wait for it");
            assert_eq!(cpu::claim(run), 0);
            assert_eq!((*run).access.cpu, RunContext::NO_CPU);
            assert!(world.cpus.iter().all(|slot| slot.owner.load(Relaxed) == other));
            world.cpus.iter().for_each(|slot| slot.owner.store(0, Relaxed));
            assert_eq!(cpu::claim(run), 1);
            cpu::release(run);
        }
    });
}

#[test]
fn an_abandoned_claim_is_given_back_by_the_next() {
    let world = World::new();
    // SAFETY: the slot is this thread's.
    unsafe {
        let run = &raw mut (*world.slot()).run;
        for _ in 0..1000 {
            assert_eq!(cpu::claim(run), 1);
        }
        let held = world.cpus.iter().filter(|slot| slot.owner.load(Relaxed) != 0).count();
        assert_eq!(held, 1);
        cpu::release(run);
    }
    assert!(world.cpus.iter().all(|slot| slot.owner.load(Relaxed) == 0));
}

/// The stub claims by itself and does not look for what an earlier run has left: the guard word tells of it.
#[test]
fn an_abandoned_claim_is_given_back_when_the_guard_is_seen_through() {
    let world = World::new();
    // SAFETY: the slot is this thread's.
    unsafe {
        let slot = world.slot();
        let run = &raw mut (*slot).run;
        assert_eq!(cpu::claim(run), 1);
        assert_eq!((*slot).claim_owner, (*run).access.owner, "the stub may claim the next by itself");
        let owned = || world.cpus.iter().filter(|slot| slot.owner.load(Relaxed) != 0).count();
        // No stack: nobody can tell.
        (*slot).guard.store(0x6000, Relaxed);
        assert_eq!(beeline_agent_core::slot::guard(slot, 0x5000), 0, "a nested hit");
        assert_eq!((owned(), (*run).access.cpu == RunContext::NO_CPU), (1, false));
        assert_eq!(beeline_agent_core::slot::guard(slot, 0x7000), 1, "abandoned");
        assert_eq!((owned(), (*run).access.cpu == RunContext::NO_CPU), (0, true));
    }
}

#[test]
fn release_leaves_another_owner_alone() {
    let world = World::new();
    // SAFETY: the slot is this thread's.
    unsafe {
        let run = &raw mut (*world.slot()).run;
        assert_eq!(cpu::claim(run), 1);
        let taken = (*run).access.cpu as usize;
        world.cpus[taken].owner.store(4711, Relaxed);
        cpu::release(run);
        assert_eq!(world.cpus[taken].owner.load(Relaxed), 4711);
        cpu::release(run);
        (*run).access.cpu = CPUS as u32;
        cpu::release(run);
        (*run).process = 0;
        assert_eq!(cpu::claim(run), 0);
    }
}

#[test]
fn a_forks_child_neither_releases_nor_shares_its_parents_claim() {
    let world = World::new();
    // SAFETY: the child only calls what makes no use of the allocator or of locks.
    unsafe {
        let run = &raw mut (*world.slot()).run;
        assert_eq!(cpu::claim(run), 1);
        let (taken, owner) = ((*run).access.cpu as usize, (*run).access.owner);
        let child = libc::fork();
        if child == 0 {
            cpu::release(run);
            let kept = world.cpus[taken].owner.load(Relaxed) == owner;
            // A claim of its own, under its own name, on another table: this one is a copy.
            world.cpus.iter().for_each(|slot| slot.owner.store(0, Relaxed));
            let own = cpu::claim(run) == 1
                && (*run).access.owner != owner
                && (*run).tgid == sys::process_id()
                && (*run).tid == sys::thread_id();
            libc::_exit(if kept && own { 0 } else { 1 });
        }
        let mut status = 0;
        assert_eq!(libc::waitpid(child, &mut status, 0), child);
        assert_eq!(status, 0);
        cpu::release(run);
        assert_eq!(world.cpus[taken].owner.load(Relaxed), 0);
    }
}
