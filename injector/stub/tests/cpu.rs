//! A stub that claims a CPU by itself: exact with more threads than CPUs, and never where the run's identity is in doubt.

mod harness;

use beeline_abi::code::ContextUse;
use beeline_abi::process::{CpuSlot, ForkPage};
use beeline_abi::run::RunContext;
use beeline_abi::thread::ThreadSlot;
use beeline_stub::{LinkCode, ProgramUse};
use harness::{World, fs_base, in_child};
use iced_x86::code_asm::{dword_ptr, ecx, ptr, qword_ptr, rax, rcx, rdi, rdx, rsi};
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

/// CPUs that the tests have room for.
const CPUS: usize = 1024;
const EPOCH: u64 = 77;

/// What stubs of programs that need a CPU look at.
struct Cpus {
    slots: Box<[CpuSlot]>,
    page: Box<ForkPage>,
    /// One counter in each cache line.
    counters: Box<[[u64; 8]]>,
    _named: Named,
}

impl Cpus {
    /// Makes `world` one whose stubs claim CPUs by themselves; none where libc registers no `struct rseq`.
    fn of(world: &mut World) -> Option<Cpus> {
        rseq()?;
        // SAFETY: slots and page of zeroes are valid.
        let (slots, page) = unsafe {
            ((0..CPUS).map(|_| std::mem::zeroed()).collect::<Box<[CpuSlot]>>(), std::mem::zeroed())
        };
        let cpus = Cpus { slots, page: Box::new(page), counters: vec![[0; 8]; CPUS].into(), _named: Named };
        cpus.page.epoch.store(EPOCH, Relaxed);
        world.process().tid_offset = tid_offset();
        world.environment.cpu_slots = cpus.slots.as_ptr() as u64;
        world.environment.cpus = CPUS as u32;
        world.environment.fork_page = &raw const *cpus.page as u64;
        world.environment.agent.claim_cpu = ask as *const () as u64;
        world.environment.agent.release_cpu = give_back as *const () as u64;
        Some(cpus)
    }

    fn counted(&self) -> u64 {
        // SAFETY: nobody counts any more.
        self.counters.iter().map(|line| unsafe { (&raw const line[0]).read_volatile() }).sum()
    }

    fn owned(&self) -> usize {
        self.slots.iter().filter(|slot| slot.owner.load(Relaxed) != 0).count()
    }
}

/// A thread that may name sequences of a world: at its end it does not any more.
struct Named;

impl Drop for Named {
    fn drop(&mut self) {
        // SAFETY: the thread's `struct rseq`, and a sequence that it is not in.
        unsafe { sequence().write_volatile(0) };
    }
}

static ASKED: AtomicU64 = AtomicU64::new(0);
static GIVEN_BACK: AtomicU64 = AtomicU64::new(0);

/// The tests' agent refuses, and counts.
extern "sysv64" fn ask(run: &RunContext) -> u64 {
    assert_ne!(run.tid, 0);
    ASKED.fetch_add(1, Relaxed);
    0
}

extern "sysv64" fn give_back(_: &RunContext) {
    GIVEN_BACK.fetch_add(1, Relaxed);
}

/// The calling thread's `struct rseq`, where libc registers one.
fn rseq() -> Option<u64> {
    // SAFETY: glibc 2.35 and later define both as constants.
    unsafe {
        let offset = libc::dlsym(libc::RTLD_DEFAULT, c"__rseq_offset".as_ptr()) as *const isize;
        let size = libc::dlsym(libc::RTLD_DEFAULT, c"__rseq_size".as_ptr()) as *const u32;
        let there = !offset.is_null() && !size.is_null() && *size != 0;
        there.then(|| fs_base().wrapping_add_signed(*offset as i64))
    }
}

fn thread_id() -> u32 {
    // SAFETY: a plain system call.
    unsafe { libc::gettid() as u32 }
}

/// Offset of the thread id in the control block: the one word that holds it in two threads.
fn tid_offset() -> u32 {
    let candidates = || -> Vec<u32> {
        let (tid, base) = (thread_id(), fs_base());
        // SAFETY: glibc's control block is longer than this.
        let holds = |&offset: &u32| unsafe { *((base + u64::from(offset)) as *const u32) } == tid;
        (0x10..0x400).step_by(4).filter(holds).collect()
    };
    let elsewhere = std::thread::spawn(candidates).join().unwrap();
    candidates().into_iter().find(|offset| elsewhere.contains(offset)).unwrap()
}

