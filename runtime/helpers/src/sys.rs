//! Raw system calls and the few instructions that Rust has no name for (x86-64 Linux).
//!
//! Nothing here touches `errno` or anything else of a libc: a result in `-4095..0` is a negative error number. A call that
//! a seccomp filter of the process could object to is not made: its result is `-EPERM`.

use beeline_abi::call_by_gate;
use beeline_abi::calls::NOT_MADE;
use beeline_maps::CALL_GATE;
use core::arch::asm;

/// System call numbers (`arch/x86/entry/syscalls/syscall_64.tbl`).
#[allow(missing_docs, reason = "the names are the kernel's")]
pub mod nr {
    pub const READ: u64 = 0;
    pub const CLOSE: u64 = 3;
    pub const MMAP: u64 = 9;
    pub const MUNMAP: u64 = 11;
    pub const SCHED_YIELD: u64 = 24;
    pub const MADVISE: u64 = 28;
    pub const NANOSLEEP: u64 = 35;
    pub const GETPID: u64 = 39;
    pub const KILL: u64 = 62;
    pub const READLINK: u64 = 89;
    pub const GETUID: u64 = 102;
    pub const GETGID: u64 = 104;
    pub const GETPPID: u64 = 110;
    pub const PRCTL: u64 = 157;
    pub const GETTID: u64 = 186;
    pub const FUTEX: u64 = 202;
    pub const CLOCK_GETTIME: u64 = 228;
    pub const CLOCK_GETRES: u64 = 229;
    pub const TGKILL: u64 = 234;
    pub const OPENAT: u64 = 257;
    pub const NEWFSTATAT: u64 = 262;
    pub const GETCPU: u64 = 309;
    pub const PROCESS_VM_READV: u64 = 310;
    pub const PROCESS_VM_WRITEV: u64 = 311;
    pub const RSEQ: u64 = 334;
}

/// `ESRCH` as a system call returns it.
pub const NO_SUCH_PROCESS: i64 = -3;

/// `struct iovec`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct IoVec {
    /// Address of the first byte.
    pub base: u64,
    /// Bytes.
    pub len: u64,
}

/// `struct timespec`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Timespec {
    /// Seconds.
    pub seconds: i64,
    /// Nanoseconds, below 10^9.
    pub nanoseconds: i64,
}

/// Makes a system call with six arguments.
///
/// # Safety
///
/// The arguments are valid for call `number`: what the kernel writes through them is the caller's to give away.
#[inline(never)]
pub unsafe fn call6(number: u64, a: u64, b: u64, c: u64, d: u64, e: u64, f: u64) -> i64 {
    if !CALL_GATE.passes(number) {
        return NOT_MADE;
    }
    let result: i64;
    // SAFETY: the caller's contract; the kernel preserves all registers but rax, rcx, r11.
    unsafe {
        asm!(call_by_gate!(), at = in(reg) CALL_GATE.instruction(), inlateout("rax") number => result, in("rdi") a, in("rsi") b, in("rdx") c, in("r10") d,
            in("r8") e, in("r9") f, lateout("rcx") _, lateout("r11") _);
    }
    result
}

/// Makes a system call with four arguments.
///
/// # Safety
///
/// As for [`call6`].
#[inline(never)]
pub unsafe fn call4(number: u64, a: u64, b: u64, c: u64, d: u64) -> i64 {
    if !CALL_GATE.passes(number) {
        return NOT_MADE;
    }
    let result: i64;
    // SAFETY: the caller's contract.
    unsafe {
        asm!(call_by_gate!(), at = in(reg) CALL_GATE.instruction(), inlateout("rax") number => result, in("rdi") a, in("rsi") b, in("rdx") c, in("r10") d,
            lateout("rcx") _, lateout("r11") _);
    }
    result
}

/// Makes a system call with at most two arguments.
///
/// # Safety
///
/// As for [`call6`].
#[inline]
pub unsafe fn call2(number: u64, a: u64, b: u64) -> i64 {
    // SAFETY: the caller's contract.
    unsafe { call4(number, a, b, 0, 0) }
}

