#!/usr/bin/env python3
"""Measures others beside our CUDA kernels, at the same shapes, on the same card, in one run; and puts both in one table.

    gpu.py --binary PATH --out DIR [-- options of the binary]     the bench `gpu` first, then PyTorch
    gpu.py --ours FILE --out DIR                                  PyTorch alone, at the shapes of an earlier run
    gpu.py --ours FILE --peers FILE --out DIR                     nothing is measured: the table of two earlier runs

Others are what PyTorch has: cuBLAS for products, cuDNN and flash attention, compiled operations for rows, copies, and a product of
8192^3 for what arithmetic the card can do. Buffers take turns so that nothing stays in the cache, launches are replayed as a
CUDA graph, the median counts. Written to DIR: ours.json, peers.json, merged.json, table.md.

Exit status: 0 when all was measured; 1 when something is wrong or a peer failed; 2 when there is no GPU, no PyTorch or no rows.
"""

import argparse
import json
import pathlib
import subprocess
import sys

from gpu_table import markdown, merge

#: Nothing was measured.
NOTHING = 2


class NotThere(Exception):
    """Something that is needed is not here; the message says what, and what to do."""


def load(path):
    """A JSON file of an earlier run."""
    try:
        return json.loads(pathlib.Path(path).read_text())
    except (OSError, ValueError) as error:
        raise NotThere(f"{path} cannot be read: {error}") from error


def run_binary(binary, out, options):
    """Runs the bench; what it found and its exit status."""
    found = out / "ours.json"
    found.unlink(missing_ok=True)
    try:
        status = subprocess.run([str(binary), "--out", str(found), *options], check=False).returncode
    except OSError as error:
        raise NotThere(f"{binary} cannot be run: {error}") from error
    if not found.exists():
        raise NotThere(f"{binary} ended with status {status} and measured nothing")
    return load(found), status


def measured_peers(rows, seconds):
    """What PyTorch takes for each of the rows; says what is missing where there is none."""
    try:
        import gpu_torch
    except ImportError as error:
        raise NotThere(f"PyTorch is missing ({error}): install it in this Python to have peers") from error
    if not gpu_torch.is_there():
        raise NotThere("PyTorch sees no GPU: its build or the driver is for processors alone")
    return gpu_torch.measure(rows, seconds)


def parse():
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", help="the bench `gpu`, built with --features cuda")
    parser.add_argument("--ours", help="what that bench wrote before")
    parser.add_argument("--peers", help="what this script wrote before")
    parser.add_argument("--out", required=True, type=pathlib.Path, help="a folder for what was found out")
    parser.add_argument("--seconds", type=float, default=240, help="after which no further peer is begun")
    parser.add_argument("options", nargs="*", help="for the binary, after --")
    args = parser.parse_args()
    if not (args.binary or args.ours):
        parser.error("--binary or --ours says which rows there are")
    return args


def main():
    """Everything in order; what is there is written down whatever else fails."""
    args = parse()
    args.out.mkdir(parents=True, exist_ok=True)
    status, peers = 0, None
    try:
        if args.binary:
            ours, status = run_binary(args.binary, args.out, args.options)
        else:
            ours = load(args.ours)
        if not ours.get("rows"):
            raise NotThere("there are no rows to compare")
    except NotThere as why:
        print(f"gpu.py: {why}", file=sys.stderr)
        return NOTHING
    try:
        peers = load(args.peers) if args.peers else measured_peers(ours["rows"], args.seconds)
        if not args.peers:
            (args.out / "peers.json").write_text(json.dumps(peers, indent=1) + "\n")
    except NotThere as why:
        print(f"gpu.py: {why}", file=sys.stderr)
        status = NOTHING
    merged = merge(ours, peers)
    (args.out / "merged.json").write_text(json.dumps(merged, indent=1) + "\n")
    table = markdown(merged)
    (args.out / "table.md").write_text(table)
    print(table)
    failed = any("error" in peer for row in merged["rows"] for peer in row["peers"])
    return status or int(failed or merged["wrong"] > 0)


if __name__ == "__main__":
    sys.exit(main())
