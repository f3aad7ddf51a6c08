//! Every helper, called with arguments of all kinds: the verifier and the kernel agree on which calls are allowed.
//!
//! Skipped where the kernel is not the one that the table was made after, and where `../shared/oracle/koracle` or permission to load programs is missing.

use beeline_helpers::proto::ArgKind;
use beeline_helpers::{HELPERS, KFUNC_BASE, kernel_only};
use beeline_isa::Insn;
use beeline_vm::corpus;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Calls of each helper.
const CALLS: usize = 24;

/// Helpers that the kernel's configuration forbids, or whose arguments these kinds do not make: callbacks, dynptrs, objects.
const LEFT_OUT: [u32; 7] = [12, 36, 51, 58, 166, 93, 94];

/// Types of programs, as the oracle calls them.
const TYPES: [(&str, u32); 8] = [
    ("socket_filter", 1),
    ("kprobe", 2),
    ("sched_cls", 3),
    ("tracepoint", 5),
    ("xdp", 6),
    ("perf_event", 7),
    ("raw_tracepoint", 17),
    ("syscall", 31),
];

const MAPS: [&str; 12] = [
    "array:4:16:2",
    "hash:8:16:2",
    "percpu_array:4:16:2",
    "ringbuf:0:0:4096",
    "perf_event_array:4:4:2",
    "stack_trace:4:80:8",
    "prog_array:4:4:2",
    "cgroup_array:4:4:2",
    "queue:0:16:4",
    "user_ringbuf:0:0:4096",
    "bloom_filter:0:16:4",
    "lru_hash:4:16:4",
];

/// What an argument is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Given {
    Number(i32),
    Unknown,
    Context(i32),
    /// Stack this far below r10: 64 bytes are initialised.
    Stack(i32),
    /// The value of the first map, or null.
    Value,
    /// The same, compared with null.
    Found,
    Map(usize),
}

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    fn of<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.next() as usize % all.len()]
    }

    fn one_in(&mut self, n: u64) -> bool {
        self.next().is_multiple_of(n)
    }

    fn given(&mut self) -> Given {
        let map = Given::Map(self.next() as usize % MAPS.len());
        let numbers = [0, 1, 8, 65, -1].map(Given::Number);
        let places = [Given::Stack(-64), Given::Stack(-128), Given::Stack(-4)];
        let others = [Given::Unknown, Given::Context(0), Given::Context(8), Given::Value, Given::Found, map];
        match self.next() % 3 {
            0 => self.of(&numbers),
            1 => self.of(&places),
            _ => self.of(&others),
        }
    }

    /// What fits, more often than not.
    fn fitting(&mut self, kind: ArgKind) -> Given {
        if self.one_in(4) {
            return self.given();
        }
        match kind {
            ArgKind::Ctx { .. } => Given::Context(0),
            ArgKind::ConstMapPtr => Given::Map(self.next() as usize % MAPS.len()),
            ArgKind::Size | ArgKind::SizeOrZero => self.of(&[8, 64, 0].map(Given::Number)),
            ArgKind::Mem { nullable: true, .. } => {
                self.of(&[Given::Number(0), Given::Stack(-64), Given::Value])
            }
            ArgKind::Anything => self.of(&[Given::Number(0), Given::Unknown]),
            _ => self.of(&[Given::Stack(-64), Given::Found, Given::Stack(-128)]),
        }
    }
}

/// A program that makes the call, and where it refers to which map.
fn program(id: u32, arguments: &[Given; 5]) -> (Vec<Insn>, BTreeMap<usize, Vec<usize>>) {
    let (mut code, mut maps) = (Vec::new(), BTreeMap::<usize, Vec<usize>>::new());
    let mut map = |code: &mut Vec<Insn>, reg: u8, index: usize| {
        maps.entry(index).or_default().push(code.len());
        code.extend([Insn::new(0x18, reg, 1, 0, 0), Insn::default()]);
    };
    code.push(Insn::new(0xbf, 6, 1, 0, 0));
    code.extend((-64..0).step_by(8).map(|off| Insn::new(0x7a, 10, 0, off, 0)));
    if arguments.iter().any(|it| matches!(it, Given::Value | Given::Found)) {
        // A key that is not known, so that the value may be null.
        code.extend([Insn::new(0x85, 0, 0, 0, 7), Insn::new(0x63, 10, 0, -4, 0)]);
        code.extend([Insn::new(0xbf, 2, 10, 0, 0), Insn::new(0x07, 2, 0, 0, -4)]);
        map(&mut code, 1, 0);
        code.extend([Insn::new(0x85, 0, 0, 0, 1), Insn::new(0xbf, 7, 0, 0, 0), Insn::new(0xbf, 8, 0, 0, 0)]);
    }
    if arguments.contains(&Given::Found) {
        code.extend([Insn::new(0x55, 7, 0, 2, 0), Insn::new(0xb7, 0, 0, 0, 0), Insn::new(0x95, 0, 0, 0, 0)]);
    }
    if arguments.contains(&Given::Unknown) {
        code.extend([Insn::new(0x85, 0, 0, 0, 7), Insn::new(0xbf, 9, 0, 0, 0)]);
    }
    for (reg, given) in (1..).zip(arguments) {
        let moved = |from: u8, by: i32| [Insn::new(0xbf, reg, from, 0, 0), Insn::new(0x07, reg, 0, 0, by)];
        match *given {
            Given::Number(number) => code.push(Insn::new(0xb7, reg, 0, 0, number)),
            Given::Unknown => code.push(Insn::new(0xbf, reg, 9, 0, 0)),
            Given::Context(0) => code.push(Insn::new(0xbf, reg, 6, 0, 0)),
            Given::Context(by) => code.extend(moved(6, by)),
            Given::Stack(by) => code.extend(moved(10, by)),
            Given::Value => code.push(Insn::new(0xbf, reg, 8, 0, 0)),
            Given::Found => code.push(Insn::new(0xbf, reg, 7, 0, 0)),
            Given::Map(index) => map(&mut code, reg, index),
        }
    }
    code.extend([
        Insn::new(0x85, 0, 0, 0, id as i32),
        Insn::new(0xb7, 0, 0, 0, 0),
        Insn::new(0x95, 0, 0, 0, 0),
    ]);
    (code, maps)
}

