//! The maps of a corpus: named kinds, those of the kernel's verifier suite, and descriptions.

use beeline_abi::map::{MapFlags, MapShape, MapType};
use beeline_verifier::{MapInfo, SpecialField, SpecialKind};
use serde_json::Value;

/// CPUs that per-CPU maps are made for.
pub(crate) const CPUS: u32 = 2;

/// A map to be made.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct MapSpec {
    /// Types and sizes.
    pub shape: MapShape,
    /// Of a map of maps: what its members look like.
    pub inner: Option<Box<MapSpec>>,
    /// First contents: key and value.
    pub contents: Vec<(Vec<u8>, Vec<u8>)>,
    /// Parts of its values that only helpers touch.
    pub special: Vec<SpecialField>,
    /// Programs to tail-call, by index.
    pub programs: Vec<(u32, Callee)>,
}

/// A program that lies in a prog array.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Callee {
    /// It returns this number.
    Returns(i32),
    /// It tail-calls the program at this index of the same array, and returns 41 if it cannot.
    Calls(u32),
}

/// A map that cannot be made.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum MapError {
    /// Neither a kind nor a description.
    #[error("unsupported fixup {0}")]
    Kind(String),
    /// No such type of map.
    #[error("unknown map type {0}")]
    Type(String),
    /// A description with something missing or that is no number.
    #[error("map {0:?} is not of the form type:key:value:max[:flags]")]
    Form(String),
    /// Not bytes.
    #[error("initial contents of a map: {0}")]
    Contents(#[from] crate::hex::HexError),
}

/// Names of types, as `bpftool` writes them, and their numbers.
const TYPES: &[(&str, u32)] = &[
    ("hash", MapType::HASH),
    ("array", MapType::ARRAY),
    ("prog_array", MapType::PROG_ARRAY),
    ("perf_event_array", MapType::PERF_EVENT_ARRAY),
    ("percpu_hash", MapType::PERCPU_HASH),
    ("percpu_array", MapType::PERCPU_ARRAY),
    ("stack_trace", MapType::STACK_TRACE),
    ("cgroup_array", MapType::CGROUP_ARRAY),
    ("lru_hash", MapType::LRU_HASH),
    ("lru_percpu_hash", MapType::LRU_PERCPU_HASH),
    ("lpm_trie", MapType::LPM_TRIE),
    ("array_of_maps", MapType::ARRAY_OF_MAPS),
    ("hash_of_maps", MapType::HASH_OF_MAPS),
    ("devmap", 14),
    ("sockmap", 15),
    ("cpumap", 16),
    ("xskmap", 17),
    ("sockhash", 18),
    ("cgroup_storage", 19),
    ("reuseport_sockarray", 20),
    ("percpu_cgroup_storage", 21),
    ("queue", MapType::QUEUE),
    ("stack", MapType::STACK),
    ("sk_storage", 24),
    ("devmap_hash", 25),
    ("struct_ops", 26),
    ("ringbuf", MapType::RINGBUF),
    ("inode_storage", 28),
    ("task_storage", 29),
    ("bloom_filter", MapType::BLOOM_FILTER),
    ("user_ringbuf", MapType::USER_RINGBUF),
    ("cgrp_storage", 32),
    ("arena", 33),
];

/// Element 0 of the kinds `map_array_*`.
fn filled(value_size: u32) -> Vec<(Vec<u8>, Vec<u8>)> {
    let words: [u32; 12] = [28, 0, 0, 0, 0, 0, 0, 0xabcd_ef12, 0, 0, 0, 0];
    let value = words.iter().flat_map(|word| word.to_le_bytes()).take(value_size as usize).collect();
    vec![(vec![0; 4], value)]
}

impl MapSpec {
    fn of(map_type: u32, key_size: u32, value_size: u32, max_entries: u32, map_flags: u32) -> MapSpec {
        let shape = MapShape { map_type, key_size, value_size, max_entries, map_flags, cpus: CPUS };
        MapSpec { shape, ..MapSpec::default() }
    }

    fn filled_array(value_size: u32, flags: u32) -> MapSpec {
        let contents = filled(value_size);
        MapSpec { contents, ..MapSpec::of(MapType::ARRAY, 4, value_size, 1, flags) }
    }

    fn prog_array(max_entries: u32, first: u32) -> MapSpec {
        let programs = vec![(first, Callee::Returns(42)), (1, Callee::Calls(1)), (2, Callee::Returns(24))];
        MapSpec { programs, ..MapSpec::of(MapType::PROG_ARRAY, 4, 4, max_entries, 0) }
    }

    fn with(self, kind: SpecialKind, offset: u32) -> MapSpec {
        MapSpec { special: vec![SpecialField { kind, offset }], ..self }
    }

