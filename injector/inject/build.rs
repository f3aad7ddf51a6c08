//! Builds the agent's images and leaves them where `src/image.rs` embeds them.
//!
//! An image is a workspace of its own (`agent/image`, `agent/guard`), because it is built without libc, without SSE and with its own
//! profile, whatever the build around it is: debug or release, clippy, `cargo install`, other flags or target
//! directories. So cargo is called anew, with an environment from which everything that steers the outer build is taken
//! away, offline (it needs no crate from elsewhere), into a target directory of its own.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Where the image's sources are, from the workspace's root.
const SOURCES: [&str; 6] =
    ["agent/core", "agent/image", "agent/guard", "runtime/abi", "runtime/helpers", "runtime/maps"];

/// Where an image is built, and its library's name.
const IMAGES: [(&str, &str); 2] = [("agent/image", "agent"), ("agent/guard", "guard")];

fn main() {
    let manifest = PathBuf::from(variable("CARGO_MANIFEST_DIR"));
    let root = manifest.join("../..");
    let out = PathBuf::from(variable("OUT_DIR"));
    println!("cargo:rerun-if-changed=build.rs");
    for source in SOURCES {
        for part in ["Cargo.toml", "src"] {
            println!("cargo:rerun-if-changed={}", root.join(source).join(part).display());
        }
    }
    println!("cargo:rerun-if-changed={}", root.join("agent/image/build.rs").display());
    for (source, name) in IMAGES {
        let directory = build(&root.join(source).join("Cargo.toml"), &out.join("agent"));
        let image = directory.join(format!("libbeeline_{name}.so"));
        std::fs::copy(&image, out.join(format!("{name}.so")))
            .unwrap_or_else(|error| panic!("image {}: {error}", image.display()));
    }
}

fn variable(name: &str) -> String {
    env::var(name).unwrap_or_else(|_| panic!("cargo sets {name} for build scripts"))
}

/// Builds an image into `directory`; where it lies.
fn build(manifest: &Path, directory: &Path) -> PathBuf {
    let target = variable("TARGET");
    assert!(
        target.starts_with("x86_64-") && target.contains("-linux-"),
        "the agent runs on x86-64 Linux, not on {target}"
    );
    let output = command(manifest, directory, &target).output().expect("cargo is there: it runs this script");
    if !output.status.success() {
        println!("cargo::error=the agent's image does not build");
        eprint!("{}", String::from_utf8_lossy(&output.stderr));
        std::process::exit(1);
    }
    directory.join(target).join("release")
}

/// The call of cargo.
fn command(manifest: &Path, directory: &Path, target: &str) -> Command {
    /// What of cargo's own environment the call keeps.
    const KEPT: [&str; 2] = ["CARGO_HOME", "CARGO_MAKEFLAGS"];
    let mut command = Command::new(variable("CARGO"));
    for (name, _) in env::vars_os() {
        let name = name.to_string_lossy();
        let steers = name.starts_with("CARGO") || name.starts_with("RUSTC") || name.starts_with("RUSTFLAGS");
        if steers && !KEPT.contains(&&*name) {
            command.env_remove(&*name);
        }
    }
    // Without SSE no function can change a vector register, which the stubs do not save. The compiler warns that this
    // changes the ABI of floating point numbers, of which the agent has none. For musl a shared object must be asked for.
    let features = if target.ends_with("musl") { "-sse,-crt-static" } else { "-sse" };
    command
        .env("RUSTC", variable("RUSTC"))
        .env("RUSTC_WRAPPER", "")
        .env("RUSTC_WORKSPACE_WRAPPER", "")
        .env("CARGO_ENCODED_RUSTFLAGS", format!("-Ctarget-feature={features}"))
        .args(["build", "--release", "--offline", "--target", target, "--manifest-path"])
        .arg(manifest)
        .arg("--target-dir")
        .arg(directory);
    command
}
