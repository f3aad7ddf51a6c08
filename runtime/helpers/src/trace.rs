//! `bpf_trace_printk` and `bpf_trace_vprintk`: lines in the store's trace log.
//!
//! The protocol is that of [`beeline_abi::trace`]: a ticket, the slot marked as being written, the line, the finished
//! sequence. A line is never torn for a reader and a writer never waits.
//!
//! *Differs*: a line holds 975 bytes of text (the kernel's 1023).

use crate::format::{self, Format};
use crate::identity::{ids, thread_name};
use crate::{error, process, system, time};
use beeline_abi::errno::EINVAL;
use beeline_abi::run::RunContext;
use beeline_abi::trace::{TRACE_SLOTS, TraceHeader, TraceSlot};
use core::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use core::sync::atomic::fence;

/// Slots follow the header's page.
const SLOTS_OFFSET: u64 = 4096;

/// The text of a slot, its NUL included.
const TEXT_LEN: usize = size_of::<TraceSlot>() - core::mem::offset_of!(TraceSlot, text);

/// Checks, formats and logs; the length of the uncut text.
unsafe fn log(run: *mut RunContext, format: Result<Format, i64>) -> Result<usize, i64> {
    let mut format = format?;
    // SAFETY: the callers hold the run and the format's memory; the injector mapped the whole log.
    unsafe {
        format.prepare(run)?;
        let Some(log) = process(run).and_then(|block| (block.trace as *const TraceHeader).as_ref()) else {
            return Ok(format.print(run, core::ptr::null_mut(), 0));
        };
        let ticket = log.next.fetch_add(1, Relaxed);
        let offset = SLOTS_OFFSET + ticket % TRACE_SLOTS * size_of::<TraceSlot>() as u64;
        let slot = (&raw const *log).cast::<u8>().add(offset as usize).cast_mut().cast::<TraceSlot>();
        let sequence = &(*slot).sequence;
        // A writer that was overtaken by a whole lap leaves the slot to the later one.
        let mine = ticket.wrapping_mul(2).wrapping_add(1);
        let before = sequence.load(Acquire);
        if before >= mine || sequence.compare_exchange(before, mine, Acquire, Relaxed).is_err() {
            return Ok(format.print(run, core::ptr::null_mut(), 0));
        }
        fence(Release);
        (&raw mut (*slot).time_ns).write(time::now(run, time::MONOTONIC));
        (&raw mut (*slot).tid).write(ids(run).tid);
        (&raw mut (*slot).cpu).write(system::cpu(run));
        (&raw mut (*slot).comm).write(thread_name());
        let len = format.print(run, (&raw mut (*slot).text).cast(), TEXT_LEN);
        (*slot).len.store(len.min(TEXT_LEN - 1) as u32, Relaxed);
        let _ = sequence.compare_exchange(mine, mine.wrapping_add(1), Release, Relaxed);
        Ok(len)
    }
}

fn answer(result: Result<usize, i64>) -> u64 {
    result.map_or_else(error, |len| len as u64)
}

/// `long bpf_trace_printk(const char *fmt, u32 fmt_size, ...)`: the length of the text; at most three arguments.
///
/// Errors: `-EINVAL` for a format that the kernel refuses, `-ENOSPC` for strings of more than 512 bytes.
pub(crate) unsafe extern "sysv64" fn trace_printk(
    text: u64,
    size: u64,
    first: u64,
    second: u64,
    third: u64,
    run: *mut RunContext,
) -> u64 {
    let arguments = [first, second, third];
    // SAFETY: the verifier proved `size` readable bytes.
    unsafe { answer(log(run, Format::new(text as *const u8, size as u32 as usize, arguments.as_ptr(), 3))) }
}

