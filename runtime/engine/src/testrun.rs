//! A program run here, in this process, as `BPF_PROG_TEST_RUN` runs one in the kernel. The only module with `unsafe`.
//!
//! The program and those that it can tail-call are linked into a mapping of their own, which is written first and
//! executable afterwards; their maps are the store's. What surrounds them is what an attached process has, but for
//! sites and threads.

use crate::plan::Reach;
use crate::{Engine, EngineError};
use beeline_abi::code::Symbol;
use beeline_abi::link::LinkRuntime;
use beeline_abi::map::MapHandle;
use beeline_abi::process::{CpuSlot, ForkPage, ProcessBlock, ProgramRuntime};
use beeline_abi::run::RunContext;
use beeline_abi::trace::TRACE_FILE_LEN;
use beeline_helpers::task::SCRATCH_LEN;
use beeline_interp::memory::{HelperFunction, Native, NativeMap, Trusted};
use beeline_object::section_table::prog_type;
use beeline_store::{MapEntry, Mapping, Program};
use beeline_stub::Arena;
use rustix::mm::{MapFlags, MprotectFlags, ProtFlags, mmap_anonymous, mprotect, munmap};
use rustix::thread::{CpuSet, sched_getaffinity, sched_getcpu, sched_setaffinity};
use std::collections::BTreeMap;
use std::ffi::c_void;
use std::mem::MaybeUninit;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// How to run a program.
#[derive(Clone, Debug, Default)]
pub struct RunOptions {
    /// The first bytes of the context; what is missing is zero.
    pub context: Vec<u8>,
    /// How often, at least once.
    pub repeat: u32,
    /// Interpret it.
    pub interpreter: bool,
}

/// What came of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RunResult {
    /// r0 of the last run, as the kernel returns it: 32 bits.
    pub result: u32,
    /// Mean duration of a run.
    pub ns_per_run: u64,
}

/// Bytes of the context that is there for a program: the most that one can be allowed to read
/// (`PERF_MAX_TRACE_SIZE`, a tracepoint's).
const CONTEXT_LEN: usize = 8192;

/// Types whose context holds nothing that a program may follow as a pointer: any bytes will do.
const RUNNABLE: [u32; 5] = [
    prog_type::KPROBE,
    prog_type::TRACEPOINT,
    prog_type::RAW_TRACEPOINT,
    prog_type::PERF_EVENT,
    prog_type::SYSCALL,
];

/// How long to wait for a CPU that a thread of a target owns: far longer than any run.
const CPU_WAIT_MAX: Duration = Duration::from_secs(1);

impl Engine {
    /// Runs a program of the store in this process, on the store's maps.
    ///
    /// # Errors
    /// When its type cannot be run here, or what it needs is not there.
    pub fn test_run(&self, program: &Program, options: &RunOptions) -> Result<RunResult, EngineError> {
        let fail = |reason: String| EngineError::Run { program: program.name.clone(), reason };
        if !RUNNABLE.contains(&program.prog_type) {
            let name = crate::program_type_name(program.prog_type);
            return Err(fail(format!("running {name} programs is not supported yet")));
        }
        if let Some(function) = program.host_functions.first() {
            let name = &function.name;
            return Err(fail(format!("it calls {name}, a function of the processes that it is attached to")));
        }
        if options.context.len() > CONTEXT_LEN {
            return Err(fail(format!("a context has at most {CONTEXT_LEN} bytes")));
        }
        let surroundings = Surroundings::new(self, program).map_err(|error| match error {
            SurroundingsError::Engine(error) => error,
            SurroundingsError::Reason(reason) => fail(reason),
        })?;
        let mut context = vec![0u64; CONTEXT_LEN / 8];
        for (word, bytes) in context.iter_mut().zip(options.context.chunks(8)) {
            let mut whole = [0; 8];
            whole[..bytes.len()].copy_from_slice(bytes);
            *word = u64::from_ne_bytes(whole);
        }
        let cpu = match surroundings.needs_cpu {
            true => Some(OwnedCpu::claim(&surroundings.cpu_slots, self.store().cpus()).map_err(fail)?),
            false => None,
        };
        let mut run = surroundings.run_context(cpu.as_ref());
        let repeat = options.repeat.max(1);
        let start = Instant::now();
        let mut result = 0;
        for _ in 0..repeat {
            run.tail_calls = 0;
            run.flags = 0;
            result = match options.interpreter {
                true => surroundings.interpret(program, &mut context, &mut run).map_err(fail)?,
                false => surroundings.execute(&mut context, &mut run),
            };
        }
        let ns = start.elapsed().as_nanos() / u128::from(repeat);
        Ok(RunResult { result: result as u32, ns_per_run: u64::try_from(ns).unwrap_or(u64::MAX) })
    }
}

enum SurroundingsError {
    Engine(EngineError),
    Reason(String),
}

impl From<EngineError> for SurroundingsError {
    fn from(error: EngineError) -> SurroundingsError {
        SurroundingsError::Engine(error)
    }
}

