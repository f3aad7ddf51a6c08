//! What is to be put into a process: plain data, independent of who made it.

use beeline_abi::code::{HostValue, ProgramNeeds, Reloc, Symbol};
use beeline_abi::link::LinkRuntime;
use beeline_abi::process::TaskLayout;
use beeline_site::Location;
use std::collections::BTreeSet;
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;

/// Everything that a process is to carry. Attaching is idempotent: what the process carries already is left as it is.
#[derive(Debug)]
pub struct Request {
    /// The store's random number. A process carries the probes of one store.
    pub store_uuid: [u64; 2],
    /// Number of possible CPUs: entries in the file behind `cpu_slots`.
    pub cpus: u32,
    /// The store's file of [`CpuSlot`](beeline_abi::process::CpuSlot)s, from offset 0.
    pub cpu_slots: OwnedFd,
    /// The store's [trace log](beeline_abi::trace).
    pub trace: OwnedFd,
    /// Where the fields of `task_struct` lie for the programs.
    pub task_layout: TaskLayout,
    /// Every map that one of the programs uses.
    pub maps: Vec<MapRequest>,
    /// Every program of a probe, and those that they reach by tail calls.
    pub programs: Vec<ProgramRequest>,
    /// The probes.
    pub probes: Vec<ProbeRequest>,
    /// The programs that run at system calls.
    pub system_calls: Vec<SystemCallRequest>,
    /// Where there may be breakpoints.
    pub breakpoints: BreakpointUse,
    /// The system calls of code that is in no file are traced as well: the kernel hands them to the process, which keeps `SIGSYS`
    /// deliverable (`PR_SET_SYSCALL_USER_DISPATCH`).
    pub complete: bool,
    /// Ids of all links that there are: what the process carries of others is taken out. `None` leaves it.
    pub alive: Option<BTreeSet<u32>>,
}

/// Where a process gets breakpoints (`int3`). What has some keeps `SIGTRAP` deliverable.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum BreakpointUse {
    /// Nowhere: a place without room for a jump is refused.
    #[default]
    Never,
    /// Where no jump fits.
    WhereNoJumpFits,
    /// At each new place, for tests.
    Everywhere,
}

/// A map of the store.
#[derive(Debug)]
pub struct MapRequest {
    /// Its id in the store.
    pub id: u32,
    /// Its name, for messages.
    pub name: String,
    /// Its file, open for reading and writing.
    pub file: OwnedFd,
}

/// A compiled program.
#[derive(Clone, Debug)]
pub struct ProgramRequest {
    /// Its id in the store.
    pub id: u32,
    /// Its name, for messages.
    pub name: String,
    /// Its position-independent image; the entry is the first byte.
    pub code: Vec<u8>,
    /// What the image leaves open.
    pub relocs: Vec<Reloc>,
    /// The id of each map in the program's own list, by index.
    pub maps: Vec<u32>,
    /// What it reads and claims.
    pub needs: ProgramNeeds,
    /// Functions of the process that it calls, by the index that relocations use.
    pub host_functions: Vec<HostFunctionRequest>,
}

/// A function of the process that a program calls.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HostFunctionRequest {
    /// Its name, for messages.
    pub name: String,
    /// The executable or library.
    pub file: FileIdentity,
    /// The place in it.
    pub location: Location,
    /// What it takes.
    pub args: Vec<HostValue>,
    /// What it returns.
    pub returns: HostValue,
}

impl Request {
    /// The part that is for system calls. What the process carries already stays.
    pub(crate) fn of_system_calls(&self) -> io::Result<Request> {
        let file = |map: &MapRequest| {
            Ok(MapRequest { id: map.id, name: map.name.clone(), file: map.file.try_clone()? })
        };
        Ok(Request {
            cpu_slots: self.cpu_slots.try_clone()?,
            trace: self.trace.try_clone()?,
            maps: self.maps.iter().map(file).collect::<io::Result<_>>()?,
            programs: self.programs.clone(),
            probes: Vec::new(),
            system_calls: self.system_calls.clone(),
            breakpoints: BreakpointUse::Never,
            complete: false,
            alive: None,
            ..*self
        })
    }

