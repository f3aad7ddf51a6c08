//! The public API: load objects, manage the store, prepare attachments.
