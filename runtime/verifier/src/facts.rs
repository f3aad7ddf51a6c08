//! What the exploration learns about a program beside that it is safe: what the compiler and the stubs use.

use crate::code::Code;
use crate::program::Program;
use crate::rewrite;
use beeline_abi::code::{ContextUse, ProgramNeeds};
use std::collections::{BTreeMap, BTreeSet};

/// What holds of one helper call on every path.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CallFacts {
    /// The helper's id.
    pub helper: i32,
    /// The map argument, as an index into the program's maps, when it is the same on every path and not the member of a
    /// map of maps.
    pub map: Option<u32>,
    /// The key of a look-up that always succeeds, when it is a constant, the same on every path.
    pub constant_key: Option<u64>,
    /// The subprogram that is called back, by index, when it is the same on every path.
    pub callback: Option<usize>,
    /// The result was proven not to be 0: a look-up of a constant key that exists.
    pub non_null: bool,
}

impl CallFacts {
    fn and(self, other: CallFacts) -> CallFacts {
        let same = |a: Option<u32>, b| if a == b { a } else { None };
        CallFacts {
            helper: self.helper,
            map: same(self.map, other.map),
            constant_key: if self.constant_key == other.constant_key { self.constant_key } else { None },
            callback: if self.callback == other.callback { self.callback } else { None },
            non_null: self.non_null && other.non_null,
        }
    }
}

/// One subprogram; the first one is the program itself.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Subprogram {
    /// Its name, empty when it has none.
    pub name: String,
    /// Index of its first slot.
    pub start: u32,
    /// One past its last slot.
    pub end: u32,
    /// Its address is taken: helpers call it.
    pub is_callback: bool,
    /// Bytes of its frame, a multiple of 8, at most 512.
    pub stack_bytes: u32,
    /// How many of r1 to r5 it is given. Without type information this is 5.
    pub arg_count: u8,
}

/// How much work it was.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Stats {
    /// Instructions looked at, over all paths.
    pub insns_processed: u32,
    /// States kept.
    pub states: u32,
    /// Paths that an earlier state covered.
    pub pruned: u32,
    /// Worst-case bytes of stack over all frames.
    pub stack_bytes: u32,
    /// Registers and stack slots copied or compared.
    pub work: u64,
    /// Most bytes of states that were kept at a time, about ([`Limits::state_bytes_max`](crate::Limits)).
    pub state_bytes_peak: usize,
    /// Time taken, in nanoseconds.
    pub time_ns: u64,
}

/// What an access goes through.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Through {
    /// Memory proper.
    Memory,
    /// The context.
    Context,
    /// A kernel object: the load is a probe.
    Object,
    /// A map: its fields lie elsewhere in userspace.
    Map,
}

/// What a load from a map's fields reads.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum MapField {
    /// The bytes at this offset of the [`MapHandle`](beeline_abi::map::MapHandle).
    Handle(i16),
    /// Something that only a kernel's map has: 0.
    Zero,
}

/// The collection, while the exploration runs.
#[derive(Debug, Default)]
pub(crate) struct Facts {
    pub(crate) live: Vec<bool>,
    pub(crate) insns_processed: u32,
    pub(crate) states: u32,
    pub(crate) pruned: u32,
    /// Most states kept at one instruction, and of all at a time.
    pub(crate) states_per_insn_max: u32,
    pub(crate) states_peak: u32,
    pub(crate) work: u64,
    pub(crate) state_bytes_peak: usize,
    pub(crate) context: ContextUse,
    /// Where the context ends as far as instructions load from it, in bytes.
    pub(crate) context_len: u32,
    pub(crate) cpu: bool,
    pub(crate) tail_calls: bool,
    /// It calls functions of the target.
    pub(crate) host_calls: bool,
    /// One of its global functions does.
    pub(crate) host_calls_in_global: bool,
    /// It calls global functions where it could not call one of the target.
    pub(crate) global_called_busy: bool,
    /// Per subprogram, bytes below r10.
    pub(crate) stack: Vec<u32>,
    pub(crate) callbacks: Vec<bool>,
    /// Subprograms that make tail calls themselves.
    pub(crate) tail_callers: Vec<bool>,
    pub(crate) calls: BTreeMap<usize, CallFacts>,
    /// What each load or store goes through.
    pub(crate) through: BTreeMap<usize, Through>,
    /// Loads from a map's fields, by what they read.
    pub(crate) map_fields: BTreeMap<usize, MapField>,
    /// Calls of kernel functions and of functions of the target, by the number that these have here.
    pub(crate) kfuncs: BTreeMap<usize, u32>,
}

impl Facts {
    pub(crate) fn new(code: &Code) -> Facts {
        let subprograms = code.subprograms.len();
        Facts {
            live: vec![false; code.ops.len()],
            insns_processed: 0,
            states: 0,
            pruned: 0,
            states_per_insn_max: 0,
            states_peak: 0,
            work: 0,
            state_bytes_peak: 0,
            context: ContextUse::NONE,
            context_len: 0,
            cpu: false,
            tail_calls: false,
            host_calls: false,
            host_calls_in_global: false,
            global_called_busy: false,
            stack: vec![0; subprograms],
            callbacks: vec![false; subprograms],
            tail_callers: vec![false; subprograms],
            calls: BTreeMap::new(),
            through: BTreeMap::new(),
            map_fields: BTreeMap::new(),
            kfuncs: BTreeMap::new(),
        }
    }

    /// The call at `pc` on one more path.
    pub(crate) fn call(&mut self, pc: usize, facts: CallFacts) {
        self.calls.entry(pc).and_modify(|known| *known = known.and(facts)).or_insert(facts);
    }

