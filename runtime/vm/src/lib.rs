//! Both engines side by side, for unverified programs: conformance suites, differential tests, measurements.
//!
//! Nothing of beeline's pipeline uses this crate. A program gets a buffer (r1 its address, r2 its length) and, apart
//! from helpers that a test brings along, one helper: 5, `unwind`, which returns r1 and ends the program when that is 0.

//!
//! [`corpus`] is for verified programs: verdicts on rows of JSON, and what the programs return without a store.
//!
//! `unsafe` is in [`engine`], [`native`] and [`corpus::run`].

pub mod assemble;
pub mod corpus;
pub mod engine;
pub mod hex;
pub mod native;
