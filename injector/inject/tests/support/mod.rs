//! A store in memory, with programs written by hand in machine code, and C targets.

#![allow(dead_code, reason = "each test binary uses a part of it")]

pub(crate) mod targets;

use beeline_abi::ABI_VERSION;
use beeline_abi::code::{ContextUse, ProgramNeeds, Reloc, RelocKind, Symbol};
use beeline_abi::link::{LINK_MAGIC, LinkShared};
use beeline_abi::map::{DATA_OFFSET, MAP_MAGIC, MapHeader, MapShape, MapType};
use beeline_abi::process::TaskLayout;
use beeline_abi::trace::{TRACE_FILE_LEN, TRACE_MAGIC};
use beeline_inject::{
    BreakpointUse, FileIdentity, Location, MapRequest, ProbeKind, ProbeRequest, ProgramRequest, Request,
};
use std::fs::File;
use std::mem::offset_of;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::sync::Arc;

/// Possible CPUs of the test store.
const CPUS: u32 = 64;

/// Builds a request, and reads the results.
pub(crate) struct Store {
    pub(crate) request: Request,
    maps: Vec<File>,
    links: Vec<File>,
}

impl Store {
    pub(crate) fn new() -> Store {
        let trace = memory("trace", TRACE_FILE_LEN);
        trace.write_all_at(&TRACE_MAGIC.to_le_bytes(), 0).unwrap();
        let request = Request {
            store_uuid: [0x1234, 0x5678],
            cpus: CPUS,
            cpu_slots: memory("cpus", u64::from(CPUS) * 64).into(),
            trace: trace.into(),
            task_layout: TaskLayout {
                size: 256,
                pid: 0,
                tgid: 4,
                comm: 8,
                real_parent: 24,
                parent: 32,
                group_leader: 40,
                start_time: 48,
                start_boottime: 56,
                nsproxy: 64,
                exit_code: 72,
                nsproxy_mnt_ns: 0,
                nsproxy_pid_ns_for_children: 8,
                nsproxy_size: 64,
                mnt_ns_inum: 0,
                mnt_ns_size: 64,
            },
            maps: Vec::new(),
            programs: Vec::new(),
            probes: Vec::new(),
            system_calls: Vec::new(),
            breakpoints: BreakpointUse::Never,
            complete: false,
            alive: None,
        };
        Store { request, maps: Vec::new(), links: Vec::new() }
    }

    /// An array of 64-bit counters; its id.
    pub(crate) fn array(&mut self, entries: u32) -> u32 {
        let id = 100 + self.maps.len() as u32;
        let shape = MapShape {
            map_type: MapType::ARRAY,
            key_size: 4,
            value_size: 8,
            max_entries: entries,
            map_flags: 0,
            cpus: CPUS,
        };
        let layout = beeline_maps::layout::layout(&shape).unwrap();
        let file = memory("map", layout.file_len);
        let word =
            |offset: usize, value: u32| file.write_all_at(&value.to_le_bytes(), offset as u64).unwrap();
        word(offset_of!(MapHeader, version), ABI_VERSION);
        word(offset_of!(MapHeader, id), id);
        let at = offset_of!(MapHeader, shape);
        for (index, value) in [shape.map_type, 4, 8, entries, 0, CPUS].into_iter().enumerate() {
            word(at + 4 * index, value);
        }
        let len = offset_of!(MapHeader, file_len) as u64;
        file.write_all_at(&layout.file_len.to_le_bytes(), len).unwrap();
        file.write_all_at(&MAP_MAGIC.to_le_bytes(), 0).unwrap();
        self.request.maps.push(MapRequest { id, name: format!("array{id}"), file: copy(&file) });
        self.maps.push(file);
        id
    }

