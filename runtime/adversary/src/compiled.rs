//! An accepted program, compiled and executed on real memory: the results must be the interpreter's.
//!
//! Helpers are functions whose results depend on their arguments only, so that both engines find the same. A program may see
//! where its stack lies, and what was never written there; it is interpreted on several stacks first, and only when that
//! makes no difference the compiled one must agree.

use crate::maps;
use crate::numbers::Numbers;
use beeline_abi::code::Symbol;
use beeline_abi::map::{MapHandle, MapShape, MapType};
use beeline_abi::run::RunContext;
use beeline_helpers::proto::{ArgKind, MemAccess, RetKind};
use beeline_interp::memory::{HelperFunction, Native, NativeMap, Trusted};
use beeline_interp::{Limits, Program as Decoded, run};
use beeline_isa::{Insn, opcode as o};
use beeline_jit::{CompileOptions, compile};
use beeline_verifier::{MapInfo, ProgType, Verified};
use beeline_vm::native::Executable;
use std::cell::RefCell;

/// The CPU that runs own.
const CPU: u32 = 1;
/// Most instructions of an interpreted run.
const STEPS_MAX: u64 = 20_000;
/// Words of the context.
const CONTEXT_WORDS: usize = (1 << 16) / 8;
/// Records that can be reserved in one run, and words of each.
const RECORDS: usize = 8;
const RECORD_WORDS: usize = 64;

/// What helpers find. One of each thread.
#[derive(Default)]
struct Surroundings {
    /// The program's maps, then members of maps of maps.
    handles: Box<[MapHandle]>,
    /// Data of each.
    data: Vec<Vec<u64>>,
    /// By map: where its members are among the handles.
    member: Vec<Option<usize>>,
    context: Vec<u64>,
    records: Vec<Vec<u64>>,
    reserved: usize,
}

thread_local! {
    static SURROUNDINGS: RefCell<Surroundings> = RefCell::default();
}

impl Surroundings {
    fn new(infos: &[MapInfo]) -> Surroundings {
        let members = infos.iter().filter_map(|info| info.inner.as_deref());
        let shapes = infos.iter().chain(members).map(|info| info.shape).collect::<Vec<_>>();
        let mut next = infos.len();
        let member = infos.iter().map(|info| {
            info.inner.as_ref().map(|_| {
                next += 1;
                next - 1
            })
        });
        let member = member.collect();
        let mut data = shapes.iter().map(|shape| vec![0u64; words(shape)]).collect::<Vec<_>>();
        let handles = shapes.iter().zip(&mut data).map(|(&shape, data)| MapHandle {
            data: data.as_mut_ptr() as u64,
            stride: stride(&shape),
            cpu_stride: cpu_stride(&shape),
            shape,
            ..MapHandle::default()
        });
        Surroundings {
            handles: handles.collect(),
            data,
            member,
            context: vec![0; CONTEXT_WORDS],
            records: vec![vec![0; RECORD_WORDS]; RECORDS],
            reserved: 0,
        }
    }

    /// The same contents for the same seed.
    fn fill(&mut self, seed: u64) {
        let mut numbers = Numbers::new(seed);
        self.reserved = 0;
        for words in self.data.iter_mut().chain(&mut self.records) {
            words.iter_mut().for_each(|word| *word = numbers.interesting());
        }
        self.context.fill(0);
        self.context[..40].iter_mut().for_each(|word| *word = numbers.interesting());
        for (word, bytes) in
            self.data[maps::FROZEN as usize].iter_mut().zip(maps::frozen_contents().chunks(8))
        {
            *word = bytes.iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte));
        }
    }

    fn maps(&self) -> Vec<NativeMap> {
        self.handles
            .iter()
            .map(|handle| NativeMap { handle: &raw const *handle as u64, data: handle.data })
            .collect()
    }

    /// What a run leaves behind.
    fn contents(&self) -> (Vec<u64>, Vec<u64>) {
        (self.data.concat(), self.context[..64].to_vec())
    }
}

fn stride(shape: &MapShape) -> u64 {
    u64::from(shape.value_size).next_multiple_of(8)
}

