//! The system calls of an object: every `syscall` instruction, and where jumps can be put around it.
//!
//! ```text
//! around:   │ mov $39, %eax │ syscall │ cmp $-4096, %rax │      the call stays in its place:
//!           └── enter ──────┘         └── exit ──────────┘      one window before it, one behind it
//!
//! over:     │ syscall │ cmp $-4096, %rax │                      the call is displaced with its neighbours
//!           └── one window ──────────────┘
//! ```
//!
//! A call that stays in its place is made from where it always was: unwinders, cancellation handlers, seccomp filters and a thread
//! that waits in it see no difference. Where a window does not fit, the call is displaced.
//!
//! An occurrence of the two bytes is a call only when decoding from the start of the function arrives at it. Where no function is
//! known, its number has to be a constant, or branches have to lead to it.

use crate::analysis::Analysis;
use crate::binary::Binary;
use crate::error::Refusal;
use crate::plan::{SitePlan, WINDOW_MIN, ends_flow, is_call, plan, plan_before, refuse_signal_return};
use crate::reached;
use iced_x86::{
    Code, Decoder, DecoderOptions, FlowControl, Instruction, Mnemonic, OpKind, Register, RflagsBits,
};
use std::cell::OnceCell;
use std::ops::Range;

/// `syscall`.
const SYSCALL: [u8; 2] = [0x0f, 0x05];
/// Bytes of it.
const SYSCALL_LEN: u64 = SYSCALL.len() as u64;
/// How many instructions before the call are looked at.
const BEFORE_MAX: usize = 12;
/// Most bytes between the start of the enter window and the call.
const ENTER_MAX: u64 = 24;
/// Most bytes of a window that ends with the call.
const OVER_MAX: u64 = 16;
/// How far back a decoder starts, at most.
const RESYNC_MAX: u64 = 1 << 20;

/// Calls that come back only when they fail: no exit is looked for behind them.
const EXITS: [u32; 2] = [EXIT, 231];
/// `exit`.
const EXIT: u32 = 60;
/// `munmap`.
const MUNMAP: u32 = 11;

/// Calls that return in a child, too: they stay in their place where that can be.
const FORKS: [u32; 4] = [56, 57, 58, 435];

/// A `syscall` instruction that can be traced.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SystemCallSite {
    /// Link-time address of the instruction.
    pub vaddr: u64,
    /// The number of the call, where it is a constant of the code before it.
    pub number: Option<u32>,
    /// Nothing behind the call looks at the status flags that were set before it: code at the call may change them.
    pub flags_dead: bool,
    /// Where the jumps go.
    pub windows: Windows,
    /// The same with the instruction displaced, for when another probe has the bytes around it.
    pub over: Option<SitePlan>,
}

/// The bytes that jumps replace.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Windows {
    /// The instruction stays: `enter` ends where it begins, `exit` begins where it ends. A call that ends the thread, or its stack, has no exit.
    Around {
        /// Before the call.
        enter: SitePlan,
        /// Behind it.
        exit: Option<SitePlan>,
    },
    /// The instruction is one of those that are displaced.
    Over(SitePlan),
}

/// The system calls of an object.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct SystemCalls {
    /// Those that can be traced, in order of address.
    pub sites: Vec<SystemCallSite>,
    /// Those that cannot, and why.
    pub refused: Vec<RefusedCall>,
}

/// A system call that cannot be traced.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RefusedCall {
    /// Link-time address of the instruction.
    pub vaddr: u64,
    /// Its number, where that is a constant.
    pub number: Option<u32>,
    /// Why.
    pub refusal: Refusal,
}

