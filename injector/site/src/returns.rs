//! Which functions cannot have their return probed: those that look at, keep or replace their return address.

use crate::binary::Binary;
use crate::error::Refusal;
use crate::plan::{SitePlan, ends_flow, is_call, plan};
use crate::tails::jumps_to;
use iced_x86::{
    Decoder, DecoderOptions, FlowControl, Instruction, InstructionInfoFactory, Mnemonic, OpAccess, OpKind,
    Register,
};

/// Instructions that are looked at from the entry on.
const PROLOGUE_MAX: usize = 64;

const RETURNS_TWICE: &str = "returns a second time to the same address";
const CHILD: &str = "returns twice on the same stack, in the child and in the parent";
const SWITCHES: &str = "switches to another context";
const CALLER: &str = "looks up its caller by the return address";
const READS: &str = "reads its return address";
const INJECTED: &str = "is made to run in the middle of other functions, by a signal handler or a debugger";
const UNWINDS: &str = "walks the stack";
const NO_CALLER: &str = "has no caller";
const PROFILES: &str = "is called in a function's prologue and reads its return address";

/// Functions by name, without leading underscores, and what they do with their return address.
const BY_NAME: &[(&str, &str)] = &[
    ("setjmp", RETURNS_TWICE),
    ("sigsetjmp", RETURNS_TWICE),
    ("savectx", RETURNS_TWICE),
    ("longjmp", SWITCHES),
    ("siglongjmp", SWITCHES),
    ("longjmp_chk", SWITCHES),
    ("libc_longjmp", SWITCHES),
    ("libc_siglongjmp", SWITCHES),
    ("vfork", CHILD),
    ("libc_vfork", CHILD),
    ("clone", CHILD),
    ("clone3", CHILD),
    ("clone_internal", CHILD),
    ("getcontext", RETURNS_TWICE),
    ("setcontext", SWITCHES),
    ("swapcontext", SWITCHES),
    ("makecontext", SWITCHES),
    ("start_context", SWITCHES),
    ("push___start_context", SWITCHES),
    ("dlsym", CALLER),
    ("dlvsym", CALLER),
    ("dlopen", CALLER),
    ("dlmopen", CALLER),
    ("libc_dlopen_mode", CALLER),
    ("dlinfo", CALLER),
    ("Unwind_RaiseException", UNWINDS),
    ("Unwind_Resume", UNWINDS),
    ("Unwind_Resume_or_Rethrow", UNWINDS),
    ("Unwind_ForcedUnwind", UNWINDS),
    ("Unwind_Backtrace", UNWINDS),
    ("cxa_throw", UNWINDS),
    ("cxa_rethrow", UNWINDS),
    ("cxa_end_cleanup", UNWINDS),
    ("mcount", PROFILES),
    ("mcount_internal", PROFILES),
    ("fentry", PROFILES),
    ("dl_runtime_resolve", SWITCHES),
    ("dl_runtime_resolve_fxsave", SWITCHES),
    ("dl_runtime_resolve_xsave", SWITCHES),
    ("dl_runtime_resolve_xsavec", SWITCHES),
    ("dl_runtime_profile", SWITCHES),
    ("start", NO_CALLER),
    ("libc_start_main", NO_CALLER),
    ("libc_start_call_main", NO_CALLER),
    ("dl_start_user", NO_CALLER),
    ("start_thread", NO_CALLER),
    ("restore_rt", NO_CALLER),
    ("runtime.asyncPreempt", INJECTED),
    ("runtime.asyncPreempt.abi0", INJECTED),
    ("runtime.debugCallV1", INJECTED),
    ("runtime.debugCallV2", INJECTED),
];

/// The function is not called, but made to run at any instruction of another, whose flags it keeps: they are live at its entry.
pub(crate) fn is_injected(binary: &Binary, vaddr: u64) -> bool {
    let listed = |name: &str| BY_NAME.iter().any(|(known, why)| *known == name && *why == INJECTED);
    binary.is_go() && binary.symbols().names_at(vaddr).any(listed)
}

/// Where walks over the stack begin (Itanium C++ ABI, exception handling, 1.3; used by C++, Rust panics, thread cancellation,
/// `backtrace`).
const UNWINDERS: [&str; 4] =
    ["_Unwind_RaiseException", "_Unwind_ForcedUnwind", "_Unwind_Resume_or_Rethrow", "_Unwind_Backtrace"];

