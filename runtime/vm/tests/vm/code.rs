//! What generated code must not contain: vector registers, calls to anything but helpers and own functions.

use crate::cases::corpus;
use crate::differential::program;
use crate::surroundings::Surroundings;
use beeline_abi::code::Symbol;
use beeline_isa::Insn;
use beeline_jit::Image;
use iced_x86::{Code, Decoder, DecoderOptions, Instruction, InstructionInfoFactory};

/// Checks each instruction of the image's functions.
fn check(name: &str, image: &Image) {
    let mut info = InstructionInfoFactory::new();
    for function in &image.functions {
        let start = function.offset as usize;
        let bytes = &image.code[start..start + function.text_len as usize];
        let mut decoder = Decoder::with_ip(64, bytes, start as u64, DecoderOptions::NONE);
        let mut instruction = Instruction::default();
        while decoder.can_decode() {
            decoder.decode_out(&mut instruction);
            assert_ne!(instruction.code(), Code::INVALID, "{name}: {:#x}", instruction.ip());
            for used in info.info(&instruction).used_registers() {
                let register = used.register();
                let general = register.is_gpr() || register.is_ip() || register.is_segment_register();
                assert!(general, "{name}: {register:?} in {:#x}: {:?}", instruction.ip(), instruction.code());
            }
        }
    }
    for reloc in &image.relocs {
        assert_ne!(reloc.symbol, Symbol::Image, "{name}: an absolute address of its own");
    }
}

fn compile(insns: &[Insn]) -> Option<Image> {
    let mut surroundings = Surroundings::new();
    surroundings.setup().compile(insns).ok().map(|code| code.image().clone())
}

#[test]
fn no_vector_register_is_touched() {
    let mut checked = 0;
    for case in corpus() {
        if let Some(image) = compile(&case.insns()) {
            check(&case.name, &image);
            checked += 1;
        }
    }
    for seed in 0..100 {
        check("random", &compile(&program(seed)).expect("random programs compile"));
        checked += 1;
    }
    assert!(checked > 200, "only {checked} programs were looked at");
}
