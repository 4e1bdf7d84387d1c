#!/usr/bin/env python3
"""Checks cox-ops against formulas written down a second time, in Python.

The references come from algorithms.md and ops-protocol.md alone and share no
code with lib/algo. Needs Python 3.8 and nothing else.

  tools/oracle/run_oracle.py [--bin build/release/bin/cox-ops]
      [--cases N] [--seed S] [--op NAME ...] [--budget SECONDS] [--verbose]

Prints one line per op and `N passed, N failed`; exits 1 on a failure, 2 when
the binary is missing.
"""

import argparse
import json
import math
import os
import random
import subprocess
import sys
import threading
import time

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

import core                 # noqa: E402
import framing              # noqa: E402
import loss_oracle          # noqa: E402,F401
import model_cases          # noqa: E402
import optim_oracle         # noqa: E402,F401
import rollout_oracle       # noqa: E402,F401
import sampling_oracle      # noqa: E402
import vectors              # noqa: E402

TOLERANCE = {"float64": {"value": 1e-6, "grad": 1e-6},
             "float32": {"value": 1e-5, "grad": 1e-4}}
MODEL_TOLERANCE = {"float64": {"value": 1e-5, "grad": 1e-5},
                   "float32": {"value": 1e-4, "grad": 1e-4}}
MODEL_OPS = ("model_forward", "generate", "generate_greedy", "model_fill")
# Tokens of a batch decoder come from float32 kernels.
FLOAT32_OPS = ("generate", "generate_greedy")


# What a message may name instead of a top-level argument.
NESTED = {"t_max", "logits", "hidden", "vocab", "num_"}


