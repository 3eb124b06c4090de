//! Real processes for tests: a command that is killed when its handle goes, in a data directory of its own.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, OnceLock, Weak};
use std::time::Duration;

use cuckoo::{Address, Client, Identity};
use serde_json::Value;
use tempfile::TempDir;

/// The model that every test with a model uses.
pub(crate) const MODEL: &str = "smollm2-135m-instruct";
/// Longer than anything here takes, even on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(180);

/// The command under test.
pub(crate) fn cuckoo() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_cuckoo"));
    command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
    command.env("HOME", std::env::home_dir().unwrap_or_default());
    // A proxy or an index of the user's pip applies to tests as well.
    std::env::vars_os()
        .filter(|(k, _)| k.to_string_lossy().starts_with("PIP_"))
        .for_each(|(k, v)| _ = command.env(k, v));
    command
}

/// A shelf with the test model, shared by all tests and kept between runs.
pub(crate) fn shelf() -> &'static Path {
    static SHELF: OnceLock<PathBuf> = OnceLock::new();
    SHELF.get_or_init(|| {
        let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("shelf");
        let pulled = cuckoo()
            .args(["models", "pull", MODEL, "--home"])
            .arg(author_home())
            .arg("--models-dir")
            .arg(&dir)
            .output();
        let pulled = pulled.expect("the command runs");
        assert!(pulled.status.success(), "the model did not come: {}", String::from_utf8_lossy(&pulled.stderr));
        dir
    })
}

/// The encoder of tests, by the name that its folder gives it.
pub(crate) const ENCODER: &str = "all-minilm-l6-v2";

/// The encoder's folder, if it has been fetched.
pub(crate) fn minilm() -> Option<PathBuf> {
    let folder = std::env::home_dir()?.join(".cache/cuckoo-test-models").join(ENCODER);
    if !folder.is_dir() {
        println!("skipped: {ENCODER} has not been fetched");
        return None;
    }
    Some(folder)
}

/// A shelf for it alone, kept between runs.
pub(crate) fn encoder_shelf() -> &'static Path {
    Path::new(concat!(env!("CARGO_TARGET_TMPDIR"), "/shelf-of-encoders"))
}

/// The data directory of whoever signed the test model's manifest.
pub(crate) fn author_home() -> &'static Path {
    Path::new(concat!(env!("CARGO_TARGET_TMPDIR"), "/shelf/author"))
}

/// The test model's file.
pub(crate) fn weights() -> PathBuf {
    let list = cuckoo_models::Shelf::open(shelf()).unwrap().list().unwrap();
    let built_in = list.into_iter().find(|w| w.origins.iter().any(|o| o.starts_with("pip:")));
    built_in.expect("the shelf holds the model").path
}

/// A running command whose standard output is JSON lines. Killed when dropped.
pub(crate) struct Process {
    child: Child,
    lines: Receiver<Value>,
    pub(crate) home: TempDir,
}

impl Process {
    /// Starts a command in a fresh data directory.
    pub(crate) fn start(args: &[&str]) -> Self {
        Self::start_in(tempfile::tempdir().unwrap(), args)
    }

    pub(crate) fn start_in(home: TempDir, args: &[&str]) -> Self {
        Self::start_on(shelf(), home, args)
    }

    /// With the models of another shelf.
    pub(crate) fn start_on(shelf: &Path, home: TempDir, args: &[&str]) -> Self {
        Self::of(cuckoo(), shelf, home, args)
    }

    /// What it logs, without colours, goes to `log`.
    pub(crate) fn start_logged(args: &[&str], log: Sender<String>) -> Self {
        let mut command = cuckoo();
        command.env("NO_COLOR", "1").stderr(Stdio::piped());
        let mut process = Self::of(command, shelf(), tempfile::tempdir().unwrap(), args);
        let lines = BufReader::new(process.child.stderr.take().unwrap()).lines().map_while(Result::ok);
        std::thread::spawn(move || lines.for_each(|line| _ = log.send(line)));
        process
    }

    fn of(mut command: Command, shelf: &Path, home: TempDir, args: &[&str]) -> Self {
        command.args(args).arg("--json").arg("--home").arg(home.path()).arg("--models-dir").arg(shelf);
        let mut child = command.stdout(Stdio::piped()).stdin(Stdio::null()).spawn().expect("the command starts");
        let out = BufReader::new(child.stdout.take().unwrap());
        let (lines_in, lines) = channel();
        std::thread::spawn(move || {
            for line in out.lines().map_while(Result::ok) {
                let Ok(value) = serde_json::from_str(&line) else { panic!("not JSON: {line}") };
                if lines_in.send(value).is_err() {
                    return;
                }
            }
        });
        Self { child, lines, home }
    }

