#!/usr/bin/env python3
"""Runs llama.cpp and Cuckoo side by side and prints how many times better we are.

    compare.py --cuckoo target/release/cuckoo [--rounds 5] [--only pp,tg,…] [--json FILE] MODEL.gguf …

The two run in turns (A B A B …), each round gives one ratio, and medians are printed: a machine that others use as well
then disturbs both alike. A ratio above 1 is in our favour, in times and memory too. llama.cpp runs with the best it has of
threads, flash attention and waiting, searched for each kind of work before the rounds; we, with the better number of
threads. A model that we cannot run yet is measured with llama.cpp alone.
"""

import argparse
import contextlib
import json
import math
import multiprocessing
import os
import pathlib
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import typing
import urllib.request

import llama_cpp as peer

#: About as many tokens as the prompt that `cuckoo bench device` answers first.
FIRST_PROMPT = "The river was high that spring, and the old man who kept the ferry sat by the door of his house, "\
    "counting the people who crossed from one side to the other."
TIMEOUT_S = 1800
TESTS = ["pp", "tg", "batch", "first", "memory", "busy", "server"]


def execute(command, **environment):
    """Runs a command; its output, its seconds and its peak memory in bytes."""
    began = time.monotonic()
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        process = subprocess.Popen([str(c) for c in command], stdin=subprocess.DEVNULL, stdout=out, stderr=err,
                                   env={**os.environ, **environment})
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        seconds = time.monotonic() - began
        out.seek(0)
        err.seek(0)
        if process.returncode != 0:
            raise RuntimeError(f"{command[0]} failed: {err.read()[-500:]}")
        return out.read(), seconds, usage.ru_maxrss * 1024


def lines(output):
    """The JSON lines in some output."""
    return [json.loads(line) for line in output.splitlines() if line.startswith("{")]


def spin():
    """Keeps the second core busy."""
    os.sched_setaffinity(0, {1})
    while True:
        pass


@contextlib.contextmanager
def busy_core():
    """A process that never rests, as on a miner's desktop."""
    spinner = multiprocessing.Process(target=spin, daemon=True)
    spinner.start()
    try:
        yield
    finally:
        spinner.kill()
        spinner.join()


#: How llama.cpp's threads wait for each other. --poll is for its own threads and the policy for those of OpenMP, with which
#: it is built by default; waiting asleep is what helps where others use the machine as well.
WAITS = {"polling": (50, {}), "asleep": (0, {"OMP_WAIT_POLICY": "passive"})}


class Settings(typing.NamedTuple):
    """What is searched for llama.cpp's best."""

    threads: int
    flash: str
    wait: str

    def __str__(self):
        return f"-t {self.threads} -fa {self.flash} {self.wait}"

    def environment(self):
        """Variables that go with them."""
        return WAITS[self.wait][1]

    def bench(self):
        """Options that all programs share."""
        return ["-t", self.threads, "-fa", self.flash, "--poll", WAITS[self.wait][0]]

    @staticmethod
    def all():
        """Every setting; one thread waits for nobody."""
        return [Settings(t, f, w) for t in [1, 2] for f in ["on", "off"] for w in (WAITS if t > 1 else ["polling"])]


class Peer:
    """llama.cpp on one model."""

    def __init__(self, model):
        self.model = model

    def bench(self, settings, *shape):
        """Tokens a second by llama-bench, and its peak memory."""
        output, _, memory = execute([peer.program("llama-bench"), "-m", self.model, *settings.bench(), "-r", 1, "-o", "jsonl",
                                     *shape], **settings.environment())
        return lines(output)[0]["avg_ts"], memory

    def batch(self, settings, sequences, tokens):
        """Tokens a second of sequences that decode together."""
        output, _, _ = execute([peer.program("llama-batched-bench"), "-m", self.model, *settings.bench(), "-tb",
                                settings.threads, "-npp", 32, "-ntg", tokens, "-npl", sequences, "-c",
                                sequences * (tokens + 32), "--output-format", "jsonl"], **settings.environment())
        return lines(output)[-1]["speed_tg"]

    def first(self, settings):
        """Seconds from nothing to a first token and the end of the process."""
        return execute([peer.program("llama-completion"), "-m", self.model, *settings.bench(), "-n", 1, "-p", FIRST_PROMPT,
                        "-no-cnv", "--temp", 0, "--no-warmup", "-c", 512], **settings.environment())[1]


def best(of, candidates):
    """The candidate that `of` finds quickest, and what each gave."""
    tried = {candidate: of(candidate) for candidate in candidates}
    return max(tried, key=tried.get), {str(c): round(v, 1) for c, v in tried.items()}