    /// A program that adds one to counter `index` of an array, with a locked instruction; its id.
    pub(crate) fn counter(&mut self, map: u32, index: u32) -> u32 {
        let id = self.request.programs.iter().map(|program| program.id + 1).max().unwrap_or(200);
        let mut code = vec![0x48, 0xb8]; // mov $counter, %rax
        code.extend([0; 8]);
        code.extend([0xf0, 0x48, 0xff, 0x00]); // lock incq (%rax)
        code.extend([0x31, 0xc0, 0xc3]); // xor %eax, %eax; ret
        let addend = i64::from(index) * 8;
        let reloc = Reloc { offset: 2, kind: RelocKind::Abs64, symbol: Symbol::MapData(0), addend };
        self.request.programs.push(ProgramRequest {
            id,
            name: format!("counter{id}"),
            code,
            relocs: vec![reloc],
            maps: vec![map],
            needs: ProgramNeeds { context: ContextUse::NONE, cpu: false, stack_bytes: 0, tail_calls: false },
            host_functions: Vec::new(),
        });
        id
    }

    /// A counter that wants the whole context, and changes every register that a program may change; its id.
    pub(crate) fn clobbering_counter(&mut self, map: u32, index: u32) -> u32 {
        let id = self.counter(map, index);
        let program = self.request.programs.last_mut().unwrap();
        let count = program.code.len() - 3;
        program.code.truncate(count);
        for register in [0xb8, 0xb9, 0xba, 0xbe, 0xbf] {
            program.code.extend([0x48, register, 0xfe, 0xca, 0xfe, 0xca, 0xfe, 0xca, 0xfe, 0xca]); // mov $…,%r
        }
        for register in [0xb8, 0xb9, 0xba, 0xbb] {
            program.code.extend([0x49, register, 0xfe, 0xca, 0xfe, 0xca, 0xfe, 0xca, 0xfe, 0xca]); // mov $…,%r8…
        }
        program.code.extend([0xb0, 0x7f, 0x04, 0x7f]); // mov $0x7f,%al; add $0x7f,%al: overflow, sign, no carry
        program.code.extend([0xf9, 0xc3]); // stc; ret
        program.needs.context = ContextUse::ALL;
        id
    }

    /// Another place of a link.
    pub(crate) fn probe_also(&mut self, link: u32, location: Location) {
        let known = self.request.probes.iter().find(|probe| probe.link_id == link).unwrap();
        let probe = ProbeRequest {
            link_id: link,
            program_id: known.program_id,
            kind: known.kind,
            file: known.file.clone(),
            location,
            cookie: 0,
            semaphore: None,
            pid: None,
            count_hits: false,
            shared: Arc::clone(&known.shared),
        };
        self.request.probes.push(probe);
    }

    /// A program that adds the low 32 bits of `bpf_get_current_pid_tgid` (the thread id) to counter `index`; its id.
    pub(crate) fn thread_id_adder(&mut self, map: u32, index: u32) -> u32 {
        let id = self.counter(map, index);
        let program = self.request.programs.last_mut().unwrap();
        let mut code = vec![0x50, 0x49, 0x89, 0xf1, 0xe8, 0, 0, 0, 0]; // push %rax; mov %rsi,%r9; call helper
        code.extend([0x89, 0xc1, 0x48, 0xb8]); // mov %eax,%ecx; mov $counter,%rax
        code.extend([0; 8]);
        code.extend([0xf0, 0x48, 0x01, 0x08]); // lock add %rcx,(%rax)
        code.extend([0x59, 0x31, 0xc0, 0xc3]); // pop %rcx; xor %eax,%eax; ret
        program.code = code;
        let addend = i64::from(index) * 8;
        program.relocs = vec![
            Reloc { offset: 5, kind: RelocKind::Rel32, symbol: Symbol::Helper(14), addend: -4 },
            Reloc { offset: 13, kind: RelocKind::Abs64, symbol: Symbol::MapData(0), addend },
        ];
        id
    }

    /// A program that adds one to the counter of its CPU, eight counters apart, without a locked instruction; its id.
    pub(crate) fn cpu_counter(&mut self, map: u32, index: u32) -> u32 {
        let id = self.counter(map, index);
        let program = self.request.programs.last_mut().unwrap();
        // mov access.cpu(%rsi),%ecx; shl $6,%rcx; mov $counter,%rax
        let mut code = vec![0x8b, 0x4e, 0x08, 0x48, 0xc1, 0xe1, 0x06, 0x48, 0xb8];
        code.extend([0; 8]);
        code.extend([0x48, 0xff, 0x04, 0x08, 0x31, 0xc0, 0xc3]); // incq (%rax,%rcx); xor %eax,%eax; ret
        program.code = code;
        program.relocs[0].offset = 9;
        program.needs.cpu = true;
        id
    }

