//! The kernel's verifier suite, executed: what the verifier accepts touches nothing but its own memory, and gives what the
//! kernel says, interpreted and compiled. Skipped where the suite is not at hand.

use crate::conformance::shared;
use beeline_abi::code::Symbol;
use beeline_abi::map::{DATA_OFFSET, MapHandle, MapShape, MapType};
use beeline_abi::run::RunContext;
use beeline_helpers::table;
use beeline_interp::memory::{Checked, Native, NativeMap, Rights};
use beeline_interp::{Limits, run};
use beeline_jit::{CompileOptions, compile};
use beeline_maps::create::{Identity, create};
use beeline_maps::{handle, layout};
use beeline_verifier::{MapInfo, Options, ProgType, Program, Verified, verify};
use beeline_vm::hex;
use beeline_vm::native::Executable;
use serde_json::Value;
use std::alloc::{Layout, alloc_zeroed, dealloc};

/// A map in memory of its own.
struct Map {
    base: *mut u8,
    memory: Layout,
    handle: Box<MapHandle>,
}

impl Map {
    fn new(shape: &MapShape) -> Map {
        let len = layout::layout(shape).expect("a layout").file_len;
        let memory = Layout::from_size_align(len as usize, 4096).expect("a size");
        // SAFETY: the length is not 0; the memory is ours and zeroed.
        let base = unsafe { alloc_zeroed(memory) };
        let identity = Identity { id: 1, name: b"test", seed: 0, btf_key_type_id: 0, btf_value_type_id: 0 };
        // SAFETY: `base` is page-aligned and has `len` bytes that nobody else knows.
        let handle = unsafe {
            create(base, len, shape, &identity).expect("a map");
            handle::open(base, len, len, base as u64).expect("a handle")
        };
        if shape.map_type == MapType::ARRAY && shape.value_size == 48 {
            // SAFETY: the first element's first eight words.
            unsafe {
                let words = base.add(DATA_OFFSET as usize).cast::<u32>();
                words.write(28);
                words.add(7).write(0xabcd_ef12);
            }
        }
        Map { base, memory, handle: Box::new(handle) }
    }

    fn addresses(&self) -> NativeMap {
        NativeMap { handle: &raw const *self.handle as u64, data: self.handle.data }
    }
}

impl Drop for Map {
    fn drop(&mut self) {
        // SAFETY: as it was allocated.
        unsafe { dealloc(self.base, self.memory) };
    }
}

/// The shape of a kind of map; none: a kind that this test has no memory for.
fn shape(kind: &str) -> Option<MapShape> {
    let (map_type, key_size, value_size) = match kind {
        "map_array_48b" => (MapType::ARRAY, 4, 48),
        "map_array_small" => (MapType::ARRAY, 4, 1),
        "map_hash_8b" => (MapType::HASH, 8, 8),
        "map_hash_16b" => (MapType::HASH, 8, 16),
        "map_hash_48b" => (MapType::HASH, 8, 48),
        _ => return None,
    };
    Some(MapShape { map_type, key_size, value_size, max_entries: 1, map_flags: 0, cpus: 2 })
}

fn prog_type(name: &str) -> Option<ProgType> {
    match name {
        "unspec" | "socket_filter" => Some(ProgType::SOCKET_FILTER),
        "kprobe" => Some(ProgType::KPROBE),
        "tracepoint" => Some(ProgType::TRACEPOINT),
        "perf_event" => Some(ProgType::PERF_EVENT),
        "raw_tracepoint" => Some(ProgType::RAW_TRACEPOINT),
        _ => None,
    }
}

/// The program of a row, with its maps; none when it needs what is not here.
fn program(row: &Value) -> Option<Program> {
    let mut insns = hex::instructions(row["insns"].as_str()?).ok()?;
    let mut maps = Vec::new();
    for (kind, places) in row["fixups"].as_object()? {
        for place in places.as_array()? {
            insns[place.as_u64()? as usize].imm = maps.len() as i32;
        }
        maps.push(MapInfo { shape: shape(kind)?, name: kind.clone(), ..MapInfo::default() });
    }
    let prog_type = prog_type(row["prog_type"].as_str()?)?;
    Some(Program { prog_type, gpl_compatible: true, insns, maps, ..Program::default() })
}

/// Bytes that stand for any context.
const CONTEXT: usize = 8192;

fn maps(verified: &Verified) -> Vec<Map> {
    verified.program().maps.iter().map(|map| Map::new(&map.shape)).collect()
}

