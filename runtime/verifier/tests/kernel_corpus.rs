//! The kernel's own verifier suite, as data: what the kernel rejects is rejected here, nearly all that it accepts accepted.
//!
//! The corpus lies outside the repository (`../shared/verifier`, or below `BEELINE_SHARED`); without it the test says so and
//! passes. `accepted_beyond_kernel.txt` lists the programs that are accepted here and not by the kernel, with the reason why
//! each is harmless in user space.

use beeline_abi::map::{MapFlags, MapShape, MapType};
use beeline_isa::Insn;
use beeline_verifier::types::Types;
use beeline_verifier::{MapInfo, Options, ProgType, Program, SpecialField, SpecialKind, verify};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// Share of what the kernel accepts that must be accepted, in percent.
const ACCEPTED_PERCENT_MIN: f64 = 99.5;

fn corpus() -> Option<Vec<Value>> {
    let workspace = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../..");
    let shared = std::env::var_os("BEELINE_SHARED").map_or(workspace.join("../shared"), PathBuf::from);
    let text = std::fs::read_to_string(shared.join("verifier/tests.jsonl")).ok()?;
    Some(text.lines().map(|line| serde_json::from_str(line).expect("a line of JSON")).collect())
}

fn prog_type(name: &str) -> ProgType {
    match name {
        "unspec" | "socket_filter" => ProgType::SOCKET_FILTER,
        "kprobe" => ProgType::KPROBE,
        "sched_cls" => ProgType::SCHED_CLS,
        "sched_act" => ProgType::SCHED_ACT,
        "tracepoint" => ProgType::TRACEPOINT,
        "xdp" => ProgType::XDP,
        "perf_event" => ProgType::PERF_EVENT,
        "raw_tracepoint" => ProgType::RAW_TRACEPOINT,
        "raw_tracepoint_writable" => ProgType::RAW_TRACEPOINT_WRITABLE,
        name => panic!("program type {name}"),
    }
}

fn map(kind: &str) -> MapInfo {
    let (map_type, key_size, value_size, max_entries, map_flags) = match kind {
        "map_hash_8b" => (MapType::HASH, 8, 8, 1, MapFlags::NO_PREALLOC),
        "map_hash_16b" => (MapType::HASH, 8, 16, 1, MapFlags::NO_PREALLOC),
        "map_hash_48b" => (MapType::HASH, 8, 48, 1, MapFlags::NO_PREALLOC),
        "map_array_48b" => (MapType::ARRAY, 4, 48, 1, 0),
        "map_array_ro" => (MapType::ARRAY, 4, 48, 1, MapFlags::RDONLY_PROG),
        "map_array_wo" => (MapType::ARRAY, 4, 48, 1, MapFlags::WRONLY_PROG),
        "map_array_small" => (MapType::ARRAY, 4, 1, 1, 0),
        "prog1" => (MapType::PROG_ARRAY, 4, 4, 4, 0),
        "prog2" => (MapType::PROG_ARRAY, 4, 4, 8, 0),
        "map_in_map" => (MapType::ARRAY_OF_MAPS, 4, 4, 1, 0),
        "map_stacktrace" => (MapType::STACK_TRACE, 4, 127 * 8, 1, 0),
        "map_event_output" => (MapType::PERF_EVENT_ARRAY, 4, 4, 4, 0),
        "map_ringbuf" => (MapType::RINGBUF, 0, 0, 4096, 0),
        "map_timer" => (MapType::HASH, 4, 16, 1, 0),
        kind => panic!("map kind {kind}"),
    };
    let inner = (kind == "map_in_map").then(|| {
        let shape = MapShape {
            map_type: MapType::ARRAY,
            key_size: 4,
            value_size: 4,
            max_entries: 1,
            ..MapShape::default()
        };
        Box::new(MapInfo { shape, ..MapInfo::default() })
    });
    let shape = MapShape { map_type, key_size, value_size, max_entries, map_flags, cpus: 2 };
    let special = match kind {
        "map_timer" => vec![SpecialField { kind: SpecialKind::Timer, offset: 0 }],
        _ => Vec::new(),
    };
    MapInfo { name: kind.into(), shape, inner, special, ..MapInfo::default() }
}

fn program(row: &Value, types: &Types) -> Program {
    let hex = row["insns"].as_str().expect("instructions");
    let bytes = (0..hex.len() / 2).map(|i| u8::from_str_radix(&hex[2 * i..2 * i + 2], 16).expect("hex"));
    let bytes = bytes.collect::<Vec<_>>();
    let mut insns =
        bytes.chunks_exact(8).map(|c| Insn::from_bytes(c.try_into().unwrap())).collect::<Vec<_>>();
    let mut maps = Vec::new();
    for (kind, places) in row["fixups"].as_object().expect("fixups") {
        for place in places.as_array().expect("places") {
            insns[place.as_u64().unwrap() as usize].imm = maps.len() as i32;
        }
        maps.push(map(kind));
    }
    Program {
        name: row["name"].as_str().unwrap_or_default().into(),
        prog_type: prog_type(row["prog_type"].as_str().expect("type")),
        gpl_compatible: true,
        insns,
        maps,
        types: Some(types.clone()),
        ..Program::default()
    }
}

/// Ids of the programs that may be accepted although the kernel rejects them.
fn excused() -> Vec<u64> {
    let text = include_str!("accepted_beyond_kernel.txt");
    let rows = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    rows.map(|line| line.split_whitespace().next().unwrap().parse().expect("an id")).collect()
}

#[test]
fn verdicts_are_the_kernels() {
    let Some(rows) = corpus() else {
        println!("skipped: no ../shared/verifier/tests.jsonl");
        return;
    };
    const STRICT_ALIGNMENT: u64 = 1;
    let excused = excused();
    let types = beeline_engine::running_kernel_types();
    let (mut accepted, mut acceptable, mut beyond) = (0, 0, Vec::new());
    let mut missed: BTreeMap<String, Vec<u64>> = BTreeMap::new();
    for row in rows.iter().filter(|row| row["cls"] != "skb_ctx") {
        let id = row["id"].as_u64().unwrap();
        let strict_alignment = row["prog_flags"].as_u64().unwrap() & STRICT_ALIGNMENT != 0;
        let verdict = verify(program(row, &types), &Options { strict_alignment, ..Options::default() });
        match (row["verdict"].as_str().unwrap(), verdict) {
            ("accept", Ok(_)) => (accepted, acceptable) = (accepted + 1, acceptable + 1),
            ("accept", Err(rejection)) => {
                acceptable += 1;
                missed.entry(rejection.reason).or_default().push(id);
            }
            ("reject", Ok(_)) if !excused.contains(&id) => {
                beyond.push(format!("{id} {} kernel: {}", row["name"], row["log"]))
            }
            _ => {}
        }
    }
    let percent = 100.0 * f64::from(accepted) / f64::from(acceptable);
    println!("accepted {accepted} of {acceptable}, {percent:.1} %");
    for (reason, ids) in &missed {
        println!("rejected {:3} {reason} {ids:?}", ids.len());
    }
    assert!(beyond.is_empty(), "accepted, and the kernel rejects:\n{}", beyond.join("\n"));
    assert!(percent >= ACCEPTED_PERCENT_MIN, "{percent:.1} % accepted");
}
