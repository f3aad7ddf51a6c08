//! The memory of one run: nothing of it is real, every byte that a program may touch is in a region.
//!
//! ```text
//! region i starts in the 64 GiB slice i + 1, at a random place; the packet lies below 4 GiB, because contexts hold its
//! addresses in 32 bits
//!
//!     0..8    stack frames, as large as the verifier said
//!     8       the context
//!     9..17   ring-buffer records
//!     17..    map values, keys, and the maps themselves (without a byte to be touched)
//! ```

use crate::maps;
use crate::numbers::Numbers;
use beeline_abi::map::{MapFlags, MapType};
use beeline_interp::memory::{FRAME_BYTES, FRAMES_MAX};
use beeline_interp::{AccessError, FUNCTION_BASE, Memory};
use beeline_isa::{AtomicOp, Size};
use beeline_verifier::claims::{Moment, Thing};
use beeline_verifier::{MapInfo, ProgType};
use std::cell::RefCell;

/// Region of the context.
const CONTEXT: usize = FRAMES_MAX;
/// First region of a record.
const RECORDS: usize = CONTEXT + 1;
/// Most records at a time.
const RECORDS_MAX: usize = 8;
/// Largest record.
const RECORD_BYTES: usize = 4096;
/// Bytes of a packet with its meta data.
const PACKET_BYTES: usize = 512;

/// Bytes with rights.
#[derive(Clone, Copy, Debug, Default)]
struct Region {
    start: u64,
    bytes: u64,
    /// Where its bytes are in the arena.
    at: usize,
    read: bool,
    write: bool,
}

/// One map: its own address, its values.
#[derive(Clone, Debug, Default)]
pub struct Map {
    /// Its address, as a program holds it.
    pub handle: u64,
    /// Addresses of its values.
    pub values: Vec<u64>,
    /// Addresses of keys that callbacks get.
    pub keys: Vec<u64>,
    /// Bytes of a key.
    pub key_size: u32,
    /// Bytes of a value.
    pub value_size: u32,
    /// `BPF_MAP_TYPE_*`.
    pub map_type: u32,
}

/// A map of maps has two members.
const MEMBERS: usize = 2;

/// Everything that a program can see or change.
pub struct World {
    /// Where chance comes from.
    pub numbers: Numbers,
    /// Numbers that the program mentions.
    dictionary: Vec<u64>,
    prog_type: ProgType,
    regions: Vec<Region>,
    packet: Region,
    arena: Vec<u8>,
    /// The program's maps.
    pub maps: Vec<Map>,
    /// Members of maps of maps, by the outer map.
    pub members: Vec<(u32, Map)>,
    /// Per map, addresses of the map itself, of its members; of values and values of members: what [`Moment`] gives.
    handles: Vec<[Vec<u64>; 2]>,
    values: Vec<[Vec<u64>; 2]>,
    packet_starts: [u64; 3],
    functions: Vec<u64>,
    /// Records reserved and not released, by size.
    records: Vec<(u32, Vec<u64>)>,
    /// r10 of the frames, innermost last.
    frames: Vec<u64>,
    /// Registers before the current instruction.
    pub registers: [u64; 11],
    /// Bytes of the context that loads touched, as `(offset, size)`.
    pub context_reads: Vec<(u32, u32)>,
}

impl World {
    /// A world without contents, for [`reset`](World::reset).
    pub fn new(maps: &[MapInfo]) -> World {
        let mut world = World {
            numbers: Numbers::new(0),
            dictionary: Vec::new(),
            prog_type: ProgType::KPROBE,
            regions: Vec::new(),
            packet: Region::default(),
            arena: Vec::new(),
            maps: Vec::new(),
            members: Vec::new(),
            handles: Vec::new(),
            values: Vec::new(),
            packet_starts: [0; 3],
            functions: Vec::new(),
            records: Vec::new(),
            frames: Vec::new(),
            registers: [0; 11],
            context_reads: Vec::new(),
        };
        (0..FRAMES_MAX).for_each(|_| world.add(FRAME_BYTES, true, true));
        world.add(1 << 16, true, true);
        (0..RECORDS_MAX).for_each(|_| world.add(RECORD_BYTES, false, false));
        for (index, info) in maps.iter().enumerate() {
            let map = world.add_map(info);
            world.maps.push(map);
            if let Some(inner) = &info.inner {
                for _ in 0..MEMBERS {
                    let member = world.add_map(inner);
                    world.members.push((index as u32, member));
                }
            }
        }
        world.packet = Region { at: world.arena.len(), ..Region::default() };
        world.arena.resize(world.arena.len() + PACKET_BYTES, 0);
        world
    }

