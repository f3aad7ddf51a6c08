//! Data of the process as operands: by its distance where that fits, which is half as long, else by its address.

use crate::displaced::reaches;
use iced_x86::code_asm::{AsmRegister64, CodeAssembler, dword_ptr, qword_ptr, rax};
use iced_x86::{Code, IcedError, Instruction, MemoryOperand, Register};

/// The operand for what lies at `address`.
fn operand(address: u64) -> MemoryOperand {
    MemoryOperand::with_base_displ_size(Register::RIP, address as i64, 8)
}

/// `register` = `address`, in code near `at`.
pub(crate) fn address(
    asm: &mut CodeAssembler,
    at: u64,
    register: AsmRegister64,
    address: u64,
) -> Result<(), IcedError> {
    if !reaches(at, address) {
        return asm.mov(register, address);
    }
    reference(asm, register, address)
}

/// `register` = `address`, which is in reach: seven bytes, the last four of which are the distance from behind them.
pub(crate) fn reference(
    asm: &mut CodeAssembler,
    register: AsmRegister64,
    address: u64,
) -> Result<(), IcedError> {
    asm.add_instruction(Instruction::with2(Code::Lea_r64_m, Register::from(register), operand(address))?)
}

/// `register` = the word at `address`, in code near `at`.
pub(crate) fn load(
    asm: &mut CodeAssembler,
    at: u64,
    register: AsmRegister64,
    address: u64,
) -> Result<(), IcedError> {
    if !reaches(at, address) {
        asm.mov(register, address)?;
        return asm.mov(register, qword_ptr(register));
    }
    asm.add_instruction(Instruction::with2(Code::Mov_r64_rm64, Register::from(register), operand(address))?)
}

/// The zero flag is set when the four bytes at `address` have none of the bits of `mask`, in code near `at`. Uses rax.
pub(crate) fn test(asm: &mut CodeAssembler, at: u64, address: u64, mask: u32) -> Result<(), IcedError> {
    if !reaches(at, address) {
        asm.mov(rax, address)?;
        return asm.test(dword_ptr(rax), mask);
    }
    asm.add_instruction(Instruction::with2(Code::Test_rm32_imm32, operand(address), mask)?)
}

/// Compares the four bytes at `address` with `number`, in code near `at`. Uses rax.
pub(crate) fn compare(asm: &mut CodeAssembler, at: u64, address: u64, number: u32) -> Result<(), IcedError> {
    if !reaches(at, address) {
        asm.mov(rax, address)?;
        return asm.cmp(dword_ptr(rax), number);
    }
    asm.add_instruction(Instruction::with2(Code::Cmp_rm32_imm32, operand(address), number)?)
}
