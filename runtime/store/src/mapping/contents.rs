//! What is in a map, as the system calls of user space see it.

use super::access;
use super::map::MapFile;
use beeline_abi::errno::{ENOENT, ENOTSUPP};
use beeline_abi::map::MapType;
use beeline_maps::user;
use rustix::io::Errno;
use std::collections::HashSet;

/// A key and its value; of a per-CPU map, the values of all CPUs, each rounded up to 8 bytes.
pub type Entry = (Vec<u8>, Vec<u8>);

impl MapFile {
    /// True when a value is one copy for each CPU, each rounded up to a multiple of 8 bytes.
    pub fn is_per_cpu(&self) -> bool {
        let per_cpu = [MapType::PERCPU_ARRAY, MapType::PERCPU_HASH, MapType::LRU_PERCPU_HASH];
        per_cpu.contains(&self.shape().map_type)
    }

    /// Bytes of a value: of all copies together.
    pub fn value_len(&self) -> usize {
        user::value_len(self.handle()) as usize
    }

    /// The value of a key (`BPF_MAP_LOOKUP_ELEM`).
    ///
    /// # Errors
    /// `EINVAL` for a key of another size; the kernel's error number for what cannot be looked up.
    pub fn lookup(&self, key: &[u8]) -> Result<Option<Vec<u8>>, Errno> {
        self.check_key(key)?;
        let mut value = vec![0; self.value_len().max(8)];
        // SAFETY: the handle was validated when the file was opened and its mapping lives as long as the file; the key
        // has the map's size, and the buffer that of a value.
        let result = unsafe { user::lookup(self.handle(), &access(), key.as_ptr(), value.as_mut_ptr(), 0) };
        value.truncate(self.value_len());
        match result {
            0 => Ok(Some(value)),
            error if error == -ENOENT => Ok(None),
            error => Err(errno(error)),
        }
    }

    /// Sets the value of a key (`BPF_MAP_UPDATE_ELEM`). `flags`: 0 any, 1 only when absent, 2 only when there.
    ///
    /// # Errors
    /// `EINVAL` for a key or a value of another size; the kernel's error number for what cannot be set.
    pub fn update(&self, key: &[u8], value: &[u8], flags: u64) -> Result<(), Errno> {
        self.check_key(key)?;
        if value.len() != self.value_len() {
            return Err(Errno::INVAL);
        }
        // SAFETY: as in `lookup`; the value has the map's size.
        check(unsafe { user::update(self.handle(), &access(), key.as_ptr(), value.as_ptr(), flags) })
    }

    /// Deletes a key (`BPF_MAP_DELETE_ELEM`).
    ///
    /// # Errors
    /// `ENOENT` when it is not there; `EINVAL` for a key of another size and for maps whose elements stay.
    pub fn delete(&self, key: &[u8]) -> Result<(), Errno> {
        self.check_key(key)?;
        // SAFETY: as in `lookup`.
        check(unsafe { user::delete(self.handle(), &access(), key.as_ptr()) })
    }

    /// The key behind this one, or the first (`BPF_MAP_GET_NEXT_KEY`).
    ///
    /// # Errors
    /// `EINVAL` for a key of another size; the kernel's error number for maps without keys.
    pub fn next_key(&self, key: Option<&[u8]>) -> Result<Option<Vec<u8>>, Errno> {
        key.map_or(Ok(()), |key| self.check_key(key))?;
        let mut next = vec![0; (self.shape().key_size as usize).max(8)];
        let from = key.map_or(std::ptr::null(), <[u8]>::as_ptr);
        // SAFETY: as in `lookup`; no key means the first one, and the buffer has room for a key.
        let result = unsafe { user::next_key(self.handle(), &access(), from, next.as_mut_ptr()) };
        next.truncate(self.shape().key_size as usize);
        match result {
            0 => Ok(Some(next)),
            error if error == -ENOENT => Ok(None),
            error => Err(errno(error)),
        }
    }

    /// All entries. While programs insert and delete, some may be missed; none comes twice.
    ///
    /// # Errors
    /// `EOPNOTSUPP` for maps that have no keys.
    pub fn entries(&self) -> Result<Vec<Entry>, Errno> {
        let shape = self.shape();
        if matches!(shape.map_type, MapType::RINGBUF | MapType::USER_RINGBUF | MapType::PERF_EVENT_ARRAY) {
            return Err(Errno::OPNOTSUPP);
        }
        let mut entries = Vec::new();
        let mut seen = HashSet::new();
        let mut key = None;
        // A key that is deleted meanwhile sends the walk back to the start: it is bounded, not endless.
        for _ in 0..u64::from(shape.max_entries).saturating_mul(4).saturating_add(64) {
            let Some(next) = self.next_key(key.as_deref())? else { break };
            if seen.insert(next.clone())
                && let Some(value) = self.lookup(&next)?
            {
                entries.push((next.clone(), value));
            }
            key = Some(next);
        }
        Ok(entries)
    }

    /// Writes an element before the map is published.
    pub(crate) fn set_initial(&self, key: &[u8], value: &[u8]) -> Result<(), Errno> {
        self.update(key, value, 0)
    }

    fn check_key(&self, key: &[u8]) -> Result<(), Errno> {
        if key.len() == self.shape().key_size as usize { Ok(()) } else { Err(Errno::INVAL) }
    }
}

fn check(result: i64) -> Result<(), Errno> {
    if result == 0 { Ok(()) } else { Err(errno(result)) }
}

/// A negative error number; the kernel's own `ENOTSUPP`, which libc does not know, as `EOPNOTSUPP`.
fn errno(result: i64) -> Errno {
    match -result {
        ENOTSUPP => Errno::OPNOTSUPP,
        number => Errno::from_raw_os_error(i32::try_from(number).unwrap_or(22)),
    }
}
