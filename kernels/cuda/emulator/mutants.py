#!/usr/bin/env python3
"""Plants defects in the kernels, one at a time, and checks that the emulator's tests see each of them.

A defect is a line changed in a copy of the sources. The copy is compiled as a library, and one kernel is run against what a few
lines of Python expect: another result, or a fault, is a defect that was seen. Without a defect everything agrees.
"""

import concurrent.futures
import ctypes
import functools
import itertools
import math
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
COMPILE = ["c++", "-std=c++20", "-O0", "-shared", "-fPIC", "-ffp-contract=off", "-fno-strict-aliasing", "-Wno-unknown-pragmas", "-Wno-psabi"]

#: Values after a result that nobody may write.
REST = 64

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
    # Products of the fast profile.
    ("no barrier before a row's largest is known", "gemm_floats.cu", "  __syncthreads();\n  for (unsigned i = 0; i < blockDim.x / WARP",
     "  for (unsigned i = 0; i < blockDim.x / WARP", "narrow_f16"),
    ("a copy that nobody waits for", "gemm_floats.cu", "    cp_async_wait<S::STAGES - 2>();\n", "", "gemm_few"),
    ("a copy that is waited for a step too late", "gemm_floats.cu", "cp_async_wait<S::STAGES - 2>", "cp_async_wait<S::STAGES - 1>", "gemm_few"),
    ("no barrier before what others have copied", "gemm_floats.cu", "    __syncthreads();  // this step", "    // this step", "gemm_few"),
    ("a stage filled while it is read", "gemm_floats.cu", "stage == 0 ? S::STAGES - 1 : stage - 1", "stage", "gemm_few"),
    ("halves of a fragment swapped", "gemm_floats.cu", "{x[j][half * 2], x[j][half * 2 + 1]}", "{x[j][half * 2 + 1], x[j][half * 2]}",
     "gemm_many"),
    ("columns of the next row", "gemm_floats.cu", "const bool inside = col + piece * 8 < from.cols;", "const bool inside = true;", "gemm_few"),
    ("a row of results too many", "gemm_floats.cuh", "if (token >= a.tokens || row >= a.w.rows) return;", "if (token >= a.tokens) return;",
     "gemm_many"),
    ("no barrier after others are made", "sm90/gemm.cu", "  __syncthreads();\n  // Of 65536", "  // Of 65536", "gemm_hopper"),
    ("the wrong phase of a full stage", "sm90/gemm.cu", "ring.stage], ring.round % 2);", "ring.stage], (ring.round + 1) % 2);", "gemm_hopper"),
    ("the wrong phase of an empty stage", "sm90/gemm.cu", "ring.stage], (ring.round + 1) % 2);", "ring.stage], ring.round % 2);", "gemm_hopper"),
    ("a stage filled without asking", "sm90/gemm.cu", "      mbarrier_wait(&ring.empty", "      if (false) mbarrier_wait(&ring.empty", "gemm_hopper"),
    ("a barrier that is not signalled", "sm90/gemm.cu", "if (read != nullptr && speaks) mbarrier_arrive(read);", "", "gemm_hopper"),
    ("a barrier that all lanes signal", "sm90/gemm.cu", "speaks = threadIdx.x % WARP == 0", "speaks = true", "gemm_hopper"),
    ("products that nobody waits for", "sm90/gemm.cu", "    wgmma_wait<0>();\n", "", "gemm_hopper"),
    ("a stage let go of before its products", "sm90/gemm.cu", "wgmma_wait<1>();", "wgmma_wait<2>();", "gemm_hopper"),
    ("products without a fence", "sm90/gemm.cu", "      wgmma_fence();\n", "", "gemm_hopper"),
    ("a descriptor that goes on too slowly", "sm90/gemm.cu", "x + k * K * 2 / 16,", "x + k * K / 16,", "gemm_hopper"),
    ("descriptors that differ within a warpgroup", "sm90/gemm.cu", "own = (threadIdx.x / WARPGROUP - 1)", "own = (threadIdx.x / WARP % 2)", "gemm_hopper"),
    ("bytes too few are announced", "sm90/gemm.cu", "ring.stage], Ring<ROWS>::BYTES)", "ring.stage], Ring<ROWS>::X_BYTES)", "gemm_hopper"),
    ("bytes too many are announced", "sm90/gemm.cu", "ring.stage], Ring<ROWS>::BYTES)", "ring.stage], Ring<ROWS>::BYTES + 16)", "gemm_hopper"),
    ("a tile out of place", "sm90/gemm.cu", "return tiles + stage * BYTES;", "return tiles + stage * (BYTES + 512);", "gemm_hopper"),

    ("the highest id among equals", "select.cuh", "<< 32 | ~i : ~0ull", "<< 32 | i : ~0ull", "sample"),
    ("no barrier between warps", "select.cuh", "s->slots[threadIdx.x / WARP] = v;\n  __syncthreads();",
     "s->slots[threadIdx.x / WARP] = v;", "sample"),
    ("a key of Philox in the wrong place", "sampling.cu", "high_b ^ counter[1] ^ key[0]", "high_b ^ counter[1] ^ key[1]", "sample"),
    ("words of Philox swapped", "sampling.cu", "return {{counter[0], counter[1],", "return {{counter[1], counter[0],", "sample"),
    ("a border that forgets what is before it", "select.cuh", "s->left = goal - before;", "s->left = goal;", "sample"),
    ("bins that are not cleared", "select.cuh", "s->bins[i] = 0;\n  __syncthreads();", "s->bins[i] = 0;", "sample"),
    ("the second of a heat is forgotten", "sampling.cu", "second >= to_beat ? ~0u : leader", "leader", "sample"),
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