/// Finds all system calls of an object.
pub(crate) fn find(binary: &Binary) -> SystemCalls {
    let mut found = SystemCalls::default();
    let (certain, likely) = (OnceCell::new(), OnceCell::new());
    for section in binary.sections().iter().filter(|section| section.executable) {
        let bytes = &binary.data()[section.bytes.clone()];
        for at in occurrences(bytes) {
            let vaddr = section.vaddr + at as u64;
            let Some(lead) = Lead::to(binary, vaddr) else {
                if is_prefixed(binary, vaddr) {
                    let refusal = Refusal::PrefixedCall { vaddr };
                    found.refused.push(RefusedCall { vaddr, number: None, refusal });
                }
                continue;
            };
            let is_certain = || certain.get_or_init(|| reached::certain(binary)).contains(&vaddr);
            let is_likely = || likely.get_or_init(|| reached::likely(binary)).contains(&vaddr);
            let is_code = lead.is_code(binary) || is_certain() || lead.sets_number() && is_likely();
            if !is_code {
                continue;
            }
            match site(binary, &lead) {
                Ok(site) => found.sites.push(site),
                Err(refusal) => {
                    let number = lead.number(binary.analysis());
                    found.refused.push(RefusedCall { vaddr, number, refusal });
                }
            }
        }
    }
    found
}

fn occurrences(bytes: &[u8]) -> impl Iterator<Item = usize> + '_ {
    bytes.windows(SYSCALL.len()).enumerate().filter(|(_, window)| *window == SYSCALL).map(|(at, _)| at)
}

/// The two bytes are the end of a longer instruction that makes a system call, in a function that is known.
fn is_prefixed(binary: &Binary, vaddr: u64) -> bool {
    const REX: std::ops::RangeInclusive<u8> = 0x40..=0x4f;
    let start = vaddr.wrapping_sub(1);
    let prefix = binary.bytes_from(start).and_then(|bytes| bytes.first().copied());
    prefix.is_some_and(|byte| REX.contains(&byte))
        && binary.function_at(start).is_some()
        && Lead::decoded(binary, start, 1 + SYSCALL.len()).is_some()
}

/// The straight line of code that leads to a call.
struct Lead {
    /// The call.
    vaddr: u64,
    /// The instructions before it, the last one last.
    before: Vec<Instruction>,
}

impl Lead {
    /// Decodes from the start of the function, or from the next one before it; none when `vaddr` is no instruction then.
    fn to(binary: &Binary, vaddr: u64) -> Option<Lead> {
        Lead::decoded(binary, vaddr, SYSCALL.len())
    }

    /// The same for a call of so many bytes.
    fn decoded(binary: &Binary, vaddr: u64, len: usize) -> Option<Lead> {
        let start = binary.analysis().start_before(vaddr).filter(|&start| vaddr - start <= RESYNC_MAX)?;
        let bytes = binary.bytes_from(start)?;
        let bytes = bytes.get(..(vaddr - start) as usize + len)?;
        let mut decoder = Decoder::with_ip(64, bytes, start, DecoderOptions::NONE);
        let mut before: Vec<Instruction> = Vec::new();
        while decoder.ip() < vaddr {
            let instruction = decoder.decode();
            if instruction.is_invalid() {
                // Data among the code.
                return None;
            }
            if before.len() == BEFORE_MAX {
                before.remove(0);
            }
            before.push(instruction);
        }
        let call = decoder.decode();
        let is_call = call.ip() == vaddr && call.mnemonic() == Mnemonic::Syscall;
        is_call.then_some(Lead { vaddr, before })
    }

    /// Constants among the code have neither a range nor a number before them.
    fn is_code(&self, binary: &Binary) -> bool {
        binary.function_at(self.vaddr).is_some() || self.number(binary.analysis()).is_some()
    }

    /// An instruction before the call puts its number into eax.
    fn sets_number(&self) -> bool {
        let straight = self.before.iter().rev().take_while(|it| !ends_flow(it) && !is_call(it));
        straight.filter(|it| it.op_count() > 0).any(writes_rax)
    }

    /// The constant that is in eax when the call is reached.
    fn number(&self, analysis: &Analysis) -> Option<u32> {
        let mut next = self.vaddr;
        // What a later instruction puts into al.
        let mut low: Option<u8> = None;
        for (index, instruction) in self.before.iter().enumerate().rev() {
            // Whoever comes from elsewhere brings another number.
            if analysis.first_target_in(next..next + 1).is_some() {
                return None;
            }
            next = instruction.ip();
            match instruction.flow_control() {
                FlowControl::Next => {}
                FlowControl::ConditionalBranch => continue,
                _ => return None,
            }
            if instruction.op_count() == 0 || !writes_rax(instruction) {
                if clobbers_rax(instruction) {
                    return None;
                }
                continue;
            }
            if instruction.code() == Code::Mov_r8_imm8 && instruction.op0_register() == Register::AL {
                low = low.or(Some(instruction.immediate8()));
                continue;
            }
            let whole = if instruction.code() == Code::Pop_r64 {
                pushed(self.before.get(index.checked_sub(1)?)?)
            } else {
                constant(instruction)
            };
            return whole.map(|whole| low.map_or(whole, |low| whole & !0xff | u32::from(low)));
        }
        None
    }
}

