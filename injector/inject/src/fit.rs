//! Which bytes each planned site changes, so that no two change the same.
//!
//! A long jump that would lie in the site of another probe, or across a page, becomes a short one where that helps; a short one
//! gets a hole that nobody else has.

use crate::existing::{Existing, hole_of};
use crate::files::MappedFiles;
use crate::guard::is_breakpoint;
use crate::sites::{Breakpoints, PlannedHole, PlannedSite, PlannedSites};
use beeline_abi::process::SiteRuntime;
use beeline_remote::Process;
use beeline_site::{Hole, SitePlan, WINDOW_MIN, plan_breakpoint, plan_short};
use std::collections::BTreeMap;
use std::ops::Range;

/// Ranges of addresses that do not overlap.
#[derive(Default)]
struct Taken(BTreeMap<u64, u64>);

impl Taken {
    /// What probes that are in place have changed.
    fn by(existing: Option<&Existing>) -> Taken {
        let sites = existing.into_iter().flat_map(|existing| &existing.sites);
        let changed = sites.filter(|site| site.link_count != 0 || site.flags & SiteRuntime::HOLE != 0);
        Taken(changed.map(|site| (site.address, site.address + u64::from(site.len))).collect())
    }

    /// The start of a range that overlaps this one.
    fn overlapping(&self, range: &Range<u64>) -> Option<u64> {
        let (&start, &end) = self.0.range(..range.end).next_back()?;
        (end > range.start).then_some(start)
    }

    fn take(&mut self, range: Range<u64>) {
        self.0.insert(range.start, range.end);
    }
}

/// Gives every new site its bytes, and refuses those for which there are none.
pub(crate) fn fit(
    planned: &mut PlannedSites,
    process: &Process,
    files: &MappedFiles,
    existing: Option<&Existing>,
    breakpoints: &Breakpoints,
) {
    let mut taken = Taken::by(existing);
    let mut refused: Vec<(u64, String)> = Vec::new();
    refused.extend(adopt_short(planned, process, files, existing));
    let addresses: Vec<u64> = planned.sites.iter().map(|site| site.address).collect();
    for (index, site) in planned.sites.iter_mut().enumerate().filter(|(_, site)| site.existing.is_none()) {
        let next = addresses.get(index + 1).copied().unwrap_or(u64::MAX);
        match jump_of(site, next, &taken) {
            Ok(range) => taken.take(range),
            Err(reason) => {
                let shorter = shorter_plan(site, process, files);
                let retried = shorter.map(|plan| {
                    site.plan = plan;
                    jump_of(site, next, &taken)
                });
                match retried {
                    Some(Ok(range)) => taken.take(range),
                    _ => match to_breakpoint(site, process, files, breakpoints, reason) {
                        Ok(()) => taken.take(site.address..site.address + 1),
                        Err(reason) => refused.push((site.address, reason)),
                    },
                }
            }
        }
    }
    // Places that probes were refused at are free, but holes are few near them anyway.
    for site in planned.sites.iter_mut().filter(|site| site.existing.is_none() && site.is_short()) {
        if refused.iter().any(|(address, _)| *address == site.address) {
            continue;
        }
        site.hole = free_hole(site, &addresses, &taken);
        match &site.hole {
            Some(hole) => taken.take(hole.range()),
            None => {
                let reason = format!(
                    "only a short jump fits at {:#x}, and other probes have the room within its reach",
                    site.address
                );
                if let Err(reason) = to_breakpoint(site, process, files, breakpoints, reason) {
                    refused.push((site.address, reason));
                }
            }
        }
    }
    for (address, reason) in refused {
        planned.refuse(address, &reason);
    }
}

/// Makes the site a breakpoint, as no jump fits; or says why it is refused.
fn to_breakpoint(
    site: &mut PlannedSite,
    process: &Process,
    files: &MappedFiles,
    breakpoints: &Breakpoints,
    reason: String,
) -> Result<(), String> {
    match breakpoint_plan(site, process, files) {
        None => Err(reason),
        Some(_) if !breakpoints.are_possible() => Err(breakpoints.refuse(&reason)),
        Some(plan) => {
            site.plan = plan;
            Ok(())
        }
    }
}

