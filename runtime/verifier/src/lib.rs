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
//! | `explore`, `prune`, `graph` | the paths, and which need not be followed because an earlier one covers them |
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
mod liveness;
mod log;
pub mod program;
mod prune;
mod refusal;
mod require;
mod rewrite;
mod state;
pub mod tnum;
pub mod types;

pub use facts::{CallFacts, Stats, Subprogram, Verified};
pub use program::{GlobalArg, GlobalSignature, Limits, MapInfo, Options, ProgType, Program, SubprogramInfo};

use claims::{Claims, Notes};
use code::Code;
use explore::Explorer;
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
    /// The log: the path that failed, the registers, the reason, what to change.
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
    let code = Code::new(&program).map_err(|refusal| rejection(refusal, String::new()))?;
    let mut explorer =
        Explorer::new(&program, options, &code).map_err(|refusal| rejection(refusal, String::new()))?;
    if with_claims {
        explorer.notes = Notes::of_all(&code);
    }
    if let Err(reason) = require::program::check(&program) {
        return Err(rejection(Refusal::at(0, reason), String::new()));
    }
    if let Err(refusal) = explorer.run() {
        return Err(rejection(refusal, explorer.log.take()));
    }
    let stack_bytes = require::stack_depth::total(&code, &explorer.facts);
    if options.log_level != 0 {
        explorer.log.line(&facts::stats_line(&explorer.facts, options, stack_bytes));
    }
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
    Rejection { pc: refusal.pc, reason, log }
}
