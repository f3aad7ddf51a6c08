//! What the generator believes of registers and stack: enough to write programs that are accepted more often than not.

use crate::maps;

/// Where a pointer points.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Base {
    /// The stack of the current function; offset 0 is r10.
    Stack,
    /// A value of the map with this index.
    Value(u32),
    /// A value of a member of the map of maps.
    InnerValue,
    /// Packet data.
    Packet,
    /// A ring-buffer record, held until it is released.
    Record(u32),
    /// Memory of an argument, of so many bytes.
    Memory(u32),
}

/// What a register holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Thing {
    /// Nothing that may be read.
    Nothing,
    /// A number, at most this when it is known.
    Number(Option<u32>),
    /// The context.
    Context,
    /// `base + off + 0..=var`; of a packet, `range` bytes behind `base` are known to be there.
    Pointer {
        /// Region.
        base: Base,
        /// Constant part.
        off: i32,
        /// Greatest variable part.
        var: u32,
        /// Bytes of packet that are known.
        range: u32,
    },
    /// A pointer that may be null.
    Maybe(Base),
    /// A member of the map of maps, or null.
    MaybeMap,
    /// A member of the map of maps.
    InnerMap,
    /// The end of the packet.
    PacketEnd,
}

impl Thing {
    pub(super) const ANY: Thing = Thing::Number(None);

    /// A pointer to the start.
    pub(super) fn start(base: Base) -> Thing {
        Thing::Pointer { base, off: 0, var: 0, range: 0 }
    }

    pub(super) fn is_number(self) -> bool {
        matches!(self, Thing::Number(_))
    }

    pub(super) fn is_pointer(self) -> bool {
        matches!(self, Thing::Pointer { .. })
    }

    /// What is known of either.
    fn meet(self, other: Thing) -> Thing {
        match (self, other) {
            (a, b) if a == b => a,
            (Thing::Number(Some(a)), Thing::Number(Some(b))) => Thing::Number(Some(a.max(b))),
            (Thing::Number(_), Thing::Number(_)) => Thing::ANY,
            (
                Thing::Pointer { base, off, var, range },
                Thing::Pointer { base: b, off: o, var: v, range: r },
            ) if base == b && off == o && var == v => Thing::Pointer { base, off, var, range: range.min(r) },
            _ => Thing::Nothing,
        }
    }
}

/// Slots of stack that programs use: eight bytes each, slot n at r10 - 8 (n + 1).
pub(super) const SLOTS: usize = 16;

/// Registers and stack at one place.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Model {
    /// r0 to r9.
    pub(super) regs: [Thing; 10],
    /// What the slots hold; a number when they hold bytes.
    pub(super) slots: [Thing; SLOTS],
    /// Records held: the register or slot (16 + n) where one copy stays.
    pub(super) held: Vec<u8>,
}

impl Model {
    pub(super) fn new() -> Model {
        Model { regs: [Thing::Nothing; 10], slots: [Thing::Nothing; SLOTS], held: Vec::new() }
    }

    pub(super) fn meet(&mut self, other: &Model) {
        for (mine, theirs) in self.regs.iter_mut().zip(other.regs) {
            *mine = mine.meet(theirs);
        }
        for (mine, theirs) in self.slots.iter_mut().zip(other.slots) {
            *mine = mine.meet(theirs);
        }
        self.held.retain(|held| other.held.contains(held));
    }

    /// After a call.
    pub(super) fn clobber(&mut self) {
        self.regs[..6].fill(Thing::Nothing);
    }

    /// The bytes of a region, relative to its base.
    pub(super) fn extent(base: Base, range: u32) -> (i32, i32) {
        match base {
            Base::Stack => (-(8 * SLOTS as i32), 0),
            Base::Value(map) => (0, value_size(map) as i32),
            Base::InnerValue => (0, 16),
            Base::Packet => (0, range as i32),
            Base::Record(size) | Base::Memory(size) => (0, size as i32),
        }
    }
}

/// Bytes of a value.
pub(super) fn value_size(map: u32) -> u32 {
    match map {
        maps::ARRAY => 48,
        maps::GLOBAL => 64,
        maps::HASH => 24,
        maps::TINY => 1,
        maps::LARGE => 300,
        maps::FROZEN => 32,
        _ => 16,
    }
}
