//! The agent's logic, testable on the host.
