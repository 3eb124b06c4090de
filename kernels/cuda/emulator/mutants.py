#!/usr/bin/env python3
"""Plants defects in the kernels, one at a time, and checks that the emulator's tests see each of them.

A defect is a line changed in a copy of the sources. The copy is compiled as a library, and one kernel is run against what a few
lines of Python expect: another result, or a fault, is a defect that was seen. Without a defect everything agrees.
"""

import concurrent.futures
import ctypes
import itertools
import math
import operator
import os
import pathlib
import shutil
import struct
import subprocess
import sys
import tempfile

HERE = pathlib.Path(__file__).resolve().parent
COMPILE = ["c++", "-std=c++20", "-O1", "-shared", "-fPIC", "-ffp-contract=off", "-fno-strict-aliasing", "-Wno-unknown-pragmas", "-Wno-psabi"]

#: Values after a result that nobody may write.
REST = 64

#: What is planted: name, file, what stands there, what is put there instead, and which probe sees it.
DEFECTS = [
    ("no barrier before sums are added up", "linear.cu", "  __syncthreads();\n  for (unsigned i = threadIdx.x; i < a.rows_each",
     "  for (unsigned i = threadIdx.x; i < a.rows_each", "linear"),
    ("one segment too few", "linear.cu", "s < per_row; s++) total", "s + 1 < per_row; s++) total", "linear"),
    ("nibbles swapped", "weights.cuh", "codes[i] = words[i] & 0x0f0f0f0fu;", "codes[i] = words[i] >> 4 & 0x0f0f0f0fu;", "linear"),
    ("a row too many is written", "linear.cu", "if (first + row >= a.w.rows || first_token", "if (first_token", "linear"),
    ("the offset is forgotten", "linear.cu", "dots[g] - offset * sums[g]", "dots[g]", "linear"),
    ("a barrier that only some threads reach", "linear.cu", "  __syncthreads();\n  for (unsigned i = threadIdx.x; i < a.rows_each",
     "  if (threadIdx.x < 100) __syncthreads();\n  for (unsigned i = threadIdx.x; i < a.rows_each", "linear"),
    ("a shuffle that some lanes do not take part in", "platform.cuh", "__shfl_xor_sync(ALL_LANES, v, apart);",
     "threadIdx.x == 3 ? 0 : __shfl_xor_sync(ALL_LANES, v, apart);", "norm"),
    ("a fold that stops early", "platform.cuh", "apart > 0; apart /= 2) v", "apart > 1; apart /= 2) v", "norm"),
    ("a value is taken from the wrong lane", "platform.cuh", "__shfl_xor_sync(ALL_LANES, v, apart)",
     "__shfl_xor_sync(ALL_LANES, v, apart / 2)", "norm"),
    ("a mask without the lane itself", "platform.cuh", "__shfl_xor_sync(ALL_LANES, v, apart)",
     "__shfl_xor_sync(1u, v, apart)", "norm"),
    # Products of the fast profile.
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
]

Integers = type("Integers", (ctypes.Structure,), {"_fields_": [
    ("codes", ctypes.c_uint64), ("scales", ctypes.c_uint64), ("supers", ctypes.c_uint64), ("rows", ctypes.c_uint32),
    ("cols", ctypes.c_uint32), ("offset", ctypes.c_int32), ("padding", ctypes.c_uint32)]})
Linear = type("Linear", (ctypes.Structure,), {"_fields_": [
    ("w", Integers), ("q", ctypes.c_uint64), ("scales", ctypes.c_uint64), ("out", ctypes.c_uint64)] +
    [(name, ctypes.c_uint32) for name in ["tokens", "planes", "out_cols", "first_row", "add", "tokens_each", "rows_each", "padding"]]})
Norm = type("Norm", (ctypes.Structure,), {"_fields_": [
    ("x", ctypes.c_uint64), ("weight", ctypes.c_uint64), ("out", ctypes.c_uint64)] +
    [(name, ctypes.c_uint32) for name in ["rows", "cols", "heads", "first_head", "stride"]] + [("epsilon", ctypes.c_float)]})

Draw = type("Draw", (ctypes.Structure,), {"_fields_": [
    ("logits", ctypes.c_uint64), ("temperature", ctypes.c_double), ("top_p", ctypes.c_double), ("xtc", ctypes.c_double),
    ("seed", ctypes.c_uint32 * 2), ("position", ctypes.c_uint32 * 2), ("top_k", ctypes.c_uint32), ("to", ctypes.c_uint32),
    ("least", ctypes.c_float), ("sharpness", ctypes.c_float)]})
Sample = type("Sample", (ctypes.Structure,), {"_fields_": [
    ("draws", ctypes.c_uint64), ("tokens", ctypes.c_uint64), ("cols", ctypes.c_uint32), ("padding", ctypes.c_uint32)]})


Gemm = type("Gemm", (ctypes.Structure,), {"_fields_": [
    ("w", ctypes.c_uint64), ("rows", ctypes.c_uint32), ("cols", ctypes.c_uint32), ("x", ctypes.c_uint64), ("out", ctypes.c_uint64)] +
    [(name, ctypes.c_uint32) for name in ["tokens", "out_cols", "first_row", "add"]]})
TensorMap = ctypes.c_uint64 * 16
MappedGemm = type("MappedGemm", (ctypes.Structure,), {"_fields_": [
    ("x_map", TensorMap), ("w_map", TensorMap), ("gemm", Gemm), ("padding", ctypes.c_uint64 * 2)]})


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


