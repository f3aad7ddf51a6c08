//! Arenas: programs that call far helpers, what happens when the room ends, PCs on both sides of a patch.

#[path = "harness/mod.rs"]
mod harness;
#[path = "harness/programs.rs"]
mod programs;

use beeline_abi::code::{ContextUse, Reloc, RelocKind, Symbol};
use beeline_stub::{ARENA_OVERHEAD, Arena, ArenaError, SiteCode, StubError, patch_bytes, stub_len_max};
use harness::World;

/// `call helper; add rax, 1; ret`, with the stack kept aligned.
const CALLS_A_HELPER: [u8; 18] =
    [0x48, 0x83, 0xec, 0x08, 0xe8, 0, 0, 0, 0, 0x48, 0x83, 0xc0, 0x01, 0x48, 0x83, 0xc4, 0x08, 0xc3];

extern "sysv64" fn helper(a: u64, b: u64) -> u64 {
    a * 10 + b
}

fn call_reloc() -> Reloc {
    Reloc { offset: 5, kind: RelocKind::Rel32, symbol: Symbol::Helper(1), addend: -4 }
}

#[test]
fn a_far_helper_is_called_through_a_slot() {
    let mut world = World::new();
    let address = helper as *const () as u64;
    let resolve = |symbol| (symbol == Symbol::Helper(1)).then_some(address);
    let free = world.arena.free();
    let first = world.arena.add_program(&CALLS_A_HELPER, &[call_reloc()], resolve).unwrap();
    let used = free - world.arena.free();
    let second = world.arena.add_program(&CALLS_A_HELPER, &[call_reloc()], resolve).unwrap();
    assert_eq!(first % 16, 0);
    assert!(free - world.arena.free() - used <= used, "the slot is shared");
    world.run();
    assert_eq!(world.call(first, 4, 2), 43);
    assert_eq!(world.call(second, 5, 1), 52);
}

#[test]
fn a_full_arena_says_so_and_stays_as_it_is() {
    let mut arena = Arena::new(0x10_0000, 64);
    let far = |_| Some(0x7f00_0000_0000);
    arena.add_program(&CALLS_A_HELPER, &[call_reloc()], far).unwrap();
    let before = (arena.free(), arena.bytes().to_vec());
    let error = arena.add_program(&[0x90; 64], &[], far).unwrap_err();
    assert!(matches!(error, ArenaError::Full { base: 0x10_0000, wanted: 64, .. }), "{error}");
    let unresolved = arena.add_program(&CALLS_A_HELPER[..9], &[call_reloc()], |_| None).unwrap_err();
    assert!(matches!(unresolved, ArenaError::Link(_)), "{unresolved}");
    assert_eq!((arena.free(), arena.bytes().to_vec()), before);
}

#[test]
fn stubs_keep_to_their_bound() {
    let mut world = World::new();
    let data = world.data(32);
    let program = programs::counter(&mut world, data);
    let quiet = world.code(&[0x0f, 0x1f, 0x44, 0x00, 0x00, 0xc3]);
    for count in 1..=8 {
        for returns in [false, true] {
            let links: Vec<_> = (0..count)
                .map(|i| {
                    let mut link = world.link(program, ContextUse::ALL, returns && i % 2 == 0);
                    link.needs.cpu = true;
                    link
                })
                .collect();
            let plan = world.plan(quiet, 6, 0, true);
            let site = SiteCode { plan: &plan, address: quiet, site_runtime: 0, links: &links };
            let base = world.arena.base();
            let mut arena = Arena::new(base, ARENA_OVERHEAD + stub_len_max(count));
            let stub = arena.add_stub(&world.environment, &site).unwrap();
            assert!(stub.bytes.len() as u64 <= stub_len_max(count), "{count} links: {}", stub.bytes.len());
            assert!(u64::from(stub.cold.end) == stub.bytes.len() as u64 && stub.cold.start > 0);
        }
    }
}

#[test]
fn pcs_on_both_sides() {
    let mut world = World::new();
    let data = world.data(1);
    let program = programs::counter(&mut world, data);
    // push rbp; mov rbp,rsp; nop; pop rbp; ret
    let code = [0x55, 0x48, 0x89, 0xe5, 0x90, 0x5d, 0xc3];
    let at = world.code(&code);
    let link = world.link(program, ContextUse::NONE, false);
    let plan = world.plan(at, code.len(), 0, true);
    assert_eq!(plan.boundaries, [0, 1, 4]);
    let stub = world.probe(&plan, at, &[link]);
    for offset in [0, 1, 4, 5] {
        let moved = stub.pc_in_stub(at + offset).unwrap();
        assert_eq!(stub.pc_in_original(moved), Some(at + offset));
    }
    assert_eq!(stub.pc_in_stub(at + 2), None);
    assert_eq!(stub.pc_in_original(stub.address), None);
    assert_eq!(stub.pc_in_original(at), None);
    let patch = patch_bytes(&plan, at, stub.address).unwrap();
    assert_eq!(patch.len(), plan.patched_len());
    assert!(patch_bytes(&plan, at, at.wrapping_add(1 << 40)).is_err());
}

#[test]
fn what_cannot_be_a_stub() {
    let mut world = World::new();
    let data = world.data(1);
    let program = programs::counter(&mut world, data);
    let quiet = world.code(&[0x0f, 0x1f, 0x44, 0x00, 0x00, 0xc3]);
    let inside = world.plan(quiet, 6, 0, false);
    let link = world.link(program, ContextUse::NONE, true);
    let environment = world.environment;
    let add = |links: &[_], address, arena: u64| {
        let site = SiteCode { plan: &inside, address, site_runtime: 0, links };
        Arena::new(arena, 1 << 16).add_stub(&environment, &site).unwrap_err()
    };
    let near = quiet + (1 << 20);
    let error = add(&[], quiet, near);
    assert!(matches!(error, ArenaError::Stub(StubError::NoLinks { .. })), "{error}");
    let error = add(&[link], quiet, near);
    assert!(matches!(error, ArenaError::Stub(StubError::ReturnNotAtEntry { .. })), "{error}");
    let error = add(&[link], quiet, quiet + (1 << 40));
    assert!(matches!(error, ArenaError::Stub(StubError::OutOfRange { .. })), "{error}");
}
