//! User stacks, by frame pointers, as `perf_callchain_user` walks them.
//!
//! Return addresses that a return probe replaced are shown as they were. At the first instruction of a function, which
//! has not made its frame yet, the caller is read from the top of the stack, as the kernel does for uprobes.
//!
//! *Differs*: there is no kernel part of a stack: asking for it gives `-EFAULT`. Build ids are refused with `-EINVAL`.

use crate::{error, identity, process, read};
use beeline_abi::PAGE_SIZE;
use beeline_abi::errno::{EFAULT, EINVAL};
use beeline_abi::link::LinkRuntime;
use beeline_abi::map::MapHandle;
use beeline_abi::process::SiteRuntime;
use beeline_abi::regs::PtRegs;
use beeline_abi::run::RunContext;
use beeline_abi::thread::{RETURN_SLOTS, ReturnSlot, THREAD_SLOTS, ThreadSlot};
use beeline_maps::stack_trace;
use core::mem::{MaybeUninit, offset_of};

/// `BPF_F_SKIP_FIELD_MASK`.
const SKIP_MASK: u64 = 0xff;
/// `BPF_F_USER_STACK`.
const USER_STACK: u64 = 1 << 8;

/// Deepest stack (`kernel.perf_event_max_stack`).
pub const DEPTH_MAX: usize = 127;

/// A piece of the stack, fetched at once.
struct Window {
    start: u64,
    len: u64,
    bytes: MaybeUninit<[u8; 1024]>,
}

impl Window {
    fn new() -> Window {
        Window { start: 0, len: 0, bytes: MaybeUninit::uninit() }
    }

    /// The word at `address`; `None` when it cannot be read.
    unsafe fn word(&mut self, run: *mut RunContext, address: u64) -> Option<u64> {
        let inside = |window: &Window| {
            address >= window.start && address.wrapping_add(8) <= window.start.wrapping_add(window.len)
        };
        // SAFETY: the caller's run; only bytes that were fetched are read.
        unsafe {
            if !inside(self) {
                let to_page_end = PAGE_SIZE - address % PAGE_SIZE;
                let len = to_page_end.clamp(8, size_of_val(&self.bytes) as u64);
                self.len = 0;
                if !read::copy(run, self.bytes.as_mut_ptr().cast(), len as usize, address) {
                    return None;
                }
                (self.start, self.len) = (address, len);
            }
            let offset = (address - self.start) as usize;
            Some(self.bytes.as_ptr().cast::<u8>().add(offset).cast::<u64>().read_unaligned())
        }
    }
}

/// The thread's outstanding return probes, oldest first.
unsafe fn returns<'a>(run: *const RunContext) -> &'a [ReturnSlot] {
    // SAFETY: the caller's run; the agent and the stubs keep the return stack's words in order.
    unsafe {
        let Some(block) = process(run) else { return &[] };
        let slot = (run as u64).wrapping_sub(offset_of!(ThreadSlot, run) as u64);
        if slot.wrapping_sub(block.threads) >= THREAD_SLOTS * size_of::<ThreadSlot>() as u64 {
            return &[];
        }
        let slot = slot as *const ThreadSlot;
        let (base, top) = ((*slot).returns_base, (*slot).returns_top);
        let count = top.wrapping_sub(base) / size_of::<ReturnSlot>() as u64;
        if base == 0 || count > RETURN_SLOTS {
            return &[];
        }
        core::slice::from_raw_parts(base as *const ReturnSlot, count as usize)
    }
}

/// What stood in the stack word at `address` before return probes replaced it by `value`.
fn original(returns: &[ReturnSlot], address: u64, value: u64) -> u64 {
    returns.iter().rev().fold(value, |value, entry| {
        if entry.sp == address && entry.trampoline == value { entry.return_address } else { value }
    })
}

/// True when the probe is at the first instruction of a function, by what stood there: `push %rbp` or `endbr64`.
unsafe fn at_function_entry(run: *const RunContext) -> bool {
    const PUSH_RBP: u8 = 0x55;
    const ENDBR64: [u8; 4] = [0xf3, 0x0f, 0x1e, 0xfa];
    // SAFETY: the caller's run; the injector wrote link and sites.
    unsafe {
        let Some(block) = process(run) else { return false };
        let Some(link) = ((*run).link as *const LinkRuntime).as_ref() else { return false };
        if link.flags & LinkRuntime::RETURN != 0 || block.sites == 0 {
            return false;
        }
        let sites = core::slice::from_raw_parts(block.sites as *const SiteRuntime, block.site_count as usize);
        sites.iter().find(|site| site.address == link.func_ip).is_some_and(|site| {
            site.original.first() == Some(&PUSH_RBP) || site.original.starts_with(&ENDBR64)
        })
    }
}

