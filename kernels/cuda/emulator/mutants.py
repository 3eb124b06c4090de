#!/usr/bin/env python3
"""Plants defects in the kernels, one at a time, and checks that the emulator's tests see each of them.

A defect is a line changed in a copy of the sources, and a probe (probes.py) is run on it: another result, or a fault, is a defect that
was seen. Without a defect everything agrees.
"""

import concurrent.futures
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

import probes

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


def seen(defect, folder):
    """What the probe says of a copy with a defect, in any of three orders."""
    name, file, old, new, probe = defect
    copy = folder / name.replace(" ", "-")
    shutil.copytree(probes.HERE.parent, copy, ignore=shutil.ignore_patterns("__pycache__"))
    source = (copy / file).read_text()
    if source.count(old) != 1:
        return f"BROKEN: {file} has {source.count(old)} times {old!r}"
    (copy / file).write_text(source.replace(old, new))
    # A process of its own: what a defect writes where it should not is nobody else's.
    script = f"import sys; sys.path.insert(0, {str(probes.HERE)!r}); import probes, pathlib\n" \
             f"library = probes.Library(probes.Library.compile(pathlib.Path({str(copy)!r})))\n" \
             f"print(next((w for w in (probes.PROBES[{probe!r}](library, o) for o in [0, 1, 7]) if w), ''))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300)
    return done.stdout.strip() if done.returncode == 0 else f"the process ended with {done.returncode}"


def main():
    """All of them."""
    failed = 0
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        shutil.copytree(probes.HERE.parent, folder / "sound", ignore=shutil.ignore_patterns("__pycache__"))
        sound = probes.Library(probes.Library.compile(folder / "sound"))
        for probe, run in probes.PROBES.items():
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
