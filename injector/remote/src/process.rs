//! A process seen from outside, through `/proc`.

use crate::error::RemoteError;
use crate::maps::{Mapping, Mappings};
use crate::memory::Memory;
use beeline_ptrace::{Dispatch, Tid, read_status, thread_ids};
use std::cell::Cell;
use std::fs;
use std::fs::File;
use std::io;
use std::io::Read;
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

const PAGE: u64 = 4096;
/// Bytes that are read of a file of `/proc` at first.
const READ_LEN: usize = 32 << 10;

/// A process, by the id of one of its living threads.
#[derive(Debug)]
pub struct Process {
    pid: Tid,
    /// A thread that is alive: `/proc/PID` of a leader that has exited shows no memory.
    tid: Tid,
    memory: Memory,
    /// How its threads' calls are dispatched by who looks at it.
    own_dispatch: Cell<Option<Dispatch>>,
}

/// Addresses above the program break that are left for the heap.
const HEAP_ROOM: u64 = 1 << 30;

impl Process {
    /// Looks at process `pid`. Reading its memory needs the rights to trace it; writing is opened with `write`.
    ///
    /// # Errors
    /// When it does not exist or may not be looked at.
    pub fn open(pid: Tid, write: bool) -> Result<Process, RemoteError> {
        let tid = living_thread(pid);
        Ok(Process { pid, tid, memory: Memory::open(tid, write)?, own_dispatch: Cell::new(None) })
    }

    /// Its id.
    pub fn pid(&self) -> Tid {
        self.pid
    }

    /// Says that threads whose system calls are dispatched like this can be borrowed all the same: for the time they are not.
    pub fn set_own_dispatch(&self, how: Option<Dispatch>) {
        self.own_dispatch.set(how);
    }

    /// What [`set_own_dispatch`](Process::set_own_dispatch) said.
    pub fn own_dispatch(&self) -> Option<Dispatch> {
        self.own_dispatch.get()
    }

    /// Its memory.
    pub fn memory(&self) -> &Memory {
        &self.memory
    }

    /// Its mappings as they are now.
    ///
    /// # Errors
    /// When `/proc` cannot be read.
    pub fn maps(&self) -> Result<Mappings, RemoteError> {
        let text = self.read("maps")?;
        Ok(Mappings::parse(&String::from_utf8_lossy(&text)))
    }

    /// The parts of a private mapping that it has written, whole pages, in order: elsewhere its file stands.
    ///
    /// # Errors
    /// When `/proc` cannot be read, as on a kernel that keeps it for root.
    pub fn written(&self, range: Range<u64>) -> Result<Vec<Range<u64>>, RemoteError> {
        /// Of an entry of `pagemap` (`Documentation/admin-guide/mm/pagemap.rst`): in memory; swapped; of a file.
        const PRESENT: u64 = 1 << 63;
        const SWAPPED: u64 = 1 << 62;
        const OF_FILE: u64 = 1 << 61;
        const ENTRY: u64 = 8;
        let first = range.start / PAGE;
        let mut entries = vec![0; (ENTRY * (range.end.div_ceil(PAGE) - first)) as usize];
        let mut read = || File::open(self.proc_path("pagemap"))?.read_exact_at(&mut entries, ENTRY * first);
        read().map_err(|source| self.failed("pagemap", source))?;
        let mut written: Vec<Range<u64>> = Vec::new();
        for (index, entry) in (first..).zip(entries.chunks_exact(ENTRY as usize)) {
            let entry = entry.try_into().map_or(0, u64::from_le_bytes);
            if entry & (PRESENT | SWAPPED) == 0 || entry & OF_FILE != 0 {
                continue;
            }
            let page = PAGE * index..PAGE * (index + 1);
            match written.last_mut().filter(|last| last.end == page.start) {
                Some(last) => last.end = page.end,
                None => written.push(page),
            }
        }
        Ok(written)
    }

    /// The entry of the auxiliary vector of this kind (`AT_*`).
    ///
    /// # Errors
    /// When `/proc` cannot be read.
    pub fn auxiliary(&self, kind: u64) -> Result<Option<u64>, RemoteError> {
        let bytes = self.read("auxv")?;
        let word = |at: &[u8]| at.try_into().map(u64::from_le_bytes).unwrap_or(0);
        let mut entries = bytes.chunks_exact(16).map(|entry| (word(&entry[..8]), word(&entry[8..])));
        Ok(entries.find(|&(key, _)| key == kind).map(|(_, value)| value))
    }

