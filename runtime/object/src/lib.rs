//! Reads libbpf-compiled ELF objects: programs, maps, BTF; applies CO-RE.
//!
//! [`Object::parse`] takes the bytes of an object that `clang -g -O2 -target bpf` made and gives the maps to create
//! and, for each program, its final bytecode: exactly what libbpf 1.7 would hand to `bpf(2)`, but that an instruction
//! refers to a map by its index instead of by a descriptor.
//!
//! | module | |
//! |---|---|
//! | [`section`], [`section_table`] | what a `SEC()` name says |
//! | [`map`] | `SEC(".maps")`, global data |
//! | [`program`] | programs and the functions that they are made of |
//! | [`btf`] | type information: the object's, the kernel's, a built-in one; values and declarations printed by it |
//! | [`core_relo`] | adaptation to the target's types |
//! | [`embedded`] | objects inside other files |
//! | [`kconfig`], [`options`] | the kernel that an object is read for |
//!
//! ```no_run
//! use beeline_object::{Object, Options};
//!
//! let path = std::path::Path::new("malloc.bpf.o");
//! let options = Options::of_this_machine().named_after(path);
//! let object = Object::parse(&std::fs::read(path)?, &options)?;
//! for program in &object.programs {
//!     println!("{}: SEC(\"{}\"), {} instructions", program.name, program.section, program.insns.len());
//! }
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! Nothing is attached, created or verified here. Bytes are never trusted: no input makes this crate panic.
#![forbid(unsafe_code)]

pub mod btf;
pub mod core_relo;
mod elf;
pub mod embedded;
pub mod error;
mod externs;
mod fixup;
pub mod kconfig;
pub mod link;
pub mod map;
mod object;
pub mod options;
pub mod program;
mod relocate;
pub mod section;
pub mod section_table;

pub use crate::object::{Object, SourceLine};
pub use btf::{Btf, BtfError};
pub use error::ObjectError;
pub use externs::HostFunctionDef;
pub use kconfig::Kconfig;
pub use map::{InitialValue, MapDef, MapKind};
pub use options::Options;
pub use program::{ProgramDef, Subprogram};
pub use section::{SectionSpec, Target};
