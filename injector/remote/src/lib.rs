//! A process seen from outside: its mappings, memory, calls made in it.
