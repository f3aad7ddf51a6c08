//! A window of bytes that a jump can replace, and the instructions that it displaces.
//!
//! Where five bytes do not fit, a short jump of two goes to a [`Hole`] nearby, which holds the long one. Where that does not fit either,
//! there is room for a breakpoint of one, in processes that are to have some.

use crate::binary::Binary;
use crate::error::Refusal;
use crate::hole::Hole;
use crate::leaves::{Leave, plan_leaves};
use crate::symbols::SymbolKind;
use iced_x86::{Code, Decoder, DecoderOptions, FlowControl, Instruction, Mnemonic, OpKind, Register};
use std::ops::Range;

/// Bytes of `jmp rel32`: the least that a probe replaces.
pub const WINDOW_MIN: usize = 5;

/// Bytes of `jmp rel8`: what is replaced where a long jump does not fit.
pub const SHORT_WINDOW: usize = 2;

/// Bytes of `int3`: what is replaced where no jump fits.
pub const BREAKPOINT_WINDOW: usize = 1;

/// Most bytes that a probe replaces. Behind them may be the rest of a displaced instruction, which stays as it is.
const PATCH_MAX: usize = 16;

/// Instructions are at most so long (Intel SDM, volume 2, 2.3.11).
const INSTRUCTION_MAX: u64 = 15;

/// How far back a decoder starts to find the boundary of an instruction, at most.
const RESYNC_MAX: u64 = 1 << 20;

/// What the displaced instructions refer to. All of it is handled when they are encoded again; this says what to expect.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct References {
    /// A memory operand relative to the instruction pointer.
    pub rip_relative: bool,
    /// A direct jump, conditional or not.
    pub branch: bool,
    /// A call; always the last displaced instruction.
    pub call: bool,
    /// A system call: a thread can wait for long inside the displaced code.
    pub system_call: bool,
}

/// Where a probe goes: which bytes are replaced, and which instructions stood there. Plain data; it can be kept.
///
/// ```text
/// vaddr          boundaries[1]   code_len            original.len()
/// │ instruction  │ instruction   │ padding (if any)  │
/// └──────────────── replaced: jmp rel32, filler ─────┘
/// ```
///
/// The displaced instructions are the first `code_len` bytes of `original`: decode them at the address of the site in
/// the process, and every reference is absolute.
#[derive(Clone, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct SitePlan {
    /// Offset of the first replaced byte in the file.
    pub file_offset: u64,
    /// Link-time address of the first replaced byte.
    pub vaddr: u64,
    /// The bytes of the window, at least as many as the jump has, at most 24. In memory they must be the same.
    pub original: Vec<u8>,
    /// How many of them are instructions; the rest is padding that never runs.
    pub code_len: u8,
    /// Offsets of the instructions in the window; the first is 0.
    pub boundaries: Vec<u8>,
    /// Execution goes on behind the window: the last instruction is no jump or return.
    pub falls_through: bool,
    /// The site is the entry of a function that is only called: flags are dead, and so is the red zone.
    pub is_entry: bool,
    /// What the displaced instructions refer to.
    pub references: References,
    /// Bytes of the jump at the site: [`WINDOW_MIN`] or [`SHORT_WINDOW`]; or [`BREAKPOINT_WINDOW`], and it is an `int3`.
    pub jump_len: u8,
    /// For a short jump: places for the long one, the best first. One of them is needed.
    pub holes: Vec<Hole>,
    /// The probe runs at this `ret`, behind the other instructions; none: before the first of them.
    pub leave: Option<Leave>,
}

impl SitePlan {
    /// How many bytes the probe writes: the window, but at most 16.
    pub fn patched_len(&self) -> usize {
        self.original.len().min(PATCH_MAX)
    }

    /// The jump lies in two pages, which are not written at once. The same in every process: objects are mapped by pages.
    pub fn crosses_page(&self) -> bool {
        crosses_page(self.vaddr, u64::from(self.jump_len))
    }

    /// Another probe at `vaddr` cannot be in force at the same time: the jump of one would lie in that of the other. Plans are
    /// made from the file alone, so whoever places several probes has to ask.
    pub fn collides_with(&self, vaddr: u64) -> bool {
        let distance = self.vaddr.abs_diff(vaddr);
        distance != 0 && distance < WINDOW_MIN as u64
    }
}

