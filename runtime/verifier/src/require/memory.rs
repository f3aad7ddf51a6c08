//! What an access to memory requires, by what the address points to.

use crate::context;
use crate::explore::Explorer;
use crate::refusal::{Checked, refuse};
use crate::require::pointer::OFFSET_MAX;
use crate::state::{Kind, MapRef, Memory, PacketEnd, RegState};
use crate::tnum::Tnum;
use beeline_abi::map::MapFlags;
use beeline_isa::Reg;

/// What an instruction or a helper does with memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Access {
    Read,
    Write,
}

/// An access: through which register, where, how much.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Target<'a> {
    /// The register's number.
    pub(crate) reg: Reg,
    /// What it holds.
    pub(crate) pointer: &'a RegState,
    /// Bytes beyond it.
    pub(crate) off: i32,
    /// Bytes accessed, 0 only where that is allowed.
    pub(crate) size: u32,
}

impl Target<'_> {
    /// The fixed part of the offset from the start of the region.
    pub(crate) fn fixed(&self) -> i64 {
        i64::from(self.pointer.off) + i64::from(self.off)
    }

    /// The access lies inside a region of `region` bytes for every value that the offset can have. `line` is what to say
    /// of an access at an offset that does not.
    fn inside(&self, region: u32, line: impl Fn(i64) -> String) -> Checked {
        let (number, fixed, value) = (self.reg.0, self.fixed(), &self.pointer.value);
        let fits = |at: i64| at >= 0 && at + i64::from(self.size) <= i64::from(region);
        let least = value.smin.saturating_add(fixed);
        if value.smin < 0 && least < 0 {
            refuse!(
                "R{number} min value is negative, either use unsigned index or do a if (index >=0) check."
            );
        }
        if !fits(least) {
            refuse!("{}\nR{number} min value is outside of the allowed memory range", line(least));
        }
        if value.umax >= OFFSET_MAX as u64 {
            refuse!("R{number} unbounded memory access, make sure to bounds check any such access");
        }
        let most = value.umax as i64 + fixed;
        if !fits(most) {
            refuse!("{}\nR{number} max value is outside of the allowed memory range", line(most));
        }
        Ok(())
    }

    /// The pointer was not moved by anything unknown.
    fn constant_offset(&self, what: &str) -> Checked<i64> {
        match self.pointer.const_offset() {
            Some(off) => Ok(off + i64::from(self.off)),
            None => refuse!("variable {what} access var_off={} disallowed", self.pointer.value.tnum),
        }
    }
}

