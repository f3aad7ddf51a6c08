//! The few instructions through which a borrowed thread makes our calls, and finds back by itself (x86-64).
//!
//! ```text
//! block (unused bytes at the end of an executable page):
//!      0  magic │ address and length of the scratch mapping │ signal mask │ pc │ flags
//!   CALL  call *%rax                  a function, on the scratch stack
//!         jmp  FLAGS
//!   LIST  load the arguments at %rbx  a list of system calls in the scratch mapping, on the scratch stack
//!         syscall                     as long as each has the result that is expected of it
//!         store the result; compare; next
//!   FLAGS push flags; popf            the flags as they were
//!         jmp  KEEP
//!   ONE   syscall                     one system call, without memory
//!   KEEP  mov  %rax,%rbx              its result, for us to see
//!         mov  ...                    a call at which the thread stops for us: a signal for itself that the process
//!   CALL_SYSTEM                       ignores, or one that does nothing
//!         syscall
//!   HOME  mov  $..,%rsp
//!         rt_sigprocmask(SIG_SETMASK, mask)
//!         mov  $..,%rax ... %r11      what calls change
//!         jmp  *pc
//! ```
//!
//! While it is traced, the thread never gets to `HOME`: we stop it before and put it back from outside. If we are
//! killed in the middle, the kernel lets the thread go on: it finishes the call and comes home by itself. All
//! registers are restored, the flags never change between `HOME` and the jump, and an interrupted system call is begun
//! again as the kernel would do.

use beeline_ptrace::{Registers, Tid};
use std::ops::Range;

/// `"beehome\0"` read as a little-endian word.
const MAGIC: u64 = u64::from_le_bytes(*b"beehome\0");

/// Bytes of a block.
pub(crate) const BLOCK_LEN: usize = 304;

/// Offsets of the data words.
const SCRATCH: usize = 8;
const SCRATCH_LEN: usize = 16;
const MASK: usize = 24;
const PC: usize = 32;
const FLAGS: usize = 40;
/// Offset of the code.
const CALL: usize = 48;

/// `-ERESTARTSYS`, `-ERESTARTNOINTR`, `-ERESTARTNOHAND`: the same call is made again.
const RESTART_SAME: Range<i64> = -514..-511;
/// `-ERESTART_RESTARTBLOCK`: `restart_syscall` is made.
const RESTART_BLOCK: i64 = -516;

/// An entry of a list, in words: number, six arguments of which the fifth is the address of a 32-bit word, the result, the result
/// that is expected, and a word for the fifth argument to point to.
pub(crate) const ENTRY_WORDS: usize = 10;
pub(crate) const ENTRY_LEN: u64 = 8 * ENTRY_WORDS as u64;
/// Offsets in an entry.
pub(crate) const RESULT: u64 = 56;
pub(crate) const OWN_WORD: u64 = 72;

/// How a thread stops when it has done what it was to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Halt {
    /// It makes a call that does nothing; whoever traces its system calls sees it.
    AtCall,
    /// It sends itself this signal, which its process ignores by itself: only a tracer sees it.
    BySignal {
        /// The signal.
        signal: i32,
        /// Process and thread by their ids in the innermost namespace.
        ids: [Tid; 2],
    },
}

/// What a thread is to come home to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Home {
    pub(crate) registers: Registers,
    pub(crate) signal_mask: u64,
}

impl Home {
    /// The registers with which the thread has to go on when the kernel does not restart its interrupted system
    /// call: the program counter goes back to the `syscall` instruction.
    fn without_kernel(&self) -> Registers {
        let mut registers = self.registers;
        let result = registers.rax as i64;
        if registers.orig_rax as i64 >= 0 {
            if RESTART_SAME.contains(&result) {
                registers.rax = registers.orig_rax;
                registers.rip = registers.rip.wrapping_sub(2);
            } else if result == RESTART_BLOCK {
                registers.rax = libc::SYS_restart_syscall as u64;
                registers.rip = registers.rip.wrapping_sub(2);
            }
        }
        registers
    }
}

/// A block at an address, and the places in it.
#[derive(Clone, Debug)]
pub(crate) struct Block {
    pub(crate) address: u64,
    pub(crate) bytes: [u8; BLOCK_LEN],
    list: usize,
    one: usize,
    call_system: usize,
    home: usize,
}

