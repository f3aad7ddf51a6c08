//! Small programs and what is said about them: the kernel's words for each of the common reasons, and one whole log.

use beeline_abi::map::{MapShape, MapType};
use beeline_isa::Insn;
use beeline_isa::opcode::*;
use beeline_verifier::{MapInfo, Options, ProgType, Program, verify};

const EXIT_INSN: Insn = Insn::new(JMP | EXIT, 0, 0, 0, 0);

fn mov(dst: u8, imm: i32) -> Insn {
    Insn::new(ALU64 | MOV, dst, 0, 0, imm)
}

fn copy(dst: u8, src: u8) -> Insn {
    Insn::new(ALU64 | MOV | SRC_REG, dst, src, 0, 0)
}

fn add(dst: u8, imm: i32) -> Insn {
    Insn::new(ALU64 | ADD, dst, 0, 0, imm)
}

fn load(size: u8, dst: u8, base: u8, off: i16) -> Insn {
    Insn::new(LDX | MEM | size, dst, base, off, 0)
}

fn store(size: u8, base: u8, off: i16, src: u8) -> Insn {
    Insn::new(STX | MEM | size, base, src, off, 0)
}

fn helper(id: i32) -> Insn {
    Insn::new(JMP | CALL, 0, 0, 0, id)
}

fn jump(op: u8, dst: u8, imm: i32, off: i16) -> Insn {
    Insn::new(JMP | op, dst, 0, off, imm)
}

fn goto(off: i16) -> Insn {
    Insn::new(JMP | JA, 0, 0, off, 0)
}

/// A look-up in map 0, an array of one value of 16 bytes with 4-byte keys: r0 is the value or null after seven slots.
fn lookup() -> Vec<Insn> {
    vec![
        load(W, 2, 1, 112),
        store(W, 10, -4, 2),
        copy(2, 10),
        add(2, -4),
        Insn::new(LD_IMM64, 1, PSEUDO_MAP_FD, 0, 0),
        Insn::default(),
        helper(1),
    ]
}

fn program(insns: Vec<Insn>) -> Program {
    let shape = |map_type, key_size, value_size, max_entries| MapShape {
        map_type,
        key_size,
        value_size,
        max_entries,
        ..MapShape::default()
    };
    let array =
        MapInfo { name: "array".into(), shape: shape(MapType::ARRAY, 4, 16, 1), ..MapInfo::default() };
    let ring =
        MapInfo { name: "ring".into(), shape: shape(MapType::RINGBUF, 0, 0, 4096), ..MapInfo::default() };
    Program {
        prog_type: ProgType::KPROBE,
        gpl_compatible: true,
        insns,
        maps: vec![array, ring],
        ..Program::default()
    }
}

/// The reason why a program is refused, or "accepted".
fn reason(program: Program) -> String {
    match verify(program, &Options::default()) {
        Ok(_) => "accepted".into(),
        Err(rejection) => rejection.reason,
    }
}

fn check(insns: impl IntoIterator<Item = Insn>, expected: &str) {
    let insns = insns.into_iter().collect::<Vec<_>>();
    assert_eq!(reason(program(insns.clone())), expected, "{insns:?}");
}

fn after_lookup(rest: impl IntoIterator<Item = Insn>) -> Vec<Insn> {
    lookup().into_iter().chain([jump(JNE, 0, 0, 1), EXIT_INSN]).chain(rest).collect()
}

#[test]
fn registers_and_stack() {
    check([EXIT_INSN], "R0 !read_ok");
    check([helper(5), copy(0, 1), EXIT_INSN], "R1 !read_ok");
    check([mov(10, 0), mov(0, 0), EXIT_INSN], "frame pointer is read only");
    check([mov(0, 0), store(DW, 10, 0, 0), EXIT_INSN], "invalid write to stack R10 off=0 size=8");
    check([mov(0, 0), store(DW, 10, -520, 0), EXIT_INSN], "invalid write to stack R10 off=-520 size=8");
    check([load(DW, 0, 10, 8), EXIT_INSN], "invalid read from stack R10 off=8 size=8");
    check([mov(0, 0), store(DW, 10, -9, 0), EXIT_INSN], "misaligned stack access off 0+0+-9 size 8");
    check([mov(0, 0), load(DW, 0, 0, 0), EXIT_INSN], "R0 invalid mem access 'scalar'");
    let unbounded = Insn::new(ALU64 | ADD | SRC_REG, 2, 1, 0, 0);
    check(
        [load(DW, 1, 1, 112), copy(2, 10), unbounded, mov(0, 0), EXIT_INSN],
        "math between fp pointer and register with unbounded min value is not allowed",
    );
}

