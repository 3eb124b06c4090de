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
import struct
import subprocess
import sys
import tempfile

HERE = pathlib.Path(__file__).resolve().parent
COMPILE = ["c++", "-std=c++20", "-O1", "-shared", "-fPIC", "-ffp-contract=off", "-fno-strict-aliasing", "-Wno-unknown-pragmas"]

#: What is planted: name, file, what stands there, what is put there instead, and which probe sees it.
DEFECTS = [
    ("no barrier before sums are added up", "gemv_integers.cu", "    __syncthreads();\n    if (threadIdx.x < TILE_ROWS * a.tokens)",
     "    if (threadIdx.x < TILE_ROWS * a.tokens)", "linear"),
    ("one segment too few", "gemv_integers.cu", "segment < many; segment++) total", "segment + 1 < many; segment++) total", "linear"),
    ("nibbles swapped", "weights.cuh", "a[2 + row] = F::UNIT == 16 ? word & 0xf0f0f0f0u", "a[2 + row] = F::UNIT == 16 ? word << 4 & 0xf0f0f0f0u", "linear"),
    ("a row too many is written", "integers.cuh", "if (row >= a.w.rows || token >= a.tokens)", "if (token >= a.tokens)", "linear"),
    ("the large number is forgotten", "integers.cuh", "__int_as_float(dots[g][row * 2 + token]) - WHOLE",
     "__int_as_float(dots[g][row * 2 + token])", "linear"),
    ("a barrier that only some threads reach", "gemv_integers.cu", "    __syncthreads();\n    if (threadIdx.x < TILE_ROWS * a.tokens)",
     "    if (threadIdx.x < 100) __syncthreads();\n    if (threadIdx.x < TILE_ROWS * a.tokens)", "linear"),
    ("a shuffle that some lanes do not take part in", "platform.cuh", "__shfl_xor_sync(ALL_LANES, v, apart);",
     "threadIdx.x == 3 ? 0 : __shfl_xor_sync(ALL_LANES, v, apart);", "norm"),
    ("a fold that stops early", "platform.cuh", "apart > 0; apart /= 2) v", "apart > 1; apart /= 2) v", "norm"),
    ("a value is taken from the wrong lane", "platform.cuh", "__shfl_xor_sync(ALL_LANES, v, apart)",
     "__shfl_xor_sync(ALL_LANES, v, apart / 2)", "norm"),
    ("a mask without the lane itself", "platform.cuh", "__shfl_xor_sync(ALL_LANES, v, apart)",
     "__shfl_xor_sync(1u, v, apart)", "norm"),
    ("activations are read before they have come", "gemv_integers.cu", "    cp_async_wait<0>();\n", "", "linear"),
    ("weights of the segment before", "gemv_integers.cu", "if (more || !last) load(step);", "if (more && !last) load(step);", "linear"),
    ("a stage is read before it has come", "gemm_integers.cu", "cp_async_wait<STAGES - 2>();", "cp_async_wait<STAGES - 1>();", "gemm"),
    ("nobody waits for a stage", "gemm_integers.cu", "    cp_async_wait<STAGES - 2>();\n", "", "gemm"),
    ("no barrier after a stage has come", "gemm_integers.cu", "    cp_async_wait<STAGES - 2>();\n    __syncthreads();\n",
     "    cp_async_wait<STAGES - 2>();\n", "gemm"),
    ("a stage is filled that others still read", "gemm_integers.cu", "    cp_async_wait<STAGES - 2>();\n    __syncthreads();\n",
     "    if (unit + STAGES - 1 < units) loader.copy(writing, (unit + STAGES - 1) / L::UNITS * S::K, "
     "(unit + STAGES - 1) % L::UNITS * L::STEPS);\n    cp_async_wait<STAGES - 2>();\n    __syncthreads();\n", "gemm"),
    ("a group that is never ended", "gemm_integers.cu", "    cp_async_commit();\n    move(writing);", "    move(writing);", "gemm"),
    ("fragments swapped", "gemm_integers.cu", "const uint32_t b[2] = {words.x, words.y};", "const uint32_t b[2] = {words.y, words.x};", "gemm"),
    ("rows of a tile swapped", "weights.cuh", "a[row] = F::UNIT == 16 ? word << 4", "a[1 - row] = F::UNIT == 16 ? word << 4", "gemm"),
    ("tokens of a lane swapped", "gemm_integers.cu", "set(factors, 1, uint2{both.z, both.w});", "set(factors, 1, uint2{both.x, both.y});", "gemm"),
    ("the end of a segment is forgotten", "gemm_integers.cu", "if (unit % L::UNITS == L::UNITS - 1) {", "if (unit + 1 == units) {", "gemm"),
    ("a sum that goes on in the next segment", "gemm_integers.cu", "{ sums.sum[m][n][i][j] = 0.0f; });", "{});", "gemm"),
    ("segments are joined before they are there", "gemm_integers.cu", "    __syncthreads();\n    if (warp.k == 0) {", "    if (warp.k == 0) {", "gemm"),
    ("sums are left where others still read", "gemm_integers.cu", "    __syncthreads();\n    if (warp.k > 0) for_each",
     "    if (warp.k > 0) for_each", "gemm"),
    ("a token too many is read", "gemm_integers.cu", "left = token < a.tokens && block < blocks", "left = block < blocks", "gemm"),
    ("a tile too many is read", "gemm_integers.cu", "segments_left = tile * TILE_ROWS < a.w.rows && k < per_row", "segments_left = k < per_row", "gemm"),
    ("a product that only some lanes take part in", "gemm_integers.cu", "add_step(codes[m], scales[m]", "if (warp.lane < 31) add_step(codes[m], scales[m]",
     "gemm"),
    ("keys and values are read before they have come", "attention.cu", "        cp_async_wait<S::SLOTS - 2>();\n", "", "attention"),
    ("an item too early", "attention.cu", "cp_async_wait<S::SLOTS - 2>();", "cp_async_wait<S::SLOTS - 1>();", "attention"),
    ("no barrier after an item has come", "attention.cu", "        __syncthreads();\n      } else {", "      } else {", "attention"),
    ("the highest score before all warps have theirs", "attention.cu", "    meet();\n", "", "attention"),
    ("a row that sees one too many", "attention.cu", "a.causal ? past : tile.span_end", "a.causal ? past + 1 : tile.span_end", "attention"),
    ("a window that begins too late", "attention.cu", "0 : past - a.window,", "0 : past - a.window + 1,", "attention"),
    ("values that nobody sees", "attention.cu", "const bool all = whole.begin <= begin && whole.end >= begin + KV_BLOCK;",
     "const bool all = true;", "attention"),
    ("sums that are not rescaled", "attention.cu", "if (factor == 1.0f) continue;", "continue;", "attention"),
    ("totals that are not rescaled", "attention.cu", "total = total * rescale[query(lane) * S::CHUNK + b] + totals",
     "total = total + totals", "attention"),
    ("the slot of another item", "attention.cu", "return slots + newest * SLOT_BYTES;", "return slots;", "attention"),
    ("a split that forgets those before it", "attention.cu", "fmaf(sums[r][i][e], new_factor, old * factor)",
     "fmaf(sums[r][i][e], new_factor, 0.0f)", "attention"),
    ("a row is normed before it is there", "norm.cu", "  __syncthreads();\n  if (threadIdx.x < WARP) {", "  if (threadIdx.x < WARP) {", "norm"),
    ("a row is multiplied before it is known by what", "norm.cu", "  __syncthreads();\n  const float inverse = row[a.cols];",
     "  const float inverse = row[a.cols];", "norm"),
    ("layers of a block are mixed up", "kv_copy.cu", "uint64_t(layer) * a.cache_blocks +", "uint64_t(layer) +", "pack"),
    ("a plane that is left out", "kv_copy.cu", "plane < 4; plane++", "plane < 3; plane++", "pack"),
]