/// Plans an entry probe (one that runs when execution reaches `vaddr`, a link-time address).
///
/// # Errors
/// [`Refusal`] says why nothing can be put there.
pub fn plan(binary: &Binary, vaddr: u64) -> Result<SitePlan, Refusal> {
    let near = match plan_window(binary, vaddr, WINDOW_MIN) {
        Ok(plan) if plan.crosses_page() => Err(Refusal::CrossesPage { vaddr }),
        other => other,
    };
    near.or_else(
        |refusal| {
            if lacks_room(&refusal) { plan_short(binary, vaddr).or(Err(refusal)) } else { Err(refusal) }
        },
    )
}

/// Plans an entry probe with a short jump, where the long one has no room: at another probe's site, for one.
///
/// # Errors
/// [`Refusal`] says why nothing can be put there.
pub fn plan_short(binary: &Binary, vaddr: u64) -> Result<SitePlan, Refusal> {
    if !may_hop(binary) {
        return Err(Refusal::GoHole { vaddr });
    }
    let mut plan = plan_window(binary, vaddr, SHORT_WINDOW)?;
    plan.jump_len = SHORT_WINDOW as u8;
    if plan.crosses_page() {
        return Err(Refusal::CrossesPage { vaddr });
    }
    plan.holes = crate::hole::holes(binary, &plan);
    if plan.holes.is_empty() {
        return Err(Refusal::NoHole { vaddr });
    }
    Ok(plan)
}

/// A thread may be at a jump in a hole. Go's runtime interrupts threads wherever they are, and takes the place for one of the function
/// that it lies in or behind, with that function's stack (`isAsyncSafePoint` in its `preempt.go`).
pub(crate) fn may_hop(binary: &Binary) -> bool {
    !binary.is_go()
}

/// Plans an entry probe with a breakpoint, which displaces one instruction: where no jump fits.
///
/// # Errors
/// [`Refusal`] says why nothing can be put there.
pub fn plan_breakpoint(binary: &Binary, vaddr: u64) -> Result<SitePlan, Refusal> {
    let plan = plan_window(binary, vaddr, BREAKPOINT_WINDOW)?;
    Ok(SitePlan { jump_len: BREAKPOINT_WINDOW as u8, ..plan })
}

/// A shorter jump, or a breakpoint, may help.
pub fn lacks_room(refusal: &Refusal) -> bool {
    matches!(
        refusal,
        Refusal::TooShort { .. }
            | Refusal::BranchInside { .. }
            | Refusal::UnknownTargets { .. }
            | Refusal::CodeStartsInside { .. }
            | Refusal::CallInside { .. }
            | Refusal::CrossesPage { .. }
            | Refusal::Unmovable { .. }
            | Refusal::Undecodable { .. }
            | Refusal::RestartableSequence { .. }
            | Refusal::TextRelocation { .. }
            | Refusal::NoRoomAtReturn { .. }
    )
}

/// `len` bytes from `vaddr` on lie in two pages.
pub(crate) fn crosses_page(vaddr: u64, len: u64) -> bool {
    const PAGE: u64 = 4096;
    vaddr % PAGE + len > PAGE
}

/// Plans a window of at least `least` bytes, where probes may go.
pub(crate) fn plan_window(binary: &Binary, vaddr: u64, least: usize) -> Result<SitePlan, Refusal> {
    refuse_fixed_points(binary, vaddr)?;
    plan_anywhere(binary, vaddr, least)
}

/// Plans the window of the loader's hook for debuggers, which no probe may have: a debugger's breakpoint there still works.
///
/// # Errors
/// [`Refusal`] says why nothing can be put there.
pub fn plan_hook(binary: &Binary, vaddr: u64) -> Result<SitePlan, Refusal> {
    plan_anywhere(binary, vaddr, WINDOW_MIN)
}