    fn add(&mut self, bytes: usize, read: bool, write: bool) {
        self.regions.push(Region { start: 0, bytes: bytes as u64, at: self.arena.len(), read, write });
        self.arena.resize(self.arena.len() + bytes, 0);
    }

    /// Regions of a map: itself, values, keys. Until [`reset`](World::reset) places them, addresses are their numbers.
    fn add_map(&mut self, info: &MapInfo) -> Map {
        let shape = info.shape;
        let next = |world: &World| world.regions.len() as u64;
        let handle = next(self);
        self.add(0, false, false);
        let has_values = !matches!(
            shape.map_type,
            MapType::RINGBUF
                | MapType::PROG_ARRAY
                | MapType::ARRAY_OF_MAPS
                | MapType::PERF_EVENT_ARRAY
                | MapType::STACK_TRACE
        );
        let (mut values, mut keys) = (Vec::new(), Vec::new());
        for _ in 0..if has_values { shape.max_entries.min(4) } else { 0 } {
            values.push(next(self));
            let (read, write) =
                (shape.map_flags & MapFlags::WRONLY_PROG == 0, shape.map_flags & MapFlags::RDONLY_PROG == 0);
            self.add(shape.value_size as usize, read, write);
            keys.push(next(self));
            self.add(shape.key_size as usize, true, false);
        }
        let (key_size, value_size, map_type) = (shape.key_size, shape.value_size, shape.map_type);
        Map { handle, values, keys, key_size, value_size, map_type }
    }

    /// A new run: everything at other places, with other contents.
    pub fn reset(&mut self, seed: u64, prog_type: ProgType, dictionary: &[u64], slots: usize) {
        self.numbers = Numbers::new(seed);
        self.prog_type = prog_type;
        self.dictionary.clear();
        self.dictionary.extend_from_slice(dictionary);
        self.arena.fill(0);
        self.frames.clear();
        self.records.clear();
        self.context_reads.clear();
        self.place();
        self.fill_maps();
        self.fill_context();
        self.functions.clear();
        self.functions.extend((0..slots as u64).map(|slot| FUNCTION_BASE + slot));
    }

    fn place(&mut self) {
        let mut moved = Vec::with_capacity(self.regions.len());
        for (index, region) in self.regions.iter_mut().enumerate() {
            let old = region.start;
            region.start = (index as u64 + 1) << 36 | 1 << 34 | self.numbers.below(1 << 33) & !7;
            moved.push((old, region.start));
        }
        for map in self.maps.iter_mut().chain(self.members.iter_mut().map(|(_, map)| map)) {
            let addresses = std::iter::once(&mut map.handle).chain(&mut map.values).chain(&mut map.keys);
            for address in addresses {
                // Before the first run, the region's number.
                let index =
                    if *address < 1 << 36 { *address as usize } else { (*address >> 36) as usize - 1 };
                *address = moved[index].1;
            }
        }
        for region in &mut self.regions[RECORDS..RECORDS + RECORDS_MAX] {
            (region.read, region.write) = (false, false);
        }
        let members = |index: usize| self.members.iter().filter(move |(outer, _)| *outer as usize == index);
        self.handles = (0..self.maps.len())
            .map(|i| [vec![self.maps[i].handle], members(i).map(|(_, map)| map.handle).collect()])
            .collect();
        self.values = (0..self.maps.len())
            .map(|i| {
                let inner = members(i).flat_map(|(_, map)| map.values.clone()).collect();
                [self.maps[i].values.clone(), inner]
            })
            .collect();
    }