/// The calling thread's id in its pid namespace; 0 when the process forbids to ask.
#[inline]
pub fn thread_id() -> u32 {
    // SAFETY: no arguments.
    unsafe { call2(nr::GETTID, 0, 0).max(0) as u32 }
}

/// The calling process's id in its pid namespace; 0 when the process forbids to ask.
#[inline]
pub fn process_id() -> u32 {
    // SAFETY: no arguments.
    unsafe { call2(nr::GETPID, 0, 0).max(0) as u32 }
}

/// Lets another thread run.
pub fn yield_now() {
    // SAFETY: no arguments.
    unsafe { call2(nr::SCHED_YIELD, 0, 0) };
}

/// Sleeps for so many nanoseconds (below 10^9), or until a signal comes.
pub fn sleep_ns(nanoseconds: u32) {
    let time = Timespec { seconds: 0, nanoseconds: i64::from(nanoseconds) };
    // SAFETY: the kernel reads one timespec.
    unsafe { call2(nr::NANOSLEEP, &raw const time as u64, 0) };
}

/// The clock's time in nanoseconds by system call; 0 when there is no such clock.
pub fn clock_ns(clock: u32) -> u64 {
    let mut time = Timespec::default();
    // SAFETY: the kernel writes one timespec.
    unsafe { call2(nr::CLOCK_GETTIME, u64::from(clock), &raw mut time as u64) };
    (time.seconds as u64).wrapping_mul(1_000_000_000).wrapping_add(time.nanoseconds as u64)
}

/// The `u32` at `%fs:offset`.
///
/// # Safety
///
/// The fs base plus `offset` is readable: it lies in the thread control block.
#[inline]
pub unsafe fn fs_u32(offset: i64) -> u32 {
    let value: u32;
    // SAFETY: the caller's contract.
    unsafe {
        asm!("mov {value:e}, dword ptr fs:[{offset}]", value = out(reg) value, offset = in(reg) offset,
            options(nostack, readonly, preserves_flags));
    }
    value
}

/// CPU and NUMA node that the thread runs on at this moment.
pub fn cpu_and_node() -> (u32, u32) {
    let packed: u64;
    let valid: u8;
    // SAFETY: `lsl` only reads the descriptor of segment 0x7b, where x86-64 kernels keep `node << 12 | cpu` for the
    // vDSO's getcpu (`arch/x86/include/asm/segment.h`, CPUNODE_SEG); it clears ZF when there is none.
    unsafe {
        asm!("lsl {packed}, {selector}", "sete {valid}", packed = out(reg) packed, selector = in(reg) 0x7bu64,
            valid = out(reg_byte) valid, options(nomem, nostack));
    }
    if valid != 0 {
        return ((packed & 0xfff) as u32, (packed >> 12) as u32);
    }
    let (mut cpu, mut node) = (0u32, 0u32);
    // SAFETY: the kernel writes two words.
    unsafe { call4(nr::GETCPU, &raw mut cpu as u64, &raw mut node as u64, 0, 0) };
    (cpu, node)
}

/// Reads the start of a file into `buffer`; the number of bytes, 0 when it cannot be read.
///
/// The descriptor exists for the length of this call, close-on-exec.
///
/// `path` ends with a NUL byte, else nothing is opened.
pub fn read_file(path: &[u8], buffer: &mut [u8]) -> usize {
    const AT_FDCWD: u64 = -100i64 as u64;
    const O_CLOEXEC: u64 = 0o2000000;
    if path.last() != Some(&0) {
        return 0;
    }
    // SAFETY: `path` is NUL-terminated; the kernel writes at most `buffer.len()` bytes; the descriptor is ours.
    unsafe {
        let fd = call4(nr::OPENAT, AT_FDCWD, path.as_ptr() as u64, O_CLOEXEC, 0);
        if fd < 0 {
            return 0;
        }
        let mut have = 0usize;
        while have < buffer.len() {
            let got = call4(
                nr::READ,
                fd as u64,
                (buffer.as_mut_ptr() as u64).wrapping_add(have as u64),
                (buffer.len() - have) as u64,
                0,
            );
            if got <= 0 {
                break;
            }
            have += (got as usize).min(buffer.len() - have);
        }
        call2(nr::CLOSE, fd as u64, 0);
        have
    }
}

