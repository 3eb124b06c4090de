#!/usr/bin/env python3
"""The CUDA compiler from PyPI, at pinned versions: no driver, no GPU and no root needed.

    toolchain.py install      fetch what is missing, print where nvcc is
    toolchain.py libclang     print the folder of libclang, which bindgen needs
    toolchain.py check        compile every kernel for every architecture, and hold it against gates.json

`check` needs nothing of Rust. It fails where a kernel spills registers, uses more than its gate allows, lacks an instruction that
it is written for, or where PTX of the oldest architecture is not accepted for a newer one.
"""

import argparse
import concurrent.futures
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile

PACKAGES = {
    "nvidia-cuda-nvcc": "13.0.88", "nvidia-nvvm": "13.0.88", "nvidia-cuda-crt": "13.0.88",
    "nvidia-cuda-runtime": "13.0.96", "nvidia-cuda-cccl": "13.0.85",
    "nvidia-cuda-cuobjdump": "13.5.37", "nvidia-cuda-nvdisasm": "13.5.37", "libclang": "18.1.1",
}
HERE = pathlib.Path(__file__).resolve().parent
#: Compiled to machine code; 90a is Hopper with what later architectures do not have.
ARCHITECTURES = ["80", "86", "89", "90a", "100", "120"]
#: What later architectures get is PTX of the oldest.
PTX = "80"
#: ptxas must accept that PTX for each of these.
LATER = ["80", "86", "89", "90", "100", "103", "110", "120", "121"]
SOURCES = sorted(HERE.glob("*.cu"))
#: For one architecture alone, whose instructions no other has.
HOPPER_SOURCES, HOPPER = sorted((HERE / "sm90").glob("*.cu")), "90a"
#: As the numerics contract wants it: products and sums are contracted where the source says fma, nowhere else. `build.rs` reads
#: the same file.
FLAGS = (HERE / "nvcc.options").read_text().split()


def root() -> pathlib.Path:
    """Where the compiler is kept."""
    cache = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    return pathlib.Path(cache) / "cuckoo-cuda"


def home() -> pathlib.Path:
    """What CUDA_HOME is elsewhere."""
    return root() / "nvidia" / "cu13"


def install() -> pathlib.Path:
    """The compiler, fetched if need be."""
    stamp = root() / "versions.json"
    if not stamp.exists() or json.loads(stamp.read_text()) != PACKAGES:
        root().mkdir(parents=True, exist_ok=True)
        wanted = [f"{name}=={version}" for name, version in PACKAGES.items()]
        subprocess.run([sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check", "--no-deps", "--upgrade",
                        "--root-user-action", "ignore", "--target", str(root()), *wanted], check=True)
        for folder in [home() / "bin", home() / "nvvm" / "bin"]:
            for program in folder.iterdir():
                if program.is_file():
                    program.chmod(program.stat().st_mode | 0o111)
        stamp.write_text(json.dumps(PACKAGES))
    return home() / "bin" / "nvcc"


def run(*command) -> str:
    """A program's output; its errors end this one."""
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(map(str, command))}\n{done.stdout}{done.stderr}")
    return done.stdout + done.stderr


def compiled(source: pathlib.Path, arch: str, out: pathlib.Path) -> dict:
    """Registers, spills and instructions of each kernel of a file on an architecture."""
    cubin = out / f"{source.parent.name}.{source.stem}.{arch}.cubin"
    said = run(install(), *FLAGS, "-cubin", f"-arch=sm_{arch}", "-Xptxas", "-v", "-o", cubin, source)
    if "serialized" in said:
        raise SystemExit(f"{source}: products of warpgroups wait for one another\n{said}")
    kernels = {}
    pattern = r"Compiling entry function '(\w+)'.*?(\d+) bytes spill stores, (\d+) bytes spill loads.*?Used (\d+) registers"
    for name, stores, loads, registers in re.findall(pattern, said, re.S):
        kernels[name] = {"registers": int(registers), "spills": int(stores) + int(loads), "instructions": {}}
    sass = run(home() / "bin" / "cuobjdump", "-sass", cubin)
    for part in sass.split("Function : ")[1:]:
        name, _, code = part.partition("\n")
        counts = kernels[name.strip()]["instructions"]
        for instruction in re.findall(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)", code):
            counts[instruction.split(".")[0]] = counts.get(instruction.split(".")[0], 0) + 1
    return kernels


def ptx_accepted(source: pathlib.Path, out: pathlib.Path):
    """nvcc embeds PTX without looking at it: the first to refuse it would be a user's driver."""
    ptx = out / f"{source.stem}.ptx"
    run(install(), *FLAGS, "-ptx", f"-arch=compute_{PTX}", "-o", ptx, source)
    for arch in LATER:
        run(home() / "bin" / "ptxas", f"-arch=sm_{arch}", "-o", out / f"{source.stem}.{arch}.o", ptx)


def broken(gate: dict, name: str, arch: str, found: dict):
    """What a kernel does that its gate forbids."""
    if found["spills"]:
        yield f"{name} on {arch} spills {found['spills']} bytes"
    if found["registers"] > gate["registers"]:
        yield f"{name} on {arch} uses {found['registers']} registers, its gate is {gate['registers']}"
    for instruction in gate.get("required", []):
        if not found["instructions"].get(instruction):
            yield f"{name} on {arch} has no {instruction}"
    for instruction in gate.get("forbidden", []):
        if found["instructions"].get(instruction):
            yield f"{name} on {arch} has {instruction}"


def check() -> int:
    """Every kernel on every architecture."""
    gates, faults, seen = json.loads((HERE / "gates.json").read_text()), [], set()
    install()
    with tempfile.TemporaryDirectory() as folder, concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        out = pathlib.Path(folder)
        wanted = [(s, a) for s in SOURCES for a in ARCHITECTURES] + [(s, HOPPER) for s in HOPPER_SOURCES]
        jobs = {(s, a): pool.submit(compiled, s, a, out) for s, a in wanted}
        accepted = [pool.submit(ptx_accepted, source, out) for source in SOURCES]
        for (_, arch), job in jobs.items():
            for name, found in job.result().items():
                seen.add(name)
                gate = next((g for pattern, g in gates.items() if re.fullmatch(pattern, name)), None)
                if gate is None:
                    faults.append(f"{name} has no gate in gates.json")
                else:
                    faults.extend(broken(gate, name, arch, found))
        for job in accepted:
            job.result()
    for fault in sorted(set(faults)):
        print(fault)
    print(f"{len(seen)} kernels, {len(ARCHITECTURES)} architectures, {len(faults)} faults")
    return 1 if faults else 0


def main():
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("verb", choices=["install", "libclang", "check"])
    verb = parser.parse_args().verb
    if verb == "check":
        sys.exit(check())
    compiler = install()
    print(compiler if verb == "install" else root() / "clang" / "native")


if __name__ == "__main__":
    main()