/// Writes the addresses of the user stack at `regs` to `out`, innermost first; how many.
///
/// # Safety
///
/// `run` is the calling thread's, `out` is writable for `depth` words.
pub unsafe fn walk(run: *mut RunContext, regs: &PtRegs, out: *mut u64, depth: usize) -> usize {
    let mut window = Window::new();
    let mut count = 0usize;
    let mut push = |address: u64| {
        if count < depth {
            // SAFETY: within `depth` words.
            unsafe { out.add(count).write(address) };
        }
        count += 1;
        count < depth
    };
    // SAFETY: the caller's run.
    unsafe {
        let returns = returns(run);
        let mut more = push(regs.ip);
        if more
            && at_function_entry(run)
            && let Some(caller) = window.word(run, regs.sp)
        {
            more = push(original(returns, regs.sp, caller));
        }
        let mut frame = regs.bp;
        while more {
            let at = frame.wrapping_add(8);
            let (Some(next), Some(caller)) = (window.word(run, frame), window.word(run, at)) else { break };
            more = push(original(returns, at, caller));
            frame = next;
        }
    }
    count.min(depth)
}

/// The registers that a program's context holds.
///
/// # Safety
///
/// The context is a `pt_regs`, which the verifier proved by the program's type.
pub(crate) unsafe fn registers<'a>(run: *const RunContext, context: u64) -> &'a PtRegs {
    // SAFETY: the caller's contract; a probe's run knows them itself.
    unsafe {
        let regs = (*run).regs;
        &*((if regs != 0 { regs } else { context }) as *const PtRegs)
    }
}

/// `long bpf_get_stack(void *ctx, void *buf, u32 size, u64 flags)`: bytes written; the rest of `buf` is zeroed.
///
/// Errors: `-EINVAL` for other flags, build ids or a size that is no multiple of 8; `-EFAULT` for a kernel stack or when
/// fewer addresses are there than are skipped. `buf` is zeroed.
pub(crate) unsafe extern "sysv64" fn get_stack(
    context: u64,
    buffer: u64,
    size: u64,
    flags: u64,
    _: u64,
    run: *mut RunContext,
) -> u64 {
    let (buffer, size) = (buffer as *mut u8, size as u32 as usize);
    let fill = || {
        if flags & !(SKIP_MASK | USER_STACK) != 0 || !size.is_multiple_of(8) {
            return Err(EINVAL);
        }
        if flags & USER_STACK == 0 {
            return Err(EFAULT);
        }
        let skip = (flags & SKIP_MASK) as usize;
        let mut addresses = MaybeUninit::<[u64; DEPTH_MAX]>::uninit();
        let addresses = addresses.as_mut_ptr().cast::<u64>();
        // SAFETY: `depth` fits; the verifier proved `size` writable bytes and the context.
        unsafe {
            let depth = (size / 8).saturating_add(skip).min(DEPTH_MAX);
            let count = walk(run, registers(run, context), addresses, depth);
            let Some(kept) = count.checked_sub(skip) else { return Err(EFAULT) };
            let bytes = (kept * 8).min(size);
            core::ptr::copy_nonoverlapping(addresses.add(skip).cast::<u8>(), buffer, bytes);
            Ok(bytes)
        }
    };
    let result = fill();
    let written = result.unwrap_or(0);
    // SAFETY: `written <= size`.
    unsafe { core::ptr::write_bytes(buffer.add(written), 0, size - written) };
    result.map_or_else(error, |bytes| bytes as u64)
}

