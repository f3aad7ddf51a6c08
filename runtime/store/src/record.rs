//! The frame around everything that is serialised: who wrote it, how long it is, whether it is whole.
//!
//! ```text
//! 0   magic     u64   which kind of record
//! 8   version   u32   RECORD_VERSION
//! 12  length    u32   bytes of payload
//! 16  checksum  u64   FNV-1a over the payload
//! 24  payload         postcard
//! ```
//!
//! The checksum finds truncation and accidents. Against malice there is the file's owner and mode.

use crate::StoreError;
use serde::{Serialize, de::DeserializeOwned};
use std::path::Path;

/// Version of all payloads together.
pub(crate) const RECORD_VERSION: u32 = 3;

/// Largest record that is read, in bytes: a program of a million instructions stays far below it.
pub(crate) const RECORD_MAX: u64 = 1 << 28;

const HEADER_LEN: usize = 24;

/// What a record is of.
#[derive(Clone, Copy)]
pub(crate) struct Kind {
    magic: u64,
    name: &'static str,
}

/// A program file.
pub(crate) const PROGRAM: Kind = Kind { magic: u64::from_le_bytes(*b"beeprog\0"), name: "program" };
/// The part of a link file behind its shared page.
pub(crate) const LINK: Kind = Kind { magic: u64::from_le_bytes(*b"beelnkr\0"), name: "link" };
/// What is known of an object as a whole.
pub(crate) const OBJECT: Kind = Kind { magic: u64::from_le_bytes(*b"beeobj\0\0"), name: "object" };
/// What became of links in a process.
pub(crate) const PROCESS: Kind = Kind { magic: u64::from_le_bytes(*b"beeproc\0"), name: "process" };
/// What is left to do after an object's publication.
pub(crate) const PENDING: Kind = Kind { magic: u64::from_le_bytes(*b"beepend\0"), name: "journal" };

/// Frames a value.
pub(crate) fn encode<T: Serialize>(kind: Kind, value: &T, path: &Path) -> Result<Vec<u8>, StoreError> {
    let payload = postcard::to_stdvec(value)
        .map_err(|error| StoreError::corrupt(path, format!("{} cannot be written: {error}", kind.name)))?;
    let len = u32::try_from(payload.len())
        .ok()
        .filter(|&len| u64::from(len) + (HEADER_LEN as u64) < RECORD_MAX)
        .ok_or_else(|| StoreError::corrupt(path, format!("{} is too large to be written", kind.name)))?;
    let mut bytes = Vec::with_capacity(HEADER_LEN + payload.len());
    bytes.extend_from_slice(&kind.magic.to_le_bytes());
    bytes.extend_from_slice(&RECORD_VERSION.to_le_bytes());
    bytes.extend_from_slice(&len.to_le_bytes());
    bytes.extend_from_slice(&checksum(&payload).to_le_bytes());
    bytes.extend_from_slice(&payload);
    Ok(bytes)
}

/// Takes a value out of its frame; `path` is for messages.
pub(crate) fn decode<T: DeserializeOwned>(kind: Kind, bytes: &[u8], path: &Path) -> Result<T, StoreError> {
    let corrupt = |reason: String| StoreError::corrupt(path, reason);
    let Some((header, payload)) = bytes.split_first_chunk::<HEADER_LEN>() else {
        return Err(corrupt(format!("it is too short for a {} record", kind.name)));
    };
    let word = |at: usize| u64::from_le_bytes(std::array::from_fn(|i| header[at + i]));
    let half = |at: usize| u32::from_le_bytes(std::array::from_fn(|i| header[at + i]));
    if word(0) != kind.magic {
        return Err(corrupt(format!("it is not a {} record", kind.name)));
    }
    if half(8) != RECORD_VERSION {
        return Err(StoreError::Version { path: path.into(), found: half(8), expected: RECORD_VERSION });
    }
    if payload.len() != half(12) as usize {
        return Err(corrupt(format!("it has {} bytes of payload, not {}", payload.len(), half(12))));
    }
    if checksum(payload) != word(16) {
        return Err(corrupt("its checksum does not match".into()));
    }
    match postcard::take_from_bytes(payload) {
        Ok((value, [])) => Ok(value),
        Ok((_, rest)) => Err(corrupt(format!("{} bytes too many", rest.len()))),
        Err(error) => Err(corrupt(error.to_string())),
    }
}

/// 64-bit FNV-1a.
fn checksum(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, &byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_damage_is_found() {
        let path = Path::new("x");
        let value = vec!["one".to_owned(), "two".to_owned()];
        let good = encode(OBJECT, &value, path).unwrap();
        assert_eq!(decode::<Vec<String>>(OBJECT, &good, path).unwrap(), value);
        assert!(decode::<Vec<String>>(PROGRAM, &good, path).is_err());
        for len in 0..good.len() {
            assert!(decode::<Vec<String>>(OBJECT, &good[..len], path).is_err(), "{len} bytes");
        }
        for bit in 0..good.len() * 8 {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(decode::<Vec<String>>(OBJECT, &bad, path).is_err(), "bit {bit}");
        }
    }
}
