//! Memory that checks: what a program may touch, and what stops it.

use beeline_interp::memory::{Checked, Rights};
use beeline_interp::{
    AccessError, Environment, HelperCall, Host, Limits, NoHost, Outcome, Program, Stop, Trap, TrapKind, run,
};
use beeline_isa::Insn;
use beeline_isa::opcode as o;

const EXIT: Insn = Insn::new(o::JMP | o::EXIT, 0, 0, 0, 0);

fn load(size: u8, dst: u8, base: u8, off: i16) -> Insn {
    Insn::new(o::LDX | o::MEM | size, dst, base, off, 0)
}

fn store(size: u8, base: u8, off: i16, imm: i32) -> Insn {
    Insn::new(o::ST | o::MEM | size, base, 0, off, imm)
}

/// Runs with r1 = an eight-byte buffer.
fn check(insns: &[Insn], rights: Rights) -> Result<u64, Trap> {
    let mut buffer = *b"\x01\x02\x03\x04\x05\x06\x07\x08";
    let mut memory = Checked::new();
    let address = memory.lend(&mut buffer, rights);
    let limits = Limits { instructions_max: 1000 };
    run(&Program::new(insns), &mut memory, &NoHost, [address, 8, 0, 0, 0], std::ptr::null_mut(), limits)
}

/// The access at instruction 0 must be refused.
fn refused(insn: Insn, rights: Rights) {
    let result = check(&[insn, EXIT], rights);
    let Err(Trap { pc: 0, kind: TrapKind::Access(AccessError::Outside { .. }) }) = result else {
        panic!("{insn:?}: {result:?}");
    };
}

#[test]
fn a_buffer_is_readable_to_its_end() {
    assert_eq!(check(&[load(o::DW, 0, 1, 0), EXIT], Rights::Read), Ok(0x0807_0605_0403_0201));
    assert_eq!(check(&[load(o::B, 0, 1, 7), EXIT], Rights::Read), Ok(8));
    assert_eq!(check(&[load(o::H, 0, 1, 5), EXIT], Rights::Read), Ok(0x0706));
    for (size, off) in [(o::B, 8), (o::B, -1), (o::H, 7), (o::W, 5), (o::DW, 1), (o::DW, -1)] {
        refused(load(size, 0, 1, off), Rights::Write);
    }
}

#[test]
fn only_a_writable_buffer_is_written() {
    assert_eq!(check(&[store(o::W, 1, 4, 9), load(o::W, 0, 1, 4), EXIT], Rights::Write), Ok(9));
    refused(store(o::W, 1, 4, 9), Rights::Read);
    refused(store(o::W, 1, 5, 9), Rights::Write);
    let add = Insn::new(o::STX | o::ATOMIC | o::DW, 1, 2, 0, 0);
    refused(add, Rights::Read);
    assert_eq!(check(&[add, load(o::B, 0, 1, 0), EXIT], Rights::Write), Ok(9));
}

#[test]
fn addresses_from_nowhere_are_refused() {
    let jump_to_null = [Insn::new(o::ALU64 | o::MOV, 2, 0, 0, 0), load(o::DW, 0, 2, 0), EXIT];
    assert!(check(&jump_to_null, Rights::Write).is_err());
    let wrap = [Insn::new(o::ALU64 | o::MOV, 2, 0, 0, -1), load(o::DW, 0, 2, 0), EXIT];
    assert!(check(&wrap, Rights::Write).is_err());
}

#[test]
fn the_frame_is_512_bytes() {
    assert_eq!(check(&[store(o::DW, 10, -512, 5), load(o::DW, 0, 10, -512), EXIT], Rights::Read), Ok(5));
    assert_eq!(check(&[store(o::B, 10, -1, 5), load(o::B, 0, 10, -1), EXIT], Rights::Read), Ok(5));
    refused(store(o::B, 10, 0, 5), Rights::Write);
    refused(store(o::DW, 10, -513, 5), Rights::Write);
}

