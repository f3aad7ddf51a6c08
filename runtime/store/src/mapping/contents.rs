//! First contents of a map.

use super::map::MapFile;
use beeline_abi::map::MapType;
use rustix::io::Errno;
use std::sync::atomic::Ordering;

impl MapFile {
    /// Writes an element of an array before the map is published.
    ///
    /// # Errors
    /// `EINVAL` for a key or a value of another size, `E2BIG` for an index beyond the end, `EOPNOTSUPP` for another
    /// kind of map.
    pub(crate) fn set_initial(&self, key: &[u8], value: &[u8]) -> Result<(), Errno> {
        let shape = self.shape();
        if !matches!(shape.map_type, MapType::ARRAY | MapType::PROG_ARRAY) {
            return Err(Errno::OPNOTSUPP);
        }
        let index = u32::from_ne_bytes(key.try_into().map_err(|_| Errno::INVAL)?);
        if value.len() != shape.value_size as usize {
            return Err(Errno::INVAL);
        }
        if index >= shape.max_entries {
            return Err(Errno::TOOBIG);
        }
        let offset = self.layout.data_offset + u64::from(index) * self.layout.stride;
        let words = self.mapping.words();
        for (at, chunk) in value.chunks(8).enumerate() {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            let to = words.get(offset as usize / 8 + at).ok_or(Errno::TOOBIG)?;
            to.store(u64::from_ne_bytes(word), Ordering::Release);
        }
        Ok(())
    }
}
