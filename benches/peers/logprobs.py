#!/usr/bin/env python3
"""Log-probabilities of every token of some texts, as llama.cpp computes them.

    logprobs.py MODEL.gguf [TEXT FILE …]   (each file a text; without one, lines of JSON strings on standard input)

Prints a line of JSON a text: {"tokens": […], "logprobs": […]}, where logprobs[i] belongs to tokens[i + 1] after all before
it, in nats, with sums in f64. So two implementations can be compared by how far each is from an exact one. The tokens
are printed, because they must be the same for such a comparison to mean anything.
"""

import argparse
import json
import os
import sys

import llama_cpp as peer


def relaunch():
    """Runs this script in the interpreter that has the binding, unless it is that one already."""
    if os.environ.get("LLAMA_CPP_LIB_PATH"):
        sys.exit("the binding cannot be loaded: run llama_cpp.py install")
    os.execve(peer.python(), [str(peer.python()), *sys.argv], peer.environment())


def texts(files):
    """The texts to judge."""
    if files:
        for file in files:
            with open(file, encoding="utf-8") as text:
                yield text.read()
    else:
        for line in sys.stdin:
            yield json.loads(line)


def main():
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("files", nargs="*")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--context", type=int, default=8192)
    args = parser.parse_args()
    # Here the binding is meant, and not the script of the same name beside this one.
    sys.path.pop(0)
    del sys.modules["llama_cpp"]
    import llama_cpp
    import numpy

    model = llama_cpp.Llama(args.model, n_ctx=args.context, n_batch=512, n_threads=args.threads,
                            n_threads_batch=args.threads, logits_all=True, verbose=False)
    for text in texts(args.files):
        tokens = model.tokenize(text.encode(), add_bos=True, special=True)
        model.reset()
        model.eval(tokens)
        logits = numpy.asarray(model.scores[: len(tokens)], dtype=numpy.float64)
        logits -= logits.max(axis=1, keepdims=True)
        sums = numpy.log(numpy.exp(logits).sum(axis=1))
        logprobs = [float(logits[i, t] - sums[i]) for i, t in enumerate(tokens[1:])]
        print(json.dumps({"tokens": tokens, "logprobs": logprobs}), flush=True)


if __name__ == "__main__":
    if str(peer.root() / "src") not in sys.path:
        relaunch()
    main()