/// A path that is put together from pieces, with room for a NUL at the end.
#[derive(Debug)]
pub struct Path<const N: usize> {
    bytes: [u8; N],
    len: usize,
}

impl<const N: usize> Path<N> {
    /// An empty path.
    pub const fn new() -> Path<N> {
        Path { bytes: [0; N], len: 0 }
    }

    /// Appends bytes; what does not fit makes the path unusable (it opens nothing).
    pub fn push(&mut self, bytes: &[u8]) -> &mut Path<N> {
        put(&mut self.bytes, self.len, bytes);
        self.len += bytes.len();
        self
    }

    /// Appends a number in decimal.
    pub fn push_number(&mut self, number: u32) -> &mut Path<N> {
        let mut digits = [0u8; 10];
        let mut rest = number;
        let mut count = 0usize;
        for place in digits.iter_mut().rev() {
            *place = b'0' + (rest % 10) as u8;
            rest /= 10;
            count += 1;
            if rest == 0 {
                break;
            }
        }
        self.push(digits.get(digits.len() - count..).unwrap_or(&[]))
    }

    /// The path with its NUL; empty when it did not fit.
    pub fn as_bytes(&self) -> &[u8] {
        self.bytes.get(..self.len + 1).filter(|path| path.last() == Some(&0)).unwrap_or(&[])
    }
}

impl<const N: usize> Default for Path<N> {
    fn default() -> Path<N> {
        Path::new()
    }
}

/// Writes `bytes` at an offset of `room`, as far as they fit. One copy of it is enough: paths are made rarely.
#[inline(never)]
fn put(room: &mut [u8], offset: usize, bytes: &[u8]) {
    let places = room.iter_mut().skip(offset);
    places.zip(bytes).for_each(|(place, &byte)| *place = byte);
}

/// Field `number` (from 3 on, as `proc(5)` counts) of the contents of a `/proc/PID/stat`, read as a decimal number.
///
/// The second field, the name in parentheses, may itself hold blanks and parentheses: fields are counted behind the
/// last closing one.
pub fn stat_field(stat: &[u8], number: usize) -> Option<u64> {
    let end = stat.iter().rposition(|&byte| byte == b')')?;
    let rest = stat.get(end + 2..)?;
    let field = rest.split(|&byte| byte == b' ').nth(number.checked_sub(3)?)?;
    if field.is_empty() {
        return None;
    }
    let mut value = 0u64;
    for &byte in field {
        if !byte.is_ascii_digit() {
            return None;
        }
        value = value.wrapping_mul(10).wrapping_add(u64::from(byte - b'0'));
    }
    Some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stat_fields_are_counted_behind_the_name() {
        let stat = b"42 (a) b (c) S 7 8 9";
        assert_eq!(stat_field(stat, 4), Some(7));
        assert_eq!(stat_field(stat, 6), Some(9));
        assert_eq!(stat_field(stat, 3), None, "a letter is no number");
        assert_eq!(stat_field(stat, 7), None);
        assert_eq!(stat_field(b"42", 4), None);
        assert_eq!(stat_field(b"42 (", 4), None);
        assert_eq!(stat_field(b")", 4), None);
    }

    #[test]
    fn paths() {
        let mut path = Path::<24>::new();
        path.push(b"/proc/").push_number(0).push(b"/").push_number(u32::MAX);
        assert_eq!(path.as_bytes(), b"/proc/0/4294967295\0");
        path.push(b"/stat/");
        assert_eq!(path.as_bytes(), b"", "does not fit");
    }

    #[test]
    fn files() {
        let mut buffer = [0u8; 512];
        let len = read_file(b"/proc/self/stat\0", &mut buffer);
        let pid = std::process::id();
        assert!(buffer[..len].starts_with(std::format!("{pid} (").as_bytes()));
        assert_eq!(read_file(b"/no/such/file\0", &mut buffer), 0);
        assert_eq!(read_file(b"/proc/self/stat", &mut buffer), 0, "not terminated");
    }

    #[test]
    fn identities() {
        assert_eq!(process_id(), std::process::id());
        assert_ne!(std::thread::spawn(thread_id).join().unwrap(), thread_id());
        let (cpu, _) = cpu_and_node();
        assert!(cpu < 8192);
    }
}
