//! The machine code of a probe site.
