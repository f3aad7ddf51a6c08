//! What can be wrong with a file, with a location in it, with a place for a probe.

use std::io;
use std::path::PathBuf;

/// Why a file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The file cannot be read.
    #[error("cannot read {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The first four bytes are not an ELF file's.
    #[error("not an ELF file")]
    NotElf,
    /// An ELF file of 32 bits.
    #[error("a 32-bit ELF file; only 64-bit programs and libraries can be probed")]
    Not64Bit,
    /// Another byte order or instruction set.
    #[error("an ELF file for another machine ({machine:#x}); only x86-64 can be probed")]
    OtherMachine {
        /// `e_machine`.
        machine: u16,
    },
    /// Neither an executable nor a shared object.
    #[error("neither an executable nor a shared object (ELF type {kind})")]
    NotLoadable {
        /// `e_type`.
        kind: u16,
    },
    /// A table lies outside the file.
    #[error("the ELF file is truncated or damaged: {what}")]
    Damaged {
        /// Which table.
        what: &'static str,
    },
}

/// Why a location does not name a place.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ResolveError {
    /// No symbol of this name; `near` holds similar ones, the most similar first.
    #[error("no symbol `{name}`{}", hint(near, *stripped))]
    NoSymbol {
        /// The name asked for.
        name: String,
        /// Similar names, at most three.
        near: Vec<String>,
        /// The file has no symbol table but the dynamic one.
        stripped: bool,
    },
    /// The symbol is imported: its code is in another object.
    #[error("symbol `{name}` is imported here; probe the library that defines it")]
    Imported {
        /// The name asked for.
        name: String,
    },
    /// The symbol is an indirect function: its address is that of the code that chooses an implementation at load time.
    #[error(
        "`{name}` is an indirect function, chosen when the program is loaded{}",
        candidates(implementations)
    )]
    Ifunc {
        /// The name asked for.
        name: String,
        /// Symbols that look like its implementations.
        implementations: Vec<String>,
    },
    /// Several different functions have this name.
    #[error("symbol `{name}` is ambiguous: it is at {}", addresses(at))]
    Ambiguous {
        /// The name asked for.
        name: String,
        /// Their addresses.
        at: Vec<u64>,
    },
    /// The offset lies behind the function's last byte.
    #[error("offset {offset:#x} is outside `{name}`, which has {size:#x} bytes")]
    OutsideFunction {
        /// The function.
        name: String,
        /// The offset asked for.
        offset: u64,
        /// Bytes of the function.
        size: u64,
    },
    /// No executable segment holds this file offset or address.
    #[error("no executable code at file offset {offset:#x}")]
    NotExecutable {
        /// The file offset (for a symbol, its address).
        offset: u64,
    },
}

fn hint(near: &[String], stripped: bool) -> String {
    let mut text = String::new();
    if !near.is_empty() {
        text.push_str("; similar: ");
        text.push_str(&near.join(", "));
    }
    if stripped {
        text.push_str("; the file is stripped: only exported symbols and file offsets can be used");
    }
    text
}

fn candidates(names: &[String]) -> String {
    if names.is_empty() {
        "; probe one of its implementations by file offset".to_owned()
    } else {
        format!("; probe one of its implementations: {}", names.join(", "))
    }
}

fn addresses(at: &[u64]) -> String {
    at.iter().map(|a| format!("{a:#x}")).collect::<Vec<_>>().join(", ")
}

