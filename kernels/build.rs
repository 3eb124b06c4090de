//! What is not Rust: the emulator of CUDA, and the structures that kernels are given.

#![allow(clippy::disallowed_methods, reason = "cargo speaks to build scripts through the environment")]

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    #[cfg(feature = "emulator")]
    emulator();
    #[cfg(feature = "bindings")]
    bindings();
}

/// The kernels' sources, compiled for this processor.
#[cfg(feature = "emulator")]
fn emulator() {
    println!("cargo:rerun-if-changed=cuda");
    let mut build = cc::Build::new();
    build.cpp(true).std("c++20").opt_level(2).debug(false).file("cuda/emulator/registry.cpp");
    // Products and sums are contracted where the source says fma, and nowhere else. Device addresses are read as whatever
    // lies there, which strict aliasing does not know of.
    build.flag("-ffp-contract=off").flag("-fno-strict-aliasing").flag_if_supported("-Wno-unknown-pragmas");
    // Structures of 64-byte alignment are passed as they were not before GCC 4.6.
    build.flag_if_supported("-Wno-psabi");
    if std::env::var("CARGO_CFG_TARGET_ARCH").as_deref() == Ok("x86_64") {
        // Else every fma is a call. `Emulator::new` asks for them again.
        build.flag("-mfma").flag("-mavx2");
    }
    build.compile("cuckoo_emulator");
}

/// `args.rs` made anew. It must be the one that is committed.
#[cfg(feature = "bindings")]
fn bindings() {
    println!("cargo:rerun-if-changed=cuda/args.h");
    println!("cargo:rerun-if-changed=src/cuda/args.rs");
    let out = std::path::PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo says where")).join("args.rs");
    bindgen::Builder::default()
        .header("cuda/args.h")
        .allowlist_type("cuckoo_.*")
        .derive_default(true)
        // What is aligned to more than its fields has no derived default.
        .no_default("cuckoo_tensor_map|cuckoo_gemm_mapped")
        .layout_tests(true)
        .use_core()
        .generate_comments(false)
        .disable_header_comment()
        .raw_line(
            "//! What kernels are given, as `cuda/args.h` says it: made by `build.rs` with the feature `bindings`.",
        )
        .parse_callbacks(Box::new(PlainData))
        .formatter(bindgen::Formatter::Rustfmt)
        .generate()
        .expect("the header is plain C")
        .write_to_file(&out)
        .expect("cargo's folder can be written");
    let read = |path: &std::path::Path| std::fs::read(path).expect("both are files");
    let committed = std::path::Path::new("src/cuda/args.rs");
    assert!(read(&out) == read(committed), "copy {} to kernels/src/cuda/args.rs", out.display());
}

/// Every structure is plain bytes without padding, which the derived traits check.
#[cfg(feature = "bindings")]
#[derive(Debug)]
struct PlainData;

#[cfg(feature = "bindings")]
impl bindgen::callbacks::ParseCallbacks for PlainData {
    fn add_derives(&self, _of: &bindgen::callbacks::DeriveInfo<'_>) -> Vec<String> {
        vec!["bytemuck::Pod".to_owned(), "bytemuck::Zeroable".to_owned()]
    }
}
