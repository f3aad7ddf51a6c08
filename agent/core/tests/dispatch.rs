//! A thread that is about to dispatch its system calls closes the gate of the agent's. In a process of its own, as `seccomp` is.

use beeline_abi::regs::PtRegs;
use beeline_abi::run::RunContext;
use beeline_agent_core::seccomp::prctl;
use beeline_maps::CALL_GATE;

/// `prctl(PR_SET_SYSCALL_USER_DISPATCH, mode, …)`.
fn dispatch(mode: u64) {
    let mut registers = PtRegs { di: 59, si: mode, ..PtRegs::default() };
    let mut run = RunContext::default();
    // SAFETY: both are valid.
    unsafe { prctl((&raw mut registers).cast(), &mut run) };
}

/// One test, because the gate is one for this process, and never opens again.
#[test]
fn dispatching_closes_the_gate() {
    dispatch(0);
    assert_eq!(CALL_GATE.words(), [0; 8], "it is switched off");
    dispatch(1);
    assert!(CALL_GATE.forbids(186) && CALL_GATE.forbids(310));
}
