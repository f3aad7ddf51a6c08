//! What it costs a server when every system call is counted: `wrk` on nginx, with `examples/syscount`.
//!
//! nginx is one process on one CPU, `wrk` keeps it busy from another one. Variants and rounds are those of `system_calls`.

use crate::build;
use crate::process::{PINNED_CPU, Store, beeline};
use crate::samples::Samples;
use crate::system_calls::{Figures, Variants};
use anyhow::{Context, Result, bail, ensure};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Seconds of a sample, one where there is only one round.
const SECONDS: u32 = 2;

/// Runs it, where both programs are installed.
pub(crate) fn run(beeline_path: &Path, rounds: u32) -> Result<()> {
    println!(
        "\nwrk on nginx, requests a second: min / median / max of {rounds} rounds; of untraced = median of the rounds' ratios"
    );
    let Some((nginx, wrk)) = installed("nginx").zip(installed("wrk")) else {
        println!("skipped: nginx or wrk is not installed");
        return Ok(());
    };
    if !may_run_on(PINNED_CPU) || !may_run_on(CLIENT_CPU) {
        println!("skipped: CPUs {CLIENT_CPU} and {PINNED_CPU} are not both ours");
        return Ok(());
    }
    let object = build::object("../examples/syscount/syscount.bpf.c")?;
    let kernel = build::native("kernel_tracepoints", &["targets/kernel_tracepoints.c"], &["-lbpf"])?;
    // Somebody else may take the port that was free.
    let server = Nginx::start(&nginx).or_else(|_| Nginx::start(&nginx))?;
    let store = Store::new();
    let variants = Variants { beeline_path, object: &object, kernel: &kernel, options: &[] };
    let seconds = SECONDS.min(rounds);
    // The first run finds caches and logs empty.
    requests_a_second(&wrk, server.port, seconds)?;
    let pid = server.process.id().to_string();
    let mut times = Vec::new();
    let figures = variants.measure(&store, &pid, rounds, || {
        let before = cpu_time(&pid)?;
        let rate = requests_a_second(&wrk, server.port, seconds)?;
        times.push((cpu_time(&pid)? - before) / (rate * f64::from(seconds)));
        Ok(rate)
    })?;
    let counted = calls_counted(beeline_path, &store)? as f64 / (figures.ours.sum() * f64::from(seconds));
    ensure!(counted > 1.0, "{counted} calls were counted a request");
    report(&figures);
    println!("CPU time of nginx, us a request");
    report(&by_variant(&times, figures.kernel.is_empty()));
    println!("{:24} {counted:.2} calls a request", "");
    Ok(())
}

fn report(figures: &Figures) {
    let row = |name: &str, samples: &Samples| {
        let of_base = 100.0 * samples.over(&figures.base).median();
        println!("{:24} {name:>8}  {}  {of_base:6.2} %", "", samples.spread());
    };
    row("none", &figures.base);
    match figures.kernel.is_empty() {
        true => println!(
            "{:24} {:>8}  not measured: this kernel or user may not attach to tracepoints",
            "", "kernel"
        ),
        false => row("kernel", &figures.kernel),
    }
    row("beeline", &figures.ours);
}

/// Figures that were taken in the order of [`Variants::measure`].
fn by_variant(taken: &[f64], without_kernel: bool) -> Figures {
    let mut figures = Figures::default();
    for round in taken.chunks(if without_kernel { 2 } else { 3 }) {
        for (samples, &value) in
            [&mut figures.base, &mut figures.ours, &mut figures.kernel].into_iter().zip(round)
        {
            samples.push(value);
        }
    }
    figures
}

/// CPU time of a process of one thread so far, microseconds (`Documentation/scheduler/sched-stats.rst`). Unlike its requests it does not depend
/// on who else wants the CPUs.
fn cpu_time(pid: &str) -> Result<f64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/schedstat"))?;
    let nanoseconds = text.split_whitespace().next().context("three numbers")?;
    Ok(nanoseconds.parse::<f64>()? / 1000.0)
}