/// The constant that the instruction pushes, when it is a number of 32 bits.
fn pushed(instruction: &Instruction) -> Option<u32> {
    let is_constant = matches!(instruction.code(), Code::Pushq_imm8 | Code::Pushq_imm32);
    is_constant.then(|| u32::try_from(instruction.immediate(0)).ok()).flatten()
}

fn writes_rax(instruction: &Instruction) -> bool {
    let rax = |register: Register| register.full_register() == Register::RAX;
    let only_reads =
        matches!(instruction.mnemonic(), Mnemonic::Cmp | Mnemonic::Test | Mnemonic::Push | Mnemonic::Bt);
    !only_reads && instruction.op0_kind() == OpKind::Register && rax(instruction.op0_register())
}

/// It changes rax without naming it as its first operand.
fn clobbers_rax(instruction: &Instruction) -> bool {
    use iced_x86::{InstructionInfoFactory, OpAccess};
    let mut factory = InstructionInfoFactory::new();
    let info = factory.info(instruction);
    info.used_registers().iter().any(|used| {
        used.register().full_register() == Register::RAX
            && !matches!(used.access(), OpAccess::Read | OpAccess::CondRead | OpAccess::None)
    })
}

fn constant(instruction: &Instruction) -> Option<u32> {
    match instruction.code() {
        Code::Mov_r32_imm32 => Some(instruction.immediate32()),
        Code::Mov_rm32_imm32 => Some(instruction.immediate32()),
        Code::Mov_rm64_imm32 => u32::try_from(instruction.immediate32to64()).ok(),
        Code::Xor_r32_rm32 | Code::Xor_rm32_r32 | Code::Xor_r64_rm64 | Code::Xor_rm64_r64
            if instruction.op1_kind() == OpKind::Register
                && instruction.op0_register() == instruction.op1_register() =>
        {
            Some(0)
        }
        _ => None,
    }
}

/// `mov %r11, 8(%rsp); syscall`: the end of the range that cancellation handlers compare a program counter with, in musl and in
/// glibc from 2.41 on. Nothing in it may move.
const CANCELLABLE: [u8; 7] = [0x4c, 0x89, 0x5c, 0x24, 0x08, 0x0f, 0x05];

fn refuse_cancellable(binary: &Binary, vaddr: u64) -> Result<(), Refusal> {
    let start = vaddr.saturating_sub(CANCELLABLE.len() as u64 - SYSCALL_LEN);
    let is_one = binary.bytes_from(start).is_some_and(|bytes| bytes.starts_with(&CANCELLABLE));
    if is_one { Err(Refusal::CancellableCall { vaddr }) } else { Ok(()) }
}

fn site(binary: &Binary, lead: &Lead) -> Result<SystemCallSite, Refusal> {
    let vaddr = lead.vaddr;
    refuse_signal_return(binary, vaddr..vaddr + SYSCALL_LEN)?;
    refuse_cancellable(binary, vaddr)?;
    let number = lead.number(binary.analysis());
    refuse_without_stack(binary, lead, number)?;
    let takes_stack = takes_stack(binary, lead, number);
    // Over the call, code runs behind it.
    let over = if takes_stack { Err(Refusal::NoStack { vaddr }) } else { over(binary, lead) };
    let ends = takes_stack || number.is_some_and(|number| EXITS.contains(&number));
    let windows = match around(binary, lead, ends) {
        // An exit needs a hole that others may have: the call's end would not be seen.
        Some(Windows::Around { exit: Some(exit), .. })
            if is_short(&exit)
                && !number.is_none_or(|it| FORKS.contains(&it))
                && over.as_ref().is_ok_and(|it| !is_short(it)) =>
        {
            Windows::Over(over.clone()?)
        }
        Some(windows) => windows,
        None => Windows::Over(over.clone()?),
    };
    let over = over.ok().filter(|_| matches!(windows, Windows::Around { .. }));
    let flags_dead = binary.bytes_from(vaddr + SYSCALL_LEN).is_some_and(flags_dead);
    Ok(SystemCallSite { vaddr, number, flags_dead, windows, over })
}

