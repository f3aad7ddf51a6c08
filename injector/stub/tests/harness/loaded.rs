//! Probes in the libraries of the test's own process.
#![allow(dead_code, reason = "each test binary uses a part of it")]

use crate::harness::World;
use beeline_site::{Binary, SitePlan, WINDOW_MIN, plan, plan_return};
use beeline_stub::{ARENA_OVERHEAD, Arena, LinkCode, SiteCode, patch_bytes, stub_len_max};
use std::ffi::c_void;
use std::fs::File;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Where probes go.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Sites {
    /// Function entries, with entry links.
    Entries,
    /// Function entries, with return links.
    Returns,
    /// Anywhere in functions.
    Inside {
        /// One function in so many.
        step: usize,
        /// The first of them.
        first: usize,
    },
}

/// The process's mapping of a library.
pub(crate) struct Loaded {
    pub(crate) binary: Binary,
    pub(crate) bias: u64,
}

impl Loaded {
    pub(crate) fn find(path: &Path) -> Option<Loaded> {
        let path = path.canonicalize().ok()?;
        let binary = Binary::open(&path).ok()?;
        let maps = std::fs::read_to_string("/proc/self/maps").ok()?;
        let line = maps.lines().find(|l| l.ends_with(path.to_str().unwrap_or("?")))?;
        let start = u64::from_str_radix(line.split('-').next()?, 16).ok()?;
        let bias = start - (binary.segments().first()?.vaddr & !4095);
        Some(Loaded { binary, bias })
    }

    /// Plans of every place that `sites` asks for and that takes a long jump.
    fn plans(&self, sites: Sites) -> Vec<SitePlan> {
        let functions = self.binary.functions();
        let entries = functions.iter().map(|f| f.start);
        match sites {
            Sites::Entries => entries.filter_map(|e| plan(&self.binary, e).ok()).filter(is_long).collect(),
            Sites::Returns => {
                entries.filter_map(|e| plan_return(&self.binary, e).ok()).filter(is_long).collect()
            }
            Sites::Inside { step, first } => self.inside(&functions, step, first),
        }
    }

    /// Windows that do not overlap, from the first to the last instruction of each function; in each `step`th function.
    fn inside(&self, functions: &[Range<u64>], step: usize, first: usize) -> Vec<SitePlan> {
        let mut plans = Vec::new();
        let mut behind = 0;
        for function in functions.iter().skip(first).step_by(step) {
            let mut at = function.start.max(behind);
            while at < function.end {
                match plan(&self.binary, at) {
                    Ok(plan) if is_long(&plan) => {
                        at += plan.original.len() as u64;
                        plans.push(plan);
                    }
                    _ => at += 1,
                }
            }
            behind = at;
        }
        plans
    }

    /// Plants a probe with `links` on all `sites`; returns how many.
    pub(crate) fn probe_all(&self, world: &World, links: &[LinkCode], sites: Sites) -> usize {
        let plans = self.plans(sites);
        self.probe(world, links, &plans);
        plans.len()
    }

    /// Plants a probe with `links` at each of `plans`.
    pub(crate) fn probe(&self, world: &World, links: &[LinkCode], plans: &[SitePlan]) {
        let len = plans.len() as u64 * stub_len_max(links.len()) + ARENA_OVERHEAD;
        let len = len.next_multiple_of(4096);
        let base = reserve_near(self.bias, len);
        let mut arena = Arena::new(base, len);
        let mut patches = Vec::new();
        for plan in plans {
            let address = self.bias + plan.vaddr;
            let site = SiteCode { plan, address, site_runtime: 0, links };
            let stub = arena.add_stub(&world.environment, &site).unwrap();
            patches.push((address, patch_bytes(plan, address, stub.address).unwrap()));
        }
        let memory = File::options().write(true).open("/proc/self/mem").unwrap();
        memory.write_all_at(arena.bytes(), base).unwrap();
        for (address, patch) in &patches {
            write_raw(&memory, *address, patch);
        }
    }
}

/// `pwrite` without libc, whose own code is being patched.
fn write_raw(file: &File, at: u64, bytes: &[u8]) {
    let mut result = libc::SYS_pwrite64;
    // SAFETY: pwrite64 reads the bytes; what it changes is the caller's business.
    unsafe {
        std::arch::asm!(
            "syscall",
            inout("rax") result,
            in("rdi") file.as_raw_fd(),
            in("rsi") bytes.as_ptr(),
            in("rdx") bytes.len(),
            in("r10") at,
            out("rcx") _,
            out("r11") _,
        );
    }
    assert_eq!(result, bytes.len() as i64);
}

/// An executable mapping within reach of the text at `near`.
fn reserve_near(near: u64, len: u64) -> u64 {
    for step in 1..64u64 {
        let hint = (near & !0xffff).wrapping_sub(step * (16 << 20) + len);
        // SAFETY: a new mapping that replaces none.
        let at = unsafe {
            libc::mmap(
                hint as *mut c_void,
                len as usize,
                libc::PROT_READ | libc::PROT_EXEC,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE,
                -1,
                0,
            )
        };
        if at as u64 == hint {
            return hint;
        }
    }
    panic!("no gap near {near:#x}");
}

fn is_long(plan: &SitePlan) -> bool {
    usize::from(plan.jump_len) == WINDOW_MIN
}
