//! The displaced instructions, written for another address.
//!
//! References stay what they were: iced keeps branch targets and `rip` operands as absolute addresses, so decoding at
//! the old address and encoding at the new one moves them. What that cannot do:
//!
//! - A call pushes the address behind it. The copy pushes the *original* one, so that unwinders, and code that looks at its
//!   caller, see what they would see without the probe:
//!
//!   ```text
//!         call 1f                  pairs with the callee's return in the processor's return stack
//!     1:  mov dword [rsp], low     the pushed word becomes the original return address
//!         mov dword [rsp+4], high
//!         jmp callee
//!   ```
//! - `loop` and `jrcxz` reach 127 bytes: they branch over a near jump.
//! - A jump to the site itself must meet the probe again, so it goes to the site, not to the copy.

use beeline_site::SitePlan;
use iced_x86::code_asm::{CodeAssembler, dword_ptr, rsp};
use iced_x86::{
    Code, Decoder, DecoderOptions, FlowControl, IcedError, Instruction, Mnemonic, OpKind, Register,
};

/// Why an instruction cannot be encoded elsewhere.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum DisplaceError {
    /// The plan's bytes do not decode; it is not one that the planner made.
    #[error("displaced bytes at {address:#x} do not decode")]
    Undecodable {
        /// Where, in the process.
        address: u64,
    },
    /// The instruction refers to something more than 2 GiB from the stub.
    #[error(
        "the instruction displaced from {address:#x} refers to {target:#x}, out of reach of the stub at {stub:#x}"
    )]
    OutOfRange {
        /// The instruction, in the process.
        address: u64,
        /// What it refers to.
        target: u64,
        /// The stub.
        stub: u64,
    },
    /// No rule for moving this instruction.
    #[error("the instruction at {address:#x} cannot be displaced")]
    Unsupported {
        /// The instruction, in the process.
        address: u64,
    },
    /// The assembler refused.
    #[error("assembling the instruction displaced from {address:#x}: {reason}")]
    Assembler {
        /// The instruction, in the process.
        address: u64,
        /// What it says.
        reason: String,
    },
}

/// A point of the original code and the index of the instruction in the assembler that stands for it.
pub(crate) struct Moved {
    pub(crate) original: u64,
    pub(crate) index: usize,
}

/// Appends the instructions that `plan` displaces from `site` to `asm`, then the jump behind the window. The whole will lie near
/// `stub`, give or take 64 KiB.
pub(crate) fn displace(
    asm: &mut CodeAssembler,
    plan: &SitePlan,
    site: u64,
    stub: u64,
) -> Result<Vec<Moved>, DisplaceError> {
    displace_around(asm, plan, site, stub, &mut Nothing)
}

/// What stands among displaced instructions.
pub(crate) trait Around {
    /// Before the first.
    fn first(&mut self, asm: &mut CodeAssembler) -> Result<(), IcedError>;
    /// In place of an instruction; false leaves it as it is. May add points of the original code.
    fn instead(
        &mut self,
        asm: &mut CodeAssembler,
        instruction: &Instruction,
        moved: &mut Vec<Moved>,
    ) -> Result<bool, IcedError>;
    /// Behind the last, when execution goes on.
    fn last(&mut self, asm: &mut CodeAssembler) -> Result<(), IcedError>;
}

struct Nothing;

impl Around for Nothing {
    fn first(&mut self, _: &mut CodeAssembler) -> Result<(), IcedError> {
        Ok(())
    }

    fn instead(
        &mut self,
        _: &mut CodeAssembler,
        _: &Instruction,
        _: &mut Vec<Moved>,
    ) -> Result<bool, IcedError> {
        Ok(false)
    }

    fn last(&mut self, _: &mut CodeAssembler) -> Result<(), IcedError> {
        Ok(())
    }
}