fn cpu_stride(shape: &MapShape) -> u64 {
    (stride(shape) * u64::from(shape.max_entries.min(8))).next_multiple_of(64)
}

fn words(shape: &MapShape) -> usize {
    (cpu_stride(shape) * u64::from(shape.cpus) / 8) as usize + 8
}

/// r0 and what is left in maps and context.
type Outcome = (u64, (Vec<u64>, Vec<u64>));

/// Compares the two engines on one program.
///
/// # Errors
/// What differs. `Ok(false)`: nothing could be compared.
pub fn compare(verified: &Verified, seed: u64) -> Result<bool, String> {
    const PLAIN: [ProgType; 5] = [
        ProgType::KPROBE,
        ProgType::TRACEPOINT,
        ProgType::RAW_TRACEPOINT,
        ProgType::PERF_EVENT,
        ProgType::SYSCALL,
    ];
    if !PLAIN.contains(&verified.program().prog_type) {
        return Ok(false);
    }
    SURROUNDINGS.with_borrow_mut(|surroundings| {
        if surroundings.handles.is_empty() {
            *surroundings = Surroundings::new(&verified.program().maps);
        }
    });
    let decoded = Decoded::new(verified.insns());
    let Some(expected) = interpret(&decoded, seed, 0) else { return Ok(false) };
    if (1..4).any(|stack| interpret(&decoded, seed, stack).as_ref() != Some(&expected)) {
        return Ok(false);
    }
    for options in [CompileOptions { inline: true }, CompileOptions { inline: false }] {
        let Ok(image) = compile(verified, &options) else { return Ok(false) };
        let maps = SURROUNDINGS.with_borrow(Surroundings::maps);
        let resolve = |symbol| match symbol {
            Symbol::Helper(id) => helper(id).map(|function| function as usize as u64),
            Symbol::MapHandle(index) => maps.get(index as usize).map(|map| map.handle),
            Symbol::MapData(index) => maps.get(index as usize).map(|map| map.data),
            Symbol::HostFunction(_) | Symbol::Image => None,
        };
        let Ok(executable) = Executable::link(image.image(), resolve) else { return Ok(false) };
        let found = execute(&executable, seed);
        if found != expected {
            return Err(difference(&expected, &found, options));
        }
    }
    Ok(true)
}

fn difference(expected: &Outcome, found: &Outcome, options: CompileOptions) -> String {
    let (words, others) = (&expected.1.0, &found.1.0);
    let map = words.iter().zip(others).position(|(word, other)| word != other);
    let context = expected.1.1.iter().zip(&found.1.1).position(|(word, other)| word != other);
    format!(
        "compiled with {options:?} it returns {:#x}, interpreted {:#x}; first different word of maps {map:?}, of the context \
         {context:?}",
        found.0, expected.0
    )
}

fn new_run() -> RunContext {
    let mut run = RunContext::default();
    run.access.cpu = CPU;
    run
}

/// Writes to all of the stack, so that what a program does not write itself is this.
fn dirty(numbers: &mut Numbers) -> Vec<Insn> {
    let store = |slot: i16, imm| Insn::new(o::ST | o::MEM | o::DW, 10, 0, -8 * slot, imm);
    let mut insns = (1..=64).map(|slot| store(slot, numbers.word() as i32)).collect::<Vec<_>>();
    insns.extend([
        Insn::new(o::ALU64 | o::MOV, 0, 0, 0, 0),
        Insn::new(o::JMP | o::JEQ, 1, 0, 2, 0),
        Insn::new(o::ALU64 | o::SUB, 1, 0, 0, 1),
        Insn::new(o::JMP | o::CALL, 0, o::PSEUDO_CALL, 0, -68),
        Insn::new(o::JMP | o::EXIT, 0, 0, 0, 0),
    ]);
    insns
}

