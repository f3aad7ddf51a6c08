//! The public API: load objects, manage the store, prepare attachments. Embed it.
//!
//! ```text
//! Engine::load    file ─▶ beeline-object ─▶ translate ─▶ beeline-verifier ─▶ beeline-jit ─▶ beeline-store
//! Engine::attach_plan                                     plain data and descriptors for an injector ◀─┘
//! ```
//!
//! The engine never prints, and never touches another process. `testrun` is the only module with `unsafe`.
#![deny(unsafe_code)]

mod attach_spec;
mod dump;
mod engine;
mod error;
mod host;
mod kernel_types;
mod load;
mod map_types;
mod plan;
mod right;
mod system_calls;
mod targets;
#[expect(unsafe_code, reason = "runs machine code")]
mod testrun;
mod translate;
mod types;
mod usdt;
mod verify;

pub use attach_spec::{AttachSpec, AttachSpecError, Place, Places};
pub use beeline_object::btf::value::Value as TypedValue;
pub use beeline_store::{
    CallContext, Entry, Event, EventReader, HostFunction, Link, LinkFile, LinkOutcome, MapEntry, MapFile,
    MapList, ObjectInfo, Ownership, Place as TargetPlace, ProbeKind, ProcessRecord, Program, RefusedPlace,
    Store, StoreError, StoreName, Target, TargetForm, TraceEvent, TraceLine, TraceReader, VerifierStats,
};
pub use dump::{JitedLine, XlatedLine};
pub use engine::{Engine, LinkEntry, Listing, ProgramEntry};
pub use error::EngineError;
pub use host::{HostFunctionSpec, HostFunctionSpecError};
pub use kernel_types::{kernel_types, running_kernel_types};
pub use load::{
    LoadOptions, Loaded, LoadedMap, LoadedProgram, default_name, map_type_name, program_type_name,
};
pub use map_types::MapTypes;
pub use plan::{AttachPlan, LeftOut, PlanFilter, PlannedMap, PlannedProbe, PlannedProgram};
pub use system_calls::{CallPlace, SystemCall, system_call, system_call_by_number, system_calls};
pub use testrun::{RunOptions, RunResult};
pub use types::{EncodeError, Literal, Types, integer as encode_integer, parse_integer};
pub use verify::{Verdict, verify};