/// A site that was given a short jump earlier keeps it: its displaced instructions are those of the short window.
fn adopt_short(
    planned: &mut PlannedSites,
    process: &Process,
    files: &MappedFiles,
    existing: Option<&Existing>,
) -> Vec<(u64, String)> {
    let known = |site: &PlannedSite| existing?.sites.get(site.existing?);
    let mut refused = Vec::new();
    for site in &mut planned.sites {
        if known(site).is_some_and(is_breakpoint) && !site.is_breakpoint() {
            match breakpoint_plan(site, process, files) {
                Some(plan) => site.plan = plan,
                None => refused.push((site.address, "its breakpoint is not what the file says".to_owned())),
            }
        }
        if known(site).and_then(hole_of).is_some() && !site.is_short() {
            match shorter_plan(site, process, files) {
                Some(plan) => site.plan = plan,
                None => refused.push((site.address, "its short jump is not what the file says".to_owned())),
            }
        }
    }
    refused
}

/// The bytes of the site's jump, when they are free; `next` is the next site.
fn jump_of(site: &PlannedSite, next: u64, taken: &Taken) -> Result<Range<u64>, String> {
    let address = site.address;
    // What stands before a `ret` has moved out with it.
    let ret = site.plan.leave.map_or(0, |leave| leave.at + 1);
    let range = address..address + u64::from(site.plan.jump_len.max(ret));
    let overlapped = taken.overlapping(&range).or((next < range.end).then_some(next));
    if let Some(other) = overlapped {
        return Err(format!("the jump at {address:#x} would overlap the one of the probe at {other:#x}"));
    }
    if site.plan.crosses_page() {
        return Err(format!(
            "the jump at {address:#x} would cross a page boundary and could not be written at once"
        ));
    }
    Ok(range)
}

/// The same place with a short jump.
fn shorter_plan(site: &PlannedSite, process: &Process, files: &MappedFiles) -> Option<SitePlan> {
    let is_fixed = site.call.is_some() || site.plan.leave.is_some();
    if site.is_short() || site.is_breakpoint() || is_fixed {
        return None;
    }
    let binary = files.at(site.address)?.binary(process).ok()?;
    plan_short(binary, site.plan.vaddr).ok()
}

/// The same place with a breakpoint.
fn breakpoint_plan(site: &PlannedSite, process: &Process, files: &MappedFiles) -> Option<SitePlan> {
    if site.is_breakpoint() || site.call.is_some() || site.own.is_some() && site.probes.is_empty() {
        return None;
    }
    let binary = files.at(site.address)?.binary(process).ok()?;
    plan_breakpoint(binary, site.plan.vaddr).ok()
}

/// The first hole of a short site that nobody has and in which no probe is wanted.
fn free_hole(site: &PlannedSite, addresses: &[u64], taken: &Taken) -> Option<PlannedHole> {
    let is_free = |hole: &PlannedHole| {
        let range = hole.range();
        let wanted = addresses.partition_point(|&address| address < range.start);
        taken.overlapping(&range).is_none()
            && addresses.get(wanted).is_none_or(|&address| address >= range.end)
    };
    site.plan.holes.iter().map(|hole| planned_hole(site, hole)).find(is_free)
}

fn planned_hole(site: &PlannedSite, hole: &Hole) -> PlannedHole {
    PlannedHole {
        address: site.address.wrapping_add(hole.vaddr.wrapping_sub(site.plan.vaddr)),
        original: hole.original.clone(),
        neighbour: hole.neighbour.as_deref().cloned(),
    }
}

impl PlannedHole {
    /// The bytes that change.
    pub(crate) fn range(&self) -> Range<u64> {
        self.address..self.address + self.original.len() as u64
    }

    /// Address of the long jump.
    pub(crate) fn jump(&self) -> u64 {
        self.range().end - WINDOW_MIN as u64
    }
}