/// nginx in a folder of its own, ended with the benchmark.
struct Nginx {
    process: Child,
    folder: PathBuf,
    port: u16,
}

impl Nginx {
    /// Starts it and waits until it listens.
    fn start(program: &Path) -> Result<Nginx> {
        let folder = std::env::temp_dir().join(format!("beeline-bench-nginx-{}", std::process::id()));
        std::fs::create_dir_all(&folder)?;
        std::fs::write(folder.join("index.html"), "A page of some hundred bytes.\n".repeat(20))?;
        let port = TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port();
        std::fs::write(folder.join("nginx.conf"), configuration(&folder, port))?;
        // It ends with the benchmark, however that ends.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "taskset", "-c", &PINNED_CPU.to_string()]).arg(program);
        command.arg("-e").arg(folder.join("error.log")).arg("-c").arg(folder.join("nginx.conf"));
        let process =
            command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().context("cannot run setpriv")?;
        let mut nginx = Nginx { process, folder, port };
        let end = Instant::now() + START_MAX;
        // It writes its id when it listens.
        while std::fs::read_to_string(nginx.folder.join("pid")).unwrap_or_default().is_empty() {
            if let Some(status) = nginx.process.try_wait()? {
                bail!("nginx ended with {status}");
            }
            ensure!(Instant::now() < end, "nginx does not listen");
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(nginx)
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

/// How long nginx may take to listen, on a busy machine.
const START_MAX: Duration = Duration::from_secs(30);

/// One process that serves a file and logs each request.
fn configuration(folder: &Path, port: u16) -> String {
    let folder = folder.display();
    let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .iter()
        .map(|kind| format!("{kind}_temp_path {folder}/{kind};\n"))
        .collect();
    format!(
        "daemon off;\nmaster_process off;\npid {folder}/pid;\nevents {{ worker_connections 256; }}\n\
         http {{\naccess_log {folder}/access.log;\nsendfile on;\n{temporary}\
         server {{ listen 127.0.0.1:{port}; root {folder}; }}\n}}\n"
    )
}

/// One run of `wrk`; every request must have been answered.
fn requests_a_second(wrk: &Path, port: u16, seconds: u32) -> Result<f64> {
    let output = Command::new("taskset")
        .args(["-c", &CLIENT_CPU.to_string()])
        .arg(wrk)
        .args(["-t1", "-c8", &format!("-d{seconds}s"), "--timeout", "60s"])
        .arg(format!("http://127.0.0.1:{port}/"))
        .output()
        .context("cannot run taskset")?;
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(
        output.status.success() && !text.contains("errors") && !text.contains("Non-2xx"),
        "wrk says {text}"
    );
    let rate = text.lines().find_map(|line| line.trim().strip_prefix("Requests/sec:"));
    Ok(rate.with_context(|| format!("wrk says {text}"))?.trim().parse()?)
}

fn may_run_on(cpu: usize) -> bool {
    let output = Command::new("taskset").args(["-c", &cpu.to_string(), "true"]).output();
    output.is_ok_and(|output| output.status.success())
}

/// The CPU that the client runs on.
const CLIENT_CPU: usize = 0;

/// What `examples/syscount` counted of all calls.
fn calls_counted(beeline_path: &Path, store: &str) -> Result<u64> {
    let dump: serde_json::Value =
        serde_json::from_str(&beeline(beeline_path, store, &["--json", "map", "dump", "usage"])?)?;
    let entries = dump.as_array().context("an array of entries")?;
    let values = entries.iter().filter_map(|entry| entry["formatted"]["values"].as_array()).flatten();
    Ok(values.filter_map(|value| value["value"]["calls"].as_u64()).sum())
}

/// Where a program is, also among those for administrators.
fn installed(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|folder| folder.join(name))
        .find(|program| program.is_file())
}
