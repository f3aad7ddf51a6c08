//! How a program calls a function of the target: what the function may change, the probed code must not notice.
//!
//! ```text
//! rbp ▶ │ rbp of the program             │
//!       │ rbx, flags                     │
//!       ├────────────────────────────────┤
//!       │ registers of the vector units  │   xsave area, 64-byte aligned
//!       │ r1..r5, errno, the run's words │ ◀ rsp, a multiple of 64, where the function is called
//! ```
//!
//! Called as a helper: rdi, rsi, rdx, rcx, r8 = r1 to r5, r9 = run. Of the general registers a function changes no others than a program
//! may; vector registers, x87 and `mxcsr` are kept here, because nothing else that runs in a stub touches them. The thread's `errno` is
//! as before. While the function runs the thread's guard word is its frame's address, and whatever it hits is missed. A hit above that
//! frame, or with another word in place of the return address, shows that the function has left it (`longjmp`). A hit that is wrong about
//! that (a coroutine's, on a stack that lies higher) runs its program in the same slot: the words of the run that the rest of this program
//! needs are kept, too.
//!
//! A function that never comes back leaves what a program leaves whose signal handler never does; nothing here is unwound: an exception
//! that it lets out finds the end of the stack, and ends the process as one does that leaves a `noexcept` function.

use crate::site_code::StubError;
use beeline_abi::code::HostValue;
use beeline_abi::run::RunContext;
use beeline_abi::thread::{SESSIONS, ThreadSlot};
use iced_x86::IcedError;
use iced_x86::code_asm::{
    AsmMemoryOperand, AsmRegister32, AsmRegister64, CodeAssembler, byte_ptr, dword_ptr, eax, ecx, edi, edx,
    esi, qword_ptr, r8, r8d, r9, r11, rax, rbp, rbx, rcx, rdi, rdx, rsi, rsp, word_ptr,
};
use std::mem::offset_of;

/// A function of the target that a program calls.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HostCall {
    /// Its address.
    pub function: u64,
    /// What it takes: at most five.
    pub args: Vec<HostValue>,
    /// What it returns.
    pub returns: HostValue,
    /// Address of `int *__errno_location(void)`; 0 = the target has no `errno`.
    pub errno_location: u64,
}

/// Bytes of the code for one function, at most.
pub const HOST_CALL_MAX: u64 = 512;

/// x87, SSE, AVX, the three parts of AVX-512, and the general registers r16 to r31 (Intel SDM volume 1, 13.1). What the CPU lacks the
/// instruction leaves out.
const COMPONENTS: u32 = 0b1110_0111 | 1 << 19;
/// Bytes of an area for them in the standard format: the last ends at 2688.
const AREA_LEN: i32 = 2688;
/// Offsets in the area: the x87 control word, and the header, which has to be zero before (13.4.2, 13.7).
const CONTROL_WORD: i32 = 0;
const HEADER: i32 = 512;
const HEADER_LEN: i32 = 64;

/// Words of the frame, from rsp.
const ARGS: i32 = 0;
const RESULT: i32 = ARGS;
const ERRNO: i32 = 40;
const ERRNO_ADDRESS: i32 = 48;
const KEPT: i32 = 56;
const AREA: i32 = 192;
const FRAME_LEN: i32 = AREA + AREA_LEN;
const _: () = assert!(KEPT + 8 * KEPT_WORDS.len() as i32 <= AREA && AREA % 64 == 0);

/// From the run, words of its slot.
const GUARD: i32 = slot_word(offset_of!(ThreadSlot, guard));
const HOST_RETURN: i32 = slot_word(offset_of!(ThreadSlot, host_return));

const fn slot_word(offset: usize) -> i32 {
    offset as i32 - offset_of!(ThreadSlot, run) as i32
}

/// From the run, the words that a program of another hit would change, and those that tell where the function's frame is.
const KEPT_WORDS: [i32; 7 + SESSIONS] = [
    HOST_RETURN,
    GUARD,
    offset_of!(RunContext, link) as i32,
    offset_of!(RunContext, regs) as i32,
    // With the flags.
    offset_of!(RunContext, tail_calls) as i32,
    offset_of!(RunContext, override_value) as i32,
    offset_of!(RunContext, session) as i32,
    offset_of!(RunContext, session_cookies) as i32,
    offset_of!(RunContext, session_cookies) as i32 + 8,
    offset_of!(RunContext, session_cookies) as i32 + 16,
];

/// Registers of the arguments, of a helper as of a function.
const ARGUMENTS: [AsmRegister64; 5] = [rdi, rsi, rdx, rcx, r8];

/// Makes the code for address `at`.
pub(crate) fn build_host_call(call: &HostCall, at: u64) -> Result<Vec<u8>, StubError> {
    let wrap = |e: IcedError| StubError::Assembler { at, reason: e.to_string() };
    let mut asm = CodeAssembler::new(64).map_err(wrap)?;
    emit(&mut asm, call).map_err(wrap)?;
    asm.assemble(at).map_err(wrap)
}