/// Makes the calling thread known, as the agent does at its first claim.
fn introduce(world: &World, cpus: &Cpus) {
    // SAFETY: the slot is the calling thread's.
    let slot = unsafe { &mut *world.shared_slot() };
    let run = &mut slot.run;
    run.tid = thread_id();
    run.ids_epoch = EPOCH;
    run.access.owner = u64::from(run.tid) | 1 << 40;
    slot.claim_owner = run.access.owner;
    slot.claim_rseq = rseq().unwrap();
    slot.claim_epoch = EPOCH;
    slot.claim_tid = run.tid;
    slot.claim_tid_at = fs_base() + u64::from(tid_offset());
    settle(slot, cpus);
}

/// A `struct rseq`.
#[repr(align(32))]
struct Aligned([u64; 4]);

/// As the agent does where the thread finds itself on another CPU.
fn settle(slot: &mut ThreadSlot, cpus: &Cpus) {
    // SAFETY: the thread's `struct rseq`.
    let cpu = unsafe { ((rseq().unwrap() + 4) as *const u32).read_volatile() };
    slot.claim_cpu = cpu;
    slot.claim_slot = &raw const cpus.slots[cpu as usize] as u64;
    slot.run.access.cpu = cpu;
}

/// The word by which the thread's `struct rseq` names a sequence.
fn sequence() -> *mut u64 {
    (rseq().unwrap() + 8) as *mut u64
}

/// A program that adds 1 to its CPU's counter, by three instructions.
fn counter(world: &mut World, cpus: &Cpus) -> LinkCode {
    let counters = cpus.counters.as_ptr() as u64;
    let entry = world.assemble(|asm| {
        asm.mov(ecx, dword_ptr(rsi + 8)).unwrap();
        asm.shl(rcx, 6).unwrap();
        asm.mov(rax, counters).unwrap();
        asm.mov(rdx, qword_ptr(rax + rcx)).unwrap();
        asm.inc(rdx).unwrap();
        asm.mov(qword_ptr(rax + rcx), rdx).unwrap();
        asm.ret().unwrap();
    });
    let mut link = world.link(entry, ContextUse::NONE, false);
    link.needs.cpu = true;
    link
}

/// A function that returns its first argument plus 1, probed with `links`; its address.
fn probed(world: &mut World, links: &[LinkCode]) -> u64 {
    let start = world.next_code();
    let code = world.assemble(|asm| {
        asm.lea(rax, ptr(rdi + 1)).unwrap();
        asm.nop().unwrap();
        asm.nop().unwrap();
        asm.ret().unwrap();
    });
    let plan = world.plan(start, 7, 0, true);
    world.probe(&plan, code, links);
    code
}

/// Calls `function` until its program has run: a claim that is interrupted, or on another CPU, goes to the tests' agent, which refuses.
fn call_until_run(world: &World, cpus: &Cpus, link: &LinkCode, function: u64) {
    for _ in 0..1000 {
        // SAFETY: the slot is the calling thread's.
        settle(unsafe { &mut *world.shared_slot() }, cpus);
        let missed = world.shared(link).missed();
        assert_eq!(world.call(function, 1, 0), 2);
        if world.shared(link).missed() == missed {
            return;
        }
    }
    panic!("every claim was interrupted");
}

#[test]
fn counts_are_exact_with_more_threads_than_cpus() {
    const THREADS: u64 = 8;
    const ROUNDS: u64 = 100_000;
    let mut world = World::new();
    let Some(cpus) = Cpus::of(&mut world) else { return println!("skipped: libc registers no struct rseq") };
    let link = counter(&mut world, &cpus);
    let function = probed(&mut world, &[link]);
    world.run();
    let (world, cpus) = (&world, &cpus);
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(move || {
                introduce(world, cpus);
                let _ends = Named;
                for round in 0..ROUNDS {
                    if round.is_multiple_of(64) {
                        // SAFETY: the slot is the calling thread's.
                        settle(unsafe { &mut *world.shared_slot() }, cpus);
                    }
                    assert_eq!(world.call(function, round, 0), round + 1);
                }
            });
        }
    });
    // Whoever found its CPU taken, or was on another, asked the agent, and was refused.
    assert_eq!(cpus.counted() + world.shared(&link).missed(), THREADS * ROUNDS);
    assert!(cpus.counted() > 0);
    assert_eq!(cpus.owned(), 0);
}