class Ops:
    """A running cox-ops, one answer per line."""

    def __init__(self, path):
        self.process = subprocess.Popen(
            [path], stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def raw(self, line):
        # A long answer must not block a long question.
        writer = threading.Thread(target=self._write, args=(line,))
        writer.start()
        answer = self.process.stdout.readline()
        writer.join()
        if not answer:
            raise SystemExit(f"cox-ops ended at: {line[:200]!r}")
        return json.loads(answer)

    def _write(self, line):
        self.process.stdin.write(line + b"\n")
        self.process.stdin.flush()

    def call(self, op, args):
        line = json.dumps({"op": op, "args": core.encode(args)},
                          allow_nan=False)
        return self.raw(line.encode())

    def close(self):
        self.process.stdin.close()
        return self.process.wait()


class Tally:
    def __init__(self, verbose):
        self.rows, self.verbose, self.failures = {}, verbose, []

    def add(self, op, kind, why, args):
        row = self.rows.setdefault(op, {"passed": 0, "failed": 0})
        row["failed" if why else "passed"] += 1
        if not why:
            return
        self.failures.append(op)
        if row["failed"] <= 3 or self.verbose:
            text = json.dumps(core.encode(args))
            print(f"FAIL {op} ({kind}): {why}\n     args {text[:1500]}",
                  flush=True)


def judge(op, args, answer):
    """Why the answer is wrong, or None."""
    try:
        want = core.REFERENCES[op](args)
    except core.Invalid:
        return rejects(answer, "INVALID_ARGUMENT")
    if not answer.get("ok"):
        return f"refused: {answer.get('error')}"
    dtype = args.get("dtype", "float64")
    tol = MODEL_TOLERANCE if op in MODEL_OPS else TOLERANCE
    if op in FLOAT32_OPS:
        dtype = "float32"
    result = answer["result"]
    why = core.compare(want, result, tol[dtype])
    if why:
        return why
    for complaint in core.CHECKS.get(op, lambda *_: ())(args, result):
        return complaint
    return None


def rejects(answer, codes, name=""):
    codes = (codes,) if isinstance(codes, str) else codes
    if "any" in codes:
        return None
    if answer.get("ok"):
        return (None if None in codes else
                f"want {codes}, got {str(answer.get('result'))[:200]}")
    error = answer.get("error", {})
    if error.get("code") not in codes:
        return f"want {codes}, got {error}"
    if not error.get("message"):
        return "an error without a message"
    if name and name not in error["message"]:
        return f"message does not name {name}: {error['message']}"
    return None


def acceptable(op, rng):
    """Arguments that the reference does not refuse."""
    while True:
        args = core.GENERATORS[op](core.Gen(rng))
        try:
            core.REFERENCES[op](args)
            return args
        except core.Invalid:
            pass


def run_op(ops, op, count, seed, tally, deadline):
    rng = random.Random(f"{seed}/{op}")
    done = 0
    while done < count and time.monotonic() < deadline:
        args = core.GENERATORS[op](core.Gen(rng))
        answer = ops.call(op, args)
        tally.add(op, "random", judge(op, args, answer), args)
        # Its rows alone must give the same: no dependence on the batch.
        if op == "generate" and len(args["prompts"]) > 1 and answer["ok"]:
            for i in range(len(args["prompts"])):
                alone = dict(args)
                for name in ("prompts", "keys", "instructions"):
                    if name in args:
                        alone[name] = [args[name][i]]
                one = ops.call(op, alone)
                same = one.get("ok") and (
                    one["result"]["tokens"][0] == answer["result"]
                    ["tokens"][i])
                tally.add(op, "alone", None if same else
                          f"row {i} alone gives other tokens", alone)
        done += 1
    bad = list(core.REJECTED[op]()) if op in core.REJECTED else []
    names = {name for args in bad for name in args} | NESTED
    for args in bad:
        answer = ops.call(op, args)
        why = rejects(answer, "INVALID_ARGUMENT")
        if not why and not any(n in answer["error"]["message"]
                               for n in names):
            why = f"message names no argument: {answer['error']}"
        tally.add(op, "rejected", why, args)
    # Unknown and missing arguments, for every op alike.
    good = acceptable(op, rng)
    tally.add(op, "unknown", rejects(ops.call(op, dict(good, surplus_=1)),
                                     "INVALID_ARGUMENT", "surplus_"), good)
    tally.add(op, "no args", rejects(ops.call(op, {}), "INVALID_ARGUMENT"),
              {})
    for name in good:
        ignored = good.get("kind") == "reinforce_pp" and name in (
            "scores", "group", "valid")
        if name == "dtype" or ignored:
            continue
        bad = dict(good, **{name: {"x": []}})
        tally.add(op, "type", rejects(
            ops.call(op, bad), ("INVALID_ARGUMENT",), name), bad)


def run_vectors(ops, tally, chosen):
    for op, args, want in core.VECTORS:
        if op not in chosen:
            continue
        tol = {"value": 2e-6, "grad": 2e-6}
        mine = core.REFERENCES[op](args)
        theirs = ops.call(op, args)
        for who, result in (("oracle", mine), ("cox-ops",
                                               theirs.get("result"))):
            why = None
            for name, value in want.items():
                got = core.encode((result or {}).get(name))
                if isinstance(value, dict):
                    got = {k: got[k] for k in value}
                why = why or core.compare(loose(value), got, tol, name)
            tally.add(op, f"vector, {who}", why, args)
    if "model_forward" not in chosen:
        return
    for args, pad, last, total in vectors.MODELS:
        for who in ("oracle", "cox-ops"):
            result = (core.encode(core.REFERENCES["model_forward"](args))
                      if who == "oracle" else
                      ops.call("model_forward", args)["result"])
            got = list(result["logits"][0][-1][:5])
            got.append(sum(result["logprob"][0][pad:-1]))
            why = core.compare([*last, total], got,
                               {"value": 2e-6, "grad": 0}, "pinned")
            tally.add("model_forward", f"vector, {who}", why, args)


def loose(x):
    """Printed numbers are rounded: no exact comparison."""
    if isinstance(x, (list, tuple)):
        return [loose(y) for y in x]
    if isinstance(x, dict):
        return {k: loose(v) for k, v in x.items()}
    return float(x) if isinstance(x, int) and not isinstance(x, bool) else x


def run_framing(ops, seed, tally):
    rng = random.Random(seed)
    probe = {"rewards": [[0.25]], "values": [[0.5]]}
    for i, (line, codes) in enumerate(framing.lines(rng)):
        answer = ops.raw(line)
        codes = codes if isinstance(codes, tuple) else (codes,)
        tally.add("(framing)", "line", rejects(answer, codes),
                  line[:200].decode("latin-1"))
        if i % 10 == 0:      # later answers are untouched
            later = ops.call("gae", probe)
            why = (None if later.get("result", {}).get("advantages")
                   == [[-0.25]] else f"later answer is {later}")
            tally.add("(framing)", "after", why, probe)
    for value in (None, 0, -1.5, "x", [1, [2, {"a": None}]], {"k": "v"},
                  True, 2 ** 63, "\u00e9\n\"", "\u0000"):
        line = json.dumps({"op": "version", "id": value}).encode()
        answer = ops.raw(line)
        same = answer.get("id", "absent") == value
        tally.add("(framing)", "id", None if same else
                  f"id {value!r} came back as {answer}", value)


def run_uniform_statistics(ops, tally):
    """Mean, chi-squared of 16 cells and lag correlation of 40,000 draws."""
    for what, keys in (
            ("position", [[7, 0, i] for i in range(40000)]),
            ("prompt", [[i, 0, 0] for i in range(40000)]),
            ("sample", [[7, i, 3] for i in range(40000)])):
        u = ops.call("uniforms", {"seed": 3, "keys": keys})["result"]["u"]
        n = len(u)
        cells = [0] * 16
        for x in u:
            cells[int(x * 16)] += 1
        chi = sum((c - n / 16) ** 2 / (n / 16) for c in cells)
        lag = sum((a - .5) * (b - .5) for a, b in zip(u, u[1:])) / n * 12
        why = None
        if abs(sum(u) / n - .5) > 4.5 * math.sqrt(1 / 12 / n):
            why = f"mean {sum(u) / n} along {what}"
        elif chi > 48:       # p = 2.5e-5 at 15 degrees of freedom
            why = f"chi-squared {chi} along {what}"
        elif abs(lag) > 4.5 / math.sqrt(n):
            why = f"lag-1 correlation {lag} along {what}"
        tally.add("uniforms", "statistics", why, {"along": what})
    a = ops.call("uniforms", {"seed": 1, "keys": [[1, 2, 3]]})
    b = ops.call("uniforms", {"seed": 2, "keys": [[1, 2, 3]]})
    tally.add("uniforms", "seed", None if a["result"] != b["result"] else
              "the seed changes nothing", {})


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    root = os.path.dirname(os.path.dirname(os.path.dirname(
        os.path.abspath(__file__))))
    parser.add_argument("--bin", default=os.path.join(
        root, "build/release/bin/cox-ops"))
    parser.add_argument("--cases", type=int, default=400,
                        help="random cases per op")
    parser.add_argument("--model-cases", type=int, default=None,
                        help="the same for ops on models (default: cases)")
    parser.add_argument("--seed", default="1")
    parser.add_argument("--op", action="append", help="only this op")
    parser.add_argument("--budget", type=float, default=3600,
                        help="start no random case after so many seconds")
    parser.add_argument("--verbose", action="store_true")
    options = parser.parse_args()
    if not os.access(options.bin, os.X_OK):
        print(f"run_oracle: no program at {options.bin}; build the target "
              "cox-ops or name it with --bin", file=sys.stderr)
        return 2
    start = time.monotonic()
    deadline = start + options.budget
    ops = Ops(options.bin)
    present = set(ops.call("ops", {})["result"]["ops"])
    model_cases.ASK["uniforms"] = lambda seed, keys: ops.call(
        "uniforms", {"seed": seed, "keys": keys})["result"]["u"]
    tally = Tally(options.verbose)
    chosen = options.op or sorted(core.REFERENCES)
    missing = [op for op in chosen if op not in present]
    chosen = [op for op in chosen if op in present]
    for op in chosen:
        count = options.cases
        if op in MODEL_OPS and options.model_cases is not None:
            count = options.model_cases
        run_op(ops, op, count, options.seed, tally, deadline)
    run_vectors(ops, tally, chosen)
    if "uniforms" in chosen:
        run_uniform_statistics(ops, tally)
    files = []
    if "table_reward" in chosen:
        files += [("table_reward", a, code, "")
                  for a, code in sampling_oracle.reject_files()]
    if "model_forward" in chosen:
        files += [("model_forward", *case)
                  for case in model_cases.reject_folders()]
    for op, args, code, name in files:
        tally.add(op, "file", rejects(ops.call(op, args), code, name), args)
    if not options.op:
        run_framing(ops, options.seed, tally)
        unknown = present - set(core.REFERENCES)
        tally.add("(framing)", "ops", f"no oracle for {sorted(unknown)}"
                  if unknown else None, {})
        if set(core.REFERENCES) - present - set(missing):
            missing += sorted(set(core.REFERENCES) - present)
    status = ops.close()
    tally.add("(framing)", "exit", None if status == 0 else
              f"exit status {status} at the end of input", {})
    print(f"{'op':22} {'passed':>7} {'failed':>7}")
    for op, row in sorted(tally.rows.items()):
        print(f"{op:22} {row['passed']:7} {row['failed']:7}")
    for op in missing:
        print(f"{op:22} not in this binary")
    passed = sum(r["passed"] for r in tally.rows.values())
    print(f"{passed} passed, {len(tally.failures)} failed "
          f"({time.monotonic() - start:.0f} s)")
    return 1 if tally.failures else 0


if __name__ == "__main__":
    sys.exit(main())