impl Block {
    /// The block for `address`, with `scratch` as the memory that it may use.
    pub(crate) fn new(address: u64, home: &Home, scratch: Range<u64>, halt: Halt) -> Block {
        let mut code = Code { bytes: [0; BLOCK_LEN], len: 0 };
        let target = home.without_kernel();
        for word in
            [MAGIC, scratch.start, scratch.end - scratch.start, home.signal_mask, target.rip, target.eflags]
        {
            code.put(&word.to_le_bytes());
        }
        code.put(&[0xff, 0xd0]); // call *%rax
        let to_flags = code.jump();
        let list = code.len;
        code.put_list();
        code.land(to_flags);
        code.relative(&[0xff, 0x35], FLAGS); // push flags(%rip)
        code.put(&[0x9d]); // popf
        let to_keep = code.jump();
        let one = code.len;
        code.put(&SYSCALL);
        code.land(to_keep);
        code.put(&[0x48, 0x89, 0xc3]); // mov %rax,%rbx
        code.put_halt(halt);
        let call_system = code.len;
        code.put(&SYSCALL);
        let home = code.len;
        code.put_way_home(&target);
        Block { address, bytes: code.bytes, list, one, call_system, home }
    }

    /// Where a function call begins: `rax` holds its address, `rsp` a stack.
    pub(crate) fn call(&self) -> u64 {
        self.address + CALL as u64
    }

    /// Where a list of calls begins: `rbx` holds its address, `rsp` a stack.
    pub(crate) fn list(&self) -> u64 {
        self.address + self.list as u64
    }

    /// Where one system call begins, after which the thread halts; `rbx` holds its result then.
    pub(crate) fn one(&self) -> u64 {
        self.address + self.one as u64
    }

    /// Where a system call begins for whoever traces it.
    pub(crate) fn call_system(&self) -> u64 {
        self.address + self.call_system as u64
    }

    /// The way home; also the program counter when the thread has halted, and at every stop in a system call made by
    /// [`Block::call_system`].
    pub(crate) fn home(&self) -> u64 {
        self.address + self.home as u64
    }
}

const SYSCALL: [u8; 2] = [0x0f, 0x05];

/// Reads a block that was left behind: the scratch mapping that it names.
pub(crate) fn scratch_of(bytes: &[u8]) -> Option<Range<u64>> {
    let word = |at: usize| Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?));
    let start = word(SCRATCH)?;
    (word(0)? == MAGIC).then_some(start..start.checked_add(word(SCRATCH_LEN)?)?)
}

struct Code {
    bytes: [u8; BLOCK_LEN],
    len: usize,
}

impl Code {
    fn put(&mut self, bytes: &[u8]) {
        self.bytes[self.len..self.len + bytes.len()].copy_from_slice(bytes);
        self.len += bytes.len();
    }

    /// An instruction that ends with the 32-bit distance to `offset` in the block.
    fn relative(&mut self, instruction: &[u8], offset: usize) {
        self.put(instruction);
        let next = (self.len + 4) as i32;
        self.put(&(offset as i32 - next).to_le_bytes());
    }

    /// A short jump forwards; where it is to [land](Code::land) comes later.
    fn jump(&mut self) -> usize {
        self.put(&[0xeb, 0]);
        self.len
    }

    fn land(&mut self, behind_jump: usize) {
        self.bytes[behind_jump - 1] = (self.len - behind_jump) as u8;
    }

    /// The loop over the entries at `rbx`, each [`ENTRY_LEN`] bytes.
    fn put_list(&mut self) {
        let start = self.len;
        self.put(&[0x48, 0x8b, 0x03]); // mov (%rbx),%rax
        self.put(&[0x48, 0x8b, 0x7b, 8]); // mov 8(%rbx),%rdi
        self.put(&[0x48, 0x8b, 0x73, 16]); // mov 16(%rbx),%rsi
        self.put(&[0x48, 0x8b, 0x53, 24]); // mov 24(%rbx),%rdx
        self.put(&[0x4c, 0x8b, 0x53, 32]); // mov 32(%rbx),%r10
        self.put(&[0x4c, 0x8b, 0x43, 40]); // mov 40(%rbx),%r8
        self.put(&[0x45, 0x8b, 0x00]); // mov (%r8),%r8d: a descriptor that an earlier call has put there
        self.put(&[0x4c, 0x8b, 0x4b, 48]); // mov 48(%rbx),%r9
        self.put(&SYSCALL);
        self.put(&[0x48, 0x89, 0x43, RESULT as u8]); // mov %rax,56(%rbx)
        self.put(&[0x48, 0x83, 0xc3, ENTRY_LEN as u8]); // add $80,%rbx
        self.put(&[0x48, 0x3b, 0x43, (64 - ENTRY_LEN as i64) as u8]); // cmp 64-80(%rbx),%rax
        self.put(&[0x74, (start as i64 - (self.len as i64 + 2)) as u8]); // je to the next
    }

