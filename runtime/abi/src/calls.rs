//! Which system calls the agent may make in a process with seccomp filters.
//!
//! A filter may kill the process for a call that the process itself never makes. So every call of the agent passes the
//! [`CallGate`] of its process: a call that was not proven to be allowed is not made, and counted. While no filter is
//! known the gate is open. The injector narrows it by the filters that it finds at attach, the agent by those that it sees
//! being installed; it is never widened.
//!
//! A filter is a classic BPF program over `struct seccomp_data` (`include/uapi/linux/seccomp.h`,
//! `kernel/seccomp.c`: `seccomp_check_filter`). [`allows`] runs it for a call of which some arguments are not known: what
//! hangs on those is not allowed.

use core::sync::atomic::AtomicU64;
use core::sync::atomic::Ordering::Relaxed;

/// `-EPERM`: the result of a call that is not made.
pub const NOT_MADE: i64 = -1;

/// Numbers of calls that the gate tells apart, from 0 on; no number above is ever called.
pub const NUMBERS: usize = 512;

/// The calls that a process's agent may make. All zero is an open gate.
#[repr(C)]
#[derive(Debug)]
pub struct CallGate {
    /// Bit `n % 64` of word `n / 64`: call `n` is not made.
    forbidden: [AtomicU64; NUMBERS / 64],
    /// Calls that were not made.
    not_made: AtomicU64,
    /// Address of `syscall`, `ret` by which calls are made; 0 = the caller's own. Only from there the kernel lets calls through when it
    /// dispatches others.
    instruction: AtomicU64,
}

const _: () = assert!(size_of::<CallGate>() == 80);

impl Default for CallGate {
    fn default() -> CallGate {
        CallGate::new()
    }
}

impl CallGate {
    /// An open gate.
    pub const fn new() -> CallGate {
        let forbidden = [const { AtomicU64::new(0) }; NUMBERS / 64];
        CallGate { forbidden, not_made: AtomicU64::new(0), instruction: AtomicU64::new(0) }
    }

    /// Offset of the word that says by which instruction calls are made.
    pub const INSTRUCTION: usize = core::mem::offset_of!(CallGate, instruction);

    /// Address of `syscall`, `ret` by which calls are to be made; 0 = by the caller's own.
    #[inline]
    pub fn instruction(&self) -> u64 {
        self.instruction.load(Relaxed)
    }

    /// True when the call may be made; else it counts as not made.
    #[inline]
    pub fn passes(&self, number: u64) -> bool {
        let word = self.forbidden.get(number as usize / 64);
        let passes = word.is_some_and(|word| word.load(Relaxed) & 1 << (number % 64) == 0);
        if !passes {
            self.not_made.fetch_add(1, Relaxed);
        }
        passes
    }

    /// True when call `number` is not made; says so without counting.
    pub fn forbids(&self, number: u64) -> bool {
        let word = self.forbidden.get(number as usize / 64);
        word.is_none_or(|word| word.load(Relaxed) & 1 << (number % 64) != 0)
    }

    /// Forbids every call.
    #[cold]
    #[inline(never)]
    pub fn close(&self) {
        for word in &self.forbidden {
            word.store(u64::MAX, Relaxed);
        }
    }

    /// Forbids whatever a filter that is about to be in force is not certain to allow. `fetch` reads the filter's
    /// instruction with a given index, of `len`.
    pub fn narrow(&self, len: u32, fetch: &mut dyn FnMut(u32) -> Option<Instruction>) {
        let mut allowed = [0u64; NUMBERS / 64];
        for call in &AGENT_CALLS {
            if allows(len, fetch, call)
                && let Some(word) = allowed.get_mut(call.gate_number() as usize / 64)
            {
                *word |= 1 << (call.gate_number() % 64);
            }
        }
        for (word, allowed) in self.forbidden.iter().zip(allowed) {
            word.fetch_or(!allowed, Relaxed);
        }
    }

    /// The forbidden calls, as words of bits.
    pub fn words(&self) -> [u64; NUMBERS / 64] {
        let mut words = [0; NUMBERS / 64];
        for (to, from) in words.iter_mut().zip(&self.forbidden) {
            *to = from.load(Relaxed);
        }
        words
    }
}

/// The assembly of a call that has passed a gate: by the instruction that [`CallGate::instruction`] names in operand `at`, or one of its
/// own.
#[macro_export]
macro_rules! call_by_gate {
    () => {
        "test {at}, {at}\n jnz 2f\n syscall\n jmp 3f\n 2: call {at}\n 3:"
    };
}

