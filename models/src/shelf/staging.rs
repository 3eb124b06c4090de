//! Folders for work in progress, and writing files whole. Whatever process dies in between, nothing half-done is seen.

use std::{
    fs::{self, File, TryLockError},
    io::{self, Write},
    path::{Path, PathBuf},
};

use super::{Shelf, ShelfError};

/// A folder of our own, removed when dropped. While it lives, its lock keeps other processes from cleaning it away.
#[derive(Debug)]
pub(crate) struct Staging {
    folder: PathBuf,
    lock_path: PathBuf,
    _lock: File,
}

impl Staging {
    /// Makes a new folder under the shelf's `staging`.
    pub(crate) fn new(shelf: &Shelf) -> Result<Self, ShelfError> {
        let _making = exclusive(&shelf.root)?;
        let name = format!("{:016x}", rand::random::<u64>());
        let folder = shelf.root.join("staging").join(&name);
        let lock_path = folder.with_extension("lock");
        let failed = |source| ShelfError::writing(&lock_path, source);
        let lock = File::create_new(&lock_path).map_err(failed)?;
        lock.try_lock().map_err(|why| failed(why.into()))?;
        // From here on the folder and the lock are removed on every way out.
        let staging = Self { folder, lock_path: lock_path.clone(), _lock: lock };
        fs::create_dir(&staging.folder).map_err(|source| ShelfError::writing(&staging.folder, source))?;
        Ok(staging)
    }

    /// A path in the folder.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        // What cannot be removed now is removed at the next opening.
        let _ = fs::remove_dir_all(&self.folder);
        let _ = fs::remove_file(&self.lock_path);
    }
}

/// Removes the staging folders whose processes are gone: those whose locks can be taken.
pub(super) fn clean(root: &Path) -> Result<(), ShelfError> {
    let _cleaning = exclusive(root)?;
    let folder = root.join("staging");
    let failed = |source| ShelfError::reading(&folder, source);
    for entry in fs::read_dir(&folder).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        let is_lock = path.extension().is_some_and(|extension| extension == "lock");
        // Folders are judged by their locks; a folder without one was orphaned while it was being removed.
        if !is_lock && path.with_extension("lock").exists() {
            continue;
        }
        if is_lock {
            let free = File::open(&path).and_then(|lock| match lock.try_lock() {
                Ok(()) => Ok(true),
                Err(TryLockError::WouldBlock) => Ok(false),
                Err(TryLockError::Error(why)) => Err(why),
            });
            match free {
                Ok(true) => {}
                Ok(false) => continue,
                Err(why) if why.kind() == io::ErrorKind::NotFound => continue, // Its owner has just finished.
                Err(why) => return Err(failed(why)),
            }
        }
        let stale = if is_lock { path.with_extension("") } else { path.clone() };
        tracing::info!(path = %stale.display(), "removing what a process left unfinished");
        let removed = match fs::remove_dir_all(&stale) {
            Err(why) if why.kind() != io::ErrorKind::NotFound => Err(why),
            _ if is_lock => fs::remove_file(&path),
            _ => Ok(()),
        };
        match removed {
            Err(why) if why.kind() != io::ErrorKind::NotFound => return Err(ShelfError::writing(&stale, why)),
            _ => {}
        }
    }
    Ok(())
}

/// Takes the shelf's own lock, which is held for moments only: while a staging folder is made or stale ones are removed.
fn exclusive(root: &Path) -> Result<File, ShelfError> {
    let path = root.join("lock");
    let failed = |source| ShelfError::writing(&path, source);
    let file = File::options().write(true).create(true).truncate(false).open(&path).map_err(failed)?;
    file.lock().map_err(failed)?;
    Ok(file)
}

/// Writes a file so that it is seen whole or not at all.
pub(super) fn write_whole(shelf: &Shelf, path: &Path, bytes: &[u8]) -> Result<(), ShelfError> {
    let staging = Staging::new(shelf)?;
    let draft = staging.path("draft");
    let written = File::create_new(&draft).and_then(|mut file| {
        file.write_all(bytes)?;
        file.sync_all()
    });
    written.map_err(|source| ShelfError::writing(&draft, source))?;
    place(&draft, path)
}

/// Renames `from` to `to` and makes that last.
pub(super) fn place(from: &Path, to: &Path) -> Result<(), ShelfError> {
    let failed = |source| ShelfError::writing(to, source);
    fs::rename(from, to).map_err(failed)?;
    let folder = to.parent().expect("a file on the shelf lies in a folder");
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(failed)
}