    fn fill_maps(&mut self) {
        for index in RECORDS + RECORDS_MAX..self.regions.len() {
            let region = self.regions[index];
            self.fill(region.at, region.bytes as usize);
        }
        if let Some(&value) = self.maps.get(maps::FROZEN as usize).and_then(|map| map.values.first()) {
            let at = self.regions[(value >> 36) as usize - 1].at;
            let contents = maps::frozen_contents();
            self.arena[at..at + contents.len()].copy_from_slice(&contents);
        }
    }

    /// A number that may get the program somewhere.
    pub fn pick(&mut self) -> u64 {
        if self.dictionary.is_empty() || self.numbers.percent(50) {
            return self.numbers.interesting();
        }
        let near = self.numbers.one_of(&self.dictionary);
        near.wrapping_add(self.numbers.below(3)).wrapping_sub(1)
    }

    /// Fills bytes of the arena with numbers of all sizes.
    fn fill(&mut self, at: usize, bytes: usize) {
        let mut done = 0;
        while done < bytes {
            let number = self.pick().to_le_bytes();
            let piece = self.numbers.one_of(&[1, 2, 4, 8, 8]).min(bytes - done);
            self.arena[at + done..at + done + piece].copy_from_slice(&number[..piece]);
            done += piece;
        }
    }

    fn fill_context(&mut self) {
        let writable = matches!(
            self.prog_type,
            ProgType::SYSCALL | ProgType::SCHED_CLS | ProgType::SCHED_ACT | ProgType::SOCKET_FILTER
        );
        let bytes = match self.prog_type {
            ProgType::KPROBE => 168,
            ProgType::TRACEPOINT => 8200,
            ProgType::RAW_TRACEPOINT | ProgType::RAW_TRACEPOINT_WRITABLE => 96,
            ProgType::PERF_EVENT => 168 + 16,
            ProgType::XDP => 24,
            ProgType::SYSCALL => 65535,
            _ => 192,
        };
        let region = &mut self.regions[CONTEXT];
        (region.bytes, region.write) = (bytes, writable);
        let at = region.at;
        self.fill(at, bytes.min(256) as usize);
        self.make_packet();
        let offsets = match self.prog_type {
            ProgType::XDP => [8, 0, 4],
            ProgType::SOCKET_FILTER | ProgType::SCHED_CLS | ProgType::SCHED_ACT => [140, 76, 80],
            _ => return,
        };
        for (offset, address) in offsets.into_iter().zip(self.packet_starts) {
            self.arena[at + offset..at + offset + 4].copy_from_slice(&(address as u32).to_le_bytes());
        }
    }

    fn make_packet(&mut self) {
        let meta = self.numbers.one_of(&[0, 4, 8, 32]);
        let data = if self.numbers.percent(50) { self.numbers.below(64) } else { self.pick() % 400 };
        let start = 0x1000_0000 + self.numbers.below(1 << 31);
        self.packet.start = start;
        self.packet.bytes = meta + data;
        (self.packet.read, self.packet.write) = (true, true);
        self.packet_starts = [start, start + meta, start + meta + data];
        self.fill(self.packet.at, (meta + data) as usize);
    }

    /// r1 of the program.
    pub fn context(&self) -> u64 {
        self.regions[CONTEXT].start
    }

    /// The frame that was entered last may use `bytes` below its r10 only.
    pub fn limit_frame(&mut self, bytes: u32) {
        let depth = self.frames.len();
        if depth > 0 && bytes as usize <= FRAME_BYTES {
            let region = &mut self.regions[depth - 1];
            region.start = self.frames[depth - 1] - u64::from(bytes);
            region.at = (depth - 1) * FRAME_BYTES + FRAME_BYTES - bytes as usize;
            region.bytes = bytes.into();
        }
    }

    fn region_of(&self, address: u64) -> &Region {
        const NOWHERE: &Region = &Region { start: 0, bytes: 0, at: 0, read: false, write: false };
        if address < 1 << 32 {
            return &self.packet;
        }
        ((address >> 36) as usize).checked_sub(1).and_then(|index| self.regions.get(index)).unwrap_or(NOWHERE)
    }

