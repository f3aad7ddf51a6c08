//! The synthetic `task_struct` that `bpf_get_current_task` gives a program to read.
//!
//! ```text
//! ProcessBlock::task, shared by the threads:   leader | parent | nsproxy | mnt_namespace
//! RunContext::scratch, of each thread alone:   stamp (64 bytes) | task
//! ```
//!
//! Fields lie where the BTF that the programs were relocated against has them ([`TaskLayout`]); everything else is zero.
//! The main thread's task is the leader, so that `task == task->group_leader` holds there and only there. A thread
//! writes its own task alone. What is shared is written by whoever comes first in a process, with the same bytes by
//! everybody who comes at the same time; the [`ForkPage`] remembers that it was done, and forgets in a fork's child.
//!
//! *Differs*: only the fields of [`TaskLayout`] are there, times are exact to 10 ms, the parent's parent is null, ids
//! are those of the process's own pid namespace.

use crate::identity::{Ids, ids, thread_name};
use crate::{process, sys, time};
use beeline_abi::process::{ForkPage, ProcessBlock, TaskLayout};
use beeline_abi::run::RunContext;
use core::sync::atomic::Ordering::{Acquire, Relaxed, Release};

/// Bytes at `RunContext::scratch` when it is not 0.
pub const SCRATCH_LEN: u64 = 32 << 10;

/// Offset of the thread's own task in its scratch.
const TASK_OFFSET: u64 = 64;

/// For whom the task in a thread's scratch was made.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq)]
struct Stamp {
    epoch: u64,
    tid: u32,
    reserved: u32,
}

const _: () = assert!(size_of::<Stamp>() as u64 <= TASK_OFFSET);

/// Memory of one synthetic object.
#[derive(Clone, Copy)]
struct Object {
    address: u64,
    size: u32,
}

impl Object {
    /// Writes bytes at a field; a field that does not exist is left out.
    ///
    /// # Safety
    ///
    /// The object's memory is ours and writable.
    unsafe fn set(self, offset: u32, bytes: &[u8]) {
        if offset.checked_add(bytes.len() as u32).is_some_and(|end| end <= self.size) {
            // SAFETY: within the object.
            unsafe {
                core::ptr::copy_nonoverlapping(
                    bytes.as_ptr(),
                    (self.address as *mut u8).add(offset as usize),
                    bytes.len(),
                );
            }
        }
    }
}

/// The shared objects of a process.
struct Shared<'a> {
    layout: &'a TaskLayout,
    leader: Object,
    parent: Object,
    nsproxy: Object,
    mnt_ns: Object,
}

