//! Loads, stores, atomics, the frame.
//!
//! The frame belongs to the program alone. A load from a fixed place in it gets the value that the block stored there, as
//! long as nothing else may have written to the frame: another store through a pointer, an atomic operation, a call. All
//! other memory is shared, and each access is made once, in order; a `sequence_point` before each load, which costs no instruction,
//! tells Cranelift so.

use super::Body;
use super::Known;
use crate::arch;
use crate::error::CompileError;
use beeline_isa::{AtomicOp, Operand, Reg, Size};
use cranelift_codegen::ir::types::{I8, I16, I32, I64};
use cranelift_codegen::ir::{
    AtomicRmwOp, InstBuilder, MemFlagsData, StackSlotData, StackSlotKind, Type, Value,
};

/// Accesses do not trap as far as the code is concerned: the verifier has proven them.
pub(super) const ACCESS: MemFlagsData = MemFlagsData::new().with_notrap();

/// A load that may be made anywhere in the program, once or several times: where its value is used.
const CONSTANT: MemFlagsData = ACCESS.with_readonly().with_can_move();

/// A value in the frame.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stored {
    size: Size,
    /// The value as it was stored: of the type that the size has.
    value: Value,
}

/// The fields of [`beeline_isa::Op::Atomic`].
pub(super) struct Atomic {
    pub(super) size: Size,
    pub(super) op: AtomicOp,
    pub(super) fetch: bool,
    pub(super) base: Reg,
    pub(super) off: i16,
    pub(super) src: Reg,
}

impl Body<'_, '_> {
    /// The address `offset` bytes above the frame pointer (negative: in the frame).
    pub(super) fn frame_address(&mut self, offset: i32) -> Value {
        let Some(frame) = self.frame else { return self.frame_pointer };
        let size = self.builder.func.sized_stack_slots[frame].size as i32;
        let address = self.builder.ins().stack_addr(I64, frame, size + offset);
        self.known.insert(address, Known::Frame(offset));
        address
    }

    /// True when `bytes` at this offset from the frame pointer lie in the frame.
    pub(super) fn in_frame(&self, offset: i32, bytes: u32) -> bool {
        let Some(frame) = self.frame else { return false };
        let size = i64::from(self.builder.func.sized_stack_slots[frame].size);
        let start = size + i64::from(offset);
        start >= 0 && start + i64::from(bytes) <= size
    }

    /// The offset from the frame pointer when an access is to a fixed place in the frame.
    pub(super) fn frame_place(&self, base: Value, off: i16, bytes: u32) -> Option<i32> {
        let Some(Known::Frame(offset)) = self.known(base) else { return None };
        let place = offset + i32::from(off);
        self.in_frame(place, bytes).then_some(place)
    }

    pub(super) fn load(
        &mut self,
        size: Size,
        signed: bool,
        dst: Reg,
        base: Reg,
        off: i16,
    ) -> Result<(), CompileError> {
        let base = self.get(base);
        let value = match self.frame_place(base, off, size.bytes()) {
            Some(place) => self.load_frame(size, signed, place),
            None if self.code.constant_loads.contains(&self.pc) => {
                self.load_through(size, signed, CONSTANT, base, i32::from(off))
            }
            None => {
                self.builder.ins().sequence_point();
                self.load_shared(size, signed, base, i32::from(off))
            }
        };
        self.set(dst, value)
    }

    /// A load through an address that may be bad: by the helper that reads such memory, 0 where there is none.
    pub(super) fn probe_load(
        &mut self,
        size: Size,
        signed: bool,
        dst: Reg,
        base: Reg,
        off: i16,
    ) -> Result<(), CompileError> {
        let slot =
            self.builder.create_sized_stack_slot(StackSlotData::new(StackSlotKind::ExplicitSlot, 8, 3));
        let target = self.builder.ins().stack_addr(I64, slot, 0);
        let zero = self.constant(I64, 0);
        self.builder.ins().store(ACCESS, zero, target, 0);
        let base = self.get(base);
        let source = self.builder.ins().iadd_imm_s(base, i64::from(off));
        let bytes = self.constant(I64, i64::from(size.bytes()));
        self.call_probe_read([target, bytes, source]);
        let value = self.load_shared(size, signed, target, 0);
        self.set(dst, value)
    }

    /// The value at a place in the frame, extended.
    pub(super) fn load_frame(&mut self, size: Size, signed: bool, place: i32) -> Value {
        let value = match self.frame_values.get(&place) {
            Some(stored) if stored.size == size => stored.value,
            _ => {
                let address = self.frame_address(place);
                self.builder.ins().load(size_type(size), ACCESS, address, 0)
            }
        };
        match (size, signed) {
            (Size::DW, _) => value,
            (_, true) => self.builder.ins().sextend(I64, value),
            (_, false) => self.builder.ins().uextend(I64, value),
        }
    }