Draw = type("Draw", (ctypes.Structure,), {"_fields_": [
    ("logits", ctypes.c_uint64), ("temperature", ctypes.c_double), ("top_p", ctypes.c_double), ("xtc", ctypes.c_double),
    ("seed", ctypes.c_uint32 * 2), ("position", ctypes.c_uint32 * 2), ("top_k", ctypes.c_uint32), ("to", ctypes.c_uint32),
    ("least", ctypes.c_float), ("sharpness", ctypes.c_float), ("near", ctypes.c_float), ("padding", ctypes.c_uint32)]})
Sample = type("Sample", (ctypes.Structure,), {"_fields_": [
    ("draws", ctypes.c_uint64), ("tokens", ctypes.c_uint64), ("cols", ctypes.c_uint32), ("padding", ctypes.c_uint32)]})


Narrow = type("Narrow", (ctypes.Structure,), {"_fields_": [
    ("x", ctypes.c_uint64), ("out", ctypes.c_uint64), ("scales", ctypes.c_uint64), ("rows", ctypes.c_uint32), ("cols", ctypes.c_uint32)]})
Gemm = type("Gemm", (ctypes.Structure,), {"_fields_": [
    ("w", ctypes.c_uint64), ("rows", ctypes.c_uint32), ("cols", ctypes.c_uint32), ("x", ctypes.c_uint64), ("scales", ctypes.c_uint64),
    ("out", ctypes.c_uint64)] +
    [(name, ctypes.c_uint32) for name in ["tokens", "out_cols", "first_row", "add"]]})
TensorMap = ctypes.c_uint64 * 16
MappedGemm = type("MappedGemm", (ctypes.Structure,), {"_fields_": [
    ("x_map", TensorMap), ("w_map", TensorMap), ("gemm", Gemm), ("padding", ctypes.c_uint64)]})


class Library:
    """The kernels of a folder."""

    def __init__(self, path):
        self.launch_kernel = ctypes.CDLL(str(path)).cuckoo_emulator_launch

    @staticmethod
    def compile(folder, *flags):
        """Where the library of a folder's kernels is."""
        target = folder / "kernels.so"
        subprocess.run([*COMPILE, *flags, "-o", target, folder / "emulator" / "registry.cpp"], check=True, capture_output=True)
        return target

    def launch(self, name, grid, threads, shared, args, order):
        """What a launch complains of, or nothing."""
        message = ctypes.create_string_buffer(512)
        status = self.launch_kernel(name.encode(), (ctypes.c_uint * 3)(*grid), threads, ctypes.c_size_t(shared), ctypes.byref(args),
                                    ctypes.c_size_t(ctypes.sizeof(args)), order, 1, message, ctypes.c_size_t(512))
        return message.value.decode() if status else ""