def linear(library, order):
    """40 rows of 512 columns in 4 bits by 3 rows of activations. Scales are powers of two, so every order gives the same."""
    rows, cols, tokens, segments = 40, 512, 3, 2
    code = lambda r, c: (r * 7 + c * 3 + r * c + c // 16 * 5) % 16
    x = lambda t, c: (c * 5 + t * 11) % 13 - 6
    items = -(-rows // 16) * 16 * segments
    codes = [0] * (items * 8 * 16)
    for r in range(rows):
        for segment in range(segments):
            group, lane = divmod(r * segments + segment, 32)
            for step in range(8):
                at, c = ((group * 8 + step) * 32 + lane) * 16, segment * 256 + step * 32
                for i in range(16):
                    codes[at + i] = code(r, c + i) | code(r, c + 16 + i) << 4
    scales = [0x3400] * (items * 8)  # a quarter
    keep = [aligned(ctypes.c_uint8, codes), aligned(ctypes.c_uint16, scales),
            aligned(ctypes.c_int8, [x(t, c) for t in range(tokens) for c in range(cols)]),
            aligned(ctypes.c_float, [0.5] * (tokens * cols // 32)),
            aligned(ctypes.c_float, [-1.0] * (tokens * rows + REST))]
    place = [k[2] for k in keep]
    args = Linear(Integers(place[0], place[1], 0, rows, cols, 8, 0), place[2], place[3], place[4], tokens, 1, rows, 0, 0, 2, 128, 0)
    fault = library.launch("cuckoo_linear_4_half_0_0", (1, 2, 1), 256, 2 * 256 * 4, args, order)
    if fault:
        return fault
    expected = [sum((code(r, c) - 8) * x(t, c) for c in range(cols)) / 8 for t in range(tokens) for r in range(rows)]
    return "" if list(keep[4][0]) == expected + [-1.0] * REST else "another result"


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


def narrow(library, order):
    """Three whole blocks of threads less one thread: values that bfloat16 has, and one halfway between two of them."""
    count = 8 * (3 * 256 - 1)
    values = [float(i % 256) for i in range(count)]
    values[77] = 257.0
    keep = [aligned(ctypes.c_float, values), aligned(ctypes.c_uint16, [0xffff] * (count + REST))]
    fault = library.launch("cuckoo_narrow_bf16", (3, 1, 1), 256, 0, (ctypes.c_uint64 * 3)(keep[0][2], keep[1][2], count), order)
    if fault:
        return fault
    values[77] = 256.0
    expected = [struct.unpack("<I", struct.pack("<f", v))[0] >> 16 for v in values]
    return "" if list(keep[1][0]) == expected + [0xffff] * REST else "another result"


def gemm(rows, tokens, launch):
    """Weights and activations in bfloat16: small integers, so every order gives the same. Seven and a half steps of 64 columns."""
    cols = 480
    bf16 = {v: struct.unpack("<I", struct.pack("<f", v))[0] >> 16 for v in range(-3, 4)}
    w = [[(r * 7 + c * 3 + r * c) % 5 - 2 for c in range(cols)] for r in range(rows)]
    x = [[(c * 5 + t * 11 + t * c) % 7 - 3 for c in range(cols)] for t in range(tokens)]
    keep = [aligned(ctypes.c_uint16, [bf16[v] for row in m for v in row]) for m in [w, x]]
    keep.append(aligned(ctypes.c_float, [-1.0] * (tokens * rows + REST)))
    place = [k[2] for k in keep]
    fault = launch(Gemm(place[0], rows, cols, place[1], place[2], tokens, rows, 0, 0))
    if fault:
        return fault
    expected = [float(sum(map(operator.mul, weights, activations))) for activations in x for weights in w]
    return "" if list(keep[2][0]) == expected + [-1.0] * REST else "another result"


def gemm_few(library, order):
    """13 tokens and two warps to a block: the last block has a warp without rows."""
    shared = 8 * (2 * 16 + 16) * 128
    return gemm(40, 13, lambda args: library.launch("cuckoo_gemm_skinny_bf16", (2, 1, 1), 64, shared, args, order))


def gemm_many(library, order):
    """A tile and a bit."""
    return gemm(130, 66, lambda args: library.launch("cuckoo_gemm_wide_bf16", (2, 1, 1), 256, 3 * 256 * 64, args, order))


def gemm_hopper(library, order):
    """The same tiles, both for one block, whose six stages are filled two and a half times."""
    def launch(args):
        def tensor_map(address, rows):
            return TensorMap(address, rows, args.cols, 2 * args.cols, 128 | 64 << 32, 2 | 0x70616d74 << 32)
        mapped = MappedGemm(tensor_map(args.x, args.tokens), tensor_map(args.w, args.rows), args)
        return library.launch("cuckoo_gemm_hopper_128_bf16", (1, 1, 1), 384, 6 * (256 * 128 + 16), mapped, order)
    return gemm(130, 66, launch)


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
                          (position & 0xffffffff, position >> 32), top_k, len(draws), -math.inf, sharpness))
        expected.append(token)
    drawn, tokens = aligned(Draw, draws), aligned(ctypes.c_uint32, [0] * len(draws))
    args = Sample(drawn[2], tokens[2], cols, 0)
    fault = library.launch("cuckoo_draw_tokens", (len(draws), 1, 1), 128, 33040, args, order)
    return fault or ("" if list(tokens[0]) == expected else "another token")


PROBES = {"linear": linear, "norm": norm, "narrow": narrow, "gemm_few": gemm_few, "gemm_many": gemm_many, "gemm_hopper": gemm_hopper,
          "sample": sample}


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
