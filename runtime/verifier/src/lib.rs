//! Proves programs safe with the kernel's rules.
//!
//! [`verify`] follows every path through a program with what is known of each register and each byte of stack, and refuses
//! what it cannot prove, with the instruction and the reason. It is the only way to a [`Verified`], and what comes later (the
//! compiler, the store, the linker) takes nothing else.
//!
//! | file | |
//! |---|---|
//! | [`program`] | what is given: instructions, maps, options |
//! | `code`, `cfg`, `liveness` | what does not depend on values: encodings, jumps, subprograms, where paths meet |
//! | [`tnum`], [`bounds`] | what is known of a number |
//! | `state` | registers, stack, references |
//! | `explore`, `prune`, `needed`, `graph`, `ids` | the paths, and which need not be followed because an earlier one covers them |
//! | `execute` | each instruction: first what it `require`s, then its `effect` |
//! | `require/` | the rules, one place each |
//! | `effect/` | the semantics |
//! | [`context`] | what each program type may read and write of its context |
//! | [`claims`] | what was taken to be true of each instruction, for tests that compare it with what happens |
//! | [`types`] | the kernel's types, as somebody else knows them |
//! | `facts`, `rewrite` | what is handed on: live instructions, calls, needs, the instructions to execute |
#![forbid(unsafe_code)]

pub mod bounds;
mod cfg;
pub mod claims;
mod code;
pub mod context;
mod effect;
mod execute;
mod explore;
mod facts;
mod graph;
mod ids;
mod liveness;
mod log;
mod needed;
pub mod program;
mod prune;
mod refusal;
mod require;
mod rewrite;
mod state;
pub mod tnum;
pub mod types;

pub use facts::{CallFacts, Stats, Subprogram, Verified};
pub use program::{
    GlobalArg, GlobalSignature, HostArg, HostFunction, Limits, MapInfo, Options, ProgType, Program,
    SpecialField, SpecialKind, SubprogramInfo,
};

use claims::{Claims, Notes};
use code::Code;
use explore::Explorer;
use facts::Facts;
use log::Log;
use refusal::Refusal;
use std::time::Instant;

/// Why a program was refused.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("instruction {pc}: {reason}")]
pub struct Rejection {
    /// The instruction, as an index of slots.
    pub pc: usize,
    /// The reason, in the kernel's words where it has them.
    pub reason: String,
    /// What to change, where there is a sentence for that. It is not in the log, which is the kernel's: tools parse that.
    pub advice: Option<&'static str>,
    /// The log, in the kernel's form: see [`Options::log_level`]. At level 0 the registers, the instruction, the reason.
    pub log: String,
}

/// Proves `program` safe, or says where and why that could not be done.
pub fn verify(program: Program, options: &Options) -> Result<Verified, Rejection> {
    explore(program, options, false).map(|(verified, _)| verified)
}

/// As [`verify`]; gives also what was taken to be true before each instruction, for tests.
pub fn verify_with_claims(program: Program, options: &Options) -> Result<(Verified, Claims), Rejection> {
    explore(program, options, true)
}

fn explore(program: Program, options: &Options, with_claims: bool) -> Result<(Verified, Claims), Rejection> {
    let start = Instant::now();
    let mut log = Log::new(options);
    log.subprograms(&program);
    let early = |refusal: Refusal, mut log: Log| {
        log.say(&refusal.reason);
        log.say("\n");
        log.statistics(&Facts::default(), options, start.elapsed().as_micros());
        rejection(refusal, log.take())
    };
    let code = match Code::new(&program) {
        Ok(code) => code,
        Err(refusal) => return Err(early(refusal, log)),
    };
    let mut explorer = match Explorer::new(&program, options, &code) {
        Ok(explorer) => explorer,
        Err(refusal) => return Err(early(refusal, log)),
    };
    if with_claims {
        explorer.notes = Notes::of_all(&code);
    }
    if let Err(reason) = require::program::check(&program) {
        return Err(early(Refusal::at(0, reason), log));
    }
    if log.shows_every_path() {
        log.line(&log::live_registers(&program, &code));
    }
    explorer.log = log;
    let outcome = explorer.run();
    if let Err(refusal) = outcome {
        explorer.log.statistics(&explorer.facts, options, start.elapsed().as_micros());
        return Err(rejection(refusal, explorer.log.take()));
    }
    let stack_bytes = require::stack_depth::total(&code, &explorer.facts);
    explorer.log.statistics(&explorer.facts, options, start.elapsed().as_micros());
    let (facts, log) = (explorer.facts, explorer.log.take());
    let (precision, reads, live) = (explorer.precision, explorer.reads, explorer.live);
    let claims = explorer.notes.claims(&code, precision, reads, live);
    let mut verified = Verified::new(program, &code, facts, stack_bytes, log);
    verified.set_time(start.elapsed().as_nanos() as u64);
    Ok((verified, claims))
}

/// The last line of a reason is the reason; those before it explain.
fn rejection(refusal: Refusal, mut log: String) -> Rejection {
    let reason = refusal.reason.lines().last().unwrap_or_default().to_owned();
    if log.is_empty() {
        log = format!("{}\n", refusal.reason);
    }
    let advice = require::advice::for_reason(&reason);
    Rejection { pc: refusal.pc, reason, advice, log }
}
