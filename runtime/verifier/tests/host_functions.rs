//! Calls of functions of the target: what the arguments have to be, and where such a call may stand.

use beeline_abi::code::HostValue;
use beeline_abi::map::{MapFlags, MapShape, MapType};
use beeline_isa::{Insn, opcode as o};
use beeline_verifier::{
    GlobalSignature, HostArg, HostFunction, MapInfo, Options, ProgType, Program, Rejection, SubprogramInfo,
    Verified, verify,
};

/// `src` of an `ld_imm64` that names a subprogram.
const PSEUDO_FUNC: u8 = 4;

const INT: HostValue = HostValue { size: 4, signed: true };

fn call(function: i32) -> Insn {
    Insn::new(o::JMP | o::CALL, 0, o::PSEUDO_KFUNC_CALL, o::HOST_CALL, function)
}

fn helper(id: i32) -> Insn {
    Insn::new(o::JMP | o::CALL, 0, 0, 0, id)
}

/// `r = number`.
fn set(register: u8, number: i32) -> Insn {
    Insn::new(o::ALU64 | o::MOV, register, 0, 0, number)
}

/// `to = from`.
fn copy(to: u8, from: u8) -> Insn {
    Insn::new(o::ALU64 | o::MOV | o::SRC_REG, to, from, 0, 0)
}

fn add(register: u8, number: i32) -> Insn {
    Insn::new(o::ALU64 | o::ADD, register, 0, 0, number)
}

/// `*(u64 *)(r10 + off) = 0`.
fn zero(off: i16) -> Insn {
    Insn::new(o::ST | o::MEM | o::DW, 10, 0, off, 0)
}

/// `r = *(u64 *)(r + off)`.
fn load(to: u8, from: u8, off: i16) -> Insn {
    Insn::new(o::LDX | o::MEM | o::DW, to, from, off, 0)
}

const EXIT: Insn = Insn::new(o::JMP | o::EXIT, 0, 0, 0, 0);

/// `r1 = map`, two slots.
fn map_of(register: u8, index: i32) -> [Insn; 2] {
    [Insn::new(o::LD_IMM64, register, o::PSEUDO_MAP_FD, 0, index), Insn::new(0, 0, 0, 0, 0)]
}

fn function(name: &str, args: &[HostArg]) -> HostFunction {
    HostFunction { name: name.into(), args: args.to_vec(), returns: INT }
}

/// What programs here call, by index.
fn functions() -> Vec<HostFunction> {
    let number = HostArg::Number(INT);
    vec![
        function("number", &[number]),
        function("address", &[HostArg::Address]),
        function("fill", &[HostArg::SizedMemory { read_only: false, constant: false }, number]),
        function("read", &[HostArg::Memory { size: 16, read_only: true }]),
        function("change", &[HostArg::Memory { size: 16, read_only: false }]),
        HostFunction { returns: HostValue::NONE, ..function("nothing", &[]) },
        function("block", &[HostArg::SizedMemory { read_only: true, constant: true }, number]),
        function("text", &[HostArg::String]),
    ]
}

fn program(insns: &[Insn]) -> Program {
    let map = |map_type, key_size, value_size, max_entries, map_flags, contents: Option<&[u8]>| MapInfo {
        name: "map".into(),
        shape: MapShape { map_type, key_size, value_size, max_entries, map_flags, cpus: 2 },
        frozen_contents: contents.map(<[u8]>::to_vec),
        ..MapInfo::default()
    };
    Program {
        prog_type: ProgType::KPROBE,
        gpl_compatible: true,
        insns: insns.to_vec(),
        maps: vec![
            map(MapType::PERCPU_ARRAY, 4, 8, 1, 0, None),
            map(MapType::RINGBUF, 0, 0, 4096, 0, None),
            map(MapType::PROG_ARRAY, 4, 4, 1, 0, None),
            map(MapType::ARRAY, 4, 16, 1, MapFlags::RDONLY_PROG, Some(b"a text\0 and more")),
        ],
        host_functions: functions(),
        ..Program::default()
    }
}

fn check(insns: &[Insn]) -> Result<Verified, Rejection> {
    verify(program(insns), &Options::default())
}

#[track_caller]
fn refused(insns: &[Insn], expected: &str) {
    let reason = check(insns).expect_err("it is to be refused").reason;
    assert!(reason.contains(expected), "{reason}");
}

