//! Puts the agent, programs and probes into a process, takes them out again.