/// A call as a filter sees it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Call {
    /// Its number (`arch/x86/entry/syscalls/syscall_64.tbl`).
    pub number: u32,
    /// Its name.
    pub name: &'static str,
    /// The arguments that are always the same.
    pub arguments: [Option<u64>; 6],
}

impl Call {
    /// A call of which nothing is known but its number.
    pub const fn any(number: u32, name: &'static str) -> Call {
        Call { number, name, arguments: [None; 6] }
    }

    /// The number by which the gate knows it: its own, but for calls that are told apart by what they are asked to do.
    fn gate_number(&self) -> u32 {
        if *self == SET_DISPATCH { SET_DISPATCH_GATE as u32 } else { self.number }
    }

    /// The same with a known argument.
    pub const fn with(mut self, index: usize, value: u64) -> Call {
        self.arguments[index] = Some(value);
        self
    }
}

/// `prctl(PR_SET_SYSCALL_USER_DISPATCH)`.
pub const SET_DISPATCH: Call = Call::any(157, "prctl").with(0, 59);
/// What [`CallGate::passes`] is asked before it: a filter can tell it from other calls of `prctl`. No call has this number.
pub const SET_DISPATCH_GATE: u64 = 511;

/// Every call that the agent makes.
pub const AGENT_CALLS: [Call; 30] = [
    Call::any(0, "read"),
    Call::any(2, "open"),
    Call::any(3, "close"),
    // Threads' memory: readable, writable, private, anonymous, not reserved.
    Call::any(9, "mmap").with(2, 3).with(3, 0x4022),
    Call::any(11, "munmap"),
    // The guard's.
    Call::any(13, "rt_sigaction"),
    Call::any(14, "rt_sigprocmask").with(0, 0),
    Call::any(24, "sched_yield"),
    Call::any(28, "madvise"),
    Call::any(35, "nanosleep"),
    Call::any(39, "getpid"),
    Call::any(62, "kill"),
    Call::any(89, "readlink"),
    Call::any(102, "getuid"),
    Call::any(104, "getgid"),
    Call::any(110, "getppid"),
    Call::any(131, "sigaltstack"),
    // PR_GET_NAME.
    Call::any(157, "prctl").with(0, 16),
    // The guard's.
    SET_DISPATCH,
    Call::any(186, "gettid"),
    Call::any(202, "futex"),
    Call::any(228, "clock_gettime"),
    Call::any(229, "clock_getres"),
    Call::any(234, "tgkill"),
    Call::any(257, "openat"),
    Call::any(262, "newfstatat"),
    Call::any(309, "getcpu"),
    Call::any(310, "process_vm_readv"),
    Call::any(311, "process_vm_writev"),
    Call::any(334, "rseq"),
];

/// One instruction of classic BPF (`struct sock_filter`).
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Instruction {
    /// Operation.
    pub code: u16,
    /// Distance to go on if the comparison holds.
    pub jump_true: u8,
    /// Distance to go on if it does not.
    pub jump_false: u8,
    /// Constant.
    pub k: u32,
}

/// Longest filter (`BPF_MAXINSNS`).
pub const FILTER_LEN_MAX: u32 = 4096;

/// `AUDIT_ARCH_X86_64`.
const ARCHITECTURE: u32 = 0xc000_003e;
/// `SECCOMP_RET_ALLOW`.
const ALLOW: u32 = 0x7fff_0000;
/// `SECCOMP_RET_ACTION_FULL`.
const ACTION: u32 = 0xffff_0000;
/// Bytes of `struct seccomp_data`.
const DATA_LEN: u32 = 64;

/// The word at `offset` of `struct seccomp_data`: number, architecture, instruction pointer, six arguments.
fn word_of(call: &Call, offset: u32) -> Option<u32> {
    match offset {
        0 => Some(call.number),
        4 => Some(ARCHITECTURE),
        16..DATA_LEN => {
            let argument = *call.arguments.get((offset as usize - 16) / 8)?;
            let shift = if offset.is_multiple_of(8) { 0 } else { 32 };
            argument.map(|value| (value >> shift) as u32)
        }
        _ => None,
    }
}

