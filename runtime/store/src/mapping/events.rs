//! Reading ring buffers and perf event arrays.

use super::access;
use super::map::MapFile;
use beeline_abi::map::MapType;
use beeline_maps::{perf_event_array, ringbuf};
use rustix::io::Errno;
use std::time::Duration;

/// What comes next in a ring.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Event {
    /// A record.
    Record {
        /// The CPU whose ring it was in; 0 for a ring buffer.
        cpu: u32,
        /// Its bytes.
        data: Vec<u8>,
    },
    /// So many records of this CPU found no room.
    Lost {
        /// The CPU.
        cpu: u32,
        /// How many.
        count: u64,
    },
    /// A ring did not contain what a ring contains; everything in it was thrown away.
    Corrupt {
        /// The CPU.
        cpu: u32,
    },
}

/// The consumer of a map's events. Several consumers of one map share its events between them.
#[derive(Debug)]
pub struct EventReader<'a> {
    map: &'a MapFile,
    buffer: Vec<u8>,
    /// The ring to look at next.
    cpu: u32,
}

impl MapFile {
    /// A consumer.
    ///
    /// # Errors
    /// `EINVAL` for a map that is neither a ring buffer nor a perf event array.
    pub fn events(&self) -> Result<EventReader<'_>, Errno> {
        match self.shape().map_type {
            MapType::RINGBUF | MapType::PERF_EVENT_ARRAY => {
                Ok(EventReader { map: self, buffer: vec![0; 4096], cpu: 0 })
            }
            _ => Err(Errno::INVAL),
        }
    }
}

impl EventReader<'_> {
    /// The next event; `None` when there is none yet.
    pub fn poll(&mut self) -> Option<Event> {
        if self.map.shape().map_type == MapType::RINGBUF {
            return self.poll_ring();
        }
        for _ in 0..self.map.shape().cpus {
            let cpu = self.cpu;
            match self.poll_cpu(cpu) {
                Some(event) => return Some(event),
                None => self.cpu = (cpu + 1) % self.map.shape().cpus.max(1),
            }
        }
        None
    }

    /// Sleeps until there may be an event, at most this long.
    pub fn wait(&self, at_most: Duration) {
        let nanoseconds = u64::try_from(at_most.as_nanos()).unwrap_or(u64::MAX);
        // SAFETY: the handle was validated when the file was opened, its mapping lives as long as the file, and its
        // type was checked by `MapFile::events`.
        unsafe {
            match self.map.shape().map_type {
                MapType::RINGBUF => ringbuf::wait(self.map.handle(), nanoseconds),
                _ => perf_event_array::wait(self.map.handle(), nanoseconds),
            }
        }
    }

    fn poll_ring(&mut self) -> Option<Event> {
        loop {
            // SAFETY: as in `wait`; the map is a ring buffer.
            match unsafe { ringbuf::read(self.map.handle(), &access(), &mut self.buffer) } {
                ringbuf::Read::Record(len) => {
                    return Some(Event::Record { cpu: 0, data: self.buffer[..len].to_vec() });
                }
                ringbuf::Read::Empty => return None,
                ringbuf::Read::TooLong(len) => self.buffer.resize(len, 0),
                ringbuf::Read::Corrupt => return Some(Event::Corrupt { cpu: 0 }),
            }
        }
    }

    fn poll_cpu(&mut self, cpu: u32) -> Option<Event> {
        loop {
            // SAFETY: as in `wait`; the map is a perf event array.
            match unsafe { perf_event_array::read(self.map.handle(), cpu, &mut self.buffer) } {
                perf_event_array::Event::Record(len) => {
                    return Some(Event::Record { cpu, data: self.buffer[..len].to_vec() });
                }
                perf_event_array::Event::Lost(count) => return Some(Event::Lost { cpu, count }),
                perf_event_array::Event::Empty => return None,
                perf_event_array::Event::TooLong(len) => self.buffer.resize(len, 0),
                perf_event_array::Event::Corrupt => return Some(Event::Corrupt { cpu }),
            }
        }
    }
}
