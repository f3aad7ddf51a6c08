//! Compiles verified programs to position-independent machine code.
