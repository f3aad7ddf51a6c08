//! The command from outside: what it prints, what it refuses, how it ends.

mod help;
mod inspect;
mod load;

use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

/// A store of its own for one test, removed with it.
pub(crate) struct Store {
    folder: tempfile::TempDir,
}

impl Store {
    pub(crate) fn new() -> Store {
        let folder = tempfile::Builder::new().prefix("beeline-cli-").tempdir_in("/dev/shm").expect("tmpfs");
        Store { folder }
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.folder.path().join("store")
    }

    pub(crate) fn run(&self, arguments: &[&str]) -> Output {
        let mut command = beeline();
        command.arg("--store").arg(self.path()).args(arguments);
        command.output().expect("the command runs")
    }

    /// What a command that succeeds prints.
    pub(crate) fn ok(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments:?} ended with {}: {errors}", output.status);
        self.plain(&output.stdout)
    }

    /// What a command says that fails, with status 1.
    pub(crate) fn fails(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        let errors = self.plain(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {errors}");
        assert!(errors.contains("error: "), "{arguments:?}: {errors}");
        errors
    }

    pub(crate) fn json(&self, arguments: &[&str]) -> Value {
        let text = self.ok(&[&["--json"], arguments].concat());
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{arguments:?}: {error}: {text}"))
    }

    /// Without what differs from run to run: the store's path.
    fn plain(&self, bytes: &[u8]) -> String {
        String::from_utf8_lossy(bytes).replace(&*self.path().to_string_lossy(), "STORE")
    }
}

pub(crate) fn beeline() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_beeline"));
    command.env("NO_COLOR", "1").env_remove("BEELINE_STORE").env("COLUMNS", "100").stdin(Stdio::null());
    command
}

/// Compiles a program of this folder; `None`, with a message, where there is no clang for BPF.
pub(crate) fn object(name: &str) -> Option<PathBuf> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/programs").join(name);
    let output = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name).with_extension("o");
    let part = output.with_extension(format!("{}.{:?}", std::process::id(), std::thread::current().id()));
    let include = format!("/usr/include/{}-linux-gnu", std::env::consts::ARCH);
    let compiled = Command::new("clang")
        .args(["-g", "-O2", "-target", "bpf", "-D__TARGET_ARCH_x86", "-I", &include, "-c"])
        .arg(&source)
        .arg("-o")
        .arg(&part)
        .output();
    match compiled {
        Ok(result) => assert!(result.status.success(), "{}", String::from_utf8_lossy(&result.stderr)),
        Err(error) => {
            eprintln!("skipped: clang does not run: {error}");
            return None;
        }
    }
    std::fs::rename(&part, &output).expect("same folder");
    Some(output)
}

/// A store with `sample` loaded.
pub(crate) fn sample() -> Option<Store> {
    let path = object("sample.bpf.c")?;
    let store = Store::new();
    store.ok(&["load", &path.to_string_lossy(), "--attach", "on_return=uretprobe:libc.so.6:free"]);
    Some(store)
}
