//! A process that may be worked on: checked, and facts about its threads.

use crate::error::TargetRefused;
use crate::files::MappedFiles;
use beeline_abi::process::ProcessBlock;
use beeline_ptrace::{RunState, StopError, StoppedProcess, read_status};
use beeline_remote::{Mappings, Process, RemoteError, can_be_borrowed, thread_pointer, vdso};
use beeline_site::Binary;
use beeline_stub::ThreadKey;
use std::io;

/// `AT_HWCAP2`, and in it `HWCAP2_FSGSBASE`: user mode may execute `rdfsbase`.
const AT_HWCAP2: u64 = 26;
const HWCAP2_FSGSBASE: u64 = 1 << 1;

/// Index of a thread that can be borrowed; none when each of them has to go on for a moment before.
pub(crate) fn borrowable(process: &Process, stopped: &StoppedProcess) -> Option<usize> {
    stopped.threads().iter().position(|thread| can_be_borrowed(process, thread).is_ok_and(|can| can))
}

/// Opens a process that we can work on.
pub(crate) fn open(pid: i32) -> Result<Process, TargetRefused> {
    let status = match read_status(pid) {
        Ok(status) => status,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(StopError::NoSuchProcess { pid }.into());
        }
        Err(source) => return Err(StopError::Proc { pid, source }.into()),
    };
    // What stop() refuses anyway is refused here with its better reason, before files are missed.
    if status.state == RunState::Zombie || !status.has_memory || status.tracer != 0 {
        StoppedProcess::check(pid)?;
    }
    open_traced(status.tgid)
}

/// Opens a process that we trace, or that nobody does.
pub(crate) fn open_traced(pid: i32) -> Result<Process, TargetRefused> {
    let process = match Process::open(pid, true) {
        Ok(process) => process,
        Err(_) => return Err(StoppedProcess::refusal(pid).into()),
    };
    if !process.is_x86_64().map_err(|error| remote(pid, error))? {
        let exe = process.exe().unwrap_or_default();
        return Err(TargetRefused::WrongArchitecture { pid, exe });
    }
    Ok(process)
}

/// Valgrind executes translations of the code: a jump in it would be followed by nobody, or by valgrind itself.
pub(crate) fn refuse_translated(process: &Process) -> Result<(), TargetRefused> {
    let exe = process.exe().unwrap_or_default();
    let name = exe.file_name().unwrap_or_default().to_string_lossy();
    let of_valgrind = exe.parent().is_some_and(|folder| folder.ends_with("valgrind"));
    if of_valgrind && name.ends_with("-linux") {
        return Err(TargetRefused::Translated { pid: process.pid(), exe });
    }
    Ok(())
}

/// It traces others, or looks for its leaks as their tracer (LeakSanitizer): its children, or it itself, cannot have another tracer.
pub(crate) fn is_tracer(process: &Process) -> bool {
    let Ok(maps) = process.maps() else { return false };
    let files = MappedFiles::of(&maps);
    let Some(program) = executable(process, &maps, &files) else { return false };
    let has_leak_check = |name: &String| name.starts_with("libasan.so") || name.starts_with("liblsan.so");
    let symbols = program.symbols();
    let defines = |name: &&str| !symbols.named(name).is_empty();
    symbols.imports("ptrace")
        || program.needed().iter().any(has_leak_check)
        || ["ptrace", "__lsan_do_leak_check"].iter().any(defines)
}

/// An error of the remote side, with its process.
pub(crate) fn remote(pid: i32, source: RemoteError) -> TargetRefused {
    TargetRefused::Remote { pid, source }
}

/// Seccomp's strict mode leaves no room for us.
pub(crate) fn check_seccomp(process: &Process) -> Result<(), TargetRefused> {
    const STRICT: u32 = 1;
    if process.seccomp().map_err(|error| remote(process.pid(), error))? != STRICT {
        return Ok(());
    }
    let reason = "strict mode allows read, write and exit only".to_owned();
    Err(TargetRefused::Seccomp { pid: process.pid(), reason })
}

/// The process can execute `rdfsbase`.
pub(crate) fn has_rdfsbase(process: &Process) -> bool {
    process.auxiliary(AT_HWCAP2).is_ok_and(|word| word.unwrap_or(0) & HWCAP2_FSGSBASE != 0)
}

/// The file that the process executes.
pub(crate) fn executable<'a>(
    process: &Process,
    maps: &Mappings,
    files: &'a MappedFiles,
) -> Option<&'a Binary> {
    const AT_ENTRY: u64 = 9;
    let entry = process.auxiliary(AT_ENTRY).ok()??;
    maps.at(entry)?;
    files.at(entry)?.binary(process).ok()
}