impl Explorer<'_> {
    /// The access is aligned where that matters: on the stack always, elsewhere when asked for.
    pub(crate) fn aligned(&self, target: &Target) -> Checked {
        self.alignment(target, self.options.strict_alignment)
    }

    /// The access is aligned: atomic operations are, everywhere.
    pub(crate) fn naturally_aligned(&self, target: &Target) -> Checked {
        self.alignment(target, true)
    }

    fn alignment(&self, target: &Target, strict: bool) -> Checked {
        let (what, base) = match target.pointer.kind {
            Kind::Stack { .. } => ("stack ", 0),
            _ if !strict => return Ok(()),
            // The network headers of a packet start two bytes off a word.
            Kind::Packet | Kind::PacketMeta => ("packet ", 2),
            Kind::MapValue { .. } => ("value ", 0),
            Kind::Ctx => ("context ", 0),
            _ => ("", 0),
        };
        let fixed = Tnum::constant((target.fixed() + base) as u64);
        if target.pointer.value.tnum.add(fixed).is_aligned(target.size.into()) {
            return Ok(());
        }
        let (variable, off) = (target.pointer.value.tnum, target.pointer.off);
        let base = if base != 0 { format!("{base}+") } else { String::new() };
        refuse!("misaligned {what}access off {base}{variable}+{off}+{} size {}", target.off, target.size)
    }

    /// An access to a map's value.
    pub(crate) fn map_value(&self, target: &Target, map: MapRef, access: Access) -> Checked {
        let info = self.map(map)?;
        let (value_size, flags) = (info.shape.value_size, info.shape.map_flags);
        let (off, size) = (target.fixed(), target.size);
        if access == Access::Write && flags & MapFlags::RDONLY_PROG != 0 {
            refuse!("write into map forbidden, value_size={value_size} off={off} size={size}");
        }
        if access == Access::Read && flags & MapFlags::WRONLY_PROG != 0 {
            refuse!("read from map forbidden, value_size={value_size} off={off} size={size}");
        }
        target.inside(value_size, |off| {
            format!("invalid access to map value, value_size={value_size} off={off} size={size}")
        })?;
        let least = target.pointer.value.smin.saturating_add(off);
        let end = (target.pointer.value.umax as i64).saturating_add(off) + i64::from(size);
        for field in &info.special {
            let start = i64::from(field.offset);
            if least < start + i64::from(field.kind.size()) && start < end {
                refuse!("{} cannot be accessed directly by load/store", field.kind.name());
            }
        }
        Ok(())
    }

    /// An access to a map's key in a callback.
    pub(crate) fn map_key(&self, target: &Target, map: MapRef, access: Access) -> Checked {
        let key_size = self.map(map)?.shape.key_size;
        if access == Access::Write {
            refuse!("write to change key R{} not allowed", target.reg.0);
        }
        target.inside(key_size, |off| {
            format!("invalid access to map key, key_size={key_size} off={off} size={}", target.size)
        })
    }

    /// Memory that may not be written is not.
    pub(crate) fn writable(&self, reg: Reg, memory: Memory, access: Access) -> Checked {
        if access == Access::Write && memory == Memory::Element {
            refuse!("R{} cannot write into rdonly_mem", reg.0);
        }
        Ok(())
    }

    /// An access to memory of a known size.
    pub(crate) fn sized_memory(&self, target: &Target, region: u32) -> Checked {
        target.inside(region, |off| {
            format!("invalid access to memory, mem_size={region} off={off} size={}", target.size)
        })
    }

    /// An access to packet data: inside the part that a comparison with the packet's end has shown to be there.
    pub(crate) fn packet(&self, target: &Target, access: Access) -> Checked {
        if access == Access::Write && !context::may_write_packet(self.program.prog_type) {
            refuse!("cannot write into packet");
        }
        let (number, range) = (target.reg.0, target.pointer.range);
        if target.pointer.value.smin < 0 {
            refuse!(
                "R{number} min value is negative, either use unsigned index or do a if (index >=0) check."
            );
        }
        let (off, size) = (target.fixed(), target.size);
        if off < 0 || off + i64::from(size) > i64::from(range) {
            let id = target.pointer.id;
            if target.pointer.end != PacketEnd::Unknown {
                refuse!("R{number} offset is outside of the packet");
            }
            refuse!(
                "invalid access to packet, off={off} size={size}, R{number}(id={id},off={off},r={range})\n\
                 R{number} offset is outside of the packet"
            );
        }
        Ok(())
    }

    /// An access to the context; gives what is there.
    pub(crate) fn context(&self, target: &Target, access: Access) -> Checked<context::Field> {
        let (number, moved) = (target.reg.0, target.pointer.off);
        let any_offset = self.program.prog_type == crate::ProgType::SYSCALL;
        if moved < 0 {
            refuse!("negative offset ctx ptr R{number} off={moved} disallowed");
        }
        if moved != 0 && !any_offset {
            refuse!("dereference of modified ctx ptr R{number} off={moved} disallowed");
        }
        let off = target.constant_offset("ctx")?;
        if off != i64::from(target.off) && !any_offset {
            refuse!("variable ctx access var_off={} disallowed", target.pointer.value.tnum);
        }
        let field = i32::try_from(off).ok().and_then(|off| {
            context::field(self.program.prog_type, off, target.size, access == Access::Write)
        });
        match field {
            Some(field) => Ok(field),
            None => refuse!("invalid bpf_context access off={off} size={}", target.size),
        }
    }
}