/// How many instructions behind the call are looked at for what becomes of the flags.
const BEHIND_MAX: usize = 8;

/// Every status flag is written before one is read in this code. Functions hand none to whom they call or return to (System V
/// AMD64 ABI, 3.2.1; Go's is the same there).
fn flags_dead(code: &[u8]) -> bool {
    const STATUS: u32 =
        RflagsBits::OF | RflagsBits::SF | RflagsBits::ZF | RflagsBits::AF | RflagsBits::CF | RflagsBits::PF;
    let mut live = STATUS;
    for instruction in Decoder::new(64, code, DecoderOptions::NONE).into_iter().take(BEHIND_MAX) {
        // Another call keeps what flags there are.
        let is_call = instruction.mnemonic() == Mnemonic::Syscall;
        if is_call || instruction.is_invalid() || instruction.rflags_read() & live != 0 {
            return false;
        }
        live &= !instruction.rflags_modified();
        match instruction.flow_control() {
            _ if live == 0 => return true,
            FlowControl::Next => {}
            FlowControl::Return | FlowControl::Call | FlowControl::IndirectCall => return true,
            _ => return false,
        }
    }
    false
}

/// The call may unmap the stack of its thread: `exit` follows, and what is between them does without a stack. So does musl's
/// `__unmapself`, with which a detached thread ends. Nothing of ours may run behind it, which would need a stack, too.
fn takes_stack(binary: &Binary, lead: &Lead, number: Option<u32>) -> bool {
    if number.is_some_and(|number| number != MUNMAP) {
        return false;
    }
    let Some(code) = binary.bytes_from(lead.vaddr + SYSCALL_LEN) else { return false };
    let decoder = Decoder::with_ip(64, code, lead.vaddr + SYSCALL_LEN, DecoderOptions::NONE);
    for instruction in decoder.into_iter().take(BEHIND_MAX) {
        if instruction.mnemonic() == Mnemonic::Syscall {
            let next = Lead::to(binary, instruction.ip());
            return next.and_then(|next| next.number(binary.analysis())) == Some(EXIT);
        }
        if !does_without_stack(&instruction) {
            return false;
        }
    }
    false
}

/// An `exit` behind a call that may have unmapped the stack; and each of Go's, whose `runtime.exitThread` gives the stack away
/// before it.
fn refuse_without_stack(binary: &Binary, lead: &Lead, number: Option<u32>) -> Result<(), Refusal> {
    if number != Some(EXIT) {
        return Ok(());
    }
    let before = lead.before.iter().rev().find(|it| !does_without_stack(it));
    let call = before.filter(|it| it.mnemonic() == Mnemonic::Syscall);
    let first = call.and_then(|call| Lead::to(binary, call.ip()));
    let is_gone = first.is_some_and(|it| takes_stack(binary, &it, it.number(binary.analysis())));
    if is_gone || binary.is_go() { Err(Refusal::NoStack { vaddr: lead.vaddr }) } else { Ok(()) }
}

/// It goes on to the next instruction, and needs no stack.
fn does_without_stack(instruction: &Instruction) -> bool {
    instruction.flow_control() == FlowControl::Next
        && !instruction.is_invalid()
        && !instruction.is_stack_instruction()
        && instruction.memory_base() != Register::RSP
}

/// Windows on both sides of the call, which nobody else reaches; none behind it when it `ends` the thread or its stack.
fn around(binary: &Binary, lead: &Lead, ends: bool) -> Option<Windows> {
    let (vaddr, behind) = (lead.vaddr, lead.vaddr + SYSCALL_LEN);
    let analysis = binary.analysis();
    let reached = |at: u64| analysis.first_target_in(at..at + 1).or(analysis.first_start_in(at..at + 1));
    if reached(vaddr).is_some() {
        return None;
    }
    let exit = if ends {
        None
    } else if reached(behind).is_some() {
        return None;
    } else {
        Some(plan(binary, behind).ok()?)
    };
    let enter = enter(binary, lead)?;
    Some(Windows::Around { enter, exit })
}

