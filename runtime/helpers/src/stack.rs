//! User stacks: by the tables of [`unwind`](crate::unwind) where the process has some, else by frame pointers, as
//! `perf_callchain_user` walks them.
//!
//! Return addresses that a return probe replaced are shown as they were. At the first instruction of a function, which
//! has not made its frame yet, the caller is read from the top of the stack, as the kernel does for uprobes.
//!
//! *Differs*: there is no kernel part of a stack: asking for it gives `-EFAULT`. Build ids are known of files that were mapped at the
//! last attach; other addresses are given as such, as the kernel gives those of files without a build id.

use crate::unwind::{self, Found, Frame};
use crate::{error, identity, process, read};
use beeline_abi::PAGE_SIZE;
use beeline_abi::errno::{EFAULT, EINVAL};
use beeline_abi::link::LinkRuntime;
use beeline_abi::map::MapHandle;
use beeline_abi::process::{ProcessBlock, SiteRuntime};
use beeline_abi::regs::PtRegs;
use beeline_abi::run::RunContext;
use beeline_abi::thread::{RETURN_SLOTS, ReturnSlot, THREAD_SLOTS, ThreadSlot};
use beeline_abi::unwind::BUILD_ID_MAX;
use beeline_maps::stack_trace;
use core::mem::{MaybeUninit, offset_of};

/// `BPF_F_SKIP_FIELD_MASK`.
const SKIP_MASK: u64 = 0xff;
/// `BPF_F_USER_STACK`.
const USER_STACK: u64 = 1 << 8;

/// `BPF_F_USER_BUILD_ID`.
const USER_BUILD_ID: u64 = 1 << 11;

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

/// True when the probe is at the first instruction of a function: the injector knows it for one, or it is one by what stood
/// there, `push %rbp` or `endbr64`.
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
            site.flags & SiteRuntime::ENTRY != 0
                || site.original.first() == Some(&PUSH_RBP)
                || site.original.starts_with(&ENDBR64)
        })
    }
}

/// Writes the addresses of the user stack at `regs` to `out`, innermost first; how many.
///
/// # Safety
///
/// `run` is the calling thread's, `out` is writable for `depth` words.
pub unsafe fn walk(run: *mut RunContext, regs: &PtRegs, out: *mut u64, depth: usize) -> usize {
    let mut walk = Walk { run, window: Window::new() };
    let mut frame = Frame { ip: regs.ip, sp: regs.sp, bp: regs.bp, exact: true };
    let mut count = 0;
    // SAFETY: the caller's run; `count` stays below `depth`.
    unsafe {
        let (block, returns) = (process(run), returns(run));
        while count < depth {
            out.add(count).write(frame.ip);
            count += 1;
            let innermost = (count == 1).then_some(regs);
            let Some(caller) = walk.caller(block, returns, &frame, innermost) else { break };
            frame = caller;
        }
    }
    count
}

/// A walk under way.
struct Walk {
    run: *mut RunContext,
    window: Window,
}

impl Walk {
    unsafe fn word(&mut self, address: u64) -> Option<u64> {
        // SAFETY: the caller's run.
        unsafe { self.window.word(self.run, address) }
    }

    /// The frame that called this one; none at the end of the stack.
    unsafe fn caller(
        &mut self,
        block: Option<&ProcessBlock>,
        returns: &[ReturnSlot],
        frame: &Frame,
        innermost: Option<&PtRegs>,
    ) -> Option<Frame> {
        // SAFETY: the caller's run and block.
        unsafe {
            let found = match block {
                Some(block) => unwind::find(block, frame, innermost, |address| self.word(address)),
                None => Found::Nothing,
            };
            match found {
                Found::Outermost => None,
                Found::Nothing => self.by_frame_pointer(returns, frame, innermost.is_some()),
                Found::Signal(sp) => {
                    let bp = self.word(sp.wrapping_add(unwind::SIGNAL_RBP))?;
                    let outer = self.word(sp.wrapping_add(unwind::SIGNAL_RSP))?;
                    let ip = self.word(sp.wrapping_add(unwind::SIGNAL_RIP))?;
                    Some(Frame { ip, sp: outer, bp, exact: true })
                }
                Found::Caller { cfa, saved_rbp, rbp_lost } => {
                    // The lower word first: one fetch mostly gets both.
                    let bp = match saved_rbp {
                        _ if rbp_lost => 0,
                        0 => frame.bp,
                        at => self.word(at)?,
                    };
                    let at = cfa.wrapping_sub(8);
                    let ip = original(returns, at, self.word(at)?);
                    (ip != 0).then_some(Frame { ip, sp: cfa, bp, exact: false })
                }
            }
        }
    }

