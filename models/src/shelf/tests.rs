//! Shelves through changes, crashes and several users at once.
#![allow(clippy::unwrap_used)]

use std::{
    fs::{self, File},
    os::unix::fs::PermissionsExt,
    sync::Barrier,
};

use ed25519_dalek::SigningKey;
use sha2::Digest;

use super::*;
use crate::manifest::Manifest;

fn shelf() -> (tempfile::TempDir, Shelf) {
    let folder = tempfile::tempdir().unwrap();
    let shelf = Shelf::open(folder.path().join("shelf")).unwrap();
    (folder, shelf)
}

fn file(folder: &tempfile::TempDir, bytes: &[u8]) -> PathBuf {
    let path = folder.path().join("model.gguf");
    fs::write(&path, bytes).unwrap();
    path
}

fn staged(shelf: &Shelf) -> usize {
    fs::read_dir(shelf.root().join("staging")).unwrap().count()
}

#[test]
fn a_file_is_found_by_its_hash() {
    let (folder, shelf) = shelf();
    let bytes = vec![7; 3 << 20];
    let mut steps = Vec::new();
    let hash = shelf.add_file(file(&folder, &bytes), &mut |progress| steps.push(progress)).unwrap();
    assert_eq!(hash.0, *blake3::hash(&bytes).as_bytes());
    assert!(steps.is_sorted_by_key(|step| step.done_bytes));
    assert_eq!((steps.last().unwrap().done_bytes, steps[0].total_bytes), (3 << 20, Some(3 << 20)));
    let found = shelf.find(&hash).unwrap().unwrap();
    assert_eq!((fs::read(&found.path).unwrap(), found.bytes, staged(&shelf)), (bytes.clone(), 3 << 20, 0));
    assert_eq!(shelf.find(&WeightsHash([0; 32])).unwrap(), None);
    assert_eq!(shelf.list().unwrap(), vec![found.clone()]);
    let sha256 = Sha256Hash(sha2::Sha256::digest(&bytes).into());
    assert_eq!(shelf.find_sha256(&sha256).unwrap(), Some(found));
    // Adding it again changes nothing.
    assert_eq!(shelf.add_file(file(&folder, &bytes), &mut |_| {}).unwrap(), hash);
    assert_eq!(shelf.list().unwrap().len(), 1);
}

#[test]
fn a_file_is_hashed_again_only_when_it_was_touched() {
    let (folder, shelf) = shelf();
    let hash = shelf.add_file(file(&folder, b"weights"), &mut |_| {}).unwrap();
    let path = shelf.weights_path(&hash);
    let record = path.with_extension("json");
    let sha256 = |record: &Path| {
        let record: serde_json::Value = serde_json::from_slice(&fs::read(record).unwrap()).unwrap();
        record["sha256"].as_str().unwrap().to_owned()
    };
    // A record that lies shows whether the file was read: it is corrected only then.
    let (truth, lie) = (sha256(&record), "0".repeat(64));
    fs::write(&record, fs::read_to_string(&record).unwrap().replace(&truth, &lie)).unwrap();
    assert!(shelf.find(&hash).unwrap().is_some());
    assert_eq!(sha256(&record), lie, "an untouched file is not hashed");
    File::options().append(true).open(&path).unwrap().set_modified(std::time::UNIX_EPOCH).unwrap();
    assert!(shelf.find(&hash).unwrap().is_some());
    assert_eq!(sha256(&record), truth, "a touched file is");
    fs::write(&record, "no record").unwrap();
    assert!(shelf.find(&hash).unwrap().is_some(), "a lost record costs only a hash");
    assert_eq!(sha256(&record), truth);
    // Changed at equal length: refused, and named.
    fs::write(&path, b"Weights").unwrap();
    let message = shelf.find(&hash).unwrap_err().to_string();
    assert!(message.contains("delete it") && message.contains(&hash.to_string()), "{message}");
    assert!(shelf.find(&hash).is_err(), "it stays refused");
    // Adding the right file again mends it.
    shelf.add_file(file(&folder, b"weights"), &mut |_| {}).unwrap();
    assert!(shelf.find(&hash).unwrap().is_some());
}

#[test]
fn what_dead_processes_left_is_removed_and_what_living_ones_do_is_not() {
    let (_folder, shelf) = shelf();
    let living = Staging::new(&shelf).unwrap();
    fs::write(living.path("half"), b"half").unwrap();
    // A process that died leaves a folder and a lock that nobody holds.
    let dead = shelf.root().join("staging/dead");
    fs::create_dir(&dead).unwrap();
    fs::write(dead.join("half"), b"half").unwrap();
    fs::write(dead.with_extension("lock"), b"").unwrap();
    fs::create_dir(shelf.root().join("staging/orphan")).unwrap();
    Shelf::open(shelf.root()).unwrap();
    assert_eq!(staged(&shelf), 2, "only the living folder and its lock");
    assert_eq!(fs::read(living.path("half")).unwrap(), b"half");
    drop(living);
    assert_eq!(staged(&shelf), 0);
}

