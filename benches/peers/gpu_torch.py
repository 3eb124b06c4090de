"""What PyTorch's own kernels take at the shapes of the bench `gpu`: buffers that take turns, CUDA graphs, medians."""

import json
import math
import statistics
import time

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

#: Operands together are this many times what the cache holds.
CACHES = 3
SETS_MAX = 64
SAMPLES = 21
#: A sample takes at least this long, in seconds.
SAMPLE_S = 2e-3
LAUNCHES_MAX = 512
BF16 = torch.bfloat16
#: Where everything lies.
DEVICE = "cuda"


def is_there():
    """Whether there is a GPU."""
    return torch.cuda.is_available()


def random(*shape, dtype=BF16, scale=1.0):
    """Random values: zeros are quicker than what people compute with."""
    return (torch.randn(*shape, device=DEVICE, dtype=torch.float32) * scale).to(dtype)


def sets_of(bytes_each):
    """How many sets of operands keep each other out of the cache."""
    cache = torch.cuda.get_device_properties(0).L2_cache_size
    return max(1, min(SETS_MAX, math.ceil(CACHES * cache / max(1, bytes_each))))


def timed(calls):
    """Microseconds of one call, where `calls` take turns; and how they were launched."""
    for call in calls:
        for _ in range(3):
            call()
    torch.cuda.synchronize()
    one = max(1e-7, elapsed(lambda: repeated(calls, 1)) / len(calls))
    turns = max(1, min(LAUNCHES_MAX // len(calls) or 1, math.ceil(SAMPLE_S / one / len(calls))))
    many = lambda: repeated(calls, turns)
    try:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            many()
        run, how = graph.replay, "graph"
    except RuntimeError:
        # Some operations wait for the host and cannot be kept.
        torch.cuda.synchronize()
        run, how = many, "launched"
    run()
    each = turns * len(calls)
    us = sorted(1e6 * elapsed(run) / each for _ in range(SAMPLES))
    return {"us": {"median": statistics.median(us), "min": us[0], "max": us[-1]}, "samples": len(us), "clock": f"card, {how}",
            "sets": len(calls), "operations_per_sample": each}


def repeated(calls, turns):
    """All of them in turns; nothing that they return is kept, or memory would run out."""
    for _ in range(turns):
        for call in calls:
            call()


def elapsed(work):
    """Seconds by the card's clock."""
    began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    began.record()
    work()
    ended.record()
    torch.cuda.synchronize()
    return began.elapsed_time(ended) / 1e3


def turns(bytes_each, make):
    """A call for each set of operands."""
    return [make() for _ in range(sets_of(bytes_each))]


def norm(op):
    """RMSNorm alone, and compiled together with the residual's addition."""
    shape, weight = (op["rows"], op["cols"]), random(op["cols"])
    together = torch.compile(lambda x, r: (lambda s: (s, F.rms_norm(s, (op["cols"],), weight, 1e-5)))(x + r))

    def alone():
        x = random(*shape)
        return lambda: F.rms_norm(x, (op["cols"],), weight, 1e-5)

    def added():
        x, r = random(*shape), random(*shape)
        return lambda: together(x, r)

    size = op["rows"] * op["cols"] * 2
    return {"rms_norm bf16": lambda: turns(2 * size, alone), "compiled add + rms_norm bf16": lambda: turns(4 * size, added)}


def gate(op):
    """SwiGLU, compiled."""
    compiled = torch.compile(lambda gu: F.silu(gu[:, : op["cols"]]) * gu[:, op["cols"] :])

    def make():
        gate_up = random(op["rows"], 2 * op["cols"])
        return lambda: compiled(gate_up)

    return {"compiled SwiGLU bf16": lambda: turns(op["rows"] * op["cols"] * 6, make)}


def rope_store(op):
    """Rotation and storing, compiled."""
    heads, rows = op["heads"], op["sequences"] * op["rows"]
    query, kv, dim = heads["query"], heads["kv"], heads["dim"]
    angles = torch.rand(rows, 1, dim // 2, device=DEVICE) * 6
    cos, sin = angles.cos().to(BF16), angles.sin().to(BF16)
    places = torch.randperm(rows, device=DEVICE)

    def body(qkv, keys, values):
        turned, v = qkv[:, : query + kv], qkv[:, query + kv :]
        a, b = turned[..., 0::2], turned[..., 1::2]
        turned = torch.stack((a * cos - b * sin, b * cos + a * sin), -1).flatten(-2)
        keys[places] = turned[:, query:]
        values[places] = v
        return turned[:, :query]

    compiled = torch.compile(body)

    def make():
        qkv, keys, values = random(rows, query + 2 * kv, dim), random(rows, kv, dim), random(rows, kv, dim)
        return lambda: compiled(qkv, keys, values)

    size = rows * dim * 2 * (2 * query + 4 * kv)
    return {"compiled rotation + store bf16": lambda: turns(size, make)}


def linear(op):
    """cuBLAS at bf16, FP8 and four bits as far as this PyTorch has them."""
    m, n, k = op["tokens"], op["outputs"], op["inputs"]

    def bf16():
        x, w, out = random(m, k), random(n, k, scale=0.05), torch.empty(m, n, device=DEVICE, dtype=BF16)
        return lambda: torch.mm(x, w.t(), out=out)

    def fp8():
        kind = torch.float8_e4m3fn
        x, w = random(m, k).to(kind), random(n, k, scale=0.05).to(kind)
        one = torch.ones((), device=DEVICE)
        return lambda: torch._scaled_mm(x, w.t(), scale_a=one, scale_b=one, out_dtype=BF16)

    def int4():
        x = random(m, k)
        packed = torch.ops.aten._convert_weight_to_int4pack(
            torch.randint(0, 255, (n, k // 2), device=DEVICE, dtype=torch.uint8), 8)
        scales = random(k // 128, n, 2, scale=0.01)
        return lambda: torch.ops.aten._weight_int4pack_mm(x, packed, 128, scales)

    acts = 2 * m * (n + k)
    peers = {"cuBLAS bf16": lambda: turns(2 * n * k + acts, bf16)}
    if op["quant"] == "FP8":
        peers["cuBLASLt FP8"] = lambda: turns(n * k + acts, fp8)
    if op["quant"].startswith("Q4") and m <= 64:
        peers["PyTorch int4, groups of 128"] = lambda: turns(n * k // 2 + acts, int4)
    return peers


def attention(op):
    """SDPA with one backend forced, over keys and values that lie in one piece: no pages, and bf16 whatever ours are."""
    heads, sequences, rows, depth = op["heads"], op["sequences"], op["rows"], op["depth"]

    def calls(backend):
        def make():
            q = random(sequences, heads["query"], rows, heads["dim"])
            k, v = (random(sequences, heads["kv"], depth, heads["dim"]) for _ in range(2))
            causal = {}
            if rows == depth:
                causal = {"is_causal": True}
            elif rows > 1:
                from torch.nn.attention.bias import causal_lower_right
                causal = {"attn_mask": causal_lower_right(rows, depth)}

            def call():
                with sdpa_kernel(backend):
                    return F.scaled_dot_product_attention(q, k, v, enable_gqa=True, **causal)
            return call
        return lambda: turns(4 * sequences * heads["kv"] * depth * heads["dim"], make)

    # Of rows at the end of a longer context cuDNN is given a mask that lies in memory; flash attention knows that shape.
    masked = ", mask in memory" if 1 < rows < depth else ""
    return {f"cuDNN attention bf16{masked}": calls(SDPBackend.CUDNN_ATTENTION), "flash attention bf16": calls(SDPBackend.FLASH_ATTENTION)}


def sample(op):
    """Top-k, top-p and a draw, as PyTorch users write it; and one softmax for scale."""
    def drawn(logits):
        values, places = torch.topk(logits, 50)
        p = torch.softmax(values, -1)
        p = torch.where(p.cumsum(-1) - p < 0.9, p, torch.zeros_like(p))
        noise = torch.empty_like(p).exponential_()
        return places.gather(-1, (p / noise).argmax(-1, keepdim=True))

    def make(what):
        def one():
            logits = random(op["rows"], op["vocabulary"], dtype=torch.float32, scale=3.0)
            return lambda: what(logits)
        return lambda: turns(4 * op["rows"] * op["vocabulary"], one)

    return {"top-k, top-p, draw f32": make(drawn), "one softmax f32": make(lambda logits: torch.softmax(logits, -1))}


def copy_out(op):
    """Blocks gathered on the card, and a copy of as many bytes to pinned memory."""
    heads = op["heads"]
    block = 16 * op["layers"] * 2 * heads["kv"] * heads["dim"]
    blocks = op["tokens"] // 16

    def gathered():
        cache, places = random(blocks, block), torch.randperm(blocks, device=DEVICE)
        out = torch.empty_like(cache)
        return lambda: torch.index_select(cache, 0, places, out=out)

    def pinned():
        cache, host = random(blocks, block), torch.empty(blocks, block, dtype=BF16, pin_memory=True)
        return lambda: host.copy_(cache, non_blocking=True)

    return {"index_select on the card": lambda: [gathered()], "copy to pinned memory": lambda: [pinned()]}


KINDS = {"norm": norm, "gate": gate, "rope_store": rope_store, "linear": linear, "attention": attention, "sample": sample,
         "copy_out": copy_out}


def one(name, make):
    """A peer that was measured, or why it was not."""
    try:
        return {"peer": name, **timed(make())}
    except Exception as error:  # whatever a library throws is that library's answer
        return {"peer": name, "error": f"{type(error).__name__}: {error}".splitlines()[0]}
    finally:
        torch.cuda.empty_cache()


def ceilings():
    """What the card can do by PyTorch: a large copy, bytes read and written, and a large product of random values."""
    a = random(1 << 30)
    b = torch.empty_like(a)
    copied = timed([lambda: b.copy_(a)])["us"]["min"]
    del a, b
    x, w, out = random(8192, 8192), random(8192, 8192), torch.empty(8192, 8192, device=DEVICE, dtype=BF16)
    product = timed([lambda: torch.mm(x, w, out=out)])["us"]["median"]
    return {"copy_bytes_per_s": (2 << 31) / copied * 1e6, "bf16_per_s": 2 * 8192**3 / product * 1e6}


def measure(rows, seconds):
    """All peers of all rows, by the rows' names, until there is no time left."""
    deadline = time.monotonic() + seconds
    torch.manual_seed(1)
    found = {"gpu": {"name": torch.cuda.get_device_name(0)}, "torch": torch.__version__, "cuda": torch.version.cuda,
             "cudnn": torch.backends.cudnn.version(), "ceilings": ceilings(), "rows": {}}
    known = {}
    for row in rows:
        # Rows that differ in what we may do for speed are one for everybody else.
        op = json.dumps(row["op"], sort_keys=True)
        if op not in known:
            known[op] = peers_of(row["op"], deadline)
        found["rows"][row["name"]] = known[op]
    return found


def peers_of(op, deadline):
    """All peers of a row."""
    if time.monotonic() > deadline:
        return [{"peer": "PyTorch", "error": "no time was left"}]
    try:
        makers = KINDS[op["kind"]](op)
    except Exception as error:
        return [{"peer": "PyTorch", "error": f"{type(error).__name__}: {error}".splitlines()[0]}]
    return [one(name, make) for name, make in makers.items()]
