//! Programs that want as much work or memory of the verifier as they can get: it gives each a verdict within its limits, and
//! never takes more than 256 MiB. What it took is counted by the allocator.

#[path = "support/pathological.rs"]
mod pathological;

use beeline_verifier::{Limits, Options, Program, verify};
use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// What verifying any program may take.
const HEAP_BYTES_MAX: usize = 256 << 20;

/// The system's allocator, counted.
struct Counted;

static HEAP_BYTES: AtomicUsize = AtomicUsize::new(0);
static HEAP_BYTES_PEAK: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call goes to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counted {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let bytes = HEAP_BYTES.fetch_add(layout.size(), Ordering::Relaxed) + layout.size();
        HEAP_BYTES_PEAK.fetch_max(bytes, Ordering::Relaxed);
        // SAFETY: the caller keeps the contract.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        HEAP_BYTES.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller keeps the contract.
        unsafe { System.dealloc(memory, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counted = Counted;

/// The counters are of the whole process: one test at a time.
static ONE: Mutex<()> = Mutex::new(());

/// The reason of the refusal, if it was one, and the most bytes of heap that verifying took beside the program.
fn measured(program: Program, limits: Limits) -> (Option<String>, usize) {
    let before = HEAP_BYTES.load(Ordering::Relaxed);
    HEAP_BYTES_PEAK.store(before, Ordering::Relaxed);
    let refused = verify(program, &Options { limits, ..Options::default() }).err();
    (refused.map(|rejection| rejection.reason), HEAP_BYTES_PEAK.load(Ordering::Relaxed) - before)
}

#[test]
fn each_gets_a_verdict_within_the_limits() {
    const REASONS: [&str; 3] = [
        "BPF program is too large. Processed 1000001 insn",
        "BPF program is too complex: ",
        "The sequence of ",
    ];
    let _one = ONE.lock();
    let (mut accepted, mut refused) = (0, 0);
    for (name, program) in pathological::all() {
        let (reason, peak) = measured(program, Limits::default());
        println!("{:8} kB  {name}: {}", peak >> 10, reason.as_deref().unwrap_or("accepted"));
        assert!(peak < HEAP_BYTES_MAX, "{name}: {peak} bytes");
        match reason {
            None => accepted += 1,
            Some(reason) => {
                refused += 1;
                assert!(REASONS.iter().any(|known| reason.starts_with(known)), "{name}: {reason}");
            }
        }
    }
    // Both kinds are there: neither are the limits too tight, nor the programs too tame.
    assert!(accepted >= 6 && refused >= 6, "{accepted} accepted, {refused} refused");
}

#[test]
fn each_limit_is_one() {
    let _one = ONE.lock();
    let generous = Limits::default();
    let cases = [
        (Limits { insns_processed_max: 5_000, ..generous }, "BPF program is too large. Processed 5001 insn"),
        (Limits { state_bytes_max: 4 << 20, ..generous }, "bytes of states at insn"),
        (Limits { work_max: 20_000, ..generous }, "registers and stack slots compared and copied"),
    ];
    let program = || program("a loop that fits, over a full stack");
    assert_eq!(measured(program(), generous).0, None);
    for (limits, reason) in cases {
        let (refused, _) = measured(program(), limits);
        assert!(
            refused.as_deref().is_some_and(|refused| refused.contains(reason)),
            "{refused:?}, not {reason}"
        );
    }
}

/// The limit counts what is really taken.
#[test]
fn bytes_are_those_of_the_heap() {
    let _one = ONE.lock();
    for bytes in [8 << 20, 32 << 20] {
        let limits = Limits { state_bytes_max: bytes, ..Limits::default() };
        let (reason, peak) = measured(program("a loop of a million turns over a full stack"), limits);
        assert!(reason.is_some_and(|reason| reason.contains("bytes of states")));
        assert!((bytes * 3 / 4..bytes * 3 / 2).contains(&peak), "{peak} bytes of heap, {bytes} allowed");
    }
}

fn program(wanted: &str) -> Program {
    pathological::all().into_iter().find(|(name, _)| *name == wanted).expect("the program").1
}