    /// Number and arguments of the call at which the thread halts.
    fn put_halt(&mut self, halt: Halt) {
        let number = match halt {
            Halt::AtCall => libc::SYS_getpid,
            Halt::BySignal { signal, ids: [pid, tid] } => {
                self.load32(0xbf, pid as u32); // mov $..,%edi
                self.load32(0xbe, tid as u32); // mov $..,%esi
                self.load32(0xba, signal as u32); // mov $..,%edx
                libc::SYS_tgkill
            }
        };
        self.load32(0xb8, number as u32); // mov $..,%eax
    }

    fn put_way_home(&mut self, target: &Registers) {
        self.load64([0x48, 0xbc], target.rsp); // mov $..,%rsp: a handler that runs now runs on the thread's own stack
        self.load64([0x48, 0xbb], target.rbx);
        self.load32(0xb8, libc::SYS_rt_sigprocmask as u32); // mov $..,%eax
        self.load32(0xbf, libc::SIG_SETMASK as u32); // mov $..,%edi
        self.relative(&[0x48, 0x8d, 0x35], MASK); // lea mask(%rip),%rsi
        self.load32(0xba, 0); // mov $0,%edx
        self.put(&[0x41]);
        self.load32(0xba, 8); // mov $8,%r10d
        self.put(&SYSCALL);
        self.load64([0x48, 0xb8], target.rax);
        self.load64([0x48, 0xb9], target.rcx);
        self.load64([0x48, 0xba], target.rdx);
        self.load64([0x48, 0xbe], target.rsi);
        self.load64([0x48, 0xbf], target.rdi);
        self.load64([0x49, 0xb8], target.r8);
        self.load64([0x49, 0xb9], target.r9);
        self.load64([0x49, 0xba], target.r10);
        self.load64([0x49, 0xbb], target.r11);
        self.relative(&[0xff, 0x25], PC); // jmp *pc(%rip)
    }

    fn load32(&mut self, opcode: u8, value: u32) {
        self.put(&[opcode]);
        self.put(&value.to_le_bytes());
    }

    fn load64(&mut self, opcode: [u8; 2], value: u64) {
        self.put(&opcode);
        self.put(&value.to_le_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn home(rax: i64, orig_rax: i64) -> Home {
        // SAFETY: all bit patterns of the struct are valid.
        let mut registers: Registers = unsafe { std::mem::zeroed() };
        registers.rax = rax as u64;
        registers.orig_rax = orig_rax as u64;
        registers.rip = 0x1000;
        Home { registers, signal_mask: 5 }
    }

    #[test]
    fn interrupted_calls_are_begun_again() {
        let check = |rax, orig_rax, expected: (i64, u64)| {
            let registers = home(rax, orig_rax).without_kernel();
            assert_eq!((registers.rax as i64, registers.rip), expected, "{rax} {orig_rax}");
        };
        check(-512, 0, (0, 0xffe));
        check(-513, 7, (7, 0xffe));
        check(-514, 34, (34, 0xffe));
        check(-516, 35, (219, 0xffe));
        check(-4, 35, (-4, 0x1000));
        check(-515, 35, (-515, 0x1000));
        check(-512, -1, (-512, 0x1000));
    }

    #[test]
    fn a_block_is_recognised() {
        let halts = [Halt::AtCall, Halt::BySignal { signal: 28, ids: [i32::MAX, i32::MAX] }];
        for halt in halts {
            let block = Block::new(0x7000, &home(0, -1), 0x1_0000..0x2_0000, halt);
            assert_eq!(scratch_of(&block.bytes), Some(0x1_0000..0x2_0000));
            assert_eq!(scratch_of(&block.bytes[..10]), None);
            for place in [block.one, block.call_system] {
                assert_eq!(block.bytes[place..place + 2], SYSCALL);
            }
            assert_eq!(block.home() - block.call_system(), 2);
        }
        assert_eq!(scratch_of(&[0; BLOCK_LEN]), None);
    }
}
