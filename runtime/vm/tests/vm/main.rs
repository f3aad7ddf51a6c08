//! Both engines, on the public suite, on a corpus of small cases, on random programs; what the compiler's code looks like.

mod binary;
mod cases;
mod code;
mod conformance;
mod differential;
mod garbage;
mod golden;
mod kernel_answers;
mod surroundings;
mod verdicts;
mod verified;