/// Sites at the entries of the unwinder, when `binary` has one.
///
/// An unwinder does not know the return points that return probes leave on the stack, and takes the first one for the
/// end of it: an exception would end the process. Whoever probes returns plants something here that puts the return
/// addresses back before the walk.
pub fn unwinder_entries(binary: &Binary) -> Vec<SitePlan> {
    let mut at: Vec<u64> =
        UNWINDERS.iter().flat_map(|name| binary.symbols().named(name)).map(|symbol| symbol.vaddr).collect();
    if at.is_empty() && throws_alone(binary) {
        at.extend(binary.unwind().returning_elsewhere());
    }
    at.sort_unstable();
    at.dedup();
    at.into_iter().filter_map(|vaddr| plan(binary, vaddr).ok()).collect()
}

/// What code that handles exceptions imports where the unwinder is another object's.
const USES_UNWINDER: [&str; 9] = [
    "_Unwind_Resume",
    "_Unwind_RaiseException",
    "_Unwind_ForcedUnwind",
    "_Unwind_Resume_or_Rethrow",
    "__cxa_throw",
    "__cxa_begin_catch",
    "__gxx_personality_v0",
    "__gcc_personality_v0",
    "rust_eh_personality",
];

/// It has handlers of exceptions, and imports nothing that could lead there. glibc loads its unwinder when it needs it.
fn throws_alone(binary: &Binary) -> bool {
    let is_libc = binary.soname().is_some_and(|name| name.starts_with("libc."));
    if is_libc || USES_UNWINDER.iter().any(|name| binary.symbols().imports(name)) {
        return false;
    }
    // Most files have no table of handlers: their unwind entries need not be read.
    let may_handle = binary.section(".eh_frame").is_none() || binary.section(".gcc_except_table").is_some();
    may_handle && !binary.unwind().landing_pads().is_empty()
}

/// Exceptions are thrown in `binary` by an unwinder of its own, and it cannot be told where that is.
pub fn hides_unwinder(binary: &Binary) -> bool {
    throws_alone(binary) && unwinder_entries(binary).is_empty()
}

/// Refuses what is not a function entry, and functions that depend on their return address.
pub(crate) fn check(binary: &Binary, plan: &SitePlan) -> Result<(), Refusal> {
    let vaddr = plan.vaddr;
    if vaddr == binary.entry() && binary.interpreter().is_some() {
        return Err(Refusal::LooksAtCaller { name: "_start".to_owned(), why: NO_CALLER.to_owned() });
    }
    for name in binary.symbols().names_at(vaddr) {
        if let Some(why) = known(name) {
            return Err(Refusal::LooksAtCaller { name: name.to_owned(), why: why.to_owned() });
        }
    }
    if binary.is_go() {
        return Err(Refusal::GoReturn);
    }
    if !plan.is_entry {
        return Err(if binary.analysis().is_looped(vaddr) {
            Refusal::LoopsToEntry { vaddr }
        } else {
            Refusal::NotAnEntry { vaddr }
        });
    }
    let name = || {
        let name = binary.function_at(vaddr).map(|f| f.name).filter(|n| !n.is_empty());
        name.unwrap_or_else(|| format!("{vaddr:#x}"))
    };
    if let Some(why) = reads_its_return_address(binary, vaddr) {
        return Err(Refusal::LooksAtCaller { name: name(), why: why.to_owned() });
    }
    if let Some((other, why)) = jumps_to(binary, vaddr) {
        let why = format!("{ENDS_WITH} `{other}`, which {why}");
        return Err(Refusal::LooksAtCaller { name: name(), why });
    }
    Ok(())
}

/// How the reason begins when it is another function's.
const ENDS_WITH: &str = "ends with a jump to";

/// What the function of this name does with its return address, with or without a version.
pub(crate) fn known(name: &str) -> Option<&'static str> {
    let stem = name.trim_start_matches('_');
    BY_NAME.iter().find(|(known, _)| *known == stem).map(|(_, why)| *why)
}

pub(crate) fn reads_its_return_address(binary: &Binary, vaddr: u64) -> Option<&'static str> {
    let bytes = binary.bytes_from(vaddr).unwrap_or_default();
    reads_return_address(bytes, vaddr).then_some(READS)
}

