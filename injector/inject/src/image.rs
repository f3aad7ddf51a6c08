//! The agent's image: a shared object that the build script made, embedded.

/// Bytes that lie on a page boundary, so that they can be read as an ELF file in place.
#[repr(C, align(4096))]
struct Aligned<T: ?Sized>(T);

static IMAGE: &Aligned<[u8]> = &Aligned(*include_bytes!(concat!(env!("OUT_DIR"), "/agent.so")));

/// An ELF shared object without undefined symbols whose only relocations are `R_X86_64_RELATIVE`. What it exports is
/// listed in ARCHITECTURE.md.
pub static AGENT_IMAGE: &[u8] = &IMAGE.0;
