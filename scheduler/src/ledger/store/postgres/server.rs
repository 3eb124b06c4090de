//! A PostgreSQL server for tests: found, made in a directory that vanishes, and gone when the test's process is, however
//! that ends.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::{MetadataExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{AssertSqlSafe, ConnectOptions, Connection};

/// Who runs the server where the tests run as root, which it refuses to be: `nobody`.
const NOBODY: u32 = 65_534;
const NEEDED: &str = "these tests need a PostgreSQL server: install the package 'postgresql', or put the folder with initdb \
                      and postgres on PATH (.ci/run takes them from PyPI)";

/// A server, and where it keeps its files and its socket.
pub(in super::super) struct Server {
    programs: PathBuf,
    dir: PathBuf,
    running: Mutex<Option<Child>>,
}

/// The one that all tests of this process share.
pub(in super::super) fn shared() -> &'static Server {
    static SHARED: OnceLock<Server> = OnceLock::new();
    SHARED.get_or_init(Server::start)
}

impl Server {
    pub(in super::super) fn start() -> Self {
        let programs = programs();
        let dir = tempfile::Builder::new().prefix("cuckoo-pg-").tempdir().expect("a directory can be made").keep();
        if is_root() {
            chown(&dir, Some(NOBODY), Some(NOBODY)).expect("root can give a directory away");
        }
        let made = command(&programs.join("initdb"))
            .args(["--no-sync", "--auth=trust", "--username=cuckoo", "--encoding=UTF8", "--no-locale", "-D"])
            .arg(dir.join("data"))
            .env("HOME", &dir)
            .current_dir(&dir)
            .output()
            .expect("initdb can be started");
        assert!(made.status.success(), "initdb: {}", String::from_utf8_lossy(&made.stderr));
        let server = Self { programs, dir, running: Mutex::new(None) };
        server.resume();
        server
    }

    /// Starts the server, again after [`Self::stop`], and waits until it answers.
    pub(in super::super) fn resume(&self) {
        // The shell ends when its input does, with this process at the latest, and takes the server along.
        let script = r#""$1" -D "$2/data" -k "$2" -h '' -c fsync=off -c max_connections=200 </dev/null >>"$2/log" 2>&1 &
            server=$!; cat >/dev/null; kill -QUIT $server; wait $server; [ -e "$2/keep" ] || rm -rf "$2""#;
        let shell = command(Path::new("/bin/sh"))
            .args(["-c", script, "sh"])
            .arg(self.programs.join("postgres"))
            .arg(&self.dir)
            .current_dir(&self.dir)
            .stdin(Stdio::piped())
            .spawn()
            .expect("a shell can be started");
        *self.running.lock() = Some(shell);
        for _ in 0..600 {
            if std::os::unix::net::UnixStream::connect(self.dir.join(".s.PGSQL.5432")).is_ok() {
                return;
            }
            pause();
        }
        let mut log = String::new();
        drop(File::open(self.dir.join("log")).map(|mut f| f.read_to_string(&mut log)));
        panic!("the server does not start: {log}");
    }

    /// Stops the server at once, as a crash would; its files stay.
    pub(in super::super) fn stop(&self) {
        std::fs::write(self.dir.join("keep"), b"").expect("a file can be written");
        let mut shell = self.running.lock().take().expect("it runs");
        drop(shell.stdin.take());
        shell.wait().expect("the shell ends");
        std::fs::remove_file(self.dir.join("keep")).expect("a file can be removed");
    }

    fn options(&self) -> PgConnectOptions {
        PgConnectOptions::new().socket(&self.dir).username("cuckoo").database("postgres").disable_statement_logging()
    }

    /// A connection to `schema`.
    pub(in super::super) async fn connect(&self, schema: &str) -> PgConnection {
        loop {
            match self.options().options([("search_path", schema)]).connect().await {
                Ok(connection) => return connection,
                // 57P03: it is starting up.
                Err(sqlx::Error::Database(e)) if e.code().as_deref() == Some("57P03") => {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                Err(e) => panic!("{e}"),
            }
        }
    }

    /// A new schema without tables.
    pub(in super::super) async fn schema(&self) -> String {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("test_{}_{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let mut connection = self.connect("public").await;
        let sql = AssertSqlSafe(format!("CREATE SCHEMA {name}"));
        sqlx::query(sql).execute(&mut connection).await.expect("a schema can be made");
        connection.close().await.expect("a connection can be closed");
        name
    }

    /// Where a store in `schema` is, as people write it.
    pub(in super::super) fn address(&self, schema: &str) -> String {
        let host = self.dir.to_str().expect("a plain path").replace('/', "%2F");
        format!("postgresql://cuckoo:secret@{host}/postgres?options=-c%20search_path%3D{schema}")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(mut shell) = self.running.lock().take() {
            drop(shell.stdin.take());
            let _ = shell.wait();
        }
    }
}

/// A command of somebody who may run a server.
fn command(program: &Path) -> Command {
    let mut command = Command::new(program);
    if is_root() {
        command.uid(NOBODY).gid(NOBODY);
    }
    command
}

fn is_root() -> bool {
    std::fs::metadata("/proc/self").is_ok_and(|own| own.uid() == 0)
}

/// The folder of initdb and postgres; empty where they are on PATH.
fn programs() -> PathBuf {
    let works = |folder: &PathBuf| {
        let asked =
            |name| command(&folder.join(name)).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
        ["initdb", "postgres"].into_iter().all(|name| asked(name).is_ok_and(|status| status.success()))
    };
    let debian = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let mut folders: Vec<PathBuf> = debian.map(|version| version.path().join("bin")).collect();
    folders.push(PathBuf::new());
    folders.reverse();
    folders.into_iter().find(works).unwrap_or_else(|| panic!("{NEEDED}"))
}

#[allow(clippy::disallowed_methods, reason = "nothing else runs until there is a server")]
fn pause() {
    std::thread::sleep(Duration::from_millis(20));
}