#[test]
fn context() {
    check([load(DW, 0, 1, 168), EXIT_INSN], "invalid bpf_context access off=168 size=8");
    check([mov(0, 0), store(DW, 1, 112, 0), EXIT_INSN], "invalid bpf_context access off=112 size=8");
    check([add(1, 8), load(DW, 0, 1, 0), EXIT_INSN], "dereference of modified ctx ptr R1 off=8 disallowed");
}

#[test]
fn map_values() {
    check(
        lookup().into_iter().chain([load(DW, 0, 0, 0), EXIT_INSN]),
        "R0 invalid mem access 'map_value_or_null'",
    );
    check(
        lookup().into_iter().chain([add(0, 8), EXIT_INSN]),
        "R0 pointer arithmetic on map_value_or_null prohibited, null-check it first",
    );
    check(
        after_lookup([load(DW, 0, 0, 16), EXIT_INSN]),
        "R0 min value is outside of the allowed memory range",
    );
    let index =
        [load(DW, 1, 0, 0), Insn::new(ALU64 | ADD | SRC_REG, 0, 1, 0, 0), load(B, 0, 0, 0), EXIT_INSN];
    check(
        after_lookup(index),
        "math between map_value pointer and register with unbounded min value is not allowed",
    );
    let index = [load(W, 1, 0, 0), Insn::new(ALU64 | ADD | SRC_REG, 0, 1, 0, 0), load(B, 0, 0, 0), EXIT_INSN];
    check(after_lookup(index), "R0 unbounded memory access, make sure to bounds check any such access");
    let index = [load(B, 1, 0, 0), Insn::new(ALU64 | ADD | SRC_REG, 0, 1, 0, 0), load(B, 0, 0, 0), EXIT_INSN];
    check(after_lookup(index), "R0 max value is outside of the allowed memory range");
}

#[test]
fn helpers() {
    check([helper(4711), EXIT_INSN], "invalid func unknown#4711");
    check([helper(160), EXIT_INSN], "program of this type cannot use helper bpf_ktime_get_coarse_ns#160");
    let mut program = program(vec![helper(35), EXIT_INSN]);
    program.gpl_compatible = false;
    assert_eq!(reason(program), "cannot call GPL-restricted function from non-GPL compatible program");
    check([mov(1, 0), mov(2, 0), helper(1), EXIT_INSN], "R1 type=scalar expected=map_ptr");
    let wrong_map =
        [Insn::new(LD_IMM64, 1, PSEUDO_MAP_FD, 0, 1), Insn::default(), copy(2, 10), helper(1), EXIT_INSN];
    check(wrong_map, "cannot pass map_type 27 into func bpf_map_lookup_elem#1");
}

#[test]
fn references() {
    let reserve =
        [Insn::new(LD_IMM64, 1, PSEUDO_MAP_FD, 0, 1), Insn::default(), mov(2, 8), mov(3, 0), helper(131)];
    check(
        reserve.into_iter().chain([mov(0, 0), EXIT_INSN]),
        "BPF_EXIT instruction in main prog would lead to reference leak",
    );
    let twice = [
        jump(JEQ, 0, 0, 6),
        copy(6, 0),
        copy(1, 0),
        mov(2, 0),
        helper(132),
        copy(1, 6),
        helper(132),
        mov(0, 0),
        EXIT_INSN,
    ];
    check(reserve.into_iter().chain(twice), "R1 type=scalar expected=ringbuf_mem");
}