    /// The sum over all CPUs of a counter.
    pub(crate) fn cpu_value(&self, map: u32, index: u32) -> u64 {
        (0..CPUS).map(|cpu| self.value(map, 8 * cpu + index)).sum()
    }

    /// A link; its id.
    pub(crate) fn probe(&mut self, program: u32, kind: ProbeKind, file: &Path, location: Location) -> u32 {
        let id = 300 + self.links.len() as u32;
        let shared = memory("link", 4096);
        let word =
            |offset: usize, value: u32| shared.write_all_at(&value.to_le_bytes(), offset as u64).unwrap();
        word(offset_of!(LinkShared, version), ABI_VERSION);
        word(offset_of!(LinkShared, id), id);
        word(offset_of!(LinkShared, enabled), 1);
        shared.write_all_at(&LINK_MAGIC.to_le_bytes(), 0).unwrap();
        let data = std::fs::metadata(file).unwrap();
        self.request.probes.push(ProbeRequest {
            link_id: id,
            program_id: program,
            kind,
            file: FileIdentity {
                path: file.to_owned(),
                device: data.dev(),
                inode: data.ino(),
                build_id: None,
            },
            location,
            cookie: 0,
            semaphore: None,
            pid: None,
            count_hits: false,
            shared: Arc::new(copy(&shared)),
        });
        self.links.push(shared);
        id
    }

    /// A program that counts, and its link at the entry of a function; the counter's index is the link's number.
    pub(crate) fn count(
        &mut self,
        map: u32,
        index: u32,
        kind: ProbeKind,
        file: &Path,
        function: &str,
    ) -> u32 {
        let program = self.counter(map, index);
        self.probe(program, kind, file, symbol(function))
    }

    /// A counter of a map.
    pub(crate) fn value(&self, map: u32, index: u32) -> u64 {
        let mut bytes = [0; 8];
        let at = DATA_OFFSET + 8 * u64::from(index);
        self.maps[map as usize - 100].read_exact_at(&mut bytes, at).unwrap();
        u64::from_le_bytes(bytes)
    }

    /// Hits on which the program of a link did not run.
    pub(crate) fn missed(&self, link: u32) -> u64 {
        let mut bytes = [0; 8];
        let at = offset_of!(LinkShared, missed) as u64;
        self.links[link as usize - 300].read_exact_at(&mut bytes, at).unwrap();
        u64::from_le_bytes(bytes)
    }
}

pub(crate) fn symbol(name: &str) -> Location {
    Location::Symbol { name: name.to_owned(), offset: 0 }
}

fn memory(name: &str, len: u64) -> File {
    let file: File =
        nix::sys::memfd::memfd_create(name, nix::sys::memfd::MFdFlags::MFD_CLOEXEC).unwrap().into();
    file.set_len(len).unwrap();
    file
}

fn copy(file: &File) -> OwnedFd {
    file.try_clone().unwrap().into()
}

/// What may not differ after everything is taken out: mappings, and the code itself.
pub(crate) fn snapshot(pid: i32) -> Vec<(String, Vec<u8>)> {
    let process = beeline_remote::Process::open(pid, false).unwrap();
    let maps = process.maps().unwrap();
    let line = |mapping: &beeline_remote::Mapping| {
        let text = format!("{mapping:?}");
        let code = mapping.execute && mapping.read && mapping.name != "[vsyscall]";
        let bytes = if code {
            process.memory().read_vec(mapping.start, mapping.len() as usize).unwrap()
        } else {
            Vec::new()
        };
        (text, bytes)
    };
    // The heap and the stack grow as they like.
    maps.iter().filter(|mapping| !["[heap]", "[stack]"].contains(&mapping.name.as_str())).map(line).collect()
}

/// Open descriptors of a process.
pub(crate) fn descriptors(pid: i32) -> usize {
    std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count()
}

/// Mappings of memory files: ours, and those of the test store.
pub(crate) fn mappings_of_ours(pid: i32) -> usize {
    let maps = beeline_remote::Process::open(pid, false).unwrap().maps().unwrap();
    maps.iter().filter(|mapping| mapping.name.starts_with("/memfd:")).count()
}
