#!/usr/bin/env python3
"""Plants defects in the kernels, one at a time, and checks that the emulator's tests see each of them.

A defect is a line changed in a copy of the sources. The copy is compiled as a library, and one kernel is run against what a few
lines of Python expect: another result, or a fault, is a defect that was seen. Without a defect everything agrees.
"""

import concurrent.futures
import ctypes
import functools
import mmap
import operator
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

HERE = pathlib.Path(__file__).resolve().parent
COMPILE = ["c++", "-std=c++20", "-O1", "-shared", "-fPIC", "-ffp-contract=off", "-fno-strict-aliasing", "-Wno-unknown-pragmas"]

#: What is planted: name, file, what stands there, what is put there instead, and which probe sees it.
DEFECTS = [
    ("no barrier before sums are added up", "gemv_integers.cu", "    __syncthreads();\n#pragma unroll\n    for (unsigned i = 0; i < S::TOTALS",
     "#pragma unroll\n    for (unsigned i = 0; i < S::TOTALS", "linear"),
    ("one segment too few", "gemv_integers.cu", "segment < many; segment++) totals", "segment + 1 < many; segment++) totals", "linear"),
    ("nibbles swapped", "weights.cuh", "a[2 + row] = F::UNIT == 16 ? word & 0xf0f0f0f0u", "a[2 + row] = F::UNIT == 16 ? word << 4 & 0xf0f0f0f0u", "linear"),
    ("a row too many is written", "integers.cuh", "if (row >= a.w.rows || token >= a.tokens)", "if (token >= a.tokens)", "linear"),
    ("the large number is forgotten", "integers.cuh", "__int_as_float(dots[g][row * 2 + token]) - WHOLE",
     "__int_as_float(dots[g][row * 2 + token])", "linear"),
    ("a barrier that only some threads reach", "gemv_integers.cu", "    cp_async_wait<0>();\n    __syncthreads();",
     "    cp_async_wait<0>();\n    if (threadIdx.x < 100) __syncthreads();", "linear"),
    ("a shuffle that some lanes do not take part in", "platform.cuh", "__shfl_xor_sync(ALL_LANES, v, apart);",
     "threadIdx.x == 3 ? 0 : __shfl_xor_sync(ALL_LANES, v, apart);", "norm"),
    ("a fold that stops early", "platform.cuh", "apart > 0; apart /= 2) v", "apart > 1; apart /= 2) v", "norm"),
    ("a value is taken from the wrong lane", "platform.cuh", "__shfl_xor_sync(ALL_LANES, v, apart)",
     "__shfl_xor_sync(ALL_LANES, v, apart / 2)", "norm"),
    ("a mask without the lane itself", "platform.cuh", "__shfl_xor_sync(ALL_LANES, v, apart)",
     "__shfl_xor_sync(1u, v, apart)", "norm"),
    ("activations are read before they have come", "gemv_integers.cu", "    cp_async_wait<0>();\n", "", "linear"),
    ("weights of the segment before", "gemv_integers.cu", "if (more || !last) load(step);", "if (more && !last) load(step);", "linear"),
    ("a segment too many is read", "gemv_integers.cu", "weights.segment(first + segment + S::WAYS < mine, meet)", "weights.segment(true, meet)",
     "linear"),
    ("activations are replaced that others still read", "gemv_integers.cu", "    if (first > 0) __syncthreads();\n", "", "some"),
    ("sums are left where activations still are", "gemv_integers.cu", "      if (!S::FEW) __syncthreads();", "      ;", "some"),
    ("a tile too many is read", "gemv_integers.cu", "tile * TILE_ROWS < a.w.rows ? per_row : 0", "per_row", "some"),
    ("tokens of a lane swapped", "gemv_integers.cu", "row_of(2 * t + i) * chunk", "row_of(2 * t + EACH - 1 - i) * chunk", "some"),
    ("halves of a block swapped", "integers.cuh", "mma_s8_k32(dots[0], codes, x, zeros);", "mma_s8_k32(dots[0], codes, {x[1], x[0]}, zeros);", "some"),
    ("a product that only some lanes take part in", "gemv_integers.cu", "            add_step(codes, scales",
     "            if (lane < 31) add_step(codes, scales", "some"),
    ("a stage is read before it has come", "gemm_integers.cu", "cp_async_wait<STAGES - 2>();", "cp_async_wait<STAGES - 1>();", "wide"),
    ("nobody waits for a stage", "gemm_integers.cu", "    cp_async_wait<STAGES - 2>();\n", "", "wide"),
    ("no barrier after a stage has come", "gemm_integers.cu", "    cp_async_wait<STAGES - 2>();\n    __syncthreads();\n",
     "    cp_async_wait<STAGES - 2>();\n", "wide"),
    ("a stage is filled that others still read", "gemm_integers.cu", "    cp_async_wait<STAGES - 2>();\n    __syncthreads();\n",
     "    if (unit + STAGES - 1 < units) loader.copy(writing, unit + STAGES - 1);\n    cp_async_wait<STAGES - 2>();\n    __syncthreads();\n",
     "wide"),
    ("a group that is never ended", "gemm_integers.cu", "    cp_async_commit();\n    move(writing);", "    move(writing);", "wide"),
    ("fragments swapped", "gemm_integers.cu", "const uint32_t b[2] = {words.x, words.y};", "const uint32_t b[2] = {words.y, words.x};", "wide"),
    ("rows of a tile swapped", "weights.cuh", "a[row] = F::UNIT == 16 ? word << 4", "a[1 - row] = F::UNIT == 16 ? word << 4", "wide"),
    ("a token's scale for two", "gemm_integers.cu", "set(factors, 1, uint2{both.z, both.w});", "set(factors, 1, uint2{both.x, both.y});", "wide"),
    ("the end of a segment is forgotten", "gemm_integers.cu", "if (unit % L::UNITS == L::UNITS - 1) {", "if (unit + 1 == units) {", "wide"),
    ("a sum that goes on in the next segment", "gemm_integers.cu", "        sums.sum[m][n][i][j] = 0.0f;\n", "", "wide"),
    ("a token too many is read", "gemm_integers.cu", "left = token < a.tokens && step < blocks", "left = step < blocks", "wide"),
    ("a tile too many is copied", "gemm_integers.cu", "tile_inside = tile * TILE_ROWS < a.w.rows;", "tile_inside = true;", "wide"),
]

