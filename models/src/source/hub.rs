//! Weights from a Hugging Face repository, by the hub's own client library. The library's cache is not used.

use std::{
    collections::BTreeSet,
    fs,
    io::ErrorKind::{QuotaExceeded, StorageFull},
    panic::{self, AssertUnwindSafe},
    path::{Path, PathBuf},
};

use hf_hub::{
    Cache, Repo, RepoType,
    api::sync::{ApiBuilder, ApiError, ApiRepo},
};

use super::{FetchConfig, FetchError};
use crate::files::{FilesError, Packer, SMALL_FILES};
use crate::safetensors::{HEADER_BYTES_MAX, INDEX, SINGLE, SafeTensors};
use crate::shelf::{Digests, Origin, Phase, Progress, Shelf, ShelfError, Shelved, Staging};

/// How often a broken transfer is continued where it broke.
const RETRIES_MAX: usize = 3;

/// A repository.
pub(super) struct Remote<'a> {
    pub(super) repository: &'a str,
    pub(super) revision: &'a str,
    /// The source as text.
    pub(super) text: &'a str,
}

impl Remote<'_> {
    /// One file of the repository.
    pub(super) fn fetch(
        &self,
        file: &str,
        shelf: &Shelf,
        expect: Option<Digests>,
        config: &FetchConfig,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Shelved, FetchError> {
        let staging = Staging::new(shelf)?;
        let mut stated_bytes = None;
        let watch = Watch { before: None, done_bytes: 0, total_bytes: None, stated_bytes: &mut stated_bytes, progress };
        let path = self.download(file, &staging, config, watch)?;
        let origin = Origin { text: Some(self.text), bytes: stated_bytes, expect };
        Ok(staging.admit_move(shelf, &path, &origin, progress)?)
    }

    /// The repository's files that make up a model, packed. They take twice their room until they are.
    pub(super) fn fetch_folder(
        &self,
        shelf: &Shelf,
        expect: Option<Digests>,
        config: &FetchConfig,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Shelved, FetchError> {
        let staging = Staging::new(shelf)?;
        let there = self.guarded(|| {
            let info = self.api(&staging, config)?.info().map_err(|why| self.failed(why))?;
            Ok(info.siblings.into_iter().map(|file| file.rfilename).collect::<BTreeSet<_>>())
        })?;
        let folder = staging.path("folder");
        let mut before = 0;
        let mut bring = |name: &str| -> Result<(), FetchError> {
            if !there.contains(name) {
                return Ok(());
            }
            let mut stated = None;
            let watch = Watch {
                before: Some(before),
                done_bytes: 0,
                total_bytes: None,
                stated_bytes: &mut stated,
                progress: &mut *progress,
            };
            let from = self.download(name, &staging, config, watch)?;
            let to = folder.join(name);
            let placed = fs::create_dir_all(to.parent().unwrap_or(&folder)).and_then(|()| fs::rename(&from, &to));
            placed.map_err(|source| ShelfError::writing(&to, source))?;
            before += fs::metadata(&to).map_or(0, |facts| facts.len());
            Ok(())
        };
        SMALL_FILES.iter().try_for_each(|(name, _)| bring(name))?;
        let index = folder.join(INDEX);
        let shards = match fs::metadata(&index) {
            Ok(facts) if facts.len() <= HEADER_BYTES_MAX => {
                let index = fs::read(&index).map_err(|source| ShelfError::reading(&index, source))?;
                SafeTensors::shard_names(&index).map_err(FilesError::from)?
            }
            _ => vec![SINGLE.to_owned()],
        };
        shards.iter().try_for_each(|name| bring(name))?;
        // What is missing is told as of any folder, but where it was looked for is the repository.
        let packer = Packer::new(&folder).map_err(|why| match why {
            FilesError::Missing { name, remedy, .. } => self.failed(format!("it has no {name}: {remedy}")),
            other => other.into(),
        })?;
        let origin = Origin { text: Some(self.text), bytes: Some(packer.archive_bytes()), expect };
        Ok(staging.admit_copy(shelf, packer, &folder, &origin, progress)?)
    }

    /// Fetches a file into the staging folder, and returns where it lies there.
    fn download(
        &self,
        file: &str,
        staging: &Staging,
        config: &FetchConfig,
        watch: Watch<'_>,
    ) -> Result<PathBuf, FetchError> {
        let downloaded = self.guarded(|| {
            let downloaded = self.api(staging, config)?.download_with_progress(file, watch);
            downloaded.map_err(|why| self.failed_to_download(&why, &staging.path("hub")))
        });
        // What the library returns is a link into its cache.
        let path = fs::canonicalize(downloaded?).map_err(|why| self.failed(why))?;
        if !path.starts_with(fs::canonicalize(staging.path("hub")).map_err(|why| self.failed(why))?) {
            return Err(self.failed("the hub gave an answer that leads out of the download folder"));
        }
        Ok(path)
    }

    /// The library trusts the hub's answers in places where it panics on strange ones.
    fn guarded<T>(&self, call: impl FnOnce() -> Result<T, FetchError>) -> Result<T, FetchError> {
        let called = panic::catch_unwind(AssertUnwindSafe(call));
        called.unwrap_or_else(|_| Err(self.failed("the hub gave an answer that makes no sense")))
    }

    fn api(&self, staging: &Staging, config: &FetchConfig) -> Result<ApiRepo, FetchError> {
        let folder = staging.path("hub");
        fs::create_dir_all(&folder).map_err(|source| ShelfError::writing(&folder, source))?;
        let api = ApiBuilder::from_cache(Cache::new(folder))
            .with_endpoint(config.hub_endpoint.clone())
            .with_token(config.hub_token.clone())
            .with_progress(false)
            .with_retries(RETRIES_MAX)
            .build()
            .map_err(|why| self.failed(why))?;
        let (repository, revision) = (self.repository.to_owned(), self.revision.to_owned());
        Ok(api.repo(Repo::with_revision(repository, RepoType::Model, revision)))
    }

    fn failed_to_download(&self, why: &ApiError, folder: &Path) -> FetchError {
        let mut last = why;
        while let ApiError::TooManyRetries(inner) = last {
            last = inner;
        }
        match last {
            // The library reports broken connections as errors of files, too.
            ApiError::IoError(why) if matches!(why.kind(), StorageFull | QuotaExceeded) => {
                ShelfError::writing(folder, why.kind().into()).into()
            }
            _ => self.failed(why),
        }
    }

    fn failed(&self, why: impl ToString) -> FetchError {
        FetchError::Hub { what: self.text.to_owned(), why: why.to_string() }
    }
}

/// Passes the library's progress on.
struct Watch<'a> {
    /// Where this is one of several files: what came of those before. How much all will be is not known then.
    before: Option<u64>,
    done_bytes: u64,
    total_bytes: Option<u64>,
    /// Where the size that the hub stated is left for later.
    stated_bytes: &'a mut Option<u64>,
    progress: &'a mut dyn FnMut(Progress),
}

impl hf_hub::api::Progress for Watch<'_> {
    fn init(&mut self, size: usize, _file: &str) {
        // Called again for every continued transfer, which then reports what it had already.
        self.done_bytes = 0;
        self.total_bytes = Some(size as u64);
        *self.stated_bytes = self.total_bytes;
    }

    fn update(&mut self, size: usize) {
        self.done_bytes += size as u64;
        let done_bytes = self.before.unwrap_or(0) + self.done_bytes;
        let total_bytes = self.total_bytes.filter(|_| self.before.is_none());
        (self.progress)(Progress { phase: Phase::Downloading, done_bytes, total_bytes });
    }

    fn finish(&mut self) {}
}