/// As [`displace`], with other code among the instructions.
pub(crate) fn displace_around(
    asm: &mut CodeAssembler,
    plan: &SitePlan,
    site: u64,
    stub: u64,
    around: &mut dyn Around,
) -> Result<Vec<Moved>, DisplaceError> {
    let code = plan.original.get(..usize::from(plan.code_len)).unwrap_or(&plan.original);
    let (mut moved, falls_through) = displace_code(asm, code, site, stub, around)?;
    if falls_through {
        let next = site + code.len() as u64;
        if !reaches(stub, next) {
            return Err(DisplaceError::OutOfRange { address: site, target: next, stub });
        }
        around.last(asm).map_err(|e| assembler(next, &e))?;
        moved.push(Moved { original: next, index: asm.instructions().len() });
        asm.jmp(next).map_err(|e| assembler(next, &e))?;
    }
    Ok(moved)
}

/// Appends the instructions before the `ret` of a window; that it is at the place behind them is the last point.
pub(crate) fn displace_before(
    asm: &mut CodeAssembler,
    plan: &SitePlan,
    ret: u8,
    site: u64,
    stub: u64,
) -> Result<Vec<Moved>, DisplaceError> {
    let code = plan.original.get(..usize::from(ret)).unwrap_or(&plan.original);
    let (mut moved, _) = displace_code(asm, code, site, stub, &mut Nothing)?;
    moved.push(Moved { original: site + u64::from(ret), index: asm.instructions().len() });
    Ok(moved)
}

fn assembler(address: u64, error: &IcedError) -> DisplaceError {
    DisplaceError::Assembler { address, reason: error.to_string() }
}

/// Appends the instructions of `code`; whether execution goes on behind them.
fn displace_code(
    asm: &mut CodeAssembler,
    code: &[u8],
    site: u64,
    stub: u64,
    around: &mut dyn Around,
) -> Result<(Vec<Moved>, bool), DisplaceError> {
    let mut decoder = Decoder::with_ip(64, code, site, DecoderOptions::NONE);
    let mut moved = Vec::new();
    let mut falls_through = true;
    around.first(asm).map_err(|e| assembler(site, &e))?;
    while decoder.can_decode() {
        let instruction = decoder.decode();
        let address = instruction.ip();
        if instruction.is_invalid() {
            return Err(DisplaceError::Undecodable { address });
        }
        check_reach(&instruction, stub)?;
        moved.push(Moved { original: address, index: asm.instructions().len() });
        if !around.instead(asm, &instruction, &mut moved).map_err(|e| assembler(address, &e))? {
            append(asm, instruction).map_err(|e| match e {
                Failure::Unsupported => DisplaceError::Unsupported { address },
                Failure::Assembler(e) => assembler(address, &e),
            })?;
        }
        falls_through = !ends_flow(&instruction);
    }
    Ok((moved, falls_through))
}

enum Failure {
    Unsupported,
    Assembler(IcedError),
}

impl From<IcedError> for Failure {
    fn from(error: IcedError) -> Failure {
        Failure::Assembler(error)
    }
}

/// A call is followed by nothing of ours: it returns to the original code.
fn ends_flow(instruction: &Instruction) -> bool {
    matches!(
        instruction.flow_control(),
        FlowControl::Return
            | FlowControl::UnconditionalBranch
            | FlowControl::IndirectBranch
            | FlowControl::Call
            | FlowControl::IndirectCall
    ) && !is_trap_like_call(instruction)
}

/// iced counts `syscall` as a call; it comes back to the next instruction.
fn is_trap_like_call(instruction: &Instruction) -> bool {
    matches!(instruction.mnemonic(), Mnemonic::Syscall | Mnemonic::Sysenter)
}

fn append(asm: &mut CodeAssembler, mut instruction: Instruction) -> Result<(), Failure> {
    let next = instruction.next_ip();
    match instruction.flow_control() {
        FlowControl::Call if !is_trap_like_call(&instruction) => direct_call(asm, &instruction, next),
        FlowControl::IndirectCall => indirect_call(asm, instruction, next),
        _ if instruction.is_loop() || instruction.is_loopcc() || instruction.is_jcx_short() => {
            counted_branch(asm, instruction)
        }
        FlowControl::XbeginXabortXend | FlowControl::Interrupt => Err(Failure::Unsupported),
        _ => {
            instruction.set_ip(0);
            Ok(asm.add_instruction(instruction)?)
        }
    }
}