Integers = type("Integers", (ctypes.Structure,), {"_fields_": [
    ("codes", ctypes.c_uint64), ("scales", ctypes.c_uint64), ("supers", ctypes.c_uint64), ("rows", ctypes.c_uint32),
    ("cols", ctypes.c_uint32)]})
Linear = type("Linear", (ctypes.Structure,), {"_fields_": [
    ("w", Integers), ("q", ctypes.c_uint64), ("factors", ctypes.c_uint64), ("out", ctypes.c_uint64)] +
    [(name, ctypes.c_uint32) for name in ["tokens", "planes", "out_cols", "first_row", "add", "tile"]]})
Norm = type("Norm", (ctypes.Structure,), {"_fields_": [
    ("x", ctypes.c_uint64), ("weight", ctypes.c_uint64), ("out", ctypes.c_uint64)] +
    [(name, ctypes.c_uint32) for name in ["rows", "cols", "heads", "first_head", "stride"]] + [("epsilon", ctypes.c_float)]})


class Library:
    """The kernels of a folder."""

    def __init__(self, folder):
        target = folder / "kernels.so"
        subprocess.run([*COMPILE, "-o", target, folder / "emulator" / "registry.cpp"], check=True, capture_output=True)
        self.launch_kernel = ctypes.CDLL(str(target)).cuckoo_emulator_launch

    def launch(self, name, grid, threads, shared, args, order):
        """What a launch complains of, or nothing."""
        message = ctypes.create_string_buffer(512)
        status = self.launch_kernel(name.encode(), (ctypes.c_uint * 3)(*grid), threads, ctypes.c_size_t(shared), ctypes.byref(args),
                                    ctypes.c_size_t(ctypes.sizeof(args)), order, 1, message, ctypes.c_size_t(512))
        return message.value.decode() if status else ""


