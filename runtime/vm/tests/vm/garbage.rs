//! Programs that nobody wrote: the compiler refuses or compiles, the interpreter stops or ends; nothing panics, nothing is
//! touched that is not the program's.

use crate::differential::{Numbers, program, rounds};
use crate::surroundings::Surroundings;
use beeline_interp::memory::{Checked, Rights};
use beeline_interp::{Environment, HelperCall, Host, Limits, Outcome, Program, Stop, run};
use beeline_isa::{Insn, decode};
use beeline_vm::engine::Setup;

/// A program with some fields replaced by others.
fn mutated(seed: u64) -> Vec<Insn> {
    let mut insns = program(seed);
    let mut numbers = Numbers::new(seed ^ 0x5555);
    for _ in 0..1 + numbers.below(3) {
        let at = numbers.below(insns.len() as u64) as usize;
        let other = numbers.below(insns.len() as u64) as usize;
        let random = numbers.next();
        let insn = &mut insns[at];
        match numbers.below(6) {
            0 => insn.code = random as u8,
            1 => insn.regs = random as u8,
            2 => insn.off = (random as i16) >> (random >> 60),
            3 => insn.imm = (random as i32) >> (random >> 59),
            4 => *insn = Insn::from_bytes(random.to_le_bytes()),
            _ => insns.swap(at, other),
        }
    }
    insns
}

/// Helpers that find nothing, maps without a byte.
struct Nothing;

impl Host for Nothing {
    fn map_handle(&self, map: u32) -> Option<u64> {
        Some(u64::from(map))
    }

    fn map_data(&self, map: u32) -> Option<u64> {
        Some(u64::from(map))
    }

    fn call(&self, call: &HelperCall, _: &mut dyn Environment) -> Result<Outcome, Stop> {
        Ok(Outcome::Value(if call.id == 100 { call.arguments[0] } else { 0 }))
    }
}

#[test]
fn the_compiler_never_panics() {
    let (mut compiled, mut refused) = (0, 0);
    for seed in 0..rounds(200) {
        match Surroundings::new().setup().compile(&mutated(seed)) {
            Ok(_) => compiled += 1,
            Err(_) => refused += 1,
        }
    }
    assert!(compiled > 20 && refused > 20, "{compiled} compiled, {refused} refused");
}

#[test]
fn the_interpreter_stays_in_its_memory() {
    let (mut ended, mut stopped) = (0, 0);
    for seed in 0..rounds(2000) {
        let mut buffer = [0; 64];
        let mut memory = Checked::new();
        let address = memory.lend(&mut buffer, Rights::Write);
        let program = Program::new(&mutated(seed));
        let limits = Limits { instructions_max: 20_000 };
        let arguments = [address, 64, 0, 0, 0];
        match run(&program, &mut memory, &Nothing, arguments, std::ptr::null_mut(), limits) {
            Ok(_) => ended += 1,
            Err(_) => stopped += 1,
        }
    }
    assert!(ended > 20 && stopped > 20, "{ended} ended, {stopped} stopped");
}

#[test]
fn any_eight_bytes_decode_or_do_not() {
    let mut numbers = Numbers::new(7);
    let mut decoded = 0;
    for code in 0..=255u8 {
        for _ in 0..50 {
            let random = numbers.next();
            let imm = if random & 1 == 0 { 0 } else { numbers.next() as i32 };
            let off = if random & 2 == 0 { 0 } else { random as i16 };
            let insn = Insn::new(code, (random >> 16) as u8, (random >> 20) as u8 & 0xf, off, imm);
            decoded += u32::from(decode(&[insn, Insn::default()]).is_ok());
            assert!(Setup::conformance().compile(&[insn]).is_err(), "{insn:?}: there is no exit");
        }
    }
    assert!(decoded > 100, "{decoded} decoded");
}
