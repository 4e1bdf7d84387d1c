"""docs/ops-protocol.md §6: what is drawn, and with which log-probability."""

import json
import math
import os
import tempfile

from core import (GENERATORS, FREE, Invalid, check, generator, reference,
                  rejected)

NEG = -math.inf


def processed(a):
    """[(log-prob, kept)] per token, algorithms.md §10."""
    z = [float(x) for x in a["logits"]]
    rho = a.get("repetition_penalty", 1)
    for i in set(a.get("context", [])):
        z[i] = z[i] * rho if z[i] < 0 else z[i] / rho
    dead = set(a.get("forbid_ids", []))
    if a.get("generated", 0) < a.get("min_new_tokens", 0):
        dead |= set(a.get("eos_ids", []))
    z = [NEG if i in dead else x for i, x in enumerate(z)]
    alive = [i for i in range(len(z)) if z[i] > NEG]
    if not alive:
        raise Invalid
    tau = a.get("temperature", 1)
    if tau == 0:
        best = max(alive, key=lambda i: (z[i], -i))
        return [(0.0 if i == best else NEG) for i in range(len(z))]
    z = [x / tau for x in z]
    k = a.get("top_k", 0)
    if 0 < k < len(z):
        kth = sorted(z, reverse=True)[k - 1]
        alive = [i for i in alive if z[i] >= kth]

    def probs():
        top = max(z[i] for i in alive)
        w = {i: math.exp(z[i] - top) for i in alive}
        s = math.fsum(w.values())
        return {i: x / s for i, x in w.items()}

    p_keep = a.get("top_p", 1)
    if p_keep < 1:
        p = probs()
        kept, mass = [], 0.0
        for i in sorted(alive, key=lambda i: (-p[i], i)):
            if kept and mass >= p_keep:
                break
            kept.append(i)
            mass += p[i]
        alive = kept
    p = probs()
    floor = a.get("min_p", 0) * max(p.values())
    alive = [i for i in alive if p[i] >= floor]
    top = max(z[i] for i in alive)
    lse = top + math.log(math.fsum(math.exp(z[i] - top) for i in alive))
    alive = set(alive)
    return [z[i] - lse if i in alive else NEG for i in range(len(z))]


@reference("process_logits")
def process_logits(a):
    lp = processed(a)
    return {"logprob": lp, "keep": [x > NEG for x in lp]}


def processing(g, v, args, context=True):
    if g.chance(0.6):
        args["temperature"] = g.pick(0.7, 1, 2, 0.1, 0)
    if g.chance(0.4):
        args["top_k"] = g.rng.randint(0, v + 2)
    if g.chance(0.5):
        args["top_p"] = g.pick(0.9, 0.5, 0.05, 1, g.num(0.01, 1))
    if g.chance(0.4):
        args["min_p"] = g.pick(0.1, 0.05, 0, g.num(0, 1))
    if g.chance(0.4):
        args["repetition_penalty"] = g.pick(1.2, 0.8, 1, 3)
    if g.chance(0.3):
        args["forbid_ids"] = [g.rng.randrange(v)
                              for _ in range(g.rng.randint(0, 3))]
    if g.chance(0.4):
        args["eos_ids"] = [g.rng.randrange(v)]
        args["min_new_tokens"] = g.rng.randint(0, 3)
    return args


@generator("process_logits")
def gen_process(g):
    v = g.pick(1, 2, 3, 5, 11, 40)
    grid = g.chance(0.3)       # ties
    logits = ([float(g.rng.randint(-2, 2)) for _ in range(v)] if grid
              else g.vec(v, -6, 6))
    if v > 2 and g.chance(0.2):
        logits[g.rng.randrange(v)] = NEG
    args = processing(g, v, {"logits": logits})
    if grid:
        # A boundary that rounding may move is no fair question.
        args.pop("top_p", None)
        args["min_p"] = g.pick(0, 1)
        if args.get("temperature") not in (0, 1, 2):
            args["temperature"] = 1
        if args.get("repetition_penalty") not in (None, 1):
            args["repetition_penalty"] = 2
    if g.chance(0.6):
        args["context"] = [g.rng.randrange(v)
                           for _ in range(g.rng.randint(0, 5))]
    if g.chance(0.5):
        args["generated"] = g.rng.randint(0, 4)
    return g.done(args)


@rejected("process_logits")
def _():
    ok = {"logits": [0.0, 1.0, 2.0]}
    yield dict(ok, temperature=-0.1)
    yield dict(ok, temperature="nan")
    yield dict(ok, top_k=-1)
    yield dict(ok, top_k=1.5)
    yield dict(ok, top_p=0)
    yield dict(ok, top_p=1.01)
    yield dict(ok, min_p=-0.1)
    yield dict(ok, min_p=1.1)
    yield dict(ok, repetition_penalty=0)
    yield dict(ok, repetition_penalty=-1)
    yield dict(ok, forbid_ids=[0, 1, 2])
    yield dict(ok, eos_ids=[0], min_new_tokens=1, forbid_ids=[1, 2])
    yield dict(ok, context=[3])
    yield dict(ok, context=[-1])
    yield dict(ok, forbid_ids=[-1])
    yield dict(ok, min_new_tokens=-1)
    yield dict(ok, generated=-1)
    yield dict(ok, logits=["nan", 0])
    yield dict(ok, logits=["inf", 0])
    yield dict(ok, logits=["-inf", "-inf"])
    yield dict(ok, logits=[])


