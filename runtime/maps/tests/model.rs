//! Every sequence of operations gives what the same sequence on a standard `HashMap` gives.

mod support;

use beeline_abi::errno::{E2BIG, EEXIST, EINVAL, ENOENT};
use beeline_abi::map::{MapFlags, MapType};
use proptest::prelude::*;
use std::collections::HashMap;
use support::{Map, me, shape};

#[derive(Clone, Debug)]
enum Action {
    Lookup(u16),
    Update(u16, u8, u64),
    Delete(u16),
    Walk,
}

fn action() -> impl Strategy<Value = Action> {
    prop_oneof![
        3 => any::<u16>().prop_map(Action::Lookup),
        6 => (any::<u16>(), any::<u8>(), 0..4u64).prop_map(|(k, v, f)| Action::Update(k, v, f)),
        4 => any::<u16>().prop_map(Action::Delete),
        1 => Just(Action::Walk),
    ]
}

/// A key of the given size that numbers below the range make collide.
fn key(number: u16, range: u16, size: usize) -> Vec<u8> {
    let number = number % range;
    let mut key = vec![0x5a; size];
    key[0] = number as u8;
    if size > 1 {
        key[size - 1] = (number >> 8) as u8;
    }
    key
}

fn check_hash(map_type: u32, key_size: u32, value_size: u32, flags: u32, actions: &[Action]) {
    let max = 24;
    let map = Map::new(shape(map_type, key_size, value_size, max, flags));
    let me = me();
    let mut model: HashMap<Vec<u8>, Vec<u8>> = HashMap::new();
    for action in actions {
        match *action {
            Action::Lookup(n) => {
                let key = key(n, 40, key_size as usize);
                assert_eq!(map.value(&me, &key), model.get(&key).cloned());
            }
            Action::Update(n, byte, flags) => {
                let key = key(n, 40, key_size as usize);
                let value = vec![byte; value_size as usize];
                let full = model.len() as u32 == max;
                let expected = match (flags, model.contains_key(&key)) {
                    (3.., _) => -EINVAL,
                    (1, true) => -EEXIST,
                    (2, false) => -ENOENT,
                    (_, false) if full => -E2BIG,
                    _ => 0,
                };
                assert_eq!(map.update(&me, &key, &value, flags), expected);
                if expected == 0 {
                    model.insert(key, value);
                }
            }
            Action::Delete(n) => {
                let key = key(n, 40, key_size as usize);
                let expected = if model.remove(&key).is_some() { 0 } else { -ENOENT };
                assert_eq!(map.delete(&me, &key), expected);
            }
            Action::Walk => {
                let mut walked = map.keys(&me);
                walked.sort();
                let mut expected: Vec<_> = model.keys().cloned().collect();
                expected.sort();
                assert_eq!(walked, expected);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn hash_is_a_map(actions in proptest::collection::vec(action(), 0..400)) {
        for (key_size, value_size) in [(8, 8), (4, 4), (4, 1), (8, 12), (3, 3), (9, 8), (16, 40), (21, 5)] {
            for flags in [0, MapFlags::NO_PREALLOC] {
                check_hash(MapType::HASH, key_size, value_size, flags, &actions);
                check_hash(MapType::PERCPU_HASH, key_size, value_size, flags, &actions);
            }
        }
    }
}

#[test]
fn array_elements_are_always_there() {
    for (map_type, value_size) in [(MapType::ARRAY, 5), (MapType::ARRAY, 8), (MapType::PERCPU_ARRAY, 12)] {
        let map = Map::new(shape(map_type, 4, value_size, 3, 0));
        let me = me();
        let value = vec![7; value_size as usize];
        assert_eq!(map.value(&me, &2u32.to_ne_bytes()), Some(vec![0; value_size as usize]));
        assert_eq!(map.value(&me, &3u32.to_ne_bytes()), None);
        assert_eq!(map.update(&me, &2u32.to_ne_bytes(), &value, 2), 0);
        assert_eq!(map.value(&me, &2u32.to_ne_bytes()), Some(value.clone()));
        assert_eq!(map.update(&me, &2u32.to_ne_bytes(), &value, 1), -EEXIST);
        assert_eq!(map.update(&me, &3u32.to_ne_bytes(), &value, 1), -E2BIG);
        assert_eq!(map.update(&me, &1u32.to_ne_bytes(), &value, 3), -EINVAL);
        assert_eq!(map.delete(&me, &1u32.to_ne_bytes()), -EINVAL);
        assert_eq!(map.keys(&me).len(), 3);
    }
}
