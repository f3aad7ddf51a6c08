//! The agent's image as a program sees its file: segments, relocations, exports.

use crate::wire::Wire;
use beeline_abi::link::LinkRuntime;
use beeline_stub::AgentSymbols;
use object::read::elf::{ElfFile64, ProgramHeader};
use object::{Object, ObjectSymbol, elf};

const PAGE: u64 = beeline_abi::PAGE_SIZE;

/// The image, not yet at an address.
#[derive(Debug)]
pub(crate) struct AgentImage {
    /// The image as it lies in memory, linked at 0, a whole number of pages.
    bytes: Vec<u8>,
    segments: Vec<AgentSegment>,
    /// Offset and addend of each relative relocation.
    relocations: Vec<(u64, u64)>,
    helpers: (u64, usize),
    init: u64,
    symbols: AgentSymbols,
    own: OwnLinks,
    call_gate: u64,
    /// Before and behind a system call, and when no program can run there.
    system_call: [u64; 3],
}

/// What the agent runs for itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Own {
    /// At the entries of unwinders: puts return addresses back before somebody walks the stack.
    Returns,
    /// At the entry of `prctl`: sees seccomp filters that are installed.
    Prctl,
    /// At the entry of `syscall`.
    Syscall,
    /// At the entry of Go's `Syscall6`.
    GoSyscall,
    /// At the loader's hook: tells our follower that libraries came or went.
    Libraries,
}

impl Own {
    /// It looks for seccomp filters that are being installed.
    pub(crate) fn sees_seccomp(self) -> bool {
        matches!(self, Own::Prctl | Own::Syscall | Own::GoSyscall)
    }

    /// `LinkRuntime::flags` of its link.
    fn flags(self) -> u32 {
        match self {
            Own::Prctl | Own::GoSyscall => LinkRuntime::SEES_SECCOMP,
            Own::Syscall => LinkRuntime::SEES_SECCOMP | LinkRuntime::SEES_NUMBER,
            Own::Returns | Own::Libraries => 0,
        }
    }
}

/// Addresses for links of the agent's own.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct OwnLinks {
    /// Of the programs, in the order of [`Own`].
    entries: [u64; 5],
    /// Of the shared words.
    shared: u64,
}

impl OwnLinks {
    /// The link at a function that begins at `address`.
    pub(crate) fn link(&self, own: Own, address: u64) -> LinkRuntime {
        LinkRuntime {
            shared: self.shared,
            func_ip: address,
            entry: self.entries[own as usize],
            link_id: LinkRuntime::OWN,
            flags: own.flags(),
            ..LinkRuntime::default()
        }
    }
}

/// Pages of the image with the same rights.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct AgentSegment {
    /// Offset of its first page.
    pub(crate) start: u64,
    /// Bytes, a whole number of pages.
    pub(crate) len: u64,
    /// `PROT_*`.
    pub(crate) protection: i32,
}

/// The image at an address.
#[derive(Debug)]
pub(crate) struct LinkedAgent {
    pub(crate) bytes: Vec<u8>,
    pub(crate) init: u64,
    pub(crate) symbols: AgentSymbols,
    pub(crate) own: OwnLinks,
    /// Address of the gate of system calls.
    pub(crate) call_gate: u64,
    /// What runs before and behind a system call, and when no program can run there.
    pub(crate) system_call: [u64; 3],
    /// Address of each helper by id, 0 = none.
    helpers: Vec<u64>,
}

impl LinkedAgent {
    /// The address of a helper.
    pub(crate) fn helper(&self, id: u32) -> Option<u64> {
        self.helpers.get(id as usize).copied().filter(|&address| address != 0)
    }
}