    /// Its environment had this variable when it began to execute its program. False where that cannot be read.
    pub fn began_with_variable(&self, name: &str) -> bool {
        let environment = self.read("environ").unwrap_or_default();
        let mut entries = environment.split(|&byte| byte == 0);
        entries.any(|entry| entry.strip_prefix(name.as_bytes()).is_some_and(|rest| rest.starts_with(b"=")))
    }

    /// The file that it executes.
    ///
    /// # Errors
    /// When `/proc` cannot be read.
    pub fn exe(&self) -> Result<PathBuf, RemoteError> {
        let path = self.proc_path("exe");
        fs::read_link(&path).map_err(|source| self.failed("exe", source))
    }

    /// It runs a 64-bit x86 program: the class and machine of the file it executes.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn is_x86_64(&self) -> Result<bool, RemoteError> {
        let mut header = [0u8; 20];
        let mut file = File::open(self.proc_path("exe")).map_err(|source| self.failed("exe", source))?;
        file.read_exact(&mut header).map_err(|source| self.failed("exe", source))?;
        Ok(header[..5] == [0x7f, b'E', b'L', b'F', 2] && header[18..20] == [62, 0])
    }

    /// The seccomp mode of each of its threads, the strictest: 0 none, 1 strict, 2 filter.
    ///
    /// # Errors
    /// When `/proc` cannot be read.
    pub fn seccomp(&self) -> Result<u32, RemoteError> {
        let threads = thread_ids(self.pid).map_err(|source| self.failed("task", source))?;
        let modes: Vec<u32> =
            threads.iter().filter_map(|&tid| read_status(tid).ok()).map(|status| status.seccomp).collect();
        Ok(if modes.contains(&1) { 1 } else { modes.into_iter().max().unwrap_or(0) })
    }

    /// Inode number of one of its namespaces (`pid`, `mnt`, `time`, ...); none where the kernel has no such kind.
    pub fn namespace(&self, kind: &str) -> Option<u64> {
        fs::metadata(self.proc_path(&format!("ns/{kind}"))).ok().map(|data| data.ino())
    }

    /// A path by which the file behind `mapping` can be opened, even when it was removed or lies in another mount
    /// namespace. The file that is found is the mapped one: its inode is compared.
    ///
    /// # Errors
    /// `NotFound` when there is no way to it.
    pub fn file_of(&self, mapping: &Mapping) -> Result<PathBuf, RemoteError> {
        let range = format!("map_files/{:x}-{:x}", mapping.start, mapping.end);
        let inside = mapping.name.strip_prefix('/').unwrap_or(&mapping.name);
        let rooted = self.proc_path("root").join(inside);
        let candidates = [self.proc_path(&range), rooted, self.proc_path("exe")];
        let is_it = |path: &PathBuf| fs::metadata(path).is_ok_and(|data| data.ino() == mapping.inode);
        candidates.into_iter().find(is_it).ok_or_else(|| {
            let source = io::Error::from(io::ErrorKind::NotFound);
            RemoteError::Proc { what: format!("the mapped file {}", mapping.name), source }
        })
    }

    /// A path of the process's own view of the file system.
    pub fn in_its_root(&self, path: &Path) -> PathBuf {
        self.proc_path("root").join(path.strip_prefix("/").unwrap_or(path))
    }

    /// A free range of `len` bytes within `reach`; see [`Mappings::free_range`]. The room above its program break
    /// is left free even when it has no heap yet.
    ///
    /// # Errors
    /// [`RemoteError::NoGap`] when there is none.
    pub fn free_range(
        &self,
        maps: &Mappings,
        len: u64,
        reach: Range<u64>,
        avoid: &[Range<u64>],
    ) -> Result<u64, RemoteError> {
        let mut avoid = avoid.to_vec();
        avoid.extend(self.program_break().map(|start| start..start.saturating_add(HEAP_ROOM)));
        let near = reach.start + (reach.end - reach.start) / 2;
        maps.free_range(len, reach, &avoid).ok_or(RemoteError::NoGap { len, near })
    }

    /// `start_brk` of `/proc/PID/stat`.
    fn program_break(&self) -> Option<u64> {
        let text = self.read("stat").ok()?;
        let text = String::from_utf8_lossy(&text);
        // The name may contain anything; the fields behind its closing parenthesis begin with the third.
        let value = text.rsplit(')').next()?.split_whitespace().nth(47 - 3)?.parse().ok()?;
        (value != 0).then_some(value)
    }

    fn read(&self, name: &str) -> Result<Vec<u8>, RemoteError> {
        // It has no length that `std` could go by; the room is for most of them.
        let mut bytes = Vec::with_capacity(READ_LEN);
        let mut read = || File::open(self.proc_path(name))?.read_to_end(&mut bytes);
        read().map_err(|source| self.failed(name, source))?;
        Ok(bytes)
    }

    fn proc_path(&self, name: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/{name}", self.tid))
    }

    fn failed(&self, name: &str, source: io::Error) -> RemoteError {
        RemoteError::Proc { what: format!("/proc/{}/{name}", self.tid), source }
    }
}