def aligned(kind, values):
    """An array whose address is a multiple of 16, as kernels want it."""
    size = ctypes.sizeof(kind) * len(values)
    memory = ctypes.create_string_buffer(size + 16)
    begin = (ctypes.addressof(memory) + 15) // 16 * 16
    array = (kind * len(values)).from_address(begin)
    array[:] = values
    return array, memory, begin


def guarded(kind, values):
    """An array whose end is the end of what may be read. Its bytes are a multiple of 16."""
    size, page = ctypes.sizeof(kind) * len(values), mmap.PAGESIZE
    room = -(-size // page) * page
    memory = mmap.mmap(-1, room + page)
    begin = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    if ctypes.CDLL(None, use_errno=True).mprotect(ctypes.c_void_p(begin + room), ctypes.c_size_t(page), 0) != 0:
        raise OSError(ctypes.get_errno(), "mprotect")
    begin += room - size
    array = (kind * len(values)).from_address(begin)
    array[:] = values
    return array, memory, begin


def scale(row, block):
    """Scales differ by powers of two that the 24 bits of a sum do not hold at once, so that another order has another result."""
    return 2.0 ** ((block * 5 + row) % 14 - 7)


def factor(token, block):
    """Likewise of activations."""
    return 2.0 ** ((block * 3 + token) % 16 - 8)


@functools.lru_cache(None)
def operands(rows, cols, tokens):
    """Codes, activations, and what the contract makes of them."""
    codes = [[(r * 7 + c * 3 + r * c + c // 16 * 5) % 16 - 8 for c in range(cols)] for r in range(rows)]
    x = [[(c * 5 + t * 11 + c * t) % 13 - 6 for c in range(cols)] for t in range(tokens)]
    # f32 by way of f64, which holds each of these products and sums exactly before it is rounded.
    rounded, expected = (lambda v: ctypes.c_float(v).value), []
    for t in range(tokens):
        for r in range(rows):
            total = 0.0
            for segment in range(0, cols // 32, 8):
                part = 0.0
                for b in range(segment, segment + 8):
                    dot = sum(map(operator.mul, codes[r][b * 32:b * 32 + 32], x[t][b * 32:b * 32 + 32]))
                    part = rounded(dot * scale(r, b) * factor(t, b) + part)
                total = rounded(total + part)
            expected.append(total)
    return codes, x, expected


def product(library, order, kernel, grid, shared, tile, cols, tokens):
    """40 rows in 4 bits by some rows of activations. Nothing may be read beyond their ends."""
    rows, blocks = 40, cols // 32
    values, x, expected = operands(rows, cols, tokens)
    codes, scales = [0] * (3 * blocks * 256), [0] * (3 * blocks * 16)
    for r in range(rows):
        for block in range(blocks):
            step, second = r // 16 * blocks + block, r % 16 // 8
            scales[step * 16 + r % 8 * 2 + second] = (block * 5 + r) % 14 + 8 << 10  # the half's exponent
            for c in range(16):
                low, high = values[r][block * 32 + c] & 15, values[r][block * 32 + 16 + c] & 15
                codes[step * 256 + (r % 8 * 4 + c // 4) * 8 + second * 4 + c % 4] = low | high << 4
    q = [row[b * 32 + i // 4 % 2 * 16 + i // 8 * 4 + i % 4] for row in x for b in range(blocks) for i in range(32)]
    factors = [v for t in range(tokens) for b in range(blocks) for v in (factor(t, b), float("nan"))]
    keep = [guarded(ctypes.c_uint8, codes), guarded(ctypes.c_uint16, scales), guarded(ctypes.c_int8, q),
            guarded(ctypes.c_float, factors), aligned(ctypes.c_float, [-1.0] * (tokens * rows + 64))]
    place = [k[2] for k in keep]
    args = Linear(Integers(place[0], place[1], 0, rows, cols), place[2], place[3], place[4], tokens, 1, rows, 0, 0, tile)
    fault = library.launch(kernel, grid, 256, shared, args, order)
    if fault:
        return fault
    return "" if list(keep[4][0]) == expected + [-1.0] * 64 else "another result"


def linear(library, order):
    """Three tokens, in two chunks of activations."""
    return product(library, order, "cuckoo_linear_4_half_0_0", (1, 3, 1), 12 << 10, 8, 2560, 3)


def some(library, order):
    """17 tokens, 16 or 32 in a block."""
    return product(library, order, "cuckoo_gemm_4_half_0_0", (2, 2, 1), 48 << 10, 16, 1280, 17) or \
        product(library, order, "cuckoo_gemm_4_half_0_0", (1, 1, 1), 48 << 10, 32, 1280, 17)


def wide(library, order):
    """17 tokens, 64 or 128 in a block."""
    return product(library, order, "cuckoo_gemm_wide_4_half_0_0", (1, 1, 1), 48 << 10, 64, 1280, 17) or \
        product(library, order, "cuckoo_gemm_wide_4_half_0_0", (1, 1, 1), 48 << 10, 128, 1280, 17)


def norm(library, order):
    """Five rows of 64 columns, all zeros but one of 16: the mean of the squares is 4, whichever lane has that one."""
    rows, cols = 5, 64
    values = [16.0 if c == r * 13 else 0.0 for r in range(rows) for c in range(cols)]
    keep = [aligned(ctypes.c_float, values), aligned(ctypes.c_float, [3.0] * cols),
            aligned(ctypes.c_float, [-1.0] * (rows * cols))]
    place = [k[2] for k in keep]
    args = Norm(*place, rows, cols, 1, 0, cols, 0.0)
    fault = library.launch("cuckoo_norm_rows", (1, 1, 1), 256, 0, args, order)
    if fault:
        return fault
    return "" if list(keep[2][0]) == [v * 1.5 for v in values] else "another result"


PROBES = {"linear": linear, "norm": norm, "some": some, "wide": wide}


def seen(defect, folder):
    """What the probe says of a copy with a defect, in any of three orders."""
    name, file, old, new, probe = defect
    copy = folder / name.replace(" ", "-")
    shutil.copytree(HERE.parent, copy, ignore=shutil.ignore_patterns("__pycache__"))
    source = (copy / file).read_text()
    if source.count(old) != 1:
        return f"BROKEN: {file} has {source.count(old)} times {old!r}"
    (copy / file).write_text(source.replace(old, new))
    # A process of its own: what a defect writes where it should not is nobody else's.
    script = f"import sys; sys.path.insert(0, {str(HERE)!r}); import mutants, pathlib\n" \
             f"library = mutants.Library(pathlib.Path({str(copy)!r}))\n" \
             f"print(next((w for w in (mutants.PROBES[{probe!r}](library, o) for o in [0, 1, 7]) if w), ''))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300)
    return done.stdout.strip() if done.returncode == 0 else f"the process ended with {done.returncode}"


def main():
    """All of them."""
    failed = 0
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        shutil.copytree(HERE.parent, folder / "sound", ignore=shutil.ignore_patterns("__pycache__"))
        sound = Library(folder / "sound")
        for probe, run in PROBES.items():
            for order in [0, 1, 7]:
                why = run(sound, order)
                if why:
                    print(f"without a defect, {probe} in order {order}: {why}")
                    failed += 1
        with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
            for defect, why in zip(DEFECTS, pool.map(lambda d: seen(d, folder), DEFECTS)):
                missed = not why or why.startswith("BROKEN")
                failed += missed
                print(f"{'MISSED' if missed else 'seen  '} {defect[0]}: {why}")
    print(f"{len(DEFECTS)} defects, {failed} failures")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
