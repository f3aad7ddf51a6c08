//! The freestanding image that is injected into a target.
