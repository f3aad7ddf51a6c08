//! The `trace_printk` log of a store: a ring of fixed slots that overwrites its oldest lines and needs no lock.
//!
//! A writer takes a ticket from `next`, marks slot `ticket % TRACE_SLOTS` as being written, fills it, and stores the
//! finished sequence. A reader takes a slot only when the sequence is the one it expects before and after the copy. A
//! writer that dies leaves one slot unreadable until it is overwritten.

use core::sync::atomic::{AtomicU32, AtomicU64};

/// `"beetrace"` read as a little-endian word.
pub const TRACE_MAGIC: u64 = u64::from_le_bytes(*b"beetrace");

/// Lines that the log holds.
pub const TRACE_SLOTS: u64 = 2048;

/// Longest text of a line in bytes (`BPF_TRACE_PRINTK_SIZE` is 1024; the rest of the slot is its header).
pub const TRACE_TEXT_MAX: usize = 984;

/// First page of the log file; the slots follow at offset 4096.
#[repr(C)]
#[derive(Debug)]
pub struct TraceHeader {
    /// [`TRACE_MAGIC`].
    pub magic: u64,
    /// [`ABI_VERSION`](crate::ABI_VERSION).
    pub version: u32,
    /// Zero.
    pub reserved: u32,
    /// Next ticket.
    pub next: AtomicU64,
}

/// One line.
#[repr(C)]
#[derive(Debug)]
pub struct TraceSlot {
    /// `2 * ticket + 1` while it is being written, `2 * ticket + 2` when it is complete.
    pub sequence: AtomicU64,
    /// CLOCK_MONOTONIC nanoseconds.
    pub time_ns: u64,
    /// Thread id of the writer.
    pub tid: u32,
    /// CPU of the writer.
    pub cpu: u32,
    /// Bytes of text, at most [`TRACE_TEXT_MAX`].
    pub len: AtomicU32,
    /// Zero.
    pub reserved: u32,
    /// Thread name, NUL-padded.
    pub comm: [u8; 16],
    /// The text; whole words so that it can be copied with relaxed atomics.
    pub text: [u8; TRACE_TEXT_MAX - 8],
}

const _: () = assert!(size_of::<TraceSlot>() == 1024);

/// Length of the log file.
pub const TRACE_FILE_LEN: u64 = 4096 + TRACE_SLOTS * 1024;
