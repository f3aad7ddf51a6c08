//! The main job on real programs: malloc() calls of one that is started, then of one that runs already.

use crate::workspace::{self, run, shown};
use crate::{objects, setup};
use anyhow::{Context, Result, bail};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// Store of the demonstration, apart from the user's own.
const STORE: &str = "demo";

/// Builds, loads, starts, attaches, shows, cleans up.
pub(crate) fn run_demo() -> Result<()> {
    setup::ensure(setup::Purpose::Demo)?;
    let demo = Demo { beeline: workspace::beeline()? };
    let object = objects::bpf_object(&workspace::root().join("examples/malloc-counter/malloc.bpf.c"))?;
    let _ = demo.command(&["unload", "malloc"]).stdout(Stdio::null()).stderr(Stdio::null()).status();

    demo.show("Register the program, its maps and its probe:", &["load", &object.to_string_lossy()])?;
    demo.show(
        "Run a program with the probe in it:",
        &[
            "start",
            "--",
            "/usr/bin/python3",
            "-c",
            "print('python3 says hello', len([str(i) for i in range(10000)]))",
        ],
    )?;

    let redis = Redis::start()?;
    let pid = redis.child.id().to_string();
    demo.show("Put it into a redis-server that is already running:", &["attach", &pid])?;
    redis.load()?;
    demo.show("Which processes carry probes:", &["ps"])?;
    demo.show("malloc() calls and bytes of each process:", &["map", "dump", "by_process"])?;
    demo.show("All calls:", &["map", "dump", "total"])?;
    demo.show("Take the probe out again; redis-server runs on:", &["detach", &pid])?;
    redis.ping()?;
    demo.show("And forget the program:", &["unload", "malloc"])
}

struct Demo {
    beeline: PathBuf,
}

impl Demo {
    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.beeline);
        command.env("BEELINE_STORE", STORE).args(arguments);
        command
    }

    /// Prints what is done and the command, then runs it.
    fn show(&self, what: &str, arguments: &[&str]) -> Result<()> {
        let mut command = self.command(arguments);
        let typed = shown(&command).replacen(&*self.beeline.to_string_lossy(), "beeline", 1);
        let typed = typed.replace(&*format!("{}/", workspace::root().display()), "");
        println!("\n# {what}\n$ {typed}");
        run(&mut command)
    }
}

/// A redis-server of ours, on a socket in a temporary folder, ended with it.
struct Redis {
    child: Child,
    folder: PathBuf,
}

impl Redis {
    fn start() -> Result<Redis> {
        let folder = std::env::temp_dir().join(format!("beeline-demo-{}", std::process::id()));
        std::fs::create_dir_all(&folder)?;
        let child = Command::new("redis-server")
            .args(["--port", "0", "--save", "", "--appendonly", "no", "--unixsocket"])
            .arg(folder.join("redis.sock"))
            .stdout(Stdio::null())
            .spawn()
            .context("cannot start redis-server")?;
        let redis = Redis { child, folder };
        for _ in 0..100 {
            if redis.ping().is_ok() {
                return Ok(redis);
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        bail!("redis-server does not answer on its socket");
    }

    fn socket(&self) -> PathBuf {
        self.folder.join("redis.sock")
    }

    fn ping(&self) -> Result<()> {
        run(redis_client("redis-cli", &self.socket()).arg("ping").stdout(Stdio::null()).stderr(Stdio::null()))
    }

    fn load(&self) -> Result<()> {
        println!("\n# 20,000 requests to it, from another program:");
        run(redis_client("redis-benchmark", &self.socket()).args(["-q", "-n", "10000", "-t", "set,lpush"]))
    }
}

fn redis_client(program: &str, socket: &Path) -> Command {
    let mut command = Command::new(program);
    command.arg("-s").arg(socket);
    command
}

impl Drop for Redis {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}
