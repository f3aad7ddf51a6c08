//! Real servers, and clients that keep them busy and notice every failed request.

use crate::{copy, root};
use std::io::{BufRead, BufReader};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;
use tempfile::TempDir;

/// A server in a folder of its own, ended with the test.
#[derive(Debug)]
pub struct Server {
    child: Child,
    folder: TempDir,
    /// The processes that serve.
    pids: Vec<String>,
    client: Client,
}

/// Who keeps a server busy.
#[derive(Clone, Debug)]
enum Client {
    Http(u16),
    Redis,
}

impl Server {
    fn start(command: &mut Command, folder: TempDir, client: Client) -> Server {
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap_or_else(|error| panic!("cannot start {command:?}: {error}"));
        let pids = vec![child.id().to_string()];
        Server { child, folder, pids, client }
    }

    /// Starts a server that says on which port it listens.
    fn start_http(command: &mut Command, folder: TempDir) -> Server {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("cannot start {command:?}: {error}"));
        let mut line = String::new();
        let output = child.stdout.take().expect("piped");
        BufReader::new(output).read_line(&mut line).expect("readable");
        let port = line.trim().parse().unwrap_or_else(|_| panic!("{command:?} says {line:?}"));
        let pids = vec![child.id().to_string()];
        Server { child, folder, pids, client: Client::Http(port) }
    }

    fn wait_until(&mut self, is_up: impl Fn(&Server) -> bool) {
        while !is_up(self) {
            let ended = self.child.try_wait().expect("a child of ours");
            assert!(ended.is_none(), "the server ended: {ended:?}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Id of the process that was started.
    pub fn pid(&self) -> String {
        self.child.id().to_string()
    }

    /// The processes that serve.
    pub fn pids(&self) -> &[String] {
        &self.pids
    }

    /// The port that it serves HTTP on.
    pub fn port(&self) -> Option<u16> {
        match self.client {
            Client::Http(port) => Some(port),
            Client::Redis => None,
        }
    }

    /// Its folder.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// True while none of its processes has ended.
    pub fn is_alive(&mut self) -> bool {
        let serves = |pid: &String| Path::new(&format!("/proc/{pid}/maps")).exists();
        self.pids.iter().all(serves) && matches!(self.child.try_wait(), Ok(None))
    }

    /// A client that works with it for a while.
    pub fn client(&self) -> Command {
        match self.client {
            Client::Http(port) => wrk(port, 5),
            Client::Redis => redis_benchmark(self, 20_000),
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // SAFETY: a signal to a child that has not been waited for.
        unsafe { libc::kill(self.child.id() as i32, libc::SIGTERM) };
        let _ = self.child.wait();
    }
}

/// Keeps a server busy: there is always a client under way, and each that ends must have seen no error.
#[derive(Debug)]
pub struct Load<'a> {
    server: &'a Server,
    client: Child,
    finished: u64,
}

impl<'a> Load<'a> {
    /// The first client begins.
    pub fn new(server: &'a Server) -> Load<'a> {
        Load { server, client: server.client().spawn().expect("the client runs"), finished: 0 }
    }

    /// The next one begins if the last one has ended.
    pub fn keep_up(&mut self) {
        if self.client.try_wait().expect("a child of ours").is_some() {
            let next = self.server.client().spawn().expect("the client runs");
            let last = std::mem::replace(&mut self.client, next);
            assert_clean(&last.wait_with_output().expect("a child of ours"));
            self.finished += 1;
        }
    }

    /// Waits for the last one; how many there were.
    pub fn finish(self) -> u64 {
        assert_clean(&self.client.wait_with_output().expect("a child of ours"));
        self.finished + 1
    }
}

/// What a client says when every request was answered.
pub fn assert_clean(output: &Output) {
    let text =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{text}");
    assert!(!text.to_lowercase().contains("error") && !text.contains("Non-2xx"), "{text}");
}

/// `wrk` for some seconds on a server of this machine.
pub fn wrk(port: u16, seconds: u32) -> Command {
    let mut command = Command::new("wrk");
    command.args(["-t1", "-c8", &format!("-d{seconds}s"), "--timeout", "60s"]);
    command.arg(format!("http://127.0.0.1:{port}/")).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// redis with so many threads for input and output, on a socket in its folder. It hands work to them by spinning, which takes
/// minutes where there are fewer CPUs than threads and something else to do.
pub fn redis(threads: u32) -> Server {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut command = Command::new("redis-server");
    command.args(["--port", "0", "--save", "", "--appendonly", "no", "--unixsocket"]);
    command.arg(folder.path().join("redis.sock")).args(["--io-threads", &threads.to_string()]);
    let mut server = Server::start(&mut command, folder, Client::Redis);
    server.wait_until(|server| {
        let ping = redis_cli(server).arg("ping").output();
        ping.is_ok_and(|output| output.stdout.starts_with(b"PONG"))
    });
    server
}

/// `redis-cli` on a server's socket.
pub fn redis_cli(server: &Server) -> Command {
    let mut command = Command::new("redis-cli");
    command.arg("-s").arg(server.folder().join("redis.sock"));
    command
}

/// `redis-benchmark` on a server's socket.
pub fn redis_benchmark(server: &Server, requests: u64) -> Command {
    let mut command = Command::new("redis-benchmark");
    command.arg("-s").arg(server.folder().join("redis.sock"));
    // Not -q: its progress lines fill a pipe that is read only at the end.
    command.args(["--csv", "-c", "20", "-t", "set,get,lpush", "-n", &requests.to_string()]);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// nginx with so many worker processes, which serve, and a line in `access.log` for each request. The port is the server's.
pub fn nginx(workers: usize) -> (Server, u16) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let port = free_port();
    let configuration = format!(
        "daemon off; worker_processes {workers}; pid {0}/pid; error_log {0}/error.log;\n\
         events {{ worker_connections 256; }}\n\
         http {{ access_log {0}/access.log; server {{ listen 127.0.0.1:{port}; location / {{ return 200 ok; }} }} }}\n",
        folder.path().display()
    );
    std::fs::write(folder.path().join("nginx.conf"), configuration).expect("writable");
    let mut command = Command::new("nginx");
    command.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").arg("-c").arg(folder.path().join("nginx.conf"));
    let mut server = Server::start(&mut command, folder, Client::Http(port));
    server.wait_until(|server| {
        let pid = std::fs::read_to_string(server.folder().join("pid")).unwrap_or_default();
        let answers = TcpStream::connect(("127.0.0.1", port)).is_ok();
        answers && children_of(pid.trim()).len() == workers
    });
    server.pids = children_of(&server.pid());
    (server, port)
}

/// A server of `node`.
pub fn node() -> Server {
    let script = root().join("tests/targets/servers/serve.js");
    Server::start_http(Command::new("node").arg(script), tempfile::tempdir().expect("a temporary folder"))
}

/// A server of the Java virtual machine, with a pool of threads.
pub fn java() -> Server {
    let folder = tempfile::tempdir().expect("a temporary folder");
    copy(&root().join("tests/targets/servers/Serve.java"), &folder.path().join("Serve.java"));
    let compiled = Command::new("javac").current_dir(folder.path()).arg("Serve.java").status();
    assert!(compiled.is_ok_and(|status| status.success()), "Serve.java does not compile");
    let mut command = Command::new("java");
    Server::start_http(command.arg("-cp").arg(folder.path()).arg("Serve"), folder)
}

/// A server written in Go, with its program `serve` in its folder.
pub fn go() -> Server {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let program = folder.path().join("serve");
    let mut build = Command::new("go");
    build.env("GO111MODULE", "off").env("CGO_ENABLED", "0").args(["build", "-o"]).arg(&program);
    let built = build.arg(root().join("tests/targets/servers/serve.go")).status();
    assert!(built.is_ok_and(|status| status.success()), "serve.go does not compile");
    Server::start_http(&mut Command::new(&program), folder)
}

/// The processes that this one has started.
fn children_of(pid: &str) -> Vec<String> {
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    children.split_whitespace().map(str::to_owned).collect()
}

/// A port that nobody listens on. It is none that the kernel hands out by itself: a client that tries such a port before
/// the server is there may be connected with itself.
fn free_port() -> u16 {
    let first = 20_000 + (std::process::id() % 10_000) as u16;
    let mut ports = (first..32_000).chain(20_000..first);
    ports.find(|&port| TcpListener::bind(("127.0.0.1", port)).is_ok()).expect("a free port")
}