/// Interprets the program on stack number `stack`; none when it does not come to its end in time.
fn interpret(decoded: &Decoded, seed: u64, stack: u64) -> Option<Outcome> {
    let (maps, context) = prepare(seed);
    // Other stacks that are in use, so that each run has its own at another address.
    // SAFETY: nothing runs on them.
    let others = (0..stack).map(|_| unsafe { Trusted::new() }).collect::<Vec<_>>();
    // SAFETY: the program was accepted by the verifier, and has run in memory that checks; the maps live on.
    let (mut memory, host) = unsafe { (Trusted::new(), Native::new(helper, &maps)) };
    let limits = Limits { instructions_max: STEPS_MAX };
    if stack != 0 {
        let dirty = Decoded::new(&dirty(&mut Numbers::new(stack)));
        run(&dirty, &mut memory, &host, [7, 0, 0, 0, 0], std::ptr::null_mut(), limits).ok()?;
    }
    let mut context_of_run = new_run();
    let result =
        run(decoded, &mut memory, &host, [context, 0, 0, 0, 0], &raw mut context_of_run, limits).ok()?;
    drop(others);
    Some((result, SURROUNDINGS.with_borrow(Surroundings::contents)))
}

fn execute(executable: &Executable, seed: u64) -> Outcome {
    let (_, context) = prepare(seed);
    // SAFETY: the image is a `CodeImage`'s; the context is as large as its program type demands.
    let result = unsafe { executable.call_program(context, &mut new_run()) };
    (result, SURROUNDINGS.with_borrow(Surroundings::contents))
}

/// Contents for a run; gives the maps and the context's address.
fn prepare(seed: u64) -> (Vec<NativeMap>, u64) {
    SURROUNDINGS.with_borrow_mut(|surroundings| {
        surroundings.fill(seed);
        (surroundings.maps(), surroundings.context.as_mut_ptr() as u64)
    })
}

/// The helpers whose prototypes say all about them.
macro_rules! by_prototype {
    ($($id:literal)*) => {
        fn plain(id: u32) -> Option<HelperFunction> {
            match id {
                $($id => Some(answer::<$id>),)*
                _ => None,
            }
        }
    };
}

by_prototype! {
    2 3 4 5 6 7 8 14 15 16 25 27 35 36 42 45 67 80 105 106 109 112 113 114 115 117 118 120 125 130 134 160 165 173 174 177 182
    208
}

fn helper(id: u32) -> Option<HelperFunction> {
    let function: HelperFunction = match id {
        1 => look_up,
        12 => tail_call,
        131 => reserve,
        132 | 133 => release,
        164 => for_each,
        181 => bpf_loop,
        id => return plain(id),
    };
    Some(function)
}

/// Fills what the prototype says that it writes; returns a number that depends on nothing else.
unsafe extern "sysv64" fn answer<const ID: u32>(
    r1: u64,
    r2: u64,
    r3: u64,
    r4: u64,
    r5: u64,
    run: *mut RunContext,
) -> u64 {
    const GET_SMP_PROCESSOR_ID: u32 = 8;
    const SIZED: [u32; 4] = [45, 114, 115, 67];
    let Some(helper) = beeline_helpers::by_id(ID) else { return 0 };
    let arguments = [r1, r2, r3, r4, r5];
    let mut size = 0;
    for (index, kind) in helper.proto.args.iter().enumerate() {
        let len = match *kind {
            ArgKind::Mem { access, .. } => {
                size = arguments[index + 1];
                if access == MemAccess::Read || arguments[index] == 0 { 0 } else { size }
            }
            ArgKind::FixedMem { access, size, .. } if access != MemAccess::Read => size.into(),
            _ => 0,
        };
        for byte in 0..len {
            // SAFETY: the verifier proved that the helper may write these bytes.
            unsafe { *((arguments[index] + byte) as *mut u8) = (byte as u8).wrapping_mul(7) ^ ID as u8 };
        }
    }
    match helper.proto.ret {
        // SAFETY: the run is the engine's.
        RetKind::Integer if ID == GET_SMP_PROCESSOR_ID => u64::from(unsafe { (*run).access.cpu }),
        RetKind::Integer if SIZED.contains(&ID) => size / 2,
        RetKind::Integer => Numbers::new(u64::from(ID)).interesting(),
        _ => 0,
    }
}

