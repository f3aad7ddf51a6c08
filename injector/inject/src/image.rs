//! The agent's image, and the guard's: shared objects that the build script made, embedded.

/// Bytes that lie on a page boundary, so that they can be read as an ELF file in place.
#[repr(C, align(4096))]
struct Aligned<T: ?Sized>(T);

static IMAGE: &Aligned<[u8]> = &Aligned(*include_bytes!(concat!(env!("OUT_DIR"), "/agent.so")));

/// An ELF shared object without undefined symbols whose only relocations are `R_X86_64_RELATIVE`. What it exports is
/// listed in ARCHITECTURE.md.
pub static AGENT_IMAGE: &[u8] = &IMAGE.0;

static GUARD: &Aligned<[u8]> = &Aligned(*include_bytes!(concat!(env!("OUT_DIR"), "/guard.so")));

/// The same without any relocation: what is mapped as well where there are breakpoints.
pub static GUARD_IMAGE: &[u8] = &GUARD.0;
