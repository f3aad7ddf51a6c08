//! Runs stubs in the test's own process: code in a mapping of its own, an agent of the simplest kind.
#![allow(dead_code, reason = "each test binary uses a part of it")]

use beeline_abi::code::{ContextUse, ProgramNeeds};
use beeline_abi::link::{LinkRuntime, LinkShared};
use beeline_abi::process::ProcessBlock;
use beeline_abi::run::RunContext;
use beeline_abi::thread::{RETURN_SLOTS, ReturnSlot, THREAD_SLOTS, ThreadSlot, home_index};
use beeline_site::{Binary, SitePlan, plan};
use beeline_stub::{
    AgentSymbols, Arena, Environment, LinkCode, ProgramUse, SiteCode, Stub, ThreadKey, patch_bytes,
};
use iced_x86::code_asm::CodeAssembler;
use std::cell::UnsafeCell;
use std::ptr;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// Bytes of a test's mapping: code first, the arena in the middle, data at the end.
const MAPPING_LEN: usize = 1 << 20;
const ARENA_AT: usize = MAPPING_LEN / 4;
const DATA_AT: usize = MAPPING_LEN / 2;
const DATA_LEN: usize = MAPPING_LEN / 2;

/// A process's worth of probes.
pub(crate) struct World {
    base: u64,
    code_used: usize,
    pub(crate) arena: Arena,
    pub(crate) environment: Environment,
    threads: Box<Threads>,
    links: Vec<&'static TestLink>,
    data_used: usize,
}

/// The agent's block: what `claim_slot` gets.
#[repr(C)]
pub(crate) struct Threads {
    process: UnsafeCell<ProcessBlock>,
    slots: UnsafeCell<Vec<ThreadSlotBox>>,
}

#[repr(C, align(64))]
struct ThreadSlotBox(ThreadSlot);

// SAFETY: a slot belongs to the thread whose key it has; keys are claimed by compare-and-swap.
unsafe impl Sync for Threads {}
// SAFETY: as above.
unsafe impl Send for Threads {}

/// A link's shared words and its runtime, at stable addresses.
#[repr(C)]
pub(crate) struct TestLink {
    pub(crate) shared: LinkShared,
    pub(crate) runtime: LinkRuntime,
}

impl TestLink {
    pub(crate) fn missed(&self) -> u64 {
        self.shared.missed.load(Ordering::Relaxed)
    }

    pub(crate) fn enable(&self, on: bool) {
        self.shared.enabled.store(u32::from(on), Ordering::Relaxed);
    }
}

impl World {
    pub(crate) fn new() -> World {
        World::with(false, ThreadKey::FsSelf)
    }