fn is_made(kind: &ArgKind) -> bool {
    !matches!(kind, ArgKind::Func | ArgKind::Dynptr(_) | ArgKind::Btf(_) | ArgKind::RingbufMem { .. })
}

fn rows() -> Vec<Value> {
    let mut random = Random(0xbee1);
    let here = HELPERS.iter().map(|helper| helper.proto.id).filter(|id| *id < KFUNC_BASE);
    let ids = here.chain(kernel_only::KERNEL_ONLY.iter().map(|proto| proto.id));
    let mut rows = Vec::new();
    for id in ids.filter(|id| !LEFT_OUT.contains(id)) {
        for _ in 0..CALLS {
            let (name, number) = random.of(&TYPES);
            let Some(proto) = kernel_only::proto(id, number) else { continue };
            // The kernel has other prototypes there, for objects that nobody has here.
            let of_objects = number == 31 && matches!(id, 46 | 188);
            if of_objects || !proto.args.iter().all(is_made) {
                continue;
            }
            let arguments: [Given; 5] = std::array::from_fn(|i| random.fitting(proto.args[i]));
            let (code, places) = program(id, &arguments);
            let hex: String =
                code.iter().flat_map(|insn| insn.to_bytes()).map(|byte| format!("{byte:02x}")).collect();
            let named = |index: &usize| format!("m{index}");
            let maps: serde_json::Map<_, _> =
                places.keys().map(|index| (named(index), MAPS[*index].into())).collect();
            let fixups: serde_json::Map<_, _> =
                places.iter().map(|(index, at)| (named(index), json!(at))).collect();
            let flags = if number == 31 { 16 } else { 0 };
            rows.push(json!({
                "id": format!("{} in {name}: {arguments:?}", proto.name), "insns": hex, "prog_type": name,
                "maps": maps, "fixups": fixups, "prog_flags": flags, "run": false,
            }));
        }
    }
    rows
}

#[test]
fn calls_are_allowed_as_in_the_kernel() {
    // The table was made after that kernel.
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    if !release.starts_with("6.18.") {
        println!("skipped: this kernel is {}, not 6.18", release.trim());
        return;
    }
    let shared = std::env::var_os("BEELINE_SHARED")
        .map_or(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared"), PathBuf::from);
    let rows = rows();
    let lines: String = rows.iter().map(|row| format!("{row}\n")).collect();
    let file = std::env::temp_dir().join(format!("beeline-prototypes-{}.jsonl", std::process::id()));
    std::fs::write(&file, lines).expect("a temporary file");
    let output = Command::new(shared.join("oracle/koracle"))
        .args(["--no-run", "--jsonl"])
        .arg(&file)
        .stdin(Stdio::null())
        .output();
    let _ = std::fs::remove_file(&file);
    let Ok(output) = output else {
        println!("skipped: no oracle in {}", shared.display());
        return;
    };
    let text = String::from_utf8_lossy(&output.stdout);
    let answers: Vec<Value> = text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    if answers.iter().all(|answer| answer["verdict"] == "error" || answer["errno"] == "EPERM") {
        println!("skipped: no permission to load eBPF programs");
        return;
    }
    assert_eq!(answers.len(), rows.len(), "{}", String::from_utf8_lossy(&output.stderr));
    let (mut failures, mut accepted) = (Vec::new(), 0);
    for (row, kernel) in rows.iter().zip(&answers) {
        let here = corpus::answer(&row.to_string());
        accepted += usize::from(kernel["verdict"] == "accept");
        if here["verdict"] != kernel["verdict"] {
            failures.push(format!("{}: kernel {}, here {}", row["id"], kernel["reason"], here["reason"]));
        }
    }
    println!("{} calls, {accepted} of them allowed", rows.len());
    assert!(failures.is_empty(), "{} differ:\n{}", failures.len(), failures.join("\n"));
    assert!(accepted * 10 > rows.len(), "only {accepted} of {} are allowed", rows.len());
}
