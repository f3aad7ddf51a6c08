//! What an object is read for: the kernel, or the kernel that is pretended.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::btf::{Btf, builtin};
use crate::kconfig::Kconfig;

/// Everything outside the file that decides what its programs become.
///
/// [`Options::default`] touches nothing outside the process; [`Options::of_this_machine`] describes this one.
#[derive(Clone, Debug)]
pub struct Options {
    /// The object's name, from which the kernel's names of data maps derive. libbpf: the file's name to its first dot.
    pub object_name: String,
    /// Types that CO-RE adapts the programs to. `None`: the small built-in set.
    pub target_btf: Option<Arc<Btf>>,
    /// Values of `CONFIG_*` externs.
    pub kconfig: Kconfig,
    /// `LINUX_KERNEL_VERSION`: major << 16 | minor << 8 | patch.
    pub kernel_version: u32,
    /// Possible CPUs: the size of a perf event array that does not say.
    pub possible_cpus: u32,
    /// `LINUX_HAS_BPF_COOKIE`.
    pub has_bpf_cookie: bool,
    /// `LINUX_HAS_SYSCALL_WRAPPER`: system calls are functions that take `pt_regs` (x86-64 since Linux 4.17).
    pub has_syscall_wrapper: bool,
    /// Typed kernel symbols (`__ksym` variables and functions) are looked up in `target_btf`, as libbpf does. When
    /// false there are none: weak ones are null or poisoned, strong ones an error.
    pub kernel_symbols: bool,
    /// Names of the kernel functions that exist without a kernel: these are looked up in any case.
    pub kernel_functions: Vec<&'static str>,
    /// Names of `extern` functions that are functions of the target.
    pub host_functions: BTreeSet<String>,
    /// Addresses of typeless kernel symbols.
    pub kernel_addresses: BTreeMap<String, u64>,
    /// Programs to prepare, or not, against what their `SEC("?...")` says.
    pub autoload: BTreeMap<String, bool>,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            object_name: String::new(),
            target_btf: None,
            kconfig: Kconfig::default(),
            kernel_version: 6 << 16,
            possible_cpus: 1,
            has_bpf_cookie: true,
            has_syscall_wrapper: true,
            kernel_symbols: false,
            kernel_functions: Vec::new(),
            host_functions: BTreeSet::new(),
            kernel_addresses: BTreeMap::new(),
            autoload: BTreeMap::new(),
        }
    }
}

impl Options {
    /// This machine's kernel: its BTF when it shows one, configuration, version and CPUs.
    pub fn of_this_machine() -> Options {
        Options {
            target_btf: Btf::load_kernel().ok().map(Arc::new),
            kconfig: Kconfig::of_this_machine(),
            kernel_version: kernel_version().unwrap_or(6 << 16),
            possible_cpus: possible_cpus().unwrap_or(1),
            ..Options::default()
        }
    }

    /// The same with the name that libbpf derives from a path: the file's name up to its first dot.
    pub fn named_after(mut self, path: &std::path::Path) -> Options {
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        self.object_name = name.split('.').next().unwrap_or_default().to_owned();
        self
    }

    /// The types that CO-RE adapts programs to.
    pub fn target(&self) -> Arc<Btf> {
        self.target_btf.clone().unwrap_or_else(builtin::btf)
    }
}

/// The running kernel's version as `LINUX_KERNEL_VERSION` counts it.
pub fn kernel_version() -> Option<u32> {
    parse_version(&std::fs::read_to_string("/proc/sys/kernel/osrelease").ok()?)
}

/// `KERNEL_VERSION(major, minor, patch)`: the patch level is capped at 255.
fn parse_version(release: &str) -> Option<u32> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse::<u32>);
    let (major, minor) = (numbers.next()?.ok()?, numbers.next()?.ok()?);
    let patch = numbers.next().and_then(Result::ok).unwrap_or(0);
    Some(major << 16 | minor << 8 | patch.min(255))
}

/// Possible CPUs: what `/sys/devices/system/cpu/possible` lists.
pub fn possible_cpus() -> Option<u32> {
    count_cpus(&std::fs::read_to_string("/sys/devices/system/cpu/possible").ok()?)
}

fn count_cpus(list: &str) -> Option<u32> {
    let mut count = 0;
    for range in list.trim().split(',') {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last): (u32, u32) = (first.parse().ok()?, last.parse().ok()?);
        count += last.checked_sub(first)? + 1;
    }
    Some(count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions() {
        assert_eq!(parse_version("6.18.5-debian"), Some(0x06_12_05));
        assert_eq!(parse_version("5.4\n"), Some(0x05_04_00));
        assert_eq!(parse_version("4.19.300"), Some(0x04_13_ff));
        assert_eq!(parse_version("x"), None);
    }

    #[test]
    fn cpu_lists() {
        assert_eq!(count_cpus("0-3,8\n"), Some(5));
        assert_eq!(count_cpus("0\n"), Some(1));
        assert_eq!(count_cpus("3-1"), None);
    }

    #[test]
    fn object_names() {
        let name = |path: &str| Options::default().named_after(std::path::Path::new(path)).object_name;
        assert_eq!(name("/x/malloc.bpf.o"), "malloc");
        assert_eq!(name("a"), "a");
    }
}