/// `long bpf_trace_vprintk(const char *fmt, u32 fmt_size, const void *data, u32 data_len)`: the length of the text; at
/// most twelve arguments.
///
/// Errors: as [`trace_printk`].
pub(crate) unsafe extern "sysv64" fn trace_vprintk(
    text: u64,
    size: u64,
    data: u64,
    data_len: u64,
    _: u64,
    run: *mut RunContext,
) -> u64 {
    let Ok(count) = format::argument_count(data, data_len as u32) else { return error(EINVAL) };
    // SAFETY: the verifier proved both sizes.
    unsafe {
        answer(log(run, Format::new(text as *const u8, size as u32 as usize, data as *const u64, count)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use beeline_abi::process::ProcessBlock;
    use beeline_abi::trace::TRACE_FILE_LEN;
    use std::boxed::Box;
    use std::vec;

    /// A log and a block that refers to it, both zeroed.
    fn with_log(test: impl FnOnce(&mut RunContext, *const u64)) {
        let mut log = vec![0u64; TRACE_FILE_LEN as usize / 8];
        // SAFETY: all fields may be zero.
        let mut block = unsafe { Box::new(core::mem::zeroed::<ProcessBlock>()) };
        // Written through this address only, as by any other process: never through the vector.
        let log = log.as_mut_ptr();
        block.trace = log as u64;
        let mut run =
            RunContext { process: &raw const *block as u64, access: NO_CPU, ..RunContext::default() };
        test(&mut run, log);
    }

    const NO_CPU: beeline_abi::map::Access =
        beeline_abi::map::Access { cpu: RunContext::NO_CPU, ..ZERO_ACCESS };
    const ZERO_ACCESS: beeline_abi::map::Access =
        // SAFETY: plain numbers.
        unsafe { core::mem::zeroed() };

    fn print(run: &mut RunContext, text: &core::ffi::CStr, argument: u64) -> i64 {
        let bytes = text.to_bytes_with_nul();
        // SAFETY: the size is right.
        unsafe { trace_printk(bytes.as_ptr() as u64, bytes.len() as u64, argument, 0, 0, run) as i64 }
    }

    fn slot<'a>(log: *const u64, index: usize) -> &'a TraceSlot {
        // SAFETY: within the log, aligned; used before the next line is printed.
        unsafe { &*log.add(512 + index * 128).cast() }
    }

    #[test]
    fn lines() {
        with_log(|run, log| {
            assert_eq!(print(run, c"n=%d\n", 42), 5);
            assert_eq!(print(run, c"%q", 42), -EINVAL);
            // SAFETY: the counter of tickets in the header.
            assert_eq!(unsafe { log.add(2).read() }, 1, "a refused line takes no ticket");
            let line = slot(log, 0);
            assert_eq!(line.sequence.load(Relaxed), 2);
            assert_eq!((line.tid, line.len.load(Relaxed)), (crate::sys::thread_id(), 5));
            assert_eq!(&line.text[..6], b"n=42\n\0");
            assert!(line.time_ns > 0);
        });
    }

    #[test]
    fn the_oldest_line_gives_way() {
        with_log(|run, log| {
            for i in 0..TRACE_SLOTS + 3 {
                assert!(print(run, c"%d", i) > 0);
            }
            let text = |index| slot(log, index).text.split(|&byte| byte == 0).next().unwrap().to_vec();
            assert_eq!((text(0), text(2), text(3)), (b"2048".to_vec(), b"2050".to_vec(), b"3".to_vec()));
            assert_eq!(slot(log, 0).sequence.load(Relaxed), 2 * TRACE_SLOTS + 2);
        });
    }

    #[test]
    fn an_overtaken_writer_leaves_the_slot_alone() {
        with_log(|run, log| {
            slot(log, 0).sequence.store(2 * TRACE_SLOTS + 2, Relaxed);
            assert_eq!(print(run, c"late", 0), 4);
            assert_eq!(slot(log, 0).text[0], 0);
        });
    }

    #[test]
    fn without_a_log_the_length_is_the_same() {
        let mut run = RunContext::default();
        assert_eq!(print(&mut run, c"n=%d", 42), 4);
    }
}
