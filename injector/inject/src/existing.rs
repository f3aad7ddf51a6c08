//! What a process carries of ours already. It is that process's word: everything is checked before use.

use crate::dispatch::{Damaged, Dispatching};
use crate::error::TargetRefused;
use crate::target;
use crate::wire::{BlockHead, HEAD_LEN, NoBlock, Wire, region_offset};
use beeline_abi::link::{LINK_MAGIC, LinkRuntime};
use beeline_abi::map::{MAP_MAGIC, MapHandle};
use beeline_abi::process::{ForkPage, ProcessBlock, ProgramRuntime, Region, SiteRuntime};
use beeline_abi::system_call::{CodeAt, Hooks, NUMBERS, SystemCalls};
use beeline_abi::trace::TRACE_MAGIC;
use beeline_abi::unwind::UnwindText;
use beeline_remote::{Mapping, Mappings, Process};
use beeline_site::{SHORT_WINDOW, WINDOW_MIN};
use beeline_stub::{HOOK_LEN, hook};
use std::mem::offset_of;
use std::ops::Range;
use std::path::Path;

/// Name of the memory file that all private mappings of ours are made of, as `/proc/PID/maps` shows it.
pub(crate) const MEMORY_NAME: &str = "beeline-agent";
const MAPPING_NAME: &str = "/memfd:beeline-agent (deleted)";

/// Entries of a table that are believed.
const TABLE_MAX: u32 = 1 << 20;
/// The opcode of a hook that calls a chain.
const CALL: u8 = 0xe8;
/// Links of one site that are believed.
const LINKS_MAX: u32 = 1 << 14;

/// True for a mapping of ours.
pub(crate) fn is_ours(mapping: &Mapping) -> bool {
    mapping.name == MAPPING_NAME
}

/// Ranges that are ours whatever a list of regions says: our own memory, and files of the store that were mapped over a part of
/// it. `word_at` reads the process's memory.
///
/// Somebody who was killed may have left a region that is in no list. Its first mapping is one of our own memory, and nothing of the
/// process's adjoins ours; the file's first word is looked at all the same.
pub(crate) fn leftovers(maps: &Mappings, word_at: impl Fn(u64) -> Option<u64>) -> Vec<Range<u64>> {
    let is_of_store = |mapping: &Mapping, before: &Mapping| {
        let goes_on = mapping.inode == before.inode && mapping.device == before.device;
        let begins =
            || mapping.offset == 0 && word_at(mapping.start).is_some_and(|word| STORE_MAGIC.contains(&word));
        mapping.shared && mapping.inode != 0 && (goes_on || begins())
    };
    let mut ranges: Vec<Range<u64>> = Vec::new();
    let mut before: Option<&Mapping> = None;
    for mapping in maps.iter() {
        let adjoins = ranges.last().is_some_and(|range| range.end == mapping.start);
        if is_ours(mapping) || adjoins && before.is_some_and(|before| is_of_store(mapping, before)) {
            match ranges.last_mut().filter(|_| adjoins) {
                Some(range) => range.end = mapping.end,
                None => ranges.push(mapping.start..mapping.end),
            }
        }
        before = Some(mapping);
    }
    ranges
}

/// First words of the store's files.
const STORE_MAGIC: [u64; 3] = [LINK_MAGIC, MAP_MAGIC, TRACE_MAGIC];

/// An agent in a process, with its bookkeeping.
#[derive(Debug)]
pub(crate) struct Existing {
    pub(crate) block: u64,
    pub(crate) head: BlockHead,
    pub(crate) regions: Vec<Region>,
    pub(crate) sites: Vec<SiteRuntime>,
    /// The links of each site.
    pub(crate) links: Vec<Vec<LinkRuntime>>,
    pub(crate) programs: Vec<ProgramRuntime>,
    pub(crate) maps: Vec<MapHandle>,
    pub(crate) texts: Vec<UnwindText>,
    /// How its calls are dispatched, where they are.
    pub(crate) dispatching: Option<Dispatching>,
}

/// What is found in a process.
#[derive(Debug)]
pub(crate) enum Found {
    /// Nothing of ours.
    Nothing,
    /// Mappings of ours without a block: somebody was killed before it was there, or after it was gone.
    Remains,
    /// An agent.
    Agent(Box<Existing>),
}