/// The leader, or another thread when the leader has exited.
fn living_thread(pid: Tid) -> Tid {
    if read_status(pid).is_ok_and(|status| status.has_memory) {
        return pid;
    }
    let threads = thread_ids(pid).unwrap_or_default();
    threads.into_iter().find(|&tid| read_status(tid).is_ok_and(|status| status.has_memory)).unwrap_or(pid)
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::memfd::{MFdFlags, memfd_create};
    use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

    #[test]
    fn this_process() {
        let process = Process::open(std::process::id() as Tid, false).unwrap();
        assert!(process.is_x86_64().unwrap());
        assert_eq!(process.exe().unwrap(), std::env::current_exe().unwrap());
        let maps = process.maps().unwrap();
        let here = this_process as *const () as u64;
        let text = maps.at(here).unwrap();
        assert!(text.execute);
        let file = process.file_of(text).unwrap();
        assert_eq!(fs::read(file).unwrap().len(), fs::read("/proc/self/exe").unwrap().len());
        let value = 0x1122_3344_5566_7788u64;
        assert_eq!(process.memory().read_u64(&raw const value as u64).unwrap(), value);
        assert!(process.memory().read_u64(0).is_err());
        assert_eq!(process.auxiliary(libc::AT_PAGESZ).unwrap(), Some(4096));
        assert!(process.program_break().is_some());
        assert!(process.namespace("pid").is_some());
    }

    #[test]
    fn written_parts_of_a_private_mapping() {
        const PAGES: usize = 8;
        let file = tempfile(PAGES * PAGE as usize);
        let len = std::num::NonZeroUsize::new(PAGES * PAGE as usize).unwrap();
        let rights = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new private mapping of a file of our own.
        let start = unsafe { mmap(None, len, rights, MapFlags::MAP_PRIVATE, &file, 0).unwrap() };
        let bytes = start.cast::<u8>();
        for page in [1, 2, 5] {
            // SAFETY: in the mapping, which nobody else refers to.
            unsafe { bytes.add(page * PAGE as usize + 7).write_volatile(1) };
        }
        // SAFETY: as above.
        assert_eq!(unsafe { bytes.add(3 * PAGE as usize).read_volatile() }, 0);
        let process = Process::open(std::process::id() as Tid, false).unwrap();
        let start_address = bytes.as_ptr() as u64;
        let page = |index: u64| start_address + PAGE * index;
        assert_eq!(
            process.written(page(0)..page(PAGES as u64)).unwrap(),
            [page(1)..page(3), page(5)..page(6)]
        );
        let part = process.written(page(2) + 5..page(2) + 6).unwrap();
        assert_eq!((part.len(), part.first()), (1, Some(&(page(2)..page(3)))));
        // SAFETY: the mapping of above; nothing refers to it any more.
        unsafe { munmap(start, len.get()).unwrap() };
    }

    fn tempfile(len: usize) -> File {
        let file: File = memfd_create(c"written", MFdFlags::MFD_CLOEXEC).unwrap().into();
        file.set_len(len as u64).unwrap();
        file
    }
}
