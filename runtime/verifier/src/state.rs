//! The abstract state: registers, stack frames, references held.

use crate::bounds::Scalar;
use crate::graph::{NONE, Node};
use beeline_isa::Reg;

/// A map: one of the program's, or the member of a map of maps.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) struct MapRef {
    /// Index into the program's maps.
    pub(crate) index: u32,
    /// The members of that map are meant.
    pub(crate) inner: bool,
}

/// What a register holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    /// Nothing that may be read.
    Uninit,
    /// A number.
    Scalar,
    /// The program's context.
    Ctx,
    /// An address on the stack of frame number `frame`; the offset is relative to the frame's r10.
    Stack { frame: u8 },
    /// A map.
    MapPtr { map: MapRef, nullable: bool },
    /// A value of a map.
    MapValue { map: MapRef, nullable: bool },
    /// A key of a map, handed to a callback.
    MapKey { map: MapRef },
    /// Memory of a known size.
    Mem { size: u32, memory: Memory, nullable: bool },
    /// Packet data from its start.
    Packet,
    /// Packet meta data from its start.
    PacketMeta,
    /// The end of the packet.
    PacketEnd,
    /// A subprogram, as a callback.
    Func { subprogram: u16 },
    /// Half of a dynptr. Only stack slots hold it ([`Byte::Object`]); the `reference` of the slot names the dynptr.
    Dynptr { source: Source, first: bool },
    /// An iterator over numbers. Only stack slots hold it ([`Byte::Object`]); `reference` names it, `range` counts how many
    /// elements were taken on this path. Without `active` there are no more.
    Iter { active: bool },
    /// The address of a dynptr that a callback was given, and may only read.
    DynptrPtr,
    /// A kernel object by the id of its type, 0 = one that is not known.
    Btf { type_id: u32, trust: Trust, nullable: bool },
}

/// What a dynptr is made of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Source {
    /// Memory that outlives it: a map's value.
    Local,
    /// A ring-buffer record, to be submitted or discarded.
    Record,
}

/// How much a pointer to a kernel object is worth.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Trust {
    /// It is what its type says (`PTR_TRUSTED`).
    Trusted,
    /// It is, while RCU protects it (`MEM_RCU`).
    Rcu,
    /// It was read from an object: it may be null or stale, loads through it are probes. Helpers take it nevertheless.
    Walked,
    /// Anything may be behind it (`PTR_UNTRUSTED`).
    Untrusted,
}

/// Whose memory a [`Kind::Mem`] is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Memory {
    /// A ring-buffer record that was reserved.
    Ringbuf,
    /// An argument of a global subprogram.
    Argument,
    /// Part of a dynptr's; the register's `reference` names the dynptr.
    Dynptr,
    /// An iterator's element, which may be read; the register's `reference` names the iterator.
    Element,
}

impl Kind {
    /// True for all that is neither a number nor nothing.
    pub(crate) fn is_pointer(self) -> bool {
        !matches!(self, Kind::Uninit | Kind::Scalar)
    }

    /// True for a pointer that must be tested against 0 first.
    pub(crate) fn is_nullable(self) -> bool {
        matches!(
            self,
            Kind::MapPtr { nullable: true, .. }
                | Kind::MapValue { nullable: true, .. }
                | Kind::Mem { nullable: true, .. }
                | Kind::Btf { nullable: true, .. }
        )
    }

    /// The same, known not to be 0.
    pub(crate) fn non_null(self) -> Kind {
        match self {
            Kind::MapPtr { map, .. } => Kind::MapPtr { map, nullable: false },
            Kind::MapValue { map, .. } => Kind::MapValue { map, nullable: false },
            Kind::Mem { size, memory, .. } => Kind::Mem { size, memory, nullable: false },
            Kind::Btf { type_id, trust, .. } => Kind::Btf { type_id, trust, nullable: false },
            kind => kind,
        }
    }

    /// True for the three packet pointers with a position.
    pub(crate) fn is_packet(self) -> bool {
        matches!(self, Kind::Packet | Kind::PacketMeta)
    }

