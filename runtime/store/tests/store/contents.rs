//! What is in maps, from user space.

use crate::{Scratch, object};
use beeline_abi::map::{MapShape, MapType};
use beeline_store::InitialValue;

#[test]
fn prog_array_holds_the_ids_of_programs() {
    let scratch = Scratch::new();
    let store = scratch.store();
    let mut new = object("one");
    new.maps[0].shape = MapShape { map_type: MapType::PROG_ARRAY, key_size: 4, value_size: 4, ..new.maps[0].shape };
    new.maps[0].initial.push((3u32.to_ne_bytes().to_vec(), InitialValue::Program(1)));
    let published = store.publish(&new).unwrap();
    let maps = store.maps().unwrap().maps;
    let value = maps[0].file.lookup(&3u32.to_ne_bytes()).unwrap();
    assert_eq!(value, Some(published.programs[1].to_ne_bytes().to_vec()));
}