fn plan_anywhere(binary: &Binary, vaddr: u64, least: usize) -> Result<SitePlan, Refusal> {
    let file_offset = binary.file_offset_of(vaddr).ok_or(Refusal::NotCode { vaddr })?;
    let section = binary.section_at(vaddr).filter(|s| s.executable).ok_or(Refusal::NotCode { vaddr })?;
    if section.is_linkage_table() {
        return Err(Refusal::LinkageTable { vaddr });
    }
    refuse_signal_return(binary, vaddr..vaddr + 1)?;
    let bytes = binary.bytes_from(vaddr).ok_or(Refusal::NotCode { vaddr })?;
    check_boundary(binary, vaddr)?;
    let window = Window::decode(bytes, vaddr, least)?;
    let range = vaddr + 1..vaddr + window.len as u64;
    let analysis = binary.analysis();
    if let Some(at) = analysis.first_start_in(range.clone()) {
        return Err(Refusal::CodeStartsInside { at });
    }
    if let Some(target) = analysis.first_target_in(range.clone()) {
        return Err(Refusal::BranchInside { target });
    }
    refuse_opaque(binary, vaddr, &window)?;
    refuse_written(binary, vaddr..range.end)?;
    if crate::rseq::touches(binary, vaddr..range.end) {
        return Err(Refusal::RestartableSequence { vaddr });
    }
    refuse_signal_return(binary, vaddr..range.end)?;
    Ok(SitePlan {
        file_offset,
        vaddr,
        original: bytes[..window.len].to_vec(),
        code_len: window.code_len as u8,
        boundaries: window.boundaries,
        falls_through: window.falls_through,
        is_entry: is_entry(binary, vaddr),
        references: window.references,
        jump_len: WINDOW_MIN as u8,
        holes: Vec::new(),
        leave: None,
    })
}

/// Plans a window of exactly `len` bytes, which end before an instruction that stays in its place.
pub(crate) fn plan_before(binary: &Binary, vaddr: u64, len: usize) -> Result<SitePlan, Refusal> {
    let plan = plan_window(binary, vaddr, len)?;
    if usize::from(plan.code_len) != len || !plan.falls_through {
        return Err(Refusal::TooShort { vaddr, room: len as u64 });
    }
    Ok(plan)
}

/// Plans a return probe: `vaddr` must be the entry of a function that does not look at its caller.
///
/// # Errors
/// [`Refusal`] says why nothing can be put there.
pub fn plan_return(binary: &Binary, vaddr: u64) -> Result<SitePlan, Refusal> {
    let plan = plan(binary, vaddr)?;
    crate::returns::check(binary, &plan)?;
    Ok(plan)
}

/// Plans all that a return probe needs: one window at the entry of the function, or one for each `ret` where the return address
/// may not be replaced.
///
/// # Errors
/// [`Refusal`] says why nothing can be put there.
pub fn plan_returns(binary: &Binary, vaddr: u64, room: Room) -> Result<Vec<SitePlan>, Refusal> {
    let paired = match room {
        Room::Jump => plan_return(binary, vaddr),
        Room::Any => plan_return(binary, vaddr).or_else(|refusal| {
            if lacks_room(&refusal) { plan_return_breakpoint(binary, vaddr) } else { Err(refusal) }
        }),
        Room::Breakpoint => plan_return_breakpoint(binary, vaddr),
    };
    match paired {
        Ok(plan) => Ok(vec![plan]),
        Err(Refusal::GoReturn) => plan_leaves(binary, vaddr, room),
        Err(refusal) if crate::returns::is_of_address(&refusal) => {
            plan_leaves(binary, vaddr, room).or(Err(refusal))
        }
        Err(refusal) => Err(refusal),
    }
}

/// What a probe may take.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Room {
    /// That of a jump.
    Jump,
    /// That of a jump, or where none fits the byte of a breakpoint.
    Any,
    /// The byte of a breakpoint.
    Breakpoint,
}

/// Plans a return probe with a breakpoint at the entry of its function.
///
/// # Errors
/// [`Refusal`] says why nothing can be put there.
pub fn plan_return_breakpoint(binary: &Binary, vaddr: u64) -> Result<SitePlan, Refusal> {
    let plan = plan_breakpoint(binary, vaddr)?;
    crate::returns::check(binary, &plan)?;
    Ok(plan)
}

/// The window while it is decoded.
struct Window {
    len: usize,
    code_len: usize,
    boundaries: Vec<u8>,
    falls_through: bool,
    references: References,
}

impl Window {
    fn decode(bytes: &[u8], vaddr: u64, least: usize) -> Result<Window, Refusal> {
        let mut decoder = Decoder::with_ip(64, bytes, vaddr, DecoderOptions::NONE);
        let mut window = Window {
            len: 0,
            code_len: 0,
            boundaries: Vec::new(),
            falls_through: true,
            references: References::default(),
        };
        while window.len < least && window.falls_through {
            let instruction = next(&mut decoder, vaddr, window.len)?;
            window.add(&instruction, least)?;
        }
        window.code_len = window.len;
        while window.len < least {
            let room = window.len as u64;
            let padding = next(&mut decoder, vaddr, window.len).ok().filter(is_padding);
            let padding = padding.ok_or(Refusal::TooShort { vaddr, room })?;
            window.len += padding.len();
        }
        // A long filler need not be replaced in whole.
        window.len = window.len.min(PATCH_MAX.max(window.code_len));
        Ok(window)
    }

