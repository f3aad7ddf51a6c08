//! Attacks the verifier: random programs, biased to what breaks verifiers, and what they do when they are accepted.
//!
//! ```text
//! seed, index ─▶ generate (or garbage) ─▶ verify ─┬─ refused ───────────────────────▶ compare with the kernel
//!                                                 └─ accepted ─▶ run, watched ──────▶ compare with the kernel
//! ```
//!
//! A program that the verifier accepts runs in the interpreter, in memory where every byte has an owner ([`world`]), with
//! helpers that do anything their prototypes allow ([`host`]). Before each instruction, registers and stack are compared with
//! the states that the verifier explored there ([`beeline_verifier::claims`]): a value outside all of them is an unsoundness,
//! whether or not this program goes on to do harm ([`trial`]). Some are compiled too ([`compiled`]): the results must be the
//! same.
//!
//! `unsafe` is in [`kernel`] and [`compiled`].

#![deny(unsafe_code)]

pub mod campaign;
pub mod cases;
#[expect(unsafe_code, reason = "machine code is executed")]
pub mod compiled;
pub mod garbage;
pub mod generate;
pub mod host;
#[expect(unsafe_code, reason = "bpf(2)")]
pub mod kernel;
pub mod maps;
pub mod numbers;
pub mod shrink;
pub mod trial;
pub mod world;
