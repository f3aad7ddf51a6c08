//! Runs verified programs in this process, without a store: on maps of their own, a context of zeros or a packet.
//!
//! Each engine gets maps that were just made. The interpreter's memory is checked: a program that was accepted and touches
//! what is not its own is found out, before it is executed as machine code.

use super::maps::{Callee, MapSpec};
use super::row::Row;
use crate::native::Executable;
use beeline_abi::code::Symbol;
use beeline_abi::map::{Access, DATA_OFFSET, MapHandle};
use beeline_abi::process::{ForkPage, ProcessBlock, ProgramRuntime};
use beeline_abi::run::RunContext;
use beeline_helpers::by_id;
use beeline_helpers::task::SCRATCH_LEN;
use beeline_interp::memory::{Checked, HelperFunction, Native, NativeMap, Rights};
use beeline_interp::{Limits, run};
use beeline_isa::Insn;
use beeline_isa::opcode::{ALU64, CALL, EXIT, JMP, LD_IMM64, MOV, PSEUDO_MAP_FD};
use beeline_jit::{CompileOptions, compile};
use beeline_maps::create::{Identity, create};
use beeline_maps::{handle, layout, user};
use beeline_verifier::{Options, ProgType, Program, Verified, verify};
use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous, munmap};
use std::ffi::c_void;
use std::mem::MaybeUninit;

/// Most instructions of a run.
const INSTRUCTIONS_MAX: u64 = 20_000_000;

/// Bytes of context for types that are given none: the most that any may read.
const CONTEXT_LEN: usize = 8192;

/// The CPU that runs own.
const CPU: u32 = 0;

/// The result of a program, low 32 bits, as both engines agree on it. A program whose result is not the same twice is
/// only interpreted, with a bound on its instructions: it may run as long as chance has it.
///
/// # Errors
/// A sentence that says why there is none.
pub fn both_engines(row: &Row, verified: &Verified) -> Result<u32, String> {
    let interpreted = Surroundings::new(row, verified)?.interpret(row, verified)?;
    if !is_repeatable(verified) {
        return Ok(interpreted as u32);
    }
    let compiled = Surroundings::new(row, verified)?.execute(verified)?;
    if interpreted != compiled {
        return Err(format!("the interpreter returns {interpreted:#x}, the compiled program {compiled:#x}"));
    }
    Ok(compiled as u32)
}

/// True when no call of the program gives another result the next time: time, CPU, random numbers, ids, addresses.
fn is_repeatable(verified: &Verified) -> bool {
    const SAME: [i32; 8] = [1, 2, 3, 6, 12, 25, 181, 164];
    let calls = (0..verified.insns().len()).filter_map(|pc| verified.call(pc));
    calls.map(|call| call.helper).all(|helper| SAME.contains(&helper))
}

/// Zeroed memory below 4 GiB: fields of contexts that hold addresses have 32 bits.
#[derive(Debug)]
struct LowMemory {
    base: *mut c_void,
    len: usize,
}

impl LowMemory {
    fn new(bytes: usize) -> Result<LowMemory, String> {
        /// `MAP_32BIT` (`asm/mman.h` of x86).
        const BELOW_2_GIB: u32 = 0x40;
        let flags = MapFlags::PRIVATE | MapFlags::from_bits_retain(BELOW_2_GIB);
        let len = bytes.max(1).next_multiple_of(4096);
        let writable = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice.
        let base = unsafe { mmap_anonymous(std::ptr::null_mut(), len, writable, flags) };
        base.map(|base| LowMemory { base, len }).map_err(|error| format!("no memory below 4 GiB: {error}"))
    }

    fn address(&self) -> u64 {
        self.base as u64
    }

    fn fill(&mut self, bytes: &[u8]) {
        // SAFETY: our own mapping, written by nobody else; the length is bounded.
        let memory = unsafe { std::slice::from_raw_parts_mut(self.base.cast::<u8>(), self.len) };
        let len = bytes.len().min(memory.len());
        memory[..len].copy_from_slice(&bytes[..len]);
    }
}

impl Drop for LowMemory {
    fn drop(&mut self) {
        // SAFETY: our own mapping.
        let _ = unsafe { munmap(self.base, self.len) };
    }
}

/// A map in memory of its own.
#[derive(Debug)]
struct Map {
    memory: LowMemory,
    handle: Box<MapHandle>,
}

impl Map {
    fn new(spec: &MapSpec, id: u32) -> Result<Map, String> {
        let shape = &spec.shape;
        let refused =
            |errno: i64| format!("a map of type {} cannot be made: errno {}", shape.map_type, -errno);
        let len = layout::layout(shape).map_err(refused)?.mapped_len;
        let memory = LowMemory::new(len as usize)?;
        let identity = Identity { id, name: b"", seed: 0, btf_key_type_id: 0, btf_value_type_id: 0 };
        let base = memory.base.cast::<u8>();
        // SAFETY: `base` is page-aligned and has `len` zeroed bytes that nobody else knows. Of a ring the second view is
        // memory too, not the same memory: nobody reads it.
        let handle = unsafe {
            create(base, len, shape, &identity).map_err(refused)?;
            handle::open(base, len, len, base as u64).map_err(|error| error.to_string())?
        };
        let map = Map { memory, handle: Box::new(handle) };
        spec.contents.iter().try_for_each(|(key, value)| map.fill(key, value))?;
        Ok(map)
    }