/// True when a filter of `len` instructions, read through `fetch`, lets `call` through whatever its unknown arguments are.
/// A filter that is none, or that hangs on something unknown, does not.
pub fn allows(len: u32, fetch: &mut dyn FnMut(u32) -> Option<Instruction>, call: &Call) -> bool {
    run(len, fetch, call).is_some_and(|action| action & ACTION == ALLOW)
}

/// Runs a filter; its result, if that is known.
fn run(len: u32, fetch: &mut dyn FnMut(u32) -> Option<Instruction>, call: &Call) -> Option<u32> {
    let (mut a, mut x): (Option<u32>, Option<u32>) = (Some(0), Some(0));
    let mut memory = [None::<u32>; 16];
    let mut at = 0u32;
    // Jumps only go forward: a filter of the greatest length ends.
    while at < len.min(FILTER_LEN_MAX) {
        let Instruction { code, jump_true, jump_false, k } = fetch(at)?;
        at += 1;
        let operand = if code & SOURCE_X != 0 { x } else { Some(k) };
        match code {
            0x20 => a = word_of(call, k),             // ld [k]
            0x00 => a = Some(k),                      // ld #k
            0x80 => a = Some(DATA_LEN),               // ld #len
            0x60 => a = *memory.get(k as usize)?,     // ld M[k]
            0x01 => x = Some(k),                      // ldx #k
            0x81 => x = Some(DATA_LEN),               // ldx #len
            0x61 => x = *memory.get(k as usize)?,     // ldx M[k]
            0x02 => *memory.get_mut(k as usize)? = a, // st
            0x03 => *memory.get_mut(k as usize)? = x, // stx
            0x07 => x = a,                            // tax
            0x87 => a = x,                            // txa
            0x06 => return Some(k),                   // ret #k
            0x16 => return a,                         // ret a
            0x05 => at = at.checked_add(k)?,          // ja
            0x15 | 0x1d | 0x25 | 0x2d | 0x35 | 0x3d | 0x45 | 0x4d => {
                let (a, b) = (a?, operand?);
                let holds = match code & OPERATION {
                    0x10 => a == b,
                    0x20 => a > b,
                    0x30 => a >= b,
                    _ => a & b != 0,
                };
                at += u32::from(if holds { jump_true } else { jump_false });
            }
            _ if code & CLASS == 0x04 => a = calculate(code, a, operand),
            _ => return None,
        }
    }
    None
}

const CLASS: u16 = 0x07;
const SOURCE_X: u16 = 0x08;
const OPERATION: u16 = 0xf0;