    /// The kernel's name (`reg_type_str`).
    pub(crate) fn name(self) -> &'static str {
        match self {
            Kind::Uninit => "?",
            Kind::Scalar => "scalar",
            Kind::Ctx => "ctx",
            Kind::Stack { .. } => "fp",
            Kind::MapPtr { nullable: false, .. } => "map_ptr",
            // The kernel's name of what a look-up in a map of maps gives.
            Kind::MapPtr { nullable: true, .. } => "map_value_or_null",
            Kind::MapValue { nullable: false, .. } => "map_value",
            Kind::MapValue { nullable: true, .. } => "map_value_or_null",
            Kind::MapKey { .. } => "map_key",
            Kind::Mem { memory: Memory::Ringbuf, nullable: false, .. } => "ringbuf_mem",
            Kind::Mem { memory: Memory::Ringbuf, nullable: true, .. } => "ringbuf_mem_or_null",
            Kind::Mem { memory: Memory::Argument, nullable: false, .. } => "mem",
            Kind::Mem { memory: Memory::Argument, nullable: true, .. } => "mem_or_null",
            Kind::Packet => "pkt",
            Kind::PacketMeta => "pkt_meta",
            Kind::PacketEnd => "pkt_end",
            Kind::Func { .. } => "func",
            Kind::Dynptr { .. } | Kind::DynptrPtr => "dynptr_ptr",
            Kind::Iter { .. } => "iter_num",
            Kind::Mem { memory: Memory::Element, nullable: false, .. } => "rdonly_mem",
            Kind::Mem { memory: Memory::Element, nullable: true, .. } => "rdonly_mem_or_null",
            Kind::Mem { memory: Memory::Dynptr, nullable: false, .. } => "mem",
            Kind::Mem { memory: Memory::Dynptr, nullable: true, .. } => "mem_or_null",
            Kind::Btf { trust: Trust::Trusted, nullable: false, .. } => "trusted_ptr_",
            Kind::Btf { trust: Trust::Trusted, nullable: true, .. } => "trusted_ptr_or_null_",
            Kind::Btf { trust: Trust::Rcu, nullable: false, .. } => "rcu_ptr_",
            Kind::Btf { trust: Trust::Rcu, nullable: true, .. } => "rcu_ptr_or_null_",
            Kind::Btf { trust: Trust::Walked, nullable: false, .. } => "ptr_",
            Kind::Btf { trust: Trust::Walked, nullable: true, .. } => "ptr_or_null_",
            Kind::Btf { trust: Trust::Untrusted, nullable: false, .. } => "untrusted_ptr_",
            Kind::Btf { trust: Trust::Untrusted, nullable: true, .. } => "untrusted_ptr_or_null_",
        }
    }
}

/// One register, or a register spilled to the stack.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) struct RegState {
    /// What it holds.
    pub(crate) kind: Kind,
    /// The number, or the variable part of a pointer's offset.
    pub(crate) value: Scalar,
    /// The fixed part of a pointer's offset in bytes.
    pub(crate) off: i32,
    /// Packet pointers: bytes from the start of the packet's variable part that are known to be there.
    pub(crate) range: u16,
    /// Packet pointers that were found to lie at the packet's end, or behind it. For the log: nothing may be read there, which
    /// `range` says too.
    pub(crate) end: PacketEnd,
    /// Numbers with the same id (not 0) are equal; nullable pointers with it are null together; packet pointers with it
    /// have the same variable part.
    pub(crate) id: u32,
    /// The reference that the pointer belongs to, 0 = none.
    pub(crate) reference: u32,
    /// Where the number came from, in the graph of precision.
    pub(crate) node: Node,
}

impl RegState {
    pub(crate) const UNINIT: RegState = RegState {
        kind: Kind::Uninit,
        value: Scalar::UNKNOWN,
        off: 0,
        range: 0,
        end: PacketEnd::Unknown,
        id: 0,
        reference: 0,
        node: NONE,
    };

    /// A number.
    pub(crate) const fn scalar(value: Scalar) -> RegState {
        RegState { kind: Kind::Scalar, value, ..RegState::UNINIT }
    }

    /// Any number.
    pub(crate) const fn unknown() -> RegState {
        RegState::scalar(Scalar::UNKNOWN)
    }

    /// The number `value`.
    pub(crate) const fn constant(value: u64) -> RegState {
        RegState::scalar(Scalar::constant(value))
    }

    /// A pointer to the start of something.
    pub(crate) const fn pointer(kind: Kind) -> RegState {
        RegState { kind, value: Scalar::constant(0), ..RegState::UNINIT }
    }

    /// The number, when it is a number and there is only one.
    pub(crate) fn as_const(&self) -> Option<u64> {
        if self.kind == Kind::Scalar { self.value.as_const() } else { None }
    }

    /// True for the number 0, which stands for a null pointer.
    pub(crate) fn is_null(&self) -> bool {
        self.as_const() == Some(0)
    }

    /// A pointer's whole offset, when it is a constant.
    pub(crate) fn const_offset(&self) -> Option<i64> {
        self.value.as_const().map(|variable| (variable as i64).wrapping_add(self.off.into()))
    }
}

/// Where a packet pointer lies, as far as a comparison with the packet's end has shown.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum PacketEnd {
    /// Nothing is known, or `range` says it.
    Unknown,
    /// At the end or behind it (`AT_PKT_END`).
    At,
    /// Behind it (`BEYOND_PKT_END`).
    Beyond,
}

/// What one byte of the stack holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Byte {
    /// Never written.
    Uninit,
    /// Part of a spilled register.
    Spill,
    /// Some number.
    Misc,
    /// 0.
    Zero,
    /// Part of something that only helpers touch: `Slot::spilled` says what.
    Object,
}

/// Eight bytes of the stack, aligned.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) struct Slot {
    /// In order of address.
    pub(crate) bytes: [Byte; 8],
    /// The register whose low bytes lie in the `Spill` bytes; those are always the first ones of the slot. Of `Object`
    /// bytes, which are all eight: what the object is.
    pub(crate) spilled: RegState,
    /// The contents, in the graph of reads.
    pub(crate) node: Node,
}

