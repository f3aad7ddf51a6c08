//! The shipping path: verified, compiled, linked, run; the interpreter must give the same.

use crate::surroundings::{CPU, Surroundings, helper};
use beeline_abi::code::Symbol;
use beeline_abi::regs::PtRegs;
use beeline_abi::run::RunContext;
use beeline_interp::memory::{Native, Trusted};
use beeline_interp::{Limits, run};
use beeline_jit::{CodeImage, CompileOptions, compile};
use beeline_verifier::{MapInfo, Options, ProgType, Program, Verified, verify};
use beeline_vm::assemble::assemble;
use beeline_vm::native::Executable;

/// A verified uprobe program with the maps of [`Surroundings`].
fn verified(text: &str) -> Verified {
    let surroundings = Surroundings::new();
    let maps = surroundings.shapes().iter().map(|&shape| MapInfo { shape, ..MapInfo::default() }).collect();
    let insns = assemble(text).unwrap_or_else(|error| panic!("{error}"));
    let program = Program {
        name: "test".into(),
        prog_type: ProgType::KPROBE,
        gpl_compatible: true,
        insns,
        maps,
        ..Program::default()
    };
    verify(program, &Options::default()).unwrap_or_else(|refusal| panic!("{refusal}\n{}", refusal.log))
}

/// What a run leaves behind.
#[derive(PartialEq, Eq, Debug)]
struct Outcome {
    r0: u64,
    /// First word of the arrays' elements 0 and 1, CPU 0 and CPU 1.
    words: Vec<u64>,
}

fn words(surroundings: &Surroundings) -> Vec<u64> {
    vec![surroundings.word(0, 0), surroundings.word(0, 2), surroundings.word(1, 0), surroundings.word(1, 8)]
}

fn new_run() -> RunContext {
    let mut run = RunContext::default();
    run.access.cpu = CPU;
    run
}

fn compiled(image: &CodeImage, regs: &PtRegs) -> Outcome {
    let mut surroundings = Surroundings::new();
    let maps = surroundings.maps();
    let resolve = |symbol| match symbol {
        Symbol::Helper(id) => helper(id).map(|function| function as usize as u64),
        Symbol::MapHandle(index) => Some(maps[index as usize].handle),
        Symbol::MapData(index) => Some(maps[index as usize].data),
        Symbol::HostFunction(_) | Symbol::Image => None,
    };
    let executable = Executable::link(image.image(), resolve).expect("it links");
    // SAFETY: the image is a `CodeImage`'s, the context is what a uprobe's program gets.
    let r0 = unsafe { executable.call_program(&raw const *regs as u64, &mut new_run()) };
    Outcome { r0, words: words(&surroundings) }
}

fn interpreted(verified: &Verified, regs: &PtRegs) -> Outcome {
    let mut surroundings = Surroundings::new();
    let maps = surroundings.maps();
    // SAFETY: the program is verified, the maps live until the end of this function.
    let (mut memory, host) = unsafe { (Trusted::new(), Native::new(helper, &maps)) };
    let program = beeline_interp::Program::new(verified.insns());
    let arguments = [&raw const *regs as u64, 0, 0, 0, 0];
    let mut context = new_run();
    let r0 = run(&program, &mut memory, &host, arguments, &raw mut context, Limits::default());
    Outcome { r0: r0.expect("it runs"), words: words(&surroundings) }
}

/// Runs a program in all three ways; returns what came out, and the helpers that the code calls.
fn check(text: &str) -> (Outcome, Vec<u32>) {
    let verified = verified(text);
    let regs = PtRegs { di: 0x1122_3344_5566_7788, si: 2, ax: 7, ..PtRegs::default() };
    let image = compile(&verified, &CompileOptions::default()).expect("it compiles");
    let called = compile(&verified, &CompileOptions { inline: false }).expect("it compiles");
    let outcome = interpreted(&verified, &regs);
    assert_eq!(compiled(&image, &regs), outcome, "compiled");
    assert_eq!(compiled(&called, &regs), outcome, "compiled with calls of helpers");
    (outcome, helpers(&image))
}

/// The helpers that the code calls.
fn helpers(image: &CodeImage) -> Vec<u32> {
    let symbols = image.image().relocs.iter().map(|reloc| reloc.symbol);
    let ids = symbols.filter_map(|symbol| if let Symbol::Helper(id) = symbol { Some(id) } else { None });
    let mut ids: Vec<u32> = ids.collect();
    ids.dedup();
    ids
}

#[test]
fn reads_its_context() {
    let (outcome, _) = check(
        "r0 = *(u64 *)(r1 +112)
         r2 = *(u32 *)(r1 +104)
         r0 += r2
         exit",
    );
    assert_eq!(outcome.r0, 0x1122_3344_5566_778a);
}

#[test]
fn counts_in_an_array_without_a_call() {
    let (outcome, helpers) = check(
        "r1 = 1
         *(u32 *)(r10 -4) = r1
         r2 = r10
         r2 += -4
         r1 = map[idx:0]
         call lookup#1
         if r0 == 0 goto out
         r1 = 5
         lock *(u64 *)(r0 +0) += r1
     out:
         r0 = 0
         exit",
    );
    assert_eq!((outcome.words, helpers), (vec![0, 6, 0x10, 0x18], vec![]));
}

