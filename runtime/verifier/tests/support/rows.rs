//! Programs of a corpus: a line of JSON each, in the form that `record.c` writes.
//!
//! | key | meaning |
//! |---|---|
//! | `script`, `name` | where it comes from |
//! | `prog_type`, `expected_attach_type` | as in `bpf_attr` |
//! | `insns` | hexadecimal, eight bytes an instruction; map references are zero |
//! | `maps` | name -> `type`, `key`, `value`, `max`, `flags`, `inner`, and `frozen`: the contents of a constant map |
//! | `fixups` | name -> the instructions that refer to that map |
//! | `verdict`, `kernel` | what a 6.18 kernel said, with instructions processed and states kept |

use beeline_abi::map::MapShape;
use beeline_isa::Insn;
use beeline_verifier::{MapInfo, ProgType, Program};
use serde_json::Value;

/// The rows of a corpus.
pub(crate) fn rows(text: &str) -> impl Iterator<Item = Value> + '_ {
    text.lines().map(|line| serde_json::from_str(line).expect("a line of JSON"))
}

/// The program of a row.
pub(crate) fn program(row: &Value) -> Program {
    let bytes = bytes(row["insns"].as_str().expect("instructions"));
    let mut insns: Vec<_> = bytes.as_chunks::<8>().0.iter().map(|&insn| Insn::from_bytes(insn)).collect();
    let mut maps = Vec::new();
    for (name, places) in row["fixups"].as_object().expect("fixups") {
        for place in places.as_array().expect("places") {
            insns[place.as_u64().expect("an instruction") as usize].imm = maps.len() as i32;
        }
        maps.push(map(name, &row["maps"][name]));
    }
    Program {
        name: row["name"].as_str().unwrap_or_default().into(),
        prog_type: ProgType(number(row, "prog_type")),
        expected_attach_type: number(row, "expected_attach_type"),
        gpl_compatible: row["license"] == "GPL",
        insns,
        maps,
        ..Program::default()
    }
}

fn map(name: &str, map: &Value) -> MapInfo {
    let shape = MapShape {
        map_type: number(map, "type"),
        key_size: number(map, "key"),
        value_size: number(map, "value"),
        max_entries: number(map, "max"),
        map_flags: number(map, "flags"),
        cpus: 2,
    };
    MapInfo {
        name: name.into(),
        shape,
        inner: map.get("inner").map(|inner| Box::new(self::map(name, inner))),
        frozen_contents: map["frozen"].as_str().map(bytes),
        ..MapInfo::default()
    }
}

fn bytes(hex: &str) -> Vec<u8> {
    let byte = |at| u8::from_str_radix(&hex[at..at + 2], 16).expect("a byte");
    (0..hex.len() / 2).map(|i| byte(2 * i)).collect()
}

/// A number of a row, 0 when it is not there.
pub(crate) fn number(row: &Value, key: &str) -> u32 {
    row[key].as_u64().unwrap_or_default().try_into().expect("32 bits")
}