impl Slot {
    pub(crate) const UNINIT: Slot = Slot { bytes: [Byte::Uninit; 8], spilled: RegState::UNINIT, node: NONE };

    /// How many bytes of a register are spilled here, 0 = none.
    pub(crate) fn spill_size(&self) -> u32 {
        self.bytes.iter().take_while(|&&b| b == Byte::Spill).count() as u32
    }

    /// True when it is part of something that only helpers touch.
    pub(crate) fn is_object(&self) -> bool {
        self.bytes[0] == Byte::Object
    }

    /// True when a whole pointer is spilled here.
    pub(crate) fn holds_pointer(&self) -> bool {
        self.spill_size() == 8 && self.spilled.kind.is_pointer()
    }
}

/// One call's registers and stack.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Frame {
    /// r0 to r10.
    pub(crate) regs: [RegState; 11],
    /// Slot n is the bytes from r10 - 8 (n + 1).
    pub(crate) stack: Vec<Slot>,
    /// Which subprogram runs.
    pub(crate) subprogram: u16,
    /// The instruction of the call, in the frame below.
    pub(crate) callsite: u32,
    /// It was called by a helper: its return goes back to the call, and what it may return is bounded.
    pub(crate) callback: Option<Callback>,
    /// How often the current callback site of this frame has called back on this path.
    pub(crate) callback_depth: u32,
}

/// How a helper calls a subprogram back.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Callback {
    /// Greatest value it may return; the least is 0.
    pub(crate) returns_max: u32,
}

impl Frame {
    pub(crate) fn new(number: u8, subprogram: u16, callsite: u32) -> Frame {
        let mut regs = [RegState::UNINIT; 11];
        regs[10] = RegState::pointer(Kind::Stack { frame: number });
        Frame { regs, stack: Vec::new(), subprogram, callsite, callback: None, callback_depth: 0 }
    }

    /// Grows the stack to hold `bytes` below r10.
    pub(crate) fn reach(&mut self, bytes: u32) {
        let slots = bytes.div_ceil(8) as usize;
        if self.stack.len() < slots {
            self.stack.resize(slots, Slot::UNINIT);
        }
    }
}

/// Slot and byte in it of the address r10 + `off`, `off` negative.
pub(crate) fn place(off: i32) -> (usize, usize) {
    let below = (-1 - off) as usize;
    (below / 8, 7 - below % 8)
}

/// The whole state at an instruction.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct State {
    /// The call chain, innermost last.
    pub(crate) frames: Vec<Frame>,
    /// References held: id and the instruction that took it.
    pub(crate) references: Vec<(u32, u32)>,
    /// How often `may_goto` went on, on this path.
    pub(crate) may_goto_depth: u32,
    /// The spin lock that is held.
    pub(crate) lock: Option<Lock>,
}

/// A spin lock in a map's value.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Lock {
    /// The map.
    pub(crate) map: MapRef,
    /// Which look-up gave the value.
    pub(crate) id: u32,
}

impl State {
    pub(crate) fn frame(&self) -> &Frame {
        &self.frames[self.frames.len() - 1]
    }

    pub(crate) fn frame_mut(&mut self) -> &mut Frame {
        let last = self.frames.len() - 1;
        &mut self.frames[last]
    }

    pub(crate) fn reg(&self, reg: Reg) -> &RegState {
        &self.frame().regs[reg.index()]
    }

    pub(crate) fn set(&mut self, reg: Reg, to: RegState) {
        self.frame_mut().regs[reg.index()] = to;
    }

    /// Every register and every spilled register, of all frames.
    pub(crate) fn each_reg(&mut self) -> impl Iterator<Item = &mut RegState> {
        self.frames.iter_mut().flat_map(|frame| {
            let spilled = frame
                .stack
                .iter_mut()
                .filter(|slot| slot.bytes[0] == Byte::Spill)
                .map(|slot| &mut slot.spilled);
            frame.regs.iter_mut().chain(spilled)
        })
    }

    /// Bytes that a copy of the state takes, about.
    pub(crate) fn bytes(&self) -> usize {
        let slots: usize = self.frames.iter().map(|frame| frame.stack.len()).sum();
        size_of::<State>()
            + self.frames.len() * size_of::<Frame>()
            + slots * size_of::<Slot>()
            + size_of_val(&*self.references)
    }

    /// Registers and stack slots that a copy of the state takes.
    pub(crate) fn parts(&self) -> u64 {
        let parts = |frame: &Frame| frame.regs.len() + frame.stack.len();
        self.frames.iter().map(parts).sum::<usize>() as u64 + self.references.len() as u64 / 8
    }

    /// After a call: r0 to r5 hold nothing.
    pub(crate) fn clobber_caller_saved(&mut self) {
        for reg in &mut self.frame_mut().regs[..6] {
            *reg = RegState::UNINIT;
        }
    }
}
