//! Where a probe can be put: symbols, offsets, displaced instructions.
