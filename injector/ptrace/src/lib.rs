//! Stopping and running threads of another process, as typestate.
