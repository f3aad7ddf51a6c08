//! Where the tables of a generation lie: one behind the other, each from the start of a cache line.

use crate::wire::Wire;
use crate::{dispatch, guard};
use beeline_abi::link::LinkRuntime;
use beeline_abi::map::MapHandle;
use beeline_abi::process::{ProgramRuntime, SiteRuntime};

/// Addresses in the tables.
#[derive(Debug, Default)]
pub(super) struct Tables {
    pub(super) maps: u64,
    pub(super) programs: u64,
    pub(super) sites: u64,
    pub(super) links: u64,
    /// Addresses of the links of system calls, in lists.
    pub(super) call_lists: u64,
    pub(super) breakpoints: u64,
    pub(super) known_code: u64,
    pub(super) len: u64,
}

/// How many entries each table has.
#[derive(Clone, Copy, Debug)]
pub(super) struct Counts {
    pub(super) maps: usize,
    pub(super) programs: usize,
    pub(super) sites: usize,
    pub(super) links: usize,
    pub(super) listed: usize,
    pub(super) breakpoints: usize,
    pub(super) known_code: usize,
}

impl Tables {
    pub(super) fn at(
        start: u64,
        Counts { maps, programs, sites, links, listed, breakpoints, known_code }: Counts,
    ) -> Tables {
        let mut end = start;
        let mut take = |count: usize, len: usize| {
            let at = end.next_multiple_of(64);
            end = at + (count * len) as u64;
            at
        };
        let mut tables = Tables {
            maps: take(maps, MapHandle::LEN),
            programs: take(programs, ProgramRuntime::LEN),
            sites: take(sites, SiteRuntime::LEN),
            links: take(links, LinkRuntime::LEN),
            call_lists: take(listed, u64::LEN),
            breakpoints: take(1, guard::table_len(breakpoints)),
            known_code: take(1, dispatch::known_len(known_code)),
            len: 0,
        };
        tables.len = end - start;
        tables
    }

    /// The first address.
    pub(super) fn start(&self) -> u64 {
        self.maps
    }
}