    /// The link has ended.
    pub(crate) fn is_over(&self, link: &LinkRuntime) -> bool {
        let ended = self.alive.as_ref().is_some_and(|alive| !alive.contains(&link.link_id));
        ended && link.link_id != LinkRuntime::OWN
    }
}

impl ProgramRequest {
    /// The program, or one that it reaches by a tail call, may have the probed function skipped.
    pub(crate) fn may_override(&self) -> bool {
        self.needs.tail_calls || self.overrides()
    }

    /// The program itself calls `bpf_override_return`.
    pub(crate) fn overrides(&self) -> bool {
        const OVERRIDE_RETURN: Symbol = Symbol::Helper(58);
        self.relocs.iter().any(|reloc| reloc.symbol == OVERRIDE_RETURN)
    }

    /// The program, or one that it reaches by a tail call, may ask for the thread's registers (`bpf_task_pt_regs`).
    pub(crate) fn asks_registers(&self) -> bool {
        const TASK_PT_REGS: Symbol = Symbol::Helper(175);
        self.needs.tail_calls || self.relocs.iter().any(|reloc| reloc.symbol == TASK_PT_REGS)
    }
}

/// When the program of a probe runs.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum ProbeKind {
    /// Before the instruction at the location.
    Entry,
    /// After the function at the location has returned.
    Return,
    /// Both, as one session: at the return only where the program returned 0 at the entry.
    Session,
}

/// A link of the store: a place and the program that runs there. A link with several places is several probes with its id.
#[derive(Debug)]
pub struct ProbeRequest {
    /// The link's id in the store.
    pub link_id: u32,
    /// The program's id.
    pub program_id: u32,
    /// When it runs.
    pub kind: ProbeKind,
    /// The executable or library.
    pub file: FileIdentity,
    /// The place in it.
    pub location: Location,
    /// `bpf_get_attach_cookie`.
    pub cookie: u64,
    /// Link-time address of a 16-bit count of those who want the probe, to be increased while it is in force.
    pub semaphore: Option<u64>,
    /// Only in the process with this id, not in children that it forks.
    pub pid: Option<u32>,
    /// Count its hits.
    pub count_hits: bool,
    /// The link's file, open for reading and writing; its first page is a
    /// [`LinkShared`](beeline_abi::link::LinkShared). Probes of one link, at several places, share it.
    pub shared: Arc<OwnedFd>,
}

/// What a program at a system call sees.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum CallContext {
    /// The record of a tracepoint.
    Record,
    /// The arguments of a raw tracepoint.
    Raw,
    /// The registers of the kernel's function for the call.
    Registers,
}

/// A link of the store: a program that runs at system calls.
#[derive(Clone, Debug)]
pub struct SystemCallRequest {
    /// The link's id in the store.
    pub link_id: u32,
    /// The program's id.
    pub program_id: u32,
    /// Before the call or behind it.
    pub kind: ProbeKind,
    /// What it sees.
    pub context: CallContext,
    /// The call's number; none for all calls.
    pub number: Option<u32>,
    /// `bpf_get_attach_cookie`.
    pub cookie: u64,
    /// Only in the process with this id, not in children that it forks.
    pub pid: Option<u32>,
    /// Count its hits.
    pub count_hits: bool,
    /// It may skip the call, and change arguments and result.
    pub may_override: bool,
    /// The link's file, as for a probe.
    pub shared: Arc<OwnedFd>,
}

/// Which file is meant, however a target came to it. A mapped file is this one when device and inode agree, or when
/// both have the same build id (the same file in another container).
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct FileIdentity {
    /// Where it was found when the link was made.
    pub path: PathBuf,
    /// Its device, as `stat` gives it.
    pub device: u64,
    /// Its inode.
    pub inode: u64,
    /// Its build id, when it has one.
    pub build_id: Option<Vec<u8>>,
}
