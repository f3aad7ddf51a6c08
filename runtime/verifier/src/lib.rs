//! Proves programs safe with the kernel's rules.
