//! What a process carries, without touching it.

use crate::detach::threads_seen;
use crate::error::TargetRefused;
use crate::existing::{Existing, Found, carries_probes, find, is_ours};
use crate::gone::Standing;
use crate::guard::is_breakpoint;
use crate::report::{Attached, AttachedLink, AttachedSite};
use crate::target::remote;
use beeline_abi::link::LinkRuntime;
use beeline_abi::process::SiteRuntime;
use beeline_ptrace::{StopError, StoppedProcess};
use beeline_remote::{Mappings, Process};
use std::fs;

/// What process `pid` carries of ours; none when it carries nothing. It is neither stopped nor changed.
///
/// # Errors
/// When there is no such process, or we may not look into it, or its agent is of another version.
pub fn inspect(pid: i32) -> Result<Option<Attached>, TargetRefused> {
    StoppedProcess::check(pid).map(drop).or_else(|error| match error {
        // Somebody who traces it does not keep us from looking.
        StopError::AlreadyTraced { .. } => Ok(()),
        other => Err(other),
    })?;
    let process = Process::open(pid, false).map_err(|_| StoppedProcess::refusal(pid))?;
    let maps = process.maps().map_err(|error| remote(pid, error))?;
    match find(&process, &maps)? {
        Found::Nothing => Ok(None),
        Found::Remains => Ok(Some(remains(pid, &maps))),
        Found::Agent(existing) => Ok(Some(describe(&process, &maps, &existing))),
    }
}

/// Every process that carries something of ours, as far as we may look.
pub fn attached_processes() -> Vec<Attached> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let ids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let mut found: Vec<Attached> = ids.filter_map(|pid| inspect(pid).ok().flatten()).collect();
    found.sort_unstable_by_key(|attached| attached.pid);
    found
}

fn describe(process: &Process, maps: &Mappings, existing: &Existing) -> Attached {
    let sites = existing
        .sites
        .iter()
        .zip(&existing.links)
        .filter(|(site, links)| site.link_count != 0 && carries_probes(links))
        .map(|(site, links)| (site, links, existing.standing(process, maps, site)))
        // A site that went with its library is none.
        .filter(|(_, _, standing)| *standing != Standing::Gone);
    let site = |(site, links, standing): (&SiteRuntime, &Vec<LinkRuntime>, Standing)| AttachedSite {
        address: site.address,
        links: links.iter().map(|link| link.link_id).filter(|&id| id != LinkRuntime::OWN).collect(),
        counts: links.iter().filter(|link| link.link_id != LinkRuntime::OWN).map(counts).collect(),
        in_place: standing == Standing::InPlace,
        is_breakpoint: is_breakpoint(site),
    };
    let mapped: u64 =
        maps.iter().filter(|mapping| existing.owns(mapping.start)).map(|mapping| mapping.len()).sum();
    Attached {
        pid: process.pid(),
        store_uuid: existing.head.store_uuid,
        incomplete: existing.is_unfinished(),
        block: existing.block,
        sites: sites.map(site).collect(),
        programs: existing.programs.iter().map(|program| program.id).collect(),
        maps: existing.maps.iter().map(|map| map.id).collect(),
        threads: threads_seen(process, existing),
        mapped_bytes: mapped,
    }
}

fn counts(link: &LinkRuntime) -> AttachedLink {
    AttachedLink { link_id: link.link_id, program_id: link.prog_id, hits: link.hits, missed: link.missed }
}

fn remains(pid: i32, maps: &Mappings) -> Attached {
    Attached {
        pid,
        store_uuid: [0; 2],
        incomplete: true,
        block: 0,
        sites: Vec::new(),
        programs: Vec::new(),
        maps: Vec::new(),
        threads: 0,
        mapped_bytes: maps.iter().filter(|mapping| is_ours(mapping)).map(|mapping| mapping.len()).sum(),
    }
}
