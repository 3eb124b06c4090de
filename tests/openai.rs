//! The official Python client, in a process of its own.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Runs the script of that path below `tests` with `args`. Says so and returns where there is no Python to run it.
pub(crate) fn run_client(script: &str, args: &[&str]) {
    let Some(packages) = package() else { return };
    let output = Command::new("python3")
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests").join(script))
        .args(args)
        .env("PYTHONPATH", packages)
        // A proxy of the machine's must not come between.
        .env("NO_PROXY", "127.0.0.1,localhost")
        .output()
        .expect("python3 starts");
    let told = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{told}");
    println!("{told}");
}

/// Where the official client lies; fetched once for each version of Python. `None`, with a reason, where there is no
/// Python to run it.
fn package() -> Option<PathBuf> {
    let python = |args: &[&str]| Command::new("python3").args(args).stdin(Stdio::null()).output().ok();
    let Some(tag) = python(&["-c", "import sys; print(sys.implementation.cache_tag)"]).filter(|o| o.status.success())
    else {
        println!("skipped: there is no python3");
        return None;
    };
    if !python(&["-m", "pip", "--version"]).is_some_and(|o| o.status.success()) {
        println!("skipped: python3 has no pip");
        return None;
    }
    let cache = std::env::home_dir().expect("a home directory").join(".cache/cuckoo-test-python");
    let tag = String::from_utf8(tag.stdout).expect("UTF-8");
    let packages = cache.join(format!("openai-{}", tag.trim()));
    if packages.is_dir() {
        return Some(packages);
    }
    std::fs::create_dir_all(&cache).expect("the cache folder can be made");
    // Installed beside its place and then moved, so that a cut-off installation is never taken for a whole one.
    let fresh = tempfile::tempdir_in(&cache).expect("a folder in the cache");
    let target = fresh.path().join("packages");
    let to = target.to_str().expect("UTF-8");
    let quiet = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--target", to, "openai>=1.60"];
    let installed = python(&quiet).expect("pip starts");
    assert!(installed.status.success(), "pip: {}", String::from_utf8_lossy(&installed.stderr));
    // Another test run may have been faster: its folder is as good.
    if let Err(error) = std::fs::rename(&target, &packages) {
        assert!(packages.is_dir(), "the packages cannot be moved into place: {error}");
    }
    Some(packages)
}
