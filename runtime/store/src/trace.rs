//! Reading the `trace_printk` log (protocol: `beeline_abi::trace`).

use crate::StoreError;
use crate::mapping::Mapping;
use beeline_abi::trace::{TRACE_FILE_LEN, TRACE_MAGIC, TRACE_SLOTS, TRACE_TEXT_MAX, TraceHeader, TraceSlot};
use beeline_abi::{ABI_VERSION, PAGE_SIZE};
use std::mem::offset_of;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::atomic::{Ordering, fence};

const SLOT_LEN: usize = size_of::<TraceSlot>();
const TEXT_OFFSET: usize = offset_of!(TraceSlot, text);
const TEXT_MAX: usize = TRACE_TEXT_MAX - 8;

/// A line of the log.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TraceLine {
    /// CLOCK_MONOTONIC nanoseconds.
    pub time_ns: u64,
    /// Thread that wrote it.
    pub tid: u32,
    /// The thread's name.
    pub comm: String,
    /// CPU on which it ran.
    pub cpu: u32,
    /// The text, without the newline that it may end with.
    pub text: String,
}

/// What comes next in the log.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum TraceEvent {
    /// A line.
    Line(TraceLine),
    /// This many lines were overwritten before they could be read, or left unfinished by a writer that died.
    Lost(u64),
}

/// Reads the log from its oldest line on; several readers do not disturb each other.
#[derive(Debug)]
pub struct TraceReader {
    mapping: Mapping,
    ticket: u64,
    /// How often the slot at `ticket` was seen unfinished.
    waits: u32,
}

/// Polls after which a slot that stays unfinished while others behind it are complete is given up.
const WAITS_MAX: u32 = 50;

impl TraceReader {
    pub(crate) fn open(file: impl AsFd, path: &Path) -> Result<TraceReader, StoreError> {
        let mapping = Mapping::new(file, TRACE_FILE_LEN)
            .map_err(|_| StoreError::corrupt(path, "it cannot be mapped or is truncated"))?;
        if mapping.words()[0].load(Ordering::Relaxed) != TRACE_MAGIC {
            return Err(StoreError::corrupt(path, "it is not a trace log"));
        }
        let found = mapping.half_words()[offset_of!(TraceHeader, version) / 4].load(Ordering::Relaxed);
        if found != ABI_VERSION {
            return Err(StoreError::Version { path: path.into(), found, expected: ABI_VERSION });
        }
        let mut reader = TraceReader { mapping, ticket: 0, waits: 0 };
        reader.ticket = reader.next_ticket().saturating_sub(TRACE_SLOTS);
        Ok(reader)
    }

    /// Goes to the end: only lines written from now on are read.
    pub fn skip_to_end(&mut self) {
        self.ticket = self.next_ticket();
    }

    /// The next line; `None` when there is none yet.
    pub fn poll(&mut self) -> Option<TraceEvent> {
        let next = self.next_ticket();
        if self.ticket > next {
            // Only a log that was scribbled over gets here.
            self.ticket = next;
        }
        if self.ticket == next {
            return None;
        }
        let oldest = next.saturating_sub(TRACE_SLOTS);
        if self.ticket < oldest {
            let lost = oldest - self.ticket;
            self.advance(lost);
            return Some(TraceEvent::Lost(lost));
        }
        let base = PAGE_SIZE as usize + (self.ticket % TRACE_SLOTS) as usize * SLOT_LEN;
        let expected = self.ticket.wrapping_mul(2).wrapping_add(2);
        if self.load(base) == expected {
            let line = self.copy(base);
            fence(Ordering::Acquire);
            let still = self.load(base) == expected;
            self.advance(1);
            return Some(if still { TraceEvent::Line(line) } else { TraceEvent::Lost(1) });
        }
        self.waits += 1;
        if self.waits <= WAITS_MAX && self.load(base) < expected {
            return None;
        }
        self.advance(1);
        Some(TraceEvent::Lost(1))
    }

    fn advance(&mut self, count: u64) {
        self.ticket += count;
        self.waits = 0;
    }

    fn next_ticket(&self) -> u64 {
        self.mapping.words()[offset_of!(TraceHeader, next) / 8].load(Ordering::Acquire)
    }

    fn load(&self, offset: usize) -> u64 {
        self.mapping.words()[offset / 8].load(Ordering::Acquire)
    }

    fn copy(&self, base: usize) -> TraceLine {
        let half = |at: usize| self.mapping.half_words()[(base + at) / 4].load(Ordering::Relaxed);
        let bytes = |at: usize, len: usize| -> Vec<u8> {
            let words = &self.mapping.words()[(base + at) / 8..][..len.div_ceil(8)];
            let all = words.iter().flat_map(|word| word.load(Ordering::Relaxed).to_le_bytes());
            all.take(len).collect()
        };
        let len = (half(offset_of!(TraceSlot, len)) as usize).min(TEXT_MAX);
        let text = bytes(TEXT_OFFSET, len);
        let text = text.strip_suffix(b"\0").unwrap_or(&text);
        let text = text.strip_suffix(b"\n").unwrap_or(text);
        let comm = bytes(offset_of!(TraceSlot, comm), 16);
        let comm = comm.split(|&byte| byte == 0).next().unwrap_or_default();
        TraceLine {
            time_ns: self.mapping.words()[(base + offset_of!(TraceSlot, time_ns)) / 8]
                .load(Ordering::Relaxed),
            tid: half(offset_of!(TraceSlot, tid)),
            comm: String::from_utf8_lossy(comm).into_owned(),
            cpu: half(offset_of!(TraceSlot, cpu)),
            text: String::from_utf8_lossy(text).into_owned(),
        }
    }
}

const _: () =
    assert!(SLOT_LEN.is_multiple_of(8) && TEXT_OFFSET.is_multiple_of(8) && TEXT_MAX.is_multiple_of(8));
const _: () = assert!(offset_of!(TraceSlot, comm).is_multiple_of(8));