class Ours:
    """Cuckoo on one model."""

    def __init__(self, cuckoo, model):
        self.cuckoo, self.model, self.threads = cuckoo, model, 2

    def command(self, *shape):
        """A run of the engine without what is not compared."""
        return [self.cuckoo, "bench", "device", "--json", "--no-limits", "--repetitions", 1, "--model", self.model, *shape]

    def bench(self, threads, *shape):
        """Tokens a second, and the peak memory."""
        output, _, memory = execute(self.command("--threads", threads, *shape))
        return [line for line in lines(output) if line["event"] == "test"][0]["avg_ts"], memory

    def first(self, threads):
        """Seconds from nothing to a first token and the end of the process."""
        return execute(self.command("--threads", threads, "--prompt", 0, "--generate", 0))[1]

    def kv_memory(self, positions):
        """MiB that keys and values of so many positions take."""
        output, _, _ = execute(self.command("--threads", 1, "--prompt", 0, "--generate", 0))
        each = [line for line in lines(output) if line["event"] == "memory"][0]["kv_bytes_per_token"]
        return math.ceil(positions * each / 2**20)


class Table:
    """Results, and how they are printed."""

    def __init__(self, model):
        self.model, self.rows = model, []

    def add(self, test, unit, pairs, higher=True, theirs="", ours="", **more):
        """Pairs of (theirs, ours); either may be None."""
        columns = list(zip(*pairs))
        median = [statistics.median(c) if None not in c else None for c in columns]
        ratios = [(o / t if higher else t / o) for t, o in pairs if None not in (t, o)]
        row = {"model": self.model, "test": test, "unit": unit, "llama.cpp": median[0], "cuckoo": median[1],
               "pairs": pairs, "ratios": ratios, "ratio": statistics.median(ratios) if ratios else None,
               "llama.cpp settings": theirs, "cuckoo settings": ours, **more}
        self.rows.append(row)
        print(markdown(row), file=sys.stderr, flush=True)


def markdown(row):
    """One row of the table."""
    number = lambda v: "–" if v is None else f"{v:,.1f}" if v < 1000 else f"{v:,.0f}"
    ratios = row["ratios"]
    ratio = f"**{row['ratio']:.2f}** ({min(ratios):.2f}–{max(ratios):.2f})" if ratios else "–"
    return f"| {row['model']} | {row['test']}, {row['unit']} | {number(row['llama.cpp'])} | {number(row['cuckoo'])} "\
        f"| {ratio} | {row['llama.cpp settings']} / {row['cuckoo settings']} |"


HEAD = "| Model | Test | llama.cpp | Cuckoo | times better (each pair) | settings of both |\n|---|---|---|---|---|---|"