#[test]
fn many_users_at_once_do_no_harm() {
    let (folder, shelf) = shelf();
    let path = file(&folder, &vec![9; 1 << 20]);
    let barrier = Barrier::new(8);
    let hashes: Vec<WeightsHash> = std::thread::scope(|scope| {
        let add = || {
            barrier.wait();
            let shelf = Shelf::open(shelf.root()).unwrap();
            let hash = shelf.add_file(&path, &mut |_| {}).unwrap();
            assert!(shelf.find(&hash).unwrap().is_some());
            hash
        };
        let threads: Vec<_> = (0..8).map(|_| scope.spawn(add)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert!(hashes.iter().all(|hash| *hash == hashes[0]));
    assert_eq!((shelf.list().unwrap().len(), staged(&shelf)), (1, 0));
}

#[test]
fn failures_leave_nothing_behind() {
    let (folder, shelf) = shelf();
    let path = file(&folder, b"weights");
    let expect = Digests { sha256: Sha256Hash([1; 32]), bytes: None, download_bytes: None };
    let admit = |expect, bytes| {
        let origin = Origin { text: Some("test"), bytes, expect };
        Staging::new(&shelf).unwrap().admit_copy(&shelf, File::open(&path).unwrap(), &path, &origin, &mut |_| {})
    };
    assert!(matches!(admit(Some(expect), None), Err(ShelfError::WrongHash { .. })));
    for bytes in [6, 8] {
        let expect = Digests { bytes: Some(bytes), ..expect };
        assert!(matches!(admit(Some(expect), None), Err(ShelfError::WrongSize { expected, .. }) if expected == bytes));
        assert!(matches!(admit(None, Some(bytes)), Err(ShelfError::WrongSize { .. })));
    }
    assert!(shelf.add_file(folder.path(), &mut |_| {}).is_err());
    assert!(shelf.add_file(folder.path().join("absent"), &mut |_| {}).is_err());
    assert_eq!((shelf.list().unwrap(), staged(&shelf)), (vec![], 0));
}

#[test]
fn unwritable_and_full_disks_are_named() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("file"), b"").unwrap();
    assert!(Shelf::open(folder.path().join("file/shelf")).is_err());
    let path = Path::new("/data/weights");
    let message = |kind: io::ErrorKind| ShelfError::writing(path, kind.into()).to_string();
    assert!(message(io::ErrorKind::StorageFull).contains("the disk is full while writing /data/weights"));
    assert!(message(io::ErrorKind::QuotaExceeded).contains("the disk is full"));
    assert!(message(io::ErrorKind::PermissionDenied).contains("make it writable"));
    // Root may write anywhere, so this part only runs as somebody else.
    let closed = folder.path().join("closed");
    fs::create_dir(&closed).unwrap();
    fs::set_permissions(&closed, fs::Permissions::from_mode(0o500)).unwrap();
    if fs::write(closed.join("probe"), b"").is_err() {
        assert!(matches!(Shelf::open(closed.join("shelf")), Err(ShelfError::Unwritable { .. })));
    }
    // A device that is always full: what Linux offers for this very test.
    if let Ok(mut full) = File::options().write(true).open("/dev/full") {
        let why = io::Write::write_all(&mut full, &[0; 8]).unwrap_err();
        assert!(matches!(ShelfError::writing(path, why), ShelfError::Full { .. }));
    }
}

#[test]
fn manifests_are_kept_and_verified() {
    let (_folder, shelf) = shelf();
    let key = SigningKey::from_bytes(&[5; 32]);
    let manifest = |name: &str| Manifest {
        name: name.to_owned(),
        license: "MIT".to_owned(),
        author: key.verifying_key().to_bytes(),
        royalty_bps: 0,
        weights: WeightsHash([1; 32]),
        weights_bytes: 1,
        architecture: "llama".to_owned(),
        parameters: 1,
        quantization: "F32".to_owned(),
        context_tokens: 1,
        created_unix: 0,
        base: None,
    };
    let (a, b) = (manifest("a").sign(&key).unwrap(), manifest("b").sign(&key).unwrap());
    shelf.put_manifest(&b).unwrap();
    shelf.put_manifest(&a).unwrap();
    assert_eq!(shelf.manifest("a").unwrap(), Some(a.clone()));
    assert_eq!(shelf.manifest("c").unwrap(), None);
    assert_eq!(shelf.manifests().unwrap(), [a.clone(), b]);
    assert!(shelf.manifest("../a").is_err());
    let mut forged = a.clone();
    forged.manifest.royalty_bps = 1;
    assert!(shelf.put_manifest(&forged).is_err());
    // A manifest under another's name is as wrong as a forged one.
    let path = |name: &str| shelf.root().join(format!("manifests/{name}.json"));
    fs::copy(path("a"), path("b")).unwrap();
    assert!(matches!(shelf.manifest("b"), Err(ShelfError::Manifest { .. })));
    fs::write(path("a"), forged.to_json()).unwrap();
    assert!(matches!(shelf.manifest("a"), Err(ShelfError::Manifest { .. })));
}
