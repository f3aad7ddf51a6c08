//! Types by name: a chained hash table over essential names, built once when first asked.

use super::{Btf, NAME_LEN_MAX, essential_name};

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
            let offset = btf.type_or_void(id).name_offset();
            if offset == 0 {
                continue;
            }
            let bucket = index.bucket(btf.hash_string(offset));
            index.next[id as usize] = index.heads[bucket];
            index.heads[bucket] = id;
        }
        index
    }

    /// Ids whose essential name may be `essential`, in order.
    pub(super) fn candidates(&self, essential: &str) -> impl Iterator<Item = u32> + use<'_> {
        let first = self.heads[self.bucket(hash(essential.as_bytes()))];
        std::iter::successors(Some(first), |&id| self.next.get(id as usize).copied())
            .take_while(|&id| id != 0)
    }

    /// Folds a hash to the table.
    fn bucket(&self, hash: u64) -> usize {
        (hash ^ hash >> 29) as usize & (self.heads.len() - 1)
    }
}

impl Btf {
    /// Hash of the essential name at `offset`. Most names have no flavour: those are read once, byte by byte.
    fn hash_string(&self, offset: u32) -> u64 {
        let bytes = self.strings.get(offset as usize..).unwrap_or_default();
        let (mut state, mut underscores) = (BASIS, 0);
        for &byte in bytes.iter().take(NAME_LEN_MAX).take_while(|&&byte| byte != 0) {
            underscores = if byte == b'_' { underscores + 1 } else { 0 };
            if underscores == 3 {
                return hash(essential_name(self.name(offset)).as_bytes());
            }
            state = step(state, byte);
        }
        state
    }
}

const BASIS: u64 = 0xcbf2_9ce4_8422_2325;

/// FNV-1a.
fn step(state: u64, byte: u8) -> u64 {
    (state ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)
}

fn hash(bytes: &[u8]) -> u64 {
    bytes.iter().fold(BASIS, |state, &byte| step(state, byte))
}