/// What is wrong is only that the return address would change, or that an entry is not one call.
pub(crate) fn is_of_address(refusal: &Refusal) -> bool {
    match refusal {
        Refusal::LoopsToEntry { .. } => true,
        Refusal::LooksAtCaller { why, .. } => why == CALLER || why == READS,
        _ => false,
    }
}

/// The straight code from the entry on loads or pops the word at the stack pointer of the entry, as `setjmp`, `vfork` and
/// hand-written thunks do.
fn reads_return_address(bytes: &[u8], vaddr: u64) -> bool {
    let mut decoder = Decoder::with_ip(64, bytes, vaddr, DecoderOptions::NONE);
    let mut info = InstructionInfoFactory::new();
    // Distance from the stack pointer to the return address.
    let mut above = 0i64;
    for _ in 0..PROLOGUE_MAX {
        if !decoder.can_decode() {
            return false;
        }
        let instruction = decoder.decode();
        if instruction.is_invalid() || ends_straight_code(&instruction) {
            return false;
        }
        if instruction.mnemonic() == Mnemonic::Pop && above == 0 {
            return true;
        }
        if reads_stack_at(&instruction, above) {
            return true;
        }
        let written = info.info(&instruction).used_registers().iter();
        let mut changes = written.filter(|u| u.register() == Register::RSP && writes(u.access()));
        if changes.next().is_some() {
            match moved_by(&instruction) {
                Some(down) => above += down,
                None => return false,
            }
        }
    }
    false
}

fn ends_straight_code(instruction: &Instruction) -> bool {
    ends_flow(instruction) || is_call(instruction) || instruction.flow_control() == FlowControl::Return
}

fn reads_stack_at(instruction: &Instruction, above: i64) -> bool {
    let memory = (0..instruction.op_count()).any(|i| instruction.op_kind(i) == OpKind::Memory);
    memory
        && !matches!(instruction.mnemonic(), Mnemonic::Lea | Mnemonic::Nop)
        && instruction.memory_base() == Register::RSP
        && instruction.memory_index() == Register::None
        && instruction.memory_displacement64() as i64 == above
}

fn writes(access: OpAccess) -> bool {
    matches!(access, OpAccess::Write | OpAccess::CondWrite | OpAccess::ReadWrite | OpAccess::ReadCondWrite)
}

/// How far down the stack pointer goes; none when that is not a constant.
fn moved_by(instruction: &Instruction) -> Option<i64> {
    let constant = || {
        let is_immediate = !matches!(instruction.op1_kind(), OpKind::Register | OpKind::Memory);
        is_immediate.then(|| instruction.immediate(1) as i64)
    };
    match instruction.mnemonic() {
        Mnemonic::Push | Mnemonic::Pop | Mnemonic::Pushfq => {
            Some(-i64::from(instruction.stack_pointer_increment()))
        }
        Mnemonic::Sub => constant(),
        Mnemonic::Add => constant().map(|c| -c),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn return_address_readers() {
        // __x86.get_pc_thunk.bx in 64 bits: mov (%rsp),%rbx; ret
        assert!(reads_return_address(&[0x48, 0x8b, 0x1c, 0x24, 0xc3], 0));
        // setjmp: mov (%rsp),%rdx after saving others
        assert!(reads_return_address(&[0x48, 0x89, 0x1f, 0x48, 0x8b, 0x14, 0x24, 0xc3], 0));
        // vfork: pop %rdi
        assert!(reads_return_address(&[0x5f, 0xb8, 0x3a, 0, 0, 0, 0x0f, 0x05], 0));
        // push %rbp; mov 8(%rsp),%rax
        assert!(reads_return_address(&[0x55, 0x48, 0x8b, 0x44, 0x24, 0x08, 0xc3], 0));
        // push %rbp; mov (%rsp),%rax: its own word
        assert!(!reads_return_address(&[0x55, 0x48, 0x8b, 0x04, 0x24, 0xc3], 0));
        // sub $8,%rsp; call: an ordinary function
        assert!(!reads_return_address(&[0x48, 0x83, 0xec, 0x08, 0xe8, 0, 0, 0, 0], 0));
        // mov 8(%rsp),%rax: its first stack argument
        assert!(!reads_return_address(&[0x48, 0x8b, 0x44, 0x24, 0x08, 0xc3], 0));
    }
}