/// The shortest window that ends at the call.
fn enter(binary: &Binary, lead: &Lead) -> Option<SitePlan> {
    for first in lead.before.iter().rev() {
        let len = lead.vaddr - first.ip();
        if is_call(first) || ends_flow(first) || len > ENTER_MAX {
            return None;
        }
        if len < WINDOW_MIN as u64 {
            continue;
        }
        match plan_before(binary, first.ip(), len as usize) {
            Ok(plan) if !plan.crosses_page() => return Some(plan),
            Ok(_) => {}
            // A longer one has the same fault inside.
            Err(Refusal::BranchInside { .. } | Refusal::CodeStartsInside { .. }) => return None,
            Err(_) => {}
        }
    }
    None
}

fn is_short(plan: &SitePlan) -> bool {
    usize::from(plan.jump_len) < WINDOW_MIN
}

/// A window with the call in it, from the call on or from an instruction before, the better with room for a long jump.
fn over(binary: &Binary, lead: &Lead) -> Result<SitePlan, Refusal> {
    let shortly = over_shortly(binary, lead);
    if shortly.as_ref().is_ok_and(|plan| !is_short(plan)) {
        return shortly;
    }
    over_from_before(binary, lead).map_or(shortly, Ok)
}

/// A window that ends with the call.
fn over_from_before(binary: &Binary, lead: &Lead) -> Option<SitePlan> {
    let straight = lead.before.iter().rev().take_while(|it| !is_call(it) && !ends_flow(it));
    let lengths = straight.map(|first| (first.ip(), lead.vaddr + SYSCALL_LEN - first.ip()));
    let long = lengths.filter(|&(_, len)| len >= WINDOW_MIN as u64).take_while(|&(_, len)| len <= OVER_MAX);
    long.filter_map(|(start, len)| plan_before(binary, start, len as usize).ok())
        .find(|plan| plan.references.system_call && !plan.crosses_page())
}

fn over_shortly(binary: &Binary, lead: &Lead) -> Result<SitePlan, Refusal> {
    let from_call = plan(binary, lead.vaddr);
    let Err(refusal) = from_call else { return from_call };
    for first in lead.before.iter().rev().take(3) {
        if is_call(first) || ends_flow(first) || lead.vaddr - first.ip() >= WINDOW_MIN as u64 {
            break;
        }
        let range: Range<u64> = lead.vaddr..lead.vaddr + SYSCALL_LEN;
        if let Ok(plan) = plan(binary, first.ip())
            && plan.references.system_call
            && plan.vaddr + u64::from(plan.code_len) >= range.end
        {
            return Ok(plan);
        }
    }
    Err(refusal)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_behind_a_call() {
        let dead: [&[u8]; 5] = [
            &[0x48, 0x3d, 0x00, 0xf0, 0xff, 0xff],       // cmp $-4096,%rax
            &[0x85, 0xc0, 0x78, 0x02],                   // test %eax,%eax; js
            &[0xc3],                                     // ret
            &[0x48, 0x89, 0xc3, 0xe8, 0, 0, 0, 0],       // mov %rax,%rbx; call
            &[0xff, 0xc0, 0x48, 0x29, 0xc8, 0x72, 0x02], // inc %eax; sub %rcx,%rax; jb
        ];
        let live: [&[u8]; 7] = [
            &[0x72, 0x02, 0x48, 0x29, 0xc8],                               // jb; sub
            &[0xff, 0xc0, 0x72, 0x02],                                     // inc %eax leaves the carry; jb
            &[0x9c, 0x58],                                                 // pushfq
            &[0x0f, 0x05, 0x48, 0x29, 0xc8],                               // another call
            &[0xeb, 0x10],                                                 // somewhere else
            &[0x90, 0x90, 0x90, 0x90, 0x90, 0x90, 0x90, 0x90, 0x90, 0xc3], // further than is looked
            &[],
        ];
        assert!(dead.into_iter().all(flags_dead));
        for code in live {
            assert!(!flags_dead(code), "{code:02x?}");
        }
    }
}
