//! A program's file: everything that was proven and compiled at load.

use crate::link::Target;
use beeline_abi::code::{HostValue, ProgramNeeds, Reloc};
use beeline_isa::Insn;
use beeline_jit::CodeImage;
use serde::{Deserialize, Serialize};

/// A program in the store.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Program {
    /// Its id in the store.
    pub id: u32,
    /// Name of its function.
    pub name: String,
    /// The ELF section that it came from.
    pub section: String,
    /// `BPF_PROG_TYPE_*`.
    pub prog_type: u32,
    /// `BPF_*` attach type expected at load.
    pub expected_attach_type: u32,
    /// Tells versions of a program apart: [`tag`] of its instructions.
    pub tag: u64,
    /// The object's licence.
    pub license: String,
    /// The verified instructions, in the order in which they were verified.
    #[serde(with = "insn_bytes")]
    pub insns: Vec<Insn>,
    /// Machine code, position-independent but for `relocs`. The entry is its first byte.
    pub code: Vec<u8>,
    /// What has to be filled in where it is linked.
    pub relocs: Vec<Reloc>,
    /// Functions in `code`.
    pub functions: Vec<Function>,
    /// For `dump jited`: an instruction, and the offset in `code` at which code of it begins; in order of offset.
    pub code_offsets: Vec<(u32, u32)>,
    /// What a stub must provide.
    pub needs: ProgramNeeds,
    /// Map ids by the index that instructions and relocations use.
    pub map_ids: Vec<u32>,
    /// Functions of the target that it calls, by the index that relocations use.
    pub host_functions: Vec<HostFunction>,
    /// Subprograms: first instruction and name.
    pub subprograms: Vec<(u32, String)>,
    /// Source lines: first instruction and text.
    pub lines: Vec<(u32, String)>,
    /// What the verifier did.
    pub verified: VerifierStats,
    /// CLOCK_REALTIME seconds at which it was loaded.
    pub loaded_at: u64,
    /// User id of the loader.
    pub uid: u32,
    /// True when the object was compiled for sleepable use (`SEC("uprobe.s")`).
    pub sleepable: bool,
}

/// A function of the target.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct HostFunction {
    /// Its name in the object.
    pub name: String,
    /// Where it is: one place.
    pub target: Target,
    /// What it takes.
    pub args: Vec<HostValue>,
    /// What it returns.
    pub returns: HostValue,
}

/// A function inside of a program's machine code.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Function {
    /// Its name.
    pub name: String,
    /// Byte offset of its first instruction.
    pub offset: u32,
    /// Its length in bytes.
    pub len: u32,
}

/// What the verifier reports of a program that it accepted.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct VerifierStats {
    /// Instructions that it walked, over all paths.
    pub insns_processed: u64,
    /// States that it kept.
    pub states: u64,
    /// Nanoseconds that it took.
    pub time_ns: u64,
}

impl Program {
    /// The same with this code.
    pub(crate) fn with_code(self, image: &CodeImage) -> Program {
        let image = image.image();
        let function =
            |it: &beeline_jit::Function| Function { name: it.name.clone(), offset: it.offset, len: it.len };
        Program {
            code: image.code.clone(),
            relocs: image.relocs.clone(),
            functions: image.functions.iter().map(function).collect(),
            code_offsets: image.places.iter().map(|place| (place.pc, place.offset)).collect(),
            ..self
        }
    }
}

/// The tag of a program: 64-bit FNV-1a over its instructions.
pub fn tag(insns: &[Insn]) -> u64 {
    insns.iter().flat_map(|insn| insn.to_bytes()).fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

/// Instructions are kept as they lie in an ELF section.
mod insn_bytes {
    use beeline_isa::Insn;
    use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};

    pub(super) fn serialize<S: Serializer>(insns: &[Insn], serializer: S) -> Result<S::Ok, S::Error> {
        insns.iter().map(|insn| u64::from_le_bytes(insn.to_bytes())).collect::<Vec<_>>().serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Insn>, D::Error> {
        let words = Vec::<u64>::deserialize(deserializer).map_err(D::Error::custom)?;
        Ok(words.into_iter().map(|word| Insn::from_bytes(word.to_le_bytes())).collect())
    }
}