/// Why no probe can be put at a place. All addresses are link-time virtual addresses of the object.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum Refusal {
    /// No executable code there.
    #[error("no executable code at {vaddr:#x}")]
    NotCode {
        /// The place.
        vaddr: u64,
    },
    /// The place is inside an instruction.
    #[error("{vaddr:#x} is inside the instruction at {start:#x}")]
    InsideInstruction {
        /// The place.
        vaddr: u64,
        /// Where the instruction starts.
        start: u64,
    },
    /// The bytes are no instruction.
    #[error("the bytes at {vaddr:#x} are not a valid instruction")]
    Undecodable {
        /// Where decoding stopped.
        vaddr: u64,
    },
    /// The code ends before a jump fits and no padding follows.
    #[error("only {room} bytes before the code at {vaddr:#x} ends: a 5-byte jump does not fit")]
    TooShort {
        /// The place.
        vaddr: u64,
        /// Bytes that may be replaced.
        room: u64,
    },
    /// Something jumps into the bytes that a jump would replace.
    #[error("code jumps to {target:#x}, into the bytes that the probe would replace")]
    BranchInside {
        /// The target of the jump.
        target: u64,
    },
    /// A jump of the function goes to where nobody can tell: any of its instructions may be a target.
    #[error(
        "the function jumps at {jump:#x} to an address that it computes: nobody can tell whether into the bytes at {vaddr:#x} that \
         the probe would replace"
    )]
    UnknownTargets {
        /// The place.
        vaddr: u64,
        /// The jump.
        jump: u64,
    },
    /// The jump would lie in two pages, which cannot be written at once.
    #[error("the jump at {vaddr:#x} would cross a page boundary and could not be written at once")]
    CrossesPage {
        /// The place.
        vaddr: u64,
    },
    /// A short jump fits, but finds no room for a long one where it reaches.
    #[error("only a short jump fits at {vaddr:#x}, and there is no room for a long one within its reach")]
    NoHole {
        /// The place.
        vaddr: u64,
    },
    /// A short jump fits, and Go programs cannot have one.
    #[error(
        "only a short jump fits at {vaddr:#x}, which the Go runtime does not bear: it looks where threads are"
    )]
    GoHole {
        /// The place.
        vaddr: u64,
    },
    /// A symbol or an unwind entry starts in the bytes that a jump would replace.
    #[error("other code starts at {at:#x}, in the bytes that the probe would replace")]
    CodeStartsInside {
        /// Where it starts.
        at: u64,
    },
    /// A call that is not the last replaced instruction returns into the replaced bytes.
    #[error("the call at {vaddr:#x} would return into the bytes that the probe replaces")]
    CallInside {
        /// The call.
        vaddr: u64,
    },
    /// An instruction that means something else at another address.
    #[error("the instruction at {vaddr:#x} ({mnemonic}) cannot be moved")]
    Unmovable {
        /// The instruction.
        vaddr: u64,
        /// What it is.
        mnemonic: String,
    },
    /// The loader writes to these bytes.
    #[error("the code at {vaddr:#x} is changed by a relocation when it is loaded")]
    TextRelocation {
        /// Where.
        vaddr: u64,
    },
    /// A procedure linkage table.
    #[error("{vaddr:#x} is in the procedure linkage table; probe the function itself")]
    LinkageTable {
        /// The place.
        vaddr: u64,
    },
    /// The code that returns from a signal handler; it is recognised by its bytes and must not change.
    #[error("{vaddr:#x} returns from signal handlers; debuggers and unwinders recognise its bytes")]
    SignalReturn {
        /// The place.
        vaddr: u64,
    },
    /// Code whose address the C library compares with that of an interrupted system call.
    #[error("{vaddr:#x} is in the C library's cancellable system call, which is recognised by its address")]
    CancellableCall {
        /// The place.
        vaddr: u64,
    },
    /// A `syscall` instruction with a prefix, as nobody writes it but by hand.
    #[error("the system call at {vaddr:#x} has a prefix: no jump is put there")]
    PrefixedCall {
        /// The last two bytes of the instruction.
        vaddr: u64,
    },
    /// A call of a thread that has given up its stack.
    #[error("{vaddr:#x} ends a thread that may have no stack any more")]
    NoStack {
        /// The place.
        vaddr: u64,
    },
    /// A restartable sequence: the kernel looks whether a thread is inside it by its address.
    #[error("{vaddr:#x} is in a restartable sequence, which the kernel knows by its address")]
    RestartableSequence {
        /// The place.
        vaddr: u64,
    },
    /// The dynamic loader's own entry, which runs before it has relocated itself, or a debugger's hook.
    #[error("`{name}` is a fixed point between the loader and debuggers")]
    LoaderHook {
        /// The function.
        name: String,
    },
    /// Return probe: the place is not the entry of a function.
    #[error("{vaddr:#x} is not the entry of a function: its return cannot be probed")]
    NotAnEntry {
        /// The place.
        vaddr: u64,
    },
    /// Return probe: the function looks at its caller.
    #[error("the return of `{name}` cannot be probed: it {why}")]
    LooksAtCaller {
        /// The function.
        name: String,
        /// What it does with its return address.
        why: String,
    },
    /// Return probe: Go moves stacks and checks return addresses.
    #[error(
        "the return of a Go function cannot be paired with its call: the Go runtime moves stacks and reads return addresses"
    )]
    GoReturn,
    /// Return probe at the function's `ret`s: something else leaves it as well.
    #[error(
        "the function at {vaddr:#x} is also left at {at:#x}, by a jump to other code: its return would not be seen there"
    )]
    LeavesOtherwise {
        /// The function.
        vaddr: u64,
        /// What leaves it.
        at: u64,
    },
    /// Return probe at the function's `ret`s: there is none.
    #[error("the function at {vaddr:#x} has no `ret`: it does not return")]
    NeverReturns {
        /// The function.
        vaddr: u64,
    },
    /// Return probe at the function's `ret`s: one of them has no room for a jump.
    #[error("the `ret` at {at:#x} of the function at {vaddr:#x} has no room for a jump")]
    NoRoomAtReturn {
        /// The function.
        vaddr: u64,
        /// Its `ret`.
        at: u64,
    },
    /// Return probe: a loop or another function jumps to the entry without a call.
    #[error(
        "the function at {vaddr:#x} jumps back to its own entry: its return cannot be paired with a call"
    )]
    LoopsToEntry {
        /// The function.
        vaddr: u64,
    },
}