/// Looks for an agent in a process.
pub(crate) fn find(process: &Process, maps: &Mappings) -> Result<Found, TargetRefused> {
    let mut found = Found::Nothing;
    for mapping in maps.iter().filter(|mapping| is_ours(mapping)) {
        found = Found::Remains;
        if !mapping.write {
            continue;
        }
        // Which piece this mapping begins with is not known, nor whether the kernel merged it with a neighbour.
        let Ok(bytes) = process.memory().read_array::<HEAD_LEN>(mapping.start) else { continue };
        match BlockHead::from_bytes(&bytes) {
            Err(NoBlock::NotOne) => {}
            Err(NoBlock::Version(version)) => {
                let reason = format!("it has layout version {version}");
                return Err(TargetRefused::ForeignAgent { pid: process.pid(), reason });
            }
            Err(NoBlock::Damaged) => return Err(damaged(process, "its block")),
            Ok(head) => return Ok(Found::Agent(Box::new(Existing::read(process, mapping.start, head)?))),
        }
    }
    Ok(found)
}

impl Existing {
    fn read(process: &Process, block: u64, head: BlockHead) -> Result<Existing, TargetRefused> {
        let regions: Vec<Region> =
            table(process, block + region_offset(0), head.region_count, "its list of regions")?;
        let valid = |region: &Region| region.start.checked_add(region.len).is_some_and(|end| end < 1 << 56);
        if !regions.iter().all(valid) {
            return Err(damaged(process, "its list of regions"));
        }
        let sites: Vec<SiteRuntime> = table(process, head.sites, head.site_count, "its list of sites")?;
        let mut links = Vec::with_capacity(sites.len());
        let mut calls_read = false;
        for site in &sites {
            let is_call = site.link_count != 0 && site.flags & SiteRuntime::SYSTEM_CALL != 0;
            if is_call && std::mem::replace(&mut calls_read, true) {
                // The same as those of the first such site, which stands for all of them.
                links.push(Vec::new());
                continue;
            }
            if site.len as usize > site.original.len() || site.link_count > LINKS_MAX {
                return Err(damaged(process, "a site"));
            }
            links.push(table(process, site.links, site.link_count, "the links of a site")?);
        }
        let programs = table(process, head.programs, head.program_count, "its list of programs")?;
        let maps = table(process, head.maps, head.map_count, "its list of maps")?;
        let texts = table(process, head.texts, head.text_count, "its tables for walking stacks")?;
        let dispatching = match head.guard {
            0 => None,
            guard => Dispatching::read(process, guard)
                .map_err(|Damaged| damaged(process, "its dispatch of system calls"))?,
        };
        process.set_own_dispatch(dispatching.map(|it| it.configuration()));
        Ok(Existing { block, head, regions, sites, links, programs, maps, texts, dispatching })
    }

    /// The entry of the function that is left at the `ret` of a site; none when the site is no such place.
    pub(crate) fn left_by(&self, site: usize) -> Option<u64> {
        let is_entry = self.sites[site].flags & SiteRuntime::ENTRY != 0;
        let link = self.links[site].iter().find(|link| link.flags & LinkRuntime::RETURN != 0);
        link.filter(|_| !is_entry).map(|link| link.func_ip)
    }

    /// The process whose memory this one's is, where that is another: a child that shares it. Nothing tells of threads of the other then.
    pub(crate) fn owner_beside(&self, process: &Process) -> Option<u32> {
        if self.head.guard == 0 || self.head.fork_page == 0 {
            return None;
        }
        let at = self.head.fork_page.wrapping_add(offset_of!(ForkPage, owner) as u64);
        let owner = process.memory().read_u32(at).ok()?;
        let is_another = owner != 0 && owner != target::inner_pid(process);
        (is_another && Path::new(&format!("/proc/{owner}")).exists()).then_some(owner)
    }

    /// Attaching or detaching did not come to its end.
    pub(crate) fn is_unfinished(&self) -> bool {
        self.head.flags & ProcessBlock::FLAG_UNFINISHED != 0
    }

    /// It was attached to before its first instruction, and nothing is known of its threads yet.
    pub(crate) fn is_early(&self) -> bool {
        self.head.flags & ProcessBlock::FLAG_EARLY != 0
    }

    /// The links of system calls.
    pub(crate) fn call_links(&self) -> &[LinkRuntime] {
        let mut sites = self.sites.iter().zip(&self.links);
        sites.find(|(site, _)| is_call_site(site)).map_or(&[], |(_, links)| links)
    }