/// `long bpf_get_stackid(void *ctx, struct bpf_map *map, u64 flags)`: id of the user stack in the map.
///
/// Errors: `-EFAULT` for a kernel stack or when nothing is left after skipping, others as `stack_trace::store`.
pub(crate) unsafe extern "sysv64" fn get_stackid(
    context: u64,
    map: u64,
    flags: u64,
    _: u64,
    _: u64,
    run: *mut RunContext,
) -> u64 {
    let mut addresses = MaybeUninit::<[u64; DEPTH_MAX]>::uninit();
    let addresses = addresses.as_mut_ptr().cast::<u64>();
    // SAFETY: the linker gave the program a validated handle; `depth` fits; the verifier proved the context.
    unsafe {
        let map = &*(map as *const MapHandle);
        let access = identity::access(run);
        if flags & USER_STACK == 0 {
            // What is wrong with the flags is said first, as by the kernel.
            let refused = stack_trace::store(map, access, addresses, 0, flags);
            return refused as u64;
        }
        let skip = (flags & SKIP_MASK) as usize;
        let depth = (map.shape.value_size as usize / 8).saturating_add(skip).min(DEPTH_MAX);
        let count = walk(run, registers(run, context), addresses, depth);
        stack_trace::store(map, access, addresses, count as u32, flags) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Three frames: `words[0..2]` is the innermost, each holds the address of the next and a return address.
    fn frames() -> [u64; 6] {
        let mut words = [0u64, 0x1001, 0, 0x1002, 0, 0x1003];
        let base = words.as_ptr() as u64;
        (words[0], words[2], words[4]) = (base + 16, base + 32, 0);
        words
    }

    fn stack(words: &mut [u64; 6], size: usize, flags: u64) -> (i64, [u64; 8]) {
        let base = words.as_ptr() as u64;
        (words[0], words[2]) = (base + 16, base + 32);
        let regs = PtRegs { ip: 0x1000, bp: base, sp: base, ..PtRegs::default() };
        let mut out = [7u64; 8];
        let mut run = RunContext::default();
        // SAFETY: `size` is at most that of `out`.
        let result = unsafe {
            get_stack(&raw const regs as u64, out.as_mut_ptr() as u64, size as u64, flags, 0, &mut run)
        };
        (result as i64, out)
    }

    #[test]
    fn walks_frames() {
        let mut words = frames();
        assert_eq!(stack(&mut words, 48, USER_STACK), (32, [0x1000, 0x1001, 0x1002, 0x1003, 0, 0, 7, 7]));
        assert_eq!(stack(&mut words, 16, USER_STACK), (16, [0x1000, 0x1001, 7, 7, 7, 7, 7, 7]));
        assert_eq!(stack(&mut words, 16, USER_STACK | 3), (8, [0x1003, 0, 7, 7, 7, 7, 7, 7]));
        assert_eq!(stack(&mut words, 16, USER_STACK | 4), (0, [0, 0, 7, 7, 7, 7, 7, 7]));
        assert_eq!(stack(&mut words, 16, USER_STACK | 5), (-EFAULT, [0, 0, 7, 7, 7, 7, 7, 7]));
    }

    #[test]
    fn refuses() {
        let mut words = frames();
        for flags in [USER_STACK | 1 << 11, 1 << 12, 1 << 9] {
            assert_eq!(stack(&mut words, 16, flags), (-EINVAL, [0, 0, 7, 7, 7, 7, 7, 7]));
        }
        assert_eq!(stack(&mut words, 12, USER_STACK).0, -EINVAL);
        assert_eq!(stack(&mut words, 16, 0).0, -EFAULT);
    }

    #[test]
    fn a_loop_of_frames_ends() {
        let mut words = frames();
        let base = words.as_mut_ptr();
        // SAFETY: the first word.
        unsafe { base.write_volatile(base as u64) };
        let regs = PtRegs { bp: base as u64, ..PtRegs::default() };
        let mut out = [0u64; DEPTH_MAX];
        let mut run = RunContext::default();
        // SAFETY: `out` has the depth.
        assert_eq!(unsafe { walk(&mut run, &regs, out.as_mut_ptr(), DEPTH_MAX) }, DEPTH_MAX);
    }

    #[test]
    fn replaced_return_addresses() {
        let entry = |return_address, sp, trampoline| ReturnSlot { return_address, sp, site: 0, trampoline };
        let returns = [entry(0x10, 0x100, 0xa0), entry(0xa0, 0x100, 0xb0), entry(0x20, 0x80, 0xb0)];
        assert_eq!(original(&returns, 0x100, 0xb0), 0x10, "a tail call: two on one word");
        assert_eq!(original(&returns, 0x80, 0xb0), 0x20);
        assert_eq!(original(&returns, 0x90, 0xb0), 0xb0);
        assert_eq!(original(&returns, 0x100, 0x30), 0x30);
    }
}
