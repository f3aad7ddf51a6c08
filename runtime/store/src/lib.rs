//! The store: a directory of files on tmpfs, one per map, program and link, that everybody maps.
//!
//! - What is there was put there in one step ([`Store::publish`]) and goes in one step ([`Store::remove`]): a loader
//!   that is killed at any instruction leaves nothing half-registered.
//! - A file is opened by descriptor, never through a symbolic link, and only when it belongs to this user and nobody
//!   else can write it. What is in it is checked as if anybody had written it.
//! - Ids come from one counter: objects, maps, programs and links of a store never share one, and none is given twice.
//!
//! `mapping` is the only module with `unsafe`.
#![deny(unsafe_code)]

mod directory;
mod error;
mod header;
mod link;
mod lock;
#[expect(unsafe_code, reason = "files as memory")]
mod mapping;
mod name;
mod object;
mod pins;
mod processes;
mod program;
mod publish;
mod record;
mod store;
mod trace;

pub use error::StoreError;
pub use header::possible_cpus;
pub use link::{CallContext, Link, LinkFile, Place, ProbeKind, Target, TargetForm};
pub use mapping::Mapping;
pub use mapping::contents::Entry;
pub use mapping::events::{Event, EventReader};
pub use mapping::map::MapFile;
pub use mapping::owner::Ownership;
pub use name::{NAME_MAX, StoreName, check_name};
pub use object::{NO_TASK_LAYOUT, ObjectInfo};
pub use pins::{MapEntry, MapList};
pub use processes::{LinkOutcome, ProcessRecord, RefusedPlace};
pub use program::{Function, HostFunction, Program, VerifierStats, tag};
pub use publish::{InitialValue, NewLink, NewMap, NewObject, NewProgram, Published};
pub use store::Store;
pub use trace::{TraceEvent, TraceLine, TraceReader};