fn emit(asm: &mut CodeAssembler, call: &HostCall) -> Result<(), IcedError> {
    enter(asm)?;
    keep_vectors(asm)?;
    keep_errno(asm, call)?;
    for (index, (value, register)) in call.args.iter().zip(ARGUMENTS).enumerate() {
        load(asm, register, *value, rsp + (ARGS + 8 * index as i32))?;
    }
    let mut behind = asm.create_label();
    asm.lea(rax, qword_ptr(behind))?;
    // Where the call puts it: a signal handler finds it there before that, too.
    asm.mov(qword_ptr(rsp - 8), rax)?;
    asm.mov(qword_ptr(rbx + GUARD), rsp)?;
    asm.mov(qword_ptr(rbx + HOST_RETURN), rax)?;
    asm.xor(eax, eax)?; // no vector registers hold arguments, should there be variable ones
    asm.mov(r11, call.function)?;
    asm.call(r11)?;
    asm.set_label(&mut behind)?;
    asm.mov(qword_ptr(rsp + RESULT), rax)?;
    if call.errno_location != 0 {
        asm.mov(rcx, qword_ptr(rsp + ERRNO_ADDRESS))?;
        asm.mov(edx, dword_ptr(rsp + ERRNO))?;
        asm.mov(dword_ptr(rcx), edx)?;
    }
    for (index, offset) in KEPT_WORDS.into_iter().enumerate() {
        asm.mov(rax, qword_ptr(rsp + (KEPT + 8 * index as i32)))?;
        asm.mov(qword_ptr(rbx + offset), rax)?;
    }
    select_components(asm)?;
    asm.xrstor64(area(0))?;
    load(asm, rax, call.returns, rsp + RESULT)?;
    leave(asm)
}

/// Makes the frame; rbx = run.
fn enter(asm: &mut CodeAssembler) -> Result<(), IcedError> {
    asm.push(rbp)?;
    asm.mov(rbp, rsp)?;
    asm.push(rbx)?;
    asm.pushfq()?;
    asm.cld()?; // in the middle of a function the direction may be another
    asm.mov(rbx, r9)?;
    asm.sub(rsp, FRAME_LEN)?;
    asm.and(rsp, -64)?;
    for (index, register) in ARGUMENTS.into_iter().enumerate() {
        asm.mov(qword_ptr(rsp + (ARGS + 8 * index as i32)), register)?;
    }
    for (index, offset) in KEPT_WORDS.into_iter().enumerate() {
        asm.mov(rax, qword_ptr(rbx + offset))?;
        asm.mov(qword_ptr(rsp + (KEPT + 8 * index as i32)), rax)?;
    }
    Ok(())
}

fn leave(asm: &mut CodeAssembler) -> Result<(), IcedError> {
    asm.lea(rsp, qword_ptr(rbp - 16))?;
    asm.popfq()?;
    asm.pop(rbx)?;
    asm.pop(rbp)?;
    asm.ret()
}

/// Saves the vector registers; the function finds an x87 unit without anything in it, as at any call.
fn keep_vectors(asm: &mut CodeAssembler) -> Result<(), IcedError> {
    asm.xor(eax, eax)?;
    for offset in (0..HEADER_LEN).step_by(8) {
        asm.mov(area(HEADER + offset), rax)?;
    }
    select_components(asm)?;
    asm.xsave64(area(0))?;
    asm.fninit()?;
    asm.fldcw(word_ptr(rsp + (AREA + CONTROL_WORD)))
}

fn area(offset: i32) -> AsmMemoryOperand {
    qword_ptr(rsp + (AREA + offset))
}

/// edx:eax = the components.
fn select_components(asm: &mut CodeAssembler) -> Result<(), IcedError> {
    asm.mov(eax, COMPONENTS)?;
    asm.xor(edx, edx)
}

fn keep_errno(asm: &mut CodeAssembler, call: &HostCall) -> Result<(), IcedError> {
    if call.errno_location == 0 {
        return Ok(());
    }
    asm.mov(rax, call.errno_location)?;
    asm.call(rax)?;
    asm.mov(qword_ptr(rsp + ERRNO_ADDRESS), rax)?;
    asm.mov(ecx, dword_ptr(rax))?;
    asm.mov(dword_ptr(rsp + ERRNO), ecx)
}

/// Loads the value at `from`, extended to the whole register.
fn load(
    asm: &mut CodeAssembler,
    to: AsmRegister64,
    value: HostValue,
    from: AsmMemoryOperand,
) -> Result<(), IcedError> {
    match (value.size, value.signed) {
        (1, true) => asm.movsx(to, byte_ptr(from)),
        (1, false) => asm.movzx(to, byte_ptr(from)),
        (2, true) => asm.movsx(to, word_ptr(from)),
        (2, false) => asm.movzx(to, word_ptr(from)),
        (4, true) => asm.movsxd(to, dword_ptr(from)),
        // Zeros above, by what a move to 32 bits does.
        (4, false) => asm.mov(low(to), dword_ptr(from)),
        _ => asm.mov(to, qword_ptr(from)),
    }
}

/// The lower half of one of the registers used here.
fn low(register: AsmRegister64) -> AsmRegister32 {
    match register {
        it if it == rdi => edi,
        it if it == rsi => esi,
        it if it == rdx => edx,
        it if it == rcx => ecx,
        it if it == r8 => r8d,
        _ => eax,
    }
}