#[test]
fn whoever_is_not_certainly_the_same_asks_the_agent() {
    let mut world = World::new();
    let Some(cpus) = Cpus::of(&mut world) else { return println!("skipped: libc registers no struct rseq") };
    let link = counter(&mut world, &cpus);
    let function = probed(&mut world, &[link]);
    world.run();
    let check = |what: &str, counted: bool| {
        let (before, missed) = (cpus.counted(), world.shared(&link).missed());
        if counted {
            call_until_run(&world, &cpus, &link, function);
        } else {
            assert_eq!(world.call(function, 1, 0), 2);
            assert_eq!(world.shared(&link).missed() - missed, 1, "{what}");
        }
        assert_eq!(cpus.counted() - before, u64::from(counted), "{what}");
        assert_eq!(cpus.owned(), 0, "{what}");
    };
    introduce(&world, &cpus);
    check("as the agent left it", true);
    let change = |edit: &dyn Fn(&mut ThreadSlot)| {
        introduce(&world, &cpus);
        // SAFETY: the slot is the calling thread's.
        edit(unsafe { &mut *world.shared_slot() });
    };
    change(&|slot| slot.claim_tid += 1);
    check("another thread with this fs base", false);
    change(&|slot| {
        slot.claim_tid = ThreadSlot::NOBODY;
        slot.claim_tid_at = &raw const slot.reserved as u64;
    });
    check("the agent claims", false);
    change(&|slot| slot.claim_epoch += 1);
    check("another process", false);
    change(&|slot| (slot.claim_cpu, slot.run.access.cpu) = (u32::MAX - 20, u32::MAX - 20));
    check("another CPU", false);
    // `RSEQ_CPU_ID_UNINITIALIZED`, `RSEQ_CPU_ID_REGISTRATION_FAILED`.
    let mut unregistered = Box::new(Aligned([0, 0, 0, 0]));
    for cpu_id in [u32::MAX, u32::MAX - 1] {
        unregistered.0[0] = u64::from(cpu_id) << 32;
        change(&|slot| {
            slot.claim_rseq = &raw const *unregistered as u64;
            slot.run.access.cpu = RunContext::NO_CPU;
        });
        check("not registered", false);
    }
    introduce(&world, &cpus);
    cpus.page.epoch.store(0, Relaxed);
    check("a fork's child", false);
    cpus.page.epoch.store(EPOCH, Relaxed);
    check("back again", true);
}

#[test]
fn a_taken_cpu_is_left_alone() {
    let mut world = World::new();
    let Some(cpus) = Cpus::of(&mut world) else { return println!("skipped: libc registers no struct rseq") };
    let link = counter(&mut world, &cpus);
    let function = probed(&mut world, &[link]);
    world.run();
    introduce(&world, &cpus);
    cpus.slots.iter().for_each(|slot| slot.owner.store(4711, Relaxed));
    assert_eq!(world.call(function, 1, 0), 2);
    assert_eq!((cpus.counted(), world.shared(&link).missed()), (0, 1));
    assert!(cpus.slots.iter().all(|slot| slot.owner.load(Relaxed) == 4711));
}

/// The word stays set, to save stores. Whatever else stands there, a claim sets it again.
#[test]
fn the_sequence_is_named_until_somebody_names_another() {
    let mut world = World::new();
    let Some(cpus) = Cpus::of(&mut world) else { return println!("skipped: libc registers no struct rseq") };
    let link = counter(&mut world, &cpus);
    let functions = [probed(&mut world, &[link]), probed(&mut world, &[link])];
    world.run();
    introduce(&world, &cpus);
    let mut named = [0; 2];
    for round in 0..1000 {
        let index = round % 2;
        call_until_run(&world, &cpus, &link, functions[index]);
        // SAFETY: the thread's `struct rseq`.
        let word = unsafe { sequence().read_volatile() };
        if word != 0 {
            assert!(word.is_multiple_of(32) && [0, word].contains(&named[index]), "{word:#x}");
            named[index] = word;
        }
        if round % 3 == 0 {
            // SAFETY: as above; a sequence that the thread is not in.
            unsafe { sequence().write_volatile(0) };
        }
    }
    assert!(named[0] != 0 && named[1] != 0 && named[0] != named[1], "each stub has its own");
    assert_eq!((cpus.counted(), cpus.owned()), (1000, 0));
}