    fn fill(&self, key: &[u8], value: &[u8]) -> Result<(), String> {
        let (mut whole_key, mut whole_value) =
            (vec![0; self.handle.shape.key_size as usize], vec![0; user::value_len(&self.handle) as usize]);
        let copy = |to: &mut [u8], from: &[u8]| to.iter_mut().zip(from).for_each(|(to, from)| *to = *from);
        copy(&mut whole_key, key);
        copy(&mut whole_value, value);
        // SAFETY: the handle is valid while `self` is; key and value have the map's sizes.
        let errno = unsafe {
            user::update(&self.handle, &Access::default(), whole_key.as_ptr(), whole_value.as_ptr(), 0)
        };
        if errno == 0 {
            Ok(())
        } else {
            Err(format!("a map does not take its first contents: errno {}", -errno))
        }
    }

    fn addresses(&self) -> NativeMap {
        NativeMap { handle: &raw const *self.handle as u64, data: self.handle.data }
    }
}

/// What a program finds around it: maps, programs to tail-call, a process, a context.
struct Surroundings {
    maps: Vec<Map>,
    native: Vec<NativeMap>,
    block: Box<ProcessBlock>,
    context: LowMemory,
    context_len: usize,
    packet: LowMemory,
    scratch: Vec<u64>,
    _fork_page: Box<ForkPage>,
    _programs: Vec<ProgramRuntime>,
    _callees: Vec<Executable>,
}

impl Surroundings {
    fn new(row: &Row, verified: &Verified) -> Result<Surroundings, String> {
        if let Some(helper) = unavailable(verified) {
            return Err(format!("helper {helper} cannot be called here"));
        }
        let maps = row.maps.iter().zip(1..).map(|(spec, id)| Map::new(spec, id));
        let maps = maps.collect::<Result<Vec<Map>, String>>()?;
        let native: Vec<NativeMap> = maps.iter().map(Map::addresses).collect();
        let (callees, programs) = callees(row, &maps)?;
        let mut packet = LowMemory::new(row.packet.len())?;
        packet.fill(&row.packet);
        let bytes = context(row, packet.address());
        let mut context = LowMemory::new(bytes.len())?;
        context.fill(&bytes);
        // SAFETY: `ForkPage` and `ProcessBlock` are integers; all of them may be zero.
        let (fork_page, mut block): (Box<ForkPage>, Box<ProcessBlock>) = unsafe {
            (Box::new(MaybeUninit::zeroed().assume_init()), Box::new(MaybeUninit::zeroed().assume_init()))
        };
        block.magic = beeline_abi::process::PROCESS_MAGIC;
        block.version = beeline_abi::ABI_VERSION;
        block.cpus = super::maps::CPUS;
        block.program_count = programs.len() as u32;
        block.programs = programs.as_ptr() as u64;
        block.fork_page = &raw const *fork_page as u64;
        Ok(Surroundings {
            maps,
            native,
            block,
            context_len: bytes.len(),
            context,
            packet,
            scratch: vec![0; SCRATCH_LEN as usize / 8],
            _fork_page: fork_page,
            _programs: programs,
            _callees: callees,
        })
    }

    fn run_context(&self) -> RunContext {
        let mut run = RunContext {
            process: &raw const *self.block as u64,
            scratch: self.scratch.as_ptr() as u64,
            regs: self.context.address(),
            ..RunContext::default()
        };
        run.access.cpu = CPU;
        run
    }

    fn interpret(&self, row: &Row, verified: &Verified) -> Result<u64, String> {
        let mut memory = Checked::new();
        // SAFETY: the memory is mapped as long as `self`, which outlives `memory`.
        unsafe {
            memory.lend_raw(self.context.address(), self.context_len as u64, Rights::Write);
            memory.lend_raw(self.packet.address(), row.packet.len() as u64, Rights::Write);
            for map in &self.maps {
                let data = map.memory.len as u64 - DATA_OFFSET;
                memory.lend_raw(map.handle.data, data, Rights::Write);
            }
        }
        // SAFETY: the program is verified, and all its calls are of helpers that are there.
        let host = unsafe { Native::new(helper, &self.native) };
        let mut context = self.run_context();
        let limits = Limits { instructions_max: INSTRUCTIONS_MAX };
        let arguments = [self.context.address(), 0, 0, 0, 0];
        let program = beeline_interp::Program::new(verified.insns());
        run(&program, &mut memory, &host, arguments, &raw mut context, limits)
            .map_err(|trap| format!("interpreter: {trap}"))
    }

    fn execute(&self, verified: &Verified) -> Result<u64, String> {
        let executable = link(verified, &self.native)?;
        // SAFETY: the program is verified, the context is one of its type, the interpreter has run it on checked memory.
        Ok(unsafe { executable.call_program(self.context.address(), &mut self.run_context()) })
    }
}