    fn load_shared(&mut self, size: Size, signed: bool, address: Value, off: i32) -> Value {
        self.load_through(size, signed, ACCESS, address, off)
    }

    fn load_through(
        &mut self,
        size: Size,
        signed: bool,
        access: MemFlagsData,
        address: Value,
        off: i32,
    ) -> Value {
        let ins = self.builder.ins();
        match (size, signed) {
            (Size::B, false) => ins.uload8(I64, access, address, off),
            (Size::B, true) => ins.sload8(I64, access, address, off),
            (Size::H, false) => ins.uload16(I64, access, address, off),
            (Size::H, true) => ins.sload16(I64, access, address, off),
            (Size::W, false) => ins.uload32(access, address, off),
            (Size::W, true) => ins.sload32(access, address, off),
            (Size::DW, _) => ins.load(I64, access, address, off),
        }
    }

    /// Reads a 32-bit field of a structure of ours, zero-extended.
    pub(super) fn load_field32(&mut self, address: Value, offset: usize) -> Value {
        self.builder.ins().uload32(ACCESS, address, offset as i32)
    }

    /// Reads a 64-bit field of a structure of ours.
    pub(super) fn load_field64(&mut self, address: Value, offset: usize) -> Value {
        self.builder.ins().load(I64, ACCESS, address, offset as i32)
    }

    /// Writes a 32-bit field of a structure of ours.
    pub(super) fn store_field32(&mut self, value: Value, address: Value, offset: usize) {
        self.builder.ins().istore32(ACCESS, value, address, offset as i32);
    }

    pub(super) fn store(&mut self, size: Size, base: Reg, off: i16, src: Operand) {
        let base = self.get(base);
        let value = match src {
            Operand::Reg(register) => self.get(register),
            Operand::Imm(number) => self.constant(I64, i64::from(number)),
        };
        let value = self.narrow(size, value);
        let (address, off) = match self.frame_place(base, off, size.bytes()) {
            Some(place) => {
                self.stored(place, size, value);
                (self.frame_address(place), 0)
            }
            None => {
                // No sequence point: it would keep a load of the same place from becoming one instruction with the store.
                self.frame_values.clear();
                (base, i32::from(off))
            }
        };
        self.builder.ins().store(ACCESS, value, address, off);
    }

    /// Remembers a value in the frame and forgets those that it overwrites, wholly or in part.
    fn stored(&mut self, place: i32, size: Size, value: Value) {
        let end = place + size.bytes() as i32;
        self.frame_values
            .retain(|&other, stored| other >= end || other + stored.size.bytes() as i32 <= place);
        self.frame_values.insert(place, Stored { size, value });
    }

    pub(super) fn atomic(&mut self, atomic: Atomic) -> Result<(), CompileError> {
        self.frame_values.clear();
        let base = self.get(atomic.base);
        let address = self.builder.ins().iadd_imm_s(base, i64::from(atomic.off));
        let ty = size_type(atomic.size);
        match atomic.op {
            AtomicOp::LoadAcquire => {
                let value = self.builder.ins().atomic_load(ty, ACCESS, address);
                return self.set_zero_extended(atomic.src, value);
            }
            AtomicOp::StoreRelease => {
                let value = self.get(atomic.src);
                let value = self.narrow(atomic.size, value);
                arch::store_release(&mut self.builder, value, address);
                return Ok(());
            }
            _ => {}
        }
        let value = self.get(atomic.src);
        let value = self.narrow(atomic.size, value);
        if atomic.op == AtomicOp::Cmpxchg {
            let expected = self.get(Reg::R0);
            let expected = self.narrow(atomic.size, expected);
            let old = self.builder.ins().atomic_cas(ACCESS, address, expected, value);
            return self.set_zero_extended(Reg::R0, old);
        }
        let op = match atomic.op {
            AtomicOp::Add => AtomicRmwOp::Add,
            AtomicOp::Or => AtomicRmwOp::Or,
            AtomicOp::And => AtomicRmwOp::And,
            AtomicOp::Xor => AtomicRmwOp::Xor,
            _ => AtomicRmwOp::Xchg,
        };
        let old = self.builder.ins().atomic_rmw(ty, ACCESS, op, address, value);
        if atomic.fetch { self.set_zero_extended(atomic.src, old) } else { Ok(()) }
    }

    fn narrow(&mut self, size: Size, value: Value) -> Value {
        if size == Size::DW { value } else { self.builder.ins().ireduce(size_type(size), value) }
    }

    fn set_zero_extended(&mut self, dst: Reg, value: Value) -> Result<(), CompileError> {
        let narrow = self.builder.func.dfg.value_type(value) != I64;
        let value = if narrow { self.builder.ins().uextend(I64, value) } else { value };
        self.set(dst, value)
    }
}

fn size_type(size: Size) -> Type {
    match size {
        Size::B => I8,
        Size::H => I16,
        Size::W => I32,
        Size::DW => I64,
    }
}
