//! What depends on the architecture: one file each, all defining the same names.

#[cfg(target_arch = "x86_64")]
mod x86_64;
#[cfg(target_arch = "x86_64")]
pub(crate) use x86_64::{PADDING, check, reloc_kind, store_release};
