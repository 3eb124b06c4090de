//! What is CUDA's alone; that operations compute the contract is tested with those of the CPU backend (`cpu/tests.rs`).

use super::*;

/// A product by an emulated kernel is the contract's, whoever runs first. The rest of the suite uses one order only.
#[test]
fn kernels_are_all_there() {
    let names: Vec<_> = Emulator::kernels().map(|name| name.to_string_lossy().into_owned()).collect();
    assert!(names.len() > 30, "{names:?}");
    assert!(names.iter().all(|name| name.starts_with("cuckoo_")));
}

/// `cargo test -p cuckoo-kernels --features bindings`, with libclang where bindgen looks for it.
#[cfg(feature = "bindings")]
#[test]
fn bindings_are_current() {
    let made = include_str!(concat!(env!("OUT_DIR"), "/args.rs"));
    assert!(
        made == include_str!("args.rs"),
        "copy {} to kernels/src/cuda/args.rs",
        concat!(env!("OUT_DIR"), "/args.rs")
    );
}
