//! What to change when a program is refused: a sentence for each of the common reasons.

/// Parts of reasons, and what helps.
const ADVICE: &[(&str, &str)] = &[
    (
        "!read_ok",
        "the register holds nothing here on some path: initialise it, or do not use r1-r5 after a call",
    ),
    ("invalid indirect read from stack", "initialise all bytes of the buffer, padding included"),
    ("null-check it first", "compare the pointer with 0 before it is used"),
    ("_or_null'", "compare the pointer with 0 before it is used"),
    (
        "invalid mem access 'scalar'",
        "this is a number, not an address the program may use: read it with bpf_probe_read_user",
    ),
    ("unbounded memory access", "bound the index before it is used, e.g. `if (i < N)` or `i &= N - 1`"),
    ("min value is negative", "make the index unsigned, or test `>= 0`"),
    (
        "is outside of the allowed memory range",
        "test the offset against the size of the value before the access",
    ),
    ("offset is outside of the packet", "compare the end of the access with data_end first"),
    (
        "invalid bpf_context access",
        "this program type has no such field in its context, or not with this size",
    ),
    ("dereference of modified ctx ptr", "access the context with constant offsets from the original pointer"),
    ("reference leak", "submit or discard the reserved record on every path"),
    ("Too large", "use a map for large buffers: the stack has 512 bytes for all frames"),
    (
        "infinite loop detected",
        "nothing changes from one turn of the loop to the next: bound it by a counter",
    ),
    (
        "program is too large",
        "bound the loops more tightly, use bpf_loop, or split the program with tail calls",
    ),
    ("unknown func", "no such helper exists here"),
    ("cannot use helper", "this program type may not call the helper"),
    ("GPL-compatible", "give the object a GPL-compatible licence: char LICENSE[] SEC(\"license\") = \"GPL\""),
    ("stack R", "the stack has 512 bytes below r10; bound variable offsets"),
    ("should have been in [", "a callback returns 0 to go on and 1 to stop"),
];

/// A sentence for `reason`, if there is one.
pub(crate) fn for_reason(reason: &str) -> Option<&'static str> {
    ADVICE.iter().find(|(part, _)| reason.contains(part)).map(|(_, advice)| *advice)
}
