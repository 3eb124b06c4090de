"""Runs one kernel at a time, from a library made of a copy of the sources, against what a few lines of Python expect: for mutants.py and
sanitize.py. A probe returns what is wrong, or nothing.
"""

import ctypes
import functools
import itertools
import math
import mmap
import operator
import pathlib
import struct
import subprocess

HERE = pathlib.Path(__file__).resolve().parent
COMPILE = ["c++", "-std=c++20", "-O0", "-shared", "-fPIC", "-ffp-contract=off", "-fno-strict-aliasing", "-Wno-unknown-pragmas", "-Wno-psabi"]

#: Values after a result that nobody may write.
REST = 64

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