    /// The hooks of the stubs at system calls. What does not look like one is left alone.
    pub(crate) fn hooks(&self, process: &Process) -> Vec<PlacedHook> {
        let mut found = Vec::new();
        for site in self.sites.iter().filter(|site| is_call_site(site)) {
            let end = site.stub.wrapping_add(site.stub_len.into());
            let trailer = process.memory().read_array::<{ Hooks::LEN }>(end.wrapping_sub(Hooks::LEN as u64));
            let Ok(hooks) = trailer.map(Hooks::from_bytes) else { continue };
            for (offset, is_exit) in [(hooks.enter, false), (hooks.exit, true)] {
                let at = site.stub.wrapping_add(offset.into());
                let within =
                    offset != Hooks::NONE && usize::from(offset) + HOOK_LEN <= site.stub_len as usize;
                let stands = || {
                    let bytes = process.memory().read_array::<HOOK_LEN>(at);
                    bytes.is_ok_and(|bytes| bytes[0] == CALL || hook(at, None) == Some(bytes))
                };
                if within && stands() {
                    let number = Some(hooks.number).filter(|&number| number != u32::MAX);
                    found.push(PlacedHook { at, number, is_exit });
                }
            }
        }
        found
    }

    /// Where the hooks of the stubs at system calls go, calls whose number is no constant, and those that are dispatched.
    pub(crate) fn hooked(&self, process: &Process) -> Vec<u64> {
        let target = |hook: &PlacedHook| {
            let [opcode, distance @ ..] = process.memory().read_array::<HOOK_LEN>(hook.at).ok()?;
            let distance = i64::from(i32::from_le_bytes(distance));
            (opcode == CALL).then(|| hook.at.wrapping_add(HOOK_LEN as u64).wrapping_add_signed(distance))
        };
        let mut found: Vec<u64> = self.hooks(process).iter().filter_map(target).collect();
        // Before and behind the calls of each number.
        let len = size_of::<[CodeAt; NUMBERS + 1]>();
        let at = self.head.system_calls + offset_of!(SystemCalls, code) as u64;
        let tables = (self.head.system_calls != 0).then(|| process.memory().read_vec(at, len));
        let words = tables.and_then(Result::ok).unwrap_or_default();
        found.extend(words.chunks_exact(u64::LEN).map(u64::get));
        found.extend(self.dispatching.iter().flat_map(|dispatching| dispatching.referred(process)));
        found
    }

    /// The links of probes that are in force, each with the address of its site and its program's id.
    pub(crate) fn in_force(&self) -> impl Iterator<Item = (u32, u64, u32)> + '_ {
        let sites = self.sites.iter().zip(&self.links);
        let sites = sites.filter(|(site, _)| site.link_count != 0 && !is_call_site(site));
        sites.flat_map(|(site, links)| links.iter().map(|link| (link.link_id, site.address, link.prog_id)))
    }

    /// Indexes of entries of the list of regions that are not in use.
    pub(crate) fn free_regions(&self) -> impl Iterator<Item = usize> {
        self.regions.iter().enumerate().filter(|(_, region)| region.len == 0).map(|(index, _)| index)
    }

    /// The address lies in a region of ours, or behind libc's code, or is that of a long jump in a hole.
    pub(crate) fn owns(&self, address: u64) -> bool {
        self.regions.iter().any(|region| address.wrapping_sub(region.start) < region.len)
            || self.holes().any(|hole| hole_jump(hole) == address)
            || self.is_in_tail(address)
    }

    /// Places of the long jumps of short sites.
    pub(crate) fn holes(&self) -> impl Iterator<Item = &SiteRuntime> {
        let is_hole =
            |site: &&SiteRuntime| site.flags & SiteRuntime::HOLE != 0 && site.len as usize >= WINDOW_MIN;
        self.sites.iter().filter(is_hole)
    }

    /// Where a thread at `pc` has to go on that is at the copy of a displaced system call or right behind it; none when it is
    /// elsewhere, or when the original call is not in its place.
    pub(crate) fn original_call(&self, process: &Process, pc: u64) -> Option<u64> {
        const SYSCALL: [u8; 2] = [0x0f, 0x05];
        const LEN: u64 = SYSCALL.len() as u64;
        self.sites.iter().filter(|site| is_call_site(site)).find_map(|site| {
            let (to_behind, in_stub) = (u64::from(site.flags >> 8 & 0xff), u64::from(site.flags >> 16));
            let back = site.stub.wrapping_add(in_stub).wrapping_sub(pc);
            let behind = site.address.wrapping_add(to_behind);
            let stands = || {
                process.memory().read_array::<2>(behind.wrapping_sub(LEN)).is_ok_and(|bytes| bytes == SYSCALL)
            };
            (in_stub != 0 && (back == 0 || back == LEN) && stands()).then(|| behind.wrapping_sub(back))
        })
    }

    /// A jump of ours stands at the site: what was written there, or an earlier jump into our code.
    pub(crate) fn is_in_place(&self, process: &Process, site: &SiteRuntime) -> bool {
        let Ok(bytes) = process.memory().read_vec(site.address, site.len as usize) else { return false };
        bytes == site.patched[..site.len as usize] || self.is_our_jump(site.address, &bytes)
    }

    fn is_our_jump(&self, address: u64, bytes: &[u8]) -> bool {
        let [0xe9, a, b, c, d, ..] = *bytes else { return false };
        let distance = i64::from(i32::from_le_bytes([a, b, c, d]));
        self.owns(address.wrapping_add(5).wrapping_add_signed(distance))
    }
}

