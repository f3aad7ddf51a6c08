//! The store: a directory of files, one per map, program and link.