    /// A frame of `subprogram` uses `bytes` below r10.
    pub(crate) fn stack_used(&mut self, subprogram: u16, bytes: u32) {
        let most = &mut self.stack[usize::from(subprogram)];
        *most = (*most).max(bytes.next_multiple_of(8));
    }

    /// Memory that could be read by anyone may hold the context's address, or a helper reads it all.
    pub(crate) fn context_escapes(&mut self) {
        self.context = ContextUse::ALL;
    }
}

/// A program that was proven safe. Only [`verify`](crate::verify) makes one.
#[derive(Clone, Debug)]
pub struct Verified {
    program: Program,
    /// Those of the program, where they are executed otherwise than they are written.
    insns: Vec<beeline_isa::Insn>,
    live: Vec<bool>,
    needs: ProgramNeeds,
    context_len: u32,
    context_loads: BTreeSet<usize>,
    subprograms: Vec<Subprogram>,
    calls: BTreeMap<usize, CallFacts>,
    stats: Stats,
    log: String,
}

impl Verified {
    pub(crate) fn new(
        program: Program,
        code: &Code,
        facts: Facts,
        stack_bytes: u32,
        log: String,
    ) -> Verified {
        let stats = Stats {
            insns_processed: facts.insns_processed,
            states: facts.states,
            pruned: facts.pruned,
            work: facts.work,
            state_bytes_peak: facts.state_bytes_peak,
            stack_bytes,
            time_ns: 0,
        };
        let needs = ProgramNeeds {
            context: if facts.tail_calls { ContextUse::ALL } else { facts.context },
            // Whom it calls may need one, and a CPU can only be claimed where the run begins.
            cpu: facts.cpu || facts.tail_calls,
            stack_bytes,
            tail_calls: facts.tail_calls,
        };
        let subprograms = subprograms(&program, code, &facts);
        let insns = rewrite::executable(&program, &facts);
        let context_len = facts.context_len;
        let context_loads = if context_is_constant(&program, &facts) {
            let loads = facts.through.iter().filter(|&(_, &through)| through == Through::Context);
            loads.map(|(&pc, _)| pc).collect()
        } else {
            BTreeSet::new()
        };
        Verified {
            program,
            insns,
            live: facts.live,
            needs,
            context_len,
            context_loads,
            subprograms,
            calls: facts.calls,
            stats,
            log,
        }
    }

    pub(crate) fn set_time(&mut self, time_ns: u64) {
        self.stats.time_ns = time_ns;
    }

    /// The program as it was given.
    pub fn program(&self) -> &Program {
        &self.program
    }

    /// Its instructions as they are executed: loads from kernel objects are probes, loads from a map's fields read its
    /// handle. Those that are not live ([`is_live`](Self::is_live)) are never executed; they may be calls that do
    /// not exist.
    pub fn insns(&self) -> &[beeline_isa::Insn] {
        &self.insns
    }

    /// True when some execution may reach the instruction at `pc`. False for the second slot of a wide one.
    pub fn is_live(&self, pc: usize) -> bool {
        self.live.get(pc).copied().unwrap_or(false)
    }

    /// Where the context ends as far as the program itself loads from it, in bytes (the kernel's `max_ctx_offset`).
    pub fn context_len(&self) -> u32 {
        self.context_len
    }

    /// True when the instruction at `pc` loads from a context that nobody changes while the program runs: such loads may be made in
    /// any order, once or several times.
    pub fn loads_constant(&self, pc: usize) -> bool {
        self.context_loads.contains(&pc)
    }

    /// What the stub has to provide.
    pub fn needs(&self) -> ProgramNeeds {
        self.needs
    }

    /// The program itself, then its subprograms in order of address.
    pub fn subprograms(&self) -> &[Subprogram] {
        &self.subprograms
    }

    /// What holds of the helper call at `pc`; `None` when there is no live helper call.
    pub fn call(&self, pc: usize) -> Option<&CallFacts> {
        self.calls.get(&pc)
    }

    /// How much work it was.
    pub fn stats(&self) -> Stats {
        self.stats
    }

    /// The log, as far as one was asked for.
    pub fn log(&self) -> &str {
        &self.log
    }
}

/// Nothing writes to the context during a run: it is a probe's registers, and no helper is called that changes them or writes
/// where they may lie.
fn context_is_constant(program: &Program, facts: &Facts) -> bool {
    const PROBE_WRITE_USER: i32 = 36;
    const OVERRIDE_RETURN: i32 = 58;
    program.prog_type == crate::ProgType::KPROBE
        && facts.kfuncs.is_empty()
        && facts.calls.values().all(|call| ![PROBE_WRITE_USER, OVERRIDE_RETURN].contains(&call.helper))
}

fn subprograms(program: &Program, code: &Code, facts: &Facts) -> Vec<Subprogram> {
    let ranges = code.subprograms.iter().enumerate();
    ranges
        .map(|(index, range)| {
            let info = program.subprograms.iter().find(|info| info.start as usize == range.start);
            let signature = info.and_then(|info| info.global.as_ref());
            Subprogram {
                name: info.map(|info| info.name.clone()).unwrap_or_default(),
                start: range.start as u32,
                end: range.end as u32,
                is_callback: facts.callbacks[index],
                stack_bytes: facts.stack[index],
                arg_count: match signature {
                    _ if index == 0 => 1,
                    Some(signature) => signature.args.len() as u8,
                    None => 5,
                },
            }
        })
        .collect()
}