/// What the block says of the kernel; it does not change while the process runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Surroundings {
    vdso_clock_gettime: u64,
    /// Its ids mean nothing to others.
    foreign: bool,
    /// Where glibc keeps `struct rseq`.
    libc_rseq: Option<i64>,
    /// No loader, no libraries.
    is_static: bool,
}

impl Surroundings {
    /// A loader maps its libraries.
    pub(crate) fn has_loader(&self) -> bool {
        !self.is_static
    }

    pub(crate) fn of(
        process: &Process,
        maps: &Mappings,
        files: &MappedFiles,
    ) -> Result<Surroundings, TargetRefused> {
        let clock = vdso::symbol(process, maps, "__vdso_clock_gettime");
        Ok(Surroundings {
            vdso_clock_gettime: clock.map_err(|error| remote(process.pid(), error))?.unwrap_or(0),
            foreign: is_foreign(process),
            libc_rseq: libc_rseq_offset(process, files),
            is_static: executable(process, maps, files).is_some_and(|binary| binary.interpreter().is_none()),
        })
    }
}

/// What the block says of threads and kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Facts {
    pub(crate) self_pointer: bool,
    pub(crate) tid_offset: u32,
    pub(crate) rseq_offset: i64,
    pub(crate) vdso_clock_gettime: u64,
    /// `ProcessBlock::FLAG_RSEQ`, `FLAG_FOREIGN_IDS`.
    pub(crate) flags: u32,
}

impl Facts {
    /// Looks at a process that stands still.
    pub(crate) fn of(
        process: &Process,
        stopped: &StoppedProcess,
        surroundings: &Surroundings,
    ) -> Result<Facts, TargetRefused> {
        let threads =
            thread_pointer::examine(process, stopped).map_err(|error| remote(process.pid(), error))?;
        // Only the C library's own area is registered for every thread to come. A stripped static program does not name
        // it, but has no other library that could have registered one.
        let is_libc = |&offset: &i64| match surroundings.libc_rseq {
            Some(known) => known == offset,
            None => surroundings.is_static,
        };
        let rseq = threads.rseq_offset.filter(is_libc);
        let mut flags = if rseq.is_some() { ProcessBlock::FLAG_RSEQ } else { 0 };
        if surroundings.foreign {
            flags |= ProcessBlock::FLAG_FOREIGN_IDS;
        }
        Ok(Facts {
            self_pointer: threads.self_pointer,
            tid_offset: threads.tid_offset.unwrap_or(0),
            rseq_offset: rseq.unwrap_or(0),
            vdso_clock_gettime: surroundings.vdso_clock_gettime,
            flags,
        })
    }
}

/// Its pid or time namespace is not ours.
fn is_foreign(process: &Process) -> bool {
    let Ok(ours) = Process::open(std::process::id() as i32, false) else { return false };
    ["pid", "time"].iter().any(|kind| process.namespace(kind) != ours.namespace(kind))
}

/// glibc's `__rseq_offset`, where it registers every thread's `struct rseq` (2.35 and later).
fn libc_rseq_offset(process: &Process, files: &MappedFiles) -> Option<i64> {
    files.iter().find_map(|file| {
        let binary = file.binary(process).ok()?;
        let word = |name: &str| {
            let variable = binary.variable(name)?;
            let segment = binary.segments().iter().find(|segment| segment.executable)?;
            // From where a byte of its code is mapped to where its data is.
            let base = file.addresses(segment.file_offset).first()?.wrapping_sub(segment.vaddr);
            process.memory().read_u64(base.wrapping_add(variable)).ok()
        };
        let size = word("__rseq_size")? as u32;
        let offset = word("__rseq_offset")? as i64;
        (size != 0).then_some(offset)
    })
}

/// How stubs find a thread's slot, as far as the file tells; what holds is seen when the threads stand still.
pub(crate) fn likely_thread_key(executable: Option<&Binary>) -> ThreadKey {
    if executable.is_some_and(Binary::is_go) { ThreadKey::FsBase } else { ThreadKey::FsSelf }
}

/// The process's id in its own pid namespace.
pub(crate) fn inner_pid(process: &Process) -> u32 {
    let inside = read_status(process.pid()).ok().and_then(|status| status.ids_inside);
    inside.map_or(process.pid(), |[tgid, _]| tgid) as u32
}
