//! The machine code of a few programs, as text: `golden/*.txt` holds the program, a line `----`, and the code.
//!
//! `BEELINE_BLESS=1` writes the code that comes out into the files. Only instructions that every x86-64 machine has are in
//! them: the compiler otherwise uses what it finds.

use crate::surroundings::Surroundings;
use beeline_abi::code::Symbol;
use beeline_jit::{CompileOptions, Image, compile};
use beeline_verifier::{MapInfo, Options, ProgType, Program, verify};
use beeline_vm::assemble::assemble;
use iced_x86::{Decoder, DecoderOptions, Formatter, Instruction, IntelFormatter};
use std::fmt::Write;
use std::path::PathBuf;

/// The code of a verified uprobe program with the maps of [`Surroundings`].
fn image(text: &str) -> Image {
    let shapes = Surroundings::new().shapes().to_vec();
    let maps = shapes.into_iter().map(|shape| MapInfo { shape, ..MapInfo::default() }).collect();
    let insns = assemble(text).unwrap_or_else(|error| panic!("{error}"));
    let prog_type = ProgType::KPROBE;
    let program = Program { prog_type, gpl_compatible: true, insns, maps, ..Program::default() };
    let verified =
        verify(program, &Options::default()).unwrap_or_else(|refusal| panic!("{refusal}\n{}", refusal.log));
    compile(&verified, &CompileOptions::default()).expect("it compiles").into_image()
}

/// What the linker fills in within these bytes.
fn symbols(image: &Image, from: u64, len: usize) -> String {
    let range = from..from + len as u64;
    let inside = image.relocs.iter().filter(|reloc| range.contains(&u64::from(reloc.offset)));
    let mut text = String::new();
    for reloc in inside {
        let _ = match reloc.symbol {
            Symbol::Helper(id) => write!(text, "  ; helper {id}"),
            Symbol::MapHandle(map) => write!(text, "  ; map {map}"),
            Symbol::MapData(map) => write!(text, "  ; data of map {map} + {}", reloc.addend),
            Symbol::HostFunction(function) => write!(text, "  ; host function {function}"),
            Symbol::Image => write!(text, "  ; image + {}", reloc.addend),
        };
    }
    text
}

fn listing(image: &Image) -> String {
    let mut text = String::new();
    let mut formatter = IntelFormatter::new();
    formatter.options_mut().set_rip_relative_addresses(true);
    for function in &image.functions {
        let _ = writeln!(text, "{}:", function.start);
        let start = function.offset as usize;
        let bytes = &image.code[start..start + function.text_len as usize];
        let mut decoder = Decoder::with_ip(64, bytes, start as u64, DecoderOptions::NONE);
        let mut instruction = Instruction::default();
        while decoder.can_decode() {
            decoder.decode_out(&mut instruction);
            let mut words = String::new();
            formatter.format(&instruction, &mut words);
            let symbols = symbols(image, instruction.ip(), instruction.len());
            let _ = writeln!(text, "{:4x}  {words}{symbols}", instruction.ip());
        }
    }
    text
}

#[test]
fn code_is_as_it_was() {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let bless = std::env::var_os("BEELINE_BLESS").is_some();
    let mut checked = 0;
    for entry in std::fs::read_dir(&folder).expect("the folder") {
        let path = entry.expect("an entry").path();
        let text = std::fs::read_to_string(&path).expect("a text");
        let (program, expected) = text.split_once("----\n").expect("a line of dashes");
        let code = listing(&image(program));
        if bless {
            std::fs::write(&path, format!("{program}----\n{code}")).expect("the file is written");
        } else {
            assert_eq!(code, expected, "{}", path.display());
        }
        checked += 1;
    }
    assert!(checked >= 5, "only {checked} files");
}
