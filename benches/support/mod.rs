//! What the benches that need the real model share: where it is, and medians.

use std::path::{Path, PathBuf};
use std::process::Command;

use cuckoo_models::Shelf;

/// The shelf that tests use as well, with the default model on it.
pub(crate) fn shelf() -> PathBuf {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("shelf");
    let home = dir.join("author");
    let mut pull = Command::new(env!("CARGO_BIN_EXE_cuckoo"));
    pull.args(["models", "pull", "smollm2-135m-instruct", "--home"]).arg(home).arg("--models-dir").arg(&dir);
    let pulled = pull.output().expect("the command runs");
    assert!(pulled.status.success(), "{}", String::from_utf8_lossy(&pulled.stderr));
    dir
}

/// The default model's file.
pub(crate) fn weights() -> cuckoo_models::Shelved {
    let list = Shelf::open(shelf()).and_then(|s| s.list()).expect("the shelf can be read");
    let built_in = list.into_iter().find(|w| w.origins.iter().any(|o| o.starts_with("pip:")));
    built_in.expect("the shelf holds the model")
}

/// Whether this run only checks that everything works: `cargo test --benches`.
pub(crate) fn is_test() -> bool {
    std::env::args().any(|a| a == "--test")
}

/// The value that a share `q` of all values does not exceed.
pub(crate) fn quantile(values: &mut [f64], q: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    values[((values.len() - 1) as f64 * q).round() as usize]
}

/// The number after `name` on the command line.
#[allow(dead_code, reason = "not every bench has options")]
pub(crate) fn argument(name: &str) -> Option<usize> {
    std::env::args().skip_while(|a| a != name).nth(1)?.parse().ok()
}
