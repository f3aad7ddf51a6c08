//! Link arguments of the freestanding image.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    for argument in [
        "-nostartfiles",
        "-nostdlib",
        // Every reference is resolved here and now, to ourselves: no symbol lookup remains, only RELATIVE relocations.
        "-Wl,-Bsymbolic",
        "-Wl,--no-undefined",
        "-Wl,-z,now",
        "-Wl,-z,noexecstack",
        "-Wl,-z,max-page-size=4096",
        "-Wl,--hash-style=gnu",
        "-Wl,--build-id=none",
        "-Wl,--gc-sections",
        "-Wl,--exclude-libs,ALL",
    ] {
        println!("cargo:rustc-cdylib-link-arg={argument}");
    }
}
