//! Locks on data directories, and what a file system's refusal means.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, ErrorKind};
use std::path::Path;

use super::StoreError;

/// Locks `path` against other processes until the file is dropped.
pub(super) fn lock(path: &Path) -> Result<File, StoreError> {
    let file =
        OpenOptions::new().write(true).create(true).truncate(false).open(path).map_err(|e| unusable(path, &e))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(StoreError::InUse { path: path.to_owned() }),
        Err(TryLockError::Error(e)) => Err(unusable(path, &e)),
    }
}

/// What it means that something could not be read or written.
pub(super) fn failed(path: &Path, error: &io::Error) -> StoreError {
    match error.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => StoreError::Full { path: path.to_owned() },
        _ => unusable(path, error),
    }
}

pub(super) fn unusable(path: &Path, error: &io::Error) -> StoreError {
    StoreError::Unusable { path: path.to_owned(), detail: error.to_string() }
}
