//! What can be wrong with an object, each with the place.

use crate::btf::BtfError;
use crate::core_relo::CoReError;

/// Why an object is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ObjectError {
    /// The file does not begin with the ELF magic.
    #[error("not an ELF file")]
    NotElf,
    /// An ELF file of another machine.
    #[error("not a BPF object: it is for {machine}; compile with clang -g -O2 -target bpf")]
    NotBpf {
        /// Which machine.
        machine: String,
    },
    /// A 32-bit ELF file.
    #[error("not a 64-bit ELF file")]
    Not64Bit,
    /// Compiled with `-target bpfeb`.
    #[error("a big-endian object cannot run on this machine; compile with -target bpf or -target bpfel")]
    BigEndian,
    /// Linked into something that is not a relocatable object.
    #[error("not a relocatable object but {kind}")]
    NotRelocatable {
        /// What it is.
        kind: String,
    },
    /// Stripped: without symbols there are no programs.
    #[error("no symbol table; was the object stripped?")]
    NoSymbolTable,
    /// The file contradicts itself or ends too early.
    #[error("{place}: at offset {offset:#x}: {reason}")]
    Corrupt {
        /// The section or structure.
        place: String,
        /// Byte offset in it, or index of the entry.
        offset: u64,
        /// What is wrong.
        reason: String,
    },
    /// Maps in the style of before libbpf 1.0.
    #[error(
        "section 'maps': legacy map definitions are not supported since libbpf 1.0; use SEC(\".maps\") with BTF"
    )]
    LegacyMaps,
    /// BTF is needed and there is none.
    #[error("no BTF, but {needed_by} needs it; compile with clang -g")]
    MissingBtf {
        /// What needs it.
        needed_by: String,
    },
    /// A BTF section is malformed.
    #[error("section '{section}': {source}")]
    Btf {
        /// The ELF section.
        section: &'static str,
        /// What is wrong.
        source: BtfError,
    },
    /// A map's definition.
    #[error("map '{map}': {reason}")]
    Map {
        /// The map's name.
        map: String,
        /// What is wrong.
        reason: String,
    },
    /// A program or function.
    #[error("section '{section}': program '{program}': {reason}")]
    Program {
        /// The program's name.
        program: String,
        /// Its section.
        section: String,
        /// What is wrong.
        reason: String,
    },
    /// A section name that libbpf does not know.
    #[error(
        "program '{program}': unknown SEC(\"{section}\"); a program needs one of libbpf's section names{}",
        near.as_ref().map(|near| format!(", such as \"{near}\"")).unwrap_or_default()
    )]
    UnknownSection {
        /// The program's name.
        program: String,
        /// The section.
        section: String,
        /// A known name that is alike.
        near: Option<String>,
    },
    /// A relocation that cannot be applied.
    #[error("section '{section}': relocation at offset {offset:#x} against '{symbol}': {reason}")]
    Relocation {
        /// The section whose bytes are relocated.
        section: String,
        /// The symbol.
        symbol: String,
        /// Byte offset in the section.
        offset: u64,
        /// What is wrong.
        reason: String,
    },
    /// A CO-RE relocation that cannot be decided.
    #[error(
        "section '{section}': program '{program}': instruction {insn}: CO-RE relocation {relo}: {source}"
    )]
    CoRe {
        /// The program.
        program: String,
        /// Its section.
        section: String,
        /// Instruction index in the program (or subprogram).
        insn: usize,
        /// Number of the relocation in its section.
        relo: usize,
        /// What is wrong.
        source: Box<CoReError>,
    },
    /// An `extern` that has no value.
    #[error("extern '{name}': {reason}")]
    Extern {
        /// Its name.
        name: String,
        /// What is wrong.
        reason: String,
    },
    /// A feature of libbpf that is recognised and not supported.
    #[error("section '{section}': {what} not supported")]
    Unsupported {
        /// The section.
        section: String,
        /// What, as the subject of "... not supported".
        what: &'static str,
    },
    /// Larger than any real object.
    #[error("{what} exceeds the limit of {limit}")]
    TooLarge {
        /// What.
        what: &'static str,
        /// The limit.
        limit: u64,
    },
}