    /// Where in the arena these bytes are, when the program may touch them so.
    pub fn find(&self, address: u64, bytes: u64, write: bool) -> Result<usize, AccessError> {
        let region = self.region_of(address);
        let outside = AccessError::Outside { address, bytes: bytes as u32, write };
        let offset = address.checked_sub(region.start).ok_or(outside)?;
        let inside = offset.checked_add(bytes).is_some_and(|end| end <= region.bytes);
        let allowed = if write { region.write } else { region.read };
        if inside && allowed { Ok(region.at + offset as usize) } else { Err(outside) }
    }

    /// Bytes that a helper reads.
    pub fn bytes(&self, address: u64, len: u64) -> Result<&[u8], AccessError> {
        if len == 0 {
            return Ok(&[]);
        }
        let at = self.find(address, len, false)?;
        Ok(&self.arena[at..at + len as usize])
    }

    /// A helper writes something there.
    pub fn scribble(&mut self, address: u64, len: u64) -> Result<(), AccessError> {
        if len != 0 {
            let at = self.find(address, len, true)?;
            self.fill(at, len as usize);
        }
        Ok(())
    }

    /// Reserves a record; `None` when there is no room, or chance says so.
    pub fn reserve(&mut self, size: u32) -> Option<u64> {
        let slots = RECORDS..RECORDS + RECORDS_MAX;
        let free = slots.into_iter().find(|&slot| !self.regions[slot].read)?;
        if size as usize > RECORD_BYTES || self.numbers.percent(25) {
            return None;
        }
        let region = &mut self.regions[free];
        region.bytes = size.into();
        (region.read, region.write) = (true, true);
        let (start, at) = (region.start, region.at);
        self.fill(at, (size as usize).min(64));
        match self.records.iter_mut().find(|(known, _)| *known == size) {
            Some((_, starts)) => starts.push(start),
            None => self.records.push((size, vec![start])),
        }
        Some(start)
    }

    /// Takes a record back. False when there is none at this address.
    pub fn release(&mut self, address: u64) -> bool {
        let Some((_, starts)) = self.records.iter_mut().find(|(_, starts)| starts.contains(&address)) else {
            return false;
        };
        starts.retain(|&start| start != address);
        let region = &mut self.regions[(address >> 36) as usize - 1];
        (region.read, region.write) = (false, false);
        true
    }

    /// Records that are still held.
    pub fn records_held(&self) -> usize {
        self.records.iter().map(|(_, starts)| starts.len()).sum()
    }

    /// What the program left behind in maps and packet, and where its addresses do not matter.
    pub fn maps_of(&self, handle: u64) -> Option<(u32, bool, &Map)> {
        let own = self.maps.iter().enumerate().map(|(index, map)| (index as u32, false, map));
        let members = self.members.iter().map(|(outer, map)| (*outer, true, map));
        own.chain(members).find(|(_, _, map)| map.handle == handle)
    }
}

impl Moment for World {
    fn registers(&self) -> &[u64; 11] {
        &self.registers
    }

    fn frames(&self) -> &[u64] {
        &self.frames
    }

    fn stack(&self, address: u64) -> Option<[u8; 8]> {
        let at = self.find(address, 8, false).ok()?;
        self.arena[at..at + 8].try_into().ok()
    }

    fn starts(&self, thing: Thing) -> Option<&[u64]> {
        Some(match thing {
            Thing::Context => std::slice::from_ref(&self.regions[CONTEXT].start),
            Thing::Map { index, inner } => &self.handles[index as usize][usize::from(inner)],
            Thing::Value { index, inner } => &self.values[index as usize][usize::from(inner)],
            Thing::Key { index } => &self.maps[index as usize].keys,
            Thing::Record { size } => {
                self.records.iter().find(|(known, _)| *known == size).map_or(&[], |(_, starts)| starts)
            }
            Thing::PacketMeta => &self.packet_starts[..1],
            Thing::Packet => &self.packet_starts[1..2],
            Thing::PacketEnd => &self.packet_starts[2..],
            Thing::Function { start } => self.functions.get(start..start + 1)?,
        })
    }
}

