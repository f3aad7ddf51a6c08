//! A return on a thread that has no slot. Alone in its file: the agent knows one process, that of the last `init`.

mod world;

use beeline_abi::thread::ReturnSlot;
use beeline_agent_core::returns;
use world::World;

#[test]
fn a_thread_without_a_slot_finds_its_return() {
    const STUB: u64 = 0x7100_0000;
    let word = STUB + 40;
    let sp = &raw const word as u64;
    // SAFETY: there is no process yet.
    assert!(unsafe { returns::find(std::ptr::null_mut(), sp, STUB) }.is_null());
    let world = World::new();
    let elsewhere = world.slot_of_another();
    // SAFETY: the slot is the test's own.
    unsafe {
        let entry = (*elsewhere).returns_top as *mut ReturnSlot;
        entry.write(ReturnSlot { return_address: 41, sp, ..ReturnSlot::EMPTY });
        (*elsewhere).returns_top += size_of::<ReturnSlot>() as u64;
        let found = returns::find(std::ptr::null_mut(), sp, STUB);
        assert_eq!((*found).return_address, 41);
        assert!(returns::find(std::ptr::null_mut(), sp, STUB).is_null(), "it was taken");
    }
}