/// The first helper that the program calls and that does not exist in user space.
fn unavailable(verified: &Verified) -> Option<i32> {
    let calls = (0..verified.insns().len()).filter_map(|pc| verified.call(pc));
    calls.map(|call| call.helper).find(|&id| u32::try_from(id).ok().and_then(helper).is_none())
}

fn helper(id: u32) -> Option<HelperFunction> {
    by_id(id).map(|helper| helper.call)
}

fn link(verified: &Verified, maps: &[NativeMap]) -> Result<Executable, String> {
    let resolve = |symbol| match symbol {
        Symbol::Helper(id) => helper(id).map(|function| function as usize as u64),
        Symbol::MapHandle(index) => maps.get(index as usize).map(|map| map.handle),
        Symbol::MapData(index) => maps.get(index as usize).map(|map| map.data),
        Symbol::HostFunction(_) | Symbol::Image => None,
    };
    let image =
        compile(verified, &CompileOptions::default()).map_err(|error| format!("compiler: {error}"))?;
    Executable::link(image.image(), resolve).map_err(|error| format!("linker: {error}"))
}

/// The programs that lie in the prog arrays, linked, and their table in order of ids.
fn callees(row: &Row, maps: &[Map]) -> Result<(Vec<Executable>, Vec<ProgramRuntime>), String> {
    let (mut linked, mut table) = (Vec::new(), Vec::new());
    for (spec, map) in row.maps.iter().zip(maps) {
        for &(index, callee) in &spec.programs {
            let program = callee.program(row.program.prog_type, spec);
            let verified = verify(program, &Options::default()).map_err(|error| error.to_string())?;
            let executable = link(&verified, &[map.addresses()])?;
            let id = table.len() as u32 + 1;
            table.push(ProgramRuntime { id, flags: 0, entry: executable.address() });
            linked.push(executable);
            map.fill(&index.to_le_bytes(), &id.to_le_bytes())?;
        }
    }
    Ok((linked, table))
}

impl Callee {
    fn program(self, prog_type: ProgType, array: &MapSpec) -> Program {
        const R0: u8 = 0;
        let mov = |register, value| Insn::new(ALU64 | MOV, register, 0, 0, value);
        let exit = Insn::new(JMP | EXIT, 0, 0, 0, 0);
        let insns = match self {
            Callee::Returns(value) => vec![mov(R0, value), exit],
            Callee::Calls(index) => vec![
                mov(3, index as i32),
                Insn::new(LD_IMM64, 2, PSEUDO_MAP_FD, 0, 0),
                Insn::default(),
                Insn::new(JMP | CALL, 0, 0, 0, 12),
                mov(R0, 41),
                exit,
            ],
        };
        Program { prog_type, gpl_compatible: true, insns, maps: vec![array.info()], ..Program::default() }
    }
}

/// The context of a run: what `BPF_PROG_TEST_RUN` makes of a packet, else the bytes that were given and zeros.
fn context(row: &Row, packet: u64) -> Vec<u8> {
    let mut bytes = vec![0; CONTEXT_LEN];
    let mut word =
        |offset: usize, value: u32| bytes[offset..offset + 4].copy_from_slice(&value.to_le_bytes());
    let (start, len) = (packet as u32, row.packet.len() as u32);
    /// The loopback device, on which test packets arrive.
    const LOOPBACK: u32 = 1;
    match row.program.prog_type {
        // `struct xdp_md`: data, data_end, data_meta, ingress_ifindex.
        ProgType::XDP => {
            [start, start + len, start, LOOPBACK]
                .into_iter()
                .enumerate()
                .for_each(|(i, field)| word(4 * i, field));
        }
        // `struct __sk_buff`: len, protocol, ifindex, data, data_end, data_meta.
        ProgType::SCHED_CLS | ProgType::SCHED_ACT => {
            [
                (0, len),
                (16, protocol(&row.packet)),
                (40, LOOPBACK),
                (76, start),
                (80, start + len),
                (140, start),
            ]
            .into_iter()
            .for_each(|(offset, field)| word(offset, field));
        }
        // A socket sees what is behind the Ethernet header.
        ProgType::SOCKET_FILTER => {
            word(0, len - ETHERNET_HEADER);
            word(16, protocol(&row.packet));
        }
        _ => {
            let given = row.context.len().min(CONTEXT_LEN);
            bytes[..given].copy_from_slice(&row.context[..given]);
        }
    }
    bytes
}

const ETHERNET_HEADER: u32 = 14;

/// `skb->protocol`, in network order, as `eth_type_trans` finds it: below 0x600 the field is a length.
fn protocol(packet: &[u8]) -> u32 {
    const ETH_P_802_2: u16 = 4;
    let field = packet.get(12..14).map_or(0, |field| u16::from_be_bytes([field[0], field[1]]));
    u32::from(if field < 0x600 { ETH_P_802_2 } else { field }.to_be())
}