#[test]
fn counts_per_cpu_without_a_call() {
    let text = "*(u32 *)(r10 -4) = 0
         r2 = r10
         r2 += -4
         r1 = map[idx:1]
         call lookup#1
         if r0 == 0 goto out
         r1 = *(u64 *)(r0 +0)
         r1 += 1
         *(u64 *)(r0 +0) = r1
         call get_smp_processor_id#8
         exit
     out:
         r0 = 77
         exit";
    assert!(verified(text).needs().cpu);
    let (outcome, helpers) = check(text);
    assert_eq!(outcome, Outcome { r0: 1, words: vec![0, 1, 0x10, 0x19] });
    assert!(helpers.is_empty(), "{helpers:?}");
}

/// What is stored in the frame is there for whoever takes its address, by whatever way.
#[test]
fn keeps_what_others_read_from_its_frame() {
    // The store stands before the code that makes the address, which is reached by a jump back.
    let by_a_jump_back = "goto make
     read:
         r0 = *(u64 *)(r2 +0)
         exit
     make:
         *(u64 *)(r10 -8) = 9
         r2 = r10
         r2 += -8
         goto read";
    let either = "r6 = r10
         r6 += -8
         r2 = *(u64 *)(r1 +104)
         *(u64 *)(r10 -8) = 4
         *(u64 *)(r10 -16) = 5
         if r2 == 2 goto load
         r6 += -8
     load:
         r0 = *(u64 *)(r6 +0)
         exit";
    for (text, r0) in [(by_a_jump_back, 9), (either, 4)] {
        assert_eq!(check(text).0.r0, r0, "{text}");
    }
}

#[test]
fn looks_up_a_key_that_it_read() {
    let text = |field| {
        format!(
            "r1 = *(u64 *)(r1 +{field})
             *(u32 *)(r10 -4) = r1
             r2 = r10
             r2 += -4
             r1 = map[idx:0]
             call lookup#1
             if r0 == 0 goto out
             r0 = *(u64 *)(r0 +0)
             exit
         out:
             r0 = 77
             exit"
        )
    };
    assert_eq!(check(&text(104)).0.r0, 2);
    assert_eq!(check(&text(80)).0.r0, 77);
}

#[test]
fn loops_without_a_call() {
    let (outcome, helpers) = check(
        "*(u64 *)(r10 -8) = 0
         r1 = 10
         r2 = subprog add
         r3 = r10
         r3 += -8
         r4 = 0
         call loop#181
         r1 = *(u64 *)(r10 -8)
         r0 += r1
         exit
     add:
         r3 = *(u64 *)(r2 +0)
         r3 += r1
         *(u64 *)(r2 +0) = r3
         r0 = 0
         exit",
    );
    assert_eq!((outcome.r0, helpers), (55, vec![]));
}

#[test]
fn calls_subprograms_with_small_frames() {
    let text = "*(u64 *)(r10 -8) = 5
         r6 = r1
         r1 = r10
         r1 += -8
         r2 = 3
         call twice
         r1 = *(u64 *)(r10 -8)
         r0 += r1
         exit
     twice:
         *(u64 *)(r10 -16) = r2
         r3 = *(u64 *)(r1 +0)
         r3 *= 2
         *(u64 *)(r1 +0) = r3
         r0 = *(u64 *)(r10 -16)
         exit";
    assert_eq!(check(text).0.r0, 13);
    let frames: Vec<u32> = verified(text).subprograms().iter().map(|sub| sub.stack_bytes).collect();
    assert_eq!(frames, [8, 16]);
    let image = compile(&verified(text), &CompileOptions::default()).expect("it compiles");
    // `sub rsp, 512` of a whole frame would be in the code as an immediate.
    let code = &image.image().code;
    assert!(!code.windows(4).any(|bytes| bytes == 512u32.to_le_bytes()), "a frame of 512 bytes");
}

#[test]
fn leaves_dead_code_out() {
    let (outcome, helpers) = check(
        "r2 = 0
         if r2 == 0 goto out
         call poisoned#195896080
     out:
         r0 = 3
         exit",
    );
    assert_eq!((outcome.r0, helpers), (3, vec![]));
}

#[test]
fn tail_calls() {
    let text = |index| {
        format!(
            "r6 = r1
             r2 = map[idx:3]
             r3 = {index}
             call tail_call#12
             r0 = 5
             exit"
        )
    };
    // The other program reads the first byte of its context, r15.
    assert_eq!(check(&text(1)).0.r0, 0x100);
    assert_eq!(check(&text(2)).0.r0, 5);
}

#[test]
fn images_say_where_things_are() {
    let verified = verified(
        "call sub
         exit
     sub:
         r0 = 1
         exit",
    );
    let image = compile(&verified, &CompileOptions::default()).expect("it compiles").into_image();
    let starts: Vec<u32> = image.functions.iter().map(|function| function.start).collect();
    assert_eq!(starts, [0, 2]);
    assert_eq!(image.functions[0].offset, 0);
    for function in &image.functions {
        assert!(function.text_len <= function.len);
        assert!((function.offset + function.len) as usize <= image.code.len());
        assert!(function.offset.is_multiple_of(beeline_jit::Image::ALIGNMENT));
    }
    assert!(image.places.windows(2).all(|pair| pair[0].offset <= pair[1].offset));
    for pc in 0..4 {
        assert!(image.places.iter().any(|place| place.pc == pc), "no code for instruction {pc}");
    }
}
