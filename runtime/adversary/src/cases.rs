//! The case with a number: a program, how to verify it, and the chance that its runs depend on.

use crate::numbers::Numbers;
use crate::{garbage, generate};
use beeline_isa::Insn;
use beeline_isa::disasm::{Line, NoNames};
use beeline_verifier::{Limits, MapInfo, Options, Program};
use std::fmt::Write;

/// How a program came about.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Origin {
    /// Written by the generator.
    Structured,
    /// Written by the generator, then changed.
    Mutated,
    /// Noise.
    Noise,
}

/// One program to try.
#[derive(Clone, Debug)]
pub struct Case {
    /// How it came about.
    pub origin: Origin,
    /// The program.
    pub program: Program,
    /// How to verify it.
    pub options: Options,
    /// Where the chance of its runs comes from.
    pub seed: u64,
}

/// Most instructions that the verifier looks at, for most cases: programs that take longer are rarely different.
const PROCESSED_MAX: u32 = 20_000;

impl Case {
    /// Case number `index` of the family of `seed`.
    pub fn new(seed: u64, index: u64, maps: &[MapInfo]) -> Case {
        let mut numbers = Numbers::of(seed, index);
        let origin = match numbers.below(20) {
            0..=1 => Origin::Noise,
            2..=4 => Origin::Mutated,
            _ => Origin::Structured,
        };
        let insns_processed_max = if numbers.percent(1) { 1_000_000 } else { PROCESSED_MAX };
        let options = Options {
            strict_alignment: numbers.percent(5),
            limits: Limits { insns_processed_max, ..Limits::default() },
            ..Options::default()
        };
        let run = numbers.word();
        let program = match origin {
            Origin::Noise => garbage::noise(&mut numbers, maps),
            Origin::Structured => generate::program(numbers, maps),
            Origin::Mutated => {
                let mut changes = Numbers::new(numbers.word());
                let mut program = generate::program(numbers, maps);
                garbage::mutate(&mut program, &mut changes);
                program
            }
        };
        Case { origin, program, options, seed: run }
    }
}

/// The instructions, one on a line.
pub fn listing(insns: &[Insn]) -> String {
    let mut text = String::new();
    let mut pc = 0;
    while pc < insns.len() {
        let _ = writeln!(text, "{pc:4}: {}", Line::new(insns, pc, &NoNames));
        pc += if insns[pc].is_wide() { 2 } else { 1 };
    }
    text
}

/// The instructions in hexadecimal, as other tools take them.
pub fn hex(insns: &[Insn]) -> String {
    let slots = insns.iter().map(|insn| {
        insn.to_bytes().iter().fold(String::new(), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        })
    });
    slots.collect::<Vec<_>>().join(" ")
}