Integers = type("Integers", (ctypes.Structure,), {"_fields_": [
    ("codes", ctypes.c_uint64), ("scales", ctypes.c_uint64), ("supers", ctypes.c_uint64), ("rows", ctypes.c_uint32),
    ("cols", ctypes.c_uint32)]})
Linear = type("Linear", (ctypes.Structure,), {"_fields_": [
    ("w", Integers), ("q", ctypes.c_uint64), ("factors", ctypes.c_uint64), ("out", ctypes.c_uint64)] +
    [(name, ctypes.c_uint32) for name in ["tokens", "planes", "out_cols", "first_row", "add", "tile"]]})
Rounded = type("Rounded", (ctypes.Structure,), {"_fields_": [
    ("q", ctypes.c_uint64), ("factors", ctypes.c_uint64), ("halves", ctypes.c_uint64)] +
    [(name, ctypes.c_uint32) for name in ["rows", "cols", "planes", "padding"]]})
Norm = type("Norm", (ctypes.Structure,), {"_fields_": [
    ("x", ctypes.c_uint64), ("weight", ctypes.c_uint64), ("out", ctypes.c_uint64), ("rounded", Rounded)] +
    [(name, ctypes.c_uint32) for name in ["rows", "cols", "heads", "first_head", "stride"]] + [("epsilon", ctypes.c_float)]})