    /// A kind of map by its name.
    pub fn of_kind(kind: &str) -> Option<MapSpec> {
        let no_prealloc = MapFlags::NO_PREALLOC;
        Some(match kind {
            "map_hash_8b" => MapSpec::of(MapType::HASH, 8, 8, 1, no_prealloc),
            "map_hash_16b" => MapSpec::of(MapType::HASH, 8, 16, 1, no_prealloc),
            "map_hash_48b" => MapSpec::of(MapType::HASH, 8, 48, 1, no_prealloc),
            "map_array_48b" => MapSpec::filled_array(48, 0),
            "map_array_ro" => MapSpec::filled_array(48, MapFlags::RDONLY_PROG),
            "map_array_wo" => MapSpec::filled_array(48, MapFlags::WRONLY_PROG),
            "map_array_small" => MapSpec::filled_array(1, 0),
            "prog1" => MapSpec::prog_array(4, 0),
            "prog2" => MapSpec::prog_array(8, 7),
            "map_in_map" => {
                let inner = Some(Box::new(MapSpec::of(MapType::ARRAY, 4, 4, 1, 0)));
                MapSpec { inner, ..MapSpec::of(MapType::ARRAY_OF_MAPS, 4, 4, 1, 0) }
            }
            "map_stacktrace" => MapSpec::of(MapType::STACK_TRACE, 4, 8, 1, 0),
            "map_event_output" => MapSpec::of(MapType::PERF_EVENT_ARRAY, 4, 4, 1, 0),
            "map_ringbuf" => MapSpec::of(MapType::RINGBUF, 0, 0, 4096, 0),
            "map_timer" => MapSpec::of(MapType::ARRAY, 4, 16, 1, 0).with(SpecialKind::Timer, 0),
            "map_spin_lock" => MapSpec::of(MapType::ARRAY, 4, 8, 1, 0).with(SpecialKind::SpinLock, 4),
            _ => return None,
        })
    }

    /// Reads a kind, `type:key:value:max[:flags]`, or an object.
    ///
    /// # Errors
    /// [`MapError`].
    pub fn parse(spec: &Value) -> Result<MapSpec, MapError> {
        if let Some(text) = spec.as_str() {
            return MapSpec::of_kind(text).map_or_else(|| described(text), Ok);
        }
        let number = |key: &str, default: u32| match spec.get(key) {
            None => Ok(default),
            Some(value) => value
                .as_u64()
                .and_then(|n| u32::try_from(n).ok())
                .ok_or_else(|| MapError::Form(spec.to_string())),
        };
        let map_type = match &spec["type"] {
            Value::String(name) => type_number(name)?,
            _ => number("type", 0)?,
        };
        let mut map = MapSpec::of(
            map_type,
            number("key", 4)?,
            number("value", 8)?,
            number("max", 1)?,
            number("flags", 0)?,
        );
        map.inner = spec.get("inner").map(MapSpec::parse).transpose()?.map(Box::new);
        for pair in spec["init"].as_array().into_iter().flatten() {
            let bytes = |at: usize| Ok::<_, MapError>(crate::hex::bytes(pair[at].as_str().unwrap_or(""))?);
            map.contents.push((bytes(0)?, bytes(1)?));
        }
        Ok(map)
    }

    /// What the verifier is told of the map. It has no name, as in the kernel's suite.
    pub fn info(&self) -> MapInfo {
        MapInfo {
            shape: self.shape,
            inner: self.inner.as_ref().map(|inner| Box::new(inner.info())),
            special: self.special.clone(),
            ..MapInfo::default()
        }
    }
}

fn type_number(name: &str) -> Result<u32, MapError> {
    let known = TYPES.iter().find(|(known, _)| *known == name).map(|(_, number)| *number);
    known.ok_or_else(|| MapError::Type(name.into()))
}

/// `type:key:value:max[:flags]`.
fn described(text: &str) -> Result<MapSpec, MapError> {
    let parts: Vec<&str> = text.split(':').collect();
    if parts.len() == 1 {
        return Err(MapError::Kind(text.into()));
    }
    let form = || MapError::Form(text.into());
    let numbers = parts[1..].iter().map(|part| number(part).ok_or_else(form));
    match numbers.collect::<Result<Vec<u32>, _>>()?[..] {
        [key, value, max] => Ok(MapSpec::of(type_number(parts[0])?, key, value, max, 0)),
        [key, value, max, flags] => Ok(MapSpec::of(type_number(parts[0])?, key, value, max, flags)),
        _ => Err(form()),
    }
}

/// A number, decimal or with `0x`.
fn number(text: &str) -> Option<u32> {
    match text.strip_prefix("0x") {
        Some(digits) => u32::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn forms() {
        let hash = MapSpec::of(MapType::HASH, 8, 16, 3, 1);
        assert_eq!(MapSpec::parse(&json!("hash:8:16:3:0x1")), Ok(hash.clone()));
        let object = json!({"type": "hash", "key": 8, "value": 16, "max": 3, "flags": 1});
        assert_eq!(MapSpec::parse(&object), Ok(hash));
        let outer = MapSpec::parse(&json!({"type": 12, "inner": "map_array_small"})).expect("a map of maps");
        assert_eq!(outer.inner.expect("members").shape.value_size, 1);
        assert_eq!(MapSpec::parse(&json!("tree:1:2:3")), Err(MapError::Type("tree".into())));
        assert_eq!(MapSpec::parse(&json!("hash:1:2")), Err(MapError::Form("hash:1:2".into())));
        assert_eq!(MapSpec::parse(&json!("hash:1:x:2")), Err(MapError::Form("hash:1:x:2".into())));
        assert_eq!(MapSpec::parse(&json!("map_thing")), Err(MapError::Kind("map_thing".into())));
    }
}