def aligned(kind, values):
    """An array whose address is a multiple of 16, as kernels want it."""
    size = ctypes.sizeof(kind) * len(values)
    memory = ctypes.create_string_buffer(size)
    if ctypes.addressof(memory) % 16:
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
            guarded(ctypes.c_float, factors), aligned(ctypes.c_float, [-1.0] * (tokens * rows + REST))]
    place = [k[2] for k in keep]
    args = Linear(Integers(place[0], place[1], 0, rows, cols), place[2], place[3], place[4], tokens, 1, rows, 0, 0, tile)
    fault = library.launch(kernel, grid, 256, shared, args, order)
    if fault:
        return fault
    return "" if list(keep[4][0]) == expected + [-1.0] * REST else "another result"


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
    args = Norm(*place, Rounded(), rows, cols, 1, 0, cols, 0.0)
    fault = library.launch("cuckoo_norm_rows", (rows, 1, 1), 64, 4 * (cols + 1), args, order)
    if fault:
        return fault
    return "" if list(keep[2][0]) == [v * 1.5 for v in values] else "another result"


def narrow_bf16(library, order):
    """Values that bfloat16 has, and one halfway between two."""
    count = 8 * (3 * 256 - 1)
    values = [float(i % 256) for i in range(count)]
    keep = [aligned(ctypes.c_float, [257.0, *values[1:]]), aligned(ctypes.c_uint16, [0xffff] * (count + REST))]
    fault = library.launch("cuckoo_narrow_bf16", (3, 1, 1), 256, 0, Narrow(keep[0][2], keep[1][2], 0, 1, count), order)
    if fault:
        return fault
    expected = [struct.unpack("<I", struct.pack("<f", v))[0] >> 16 for v in [256.0, *values[1:]]]
    return "" if list(keep[1][0]) == expected + [0xffff] * REST else "another result"


def narrow_f16(library, order):
    """Two rows of halves, of which one is too large for them by far."""
    cols = 8 * (3 * 256 - 1)
    values = [float(i % 256) for i in range(cols)]
    keep = [aligned(ctypes.c_float, values + [1024 * v for v in values]), aligned(ctypes.c_uint16, [0xffff] * (2 * cols + REST)),
            aligned(ctypes.c_float, [0.0] * 2)]
    place = [k[2] for k in keep]
    fault = library.launch("cuckoo_narrow_f16", (2, 1, 1), 256, 8 * 4, Narrow(*place, 2, cols), order)
    if fault:
        return fault
    expected = [struct.unpack("<H", struct.pack("<e", v))[0] for v in values + [128 * v for v in values]]
    return "" if list(keep[1][0]) == expected + [0xffff] * REST and list(keep[2][0]) == [1.0, 8.0] else "another result"


def gemm_floats(rows, tokens, launch):
    """Weights and activations in bfloat16: small integers, so every order gives the same. Seven and a half steps of 64 columns."""
    cols = 480
    bf16 = {v: struct.unpack("<I", struct.pack("<f", v))[0] >> 16 for v in range(-3, 4)}
    w = [[(r * 7 + c * 3 + r * c) % 5 - 2 for c in range(cols)] for r in range(rows)]
    x = [[(c * 5 + t * 11 + t * c) % 7 - 3 for c in range(cols)] for t in range(tokens)]
    keep = [aligned(ctypes.c_uint16, [bf16[v] for row in m for v in row]) for m in [w, x]]
    keep.append(aligned(ctypes.c_float, [-1.0] * (tokens * rows + REST)))
    place = [k[2] for k in keep]
    fault = launch(Gemm(place[0], rows, cols, place[1], 0, place[2], tokens, rows, 0, 0))
    if fault:
        return fault
    expected = [float(sum(map(operator.mul, weights, activations))) for activations in x for weights in w]
    return "" if list(keep[2][0]) == expected + [-1.0] * REST else "another result"


def gemm_few(library, order):
    """13 tokens and two warps to a block: the last block has a warp without rows."""
    shared = 8 * (2 * 16 + 16) * 128
    return gemm_floats(40, 13, lambda args: library.launch("cuckoo_gemm_skinny_bf16", (2, 1, 1), 64, shared, args, order))


def gemm_many(library, order):
    """A tile and a bit."""
    return gemm_floats(130, 66, lambda args: library.launch("cuckoo_gemm_wide_bf16", (2, 1, 1), 256, 3 * 256 * 64, args, order))