#[test]
fn flow() {
    check([mov(0, 0)], "last insn is not an exit or jmp");
    check([mov(0, 0), EXIT_INSN, mov(0, 0), EXIT_INSN], "unreachable insn 2");
    check([mov(0, 0), goto(5), EXIT_INSN], "jump out of range from insn 1 to 7");
    check([mov(0, 0), jump(JEQ, 1, 0, -1), EXIT_INSN], "infinite loop detected at insn 1");
    let recursion = Insn::new(JMP | CALL, 0, PSEUDO_CALL, 0, -1);
    check(
        [Insn::new(JMP | CALL, 0, PSEUDO_CALL, 0, 1), EXIT_INSN, recursion, EXIT_INSN],
        "the call stack of 9 frames is too deep",
    );
    let deep = [
        mov(0, 0),
        store(DW, 10, -304, 0),
        Insn::new(JMP | CALL, 0, PSEUDO_CALL, 0, 1),
        EXIT_INSN,
        mov(0, 0),
        store(DW, 10, -304, 0),
        EXIT_INSN,
    ];
    check(deep, "combined stack size of 2 calls is 608. Too large");
}

/// A loop that only `may_goto` bounds ends when its budget is spent; one that goes on then does not end.
#[test]
fn may_goto() {
    let may_goto = |off| Insn::new(JMP | JCOND, 0, 0, off, 0);
    check([mov(0, 0), may_goto(2), add(0, 1), goto(-3), mov(0, 0), EXIT_INSN], "accepted");
    check(
        [mov(6, 0), may_goto(0), helper(7), jump(JEQ, 0, 1, 1), goto(-4), EXIT_INSN],
        "infinite loop detected at insn 1",
    );
}

/// `bpf_loop` ends, but not a loop around it.
#[test]
fn loops_around_callbacks() {
    let callback = [mov(0, 0), EXIT_INSN];
    let turn = |back: Insn| {
        [
            mov(1, 4),
            Insn::new(LD_IMM64, 2, PSEUDO_FUNC, 0, 8),
            Insn::default(),
            mov(3, 0),
            mov(4, 0),
            helper(181),
            helper(7),
            back,
            mov(0, 0),
            EXIT_INSN,
        ]
        .into_iter()
        .chain(callback)
    };
    check(turn(jump(JEQ, 0, 1, 0)), "accepted");
    let endless = reason(program(turn(jump(JNE, 0, 1, -8)).collect()));
    assert!(endless.starts_with("infinite loop detected"), "{endless}");
}

#[test]
fn the_log_shows_the_path() {
    let insns =
        after_lookup([mov(1, 20), Insn::new(ALU64 | ADD | SRC_REG, 0, 1, 0, 0), load(B, 0, 0, 0), EXIT_INSN]);
    let mut program = program(insns);
    program.line_info =
        vec![(0, "u32 key = ctx->di; @ a.c:3".into()), (9, "return value[20]; @ a.c:7".into())];
    let rejection =
        verify(program, &Options { log_level: 1, ..Options::default() }).expect_err("out of bounds");
    assert_eq!(rejection.pc, 11);
    assert_eq!(rejection.advice, Some("test the offset against the size of the value before the access"));
    let expected = include_str!("refused.log");
    if std::env::var_os("BEELINE_BLESS").is_some() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/refused.log");
        std::fs::write(path, &rejection.log).expect("the expectation");
        return;
    }
    assert_eq!(rejection.log, expected);
}

/// Past a budget there is a refusal, not a wait: a branch that is never the same, with all of the stack in use.
#[test]
fn budgets() {
    let mut insns = vec![copy(6, 1)];
    insns.extend((1..=64).map(|slot| store(DW, 10, -8 * slot, 6)));
    // A counter doubles the states: each turn adds 1 or 2.
    insns.extend([mov(7, 0), helper(7), add(7, 1), jump(JEQ, 0, 0, 1), add(7, 1), jump(JLT, 7, 100_000, -5)]);
    insns.extend((1..=64).map(|slot| load(DW, 1, 10, -8 * slot)));
    insns.extend([mov(0, 0), EXIT_INSN]);
    let limits = beeline_verifier::Limits { state_bytes_max: 4 << 20, ..Default::default() };
    let refused =
        verify(program(insns), &Options { limits, ..Options::default() }).expect_err("over the budget");
    assert!(refused.reason.contains("too complex"), "{}", refused.reason);
}