/// Arithmetic on `a`; what cannot be known, or is no operation, is unknown.
fn calculate(code: u16, a: Option<u32>, b: Option<u32>) -> Option<u32> {
    let a = a?;
    if code & OPERATION == 0x80 {
        return Some(a.wrapping_neg());
    }
    let b = b?;
    match code & OPERATION {
        0x00 => Some(a.wrapping_add(b)),
        0x10 => Some(a.wrapping_sub(b)),
        0x20 => Some(a.wrapping_mul(b)),
        0x30 => a.checked_div(b),
        0x40 => Some(a | b),
        0x50 => Some(a & b),
        0x60 => a.checked_shl(b),
        0x70 => a.checked_shr(b),
        0xa0 => Some(a ^ b),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn op(code: u16, jump_true: u8, jump_false: u8, k: u32) -> Instruction {
        Instruction { code, jump_true, jump_false, k }
    }

    const LOAD_NUMBER: Instruction = op(0x20, 0, 0, 0);
    const LOAD_ARCHITECTURE: Instruction = op(0x20, 0, 0, 4);
    const RET_ALLOW: Instruction = op(0x06, 0, 0, ALLOW);
    const RET_KILL: Instruction = op(0x06, 0, 0, 0x8000_0000);

    fn check(filter: &[Instruction], call: &Call) -> bool {
        allows(filter.len() as u32, &mut |index| filter.get(index as usize).copied(), call)
    }

    #[test]
    fn lists_of_numbers() {
        let filter = [
            LOAD_ARCHITECTURE,
            op(0x15, 1, 0, ARCHITECTURE),
            RET_KILL,
            LOAD_NUMBER,
            op(0x15, 1, 0, 186),
            RET_KILL,
            RET_ALLOW,
        ];
        assert!(check(&filter, &Call::any(186, "gettid")));
        assert!(!check(&filter, &Call::any(39, "getpid")));
        assert!(!check(&filter[..6], &Call::any(186, "gettid")), "it runs off its end");
        assert!(!check(&[], &Call::any(186, "gettid")));
        let errno = [op(0x06, 0, 0, 0x0005_0001)];
        assert!(!check(&errno, &Call::any(186, "gettid")), "an error instead of the call");
    }

    #[test]
    fn arguments_count_where_they_are_known() {
        // Only prctl(PR_GET_NAME).
        let filter =
            [LOAD_NUMBER, op(0x15, 0, 3, 157), op(0x20, 0, 0, 16), op(0x15, 0, 1, 16), RET_ALLOW, RET_KILL];
        assert!(check(&filter, &Call::any(157, "prctl").with(0, 16)));
        assert!(!check(&filter, &Call::any(157, "prctl").with(0, 15)));
        assert!(!check(&filter, &Call::any(157, "prctl")));
        assert!(!check(&filter, &Call::any(0, "read")));
        // The upper half of an argument, and the caller's address.
        let upper = [op(0x20, 0, 0, 20), op(0x15, 0, 1, 1), RET_ALLOW, RET_KILL];
        assert!(check(&upper, &Call::any(0, "read").with(0, 1 << 32)));
        assert!(!check(&upper, &Call::any(0, "read").with(0, 1)));
        let caller = [op(0x20, 0, 0, 8), op(0x15, 0, 0, 1), RET_ALLOW];
        assert!(!check(&caller, &Call::any(0, "read")));
    }

    #[test]
    fn arithmetic_and_memory() {
        // ((nr * 2 + 1) ^ 1) >> 1 == nr, kept in M[3] and compared with x.
        let filter = [
            LOAD_NUMBER,
            op(0x07, 0, 0, 0),
            op(0x24, 0, 0, 2),
            op(0x04, 0, 0, 1),
            op(0xa4, 0, 0, 1),
            op(0x74, 0, 0, 1),
            op(0x02, 0, 0, 3),
            op(0x00, 0, 0, 9),
            op(0x60, 0, 0, 3),
            op(0x1d, 1, 0, 0),
            RET_KILL,
            RET_ALLOW,
        ];
        assert!(check(&filter, &Call::any(77, "x")));
        assert!(!check(&[op(0x34, 0, 0, 0), op(0x16, 0, 0, 0)], &Call::any(0, "x")), "division by zero");
        assert!(!check(&[op(0x60, 0, 0, 16), RET_ALLOW], &Call::any(0, "x")), "no such memory");
        assert!(!check(&[op(0x05, 0, 0, u32::MAX), RET_ALLOW], &Call::any(0, "x")), "a jump out of it");
        assert!(!check(&[op(0xffff, 0, 0, 0), RET_ALLOW], &Call::any(0, "x")));
    }

    #[test]
    fn what_prctl_is_asked_to_do_counts() {
        // Only prctl(PR_GET_NAME).
        let filter =
            [LOAD_NUMBER, op(0x15, 0, 3, 157), op(0x20, 0, 0, 16), op(0x15, 0, 1, 16), RET_ALLOW, RET_KILL];
        let gate = CallGate::new();
        gate.narrow(filter.len() as u32, &mut |index| filter.get(index as usize).copied());
        assert!(gate.passes(157) && !gate.passes(SET_DISPATCH_GATE));
    }

    #[test]
    fn gates_only_close() {
        let gate = CallGate::new();
        assert!(gate.passes(310) && gate.passes(0) && !gate.passes(512));
        gate.narrow(1, &mut |_| Some(RET_ALLOW));
        assert!(AGENT_CALLS.iter().all(|call| gate.passes(call.gate_number().into())));
        assert!(gate.forbids(1), "write is no call of the agent's");
        let filter = [LOAD_NUMBER, op(0x15, 0, 1, 310), RET_KILL, RET_ALLOW];
        gate.narrow(4, &mut |index| filter.get(index as usize).copied());
        assert!(!gate.passes(310) && gate.passes(0));
        gate.narrow(1, &mut |_| Some(RET_ALLOW));
        assert!(!gate.passes(310), "both filters are in force");
        let before = gate.not_made.load(Relaxed);
        assert!(!gate.passes(310) && gate.forbids(310));
        assert_eq!(gate.not_made.load(Relaxed), before + 1);
        gate.close();
        assert!(AGENT_CALLS.iter().all(|call| gate.forbids(call.number.into())));
    }
}