    fn add(&mut self, instruction: &Instruction, least: usize) -> Result<(), Refusal> {
        let vaddr = instruction.ip();
        refuse_unmovable(instruction)?;
        self.boundaries.push(self.len as u8);
        self.len += instruction.len();
        let call = is_call(instruction);
        if call && self.len < least {
            return Err(Refusal::CallInside { vaddr });
        }
        self.references.rip_relative |= instruction.is_ip_rel_memory_operand();
        self.references.branch |= !call && has_near_target(instruction);
        self.references.call |= call;
        self.references.system_call |= instruction.mnemonic() == Mnemonic::Syscall;
        self.falls_through = !ends_flow(instruction);
        Ok(())
    }
}

fn next(decoder: &mut Decoder<'_>, vaddr: u64, len: usize) -> Result<Instruction, Refusal> {
    if !decoder.can_decode() {
        return Err(Refusal::TooShort { vaddr, room: len as u64 });
    }
    let instruction = decoder.decode();
    if instruction.is_invalid() {
        return Err(Refusal::Undecodable { vaddr: vaddr + len as u64 });
    }
    Ok(instruction)
}

/// What assemblers and linkers put between functions.
pub(crate) fn is_padding(instruction: &Instruction) -> bool {
    matches!(instruction.mnemonic(), Mnemonic::Nop | Mnemonic::Int3)
}

pub(crate) fn is_call(instruction: &Instruction) -> bool {
    matches!(instruction.flow_control(), FlowControl::Call | FlowControl::IndirectCall)
        && !matches!(instruction.mnemonic(), Mnemonic::Syscall | Mnemonic::Sysenter)
}

fn has_near_target(instruction: &Instruction) -> bool {
    instruction.op_count() > 0 && instruction.op0_kind() == OpKind::NearBranch64
}

/// Nothing behind the instruction runs because of it.
pub(crate) fn ends_flow(instruction: &Instruction) -> bool {
    matches!(
        instruction.flow_control(),
        FlowControl::Return
            | FlowControl::UnconditionalBranch
            | FlowControl::IndirectBranch
            | FlowControl::Exception
    )
}

fn refuse_unmovable(instruction: &Instruction) -> Result<(), Refusal> {
    let refused = match instruction.flow_control() {
        FlowControl::XbeginXabortXend => instruction.mnemonic() == Mnemonic::Xbegin,
        FlowControl::Interrupt => true,
        FlowControl::IndirectCall => {
            instruction.code() != Code::Call_rm64 || instruction.op0_register() == Register::RSP
        }
        FlowControl::IndirectBranch => instruction.code() != Code::Jmp_rm64,
        FlowControl::UnconditionalBranch | FlowControl::ConditionalBranch => !has_near_target(instruction),
        FlowControl::Call => is_call(instruction) && !has_near_target(instruction),
        FlowControl::Return => !matches!(instruction.code(), Code::Retnq | Code::Retnq_imm16),
        _ => instruction.mnemonic() == Mnemonic::Sysenter,
    };
    if !refused {
        return Ok(());
    }
    let mnemonic = format!("{:?}", instruction.mnemonic()).to_lowercase();
    Err(Refusal::Unmovable { vaddr: instruction.ip(), mnemonic })
}

/// Decodes from the last known start: `vaddr` must not be inside an instruction.
fn check_boundary(binary: &Binary, vaddr: u64) -> Result<(), Refusal> {
    let Some(start) = binary.analysis().start_before(vaddr).filter(|&s| vaddr - s <= RESYNC_MAX) else {
        return Ok(());
    };
    let same_section = binary.section_at(start).map(|s| s.vaddr) == binary.section_at(vaddr).map(|s| s.vaddr);
    let Some(bytes) = binary.bytes_from(start).filter(|_| same_section && start < vaddr) else {
        return Ok(());
    };
    let bytes = &bytes[..bytes.len().min((vaddr - start + INSTRUCTION_MAX) as usize)];
    let mut decoder = Decoder::with_ip(64, bytes, start, DecoderOptions::NONE);
    let mut instruction = Instruction::default();
    while decoder.ip() < vaddr && decoder.can_decode() {
        decoder.decode_out(&mut instruction);
        if instruction.is_invalid() {
            // Data among the code: from here on nothing is known.
            return Ok(());
        }
    }
    if decoder.ip() > vaddr {
        return Err(Refusal::InsideInstruction { vaddr, start: instruction.ip() });
    }
    Ok(())
}

