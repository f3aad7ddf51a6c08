//! Slices of what `cargo xtask fuzz verifier` runs at length: fixed seeds, seconds.
//!
//! The long run is `cargo xtask fuzz verifier 10000000 --seed 1`, about twenty minutes of one CPU. While it was being written
//! it found what `runtime/verifier/tests/adversary.rs` holds; its last run, over the verifier with all of that mended, had
//! 5,737,780 programs accepted, 5,897,854,737 instructions executed and compared, and no finding. With `--kernel`, 300,000
//! programs (seed 2), then 100,000 (seed 11) and 20,000 (seed 5) were compared: what was left in each of the last two is one
//! program of which the kernel knows less than is known here.

use beeline_adversary::campaign::{Plan, Progress, Tally, run};
use beeline_adversary::cases::{Case, Origin};
use beeline_adversary::kernel::Kernel;
use beeline_adversary::maps;
use beeline_adversary::numbers::Numbers;
use beeline_adversary::trial::{Bench, Outcome};
use beeline_isa::{Insn, opcode as o};
use beeline_verifier::{Options, ProgType, Program, verify};
use std::collections::BTreeSet;

/// A slice of cases; fails when the verifier is wrong about one of them.
fn slice(plan: Plan) -> Tally {
    let tally = run(&plan, &Progress::new(&plan)).expect("the kernel was asked before");
    for finding in &tally.findings {
        println!("seed {}: {finding}\n", plan.seed);
    }
    println!("{}", tally.summary());
    assert!(tally.findings.is_empty(), "{} findings", tally.findings.len());
    tally
}

const PLAN: Plan = Plan { seed: 1, first: 0, count: 4000, threads: 1, runs: 3, kernel: false, compiled: 0 };

#[test]
fn what_is_accepted_is_safe() {
    let tally = slice(PLAN);
    let (all, accepted) = tally.cases[&Origin::Structured];
    assert!(5 * accepted > all, "only {accepted} of {all} structured programs are accepted");
    assert!(2 * tally.substantial > accepted, "only {} programs execute ten instructions", tally.substantial);
    assert!(tally.executed > 50 * accepted, "only {} instructions executed", tally.executed);
}

#[test]
fn compiled_programs_do_the_same() {
    let tally = slice(Plan { seed: 3, count: 600, compiled: 40, ..PLAN });
    assert!(tally.compiled > 60, "only {} programs compared", tally.compiled);
}

#[test]
fn the_kernel_agrees() {
    if let Err(error) = Kernel::new(&maps::all()) {
        println!("skipped: the kernel cannot be asked: {error}");
        return;
    }
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    if !release.starts_with("6.18.") {
        println!("skipped: the rules are those of 6.18, this is {release}");
        return;
    }
    let tally = slice(Plan { seed: 2, count: 1500, kernel: true, ..PLAN });
    let (compared, accepted) = tally.compared;
    let missed: u64 = tally.missed.values().map(|row| row.0).sum();
    assert!(compared > 1100, "only {compared} compared");
    assert!(
        20 * missed < accepted,
        "{missed} of {accepted} that the kernel accepts are refused: {:?}",
        tally.missed
    );
}

/// The rules that refuse, and the instructions that are accepted, are many.
#[test]
fn cases_reach_most_rules() {
    let maps = maps::all();
    let (mut reasons, mut codes, mut helpers) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    for index in 0..6000 {
        let case = Case::new(5, index, &maps);
        match verify(case.program, &case.options) {
            Err(rejection) if case.origin != Origin::Noise => {
                let words = rejection.reason.chars().filter(|c| c.is_alphabetic() || *c == ' ');
                reasons.insert(words.take(28).collect::<String>());
            }
            Ok(verified) => {
                let live = (0..verified.insns().len()).filter(|&pc| verified.is_live(pc));
                live.for_each(|pc| {
                    let insn = verified.insns()[pc];
                    codes.insert(insn.code);
                    if insn.code == o::JMP | o::CALL && insn.src() == 0 {
                        helpers.insert(insn.imm);
                    }
                });
            }
            _ => {}
        }
    }
    println!("{} reasons, {} opcodes, {} helpers", reasons.len(), codes.len(), helpers.len());
    assert!(reasons.len() >= 45, "only {} reasons: {reasons:#?}", reasons.len());
    assert!(codes.len() >= 105, "only {} opcodes", codes.len());
    assert!(helpers.len() >= 30, "only {} helpers: {helpers:?}", helpers.len());
}

#[test]
fn bytes_of_any_kind_do_not_confuse_it() {
    let mut numbers = Numbers::new(4);
    let mut refused = 0;
    for _ in 0..20_000 {
        let slots = 1 + numbers.below(30) as usize;
        let mut insns =
            (0..slots).map(|_| Insn::from_bytes(numbers.word().to_le_bytes())).collect::<Vec<_>>();
        if numbers.percent(50) {
            // Fields in range, so that more than the decoder is reached.
            for insn in &mut insns {
                *insn = Insn::new(insn.code, insn.dst() % 11, insn.src() % 11, insn.off % 8, insn.imm % 256);
            }
        }
        let prog_type = ProgType(numbers.below(40) as u32);
        let program = Program { prog_type, insns, maps: maps::all(), ..Program::default() };
        refused += u32::from(verify(program, &Options::default()).is_err());
    }
    assert!(refused > 19_000, "only {refused} refused");
}

/// A program for the test of the tests: an access that a bound makes safe.
fn bounded_by(imm: i32) -> Vec<Insn> {
    let value = [Insn::new(o::LD_IMM64, 2, o::PSEUDO_MAP_VALUE, 0, maps::GLOBAL as i32), Insn::default()];
    let mut insns =
        vec![Insn::new(o::LDX | o::MEM | o::W, 0, 1, 0, 0), Insn::new(o::JMP | o::JGT, 0, 0, 4, imm)];
    insns.extend(value);
    insns.extend([
        Insn::new(o::ALU64 | o::ADD | o::SRC_REG, 2, 0, 0, 0),
        Insn::new(o::LDX | o::MEM | o::B, 2, 2, 0, 0),
        Insn::new(o::ALU64 | o::MOV, 0, 0, 0, 0),
        Insn::new(o::JMP | o::EXIT, 0, 0, 0, 0),
    ]);
    insns
}

/// What was proven of one program is not true of another one: that is noticed when the other runs.
#[test]
fn a_wrong_proof_is_noticed() {
    let maps = maps::all();
    let bench = Bench::new(&maps, 20);
    let program = |imm| Program {
        prog_type: ProgType::KPROBE,
        insns: bounded_by(imm),
        maps: maps.clone(),
        ..Program::default()
    };
    let (right, wrong) = (program(63), program(200));
    assert!(verify(wrong.clone(), &Options::default()).is_err());
    assert!(matches!(bench.try_program(&right, &Options::default(), 1), Outcome::Held(_)));
    let outcome = bench.try_with_proof_of(&right, &wrong.insns, &Options::default(), 1);
    let Outcome::Broken(what) = outcome else { panic!("not noticed: {outcome:?}") };
    assert!(what.contains("in none of"), "{what}");
}
