//! bpf-vm
fn main() {}
