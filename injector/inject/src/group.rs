//! Sites that lie close enough to each other to share an arena.

use crate::sites::PlannedSite;
use beeline_abi::process::Region;
use beeline_remote::{Mappings, reach};
use std::ops::Range;

const PAGE: u64 = beeline_abi::PAGE_SIZE;

/// Sites this far apart share an arena.
const GROUP_SPAN: u64 = 1 << 30;

/// Sites that one arena serves.
pub(crate) struct Group {
    pub(crate) sites: Range<usize>,
    pub(crate) reach: Range<u64>,
    pub(crate) region: Region,
}

/// Neighbouring sites that one arena can serve.
pub(crate) fn groups(maps: &Mappings, sites: &[PlannedSite]) -> Vec<Group> {
    let mut groups: Vec<Group> = Vec::new();
    for (index, site) in sites.iter().enumerate() {
        let first = groups.last().map(|group| sites[group.sites.start].address);
        match (groups.last_mut(), first) {
            (Some(group), Some(first)) if site.address - first < GROUP_SPAN => {
                group.sites.end = index + 1;
                group.reach = reach::serving(reach_of(maps, first).start..reach_of(maps, site.address).end);
            }
            _ => groups.push(Group {
                sites: index..index + 1,
                reach: reach::serving(reach_of(maps, site.address)),
                region: Region::default(),
            }),
        }
    }
    groups
}

/// What the displaced instructions of a site may refer to: the object that it belongs to, code and data.
fn reach_of(maps: &Mappings, address: u64) -> Range<u64> {
    let Some(mapping) = maps.at(address) else { return address..address + PAGE };
    let same = maps.iter().filter(|other| {
        (other.device, other.inode) == (mapping.device, mapping.inode)
            && other.start.abs_diff(mapping.start) < GROUP_SPAN
    });
    same.fold(mapping.start..mapping.end, |range, other| {
        range.start.min(other.start)..range.end.max(other.end)
    })
}