fn direct_call(asm: &mut CodeAssembler, call: &Instruction, next: u64) -> Result<(), Failure> {
    push_return_address(asm, next)?;
    Ok(asm.jmp(call.near_branch_target())?)
}

fn indirect_call(asm: &mut CodeAssembler, call: Instruction, next: u64) -> Result<(), Failure> {
    let mut jump = call;
    jump.set_code(match call.code() {
        Code::Call_rm64 => Code::Jmp_rm64,
        _ => return Err(Failure::Unsupported),
    });
    let operand_is_rsp = call.op0_kind() == OpKind::Register && call.op0_register() == Register::RSP;
    if operand_is_rsp {
        return Err(Failure::Unsupported);
    }
    if call.op0_kind() == OpKind::Memory && call.memory_base() == Register::RSP {
        // The word is pushed before the operand is read.
        jump.set_memory_displacement64(call.memory_displacement64().wrapping_add(8));
        jump.set_memory_displ_size(8);
    }
    jump.set_ip(0);
    push_return_address(asm, next)?;
    Ok(asm.add_instruction(jump)?)
}

fn push_return_address(asm: &mut CodeAssembler, address: u64) -> Result<(), Failure> {
    let mut here = asm.create_label();
    asm.call(here)?;
    asm.set_label(&mut here)?;
    asm.mov(dword_ptr(rsp), address as u32)?;
    asm.mov(dword_ptr(rsp + 4), (address >> 32) as u32)?;
    Ok(())
}

/// `loop`, `loope`, `loopne`, `jrcxz`, `jecxz`.
fn counted_branch(asm: &mut CodeAssembler, mut branch: Instruction) -> Result<(), Failure> {
    let target = branch.near_branch_target();
    let (mut taken, mut on) = (asm.create_label(), asm.create_label());
    branch.set_ip(0);
    // A label's number stands for its address until the code is assembled.
    branch.set_near_branch64(label_number(asm, taken)?);
    asm.add_instruction(branch)?;
    asm.jmp(on)?;
    asm.set_label(&mut taken)?;
    asm.jmp(target)?;
    asm.set_label(&mut on)?;
    Ok(())
}

/// The number by which the assembler knows a label: what a jump to it has as its target.
fn label_number(asm: &mut CodeAssembler, label: iced_x86::code_asm::CodeLabel) -> Result<u64, Failure> {
    let mut probe = CodeAssembler::new(asm.bitness())?;
    probe.jmp(label)?;
    Ok(probe.instructions()[0].near_branch_target())
}

fn check_reach(instruction: &Instruction, stub: u64) -> Result<(), DisplaceError> {
    let address = instruction.ip();
    let target = if instruction.is_ip_rel_memory_operand() {
        instruction.ip_rel_memory_address()
    } else if has_near_target(instruction) {
        instruction.near_branch_target()
    } else {
        return Ok(());
    };
    if reaches(stub, target) { Ok(()) } else { Err(DisplaceError::OutOfRange { address, target, stub }) }
}

fn has_near_target(instruction: &Instruction) -> bool {
    instruction.op_count() > 0 && instruction.op0_kind() == OpKind::NearBranch64
}

/// Slack for the length of the stub, so that a check against its start holds for all of it.
const STUB_SLACK: i64 = 1 << 16;

/// A `rel32` in a stub at `stub` reaches `target`.
pub(crate) fn reaches(stub: u64, target: u64) -> bool {
    let distance = i128::from(target) - i128::from(stub);
    distance.unsigned_abs() < (i32::MAX as i64 - STUB_SLACK).unsigned_abs().into()
}