#[test]
fn frames_of_returned_functions_are_gone() {
    let call = |target: i32| Insn::new(o::JMP | o::CALL, 0, o::PSEUDO_CALL, 0, target);
    // The subprogram returns the address of its frame, which the caller then reads.
    let insns = [
        call(2),
        load(o::DW, 0, 0, -8),
        EXIT,
        store(o::DW, 10, -8, 5),
        Insn::new(o::ALU64 | o::MOV | o::SRC_REG, 0, 10, 0, 0),
        EXIT,
    ];
    let result = check(&insns, Rights::Read);
    assert!(matches!(result, Err(Trap { pc: 1, kind: TrapKind::Access(_) })), "{result:?}");
}

#[test]
fn atomics_are_aligned() {
    let add = Insn::new(o::STX | o::ATOMIC | o::W, 1, 2, 1, 0);
    let result = check(&[add, EXIT], Rights::Write);
    let Err(Trap { kind: TrapKind::Access(AccessError::Misaligned { bytes: 4, .. }), .. }) = result else {
        panic!("{result:?}");
    };
}

#[test]
fn endless_programs_are_stopped() {
    let spin = [Insn::new(o::JMP | o::JA, 0, 0, -1, 0)];
    assert_eq!(check(&spin, Rights::Read), Err(Trap { pc: 0, kind: TrapKind::Budget }));
    let recurse = [Insn::new(o::JMP | o::CALL, 0, o::PSEUDO_CALL, 0, -1), EXIT];
    let too_deep = Trap { pc: 0, kind: TrapKind::Access(AccessError::TooDeep) };
    assert_eq!(check(&recurse, Rights::Read), Err(too_deep));
}

#[test]
fn messages_name_the_place() {
    let trap = check(&[load(o::DW, 0, 1, 1), EXIT], Rights::Read).expect_err("it is refused");
    let text = trap.to_string();
    assert!(text.starts_with("instruction 0: invalid read of 8 bytes at 0x"), "{text}");
}

/// A host whose helper 1 runs the callback in r1 twice and ends the program with the sum when the second is 0.
struct Twice;

impl Host for Twice {
    fn map_handle(&self, _map: u32) -> Option<u64> {
        None
    }

    fn map_data(&self, _map: u32) -> Option<u64> {
        None
    }

    fn call(&self, call: &HelperCall, environment: &mut dyn Environment) -> Result<Outcome, Stop> {
        let first = environment.callback(call.arguments[0], [20, 0, 0, 0, 0])?;
        let second = environment.callback(call.arguments[0], [22, 0, 0, 0, 0])?;
        Ok(if call.arguments[1] == 0 { Outcome::Exit(first + second) } else { Outcome::Return(first) })
    }
}

#[test]
fn helpers_call_back_and_end_programs() {
    let program = |second: i32| {
        Program::new(&[
            Insn::new(o::LD_IMM64, 1, o::PSEUDO_FUNC, 0, 5),
            Insn::default(),
            Insn::new(o::ALU64 | o::MOV, 2, 0, 0, second),
            Insn::new(o::JMP | o::CALL, 0, 0, 0, 1),
            Insn::new(o::ALU64 | o::MOV, 0, 0, 0, 7),
            EXIT,
            Insn::new(o::ALU64 | o::MOV | o::SRC_REG, 0, 1, 0, 0),
            EXIT,
        ])
    };
    let result = |second| {
        let mut memory = Checked::new();
        run(&program(second), &mut memory, &Twice, [0; 5], std::ptr::null_mut(), Limits::default())
    };
    assert_eq!(result(0), Ok(42));
    assert_eq!(result(1), Ok(20));
}

#[test]
fn a_callback_that_is_none_is_refused() {
    let insns = [Insn::new(o::ALU64 | o::MOV, 1, 0, 0, 5), Insn::new(o::JMP | o::CALL, 0, 0, 0, 1), EXIT];
    let mut memory = Checked::new();
    let result =
        run(&Program::new(&insns), &mut memory, &Twice, [0; 5], std::ptr::null_mut(), Limits::default());
    assert_eq!(result, Err(Trap { pc: 1, kind: TrapKind::OutOfProgram }));
}
