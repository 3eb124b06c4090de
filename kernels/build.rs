//! What is not Rust: the CUDA kernels, their emulator, and the structures that kernels are given.

#![allow(clippy::disallowed_methods, reason = "cargo speaks to build scripts through the environment")]

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    #[cfg(feature = "emulator")]
    emulator();
    #[cfg(feature = "bindings")]
    bindings();
    #[cfg(feature = "cuda")]
    fatbin::build();
}

/// All kernels for all architectures in one compressed file, which the program carries and the driver chooses from.
#[cfg(feature = "cuda")]
mod fatbin {
    use std::path::{Path, PathBuf};
    use std::process::Command;
    use std::{env, fs};

    /// Machine code for these; 90a is Hopper with what no later architecture has. `toolchain.py` checks the same.
    const MACHINE_CODE: [&str; 6] = ["80", "86", "89", "90a", "100", "120"];
    /// What comes later translates this.
    const PTX: &str = "80";

    pub(super) fn build() {
        println!("cargo:rerun-if-env-changed=CUDA_HOME");
        // Whoever adds a kernel adds it to the emulator's registry; the tools beside the kernels are nothing to this.
        for path in ["cuda/emulator/registry.cpp", "cuda/nvcc.options", "cuda/sm90"] {
            println!("cargo:rerun-if-changed={path}");
        }
        for path in files(Path::new("cuda"), &["cu", "cuh", "h"]) {
            println!("cargo:rerun-if-changed={}", path.display());
        }
        let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo says where"));
        let nvcc = nvcc().unwrap_or_else(|| {
            panic!(
                "no nvcc in CUDA_HOME, in PATH or in the cache: `python3 kernels/cuda/toolchain.py install` fetches it"
            )
        });
        // One unit, so that there is one file and one module.
        let unit = out.join("kernels.cu");
        let sources = ["cuda", "cuda/sm90"].map(|folder| files(Path::new(folder), &["cu"])).concat();
        let include = |path: &PathBuf| format!("#include {:?}\n", fs::canonicalize(path).expect("it was listed"));
        fs::write(&unit, sources.iter().map(include).collect::<String>()).expect("cargo's folder can be written");
        let options = fs::read_to_string("cuda/nvcc.options").expect("it is beside the kernels");
        let mut command = Command::new(&nvcc);
        command.args(options.split_whitespace()).args(["-fatbin", "--compress-mode=size", "--threads=0"]);
        for arch in MACHINE_CODE {
            command.arg(format!("-gencode=arch=compute_{arch},code=sm_{arch}"));
        }
        command.arg(format!("-gencode=arch=compute_{PTX},code=compute_{PTX}"));
        command.arg("-o").arg(out.join("kernels.fatbin")).arg(&unit);
        let done = command.status().unwrap_or_else(|e| panic!("{} cannot be run: {e}", nvcc.display()));
        assert!(done.success(), "{} failed", nvcc.display());
    }

    /// Files of a folder that end so, in order of their names.
    fn files(folder: &Path, endings: &[&str]) -> Vec<PathBuf> {
        let entries = fs::read_dir(folder).into_iter().flatten().map(|entry| entry.expect("it can be read").path());
        let ends = |path: &PathBuf| path.extension().is_some_and(|end| endings.iter().any(|e| end == *e));
        let mut files: Vec<PathBuf> = entries.filter(ends).collect();
        files.sort();
        files
    }

    /// The compiler of CUDA_HOME, else of PATH, else where `toolchain.py install` puts it.
    fn nvcc() -> Option<PathBuf> {
        let of_home = env::var_os("CUDA_HOME").map(|home| PathBuf::from(home).join("bin/nvcc"));
        let path = env::var_os("PATH").unwrap_or_default();
        let of_path = env::split_paths(&path).map(|folder| folder.join("nvcc"));
        let cache = env::var_os("XDG_CACHE_HOME").filter(|v| !v.is_empty()).map(PathBuf::from);
        let cache = cache.or_else(|| Some(PathBuf::from(env::var_os("HOME")?).join(".cache")));
        let of_cache = cache.map(|cache| cache.join("cuckoo-cuda/nvidia/cu13/bin/nvcc"));
        of_home.into_iter().chain(of_path).chain(of_cache).find(|nvcc| nvcc.is_file())
    }
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
