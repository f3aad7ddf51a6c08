//! The machine: CPU, NUMA node, random numbers, control group.

use crate::sys::{self, nr};
use crate::{error, process};
use beeline_abi::errno::{E2BIG, EAGAIN};
use beeline_abi::map::MapHandle;
use beeline_abi::process::ProcessBlock;
use beeline_abi::run::RunContext;

/// The CPU that the run is bound to, or else the one the thread is on at this moment.
///
/// # Safety
///
/// `run` is valid and used by the calling thread alone.
#[inline]
pub unsafe fn cpu(run: *const RunContext) -> u32 {
    /// Offset of `cpu_id` in `struct rseq`.
    const CPU_ID: i64 = 4;
    // SAFETY: the caller's contract; with FLAG_RSEQ every thread's control block has a `struct rseq` at that offset.
    unsafe {
        if (*run).access.cpu != RunContext::NO_CPU {
            return (*run).access.cpu;
        }
        if let Some(block) = process(run)
            && block.flags & ProcessBlock::FLAG_RSEQ != 0
        {
            let cpu = sys::fs_u32(block.rseq_offset.wrapping_add(CPU_ID));
            if cpu < block.cpus {
                return cpu;
            }
        }
    }
    sys::cpu_and_node().0
}

/// `u32 bpf_get_smp_processor_id(void)`.
pub(crate) unsafe extern "sysv64" fn get_smp_processor_id(
    _: u64,
    _: u64,
    _: u64,
    _: u64,
    _: u64,
    run: *mut RunContext,
) -> u64 {
    // SAFETY: compiled code hands on the run that it was called with.
    unsafe { cpu(run).into() }
}

/// `long bpf_get_numa_node_id(void)`.
pub(crate) unsafe extern "sysv64" fn get_numa_node_id(
    _: u64,
    _: u64,
    _: u64,
    _: u64,
    _: u64,
    _: *mut RunContext,
) -> u64 {
    sys::cpu_and_node().1.into()
}

/// `long bpf_current_task_under_cgroup(struct bpf_map *map, u32 index)`: 1 when the thread is in the control group at that
/// index or below.
///
/// Errors: `-E2BIG` no such index, `-EAGAIN` no group there.
///
/// *Differs*: groups cannot be put into such a map here, so there never is one.
pub(crate) unsafe extern "sysv64" fn current_task_under_cgroup(
    map: u64,
    index: u64,
    _: u64,
    _: u64,
    _: u64,
    _: *mut RunContext,
) -> u64 {
    // SAFETY: the linker gave the program a validated handle.
    let entries = unsafe { (*(map as *const MapHandle)).shape.max_entries };
    error(if index as u32 >= entries { E2BIG } else { EAGAIN })
}

/// `u32 bpf_get_prandom_u32(void)`: SplitMix64, seeded for each thread from the clock and its slot's address.
pub(crate) unsafe extern "sysv64" fn get_prandom_u32(
    _: u64,
    _: u64,
    _: u64,
    _: u64,
    _: u64,
    run: *mut RunContext,
) -> u64 {
    // SAFETY: compiled code hands on the run that it was called with.
    unsafe {
        if (*run).random == 0 {
            (*run).random = crate::time::now(run, crate::time::MONOTONIC) ^ (run as u64).rotate_left(32) | 1;
        }
        (*run).random = (*run).random.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = (*run).random;
        mixed = (mixed ^ mixed >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
        (mixed ^ mixed >> 31) >> 32
    }
}

/// Device and inode of a file; `None` when there is none. `path` ends with a NUL.
pub(crate) fn stat_identity(path: &[u8]) -> Option<(u64, u64)> {
    const AT_FDCWD: u64 = -100i64 as u64;
    // `struct stat` of x86-64 begins with `st_dev`, `st_ino`.
    let mut stat = [0u64; 18];
    if path.last() != Some(&0) {
        return None;
    }
    // SAFETY: the path is terminated, `struct stat` has 144 bytes.
    let result =
        unsafe { sys::call4(nr::NEWFSTATAT, AT_FDCWD, path.as_ptr() as u64, stat.as_mut_ptr() as u64, 0) };
    let [device, inode, ..] = stat;
    (result == 0).then_some((device, inode))
}

/// `u64 bpf_get_current_cgroup_id(void)`: id of the process's group in the version 2 hierarchy, which is the inode of
/// its directory; 0 when that cannot be found.
///
/// *Differs*: the hierarchy must be mounted at its usual place, and it costs a few system calls.
pub(crate) unsafe extern "sysv64" fn get_current_cgroup_id(
    _: u64,
    _: u64,
    _: u64,
    _: u64,
    _: u64,
    _: *mut RunContext,
) -> u64 {
    let mut text = [0u8; 1024];
    let len = sys::read_file(b"/proc/self/cgroup\0", &mut text);
    let Some(group) = text.get(..len).and_then(unified_group) else { return 0 };
    for mount in [b"/sys/fs/cgroup".as_slice(), b"/sys/fs/cgroup/unified"] {
        // Only the version 2 hierarchy has this file.
        let mut controllers = sys::Path::<64>::new();
        controllers.push(mount).push(b"/cgroup.controllers");
        if stat_identity(controllers.as_bytes()).is_none() {
            continue;
        }
        let mut path = sys::Path::<1100>::new();
        path.push(mount).push(group);
        if let Some((_, inode)) = stat_identity(path.as_bytes()) {
            return inode;
        }
    }
    0
}

/// The path in the line `0::/path` of a `/proc/PID/cgroup`.
fn unified_group(text: &[u8]) -> Option<&[u8]> {
    let line = text.split(|&byte| byte == b'\n').find_map(|line| line.strip_prefix(b"0::"))?;
    Some(line.strip_suffix(b" (deleted)").unwrap_or(line))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups() {
        assert_eq!(unified_group(b"1:cpu:/a\n0::/b/c\n"), Some(b"/b/c".as_slice()));
        assert_eq!(unified_group(b"0::/\n"), Some(b"/".as_slice()));
        assert_eq!(unified_group(b"1:cpu:/a\n"), None);
    }

    #[test]
    fn random_numbers_differ() {
        let mut run = RunContext::default();
        // SAFETY: the run is valid.
        let numbers = [(); 64].map(|()| unsafe { get_prandom_u32(0, 0, 0, 0, 0, &mut run) });
        assert!(numbers.iter().all(|&number| number <= u32::MAX.into()));
        assert!(numbers.iter().enumerate().all(|(i, number)| !numbers[..i].contains(number)));
        assert!(numbers.iter().any(|number| number & 1 << 31 != 0));
    }

    #[test]
    fn cpu_of_a_bound_run() {
        let mut run = RunContext::default();
        run.access.cpu = 7;
        // SAFETY: the run is valid.
        unsafe {
            assert_eq!(get_smp_processor_id(0, 0, 0, 0, 0, &mut run), 7);
            run.access.cpu = RunContext::NO_CPU;
            assert!(get_smp_processor_id(0, 0, 0, 0, 0, &mut run) < 8192);
        }
    }

    #[test]
    fn files() {
        use std::os::unix::fs::MetadataExt;
        let meta = std::fs::metadata("/proc/self/ns/pid").unwrap();
        assert_eq!(stat_identity(b"/proc/self/ns/pid\0"), Some((meta.dev(), meta.ino())));
        assert_eq!(stat_identity(b"/none\0"), None);
    }
}