Kv = type("Kv", (ctypes.Structure,), {"_fields_": [
    (name, ctypes.c_uint64) for name in ["keys", "values", "key_scales", "value_scales"]] +
    [(name, ctypes.c_uint32) for name in ["kind", "scale_block", "kv_heads", "dim"]]})
Attention = type("Attention", (ctypes.Structure,), {"_fields_": [
    (name, ctypes.c_uint64) for name in ["tiles", "blocks", "qkv"]] + [("kv", Kv)] +
    [(name, ctypes.c_uint64) for name in ["sinks", "parts", "out"]] + [("rounded", Rounded)] +
    [(name, ctypes.c_uint32) for name in ["query_heads", "heads_each", "window", "causal"]] +
    [("scale", ctypes.c_float), ("softcap", ctypes.c_float)]})
KvCopy = type("KvCopy", (ctypes.Structure,), {"_fields_": [
    ("planes", ctypes.c_uint64 * 4), ("packed", ctypes.c_uint64), ("blocks", ctypes.c_uint64), ("bytes", ctypes.c_uint32 * 4)] +
    [(name, ctypes.c_uint32) for name in ["layers", "cache_blocks", "count", "back"]]})


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


def product(library, order, kernel, shared, tile, cols, tokens):
    """40 rows in 4 bits by some rows of activations, in one block or one for each tile of rows."""
    rows, blocks, grid = 40, cols // 32, (3, 1, 1) if kernel.startswith("cuckoo_linear") else (1, 1, 1)
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
    return product(library, order, "cuckoo_linear_4_half_0_0", 12 << 10, 8, 2560, 3)


def gemm(library, order):
    """17 tokens, in two shapes of tiles."""
    return product(library, order, "cuckoo_gemm_4_half_0_0", 48 << 10, 0, 1280, 17) or \
        product(library, order, "cuckoo_gemm_wide_4_half_0_0", 48 << 10, 64, 1280, 17)


def norm(library, order):
    """Five rows of 64 columns, all zeros but one of 16: the mean of the squares is 4, whichever lane has that one."""
    rows, cols = 5, 64
    values = [16.0 if c == r * 13 else 0.0 for r in range(rows) for c in range(cols)]
    keep = [aligned(ctypes.c_float, values), aligned(ctypes.c_float, [3.0] * cols),
            aligned(ctypes.c_float, [-1.0] * (rows * cols))]
    place = [k[2] for k in keep]
    args = Norm(*place, Rounded(), rows, cols, 1, 0, cols, 0.0)
    fault = library.launch("cuckoo_norm_rows", (rows, 1, 1), 64, 4 * (cols + 1), args, order)
    if fault:
        return fault
    return "" if list(keep[2][0]) == [v * 1.5 for v in values] else "another result"


