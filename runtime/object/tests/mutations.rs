//! Mutated objects: flipped bits, overwritten words, truncations, spliced pieces. None may panic, and none may keep the
//! parser busy. The seeds are fixed; `BEELINE_FUZZ_CASES` sets how many cases each fixture gets.

mod support;

use std::sync::Arc;
use std::time::{Duration, Instant};

use beeline_object::btf::builtin;
use beeline_object::{Btf, Object, Options};

/// Long enough for the slowest machine; a walk without a bound does not end at all.
const HANG: Duration = Duration::from_secs(20);

/// Marsaglia's xorshift64*.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit.max(1) as u64) as usize
    }
}

/// Values that bounds checks get wrong.
const AWKWARD: [u64; 12] = [
    0,
    1,
    7,
    8,
    0x7fff,
    0xffff,
    0x7fff_ffff,
    0x8000_0000,
    0xffff_ffff,
    0xffff_fff8,
    0x7fff_ffff_ffff_ffff,
    u64::MAX,
];

fn mutate(bytes: &mut Vec<u8>, others: &[&[u8]], random: &mut Random) {
    for _ in 0..1 + random.below(6) {
        let len = bytes.len();
        match random.below(8) {
            0 | 1 => {
                let at = random.below(len);
                bytes[at] ^= 1 << random.below(8);
            }
            2 | 3 => {
                let width = [1, 2, 4, 8][random.below(4)];
                let at = random.below(len) / width * width;
                let value = AWKWARD[random.below(AWKWARD.len())].to_le_bytes();
                for (place, byte) in bytes[at..].iter_mut().zip(&value[..width]) {
                    *place = *byte;
                }
            }
            4 => {
                // A small change to a word: an id or offset that is off by a few.
                let at = random.below(len) / 4 * 4;
                if let Some(word) = bytes.get_mut(at..at + 4) {
                    let value = u32::from_le_bytes([word[0], word[1], word[2], word[3]]);
                    let changed = value.wrapping_add(random.below(9) as u32).wrapping_sub(4);
                    word.copy_from_slice(&changed.to_le_bytes());
                }
            }
            5 => bytes.truncate(random.below(len + 1).max(1)),
            6 => {
                let other = others[random.below(others.len())];
                let from = random.below(other.len());
                let piece = &other[from..(from + random.below(200)).min(other.len())];
                let at = random.below(len);
                for (place, byte) in bytes[at..].iter_mut().zip(piece) {
                    *place = *byte;
                }
            }
            _ => {
                let (from, to) = (random.below(len), random.below(len));
                let piece = bytes[from..(from + random.below(64)).min(len)].to_vec();
                for (place, byte) in bytes[to..].iter_mut().zip(piece) {
                    *place = byte;
                }
            }
        }
        if bytes.is_empty() {
            bytes.push(0);
        }
    }
}

/// Everything that can be asked of a `Btf`.
fn exercise(btf: &Btf, random: &mut Random) {
    let bytes = vec![0x41; 4096];
    for _ in 0..8 {
        let id = random.below(btf.len() as usize + 2) as u32;
        let printed = btf.format_value(id, &bytes).map(|value| value.to_string().len()).ok();
        let sizes = (btf.size_of(id).ok(), btf.align_of(id).ok(), btf.field(id, "a.b[1].c"));
        let text = (btf.declare(id, "x").len(), btf.define(id).len());
        std::hint::black_box((printed, sizes, text));
    }
    let layout = btf.task_layout();
    let found = btf.find_any("task_struct").map(|ty| ty.id());
    std::hint::black_box((layout, found, btf.to_bytes().len()));
}

#[test]
fn mutated_objects_are_refused_or_read() {
    let fixtures = support::fixtures();
    let originals: Vec<&[u8]> = fixtures.iter().map(|fixture| fixture.bytes.as_slice()).collect();
    let cases = std::env::var("BEELINE_FUZZ_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(250);
    let options = Options { kernel_symbols: true, ..Options::default() };
    let (mut accepted, mut slowest) = (0, (Duration::ZERO, "", 0));
    for (number, fixture) in fixtures.iter().enumerate() {
        for case in 0..cases {
            let mut random = Random(0x9e37_79b9_7f4a_7c15 ^ (number as u64) << 32 ^ case);
            let mut bytes = fixture.bytes.clone();
            mutate(&mut bytes, &originals, &mut random);
            let started = Instant::now();
            if let Ok(object) = Object::parse(&bytes, &options) {
                accepted += 1;
                if let Some(btf) = &object.btf {
                    exercise(btf, &mut random);
                }
            }
            let took = started.elapsed();
            assert!(took < HANG, "{}: case {case} took {took:?}", fixture.name);
            slowest = slowest.max((took, &fixture.name, case));
        }
    }
    println!("{} cases, {accepted} accepted, slowest {slowest:?}", cases * fixtures.len() as u64);
}

#[test]
fn every_truncation_is_refused_or_read() {
    let Some(fixture) = support::fixture("counter") else { return };
    for len in (0..fixture.bytes.len()).step_by(7) {
        let result = Object::parse(&fixture.bytes[..len], &Options::default());
        assert!(result.is_err(), "{len} of {} bytes", fixture.bytes.len());
    }
}

#[test]
fn a_mutated_target_harms_nobody() {
    let Some(fixture) = support::fixture("core_fields") else { return };
    let original = builtin::btf().to_bytes();
    for case in 0..300 {
        let mut random = Random(0xdead_beef ^ case << 20);
        let mut bytes = original.clone();
        mutate(&mut bytes, &[&original], &mut random);
        let Ok(target) = Btf::parse(&bytes) else { continue };
        exercise(&target, &mut random);
        let options = Options { target_btf: Some(Arc::new(target)), ..Options::default() };
        std::hint::black_box(Object::parse(&fixture.bytes, &options).is_ok());
    }
}

#[test]
fn an_endless_name_shared_by_all_types_is_cut() {
    const TYPES: u32 = 40_000;
    let strings_len = (1 << 20) + 2;
    let mut bytes = vec![0x9f, 0xeb, 1, 0];
    for word in [24, 0, 12 * TYPES, 12 * TYPES, strings_len] {
        bytes.extend(u32::to_le_bytes(word));
    }
    for _ in 0..TYPES {
        // A forward declaration whose name begins at byte 1.
        for word in [1, 7 << 24, 0] {
            bytes.extend(u32::to_le_bytes(word));
        }
    }
    bytes.push(0);
    bytes.resize(bytes.len() + (1 << 20), b'a');
    bytes.push(0);
    let started = Instant::now();
    let btf = Btf::parse(&bytes).expect("valid types");
    assert!(btf.find_any("task_struct").is_none());
    assert!(btf.find_any(&"a".repeat(1 << 20)).is_none());
    assert!(btf.task_layout().is_none());
    assert!(started.elapsed() < HANG);
}
