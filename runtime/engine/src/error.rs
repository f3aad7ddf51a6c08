//! What can go wrong between a file and a process.

use crate::attach_spec::AttachSpecError;
use beeline_store::StoreError;
use std::path::PathBuf;

/// Why the engine did not do what it was asked. The store is as it was before.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A link or a prog array names a program that is not there.
    #[error("there is no program with id {id} in the store, or its file is damaged")]
    NoProgram {
        /// Its id.
        id: u32,
    },
    /// A program names a map that is not there.
    #[error("there is no map with id {id} in the store, or its file is damaged")]
    NoMap {
        /// Its id.
        id: u32,
    },
    /// The object file cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The object file is not what the loader understands.
    #[error("{source}")]
    Object {
        /// The file.
        file: String,
        /// What is wrong with it.
        source: Box<beeline_object::ObjectError>,
    },
    /// The BTF to relocate against cannot be used.
    #[error("{source}")]
    Btf {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: Box<beeline_object::BtfError>,
    },
    /// A map of a type that there is no implementation for.
    #[error("map {map}: map type {map_type}{} is not supported", name.map(|name| format!(" ({name})")).unwrap_or_default())]
    MapType {
        /// The map.
        map: String,
        /// `BPF_MAP_TYPE_*`.
        map_type: u32,
        /// The kernel's name for it, where it has one.
        name: Option<&'static str>,
    },
    /// The verifier refuses a program.
    #[error("program {program} is rejected at instruction {}: {}", rejection.pc, rejection.reason)]
    Rejected {
        /// The program.
        program: String,
        /// Where and why, with the log.
        rejection: Box<beeline_verifier::Rejection>,
    },
    /// A verified program has no machine code.
    #[error("program {program} cannot be compiled: {source}")]
    Compile {
        /// The program.
        program: String,
        /// Why.
        source: Box<beeline_jit::CompileError>,
    },
    /// A text that should say where a program goes does not.
    #[error(transparent)]
    AttachSpec(#[from] AttachSpecError),
    /// A program that should be attached is not in the object.
    #[error("there is no program {program} in {object}; it has {}", list(known))]
    NoSuchProgram {
        /// The name asked for.
        program: String,
        /// The object.
        object: String,
        /// The programs that there are.
        known: Vec<String>,
    },
    /// A program cannot be attached in the way asked for.
    #[error("program {program} (section {section}) cannot be attached: {reason}")]
    CannotAttach {
        /// The program.
        program: String,
        /// Its section.
        section: String,
        /// Why not.
        reason: String,
    },
    /// A program changes system calls, and its link is made without the right to.
    #[error(
        "program {program} (section {section}) changes system calls: it calls {helper}, and has no right to"
    )]
    NoRight {
        /// The program.
        program: String,
        /// Its section.
        section: String,
        /// The helper by which it would.
        helper: &'static str,
    },
    /// The file or the place in it that a program should go to does not exist.
    #[error("program {program} cannot be attached to {place}: {reason}")]
    NoPlace {
        /// The program.
        program: String,
        /// `PATH:SYMBOL`.
        place: String,
        /// Why not, with what is similar.
        reason: String,
    },
    /// A function of the target that programs are to call is not one that they can call.
    #[error("host function {name}: {reason}")]
    HostFunction {
        /// Its name in the object.
        name: String,
        /// Why not.
        reason: String,
    },
    /// The map of USDT arguments cannot be filled.
    #[error("map {map}: {reason}")]
    Specs {
        /// The map.
        map: String,
        /// Why not.
        reason: String,
    },
    /// An object cannot be unloaded while a link of another one has its program.
    #[error("its program {program} is that of link {link}; update or detach that first")]
    InUse {
        /// The program.
        program: String,
        /// `OBJECT/LINK`.
        link: String,
    },
    /// A program cannot be run here.
    #[error("program {program} cannot be run here: {reason}")]
    Run {
        /// The program.
        program: String,
        /// Why not.
        reason: String,
    },
}

fn list(names: &[String]) -> String {
    if names.is_empty() { "none".into() } else { names.join(", ") }
}
