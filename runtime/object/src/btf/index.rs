//! Types by name: a chained hash table over essential names, built once when first asked.

use super::{Btf, essential_name};

/// Ids of the types with a name, chained by the hash of the name without its flavour.
pub(super) struct NameIndex {
    /// First id of each bucket, 0 = none. A power of two of them.
    heads: Vec<u32>,
    /// The next id in the same bucket, by id.
    next: Vec<u32>,
}

impl NameIndex {
    /// Indexes every named type. Chains are in order of id.
    pub(super) fn build(btf: &Btf) -> NameIndex {
        let buckets = (btf.len() as usize).next_power_of_two();
        let mut index = NameIndex { heads: vec![0; buckets], next: vec![0; btf.len() as usize] };
        for id in (1..btf.len()).rev() {
            let name = btf.type_or_void(id).name();
            if name.is_empty() {
                continue;
            }
            let bucket = index.bucket(essential_name(name));
            index.next[id as usize] = index.heads[bucket];
            index.heads[bucket] = id;
        }
        index
    }

    /// Ids whose essential name may be `essential`, in order.
    pub(super) fn candidates(&self, essential: &str) -> impl Iterator<Item = u32> + use<'_> {
        let first = self.heads[self.bucket(essential)];
        std::iter::successors(Some(first), |&id| self.next.get(id as usize).copied())
            .take_while(|&id| id != 0)
    }

    /// FNV-1a, folded to the table.
    fn bucket(&self, name: &str) -> usize {
        let hash = name.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)
        });
        (hash ^ hash >> 29) as usize & (self.heads.len() - 1)
    }
}
