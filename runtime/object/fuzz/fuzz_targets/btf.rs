//! Any bytes as BTF, and everything asked of it: sizes, declarations, values.
#![no_main]

use beeline_object::Btf;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok(btf) = Btf::parse(bytes) else { return };
    let value = [0x41; 512];
    for id in (0..btf.len()).take(64) {
        let _ = btf.size_of(id);
        let _ = btf.align_of(id);
        let _ = btf.declare(id, "x");
        let _ = btf.define(id);
        let _ = btf.format_value(id, &value).map(|value| value.to_string());
    }
    let _ = btf.task_layout();
    assert_eq!(Btf::parse(&btf.to_bytes()).map(|again| again.len()), Ok(btf.len()));
});