/// The memory that the interpreter sees.
pub struct WorldMemory<'w>(pub &'w RefCell<World>);

impl WorldMemory<'_> {
    fn aligned(address: u64, size: Size) -> Result<(), AccessError> {
        let bytes = size.bytes();
        if address.is_multiple_of(bytes.into()) {
            Ok(())
        } else {
            Err(AccessError::Misaligned { address, bytes })
        }
    }

    fn replace(&mut self, address: u64, size: Size, new: impl Fn(u64) -> u64) -> Result<u64, AccessError> {
        WorldMemory::aligned(address, size)?;
        let old = self.load(address, size)?;
        self.store(address, size, new(old))?;
        Ok(old)
    }
}

impl Memory for WorldMemory<'_> {
    fn load(&mut self, address: u64, size: Size) -> Result<u64, AccessError> {
        let world = &mut *self.0.borrow_mut();
        let bytes = u64::from(size.bytes());
        let at = world.find(address, bytes, false)?;
        if address >> 36 == CONTEXT as u64 + 1 {
            world.context_reads.push(((address - world.regions[CONTEXT].start) as u32, bytes as u32));
        }
        let mut value = [0; 8];
        value[..bytes as usize].copy_from_slice(&world.arena[at..at + bytes as usize]);
        Ok(u64::from_le_bytes(value))
    }

    fn store(&mut self, address: u64, size: Size, value: u64) -> Result<(), AccessError> {
        let world = &mut *self.0.borrow_mut();
        let bytes = size.bytes() as usize;
        let at = world.find(address, bytes as u64, true)?;
        world.arena[at..at + bytes].copy_from_slice(&value.to_le_bytes()[..bytes]);
        Ok(())
    }

    fn load_acquire(&mut self, address: u64, size: Size) -> Result<u64, AccessError> {
        WorldMemory::aligned(address, size)?;
        self.load(address, size)
    }

    fn store_release(&mut self, address: u64, size: Size, value: u64) -> Result<(), AccessError> {
        WorldMemory::aligned(address, size)?;
        self.store(address, size, value)
    }

    fn fetch_update(
        &mut self,
        address: u64,
        size: Size,
        op: AtomicOp,
        operand: u64,
    ) -> Result<u64, AccessError> {
        self.replace(address, size, |old| match op {
            AtomicOp::Add => old.wrapping_add(operand),
            AtomicOp::Or => old | operand,
            AtomicOp::And => old & operand,
            AtomicOp::Xor => old ^ operand,
            _ => operand,
        })
    }

    fn compare_exchange(
        &mut self,
        address: u64,
        size: Size,
        expected: u64,
        new: u64,
    ) -> Result<u64, AccessError> {
        let mask = u64::MAX >> (64 - 8 * size.bytes());
        self.replace(address, size, |old| if old == expected & mask { new } else { old })
    }

    fn enter(&mut self) -> Result<u64, AccessError> {
        let world = &mut *self.0.borrow_mut();
        let depth = world.frames.len();
        if depth == FRAMES_MAX {
            return Err(AccessError::TooDeep);
        }
        let region = &mut world.regions[depth];
        region.bytes = FRAME_BYTES as u64;
        region.at = depth * FRAME_BYTES;
        let (at, pointer) = (region.at, region.start + FRAME_BYTES as u64);
        world.frames.push(pointer);
        // Whoever reads what was never written finds anything.
        for _ in 0..4 {
            let place = at + world.numbers.below(FRAME_BYTES as u64 - 64) as usize;
            world.fill(place, 64);
        }
        world.fill(at + FRAME_BYTES - 64, 64);
        Ok(pointer)
    }

    fn leave(&mut self) {
        let world = &mut *self.0.borrow_mut();
        if let Some(pointer) = world.frames.pop() {
            let region = &mut world.regions[world.frames.len()];
            region.start = pointer - FRAME_BYTES as u64;
            region.bytes = 0;
        }
    }
}
