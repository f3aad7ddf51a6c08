//! Programs compiled by clang, from `tests/programs`: those that must be accepted, those that must be refused and why.
//!
//! Without clang or libbpf's headers the tests say so and pass.

use beeline_abi::map::MapShape;
use beeline_object::{MapDef, MapKind, Object, ProgramDef};
use beeline_verifier::{MapInfo, Options, ProgType, Program, Rejection, Verified, verify};
use std::process::Command;

fn compile(name: &str) -> Option<Object> {
    let source = format!("{}/tests/programs/{name}.bpf.c", env!("CARGO_MANIFEST_DIR"));
    let output = format!("{}/{name}.bpf.o", env!("CARGO_TARGET_TMPDIR"));
    let arguments =
        ["-g", "-O2", "-Wall", "-target", "bpf", "-D__TARGET_ARCH_x86", "-I/usr/include/x86_64-linux-gnu"];
    let run = Command::new("clang").args(arguments).args(["-c", &source, "-o", &output]).output();
    let Ok(run) = run else {
        println!("skipped: no clang");
        return None;
    };
    let errors = String::from_utf8_lossy(&run.stderr).into_owned();
    if errors.contains("file not found") {
        println!("skipped: headers are missing: {errors}");
        return None;
    }
    assert!(run.status.success(), "{errors}");
    let bytes = std::fs::read(&output).expect("the compiler's output");
    let options =
        beeline_object::Options { object_name: name.into(), ..beeline_object::Options::of_this_machine() };
    Some(Object::parse(&bytes, &options).expect("an object"))
}

fn map_info(def: &MapDef) -> MapInfo {
    let (map_type, key_size, value_size) = (def.map_type, def.key_size, def.value_size);
    let (max_entries, map_flags) = (def.max_entries, def.map_flags);
    MapInfo {
        name: def.name.clone(),
        shape: MapShape { map_type, key_size, value_size, max_entries, map_flags, cpus: 2 },
        inner: def.inner.as_ref().map(|inner| Box::new(map_info(inner))),
        frozen_contents: match &def.kind {
            MapKind::Data { contents, .. } if def.frozen => Some(contents.clone()),
            _ => None,
        },
        ..MapInfo::default()
    }
}

fn verdict(object: &Object, def: &ProgramDef) -> Result<Verified, Rejection> {
    verdict_with(object, def, 0)
}

fn verdict_with(object: &Object, def: &ProgramDef, log_level: u32) -> Result<Verified, Rejection> {
    verify(program(object, def), &Options { log_level, ..Options::default() })
}

fn program(object: &Object, def: &ProgramDef) -> Program {
    Program {
        name: def.name.clone(),
        prog_type: ProgType(def.prog_type),
        gpl_compatible: object.is_gpl_compatible(),
        insns: def.insns.clone(),
        // The object numbers maps over all programs.
        maps: object.maps.iter().map(map_info).collect(),
        ..Program::default()
    }
}

#[test]
fn what_people_write_is_accepted() {
    let Some(object) = compile("accepted") else { return };
    assert!(object.programs.len() > 10);
    for def in &object.programs {
        if let Err(rejection) = verdict_with(&object, def, 1) {
            panic!("{}: {rejection}\n{}", def.name, rejection.log);
        }
    }
}

#[test]
fn a_call_behind_a_frozen_constant_is_dead() {
    let Some(object) = compile("accepted") else { return };
    let def = object.program("constants").expect("the program");
    let verified = verdict(&object, def).expect("accepted");
    let calls = (0..def.insns.len())
        .filter(|&pc| def.insns[pc].code == beeline_isa::opcode::JMP | beeline_isa::opcode::CALL);
    assert!(calls.into_iter().all(|pc| !verified.is_live(pc)));
}

#[test]
fn needs_are_what_is_used() {
    let Some(object) = compile("accepted") else { return };
    let needs = |name: &str| verdict(&object, object.program(name).expect(name)).expect(name).needs();
    // di and si lie at 112 and 104.
    assert_eq!(needs("bounded_loop").context.0, 1 << 14);
    assert_eq!(needs("unknown_bound").context.0, 1 << 13);
    assert_eq!(needs("count").context.0, 0);
    assert!(!needs("count").cpu && needs("run_time_length").cpu);
}

#[test]
fn refusals_say_why() {
    let Some(object) = compile("rejected") else { return };
    let source = include_str!("programs/rejected.bpf.c");
    let mut checked = 0;
    for part in source.split("/* reason: ").skip(1) {
        let (reasons, rest) = part.split_once(" */").expect("the end of the reason");
        let name = rest.split_once("int ").and_then(|(_, rest)| rest.split_once('(')).expect("a function").0;
        let def = object.program(name).unwrap_or_else(|| panic!("no program {name}"));
        let rejection = match verdict(&object, def) {
            Ok(_) => panic!("{name} was accepted"),
            Err(rejection) => rejection,
        };
        let right = reasons.split('|').any(|reason| rejection.reason.contains(reason));
        assert!(right, "{name}: {}, not {reasons}\n{}", rejection.reason, rejection.log);
        checked += 1;
    }
    assert_eq!(checked, object.programs.len());
}

/// Whatever the instructions, there is a verdict: no panic, no endless search. `BEELINE_MUTATIONS` sets how many per program.
#[test]
fn mutated_programs_get_a_verdict() {
    let Some(object) = compile("accepted") else { return };
    let count = std::env::var("BEELINE_MUTATIONS").ok().and_then(|n| n.parse().ok()).unwrap_or(200);
    let limits = beeline_verifier::Limits { insns_processed_max: 5_000, ..Default::default() };
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let (mut accepted, mut refused) = (0, 0);
    for def in &object.programs {
        for _ in 0..count {
            let mut program = program(&object, def);
            for _ in 0..1 + random.below(3) {
                mutate(&mut program, &mut random);
            }
            match verify(program, &Options { limits, ..Options::default() }) {
                Ok(_) => accepted += 1,
                Err(_) => refused += 1,
            }
        }
    }
    println!("{accepted} accepted, {refused} refused");
    assert!(accepted > 0 && refused > accepted / 10);
}

/// xorshift64.
struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % end as u64) as usize
    }
}

/// Changes a field of an instruction, or puts another one of the program in its place.
fn mutate(program: &mut Program, random: &mut Random) {
    const NUMBERS: [i32; 12] = [0, 1, -1, 4, 8, -8, 64, 512, i32::MAX, i32::MIN, 1 << 29, 0xffff];
    let at = random.below(program.insns.len());
    let other = program.insns[random.below(program.insns.len())];
    let insn = &mut program.insns[at];
    match random.below(6) {
        0 => insn.imm = NUMBERS[random.below(NUMBERS.len())],
        1 => insn.off = insn.off.wrapping_add([-8, -1, 1, 8][random.below(4)]),
        2 => insn.regs = insn.regs & 0xf0 | random.below(11) as u8,
        3 => insn.regs = insn.regs & 0x0f | (random.below(11) as u8) << 4,
        4 => insn.code ^= 1 << random.below(8),
        _ => *insn = other,
    }
}