/// Two slots of stack at r10 - 16, with that address in r1.
fn stack() -> Vec<Insn> {
    vec![zero(-16), zero(-8), copy(1, 10), add(1, -16)]
}

fn with(mut before: Vec<Insn>, behind: &[Insn]) -> Vec<Insn> {
    before.extend_from_slice(behind);
    before
}

#[test]
fn numbers() {
    let verified = check(&[set(1, 7), call(0), EXIT]).expect("a number");
    let executed = verified.insns()[1];
    assert_eq!((executed.src(), executed.imm), (0, beeline_helpers::HOST_FUNCTION_BASE as i32));
    refused(&[copy(1, 10), call(0), EXIT], "R1 is not a scalar");
    refused(&[call(0), EXIT], "R1 is not a scalar");
    refused(&[copy(6, 1), set(1, 0), helper(5), call(0), EXIT], "R1 !read_ok");
    refused(&[set(1, 7), call(99), EXIT], "kernel btf_id 99 is not a function");
    refused(&[set(1, 7), call(-1), EXIT], "kernel btf_id -1 is not a function");
}

/// The result is a number within its type, and nothing where there is none; r1 to r5 are gone.
#[test]
fn results() {
    let above = Insn::new(o::JMP | o::JSGT, 0, 0, 1, i32::MAX);
    let verified =
        check(&[set(1, 7), call(0), above, EXIT, load(0, 0, 0), EXIT]).expect("an int is not above");
    assert!(!verified.is_live(4));
    refused(&[call(5), EXIT], "R0 !read_ok");
    refused(&[set(1, 7), call(0), load(0, 0, 0), EXIT], "R0 invalid mem access 'scalar'");
    refused(&[set(1, 7), call(0), copy(0, 1), EXIT], "R1 !read_ok");
}

/// What comes from the target is a number; the program's own memory has a size.
#[test]
fn addresses() {
    check(&[load(1, 1, 112), call(1), EXIT]).expect("an address of the target");
    check(&[load(1, 1, 112), call(3), EXIT]).expect("the same for memory");
    check(&[load(1, 1, 112), call(7), EXIT]).expect("and for a text");
    refused(&with(stack(), &[call(1), EXIT]), "R1 type=fp expected=scalar");
    refused(&[call(3), EXIT], "R1 type=ctx expected=fp");
    refused(&with(map_of(1, 0).to_vec(), &[call(3), EXIT]), "R1 type=map_ptr expected=fp");
}

#[test]
fn memory() {
    check(&with(stack(), &[call(3), EXIT])).expect("16 bytes that are read");
    check(&with(stack(), &[call(4), EXIT])).expect("16 bytes that are changed");
    refused(&with(stack(), &[add(1, 8), call(3), EXIT]), "invalid read from stack R1 off=-8 size=16");
    refused(&with(stack(), &[add(1, 16), call(4), EXIT]), "invalid");
    check(&with(stack(), &[set(2, 16), call(2), EXIT])).expect("as many as there are");
    refused(&with(stack(), &[set(2, 17), call(2), EXIT]), "invalid");
    refused(&with(stack(), &[set(2, -1), call(2), EXIT]), "R2 min value is negative");
    refused(
        &[load(6, 1, 112), zero(-16), zero(-8), copy(1, 10), add(1, -16), copy(2, 6), call(2), EXIT],
        "R2",
    );
    refused(&with(stack(), &[copy(2, 10), call(2), EXIT]), "R2 type=fp expected=scalar");
    check(&with(stack(), &[set(2, 8), call(6), EXIT])).expect("a constant size");
    // if r6 > 16: exit; a size of at most 16, which is no constant.
    let bounded = [
        load(6, 1, 112),
        Insn::new(o::JMP | o::JGT, 6, 0, 6, 16),
        zero(-16),
        zero(-8),
        copy(1, 10),
        add(1, -16),
        copy(2, 6),
        call(2),
        set(0, 0),
        EXIT,
    ];
    check(&bounded).expect("a bounded size");
    let mut constant = bounded;
    constant[7] = call(6);
    refused(&constant, "R2 must be a known constant");
}