/// Finds by the key alone, in hashes too.
unsafe extern "sysv64" fn look_up(
    map: u64,
    key: u64,
    _r3: u64,
    _r4: u64,
    _r5: u64,
    run: *mut RunContext,
) -> u64 {
    // SAFETY: r1 is one of our handles, r2 the address of at least four bytes, the run is the engine's.
    let (handle, key, cpu) =
        unsafe { (*(map as *const MapHandle), (key as *const u32).read_unaligned(), (*run).access.cpu) };
    let shape = handle.shape;
    let index = match shape.map_type {
        MapType::ARRAY_OF_MAPS => return member(map, key),
        MapType::ARRAY | MapType::PERCPU_ARRAY => key,
        // A hash has the keys that are even.
        _ if key.is_multiple_of(2) => key / 2 % shape.max_entries,
        _ => return 0,
    };
    if index >= shape.max_entries {
        return 0;
    }
    let cpu = if shape.map_type == MapType::PERCPU_ARRAY { u64::from(cpu) } else { 0 };
    handle.data + cpu * handle.cpu_stride + u64::from(index) * handle.stride
}

/// The member of a map of maps.
fn member(map: u64, key: u32) -> u64 {
    SURROUNDINGS.with_borrow(|surroundings| {
        let outer = surroundings.handles.iter().position(|handle| &raw const *handle as u64 == map);
        let member = outer.and_then(|outer| surroundings.member.get(outer).copied().flatten());
        match member {
            Some(member) if key < 2 => &raw const surroundings.handles[member] as u64,
            _ => 0,
        }
    })
}

extern "sysv64" fn tail_call(_r1: u64, _r2: u64, _r3: u64, _r4: u64, _r5: u64, _run: *mut RunContext) -> u64 {
    0
}

extern "sysv64" fn reserve(_map: u64, size: u64, _r3: u64, _r4: u64, _r5: u64, _run: *mut RunContext) -> u64 {
    SURROUNDINGS.with_borrow_mut(|surroundings| {
        let next = surroundings.reserved;
        surroundings.reserved += 1;
        let record = surroundings.records.get_mut(next).filter(|record| size <= 8 * record.len() as u64);
        record.map_or(0, |record| record.as_mut_ptr() as u64)
    })
}

extern "sysv64" fn release(_r1: u64, _r2: u64, _r3: u64, _r4: u64, _r5: u64, _run: *mut RunContext) -> u64 {
    0
}

type Callback = unsafe extern "sysv64" fn(u64, u64, u64, u64, u64, *mut RunContext) -> u64;

unsafe extern "sysv64" fn for_each(
    map: u64,
    callback: u64,
    context: u64,
    flags: u64,
    _r5: u64,
    run: *mut RunContext,
) -> u64 {
    if flags != 0 {
        return -22i64 as u64;
    }
    // SAFETY: r1 is one of our handles.
    let handle = unsafe { *(map as *const MapHandle) };
    // SAFETY: compiled code passes the address of a callback; the interpreter, that of its bridge.
    let callback = unsafe { std::mem::transmute::<usize, Callback>(callback as usize) };
    for index in 0..u64::from(handle.shape.max_entries) {
        let key = index;
        let value = handle.data + index * handle.stride;
        // SAFETY: as above; key and value are alive.
        if unsafe { callback(map, &raw const key as u64, value, context, 0, run) } != 0 {
            return index + 1;
        }
    }
    handle.shape.max_entries.into()
}

unsafe extern "sysv64" fn bpf_loop(
    count: u64,
    callback: u64,
    context: u64,
    flags: u64,
    _r5: u64,
    run: *mut RunContext,
) -> u64 {
    const LOOPS_MAX: u64 = 8 * 1024 * 1024;
    let count = u64::from(count as u32);
    if flags != 0 {
        return -22i64 as u64;
    }
    if count > LOOPS_MAX {
        return -7i64 as u64;
    }
    // SAFETY: compiled code passes the address of a callback.
    let callback = unsafe { std::mem::transmute::<usize, Callback>(callback as usize) };
    for index in 0..count {
        // SAFETY: as above.
        if unsafe { callback(index, context, 0, 0, 0, run) } != 0 {
            return index + 1;
        }
    }
    count
}
