//! The running kernel's types, read once.

use beeline_verifier::types::Types;
use std::sync::LazyLock;

static KERNEL: LazyLock<Types> = LazyLock::new(beeline_engine::running_kernel_types);

/// The types of the kernel that runs here.
pub(crate) fn kernel_types() -> Types {
    KERNEL.clone()
}