/// What an attached process has, in this one. Boxes and vectors are here to keep what the block points to.
struct Surroundings {
    block: Box<ProcessBlock>,
    scratch: Vec<u64>,
    cpu_slots: Mapping,
    /// The program's own maps in its order.
    own_maps: Vec<NativeMap>,
    entry: u64,
    needs_cpu: bool,
    _code: Executable,
    _maps: BTreeMap<u32, MapEntry>,
    _handles: Box<[MapHandle]>,
    _programs: Box<[ProgramRuntime]>,
    _fork_page: Box<ForkPage>,
    _task: Vec<u64>,
    _trace: Mapping,
}

impl Surroundings {
    fn new(engine: &Engine, program: &Program) -> Result<Surroundings, SurroundingsError> {
        let reason =
            |what: &str, error: &dyn std::fmt::Display| SurroundingsError::Reason(format!("{what}: {error}"));
        let (programs, maps) = Reach::from_program(engine, program.id)?;
        let handles: Box<[MapHandle]> = maps.values().map(|entry| *entry.file.handle()).collect();
        let ids: Vec<u32> = maps.keys().copied().collect();
        let native = |id: &u32| {
            let index = ids.binary_search(id).ok()?;
            Some(NativeMap { handle: &raw const handles[index] as u64, data: handles[index].data })
        };
        let mut code = Executable::reserve(programs.values().map(|it| it.program.code.len()).sum())
            .map_err(|error| reason("no memory for code", &error))?;
        let mut runtimes = Vec::with_capacity(programs.len());
        let mut needs_cpu = false;
        for (&id, entry) in &programs {
            let map_ids = &entry.program.map_ids;
            let resolve = |symbol| match symbol {
                Symbol::MapHandle(index) => native(map_ids.get(index as usize)?).map(|map| map.handle),
                Symbol::MapData(index) => native(map_ids.get(index as usize)?).map(|map| map.data),
                Symbol::Helper(id) => helper(id).map(|function| function as usize as u64),
                Symbol::HostFunction(_) | Symbol::Image => None,
            };
            let entry_at = code
                .arena
                .add_program(&entry.program.code, &entry.program.relocs, resolve)
                .map_err(|error| reason("it cannot be linked", &error))?;
            let flags = if entry.program.needs.cpu { LinkRuntime::NEEDS_CPU } else { 0 };
            needs_cpu |= entry.program.needs.cpu;
            runtimes.push(ProgramRuntime { id, flags, entry: entry_at });
        }
        code.publish().map_err(|error| reason("no memory for code", &error))?;
        let entry = runtimes.iter().find(|it| it.id == program.id).map_or(0, |it| it.entry);
        let own_maps = program.map_ids.iter().filter_map(native).collect();

        let store = engine.store();
        let map = |fd, len| Mapping::new(fd, len).map_err(|error| reason("a file of the store", &error));
        let cpu_slots = map(store.cpu_slots().map_err(EngineError::from)?, cpu_slots_len(store.cpus()))?;
        let trace = map(store.trace_log().map_err(EngineError::from)?, TRACE_FILE_LEN)?;
        let layout = engine.task_layout_of(program.id)?;
        let mut task = vec![0u64; (layout.memory_len() as usize).div_ceil(8)];
        // SAFETY: `ForkPage` is integers; all of them may be zero.
        let fork_page: Box<ForkPage> = Box::new(unsafe { MaybeUninit::zeroed().assume_init() });
        let runtimes: Box<[ProgramRuntime]> = runtimes.into();
        // SAFETY: `ProcessBlock` is integers; all of them may be zero.
        let mut block: Box<ProcessBlock> = Box::new(unsafe { MaybeUninit::zeroed().assume_init() });
        block.magic = beeline_abi::process::PROCESS_MAGIC;
        block.version = beeline_abi::ABI_VERSION;
        block.store_uuid = store.uuid();
        block.cpus = store.cpus();
        block.cpu_slots = cpu_slots.address();
        block.map_count = handles.len() as u32;
        block.maps = handles.as_ptr() as u64;
        block.program_count = runtimes.len() as u32;
        block.programs = runtimes.as_ptr() as u64;
        block.trace = trace.address();
        block.fork_page = &raw const *fork_page as u64;
        block.task = task.as_mut_ptr() as u64;
        block.task_len = (task.len() * 8) as u32;
        block.task_layout = layout;
        Ok(Surroundings {
            block,
            scratch: vec![0; SCRATCH_LEN as usize / 8],
            cpu_slots,
            own_maps,
            entry,
            needs_cpu,
            _code: code,
            _maps: maps,
            _handles: handles,
            _programs: runtimes,
            _fork_page: fork_page,
            _task: task,
            _trace: trace,
        })
    }

    fn run_context(&self, cpu: Option<&OwnedCpu<'_>>) -> RunContext {
        let mut run = RunContext {
            process: &raw const *self.block as u64,
            scratch: self.scratch.as_ptr() as u64,
            ..RunContext::default()
        };
        run.access.cpu = cpu.map_or(RunContext::NO_CPU, |cpu| cpu.cpu);
        run.access.owner = cpu.map_or(0, |cpu| cpu.owner);
        run
    }

