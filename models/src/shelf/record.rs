//! What is remembered of a file on the shelf, so that it need not be hashed at every start. Losing it costs only time.

use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::{Shelf, ShelfError, read_bounded, staging};
use crate::digest::Sha256Hash;

/// The longest record read, in bytes.
const RECORD_BYTES_MAX: u64 = 1 << 20;
/// The most origins remembered of one file.
const ORIGINS_MAX: usize = 64;

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    /// The file as it was when its hash was last checked.
    verified: Option<Fingerprint>,
    pub(super) sha256: Option<Sha256Hash>,
    #[serde(default)]
    pub(super) origins: Vec<String>,
}

/// What changes when a file is touched. The change time cannot be set back by ordinary means.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Fingerprint {
    bytes: u64,
    inode: u64,
    modified_ns: i128,
    changed_ns: i128,
}

impl Fingerprint {
    fn of(facts: &fs::Metadata) -> Self {
        let ns = |seconds: i64, ns: i64| i128::from(seconds) * 1_000_000_000 + i128::from(ns);
        Self {
            bytes: facts.len(),
            inode: facts.ino(),
            modified_ns: ns(facts.mtime(), facts.mtime_nsec()),
            changed_ns: ns(facts.ctime(), facts.ctime_nsec()),
        }
    }
}

impl Record {
    /// The record of the weights at `weights`; `None` when there is none that can be read.
    pub(super) fn load(weights: &Path) -> Option<Self> {
        serde_json::from_slice(&read_bounded(&path(weights), RECORD_BYTES_MAX).ok()?).ok()
    }

    pub(super) fn store(&self, shelf: &Shelf, weights: &Path) -> Result<(), ShelfError> {
        let json = serde_json::to_vec_pretty(self).expect("a record has only strings and integers");
        staging::write_whole(shelf, &path(weights), &json)
    }

    /// Whether the file is the one that was verified.
    pub(super) fn covers(&self, facts: &fs::Metadata) -> bool {
        self.verified.as_ref() == Some(&Fingerprint::of(facts))
    }

    pub(super) fn verified(&mut self, facts: &fs::Metadata) {
        self.verified = Some(Fingerprint::of(facts));
    }

    pub(super) fn came_from(&mut self, origin: &str) {
        if !self.origins.iter().any(|from| from == origin) && self.origins.len() < ORIGINS_MAX {
            self.origins.push(origin.to_owned());
        }
    }
}

fn path(weights: &Path) -> PathBuf {
    weights.with_extension("json")
}