    pub(crate) fn with(small_stacks: bool, thread_key: ThreadKey) -> World {
        // SAFETY: a fresh anonymous mapping.
        let base = unsafe {
            libc::mmap(
                ptr::null_mut(),
                MAPPING_LEN,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        assert_ne!(base, libc::MAP_FAILED);
        let base = base as u64;
        let empty = || {
            // SAFETY: a slot of zeroes is a free one.
            unsafe { std::mem::zeroed::<ThreadSlotBox>() }
        };
        let slots: Vec<_> = (0..THREAD_SLOTS).map(|_| empty()).collect();
        // SAFETY: a block of zeroes is valid.
        let process = UnsafeCell::new(unsafe { std::mem::zeroed() });
        let threads = Box::new(Threads { process, slots: UnsafeCell::new(slots) });
        // SAFETY: nobody else looks at the slots yet.
        let first = unsafe { (*threads.slots.get()).as_mut_ptr() } as u64;
        let agent = AgentSymbols {
            claim_slot: claim_slot as *const () as u64,
            guard: guard as *const () as u64,
            missed: missed as *const () as u64,
            claim_cpu: claim_cpu as *const () as u64,
            release_cpu: release_cpu as *const () as u64,
            return_room: return_room as *const () as u64,
            return_find: return_find as *const () as u64,
        };
        let block = ptr::from_ref(&*threads) as u64;
        World {
            base,
            code_used: 0,
            arena: Arena::new(base + ARENA_AT as u64, (DATA_AT - ARENA_AT) as u64),
            environment: Environment {
                block,
                threads: first,
                thread_key,
                agent,
                small_stacks,
                cpu_slots: 0,
                cpus: 0,
                fork_page: 0,
            },
            threads,
            links: Vec::new(),
            data_used: 0,
        }
    }

    /// Puts code at a fresh place, 64-byte aligned, and returns its address.
    pub(crate) fn code(&mut self, bytes: &[u8]) -> u64 {
        let at = self.base + self.code_used as u64;
        self.write(at, bytes);
        self.code_used = (self.code_used + bytes.len() + 16).next_multiple_of(64);
        assert!(self.code_used <= ARENA_AT);
        at
    }

    /// Assembles code at a fresh place.
    pub(crate) fn assemble(&mut self, write: impl FnOnce(&mut CodeAssembler)) -> u64 {
        let mut asm = CodeAssembler::new(64).unwrap();
        write(&mut asm);
        let bytes = asm.assemble(self.base + self.code_used as u64).unwrap();
        self.code(&bytes)
    }

    /// Where the next code will be.
    pub(crate) fn next_code(&self) -> u64 {
        self.base + self.code_used as u64
    }

    /// Room for `words` zeroed words of data.
    pub(crate) fn data(&mut self, words: usize) -> *mut u64 {
        let at = self.base + (DATA_AT + self.data_used) as u64;
        self.data_used += (words * 8).next_multiple_of(64);
        assert!(self.data_used <= DATA_LEN);
        at as *mut u64
    }

    pub(crate) fn link(&mut self, entry: u64, context: ContextUse, is_return: bool) -> LinkCode {
        let needs = ProgramNeeds { context, ..ProgramNeeds::default() };
        let link = Box::leak(Box::new(TestLink {
            shared: LinkShared {
                magic: beeline_abi::link::LINK_MAGIC,
                version: beeline_abi::ABI_VERSION,
                id: 1,
                enabled: AtomicU32::new(1),
                prog_id: AtomicU32::new(0),
                missed: AtomicU64::new(0),
                hits: AtomicU64::new(0),
                owner: AtomicU32::new(0),
                reserved: [0; 5],
            },
            runtime: LinkRuntime { entry, ..LinkRuntime::default() },
        }));
        link.runtime.shared = ptr::from_ref(&link.shared) as u64;
        let code = LinkCode {
            session: None,
            runtime: ptr::from_ref(&link.runtime) as u64,
            enabled: ptr::from_ref(&link.shared.enabled) as u64,
            entry,
            needs,
            uses: ProgramUse::UNKNOWN,
            is_return,
            only_in: None,
            counts_hits: false,
            overrides: false,
        };
        self.links.push(link);
        code
    }

    /// The shared words of a link made here.
    pub(crate) fn shared(&self, link: &LinkCode) -> &TestLink {
        self.links.iter().find(|l| ptr::from_ref(&l.runtime) as u64 == link.runtime).unwrap()
    }

    /// Plans a site in `len` bytes of code at `start` (the whole function), `offset` bytes in.
    pub(crate) fn plan(&self, start: u64, len: usize, offset: u64, is_entry: bool) -> SitePlan {
        // SAFETY: the range was written by `code`.
        let code = unsafe { std::slice::from_raw_parts(start as *const u8, len) };
        let binary = Binary::from_bytes(elf(code)).unwrap();
        let mut plan = plan(&binary, CODE_VADDR + offset).unwrap();
        plan.is_entry = is_entry;
        plan
    }

    /// Makes the stub and patches the site; the code can run afterwards.
    pub(crate) fn probe(&mut self, plan: &SitePlan, address: u64, links: &[LinkCode]) -> Stub {
        let site = SiteCode { plan, address, site_runtime: 0x5173_0000, links };
        let stub = self.arena.add_stub(&self.environment, &site).unwrap();
        self.patch(plan, address, &stub);
        stub
    }

    /// Patches a site for which there is a stub.
    pub(crate) fn patch(&mut self, plan: &SitePlan, address: u64, stub: &Stub) {
        let patch = patch_bytes(plan, address, stub.address + u64::from(stub.entry)).unwrap();
        self.write(address, &patch);
    }

    /// Writes the arena and makes the code executable.
    pub(crate) fn run(&mut self) {
        let bytes = self.arena.bytes().to_vec();
        self.write(self.arena.base(), &bytes);
        self.protect(libc::PROT_READ | libc::PROT_EXEC);
    }

    /// Makes the code writable again.
    pub(crate) fn edit(&mut self) {
        self.protect(libc::PROT_READ | libc::PROT_WRITE);
    }

    fn protect(&self, protection: i32) {
        // SAFETY: the code half of our own mapping.
        let result = unsafe { libc::mprotect(self.base as *mut libc::c_void, DATA_AT, protection) };
        assert_eq!(result, 0);
    }

    fn write(&self, at: u64, bytes: &[u8]) {
        // SAFETY: inside our mapping, which is writable until `run`.
        unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), at as *mut u8, bytes.len()) }
    }

    /// The process block, before any stub runs.
    pub(crate) fn process(&mut self) -> &mut ProcessBlock {
        self.threads.process.get_mut()
    }

    /// The calling thread's slot.
    pub(crate) fn slot(&mut self) -> &mut ThreadSlot {
        let key = fs_base();
        let at = claim_slot(key, &self.threads, 0);
        // SAFETY: the calling thread's own slot.
        unsafe { &mut *at }
    }

    /// The calling thread's slot, while other threads use theirs.
    pub(crate) fn shared_slot(&self) -> *mut ThreadSlot {
        claim_slot(fs_base(), &self.threads, 0)
    }

    /// Calls the code at `at` as a function.
    pub(crate) fn call(&self, at: u64, a: u64, b: u64) -> u64 {
        // SAFETY: the test wrote a System V function there.
        let function: extern "sysv64" fn(u64, u64) -> u64 = unsafe { std::mem::transmute(at) };
        function(a, b)
    }
}

