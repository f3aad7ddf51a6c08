//! Filters that the process installs narrow the gate of system calls. In a process of its own: the gate is one for all, and never
//! opens again.

use beeline_abi::calls::Instruction;
use beeline_abi::regs::PtRegs;
use beeline_abi::run::RunContext;
use beeline_agent_core::seccomp::{go_syscall, prctl, syscall};
use beeline_maps::CALL_GATE;

/// `struct sock_fprog`.
#[repr(C)]
struct Program {
    len: u16,
    reserved: [u16; 3],
    filter: u64,
}

fn op(code: u16, jump_true: u8, jump_false: u8, k: u32) -> Instruction {
    Instruction { code, jump_true, jump_false, k }
}

fn enter(function: unsafe extern "sysv64" fn(*mut u8, *mut RunContext) -> u64, registers: &PtRegs) {
    let mut registers = *registers;
    let mut run = RunContext::default();
    // SAFETY: both are valid.
    unsafe { function((&raw mut registers).cast(), &mut run) };
}

/// One test, because the gate is one for this process, and never opens again.
#[test]
fn installations_are_seen() {
    let others = PtRegs { di: 15, si: 2, ..PtRegs::default() };
    enter(prctl, &others);
    enter(syscall, &PtRegs { di: 39, ..PtRegs::default() });
    assert_eq!(CALL_GATE.words(), [0; 8]);
    // Allows everything but one call, behind 100 instructions that do nothing.
    let mut filter: Vec<Instruction> = (0..100).map(|_| op(0x00, 0, 0, 0)).collect();
    filter.extend([op(0x20, 0, 0, 0), op(0x15, 0, 1, 35), op(0x06, 0, 0, 0), op(0x06, 0, 0, 0x7fff_0000)]);
    let program = Program { len: filter.len() as u16, reserved: [0; 3], filter: filter.as_ptr() as u64 };
    let address = &raw const program as u64;
    enter(prctl, &PtRegs { di: 22, si: 2, dx: address, ..PtRegs::default() });
    assert!(CALL_GATE.forbids(35) && !CALL_GATE.forbids(310));
    filter[101].k = 24;
    enter(go_syscall, &PtRegs { ax: 317, bx: 1, cx: 0, di: address, ..PtRegs::default() });
    assert!(CALL_GATE.forbids(24) && CALL_GATE.forbids(35) && !CALL_GATE.forbids(310));
    enter(syscall, &PtRegs { di: 317, si: 1, dx: 0, cx: 8, ..PtRegs::default() });
    assert!(CALL_GATE.forbids(310), "a filter that cannot be read");
}
