//! The map algorithms, over shared memory, without locks that a dead process can hold.
