//! Exceptions through probed frames.
//!
//! An entry probe leaves nothing on the stack. A return probe leaves its return point, which no unwinder knows; an entry link on the
//! unwinder's own entry puts the return addresses back first.

#[path = "harness/mod.rs"]
mod harness;
#[path = "harness/loaded.rs"]
mod loaded;
#[path = "harness/programs.rs"]
mod programs;

use beeline_abi::code::ContextUse;
use beeline_abi::run::RunContext;
use beeline_abi::thread::{ReturnSlot, ThreadSlot};
use beeline_site::{find_library, unwinder_entries};
use harness::{World, in_child, warm_returns};
use loaded::{Loaded, Sites};
use programs::counter;
use std::ffi::{CString, c_int, c_void};
use std::mem::offset_of;
use std::path::{Path, PathBuf};

const SOURCE: &str = r#"
static int dropped;
struct Drop { ~Drop() { dropped++; } };
extern "C" int descend(int n) {
    Drop drop;
    if (n == 0) throw 7;
    return descend(n - 1) + 1;
}
extern "C" int attempt(int n) {
    dropped = 0;
    try { return descend(n); } catch (int e) { return dropped * 100 + e; }
}
extern "C" int count(int n) { return n == 0 ? 0 : count(n - 1) + 1 + (n & 0); }
"#;

/// Compiles the library; none when there is no compiler.
fn library(directory: &Path) -> Option<PathBuf> {
    let (source, output) = (directory.join("a.cc"), directory.join("liba.so"));
    std::fs::write(&source, SOURCE).unwrap();
    let arguments = ["-O1", "-fno-inline", "-fno-optimize-sibling-calls", "-shared", "-fPIC", "-o"];
    let built = std::process::Command::new("g++").args(arguments).arg(&output).arg(&source).status();
    if !built.is_ok_and(|status| status.success()) {
        println!("skipped: no C++ compiler");
        return None;
    }
    Some(output)
}

/// Loads the library for good and finds a function of it.
fn function(path: &Path, name: &str) -> extern "C" fn(c_int) -> c_int {
    let (path, name) = (CString::new(path.to_str().unwrap()).unwrap(), CString::new(name).unwrap());
    // SAFETY: the library has functions of this type.
    unsafe {
        let handle: *mut c_void = libc::dlopen(path.as_ptr(), libc::RTLD_NOW);
        assert!(!handle.is_null());
        let found = libc::dlsym(handle, name.as_ptr());
        assert!(!found.is_null());
        std::mem::transmute(found)
    }
}

/// A program of the agent's kind: every outstanding return address goes back to its place.
extern "sysv64" fn restore(_context: *mut u8, run: *mut RunContext) -> u64 {
    // SAFETY: the run context lies in the thread's slot; entries below the top were pushed, and their frames are live.
    unsafe {
        let slot = run.cast::<u8>().sub(offset_of!(ThreadSlot, run)).cast::<ThreadSlot>();
        while (*slot).returns_top != (*slot).returns_base {
            (*slot).returns_top -= size_of::<ReturnSlot>() as u64;
            let entry = (*slot).returns_top as *const ReturnSlot;
            let word = (*entry).sp as *mut u64;
            if *word == (*entry).trampoline {
                *word = (*entry).return_address;
            }
        }
    }
    0
}

#[test]
fn exceptions_pass_entry_probes() {
    let directory = tempfile::tempdir().unwrap();
    let Some(path) = library(directory.path()) else { return };
    let attempt = function(&path, "attempt");
    assert_eq!(attempt(5), 607);
    let passed = in_child(|| {
        let mut world = World::new();
        let hits = world.data(1);
        let program = counter(&mut world, hits);
        let link = world.link(program, ContextUse::ALL, false);
        world.run();
        Loaded::find(&path).unwrap().probe_all(&world, &[link], Sites::Inside { step: 1, first: 0 });
        let same = (0..100).all(|n| attempt(n) == (n + 1) * 100 + 7);
        // SAFETY: the counter's word.
        same && unsafe { *hits } > 1000
    });
    assert!(passed);
}

#[test]
fn exceptions_pass_return_probes() {
    let directory = tempfile::tempdir().unwrap();
    let Some(path) = library(directory.path()) else { return };
    let (attempt, count) = (function(&path, "attempt"), function(&path, "count"));
    assert_eq!((attempt(5), count(5)), (607, 5));
    let passed = in_child(|| {
        let mut world = World::new();
        let hits = world.data(1);
        let program = counter(&mut world, hits);
        let link = world.link(program, ContextUse::ALL, true);
        let unwinding = world.link(restore as *const () as u64, ContextUse::NONE, false);
        world.run();
        warm_returns(&mut world);
        let unwinder = Loaded::find(&find_library("libgcc_s.so.1").unwrap()).unwrap();
        unwinder.probe(&world, &[unwinding], &unwinder_entries(&unwinder.binary));
        Loaded::find(&path).unwrap().probe_all(&world, &[link], Sites::Returns);
        let mut expected = 0;
        for n in 0..100 {
            assert_eq!(attempt(n), (n + 1) * 100 + 7);
            assert_eq!(count(n), n);
            expected += n as u64 + 1;
        }
        let slot = world.slot();
        assert_eq!(slot.returns_top, slot.returns_base);
        // SAFETY: the counter's word.
        let hits = unsafe { *hits };
        println!("{hits} returns, at least {expected} expected");
        hits >= expected
    });
    assert!(passed);
}
