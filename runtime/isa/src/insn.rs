//! One instruction slot: eight bytes, little-endian.

/// A register number, 0 to 10. R10 is the read-only frame pointer.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Reg(pub u8);

impl Reg {
    /// Return value.
    pub const R0: Reg = Reg(0);
    /// First argument; the context at entry.
    pub const R1: Reg = Reg(1);
    /// Second argument.
    pub const R2: Reg = Reg(2);
    /// Third argument.
    pub const R3: Reg = Reg(3);
    /// Fourth argument.
    pub const R4: Reg = Reg(4);
    /// Fifth argument.
    pub const R5: Reg = Reg(5);
    /// First callee-saved register.
    pub const R6: Reg = Reg(6);
    /// Callee-saved.
    pub const R7: Reg = Reg(7);
    /// Callee-saved.
    pub const R8: Reg = Reg(8);
    /// Last callee-saved register.
    pub const R9: Reg = Reg(9);
    /// Frame pointer, read-only.
    pub const R10: Reg = Reg(10);

    /// The number as an index into an eleven-entry register file.
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

/// One instruction slot as `struct bpf_insn` (`include/uapi/linux/bpf.h`).
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Insn {
    /// Opcode: class in the low three bits.
    pub code: u8,
    /// Destination register in the low nibble, source register in the high one.
    pub regs: u8,
    /// Signed offset: of a jump in instruction slots, of a memory access in bytes.
    pub off: i16,
    /// Signed 32-bit immediate.
    pub imm: i32,
}

const _: () = assert!(size_of::<Insn>() == 8);

impl Insn {
    /// Builds an instruction from its fields. `dst` and `src` are nibbles.
    pub const fn new(code: u8, dst: u8, src: u8, off: i16, imm: i32) -> Insn {
        Insn { code, regs: (dst & 0xf) | (src << 4), off, imm }
    }

    /// Destination register number, 0 to 15 (above 10 is invalid).
    pub const fn dst(self) -> u8 {
        self.regs & 0xf
    }

    /// Source register number or pseudo kind, 0 to 15.
    pub const fn src(self) -> u8 {
        self.regs >> 4
    }

    /// The same instruction with another source nibble.
    pub const fn with_src(self, src: u8) -> Insn {
        Insn { regs: self.dst() | (src << 4), ..self }
    }

    /// The eight bytes as they lie in a little-endian ELF section.
    pub const fn to_bytes(self) -> [u8; 8] {
        let off = self.off.to_le_bytes();
        let imm = self.imm.to_le_bytes();
        [self.code, self.regs, off[0], off[1], imm[0], imm[1], imm[2], imm[3]]
    }

    /// Reads an instruction from its eight little-endian bytes.
    pub const fn from_bytes(b: [u8; 8]) -> Insn {
        Insn {
            code: b[0],
            regs: b[1],
            off: i16::from_le_bytes([b[2], b[3]]),
            imm: i32::from_le_bytes([b[4], b[5], b[6], b[7]]),
        }
    }

    /// True for the first slot of the two-slot `ld_imm64`.
    pub const fn is_wide(self) -> bool {
        self.code == crate::opcode::LD_IMM64
    }
}
