//! Any bytes as an object: refused or read, never a panic. Seed the corpus with compiled `tests/fixtures/*.bpf.c`.
#![no_main]

use beeline_object::{Object, Options};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let options = Options { kernel_symbols: true, ..Options::default() };
    if let Ok(object) = Object::parse(bytes, &options) {
        for program in object.programs.iter().filter(|program| program.autoload) {
            assert!(program.map_refs.iter().all(|&map| (map as usize) < object.maps.len()));
            assert!(
                program
                    .subprograms
                    .iter()
                    .all(|part| (part.offset + part.len) as usize <= program.insns.len())
            );
        }
    }
});
