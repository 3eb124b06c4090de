//! Weights from a Hugging Face repository, by the hub's own client library. The library's cache is not used.

use std::{
    fs,
    io::ErrorKind::{QuotaExceeded, StorageFull},
    panic::{self, AssertUnwindSafe},
};

use hf_hub::{
    Cache, Repo, RepoType,
    api::sync::{ApiBuilder, ApiError},
};

use super::{FetchConfig, FetchError};
use crate::shelf::{Digests, Origin, Phase, Progress, Shelf, ShelfError, Shelved, Staging};

/// How often a broken transfer is continued where it broke.
const RETRIES_MAX: usize = 3;

/// A file in a repository.
pub(super) struct Remote<'a> {
    pub(super) repository: &'a str,
    pub(super) revision: &'a str,
    pub(super) file: &'a str,
    /// The source as text.
    pub(super) text: &'a str,
}

impl Remote<'_> {
    pub(super) fn fetch(
        &self,
        shelf: &Shelf,
        expect: Option<Digests>,
        config: &FetchConfig,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Shelved, FetchError> {
        let staging = Staging::new(shelf)?;
        let mut stated_bytes = None;
        let watch = Watch { done_bytes: 0, total_bytes: None, stated_bytes: &mut stated_bytes, progress };
        // The library trusts the hub's answers in places where it panics on strange ones.
        let downloaded = panic::catch_unwind(AssertUnwindSafe(|| self.download(&staging, config, watch)));
        let downloaded = downloaded.unwrap_or_else(|_| Err(self.failed("the hub gave an answer that makes no sense")));
        // What the library returns is a link into its cache.
        let path = fs::canonicalize(downloaded?).map_err(|why| self.failed(why))?;
        if !path.starts_with(fs::canonicalize(staging.path("hub")).map_err(|why| self.failed(why))?) {
            return Err(self.failed("the hub gave an answer that leads out of the download folder"));
        }
        let origin = Origin { text: Some(self.text), bytes: stated_bytes, expect };
        Ok(staging.admit_move(shelf, &path, &origin, progress)?)
    }

    fn download(
        &self,
        staging: &Staging,
        config: &FetchConfig,
        watch: Watch<'_>,
    ) -> Result<std::path::PathBuf, FetchError> {
        let folder = staging.path("hub");
        fs::create_dir(&folder).map_err(|source| ShelfError::writing(&folder, source))?;
        let api = ApiBuilder::from_cache(Cache::new(folder.clone()))
            .with_endpoint(config.hub_endpoint.clone())
            .with_token(config.hub_token.clone())
            .with_progress(false)
            .with_retries(RETRIES_MAX)
            .build()
            .map_err(|why| self.failed(why))?;
        let (repository, revision) = (self.repository.to_owned(), self.revision.to_owned());
        let repository = api.repo(Repo::with_revision(repository, RepoType::Model, revision));
        repository.download_with_progress(self.file, watch).map_err(|why| {
            let mut last = &why;
            while let ApiError::TooManyRetries(inner) = last {
                last = inner;
            }
            match last {
                // The library reports broken connections as errors of files, too.
                ApiError::IoError(why) if matches!(why.kind(), StorageFull | QuotaExceeded) => {
                    ShelfError::writing(&folder, why.kind().into()).into()
                }
                _ => self.failed(why),
            }
        })
    }

    fn failed(&self, why: impl ToString) -> FetchError {
        FetchError::Hub { what: self.text.to_owned(), why: why.to_string() }
    }
}

/// Passes the library's progress on.
struct Watch<'a> {
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
        let (done_bytes, total_bytes) = (self.done_bytes, self.total_bytes);
        (self.progress)(Progress { phase: Phase::Downloading, done_bytes, total_bytes });
    }

    fn finish(&mut self) {}
}