impl Drop for World {
    fn drop(&mut self) {
        // SAFETY: our own mapping; no thread is in it any more.
        unsafe { libc::munmap(self.base as *mut libc::c_void, MAPPING_LEN) };
    }
}

/// Runs `work` in a child; true when it returned true there.
pub(crate) fn in_child(work: impl FnOnce() -> bool) -> bool {
    // SAFETY: the child works on and leaves by `_exit`.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
        // SAFETY: ends the child.
        unsafe { libc::_exit(if matches!(outcome, Ok(true)) { 0 } else { 1 }) };
    }
    let mut status = 0;
    // SAFETY: our own child.
    let waited = unsafe { libc::waitpid(pid, &raw mut status, 0) };
    assert_eq!(waited, pid);
    if status != 0 {
        println!("child: wait status {status:#x}");
    }
    status == 0
}

/// Makes this thread's return stack, so that the tests' agent, which does not keep vector registers, is not asked later.
pub(crate) fn warm_returns(world: &mut World) {
    let word = 0u64;
    let room = world.environment.agent.return_room;
    // SAFETY: the tests' agent.
    let room: extern "sysv64" fn(&mut beeline_abi::thread::ThreadSlot, *const u64) -> u64 =
        unsafe { std::mem::transmute(room) };
    assert_eq!(room(world.slot(), &raw const word), 1);
}

pub(crate) fn fs_base() -> u64 {
    let key: u64;
    // SAFETY: the thread control block's first word points to itself.
    unsafe { std::arch::asm!("mov {}, fs:0", out(reg) key, options(nostack, preserves_flags, readonly)) };
    key
}

/// Link-time address of the code in [`elf`].
pub(crate) const CODE_VADDR: u64 = 0x1000;