    /// The caller as `perf_callchain_user` finds it.
    unsafe fn by_frame_pointer(
        &mut self,
        returns: &[ReturnSlot],
        frame: &Frame,
        innermost: bool,
    ) -> Option<Frame> {
        // SAFETY: the caller's run.
        unsafe {
            if innermost
                && at_function_entry(self.run)
                && let Some(caller) = self.word(frame.sp)
            {
                let (ip, sp) = (original(returns, frame.sp, caller), frame.sp.wrapping_add(8));
                return Some(Frame { ip, sp, exact: false, ..*frame });
            }
            let at = frame.bp.wrapping_add(8);
            let (bp, caller) = (self.word(frame.bp)?, self.word(at)?);
            let sp = at.wrapping_add(8);
            Some(Frame { ip: original(returns, at, caller), sp, bp, exact: false })
        }
    }
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

/// `struct bpf_stack_build_id`: where an address is in a file.
#[repr(C)]
struct PlaceInFile {
    /// One of the below.
    status: u32,
    build_id: [u8; BUILD_ID_MAX],
    /// Offset in the file; the address itself when the file is not known.
    offset: u64,
}

/// `BPF_STACK_BUILD_ID_VALID`.
const IN_FILE: u32 = 1;
/// `BPF_STACK_BUILD_ID_IP`.
const ADDRESS_ONLY: u32 = 2;

/// Writes where the addresses are in files, as `stack_map_get_build_id_offset` does.
///
/// # Safety
///
/// `run` is the calling thread's, `addresses` are `count` words, `out` is writable for as many places.
unsafe fn places(run: *const RunContext, addresses: *const u64, count: usize, out: *mut u8) {
    // SAFETY: the caller's contract.
    unsafe {
        let block = process(run);
        for index in 0..count {
            let address = addresses.add(index).read();
            let text = block.and_then(|block| unwind::text(block, address));
            let place = match text.filter(|text| text.build_id_len != 0) {
                Some(text) => PlaceInFile {
                    status: IN_FILE,
                    build_id: text.build_id,
                    offset: text.file_offset.wrapping_add(address.wrapping_sub(text.start)),
                },
                None => PlaceInFile { status: ADDRESS_ONLY, build_id: [0; BUILD_ID_MAX], offset: address },
            };
            out.cast::<PlaceInFile>().add(index).write_unaligned(place);
        }
    }
}

/// `long bpf_get_stack(void *ctx, void *buf, u32 size, u64 flags)`: bytes written; the rest of `buf` is zeroed.
///
/// Errors: `-EINVAL` for other flags, or a size that is no multiple of an entry's (8, with build ids 32); `-EFAULT` for a
/// kernel stack or when fewer addresses are there than are skipped. `buf` is zeroed.
pub(crate) unsafe extern "sysv64" fn get_stack(
    context: u64,
    buffer: u64,
    size: u64,
    flags: u64,
    _: u64,
    run: *mut RunContext,
) -> u64 {
    let (buffer, size) = (buffer as *mut u8, size as u32 as usize);
    // SAFETY: the verifier proved `size` writable bytes and the context.
    let result = unsafe { fill(run, context, buffer, size, flags) };
    let written = result.unwrap_or(0);
    // SAFETY: `written <= size`.
    unsafe { core::ptr::write_bytes(buffer.add(written), 0, size - written) };
    result.map_or_else(error, |bytes| bytes as u64)
}

/// Writes a stack; how many bytes.
unsafe fn fill(
    run: *mut RunContext,
    context: u64,
    buffer: *mut u8,
    size: usize,
    flags: u64,
) -> Result<usize, i64> {
    let in_files = flags & USER_BUILD_ID != 0;
    let element = if in_files { size_of::<PlaceInFile>() } else { 8 };
    let known = SKIP_MASK | USER_STACK | USER_BUILD_ID;
    if flags & !known != 0 || !size.is_multiple_of(element) || in_files && flags & USER_STACK == 0 {
        return Err(EINVAL);
    }
    if flags & USER_STACK == 0 {
        return Err(EFAULT);
    }
    let skip = (flags & SKIP_MASK) as usize;
    let mut addresses = MaybeUninit::<[u64; DEPTH_MAX]>::uninit();
    let addresses = addresses.as_mut_ptr().cast::<u64>();
    // SAFETY: the caller's contract; `depth` fits; what is written fits into `size`.
    unsafe {
        let depth = (size / element).saturating_add(skip).min(DEPTH_MAX);
        let count = walk(run, registers(run, context), addresses, depth);
        let kept = count.checked_sub(skip).ok_or(EFAULT)?.min(size / element);
        if in_files {
            places(run, addresses.add(skip), kept, buffer);
        } else {
            core::ptr::copy_nonoverlapping(addresses.add(skip).cast::<u8>(), buffer, kept * 8);
        }
        Ok(kept * element)
    }
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
        let entry = |return_address, sp, trampoline| ReturnSlot {
            return_address,
            sp,
            trampoline,
            ..ReturnSlot::EMPTY
        };
        let returns = [entry(0x10, 0x100, 0xa0), entry(0xa0, 0x100, 0xb0), entry(0x20, 0x80, 0xb0)];
        assert_eq!(original(&returns, 0x100, 0xb0), 0x10, "a tail call: two on one word");
        assert_eq!(original(&returns, 0x80, 0xb0), 0x20);
        assert_eq!(original(&returns, 0x90, 0xb0), 0xb0);
        assert_eq!(original(&returns, 0x100, 0x30), 0x30);
    }
}