def gemm_hopper(library, order):
    """The same tiles, both for one block, whose six stages are filled two and a half times."""
    def launch(args):
        def tensor_map(address, rows):
            return TensorMap(address, rows, args.cols, 2 * args.cols, 128 | 64 << 32, 2 | 0x70616d74 << 32)
        mapped = MappedGemm(tensor_map(args.x, args.tokens), tensor_map(args.w, args.rows), args)
        return library.launch("cuckoo_gemm_hopper_128_bf16", (1, 1, 1), 384, 6 * (256 * 128 + 16), mapped, order)
    return gemm_floats(130, 66, launch)


def gumbel(seed, position, token):
    """The noise of a token: Philox4x32-10."""
    key, counter = [seed & 0xffffffff, seed >> 32], [position & 0xffffffff, position >> 32, token // 4, 0]
    for _ in range(10):
        a, b = 0xD2511F53 * counter[0], 0xCD9E8D57 * counter[2]
        counter = [b >> 32 ^ counter[1] ^ key[0], b & 0xffffffff, a >> 32 ^ counter[3] ^ key[1], a & 0xffffffff]
        key = [(key[0] + 0x9E3779B9) & 0xffffffff, (key[1] + 0xBB67AE85) & 0xffffffff]
    return -math.log(-math.log((counter[token % 4] + 0.5) / 2**32))


def sample(library, order):
    """Rows of 1000 logits: the highest of several; the winner of all, of the first ten and of the most probable half; equal scores."""
    cols, seed = 1000, 0x123456789abcdef
    steps = [float(i * 7919 % 31) / 4 for i in range(cols)]
    ranked = sorted(range(cols), key=lambda i: (-steps[i], i))
    weights = [math.exp(steps[i] - steps[ranked[0]]) for i in ranked]
    sums = list(itertools.accumulate(weights))
    # Half of all is in the middle of many that are equal.
    half = next(n for n, total in enumerate(sums) if total >= sums[-1] / 2) + 1
    rows = [steps, [1e6] * cols]
    keep = [aligned(ctypes.c_float, row) for row in rows]
    wins = lambda position, n: max(ranked[:n], key=lambda i: steps[i] + gumbel(seed, position, i))
    draws, expected = [], []
    for row, temperature, top_k, top_p, token in [(0, 0.0, 0, 1.0, ranked[0]), (1, 1e-30, 0, 1.0, 0)] + \
            [(0, 1.0, k, p, (k, p)) for k, p in [(0, 1.0), (10, 1.0), (0, 0.5)] for _ in range(60)]:
        position = len(draws) << 20
        if isinstance(token, tuple):
            token = wins(position, half if top_p < 1.0 else top_k or cols)
        sharpness = 1.0 / temperature if temperature else 1.0
        draws.append(Draw(keep[row][2], temperature, top_p, -1.0, (seed & 0xffffffff, seed >> 32),
                          (position & 0xffffffff, position >> 32), top_k, len(draws), -math.inf, sharpness, -math.inf, 0))
        expected.append(token)
    drawn, tokens = aligned(Draw, draws), aligned(ctypes.c_uint32, [0] * len(draws))
    args = Sample(drawn[2], tokens[2], cols, 0)
    fault = library.launch("cuckoo_draw_tokens", (len(draws), 1, 1), 128, 33040, args, order)
    return fault or ("" if list(tokens[0]) == expected else "another token")


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


PROBES = {"linear": linear, "some": some, "wide": wide, "norm": norm, "narrow_bf16": narrow_bf16, "narrow_f16": narrow_f16, "gemm_few": gemm_few,
          "gemm_many": gemm_many, "gemm_hopper": gemm_hopper, "sample": sample, "attention": attention, "pack": pack}


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
             f"library = mutants.Library(mutants.Library.compile(pathlib.Path({str(copy)!r})))\n" \
             f"print(next((w for w in (mutants.PROBES[{probe!r}](library, o) for o in [0, 1, 7]) if w), ''))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300)
    return done.stdout.strip() if done.returncode == 0 else f"the process ended with {done.returncode}"


def main():
    """All of them."""
    failed = 0
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        shutil.copytree(HERE.parent, folder / "sound", ignore=shutil.ignore_patterns("__pycache__"))
        sound = Library(Library.compile(folder / "sound"))
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