/// A place in a stub at a system call that calls the programs of its number.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct PlacedHook {
    pub(crate) at: u64,
    /// Of the call, where it is a constant.
    pub(crate) number: Option<u32>,
    /// It is behind the call.
    pub(crate) is_exit: bool,
}

/// The site is there for system calls.
pub(crate) fn is_call_site(site: &SiteRuntime) -> bool {
    site.link_count != 0 && site.flags & SiteRuntime::SYSTEM_CALL != 0
}

/// A site with these links has probes, not only what the agent does for itself.
pub(crate) fn carries_probes(links: &[LinkRuntime]) -> bool {
    links.iter().any(|link| link.link_id != LinkRuntime::OWN)
}

/// Address of the long jump in a hole.
pub(crate) fn hole_jump(hole: &SiteRuntime) -> u64 {
    hole.address.wrapping_add(u64::from(hole.len)).wrapping_sub(WINDOW_MIN as u64)
}

/// Where the short jump of a site goes; none when its jump is long.
pub(crate) fn hole_of(site: &SiteRuntime) -> Option<u64> {
    match site.patched {
        [0xeb, distance, ..] if site.len as usize == SHORT_WINDOW => {
            let next = site.address.wrapping_add(SHORT_WINDOW as u64);
            Some(next.wrapping_add_signed(i64::from(distance as i8)))
        }
        _ => None,
    }
}

/// Reads a table of another process.
fn table<T: Wire>(process: &Process, address: u64, count: u32, what: &str) -> Result<Vec<T>, TargetRefused> {
    if count > TABLE_MAX {
        return Err(damaged(process, what));
    }
    let bytes = process.memory().read_vec(address, count as usize * T::LEN);
    let bytes = if count == 0 { Vec::new() } else { bytes.map_err(|_| damaged(process, what))? };
    Ok(bytes.chunks_exact(T::LEN).map(T::get).collect())
}

fn damaged(process: &Process, what: &str) -> TargetRefused {
    TargetRefused::ForeignAgent { pid: process.pid(), reason: format!("{what} is damaged") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_the_store_in_our_memory_are_ours() {
        let maps = Mappings::parse(
            "1000-3000 rw-p 00000000 00:01 7 /memfd:beeline-agent (deleted)\n\
             3000-4000 rw-s 00000000 00:1b 8 /dev/shm/s/links/a\n\
             4000-5000 rw-s 00000000 00:1b 9 /dev/shm/s/maps/b\n\
             5000-6000 rw-s 00002000 00:1b 9 /dev/shm/s/maps/b\n\
             6000-7000 rw-s 00000000 00:1b 10 /dev/shm/of-the-program\n\
             8000-9000 rw-s 00000000 00:1b 8 /dev/shm/s/links/a\n\
             a000-b000 r-xp 00000000 00:01 7 /memfd:beeline-agent (deleted)\n\
             b000-c000 rw-p 00000000 00:00 0 \n",
        );
        let word_at = |address| match address {
            0x3000 | 0x8000 => Some(LINK_MAGIC),
            0x4000 => Some(MAP_MAGIC),
            0x6000 | 0xb000 => Some(1),
            _ => None,
        };
        assert_eq!(leftovers(&maps, word_at), [0x1000..0x6000, 0xa000..0xb000]);
    }
}
