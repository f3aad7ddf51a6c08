//! What loads and stores do: to the register that receives, to the stack.

use crate::bounds::Scalar;
use crate::explore::Explorer;
use crate::graph::{NONE, Node};
use crate::refusal::{Checked, refuse};
use crate::require::stack::Span;
use crate::state::{Byte, Kind, RegState, Slot, place};

/// A value of `size` bytes of which nothing is known, as a load widens it.
pub(crate) fn loaded(size: u32, signed: bool) -> RegState {
    let bits = size * 8;
    RegState::scalar(if signed { Scalar::UNKNOWN.sign_extend(bits) } else { Scalar::of_bits(bits) })
}

/// A known value of `size` bytes, as a load widens it.
pub(crate) fn loaded_constant(raw: u64, size: u32, signed: bool) -> RegState {
    let set = Scalar::constant(raw);
    RegState::scalar(if signed { set.sign_extend(size * 8) } else { set.zero_extend(size * 8) })
}

impl Explorer<'_> {
    /// The stack of frame `frame` is used down to `span.least`.
    pub(crate) fn reach(&mut self, frame: u8, span: Span) {
        let bytes = (-span.least) as u32;
        let frame = &mut self.state.frames[usize::from(frame)];
        frame.reach(bytes);
        self.facts.stack_used(frame.subprogram, bytes);
    }

    /// Whoever left contents in these bytes is read.
    fn mark_read(&mut self, frame: u8, span: Span) {
        for off in span.least..span.end {
            let (slot, _) = place(off);
            if let Some(slot) = self.state.frames[usize::from(frame)].stack.get(slot) {
                self.reads.mark(slot.node);
            }
        }
    }

    /// Loads `size` bytes from the stack.
    pub(crate) fn load_stack(&mut self, frame: u8, span: Span, size: u32, signed: bool) -> Checked<RegState> {
        self.reach(frame, span);
        self.mark_read(frame, span);
        self.log.touch_stack(span.least, span.end);
        if !span.is_fixed() {
            return self.load_somewhere(frame, span, size, signed);
        }
        let (index, first) = place(span.least);
        let slot = self.state.frames[usize::from(frame)].stack[index];
        if slot.is_object() {
            refuse!("invalid read from stack off {}+{first} size {size}", span.least - first as i32);
        }
        if first == 0 && slot.bytes[0] == Byte::Spill {
            return self.fill(frame, index, &slot, size, signed);
        }
        let bytes = &slot.bytes[first..first + size as usize];
        if bytes.iter().all(|&byte| byte == Byte::Zero) {
            return Ok(RegState::constant(0));
        }
        if slot.holds_pointer() {
            refuse!("invalid size of register fill");
        }
        Ok(loaded(size, signed))
    }

    /// Loads from the start of a slot with a spilled register.
    fn fill(&mut self, frame: u8, index: usize, slot: &Slot, size: u32, signed: bool) -> Checked<RegState> {
        let spilled = slot.spill_size();
        if slot.spilled.kind != Kind::Scalar {
            if size != 8 || spilled != 8 {
                refuse!("invalid size of register fill");
            }
            return Ok(slot.spilled);
        }
        if size > spilled {
            return Ok(loaded(size, signed));
        }
        let mut value = slot.spilled;
        if size == 8 && value.id == 0 && value.as_const().is_none() {
            value = self.with_id(value);
            self.state.frames[usize::from(frame)].stack[index].spilled = value;
        }
        if size < 8 {
            let whole = value.value.umax <= u64::MAX >> (64 - size * 8);
            value.value =
                if signed { value.value.sign_extend(size * 8) } else { value.value.zero_extend(size * 8) };
            if !whole || signed {
                value.id = 0;
            }
        }
        Ok(value)
    }

    /// Loads from an address on the stack that is not known exactly.
    fn load_somewhere(&mut self, frame: u8, span: Span, size: u32, signed: bool) -> Checked<RegState> {
        self.no_object(frame, span, "read from")?;
        let mut zero = true;
        for off in span.least..span.end {
            let (index, byte) = place(off);
            let slot = self.state.frames[usize::from(frame)].stack[index];
            zero &= slot.bytes[byte] == Byte::Zero;
            if slot.holds_pointer() {
                self.pointer_read_as_number(&slot.spilled);
            }
        }
        Ok(if zero { RegState::constant(0) } else { loaded(size, signed) })
    }

    /// A number that shares its identity with its copies.
    pub(crate) fn with_id(&mut self, mut reg: RegState) -> RegState {
        reg.id = self.fresh_id();
        if reg.node == NONE {
            reg.node = self.precision.node([NONE; 2]);
        }
        reg
    }

    /// An address is treated as a number: if it is the context's, anyone may read it.
    pub(crate) fn pointer_read_as_number(&mut self, reg: &RegState) {
        if reg.kind == Kind::Ctx {
            self.facts.context_escapes();
        }
    }

    /// Stores `size` bytes of `value` to the stack.
    pub(crate) fn store_stack(&mut self, frame: u8, span: Span, size: u32, value: &RegState) -> Checked {
        self.reach(frame, span);
        self.log.touch_stack(span.least, span.end);
        self.overwrite_objects(frame, span)?;
        if !span.is_fixed() {
            self.store_somewhere(frame, span, value);
            return Ok(());
        }
        let (index, first) = place(span.least);
        let spills = first == 0 && (size == 8 || value.kind == Kind::Scalar);
        let zero = value.is_null() && !spills;
        if zero {
            self.mark_precise(value);
        }
        let old = self.state.frames[usize::from(frame)].stack[index];
        if size < 8 && old.holds_pointer() {
            self.pointer_read_as_number(&old.spilled);
        }
        let node = if size == 8 { self.reads.node([NONE; 2]) } else { self.partly_written(old.node) };
        let slot = &mut self.state.frames[usize::from(frame)].stack[index];
        *slot =
            if size == 8 { Slot { node, ..Slot::UNINIT } } else { Slot { node, ..unspilled(&old, first) } };
        let byte = if spills {
            Byte::Spill
        } else if zero {
            Byte::Zero
        } else {
            Byte::Misc
        };
        slot.bytes[first..first + size as usize].fill(byte);
        if spills {
            slot.spilled = *value;
            if size < 8 {
                // The value stays whole, as the kernel's: a load takes its low bytes.
                if value.value.umax > u64::MAX >> (64 - size * 8) {
                    slot.spilled.id = 0;
                }
            }
        } else if value.kind.is_pointer() {
            let pointer = *value;
            self.pointer_read_as_number(&pointer);
        }
        Ok(())
    }

    /// The contents of a slot that keeps some of its old bytes.
    fn partly_written(&mut self, old: Node) -> Node {
        if old == NONE { self.reads.node([NONE; 2]) } else { old }
    }

    /// Stores to an address on the stack that is not known exactly: each byte it may reach holds the old or the new value.
    fn store_somewhere(&mut self, frame: u8, span: Span, value: &RegState) {
        let zero = value.is_null();
        if zero {
            self.mark_precise(value);
        }
        self.pointer_read_as_number(value);
        for off in span.least..span.end {
            let (index, byte) = place(off);
            let old = self.state.frames[usize::from(frame)].stack[index];
            // A spilled register with a byte overwritten is no register any more.
            let keeps_zero = zero && old.bytes[byte] == Byte::Zero;
            let node = self.partly_written(old.node);
            let slot = &mut self.state.frames[usize::from(frame)].stack[index];
            *slot = Slot { node, ..unspilled(&old, byte) };
            slot.bytes[byte] = if keeps_zero { Byte::Zero } else { Byte::Misc };
            if old.holds_pointer() {
                self.pointer_read_as_number(&old.spilled);
            }
        }
    }

    /// A helper reads these bytes of the stack, and may write them.
    pub(crate) fn helper_reads_stack(&mut self, frame: u8, span: Span, writes: bool) -> Checked {
        self.reach(frame, span);
        self.no_object(frame, span, "read from")?;
        self.mark_read(frame, span);
        for off in span.least..span.end {
            let (index, byte) = place(off);
            let old = self.state.frames[usize::from(frame)].stack[index];
            if old.holds_pointer() {
                self.pointer_read_as_number(&old.spilled);
            }
            if writes {
                let slot = &mut self.state.frames[usize::from(frame)].stack[index];
                *slot = Slot { node: old.node, ..unspilled(&old, byte) };
                slot.bytes[byte] = Byte::Misc;
            }
        }
        Ok(())
    }

    /// A helper overwrites all of these bytes without reading them.
    pub(crate) fn helper_writes_stack(&mut self, frame: u8, span: Span) -> Checked {
        let mut off = span.least;
        self.reach(frame, span);
        self.log.touch_stack(span.least, span.end);
        self.no_dynptr(frame, span)?;
        self.overwrite_objects(frame, span)?;
        while off < span.end {
            let (_, first) = place(off);
            let piece = (8 - first as i32).min(span.end - off);
            let at = Span { least: off, most: off, end: off + piece };
            self.overwrite(frame, at, piece as usize);
            off += piece;
        }
        Ok(())
    }

    fn overwrite(&mut self, frame: u8, at: Span, size: usize) {
        let (index, first) = place(at.least);
        let old = self.state.frames[usize::from(frame)].stack[index];
        if size < 8 && old.holds_pointer() {
            self.pointer_read_as_number(&old.spilled);
        }
        let node = if size == 8 { self.reads.node([NONE; 2]) } else { self.partly_written(old.node) };
        let slot = &mut self.state.frames[usize::from(frame)].stack[index];
        *slot = Slot { node, ..unspilled(&old, first) };
        slot.bytes[first..first + size].fill(Byte::Misc);
    }
}

/// The slot before bytes from `first` are overwritten: a spilled register that they touch turns into plain bytes.
fn unspilled(slot: &Slot, first: usize) -> Slot {
    let mut slot = *slot;
    if first < slot.spill_size() as usize {
        for byte in slot.bytes.iter_mut().filter(|byte| **byte == Byte::Spill) {
            *byte = Byte::Misc;
        }
        slot.spilled = RegState::UNINIT;
    }
    slot
}