def draw(lp, u):
    """First index in id order with CDF > u; None if rounding may decide."""
    acc, last = 0.0, None
    for i, x in enumerate(lp):
        if x == NEG:
            continue
        acc += math.exp(x)
        last = i
        if acc > u:
            near = abs(acc - u) < 1e-6 and acc < 1 - 1e-9
            return None if near else i
        if abs(acc - u) < 1e-6 and u > 0:
            # Beyond the rounded CDF the last kept token is drawn.
            if all(y == NEG for y in lp[i + 1:]):
                return i
            return None
    return last


@reference("sample")
def sample(a):
    lp = processed(a)
    tokens, out = [], []
    for u in a["uniforms"]:
        i = draw(lp, u)
        tokens.append(FREE if i is None else i)
        out.append(FREE if i is None else lp[i])
    return {"tokens": tokens, "logprob": out}


@generator("sample")
def _(g):
    args = gen_process(g)
    n = g.rng.randint(0, 6)
    args["uniforms"] = [g.pick(0, 1 - 2.0 ** -53 if g.dtype == "float64"
                               else 1 - 2.0 ** -24, g.num(0, 0.999999))
                        for _ in range(n)]
    return args


@check("sample")
def _(args, result):
    lp = processed(args)
    for t, x in zip(result["tokens"], result["logprob"]):
        if lp[t] == NEG:
            yield f"token {t} is removed"
        elif abs(lp[t] - x) > 1e-5:
            yield f"log-prob {x} is not that of token {t}, {lp[t]}"


@rejected("sample")
def _():
    ok = {"logits": [0.0, 1.0], "uniforms": [0.5]}
    yield dict(ok, uniforms=[1.0])
    yield dict(ok, uniforms=[-0.1])
    yield dict(ok, uniforms=["nan"])
    yield dict(ok, uniforms=0.5)
    yield dict(ok, top_p=0)
    yield {"logits": [0.0]}


# --- the counter-based generator -------------------------------------------

@reference("uniforms")
def uniforms(a):
    return {"u": [FREE] * len(a["keys"])}


@generator("uniforms")
def _(g):
    n = g.rng.randint(0, 60)
    prompt = g.rng.getrandbits(63)
    return {"seed": g.pick(0, 1, g.rng.getrandbits(64)),
            "keys": [[g.pick(prompt, g.rng.getrandbits(20)),
                      g.rng.randint(0, 9), g.rng.randint(0, 4000)]
                     for _ in range(n)]}


@check("uniforms")
def _(args, result):
    seen = {}
    for key, u in zip(args["keys"], result["u"]):
        if not 0 <= u < 1:
            yield f"{u} outside [0, 1)"
        if seen.setdefault(tuple(key), u) != u:
            yield f"key {key} gave two numbers"
    if len(set(seen.values())) != len(seen):
        yield "two keys gave one number"


@rejected("uniforms")
def _():
    ok = {"seed": 1, "keys": [[1, 2, 3]]}
    yield dict(ok, seed=-1)
    yield dict(ok, seed=0.5)
    yield dict(ok, keys=[[1, 2]])
    yield dict(ok, keys=[[1, 2, -3]])
    yield dict(ok, keys=[1])
    yield {"keys": [[1, 2, 3]]}


# --- table reward ----------------------------------------------------------

TABLES = tempfile.TemporaryDirectory(prefix="cox-oracle-")
CONTENTS = {}


@reference("table_reward")
def table_reward(a):
    table = CONTENTS[a["path"]]
    out = []
    for prompt, response in zip(a["prompts"], a["responses"]):
        hit = [e["reward"] for e in table["entries"]
               if e["response"] == response
               and e.get("prompt", prompt) == prompt]
        found = hit[0] if hit else table["default"]
        out.append(None if found is None else float(found))
    return {"rewards": out}


@generator("table_reward")
def _(g):
    ids = lambda n: [g.rng.randint(0, 2) for _ in range(g.rng.randint(1, n))]
    seen, entries = set(), []
    with_prompt = g.chance(0.5)
    for _ in range(g.rng.randint(0, 6)):
        e = {"response": ids(3), "reward": g.num(-3, 3)}
        if with_prompt:
            e["prompt"] = ids(2)
        key = (tuple(e.get("prompt", ())), tuple(e["response"]))
        if key not in seen:
            seen.add(key)
            entries.append(e)
    table = {"default": g.pick(None, g.num(-1, 1)), "entries": entries}
    path = os.path.join(TABLES.name, f"{len(CONTENTS)}.json")
    with open(path, "w") as f:
        json.dump(table, f)
    CONTENTS[path] = table
    n = g.rng.randint(0, 6)
    args = {"path": path, "prompts": [ids(2) for _ in range(n)],
            "responses": [ids(3) for _ in range(n)]}
    return g.done(args)


@rejected("table_reward")
def _():
    ok = {"path": "/dev/null/none.json", "prompts": [[1]],
          "responses": [[2]]}
    yield dict(ok, prompts=[[1], [2]])
    yield dict(ok, prompts=[1])
    yield {"prompts": [[1]], "responses": [[2]]}


def reject_files():
    """(args, code) of files that cannot be used."""
    ok = {"prompts": [[1]], "responses": [[2]]}
    yield dict(ok, path=TABLES.name + "/missing.json"), "NOT_FOUND"
    bad = ['{', '[]', '{"entries": 3}',
           '{"entries": [{"response": [1]}]}',
           '{"entries": [{"response": "a", "reward": 1}]}',
           '{"entries": [{"response": [1], "reward": "x"}]}',
           '{"default": "x", "entries": []}']
    for i, text in enumerate(bad):
        path = os.path.join(TABLES.name, f"bad{i}.json")
        with open(path, "w") as f:
            f.write(text)
        yield dict(ok, path=path), ("INVALID_ARGUMENT", "FAILED_PRECONDITION")