#[test]
fn stack_that_was_not_written() {
    // As of the kernel's functions, which see what was there (`allow_uninit_stack`, for those who may trace).
    let half = [zero(-16), copy(1, 10), add(1, -16)];
    check(&with(half.to_vec(), &[set(2, 16), call(2), EXIT])).expect("room for what it writes");
    // Beyond the stack there is nothing.
    refused(
        &with(half.to_vec(), &[add(1, -512), call(4), EXIT]),
        "invalid write to stack R1 off=-528 size=16",
    );
    // What it writes is unknown afterwards: no pointer that was there can be used.
    let spilled = [
        Insn::new(o::STX | o::MEM | o::DW, 10, 10, -16, 0),
        zero(-8),
        copy(1, 10),
        add(1, -16),
        call(4),
        load(1, 10, -16),
        load(0, 1, -8),
        EXIT,
    ];
    refused(&spilled, "R1 invalid mem access 'scalar'");
}

#[test]
fn texts() {
    let value = |off: i32| {
        [Insn::new(o::LD_IMM64, 1, o::PSEUDO_MAP_VALUE, 0, 3), Insn::new(0, 0, 0, 0, off)].to_vec()
    };
    check(&with(value(2), &[call(7), EXIT])).expect("a text that never changes");
    refused(&with(stack(), &[call(7), EXIT]), "R1 type=fp expected=map_value");
    refused(&with(value(0), &[call(4), EXIT]), "write into map forbidden");
}

/// What others would wait for.
#[test]
fn nothing_is_held() {
    let reserved = [
        map_of(1, 1)[0],
        map_of(1, 1)[1],
        set(2, 8),
        set(3, 0),
        helper(131),
        Insn::new(o::JMP | o::JEQ, 0, 0, 5, 0),
        copy(6, 0),
        set(1, 1),
        call(0),
        copy(1, 6),
        set(2, 0),
        // jeq lands here with nothing reserved
        set(0, 0),
        EXIT,
    ];
    refused(&reserved, "host function number may never return: it cannot be called with a record reserved");
    let percpu = [
        zero(-8),
        map_of(1, 0)[0],
        map_of(1, 0)[1],
        copy(2, 10),
        add(2, -8),
        helper(1),
        set(1, 1),
        call(0),
        EXIT,
    ];
    refused(&percpu, "a program that uses data of its CPU cannot call host functions");
    let tail = [
        copy(6, 1),
        set(1, 1),
        call(0),
        copy(1, 6),
        map_of(2, 2)[0],
        map_of(2, 2)[1],
        set(3, 0),
        helper(12),
        set(0, 0),
        EXIT,
    ];
    refused(&tail, "a program that makes tail calls cannot call host functions");
}

#[test]
fn elsewhere() {
    // bpf_loop(1, callback, 0, 0), whose callback calls.
    let callback = [
        set(1, 1),
        Insn::new(o::LD_IMM64, 2, PSEUDO_FUNC, 0, 6),
        Insn::new(0, 0, 0, 0, 0),
        set(3, 0),
        set(4, 0),
        helper(181),
        set(0, 0),
        EXIT,
        set(1, 1),
        call(0),
        set(0, 0),
        EXIT,
    ];
    refused(&callback, "host function number may never return: it cannot be called in a callback");
    let tracepoint = Program { prog_type: ProgType::TRACEPOINT, ..program(&[set(1, 1), call(0), EXIT]) };
    let reason = verify(tracepoint, &Options::default()).expect_err("not at tracepoints").reason;
    assert_eq!(reason, "calling host function number is not allowed for programs of this type");
}

/// A global function is verified by itself: what its callers are about counts as well.
#[test]
fn in_global_functions() {
    let local = |relative: i32| Insn::new(o::JMP | o::CALL, 0, o::PSEUDO_CALL, 0, relative);
    let global = |insns: &[Insn], start: u32| Program {
        subprograms: vec![SubprogramInfo {
            start,
            name: "helps".into(),
            global: Some(GlobalSignature::default()),
        }],
        ..program(insns)
    };
    let plain = global(&[local(1), EXIT, set(1, 1), call(0), EXIT], 2);
    verify(plain, &Options::default()).expect("a global function that calls one");
    let in_callback = [
        set(1, 1),
        Insn::new(o::LD_IMM64, 2, PSEUDO_FUNC, 0, 6),
        Insn::new(0, 0, 0, 0, 0),
        set(3, 0),
        set(4, 0),
        helper(181),
        set(0, 0),
        EXIT,
        local(2),
        set(0, 0),
        EXIT,
        set(1, 1),
        call(0),
        EXIT,
    ];
    let reason = verify(global(&in_callback, 11), &Options::default()).expect_err("in a callback").reason;
    let expected = "a program that calls global functions in callbacks or with records reserved cannot call host functions";
    assert!(reason.starts_with(expected), "{reason}");
}