    /// The next line of output.
    #[track_caller]
    pub(crate) fn line(&self) -> Value {
        self.lines.recv_timeout(PATIENCE).expect("a line of output in time")
    }

    /// Whether it has said something more; that is taken as heard.
    pub(crate) fn has_line(&self) -> bool {
        self.lines.try_recv().is_ok()
    }

    /// Waits until it says that it is ready.
    #[track_caller]
    pub(crate) fn ready(&self) -> Value {
        let line = self.line();
        assert_eq!(line["event"], "ready", "{line}");
        line
    }

    /// SIGKILL.
    pub(crate) fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// The data directory of a process that has ended.
    pub(crate) fn into_home(mut self) -> TempDir {
        self.kill();
        std::mem::replace(&mut self.home, tempfile::tempdir().unwrap())
    }

    /// Sends it a signal, by its name without SIG.
    pub(crate) fn signal(&self, name: &str) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args([&format!("-{name}"), &pid]).status().unwrap().success());
    }

    /// SIGINT, then waits for the end.
    pub(crate) fn interrupt(&mut self) -> std::process::ExitStatus {
        self.signal("INT");
        self.child.wait().unwrap()
    }

    /// Whether it still runs.
    pub(crate) fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A running `cuckoo up`.
pub(crate) struct Up {
    pub(crate) http: String,
    pub(crate) quic: Address,
    pub(crate) api_key: String,
    pub(crate) model: String,
    process: Mutex<Process>,
}

impl Up {
    pub(crate) fn start() -> Self {
        Self::of(Process::start(&["up", "--quic", "127.0.0.1:0", "--http", "127.0.0.1:0"]))
    }

    /// One that serves an encoder; `None`, with a reason, where that has not been fetched.
    pub(crate) fn encoder() -> Option<Arc<Self>> {
        static SHARED: Mutex<Weak<Up>> = Mutex::new(Weak::new());
        let folder = minilm()?;
        let mut shared = SHARED.lock().unwrap_or_else(|e| e.into_inner());
        Some(shared.upgrade().unwrap_or_else(|| {
            let args = ["up", "--quic", "127.0.0.1:0", "--http", "127.0.0.1:0", "--model", folder.to_str().unwrap()];
            let process = Process::start_on(encoder_shelf(), tempfile::tempdir().unwrap(), &args);
            let up = Arc::new(Self { model: ENCODER.to_owned(), ..Self::of(process) });
            *shared = Arc::downgrade(&up);
            up
        }))
    }

    fn of(process: Process) -> Self {
        let ready = process.ready();
        let text = |name: &str| ready[name].as_str().unwrap().to_owned();
        Self {
            http: text("http"),
            quic: text("quic").parse().unwrap(),
            api_key: text("api_key"),
            model: MODEL.to_owned(),
            process: Mutex::new(process),
        }
    }

    /// One for all tests that only ask; it ends with the last of them.
    pub(crate) fn shared() -> Arc<Self> {
        static SHARED: Mutex<Weak<Up>> = Mutex::new(Weak::new());
        let mut shared = SHARED.lock().unwrap_or_else(|e| e.into_inner());
        shared.upgrade().unwrap_or_else(|| {
            let up = Arc::new(Self::start());
            *shared = Arc::downgrade(&up);
            up
        })
    }

    /// A native client.
    pub(crate) async fn client(&self) -> Client {
        Client::connect(&self.quic, &Identity::generate()).await.unwrap()
    }

    /// One figure from `/metrics`, summed over its labels.
    pub(crate) fn metric(&self, name: &str) -> f64 {
        metric(&self.http, name)
    }

    /// Ctrl-C, then waits for the end.
    pub(crate) fn interrupt(&self) -> std::process::ExitStatus {
        self.process.lock().unwrap().interrupt()
    }
}

/// The body of a plain GET.
pub(crate) fn get(http: &str, path: &str) -> String {
    use std::io::{Read, Write};
    let at = http.strip_prefix("http://").unwrap();
    let mut stream = std::net::TcpStream::connect(at).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {at}\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer.split_once("\r\n\r\n").unwrap().1.to_owned()
}

/// One figure from `/metrics`, summed over its labels.
pub(crate) fn metric(http: &str, name: &str) -> f64 {
    let text = get(http, "/metrics");
    let rows = text.lines().filter(|l| !l.starts_with('#')).filter_map(|l| l.rsplit_once(' '));
    rows.filter(|(key, _)| key.split('{').next() == Some(name)).map(|(_, v)| v.parse::<f64>().unwrap()).sum()
}

/// Waits until `check` holds.
#[track_caller]
pub(crate) fn eventually(what: &str, mut check: impl FnMut() -> bool) {
    let began = std::time::Instant::now();
    while !check() {
        assert!(began.elapsed() < PATIENCE, "{what}: not within {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}