impl<'a> Shared<'a> {
    fn of(block: &'a ProcessBlock) -> Option<Shared<'a>> {
        let layout = &block.task_layout;
        if block.task == 0 || layout.size == 0 || u64::from(block.task_len) < layout.memory_len() {
            return None;
        }
        let parent = block.task.wrapping_add(layout.task_bytes());
        let nsproxy = parent.wrapping_add(layout.task_bytes());
        let mnt_ns = nsproxy.wrapping_add(u64::from(layout.nsproxy_size).next_multiple_of(64));
        Some(Shared {
            layout,
            leader: Object { address: block.task, size: layout.size },
            parent: Object { address: parent, size: layout.size },
            nsproxy: Object { address: nsproxy, size: layout.nsproxy_size },
            mnt_ns: Object { address: mnt_ns, size: layout.mnt_ns_size },
        })
    }

    /// Writes what a task of this process does not change. `start` is its start in ticks since boot.
    unsafe fn describe(&self, run: *const RunContext, task: Object, ids: Ids, start: u64) {
        let layout = self.layout;
        // SAFETY: the caller owns `task`; the run is its own.
        unsafe {
            let boot_ns = start.wrapping_mul(NS_PER_TICK);
            let asleep = time::now(run, BOOTTIME).saturating_sub(time::now(run, time::MONOTONIC));
            task.set(layout.pid, &ids.tid.to_le_bytes());
            task.set(layout.tgid, &ids.tgid.to_le_bytes());
            task.set(layout.group_leader, &self.leader.address.to_le_bytes());
            task.set(layout.real_parent, &self.parent.address.to_le_bytes());
            task.set(layout.parent, &self.parent.address.to_le_bytes());
            task.set(layout.nsproxy, &self.nsproxy.address.to_le_bytes());
            task.set(layout.start_boottime, &boot_ns.to_le_bytes());
            task.set(layout.start_time, &boot_ns.saturating_sub(asleep).to_le_bytes());
        }
    }

    /// Fills in what the threads of the process share.
    unsafe fn fill(&self, run: *mut RunContext, ids: Ids) {
        let leader = Ids { tid: ids.tgid, tgid: ids.tgid };
        let mut name = [0u8; 16];
        // SAFETY: the shared objects are ours; concurrent writers write the same.
        unsafe {
            self.describe(run, self.leader, leader, start_ticks(b"/proc/self/stat\0"));
            read_name(b"/proc/self/comm\0", &mut name);
            self.leader.set(self.layout.comm, &name);
            self.nsproxy.set(self.layout.nsproxy_mnt_ns, &self.mnt_ns.address.to_le_bytes());
            self.mnt_ns.set(self.layout.mnt_ns_inum, &mount_namespace().to_le_bytes());
        }
    }

    /// Describes the parent process.
    unsafe fn fill_parent(&self, parent: u32) {
        let mut path = sys::Path::<32>::new();
        path.push(b"/proc/").push_number(parent).push(b"/comm");
        let mut name = [0u8; 16];
        read_name(path.as_bytes(), &mut name);
        // SAFETY: as in `fill`.
        unsafe {
            self.parent.set(self.layout.pid, &parent.to_le_bytes());
            self.parent.set(self.layout.tgid, &parent.to_le_bytes());
            self.parent.set(self.layout.group_leader, &self.parent.address.to_le_bytes());
            self.parent.set(self.layout.comm, &name);
        }
    }
}

/// `CLOCK_BOOTTIME`.
const BOOTTIME: u32 = 7;

/// Nanoseconds of a tick as user space counts them (`USER_HZ` is 100).
const NS_PER_TICK: u64 = 10_000_000;

/// Start time in the `stat` file at `path`, in ticks since boot; 0 when unknown.
fn start_ticks(path: &[u8]) -> u64 {
    let mut stat = [0u8; 512];
    let len = sys::read_file(path, &mut stat);
    stat.get(..len).and_then(|stat| sys::stat_field(stat, 22)).unwrap_or(0)
}

/// Reads a `comm` file, without its newline, at most 15 bytes.
fn read_name(path: &[u8], name: &mut [u8; 16]) {
    let len = sys::read_file(path, name);
    let mut ended = false;
    for (i, byte) in name.iter_mut().enumerate() {
        ended |= i >= len || *byte == b'\n' || i == 15;
        if ended {
            *byte = 0;
        }
    }
}

/// Inode of the mount namespace; 0 when unknown.
fn mount_namespace() -> u32 {
    crate::system::stat_identity(b"/proc/self/ns/mnt\0").map_or(0, |(_, inode)| inode as u32)
}

/// The calling thread's task in its scratch, described when it is another thread's or not there yet.
unsafe fn own_task(run: *mut RunContext, shared: &Shared<'_>, ids: Ids, epoch: u64) -> Option<Object> {
    // SAFETY: the caller's run; scratch memory belongs to the thread.
    unsafe {
        let scratch = (*run).scratch;
        if scratch == 0 || shared.layout.task_bytes() + TASK_OFFSET > SCRATCH_LEN {
            return None;
        }
        let task = Object { address: scratch.wrapping_add(TASK_OFFSET), size: shared.layout.size };
        let stamp = Stamp { epoch, tid: ids.tid, reserved: 0 };
        if (scratch as *const Stamp).read() != stamp {
            shared.describe(run, task, ids, start_ticks(b"/proc/thread-self/stat\0"));
            (scratch as *mut Stamp).write(stamp);
        }
        Some(task)
    }
}

/// `u64 bpf_get_current_task(void)`, `bpf_get_current_task_btf`: address of the thread's task; 0 when the process has
/// none (a test run).
pub(crate) unsafe extern "sysv64" fn get_current_task(
    _: u64,
    _: u64,
    _: u64,
    _: u64,
    _: u64,
    run: *mut RunContext,
) -> u64 {
    // SAFETY: compiled code hands on the run that it was called with.
    unsafe { current(run).unwrap_or(0) }
}

/// `long bpf_task_pt_regs(struct task_struct *task)`: address of the registers with which the probe was hit, whichever task
/// is given; 0 when the run is none of a probe.
pub(crate) unsafe extern "sysv64" fn task_pt_regs(
    _: u64,
    _: u64,
    _: u64,
    _: u64,
    _: u64,
    run: *mut RunContext,
) -> u64 {
    // SAFETY: as in `get_current_task`.
    unsafe { (*run).regs }
}

unsafe fn current(run: *mut RunContext) -> Option<u64> {
    // SAFETY: the caller's run; the injector mapped page and task memory with the block.
    unsafe {
        let block = process(run)?;
        let shared = Shared::of(block)?;
        let ids = ids(run);
        let page = (block.fork_page as *const ForkPage).as_ref()?;
        if page.task_filled.load(Acquire) == 0 {
            shared.fill(run, ids);
            page.task_filled.store(1, Release);
        }
        let parent = sys::call2(sys::nr::GETPPID, 0, 0) as u32;
        if page.parent.swap(parent, Relaxed) != parent || parent == 0 {
            shared.fill_parent(parent);
        }
        let task = if ids.tid == ids.tgid {
            shared.leader
        } else {
            own_task(run, &shared, ids, page.epoch.load(Relaxed))?
        };
        task.set(shared.layout.comm, &thread_name());
        Some(task.address)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::boxed::Box;
    use std::string::String;
    use std::vec;

    const LAYOUT: TaskLayout = TaskLayout {
        size: 200,
        pid: 4,
        tgid: 8,
        comm: 16,
        real_parent: 32,
        parent: 40,
        group_leader: 48,
        start_time: 56,
        start_boottime: 64,
        nsproxy: 72,
        exit_code: u32::MAX,
        nsproxy_mnt_ns: 8,
        nsproxy_pid_ns_for_children: u32::MAX,
        nsproxy_size: 16,
        mnt_ns_inum: 4,
        mnt_ns_size: 8,
    };

    struct World {
        block: Box<ProcessBlock>,
        _page: Box<ForkPage>,
        _task: vec::Vec<u64>,
    }

    fn world() -> World {
        // SAFETY: all fields may be zero.
        let (mut block, page) = unsafe {
            (Box::new(core::mem::zeroed::<ProcessBlock>()), Box::new(core::mem::zeroed::<ForkPage>()))
        };
        let task = vec![0u64; LAYOUT.memory_len() as usize / 8];
        block.fork_page = &raw const *page as u64;
        block.task = task.as_ptr() as u64;
        block.task_len = LAYOUT.memory_len() as u32;
        block.task_layout = LAYOUT;
        World { block, _page: page, _task: task }
    }

    fn word(address: u64, offset: u32) -> u64 {
        // SAFETY: the tests read within the objects.
        unsafe { ((address + u64::from(offset)) as *const u64).read_unaligned() }
    }

    fn name(address: u64) -> String {
        // SAFETY: as in `word`.
        unsafe { core::ffi::CStr::from_ptr((address + u64::from(LAYOUT.comm)) as *const _) }
            .to_str()
            .unwrap()
            .into()
    }

    #[test]
    fn a_thread_and_its_leader() {
        let world = world();
        let process = &raw const *world.block as u64;
        let pid = u64::from(std::process::id());
        std::thread::scope(|scope| {
            std::thread::Builder::new()
                .name("worker".into())
                .spawn_scoped(scope, move || {
                    let scratch = vec![0u64; SCRATCH_LEN as usize / 8];
                    let mut run =
                        RunContext { process, scratch: scratch.as_ptr() as u64, ..RunContext::default() };
                    // SAFETY: the run is valid.
                    let task = unsafe { get_current_task(0, 0, 0, 0, 0, &mut run) };
                    assert_eq!(task, scratch.as_ptr() as u64 + TASK_OFFSET);
                    assert_eq!(word(task, LAYOUT.pid) as u32, sys::thread_id());
                    assert_eq!(word(task, LAYOUT.tgid) as u32, std::process::id());
                    assert_eq!(name(task), "worker");
                    let leader = word(task, LAYOUT.group_leader);
                    assert_eq!(
                        (word(leader, LAYOUT.pid), word(leader, LAYOUT.tgid) as u32),
                        (pid << 32 | pid, pid as u32)
                    );
                    assert_eq!(word(leader, LAYOUT.group_leader), leader);
                    assert_eq!(name(leader), std::fs::read_to_string("/proc/self/comm").unwrap().trim_end());
                    let parent = word(task, LAYOUT.real_parent);
                    let parent_pid = std::os::unix::process::parent_id();
                    assert_eq!(word(parent, LAYOUT.tgid) as u32, parent_pid);
                    let parent_name =
                        std::fs::read_to_string(std::format!("/proc/{parent_pid}/comm")).unwrap();
                    assert_eq!(name(parent), parent_name.trim_end());
                    let mnt_ns = word(word(task, LAYOUT.nsproxy), LAYOUT.nsproxy_mnt_ns);
                    let link = std::fs::read_link("/proc/self/ns/mnt").unwrap();
                    // SAFETY: as in `word`.
                    let inode = unsafe { ((mnt_ns + 4) as *const u32).read() };
                    assert_eq!(std::format!("mnt:[{inode}]"), link.to_str().unwrap());
                    assert!(word(task, LAYOUT.start_boottime) >= word(leader, LAYOUT.start_boottime));
                    assert!(word(leader, LAYOUT.start_time) <= sys::clock_ns(time::MONOTONIC));
                })
                .unwrap()
                .join()
                .unwrap();
        });
    }

    #[test]
    fn without_room_there_is_no_task() {
        let mut world = world();
        world.block.task_len -= 1;
        let mut run = RunContext { process: &raw const *world.block as u64, ..RunContext::default() };
        // SAFETY: the runs are valid.
        unsafe {
            assert_eq!(get_current_task(0, 0, 0, 0, 0, &mut run), 0);
            assert_eq!(get_current_task(0, 0, 0, 0, 0, &mut RunContext::default()), 0);
        }
    }

    #[test]
    fn names_end_at_the_newline() {
        let mut name = [0u8; 16];
        read_name(b"/proc/self/comm\0", &mut name);
        assert_eq!(name[15], 0);
        assert!(!name.contains(&b'\n'));
        name = [7; 16];
        read_name(b"/none\0", &mut name);
        assert_eq!(name, [0; 16]);
    }
}
