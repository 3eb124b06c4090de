#!/usr/bin/env python3
"""Builds llama.cpp natively from the PyPI source package llama-cpp-python and says where its programs are.

    llama_cpp.py install [--jobs N]      build everything below; what is there already is kept
    llama_cpp.py quantize IN KIND OUT    re-quantize a GGUF file, e.g. to Q4_0 or Q8_0
    llama_cpp.py where                   print the paths as JSON

The package is only the vessel of llama.cpp's source tree: the programs are built from that tree with cmake, and the
Python binding is used from the tree as well, over the same shared libraries. So programs and binding measure one build.
"""

import argparse
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tarfile
import venv

PACKAGE = "llama-cpp-python"
VERSION = "0.3.36"
#: Of llama.cpp's programs, those that comparisons run.
PROGRAMS = ["llama-bench", "llama-batched-bench", "llama-quantize", "llama-completion", "llama-server"]
#: GGML_NATIVE lets the compiler use all that this processor has: the comparison is with llama.cpp at its best.
CMAKE_OPTIONS = {
    "CMAKE_BUILD_TYPE": "Release",
    "BUILD_SHARED_LIBS": "ON",
    "GGML_NATIVE": "ON",
    "GGML_OPENMP": "ON",
    "LLAMA_BUILD_TESTS": "OFF",
    "LLAMA_BUILD_EXAMPLES": "OFF",
    "LLAMA_BUILD_APP": "OFF",
    # Pages for browsers would be fetched while building.
    "LLAMA_BUILD_UI": "OFF",
    "LLAMA_USE_PREBUILT_UI": "OFF",
    "LLAMA_OPENSSL": "OFF",
}


def root() -> pathlib.Path:
    """Where everything of the peers is kept."""
    cache = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    return pathlib.Path(cache) / "cuckoo-peers"


def program(name: str) -> pathlib.Path:
    """A program of llama.cpp."""
    return root() / "build" / "bin" / name


def python() -> pathlib.Path:
    """The interpreter that has the binding."""
    return root() / "venv" / "bin" / "python"


def environment() -> dict:
    """What a process needs to find the binding and the shared libraries under it."""
    return {**os.environ, "PYTHONPATH": str(root() / "src"), "LLAMA_CPP_LIB_PATH": str(root() / "build" / "bin")}


def is_installed() -> bool:
    """Whether all programs are there."""
    return all(program(p).exists() for p in PROGRAMS) and python().exists()


def run(*command, **options):
    """Runs a command and stops the script where it fails."""
    print("+", *command, file=sys.stderr)
    subprocess.run([str(c) for c in command], check=True, **options)


def fetch_source():
    """The source tree, from the package index that pip is set up for."""
    if (root() / "src" / "vendor" / "llama.cpp").is_dir():
        return
    bin_dir, sdist = python().parent, root() / "sdist"
    # The package's build tool is installed first, so that pip needs no isolated environment to look at the package.
    run(bin_dir / "pip", "install", "-q", "scikit-build-core")
    run(bin_dir / "pip", "download", "-q", "--no-deps", "--no-build-isolation", "--no-binary", PACKAGE,
        "-d", sdist, f"{PACKAGE}=={VERSION}")
    (archive,) = sdist.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        tar.extractall(root(), filter="data")
    (unpacked,) = [d for d in root().glob("llama_cpp_python-*") if d.is_dir()]
    unpacked.rename(root() / "src")


def install(jobs: int):
    """Builds programs and libraries, and checks that they and the binding run."""
    root().mkdir(parents=True, exist_ok=True)
    if not python().exists():
        venv.create(root() / "venv", with_pip=True)
    bin_dir = python().parent
    run(bin_dir / "pip", "install", "-q", "cmake", "ninja", "numpy", "typing-extensions", "diskcache", "jinja2")
    fetch_source()
    path = {**os.environ, "PATH": f"{bin_dir}{os.pathsep}{os.environ['PATH']}"}
    options = [f"-D{name}={value}" for name, value in CMAKE_OPTIONS.items()]
    source, build = root() / "src" / "vendor" / "llama.cpp", root() / "build"
    run("cmake", "-S", source, "-B", build, "-G", "Ninja", *options, env=path, stdout=subprocess.DEVNULL)
    for target in PROGRAMS:
        run("cmake", "--build", build, "-j", jobs, "--target", target, env=path)
    verify()


def verify():
    """Programs start, and the binding sees the processor's instruction sets."""
    for name in PROGRAMS:
        # Not all know --version, but all print something for --help.
        subprocess.run([program(name), "--help"], capture_output=True, timeout=60)
    script = "import llama_cpp; print(llama_cpp.__version__, llama_cpp.llama_print_system_info().decode())"
    run(python(), "-c", script, env=environment())


def quantize(source: str, kind: str, target: str):
    """Re-quantizes a file, quantized ones as well: for speed comparisons, not for quality.

    Embedding and head become Q8_0, as in the files that people use for small models, whatever the layers become.
    """
    if pathlib.Path(target).exists():
        return
    staged = f"{target}.part"
    run(program("llama-quantize"), "--allow-requantize", "--token-embedding-type", "q8_0", "--output-tensor-type", "q8_0",
        source, staged, kind, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    shutil.move(staged, target)


def main():
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    verbs.add_parser("install").add_argument("--jobs", type=int, default=1)
    verbs.add_parser("where")
    requantize = verbs.add_parser("quantize")
    for name in ["source", "kind", "target"]:
        requantize.add_argument(name)
    args = parser.parse_args()
    if args.verb == "install":
        install(args.jobs)
    elif args.verb == "quantize":
        quantize(args.source, args.kind, args.target)
    else:
        places = {name: str(program(name)) for name in PROGRAMS}
        print(json.dumps({"installed": is_installed(), "python": str(python()), "root": str(root()), **places}))


if __name__ == "__main__":
    main()
