//! Sites whose library is not there any more: it was unloaded, and perhaps another one, or itself again, came to its place.
//!
//! The jump went with the pages that it was written to. What stands there now is no concern of the probe, unless somebody put
//! something on top of our jump: that is left alone.

use crate::existing::{Existing, is_call_site, is_ours};
use beeline_abi::process::SiteRuntime;
use beeline_remote::{Mapping, Mappings, Process};
use std::fs::File;
use std::os::unix::fs::FileExt;

/// What stands where a site is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Standing {
    /// Our jump.
    InPlace,
    /// Nothing, or code that nobody has changed.
    Gone,
    /// A jump of somebody else.
    Changed,
}

/// First bytes of what others write over code to get there.
const JUMPS: [u8; 5] = [0xe9, 0xcc, 0xeb, 0xff, 0xe8];

impl Existing {
    /// What stands where a site, or a hole, is.
    pub(crate) fn standing(&self, process: &Process, maps: &Mappings, site: &SiteRuntime) -> Standing {
        if self.is_in_place(process, site) {
            return Standing::InPlace;
        }
        let len = site.len as usize;
        let mapping = maps.at(site.address).filter(|mapping| mapping.execute && !is_ours(mapping));
        let bytes = process.memory().read_vec(site.address, len);
        let (Some(mapping), Ok(bytes)) = (mapping, bytes) else { return Standing::Gone };
        let restored = bytes == site.original[..len];
        if restored || !JUMPS.contains(&bytes[0]) || is_of_file(process, mapping, site.address, &bytes) {
            return Standing::Gone;
        }
        Standing::Changed
    }

    /// The same without sites that are gone.
    pub(crate) fn without_gone(mut self, process: &Process, maps: &Mappings) -> Existing {
        let keep: Vec<bool> =
            self.sites.iter().map(|site| self.standing(process, maps, site) != Standing::Gone).collect();
        // The first site at a system call has the links of all of them.
        let first_call = |sites: &[SiteRuntime]| sites.iter().position(is_call_site);
        let calls = first_call(&self.sites).map(|first| std::mem::take(&mut self.links[first]));
        let mut sites = keep.iter();
        self.sites.retain(|_| *sites.next().unwrap_or(&true));
        let mut links = keep.iter();
        self.links.retain(|_| *links.next().unwrap_or(&true));
        if let (Some(first), Some(calls)) = (first_call(&self.sites), calls) {
            self.links[first] = calls;
        }
        self
    }
}

/// The bytes are those of the mapped file.
fn is_of_file(process: &Process, mapping: &Mapping, address: u64, bytes: &[u8]) -> bool {
    if mapping.inode == 0 {
        return false;
    }
    let mut original = vec![0; bytes.len()];
    let file = process.file_of(mapping).ok().and_then(|path| File::open(path).ok());
    let at = address - mapping.start + mapping.offset;
    file.is_some_and(|file| file.read_exact_at(&mut original, at).is_ok() && original == bytes)
}