def attend(library, order, kernel, threads, shared, first, rows, window):
    """Rows of 4 query heads from position `first` on, over all splits in order. Scores are 0 or -200, so that weights are 1 or 0."""
    dim, heads, past = 48, 4, first + rows
    blocks = -(-past // 16)
    half = lambda v: struct.unpack("<H", struct.pack("<e", v))[0]
    score = lambda p: 0 if p % 3 == 0 and p >= 40 else -200
    # What comes after the last position may be anything.
    nan = float("nan")
    key = lambda p, d: nan if p >= past else (p * 5 + d * 3) % 9 - 4 if d + 1 < dim else \
        score(p) - sum((p * 5 + c * 3) % 9 - 4 for c in range(dim - 1))
    value = lambda p, d: nan if p >= past else (p * 7 + d * 3) % 31 - 15
    keys = [half(key(b * 16 + p, d)) for b in range(blocks) for d in range(dim) for p in range(16)]
    values = [half(value(b * 16 + p, d)) for b in range(blocks) for p in range(16) for d in range(dim)]
    tile = [0, rows, first, 0, past, max(first + 1 - window, 0) // 256 if window else 0, -(-past // 256), 2**32 - 1]
    keep = [aligned(ctypes.c_uint32, tile), aligned(ctypes.c_uint32, list(range(blocks))),
            aligned(ctypes.c_float, [1.0] * (rows * (heads + 2) * dim)), guarded(ctypes.c_uint16, keys),
            guarded(ctypes.c_uint16, values), aligned(ctypes.c_float, [-1.0] * (rows * heads * dim + 64))]
    place = [k[2] for k in keep]
    kv = Kv(place[3], place[4], 0, 0, 0, 16, 1, dim)
    args = Attention(*place[:3], kv, 0, 0, place[5], Rounded(), heads, heads, window, 1, 1.0, 0.0)
    fault = library.launch(kernel, (1, 1, 1), threads, shared, args, order)
    if fault:
        return fault
    rounded, expected = (lambda v: ctypes.c_float(v).value), []
    for p in range(first, past):
        sees = range(max(p + 1 - window, 0) if window else 0, p + 1)
        best = max(score(s) for s in sees)
        heavy = [s for s in sees if score(s) == best]
        sums = [rounded(sum(value(s, d) for s in heavy) * rounded(1 / len(heavy))) for d in range(dim)]
        expected.extend(sums * heads)
    return "" if list(keep[5][0]) == expected + [-1.0] * 64 else "another result"


def attention(library, order):
    """A chunk of a prompt across the end of a split, and a decode row with a window."""
    slot = 16896
    wide = 2 * slot + 4 * 64 * (128 + 4 * 19 + 3 + 4)
    narrow = 3 * slot + 4 * 8 * (48 + 16 * 19 + 3 + 16)
    return attend(library, order, "cuckoo_attention_wide_128_f16", 256, wide, 250, 16, 0) or \
        attend(library, order, "cuckoo_attention_narrow_f16", 128, narrow, 265, 1, 119) or \
        attend(library, order, "cuckoo_attention_narrow_f16", 128, narrow, 521, 2, 0)


def pack(library, order):
    """Two blocks of three, of two layers, in planes of different lengths."""
    layers, cache, blocks, sizes = 2, 3, [2, 0], [64, 48, 32, 16]
    byte = lambda plane, layer, block, i: (plane * 67 + layer * 29 + block * 13 + i * 3) % 256
    planes = [guarded(ctypes.c_uint8, [byte(n, layer, block, i) for layer in range(layers) for block in range(cache) for i in range(size)])
              for n, size in enumerate(sizes)]
    packed, table = aligned(ctypes.c_uint8, [0] * (layers * len(blocks) * sum(sizes) + 16)), aligned(ctypes.c_uint32, blocks)
    args = KvCopy((ctypes.c_uint64 * 4)(*[p[2] for p in planes]), packed[2], table[2], (ctypes.c_uint32 * 4)(*sizes), layers, cache,
                  len(blocks), 0)
    fault = library.launch("cuckoo_kv_pack", (layers, len(blocks), 1), 32, 0, args, order)
    if fault:
        return fault
    expected = [byte(n, layer, block, i) for block in blocks for layer in range(layers) for n, size in enumerate(sizes) for i in range(size)]
    return "" if list(packed[0]) == expected + [0] * 16 else "another result"


PROBES = {"linear": linear, "norm": norm, "gemm": gemm, "attention": attention, "pack": pack}


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
