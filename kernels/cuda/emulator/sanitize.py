#!/usr/bin/env python3
"""Runs the probes of probes.py on kernels that the address and undefined-behaviour sanitizers watch: what `compute-sanitizer
memcheck` does on a GPU. It says the line that reads or writes what is not its own, is misaligned, or shifts and overflows where C++
does not allow it. Then defects of that kind are planted, to show that they are reported.
"""

import concurrent.futures
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

import probes

FLAGS = ["-O0", "-g1", "-fsanitize=address,undefined", "-fno-sanitize=null,vptr,object-size", "-fno-sanitize-recover=all",
         "-fno-omit-frame-pointer", "-DCUCKOO_PORTABLE_FIBERS"]

#: As in mutants.py, and what the report must say. All are planted in one copy: each is another probe's.
DEFECTS = [
    ("shared memory after its end", "gemm_floats.cu", "of_warps[threadIdx.x / WARP] = largest",
     "of_warps[threadIdx.x / WARP + 1] = largest", "narrow_f16", "use-after-poison"),
    ("columns after the last row are read", "gemm_floats.cu", "const bool inside = col + piece * 8 < from.cols;", "const bool inside = true;",
     "gemm_few", "READ of size"),
    ("rows after the last are written", "sm90/gemm.cu", "    if (token >= a.tokens) break;\n", "", "gemm_hopper", "WRITE of size"),
    ("a misaligned address", "gemm_floats.cu", "at<uint16_t>(a.out) + i, 1.0f)", "at<uint16_t>(a.out) + i + 1, 1.0f)", "narrow_bf16", "misaligned address"),
]

RUN = """
import sys; sys.path.insert(0, {here!r})
import probes
probes.REST = 0
library = probes.Library({library!r})
for order in [0, 1, 7]:
    print(probes.PROBES[{probe!r}](library, order) or "sound", flush=True)
"""


def planted(folder):
    """Plants all defects in a copy of the sources."""
    for name, file, old, new, *_ in DEFECTS:
        source = (folder / file).read_text()
        if source.count(old) != 1:
            raise SystemExit(f"{name}: {file} has {source.count(old)} times {old!r}")
        (folder / file).write_text(source.replace(old, new))


def watched(library, probe):
    """Whether all is sound, and what was said. A library that is watched needs the sanitizers' own before all others."""
    runtime = [subprocess.run(["c++", f"-print-file-name={name}"], capture_output=True, text=True, check=True).stdout.strip()
               for name in ["libasan.so", "libubsan.so"]]
    env = dict(os.environ, LD_PRELOAD=":".join(runtime), PYTHONMALLOC="malloc", ASAN_OPTIONS="detect_leaks=0")
    script = RUN.format(here=str(probes.HERE), library=str(library), probe=probe)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=env, timeout=300)
    results = done.stdout.splitlines()
    sound = done.returncode == 0 and results == ["sound"] * 3
    return sound, done.stdout + done.stderr


def main():
    """The sound kernels, then each defect."""
    failed = 0
    with tempfile.TemporaryDirectory() as name, concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        folders = [pathlib.Path(name) / kind for kind in ["sound", "planted"]]
        for folder in folders:
            shutil.copytree(probes.HERE.parent, folder, ignore=shutil.ignore_patterns("__pycache__"))
        planted(folders[1])
        libraries = list(pool.map(lambda folder: probes.Library.compile(folder, *FLAGS), folders))
        jobs = [pool.submit(watched, libraries[0], probe) for probe in probes.PROBES]
        jobs += [pool.submit(watched, libraries[1], defect[4]) for defect in DEFECTS]
        for probe, job in zip(probes.PROBES, jobs):
            sound, said = job.result()
            failed += not sound
            print(f"{'sound   ' if sound else 'BROKEN  '} {probe}{'' if sound else chr(10) + said}")
        for defect, job in zip(DEFECTS, jobs[len(probes.PROBES):]):
            said = job.result()[1]
            failed += defect[5] not in said
            line = next((line.strip() for line in said.splitlines() if defect[5] in line), said)
            print(f"{'reported' if defect[5] in said else 'MISSED  '} {defect[0]}: {line}")
    print(f"{len(probes.PROBES)} probes, {len(DEFECTS)} defects, {failed} failures")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