/// A shared object with nothing but code.
pub(crate) fn elf(code: &[u8]) -> Vec<u8> {
    let mut file = Vec::new();
    file.extend_from_slice(&[0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    file.extend_from_slice(&3u16.to_le_bytes()); // ET_DYN
    file.extend_from_slice(&62u16.to_le_bytes()); // EM_X86_64
    file.extend_from_slice(&1u32.to_le_bytes());
    for word in [CODE_VADDR, 64, 0] {
        file.extend_from_slice(&word.to_le_bytes());
    }
    file.extend_from_slice(&0u32.to_le_bytes());
    for half in [64u16, 56, 1, 64, 0, 0] {
        file.extend_from_slice(&half.to_le_bytes());
    }
    file.extend_from_slice(&1u32.to_le_bytes()); // PT_LOAD
    file.extend_from_slice(&5u32.to_le_bytes()); // readable, executable
    for word in [0x1000, CODE_VADDR, CODE_VADDR, code.len() as u64, code.len() as u64, 0x1000] {
        file.extend_from_slice(&word.to_le_bytes());
    }
    file.resize(0x1000, 0);
    file.extend_from_slice(code);
    file
}

// The agent of the tests. The contracts are in ARCHITECTURE.md.

extern "sysv64" fn claim_slot(key: u64, block: &Threads, _sp: u64) -> *mut ThreadSlot {
    // SAFETY: the vector itself never changes.
    let slots = unsafe { &*block.slots.get() };
    for probe in 0..THREAD_SLOTS {
        let slot = &slots[((home_index(key) + probe) % THREAD_SLOTS) as usize].0;
        let found = slot.key.compare_exchange(0, key, Ordering::AcqRel, Ordering::Acquire);
        if found.is_ok() || found == Err(key) {
            return ptr::from_ref(slot).cast_mut();
        }
    }
    ptr::null_mut()
}

extern "sysv64" fn guard(slot: &ThreadSlot, sp: u64) -> u64 {
    u64::from(sp > slot.guard.load(Ordering::Relaxed))
}

extern "sysv64" fn missed(links: *const LinkRuntime, count: u64) {
    assert_eq!(count as u32, 1);
    let flags: u64;
    // SAFETY: reads the flags.
    unsafe { std::arch::asm!("pushfq; pop {}", out(reg) flags, options(nomem)) };
    assert_eq!(flags & 1 << 10, 0, "the agent copies upwards");
    // SAFETY: the stub passes a link of the test.
    let shared = unsafe { &*((*links).shared as *const LinkShared) };
    shared.missed.fetch_add(1, Ordering::Relaxed);
}

pub(crate) static CPU_CLAIMS: AtomicU64 = AtomicU64::new(0);
pub(crate) static CPU_RELEASES: AtomicU64 = AtomicU64::new(0);
pub(crate) static CPU_REFUSED: AtomicU64 = AtomicU64::new(0);

extern "sysv64" fn claim_cpu(run: &mut RunContext) -> u64 {
    if CPU_REFUSED.load(Ordering::Relaxed) != 0 {
        return 0;
    }
    CPU_CLAIMS.fetch_add(1, Ordering::Relaxed);
    run.access.cpu = 7;
    1
}

extern "sysv64" fn release_cpu(run: &mut RunContext) {
    assert_eq!(run.access.cpu, 7);
    run.access.cpu = RunContext::NO_CPU;
    CPU_RELEASES.fetch_add(1, Ordering::Relaxed);
}

extern "sysv64" fn return_room(slot: &mut ThreadSlot, sp: u64) -> u64 {
    if slot.returns_base == 0 {
        let stack: Vec<ReturnSlot> = vec![ReturnSlot::default(); RETURN_SLOTS as usize];
        slot.returns_base = stack.leak().as_mut_ptr() as u64;
        slot.returns_top = slot.returns_base;
        slot.returns_end = slot.returns_base + RETURN_SLOTS * size_of::<ReturnSlot>() as u64;
    }
    // SAFETY: `sp` is where a return address stands; entries below the top were pushed.
    unsafe {
        while let Some(top) = top_entry(slot)
            && (top.sp < sp || top.sp == sp && *(sp as *const u64) != top.trampoline)
        {
            slot.returns_top -= size_of::<ReturnSlot>() as u64;
        }
    }
    u64::from(slot.returns_top != slot.returns_end)
}

extern "sysv64" fn return_find(slot: &mut ThreadSlot, sp: u64) -> *const ReturnSlot {
    // SAFETY: entries below the top were pushed.
    unsafe {
        while let Some(top) = top_entry(slot) {
            if top.sp == sp {
                return top;
            }
            slot.returns_top -= size_of::<ReturnSlot>() as u64;
        }
    }
    ptr::null()
}

unsafe fn top_entry(slot: &ThreadSlot) -> Option<&'static ReturnSlot> {
    if slot.returns_top == slot.returns_base {
        return None;
    }
    let at = slot.returns_top - size_of::<ReturnSlot>() as u64;
    // SAFETY: the caller's.
    Some(unsafe { &*(at as *const ReturnSlot) })
}
