//! What a stub is made from, and what comes out.

use crate::displaced::DisplaceError;
use crate::program_use::ProgramUse;
use beeline_abi::code::ProgramNeeds;
use beeline_abi::thread::SESSIONS;
use beeline_site::SitePlan;
use std::ops::Range;

/// How a stub finds its thread's slot key (see [`Locator`](beeline_abi::process::Locator)).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ThreadKey {
    /// `mov %fs:0`: the thread control block points to itself (glibc, musl).
    FsSelf,
    /// `rdfsbase`: no self pointer (Go). Needs a kernel that allows the instruction (5.9).
    FsBase,
}

impl ThreadKey {
    /// From the word in the process block; none for a value that means nothing.
    pub fn from_locator(locator: u32) -> Option<ThreadKey> {
        use beeline_abi::process::Locator;
        match locator {
            Locator::FS_SELF => Some(ThreadKey::FsSelf),
            Locator::FS_BASE => Some(ThreadKey::FsBase),
            _ => None,
        }
    }
}

/// Addresses, in the target, of what the agent image exports. See ARCHITECTURE.md for the contracts.
///
/// `return_find` is also called with a null slot, when the thread has none any more: it then looks in every thread's
/// return stack.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs, reason = "the names are the exports' without their prefix")]
pub struct AgentSymbols {
    pub claim_slot: u64,
    pub guard: u64,
    pub missed: u64,
    pub claim_cpu: u64,
    pub release_cpu: u64,
    pub return_room: u64,
    pub return_find: u64,
}

/// What all stubs of a process share. Addresses are the target's.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Environment {
    /// The [`ProcessBlock`](beeline_abi::process::ProcessBlock).
    pub block: u64,
    /// The first [`ThreadSlot`](beeline_abi::thread::ThreadSlot).
    pub threads: u64,
    /// How a thread finds its slot.
    pub thread_key: ThreadKey,
    /// The agent's functions.
    pub agent: AgentSymbols,
    /// Stacks are small (`ProcessBlock::FLAG_SMALL_STACKS`): programs run on the slot's own stack.
    pub small_stacks: bool,
    /// The store's [`CpuSlot`](beeline_abi::process::CpuSlot)s.
    pub cpu_slots: u64,
    /// How many.
    pub cpus: u32,
    /// The [`ForkPage`](beeline_abi::process::ForkPage); 0 = none.
    pub fork_page: u64,
}

/// One link of a site.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LinkCode {
    /// Address of its [`LinkRuntime`](beeline_abi::link::LinkRuntime).
    pub runtime: u64,
    /// Address of its [`LinkShared::enabled`](beeline_abi::link::LinkShared::enabled) word.
    pub enabled: u64,
    /// Address of the program's entry.
    pub entry: u64,
    /// What the program reads and claims.
    pub needs: ProgramNeeds,
    /// What its machine code does to registers.
    pub uses: ProgramUse,
    /// It runs when the function returns.
    pub is_return: bool,
    /// It is one half of the site's session with this number: the half at the return runs if the half at the entry returned 0.
    pub session: Option<u32>,
    /// It runs in one process alone, not in its fork's children.
    pub only_in: Option<OnlyIn>,
    /// Its hits are counted, in its `LinkRuntime` and in its shared page.
    pub counts_hits: bool,
    /// The program may ask for the function to be skipped. Not for return links, and at function entries only.
    pub overrides: bool,
}

/// A process that a link is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct OnlyIn {
    /// Its id.
    pub pid: u32,
    /// Address of [`ForkPage::attached`](beeline_abi::process::ForkPage::attached), which holds it there alone.
    pub word: u64,
}

/// A site and what happens there.
#[derive(Clone, Debug)]
pub struct SiteCode<'a> {
    /// The window.
    pub plan: &'a SitePlan,
    /// Address of the window in the process.
    pub address: u64,
    /// Address of the site's [`SiteRuntime`](beeline_abi::process::SiteRuntime); return entries carry it.
    pub site_runtime: u64,
    /// The links in force, in the order in which they run.
    pub links: &'a [LinkCode],
}

/// The same point of execution in the original code and in the stub.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PcMapping {
    /// Address in the original code.
    pub original: u64,
    /// Offset in the stub.
    pub stub_offset: u32,
}

/// Machine code for one site at one address.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Stub {
    /// Where it belongs.
    pub address: u64,
    /// The code.
    pub bytes: Vec<u8>,
    /// Offset at which the site's jump enters.
    pub entry: u32,
    /// Offset to which a function under a return probe returns: this address stands on stacks.
    pub return_point: Option<u32>,
    /// Where each displaced instruction went, and at last the place behind them. A thread whose PC is at `original` when the jump is
    /// written goes on at `stub_offset`; one that is at `stub_offset` when it is removed goes on at `original`.
    pub displaced: Vec<PcMapping>,
    /// Offsets of the code that runs only in rare cases.
    pub cold: Range<u32>,
}

impl Stub {
    /// Where a thread at `pc` in the window has to go on in this stub; none when `pc` is no instruction of the window.
    pub fn pc_in_stub(&self, pc: u64) -> Option<u64> {
        let found = self.displaced.iter().find(|m| m.original == pc)?;
        Some(self.address + u64::from(found.stub_offset))
    }

    /// The original address of a displaced instruction at `pc`; none when `pc` is elsewhere in the stub.
    pub fn pc_in_original(&self, pc: u64) -> Option<u64> {
        let offset = pc.checked_sub(self.address)?;
        self.displaced.iter().find(|m| u64::from(m.stub_offset) == offset).map(|m| m.original)
    }
}

/// Why no stub can be made.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum StubError {
    /// A displaced instruction cannot be encoded there.
    #[error(transparent)]
    Displace(#[from] DisplaceError),
    /// A place that the stub jumps to is more than 2 GiB away.
    #[error("stub at {at:#x} cannot reach {target:#x}")]
    OutOfRange {
        /// The stub.
        at: u64,
        /// What it jumps to.
        target: u64,
    },
    /// A return link at a place that is no function entry.
    #[error("return probe at {at:#x}, which is no function entry")]
    ReturnNotAtEntry {
        /// The site.
        at: u64,
    },
    /// A link that may skip the function, at a place that is no function entry.
    #[error("a program that may skip a function at {at:#x}, which is no function entry")]
    OverrideNotAtEntry {
        /// The site.
        at: u64,
    },
    /// Something else than a return link at a `ret`.
    #[error("the place at {at:#x} is a `ret`, where only return probes run")]
    OnlyReturns {
        /// The site.
        at: u64,
    },
    /// A return has no room for what another session keeps.
    #[error("{SESSIONS} sessions are at {at:#x} already")]
    TooManySessions {
        /// The site.
        at: u64,
    },
    /// No links.
    #[error("a stub without links at {at:#x}")]
    NoLinks {
        /// The site.
        at: u64,
    },
    /// The assembler refused; a defect of ours.
    #[error("assembling the stub at {at:#x}: {reason}")]
    Assembler {
        /// The stub.
        at: u64,
        /// What it says.
        reason: String,
    },
}
