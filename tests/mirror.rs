//! What has a name in one place has it in all: operations in the contract, in every backend, in the self-check and in the benches;
//! kernels in their sources, in the emulator and in what launches them.

use std::path::{Path, PathBuf};

fn read(path: impl AsRef<Path>) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// Files of a folder with this ending, and of those in it.
fn files(folder: &str, ending: &str) -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let (mut folders, mut found) = (vec![root.join(folder)], Vec::new());
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => folders.push(path),
                false if path.extension().is_some_and(|e| e == ending) => found.push(path),
                false => {}
            }
        }
    }
    found.sort();
    found
}

fn all(folder: &str, ending: &str) -> String {
    files(folder, ending).iter().map(read).collect()
}

/// Names of the functions of `pub trait Ops`, with their documentation.
fn operations() -> Vec<(String, String)> {
    let text = read("kernels/src/ops.rs");
    let body = text.split_once("pub trait Ops").unwrap().1;
    let mut found = Vec::new();
    let mut documentation = String::new();
    for line in body.lines() {
        match line.strip_prefix("    fn ") {
            Some(head) => {
                found.push((head.split('(').next().unwrap().to_owned(), std::mem::take(&mut documentation)));
            }
            None if line.starts_with("    ///") => documentation.push_str(line),
            None => {}
        }
    }
    assert!(found.len() > 25, "{found:?}");
    found
}

#[test]
fn every_operation_is_in_every_backend_in_the_contract_in_the_self_check_and_in_a_bench() {
    let backends = ["reference", "exact", "cpu", "cuda/operations"].map(|b| (b, read(format!("kernels/src/{b}.rs"))));
    let (contract, check) = (read("kernels/NUMERICS.md"), read("kernels/src/check.rs"));
    let benches = read("benches/ops.rs") + &all("benches/gpu", "rs");
    for (name, documentation) in operations() {
        // What computes nothing.
        if ["describe", "wait", "ahead"].contains(&name.as_str()) {
            continue;
        }
        for (backend, text) in &backends {
            assert!(text.contains(&format!("fn {name}(")), "{backend} has no {name}");
        }
        assert!(check.contains(&format!("ops.{name}(")), "{name} is not in the self-check");
        let moved = ["copy_out", "copy_in", "gather", "read", "zero"].contains(&name.as_str());
        let of_contract = if name == "sample" { "sampling" } else { &name };
        assert!(moved || contract.contains(of_contract), "{name} is not in the numerics contract");
        let measured = benches.contains(&format!(".{name}(")) || !documentation.contains("Minimum bytes");
        // They are `linear` with one step more.
        assert!(measured || name == "linear_fine" || name == "linear_add", "{name} is in no bench");
    }
}

#[test]
fn every_kernel_is_emulated_launched_and_gated() {
    let registry = read("kernels/cuda/emulator/registry.cpp");
    let launches = all("kernels/src/cuda", "rs");
    let gates = read("kernels/cuda/gates.json");
    let mut count = 0;
    for path in files("kernels/cuda", "cu") {
        let text = read(&path);
        let file = path.file_name().unwrap().to_str().unwrap();
        assert!(registry.contains(&format!("{file}\"")), "the emulator does not have {file}");
        for after in text.split("CUCKOO_KERNEL(").skip(1) {
            let Some(at) = after.find("cuckoo_") else { continue };
            let name: String =
                after[at..].chars().take_while(|c| c.is_ascii_alphanumeric() || "_#".contains(*c)).collect();
            // Of formats there are many: their names are put together, and the self-check launches each.
            let stem = name.split('#').next().unwrap();
            assert!(registry.contains(stem), "{name} of {file} is not in the emulator");
            assert!(launches.contains(stem), "nothing launches {name} of {file}");
            count += 1;
        }
    }
    assert!(count > 30, "{count} kernels were found");
    assert!(gates.contains("\"cuckoo_.*\""), "every kernel has a gate");
}

#[test]
fn every_kernel_file_opens_with_what_it_computes() {
    for path in files("kernels/cuda", "cu") {
        let text = read(&path);
        let opening = text.split("#include").next().unwrap();
        for (what, words) in [
            ("its method", &["Method"][..]),
            ("its minimum bytes", &["bytes", "Bytes"]),
            ("its operations", &["FLOPs", "operations"]),
            ("its source", &["Source", "our own"]),
        ] {
            assert!(words.iter().any(|word| opening.contains(word)), "{} does not say {what}", path.display());
        }
    }
}