    fn execute(&self, context: &mut [u64], run: &mut RunContext) -> u64 {
        type Entry = unsafe extern "sysv64" fn(*mut u8, *mut RunContext) -> u64;
        // SAFETY: the entry of a program in the store is a function of this type, linked and executable.
        let entry: Entry = unsafe { std::mem::transmute::<usize, Entry>(self.entry as usize) };
        run.regs = context.as_ptr() as u64;
        // SAFETY: the program was verified; its context is as long as any context that it can have been verified for,
        // and holds no pointers that it may follow; the run is complete.
        unsafe { entry(context.as_mut_ptr().cast(), run) }
    }

    fn interpret(&self, program: &Program, context: &mut [u64], run: &mut RunContext) -> Result<u64, String> {
        let decoded = beeline_interp::Program::new(&program.insns);
        run.regs = context.as_ptr() as u64;
        let arguments = [context.as_mut_ptr() as u64, 0, 0, 0, 0];
        // SAFETY: the program was verified, so the addresses that it computes are what they should be; helpers are the
        // table's; the maps stay mapped as long as `self`.
        let (mut memory, host) = unsafe { (Trusted::new(), Native::new(helper, &self.own_maps)) };
        let limits = beeline_interp::Limits::default();
        beeline_interp::run(&decoded, &mut memory, &host, arguments, run, limits)
            .map_err(|trap| trap.to_string())
    }
}

fn helper(id: u32) -> Option<HelperFunction> {
    beeline_helpers::by_id(id).map(|helper| helper.call)
}

fn cpu_slots_len(cpus: u32) -> u64 {
    (u64::from(cpus) * size_of::<CpuSlot>() as u64).next_multiple_of(beeline_abi::PAGE_SIZE)
}

/// A mapping for code: writable, then executable, never both.
struct Executable {
    base: *mut c_void,
    len: usize,
    arena: Arena,
}

impl Executable {
    /// Room for so many bytes of code, its alignment and jump slots for all helpers.
    fn reserve(code_len: usize) -> Result<Executable, rustix::io::Errno> {
        let slots = 16 * beeline_helpers::HELPERS_LEN;
        let len = (code_len + slots + 4096).next_multiple_of(4096) * 2;
        let writable = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice.
        let base = unsafe { mmap_anonymous(std::ptr::null_mut(), len, writable, MapFlags::PRIVATE)? };
        Ok(Executable { base, len, arena: Arena::new(base as u64, len as u64) })
    }

    /// Puts the arena's contents into place and makes them executable.
    fn publish(&mut self) -> Result<(), rustix::io::Errno> {
        let bytes = self.arena.bytes();
        let len = bytes.len().min(self.len);
        // SAFETY: the mapping is ours, writable and `self.len` bytes long.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.base.cast(), len) };
        // SAFETY: our own mapping.
        unsafe { mprotect(self.base, self.len, MprotectFlags::READ | MprotectFlags::EXEC) }
    }
}

impl Drop for Executable {
    fn drop(&mut self) {
        // SAFETY: our own mapping; nothing of it runs when its owner goes.
        let _ = unsafe { munmap(self.base, self.len) };
    }
}

/// A CPU of the store that this thread owns, on which it stays meanwhile.
struct OwnedCpu<'a> {
    slots: &'a Mapping,
    cpu: u32,
    owner: u64,
    before: CpuSet,
}

impl<'a> OwnedCpu<'a> {
    /// Threads of targets take a CPU in a restartable sequence, without a locked instruction. One that is interrupted in
    /// it starts again; so a locked instruction *on that very CPU* excludes them, and this thread is bound to it first.
    fn claim(slots: &'a Mapping, cpus: u32) -> Result<OwnedCpu<'a>, String> {
        let before = sched_getaffinity(None).map_err(|error| format!("its CPUs are not known: {error}"))?;
        let cpu = sched_getcpu();
        let mut only = CpuSet::new();
        only.set(cpu);
        sched_setaffinity(None, &only).map_err(|error| format!("it cannot be bound to a CPU: {error}"))?;
        let owner = beeline_helpers::owner::current(None, beeline_helpers::sys::thread_id());
        let claimed = OwnedCpu { slots, cpu: cpu as u32, owner, before };
        let deadline = Instant::now() + CPU_WAIT_MAX;
        while claimed.cpu < cpus && Instant::now() < deadline {
            let Some(word) = claimed.word() else { break };
            if word.compare_exchange(0, owner, Ordering::AcqRel, Ordering::Relaxed).is_ok() {
                return Ok(claimed);
            }
            std::thread::yield_now();
        }
        Err(format!("CPU {cpu} is in use by a process that carries probes"))
    }

    fn word(&self) -> Option<&std::sync::atomic::AtomicU64> {
        self.slots.word(self.cpu as usize * size_of::<CpuSlot>())
    }
}

impl Drop for OwnedCpu<'_> {
    fn drop(&mut self) {
        if let Some(word) = self.word() {
            let _ = word.compare_exchange(self.owner, 0, Ordering::AcqRel, Ordering::Relaxed);
        }
        let _ = sched_setaffinity(None, &self.before);
    }
}