class Comparison:
    """All tests of one model."""

    def __init__(self, args, model):
        self.args, self.table = args, Table(pathlib.Path(model).stem)
        self.peer, self.ours = Peer(model), Ours(args.cuckoo, model)
        try:
            self.ours.first(1)
        except RuntimeError as why:
            print(f"{model}: llama.cpp alone, since we cannot run it: {str(why).strip()[-160:]}", file=sys.stderr)
            self.ours = None

    def rounds(self, theirs, ours):
        """Both in turns; who begins changes, so that neither always follows the other."""
        pairs = []
        for number in range(self.args.rounds):
            order = [theirs, ours if self.ours else lambda: None]
            values = [f() for f in (order if number % 2 == 0 else reversed(order))]
            pairs.append(tuple(values if number % 2 == 0 else reversed(values)))
        return pairs

    def speed(self, name, their_shape, our_shape):
        """A shape that both benches know: speed and, at the same time, memory."""
        settings, tried = best(lambda s: self.peer.bench(s, *their_shape)[0], Settings.all())
        threads, ours_tried = 2, None
        if self.ours:
            threads, ours_tried = best(lambda t: self.ours.bench(t, *our_shape)[0], [1, 2])
        both = self.rounds(lambda: self.peer.bench(settings, *their_shape), lambda: self.ours.bench(threads, *our_shape))
        first = lambda v, i: None if v is None else v[i]
        text = dict(theirs=str(settings), ours=f"{threads} threads" if self.ours else "–")
        self.table.add(name, "tokens/s", [(first(t, 0), first(o, 0)) for t, o in both], **text, tried=tried,
                       cuckoo_tried=ours_tried)
        return settings, threads, [(first(t, 1), first(o, 1)) for t, o in both]

    def run(self):
        """Everything that was asked for."""
        only, memory = self.args.only, None
        pp = (["-p", 512, "-n", 0], ["--prompt", 512, "--generate", 0])
        tg = (["-p", 0, "-n", 128], ["--prompt", 0, "--generate", 128])
        settings, threads = Settings(1, "on", "polling"), 2
        if "pp" in only:
            settings, threads, _ = self.speed("pp512", *pp)
        if "tg" in only:
            settings, threads, memory = self.speed("tg128", *tg)
        if "memory" in only and memory:
            self.table.add("peak memory, tg128", "MB", [tuple(m and m / 1e6 for m in pair) for pair in memory], higher=False)
        if "batch" in only:
            settings = self.batch()
        if "first" in only:
            pairs = self.rounds(lambda: self.peer.first(settings) * 1e3, lambda: self.ours.first(threads) * 1e3)
            self.table.add("first token of a fresh process", "ms", pairs, higher=False, theirs=str(settings),
                           ours=f"{threads} threads")
        if "busy" in only:
            with busy_core():
                self.speed("pp512, a core busy", *pp)
                self.speed("tg128, a core busy", *tg)
        if "server" in only and self.ours:
            self.server(settings)
        return self.table.rows

    def batch(self):
        """16 sequences that decode together, which is more like a prompt: settings are searched for once more."""
        tokens = self.args.batch_tokens
        settings, tried = best(lambda s: self.peer.batch(s, 16, 16), Settings.all())
        shape = ["--prompt", 0, "--generate", tokens, "--batch", 16, "--depth", 32]
        pairs = self.rounds(lambda: self.peer.batch(settings, 16, tokens), lambda: self.ours.bench(2, *shape)[0])
        self.table.add("16 sequences decode", "tokens/s", pairs, theirs=str(settings), ours="2 threads", tried=tried)
        return settings

    def server(self, settings):
        """16 streams over HTTP, and as many positions of keys and values for both servers.

        Both are up all the time; whoever is not asked sleeps."""
        positions = 16 * (self.args.prompt + self.args.generate + 128)
        with tempfile.TemporaryDirectory() as home, contextlib.ExitStack() as stack:
            up = stack.enter_context(serving([self.args.cuckoo, "up", "--json", "--home", home, "--quic", "127.0.0.1:0",
                                              "--http", "127.0.0.1:0", "--model", self.peer.model,
                                              "--kv-mib", self.ours.kv_memory(positions)]))
            ready = json.loads(up.stdout.readline())
            port = free_port()
            theirs = stack.enter_context(serving(
                [peer.program("llama-server"), "-m", self.peer.model, "--host", "127.0.0.1", "--port", port, "-np", 16, "-c",
                 positions, *settings.bench(), "-tb", settings.threads, "--cache-ram",
                 0], **settings.environment()))
            url = f"http://127.0.0.1:{port}"
            await_health(url, theirs)
            # Neither may stop early, or lengths would differ; each has its own way to say so.
            no_end = {"logit_bias": {str(token): -100 for token in self.args.end_tokens}}
            targets = [(url, "none", "any", {"ignore_eos": True}), (ready["http"], ready["api_key"], ready["models"][0], no_end)]
            ask = lambda target: lambda: self.online(*target)
            pairs = self.rounds(ask(targets[0]), ask(targets[1]))
            text = dict(theirs=str(settings), ours="cuckoo up")
            for name, unit, key, higher in [("output", "tokens/s", "output_throughput", True),
                                            ("TTFT p50", "ms", "median_ttft_ms", False), ("TTFT p99", "ms", "p99_ttft_ms", False),
                                            ("ITL p50", "ms", "median_itl_ms", False), ("ITL p99", "ms", "p99_itl_ms", False)]:
                self.table.add(f"server, 16 streams, {name}", unit, [(t[key], o[key]) for t, o in pairs], higher, **text)
            memory = [peak_bytes(process) / 1e6 for process in [theirs, up]]
            tokens = [[r["total_output_tokens"] for r in pair] for pair in pairs]
            failed = [[r["failed"] for r in pair] for pair in pairs]
            self.table.add("server, peak memory", "MB", [tuple(memory)], False, **text, tokens=tokens, failed=failed)

    def online(self, url, key, model, extra):
        """One load on one server."""
        output, _, _ = execute([self.args.cuckoo, "bench", "online", "--json", "--url", url, "--api-key", key, "--model",
                                model, "--concurrency", 16, "--requests", self.args.requests, "--prompt", self.args.prompt,
                                "--generate", self.args.generate, "--extra", json.dumps(extra)])
        return lines(output)[0]


@contextlib.contextmanager
def serving(command, **environment):
    """A server that ends with the block."""
    process = subprocess.Popen([str(c) for c in command], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
                               env={**os.environ, **environment})
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()


def free_port():
    """A port that nobody uses at this moment."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def await_health(url, process):
    """Waits until a server of llama.cpp has loaded its model."""
    for _ in range(TIMEOUT_S):
        if process.poll() is not None:
            raise RuntimeError("llama-server ended")
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=5) as answer:
                if answer.status == 200:
                    return
        except OSError:
            pass
        time.sleep(0.5)


def peak_bytes(process):
    """The most memory that a running process ever had."""
    for line in pathlib.Path(f"/proc/{process.pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0


def main():
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--cuckoo", required=True)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", type=lambda t: t.split(","), default=TESTS)
    parser.add_argument("--json", help="where all values go, appended a line a test")
    parser.add_argument("--batch-tokens", type=int, default=64)
    parser.add_argument("--requests", type=int, default=48)
    parser.add_argument("--prompt", type=int, default=128)
    parser.add_argument("--generate", type=int, default=64)
    parser.add_argument("--end-tokens", type=lambda t: t.split(","), default=["0", "2"], help="of SmolLM2 by default")
    args = parser.parse_args()
    if not peer.is_installed():
        sys.exit("llama.cpp is not installed: run llama_cpp.py install")
    rows = []
    for model in args.models:
        for row in Comparison(args, model).run():
            rows.append(row)
            if args.json:
                with open(args.json, "a", encoding="utf-8") as file:
                    print(json.dumps({"at": time.time(), "load": os.getloadavg()[0], **row}), file=file)
    print("\n".join([HEAD, *map(markdown, rows)]))


if __name__ == "__main__":
    main()