/// The entry of a function: flags and red zone are dead there.
///
/// Not an entry: where the function itself jumps back to (a loop keeps both alive; Go's stack check does not), and
/// the cold part of a function that the compiler has put elsewhere. In a stripped object its unwind rules show it: a jump table
/// looks as if somebody had taken its address.
fn is_entry(binary: &Binary, vaddr: u64) -> bool {
    let analysis = binary.analysis();
    if analysis.is_looped(vaddr) && !binary.is_go() {
        return false;
    }
    if binary.unwind().is_fragment(vaddr) || crate::returns::is_injected(binary, vaddr) {
        return false;
    }
    let symbols = binary.symbols();
    let mut named = false;
    for symbol in symbols.at(vaddr) {
        let name = symbols.name(symbol);
        if name.contains(".cold") {
            return false;
        }
        named |= symbol.kind != SymbolKind::Label;
    }
    let unwound = binary.unwind().covering(vaddr).is_some_and(|f| f.start == vaddr);
    named || (unwound && analysis.is_called(vaddr) && !analysis.is_conditional_target(vaddr))
}

/// Where a jump may go to any instruction, a window of one has no target inside. Data among the code may look like one.
fn refuse_opaque(binary: &Binary, vaddr: u64, window: &Window) -> Result<(), Refusal> {
    match binary.analysis().opaque_at(vaddr) {
        Some(opaque) if opaque.has_data || window.boundaries.len() > 1 => {
            Err(Refusal::UnknownTargets { vaddr, jump: opaque.jump })
        }
        _ => Ok(()),
    }
}

fn refuse_written(binary: &Binary, range: Range<u64>) -> Result<(), Refusal> {
    let written = &binary.dynamic().written;
    let first = written.partition_point(|&w| w + 8 <= range.start);
    match written.get(first) {
        Some(&at) if at < range.end => Err(Refusal::TextRelocation { vaddr: at }),
        _ => Ok(()),
    }
}

/// `mov $15, %rax; syscall` and `mov $15, %eax; syscall`: libgcc and gdb know a signal frame by these bytes.
const SIGNAL_RETURNS: [&[u8]; 2] =
    [&[0x48, 0xc7, 0xc0, 0x0f, 0, 0, 0, 0x0f, 0x05], &[0xb8, 0x0f, 0, 0, 0, 0x0f, 0x05]];

pub(crate) fn refuse_signal_return(binary: &Binary, range: Range<u64>) -> Result<(), Refusal> {
    let longest = SIGNAL_RETURNS[0].len() as u64;
    let found = (range.start.saturating_sub(longest - 1)..range.end).find(|&at| {
        let bytes = binary.bytes_from(at).unwrap_or_default();
        SIGNAL_RETURNS.iter().any(|s| bytes.starts_with(s) && at + s.len() as u64 > range.start)
    });
    found.map_or(Ok(()), |vaddr| Err(Refusal::SignalReturn { vaddr }))
}

/// Ranges between two labels that the C library compares a PC with: musl's and glibc's (≥ 2.41) cancellable system calls.
const CANCELLABLE: [(&str, &str); 2] =
    [("__cp_begin", "__cp_end"), ("__syscall_cancel_arch_start", "__syscall_cancel_arch_end")];

/// Functions in which debuggers place breakpoints to follow the loader.
const LOADER_HOOKS: [&str; 4] =
    ["_dl_debug_state", "__dl_debug_state", "_dl_debug_initialize", "_r_debug_state"];

fn refuse_fixed_points(binary: &Binary, vaddr: u64) -> Result<(), Refusal> {
    let symbols = binary.symbols();
    if let Some(name) = symbols.names_at(vaddr).find(|n| LOADER_HOOKS.contains(n)) {
        return Err(Refusal::LoaderHook { name: name.to_owned() });
    }
    for (from, to) in CANCELLABLE {
        let (Some(from), Some(to)) = (symbols.named(from).pop(), symbols.named(to).pop()) else { continue };
        // A window that reaches into the range from before it is as bad.
        if vaddr + INSTRUCTION_MAX > from.vaddr && vaddr <= to.vaddr {
            return Err(Refusal::CancellableCall { vaddr });
        }
    }
    Ok(())
}
