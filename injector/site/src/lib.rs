//! Where a probe can be put: symbols, offsets, displaced instructions.
//!
//! ```text
//! Binary ──resolve(Location)──▶ Resolved ──plan(vaddr)──▶ SitePlan ──▶ beeline-stub
//!    └─ whole-object analysis, made once: every branch target, landing pad, relocated address
//! ```
//!
//! Everything here is a fact about a file. No process is looked at, and nothing is known of what a probe does.
//!
//! **Invariant:** a [`SitePlan`] exists only for a window into which nothing jumps, as far as the whole object shows.
//! Bytes of a file are another party's word: garbage gives an error, never a panic.
#![forbid(unsafe_code)]

mod analysis;
mod binary;
mod dynamic;
mod error;
mod gopclntab;
mod hole;
mod jumps;
mod leaves;
mod library;
mod plan;
mod reached;
mod resolve;
mod returns;
mod rseq;
mod symbols;
mod system_calls;
mod tables;
mod tails;
mod unwind;
mod usdt;

pub use binary::{Binary, Libc, Linkage, Segment};
pub use error::{OpenError, Refusal, ResolveError};
pub use hole::Hole;
pub use leaves::Leave;
pub use library::{LibraryNotFound, find_library};
pub use plan::{
    BREAKPOINT_WINDOW, References, Room, SHORT_WINDOW, SitePlan, WINDOW_MIN, lacks_room, plan,
    plan_breakpoint, plan_hook, plan_return, plan_return_breakpoint, plan_returns, plan_short,
};
pub use resolve::{FunctionRange, Location, Resolved, resolve};
pub use returns::{hides_unwinder, unwinder_entries};
pub use symbols::{Symbol, SymbolKind, Symbols};
pub use system_calls::{RefusedCall, SystemCallSite, SystemCalls, Windows};
pub use usdt::{UsdtError, UsdtProbe, usdt_probe, usdt_probes};
