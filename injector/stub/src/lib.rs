//! The machine code of a probe site.
//!
//! ```text
//! site:   jmp stub                    stub:  save caller-saved registers, find the thread's slot, guard
//!         (rest of the window)               call the programs
//! next: ◀──────────────────┐                 restore
//!                          └─ jmp next ◀──── displaced instructions
//! ```
//!
//! All code is generated here, in the injector, as bytes for a given address; the target only executes it. A stub
//! keeps every register, the flags, the red zone and the vector state as the probed code left them.
#![forbid(unsafe_code)]

mod arena;
mod assemble;
mod chain;
mod cpu;
mod dispatch;
mod dispatched;
mod displaced;
mod frame;
mod gates;
mod host_call;
mod link;
mod near;
mod patch;
mod phase;
mod program_use;
mod returns;
mod site_code;
mod system_call;

pub use arena::{Arena, ArenaError};
pub use chain::{CallContext, CallLink, chain_len_max};
pub use dispatched::{DISPATCHED_MAX, DispatchedCode, fixed_slot_bytes, slot_bytes};
pub use displaced::DisplaceError;
pub use host_call::{HOST_CALL_MAX, HostCall};
pub use link::{LinkError, link_code};
pub use patch::{PatchError, jump, patch_bytes, short_jump};
pub use program_use::{ProgramUse, Registers};
pub use site_code::{
    AgentSymbols, Environment, LinkCode, OnlyIn, PcMapping, SiteCode, Stub, StubError, ThreadKey,
};
pub use system_call::{
    CallStub, HOOK_LEN, SYSTEM_CALL_GATES_MAX, SYSTEM_CALL_STUB_MAX, SystemCallCode, SystemCallTarget, hook,
};

/// What an arena needs besides its programs and stubs: the gates.
pub const ARENA_OVERHEAD: u64 = 2048;

/// What no stub with this many links is longer than, alignment included.
pub const fn stub_len_max(links: usize) -> u64 {
    (1280 + 640 * links) as u64
}