fn interpreted(verified: &Verified) -> Result<u64, String> {
    let maps = maps(verified);
    let addresses: Vec<NativeMap> = maps.iter().map(Map::addresses).collect();
    let mut context = vec![0; CONTEXT];
    let mut memory = Checked::new();
    let address = memory.lend(&mut context, Rights::Write);
    for map in &maps {
        let data = map.memory.size() as u64 - DATA_OFFSET;
        // SAFETY: the map's memory outlives `memory`.
        unsafe { memory.lend_raw(map.handle.data, data, Rights::Write) };
    }
    // SAFETY: the program is verified.
    let host = unsafe { Native::new(|id| table::by_id(id).map(|helper| helper.call), &addresses) };
    let mut context = RunContext::default();
    let limits = Limits { instructions_max: 1_000_000 };
    let arguments = [address, 0, 0, 0, 0];
    let program = beeline_interp::Program::new(verified.insns());
    run(&program, &mut memory, &host, arguments, &raw mut context, limits).map_err(|trap| trap.to_string())
}

fn compiled(verified: &Verified) -> Result<u64, String> {
    let maps = maps(verified);
    let resolve = |symbol| match symbol {
        Symbol::Helper(id) => table::by_id(id).map(|helper| helper.call as usize as u64),
        Symbol::MapHandle(index) => Some(maps[index as usize].addresses().handle),
        Symbol::MapData(index) => Some(maps[index as usize].addresses().data),
        Symbol::Image => None,
    };
    let image = compile(verified, &CompileOptions::default()).map_err(|error| error.to_string())?;
    let executable = Executable::link(image.image(), resolve).map_err(|error| error.to_string())?;
    let mut context = vec![0u8; CONTEXT];
    // SAFETY: the program is verified; the interpreter has run it on checked memory.
    Ok(unsafe { executable.call_program(context.as_mut_ptr() as u64, &mut RunContext::default()) })
}

/// Programs whose result is not theirs alone; they are executed, not compared.
const INCOMPARABLE: [(u64, &str); 10] = [
    (124, "returns a byte of stack that nobody wrote"),
    (232, "returns the context's address"),
    (234, "returns the length of the kernel's test packet"),
    (910, "returns a word of stack that nobody wrote"),
    (1012, "returns an address"),
    (1013, "returns an address"),
    (1062, "returns the context's address"),
    (1067, "returns part of the context's address"),
    (1068, "returns part of the context's address"),
    (1149, "returns an address"),
];

/// Calls whose results are not the same twice: time, CPU, random numbers, ids.
fn is_repeatable(verified: &Verified) -> bool {
    let calls = (0..verified.insns().len()).filter_map(|pc| verified.call(pc));
    calls.map(|call| call.helper).all(|helper| matches!(helper, 1 | 2 | 3 | 181))
}

#[test]
fn accepted_programs_do_what_the_kernel_says() {
    // Programs that are hard to verify are the verifier's tests, not these.
    let mut options = Options::default();
    options.limits.insns_processed_max = 5000;
    let Some(rows) = shared("verifier/tests.jsonl") else { return };
    let (mut executed, mut compared, mut failures) = (0, 0, Vec::new());
    for row in rows.iter().filter(|row| row["cls"] == "core" || row["cls"] == "tracing") {
        let Some(program) = program(row) else { continue };
        let Ok(verified) = verify(program, &options) else { continue };
        executed += 1;
        let place = format!("{} {}", row["id"], row["name"]);
        let result = match interpreted(&verified) {
            Ok(result) => result,
            Err(reason) => {
                failures.push(format!("{place}: interpreter: {reason}"));
                continue;
            }
        };
        let native = match compiled(&verified) {
            Ok(native) => native,
            Err(reason) => {
                failures.push(format!("{place}: compiler: {reason}"));
                continue;
            }
        };
        let expected = row["retvals"].as_array().and_then(|values| values.first()).and_then(Value::as_u64);
        if !is_repeatable(&verified) || INCOMPARABLE.iter().any(|(id, _)| row["id"] == *id) {
            continue;
        }
        if native != result {
            failures.push(format!("{place}: interpreter {result:#x}, compiler {native:#x}"));
        }
        if let Some(expected) = expected.filter(|_| row["verdict"] == "accept") {
            compared += 1;
            if expected as u32 != result as u32 {
                failures.push(format!("{place}: r0 = {:#x}, kernel {expected:#x}", result as u32));
            }
        }
    }
    println!("executed {executed}, compared with the kernel {compared}");
    assert!(failures.is_empty(), "{} failures:\n{}", failures.len(), failures.join("\n"));
    assert!(executed > 200 && compared > 150, "executed {executed}, compared {compared}");
}
