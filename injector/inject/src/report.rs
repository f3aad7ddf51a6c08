//! What was done to a process.

use crate::system_calls::CallCoverage;
use std::path::PathBuf;
use std::time::Duration;

/// What [`attach`](crate::attach) did.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct AttachReport {
    /// The process.
    pub pid: i32,
    /// The process carried no probes of ours before.
    pub first: bool,
    /// What became of each probe of the request, in its order.
    pub probes: Vec<ProbeOutcome>,
    /// System calls of its code that are traced now, when programs want some.
    pub system_calls: Option<CallCoverage>,
    /// Why calls of code made at run time are not traced, where they were to be and the rest is.
    pub not_complete: Option<String>,
    /// Threads that were stopped.
    pub threads: usize,
    /// How long the process stood still.
    pub stopped: Duration,
}

impl AttachReport {
    /// Probes that are in force now.
    pub fn in_force(&self) -> usize {
        self.probes.iter().filter(|probe| probe.state.is_in_force()).count()
    }
}

/// What became of one probe.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ProbeOutcome {
    /// The link's id.
    pub link_id: u32,
    /// What became of it.
    pub state: ProbeState,
}

/// The state of a probe in one process.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ProbeState {
    /// Put in force now, at these addresses: one for each time that the file is mapped.
    Placed {
        /// Addresses of the probed instruction.
        addresses: Vec<u64>,
    },
    /// It was in force already.
    AlreadyInForce,
    /// The process has not mapped the file.
    NotMapped {
        /// The file.
        file: PathBuf,
        /// It has mapped another file of that path: the file was replaced, or lies in another mount namespace.
        other: bool,
    },
    /// The place cannot take the probe.
    Refused {
        /// Why, as a sentence.
        reason: String,
    },
}

impl ProbeState {
    /// The program runs when the place is hit.
    pub fn is_in_force(&self) -> bool {
        matches!(self, ProbeState::Placed { .. } | ProbeState::AlreadyInForce)
    }
}

/// What [`detach`](crate::detach) did.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DetachReport {
    /// The process.
    pub pid: i32,
    /// Sites whose original bytes were put back.
    pub restored: usize,
    /// Addresses of sites at which somebody else's bytes stood; they were left alone.
    pub foreign: Vec<u64>,
    /// Return addresses put back on stacks.
    pub returns: usize,
    /// How long the process stood still, all stops together.
    pub stopped: Duration,
    /// How often it was stopped until no thread was in our code any more.
    pub rounds: usize,
    /// Why our code is still mapped; none when the process is as it was before we came.
    pub left: Option<String>,
}

/// What a process carries of ours.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Attached {
    /// The process.
    pub pid: i32,
    /// The store that its probes belong to.
    pub store_uuid: [u64; 2],
    /// Attaching or detaching was interrupted: no probe of this process may be counted on. Attach or detach repairs it.
    pub incomplete: bool,
    /// Address of the agent's block.
    pub block: u64,
    /// The sites that are patched.
    pub sites: Vec<AttachedSite>,
    /// Ids of the programs that are linked.
    pub programs: Vec<u32>,
    /// Ids of the maps that are mapped.
    pub maps: Vec<u32>,
    /// Threads that have hit a probe and have a slot.
    pub threads: usize,
    /// Bytes mapped by us.
    pub mapped_bytes: u64,
}

impl Attached {
    /// Ids of the links in force, each once.
    pub fn links(&self) -> Vec<u32> {
        let mut ids: Vec<u32> = self.sites.iter().flat_map(|site| site.links.iter().copied()).collect();
        ids.sort_unstable();
        ids.dedup();
        ids
    }
}

/// A link at a patched place of one process.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct AttachedLink {
    /// The link's id.
    pub link_id: u32,
    /// The id of the program that runs.
    pub program_id: u32,
    /// Hits on which it ran, where they are counted.
    pub hits: u64,
    /// Hits on which it did not run.
    pub missed: u64,
}

/// A patched place.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct AttachedSite {
    /// Address of the probed instruction.
    pub address: u64,
    /// Ids of its links.
    pub links: Vec<u32>,
    /// What is known of each of its links.
    pub counts: Vec<AttachedLink>,
    /// The jump, or the breakpoint, still stands there.
    pub in_place: bool,
    /// It is an `int3`.
    pub is_breakpoint: bool,
}