/// A program that calls something sees a CPU only if it owns one, and the next claim finds the number again.
#[test]
fn a_run_without_a_cpu_between_two_that_own_it() {
    let mut world = World::new();
    let Some(cpus) = Cpus::of(&mut world) else { return println!("skipped: libc registers no struct rseq") };
    let link = counter(&mut world, &cpus);
    let seen = world.data(1);
    let entry = world.assemble(|asm| {
        asm.mov(ecx, dword_ptr(rsi + 8)).unwrap();
        asm.mov(rax, seen as u64).unwrap();
        asm.mov(dword_ptr(rax), ecx).unwrap();
        asm.ret().unwrap();
    });
    let other = world.link(entry, ContextUse::NONE, false);
    let function = probed(&mut world, &[other, link, other]);
    world.run();
    introduce(&world, &cpus);
    for round in 1..=100 {
        call_until_run(&world, &cpus, &link, function);
        // SAFETY: the test's word.
        assert_eq!(unsafe { seen.read_volatile() } as u32, RunContext::NO_CPU);
        assert_eq!((cpus.counted(), cpus.owned()), (round, 0));
    }
}

/// What happens to the slot while the program runs: it is given back only if it is still the run's, in the run's process.
#[test]
fn a_release_that_is_in_doubt_is_the_agents() {
    // The program makes the fork page another process's, or the slot another thread's.
    for what in 0..2 {
        let mut world = World::new();
        let Some(cpus) = Cpus::of(&mut world) else {
            return println!("skipped: libc registers no struct rseq");
        };
        let (page, slots) = (&raw const *cpus.page as u64, cpus.slots.as_ptr() as u64);
        let entry = world.assemble(|asm| {
            if what == 0 {
                asm.mov(rax, page).unwrap();
            } else {
                asm.mov(ecx, dword_ptr(rsi + 8)).unwrap();
                asm.shl(rcx, 6).unwrap();
                asm.mov(rax, slots).unwrap();
                asm.add(rax, rcx).unwrap();
            }
            asm.mov(qword_ptr(rax), 5).unwrap();
            asm.ret().unwrap();
        });
        let mut link = world.link(entry, ContextUse::NONE, false);
        link.needs.cpu = true;
        let function = probed(&mut world, &[link]);
        world.run();
        assert!(in_child(|| {
            introduce(&world, &cpus);
            let before = GIVEN_BACK.load(Relaxed);
            call_until_run(&world, &cpus, &link, function);
            GIVEN_BACK.load(Relaxed) == before + 1 && cpus.owned() == 1
        }));
    }
}

/// A program that is short and calls nothing stands in the stub itself.
#[test]
fn a_program_in_the_stub() {
    let mut world = World::new();
    let Some(cpus) = Cpus::of(&mut world) else { return println!("skipped: libc registers no struct rseq") };
    let counters = cpus.counters.as_ptr() as u64;
    let code = {
        let mut asm = iced_x86::code_asm::CodeAssembler::new(64).unwrap();
        asm.mov(ecx, dword_ptr(rsi + 8)).unwrap();
        asm.shl(rcx, 6).unwrap();
        asm.mov(rax, counters).unwrap();
        asm.inc(qword_ptr(rax + rcx)).unwrap();
        asm.ret().unwrap();
        asm.assemble(0).unwrap()
    };
    let uses = ProgramUse::of(&code);
    assert!(!uses.calls);
    let entry = world.arena.add_program(&code, &[], |_| None).unwrap();
    let mut link = world.link(entry, ContextUse::NONE, false);
    link.needs.cpu = true;
    link.uses = uses;
    let start = world.next_code();
    let function = probed(&mut world, &[link]);
    assert_eq!(function, start);
    world.run();
    introduce(&world, &cpus);
    for _ in 0..10 {
        call_until_run(&world, &cpus, &link, function);
    }
    assert_eq!((cpus.counted(), cpus.owned()), (10, 0));
}
