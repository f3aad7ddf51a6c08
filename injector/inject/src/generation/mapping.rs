//! How a generation comes into its process: the calls that map it, made there in one go.

use super::Generation;
use beeline_remote::{Descriptor, FileMapping, SystemCall};

impl Generation<'_> {
    /// What maps all areas and files of a generation, the first of which is its memory file.
    pub(crate) fn mapping_calls(&self, descriptors: &[Descriptor]) -> Vec<SystemCall> {
        let Some((&memory, store)) = descriptors.split_first() else { return Vec::new() };
        let mut calls = Vec::new();
        for area in &self.areas {
            let whole = FileMapping {
                address: area.region.start,
                len: area.region.len,
                protection: libc::PROT_NONE,
                shared: false,
                replace: false,
                descriptor: memory,
                offset: area.offset,
            };
            if let [piece] = area.pieces[..]
                && piece.len == area.region.len
            {
                let mapping = FileMapping { protection: piece.protection, ..whole };
                calls.push(SystemCall::map_file("mmap of probe code", &mapping));
                continue;
            }
            calls.push(SystemCall::map_file("mmap of a range for the agent", &whole));
            calls.extend(area.pieces.iter().map(|piece| {
                let mapping = FileMapping {
                    address: piece.address,
                    len: piece.len,
                    protection: piece.protection,
                    replace: true,
                    offset: piece.offset,
                    ..whole
                };
                SystemCall::map_file("mmap of the agent", &mapping)
            }));
        }
        let what = "mmap of the agent's fork page";
        let page = |at| SystemCall::map_anonymous(what, at, beeline_abi::PAGE_SIZE, true);
        calls.extend(self.fork_page.map(page));
        for (file, &descriptor) in self.shared.iter().zip(store) {
            let mapping = FileMapping {
                address: file.address,
                len: file.len,
                protection: libc::PROT_READ | libc::PROT_WRITE,
                shared: true,
                replace: true,
                descriptor,
                offset: 0,
            };
            calls.push(SystemCall::map_file(file.what, &mapping));
            if file.again_from != 0 {
                let (address, len) = (file.address + file.len, file.len - file.again_from);
                let again = FileMapping { address, len, offset: file.again_from, ..mapping };
                calls.push(SystemCall::map_file(file.what, &again));
            }
        }
        calls
    }
}