impl AgentImage {
    /// Reads the image. An error is a defect of the build.
    pub(crate) fn parse(file: &[u8]) -> Result<AgentImage, String> {
        let elf = ElfFile64::<object::Endianness>::parse(file).map_err(|error| error.to_string())?;
        let endian = object::Endianness::Little;
        let mut image = Vec::new();
        let mut segments = Vec::new();
        for header in elf.elf_program_headers() {
            if header.p_type(endian) != elf::PT_LOAD {
                continue;
            }
            let start = header.p_vaddr(endian);
            let end = start + header.p_memsz(endian);
            let (first, behind) = (start & !(PAGE - 1), end.next_multiple_of(PAGE));
            if image.len() < behind as usize {
                image.resize(behind as usize, 0);
            }
            let data = header.data(endian, file).map_err(|()| "a segment lies outside of the file")?;
            image[start as usize..start as usize + data.len()].copy_from_slice(data);
            let protection = protection(header.p_flags(endian).0);
            segments.push(AgentSegment { start: first, len: behind - first, protection });
        }
        let relocations = relocations(&elf)?;
        let symbol = |name: &str| {
            let found = elf.dynamic_symbols().find(|symbol| symbol.name() == Ok(name));
            found.map(|symbol| (symbol.address(), symbol.size())).ok_or(format!("no symbol {name}"))
        };
        let (table, table_len) = symbol("beeline_helpers")?;
        let gate_pointer = symbol("beeline_call_gate")?.0;
        let call_gate = relocations.iter().find(|&&(offset, _)| offset == gate_pointer);
        let call_gate = call_gate.ok_or("its gate of system calls has no address")?.1;
        Ok(AgentImage {
            bytes: image,
            segments,
            relocations,
            helpers: (table, table_len as usize / 8),
            init: symbol("beeline_init")?.0,
            symbols: AgentSymbols {
                claim_slot: symbol("beeline_claim_slot")?.0,
                guard: symbol("beeline_guard")?.0,
                missed: symbol("beeline_missed")?.0,
                claim_cpu: symbol("beeline_claim_cpu")?.0,
                release_cpu: symbol("beeline_release_cpu")?.0,
                return_room: symbol("beeline_return_room")?.0,
                return_find: symbol("beeline_return_find")?.0,
            },
            own: OwnLinks {
                entries: [
                    symbol("beeline_return_restore")?.0,
                    symbol("beeline_seccomp_prctl")?.0,
                    symbol("beeline_seccomp_syscall")?.0,
                    symbol("beeline_seccomp_go")?.0,
                    symbol("beeline_libraries_changed")?.0,
                ],
                shared: symbol("beeline_own_link")?.0,
            },
            call_gate,
            system_call: [
                symbol("beeline_system_call_enter")?.0,
                symbol("beeline_system_call_exit")?.0,
                symbol("beeline_system_call_missed")?.0,
            ],
        })
    }

    /// It implements the helper with this id.
    pub(crate) fn has_helper(&self, id: u32) -> bool {
        let (table, count) = self.helpers;
        let at = table + 8 * u64::from(id);
        (id as usize) < count && self.relocations.iter().any(|&(offset, addend)| offset == at && addend != 0)
    }

    /// Bytes that it takes in memory.
    pub(crate) fn len(&self) -> u64 {
        self.bytes.len() as u64
    }

    /// Its segments, in the order of their addresses.
    pub(crate) fn segments(&self) -> &[AgentSegment] {
        &self.segments
    }

    /// The image as it has to stand at `base`.
    pub(crate) fn at(&self, base: u64) -> LinkedAgent {
        let mut bytes = self.bytes.clone();
        for &(offset, addend) in &self.relocations {
            if let Some(place) = bytes.get_mut(offset as usize..offset as usize + 8) {
                base.wrapping_add(addend).put(place);
            }
        }
        let (table, count) = self.helpers;
        let helper = |index: usize| bytes.get(table as usize + 8 * index..).map_or(0, u64::get);
        let helpers = (0..count).map(helper).collect();
        let of = self.symbols;
        let symbols = AgentSymbols {
            claim_slot: base + of.claim_slot,
            guard: base + of.guard,
            missed: base + of.missed,
            claim_cpu: base + of.claim_cpu,
            release_cpu: base + of.release_cpu,
            return_room: base + of.return_room,
            return_find: base + of.return_find,
        };
        let own =
            OwnLinks { entries: self.own.entries.map(|entry| base + entry), shared: base + self.own.shared };
        LinkedAgent {
            bytes,
            init: base + self.init,
            symbols,
            own,
            call_gate: base + self.call_gate,
            system_call: self.system_call.map(|function| base + function),
            helpers,
        }
    }
}

fn protection(flags: u32) -> i32 {
    let bit = |flag, protection| if flags & flag != 0 { protection } else { 0 };
    bit(4, libc::PROT_READ) | bit(2, libc::PROT_WRITE) | bit(1, libc::PROT_EXEC)
}

fn relocations(elf: &ElfFile64<'_, object::Endianness>) -> Result<Vec<(u64, u64)>, String> {
    let mut list = Vec::new();
    for (offset, relocation) in elf.dynamic_relocations().into_iter().flatten() {
        match relocation.flags() {
            object::RelocationFlags::Elf { r_type } if r_type == elf::R_X86_64_RELATIVE => {
                list.push((offset, relocation.addend() as u64));
            }
            other => return Err(format!("relocation {other:?} in the agent's image")),
        }
    }
    Ok(list)
}
