"""docs/ops-protocol.md §5 and §7: optimisation and staleness."""

import math

from core import Invalid, generator, number, reference, rejected


@reference("lr_schedule")
def lr_schedule(a):
    total, warm = a["total"], a.get("warmup", 0)
    start, floor = a.get("warmup_start", 0.1), a.get("floor", 0)
    out = []
    for k in a["steps"]:
        u = min(k / total, 1.0)
        decay = {"constant": 1.0, "linear": 1 - u,
                 "cosine": floor + (1 - floor) * (1 + math.cos(math.pi * u))
                 / 2}[a["kind"]]
        ramp = start + (1 - start) * min(k, warm) / warm if warm else 1.0
        out.append(a["peak"] * ramp * decay)
    return {"lr": out}


@generator("lr_schedule")
def _(g):
    total = g.rng.randint(1, 50)
    args = {"kind": g.pick("constant", "linear", "cosine"),
            "peak": g.num(0, 1), "total": total,
            "steps": [g.rng.randint(0, total + 9)
                      for _ in range(g.rng.randint(0, 7))]}
    if g.chance(0.5) and args["kind"] == "cosine":
        args["floor"] = g.pick(0, 0.1, 1, g.num(0, 1))
    if g.chance(0.5):
        args["warmup"] = g.rng.randint(0, 12)
    if g.chance(0.4):
        args["warmup_start"] = g.pick(0, 1, g.num(0, 1))
    return g.done(args)


@rejected("lr_schedule")
def _():
    ok = {"kind": "linear", "peak": 1, "total": 4, "steps": [0]}
    yield dict(ok, kind="step")
    yield dict(ok, total=0)
    yield dict(ok, total=1.5)
    yield dict(ok, steps=[-1])
    yield dict(ok, warmup=-1)
    yield dict(ok, peak="nan")
    yield {"kind": "linear", "peak": 1, "steps": [0]}


def norm_of(values):
    """Overflow of the squares is not a non-finite gradient."""
    if not all(math.isfinite(x) for x in values):
        return math.nan
    top = max((abs(x) for x in values), default=0.0)
    if top == 0:
        return 0.0
    return top * math.sqrt(math.fsum((x / top) ** 2 for x in values))


@reference("optimizer")
def optimizer(a):
    p = [float(x) for x in a["p"]]
    m, v, t = [0.0] * len(p), [0.0] * len(p), 0
    b1, b2 = a["betas"]
    out = {"p": [], "norm": [], "skipped": []}
    for s, raw in enumerate(a["grads"]):
        g = [number(x) for x in raw]
        norm = norm_of(g)
        skip = not math.isfinite(norm)
        out["skipped"].append(skip)
        out["norm"].append(norm)
        if not skip:
            lr = a["lr"][s] if isinstance(a["lr"], list) else a["lr"]
            t += 1
            if a.get("max_norm") is not None:
                scale = min(1.0, a["max_norm"] / (norm + 1e-6))
                g = [x * scale for x in g]
            c1, c2 = 1 - b1 ** t, 1 - b2 ** t
            for i, x in enumerate(g):
                m[i] = b1 * m[i] + (1 - b1) * x
                v[i] = b2 * v[i] + (1 - b2) * x * x
                if a["kind"] == "adamw":
                    p[i] -= lr * a.get("weight_decay", 0) * p[i]
                    p[i] -= (lr * (m[i] / c1)
                             / (math.sqrt(v[i] / c2) + a["eps"]))
                else:
                    p[i] -= (lr * math.sqrt(c2) / c1 * m[i]
                             / (math.sqrt(v[i]) + a["eps"]))
        out["p"].append(list(p))
    # The norm of a skipped step is any non-finite number: see the check.
    from core import FREE
    out["norm"] = [FREE if not math.isfinite(n) else n for n in out["norm"]]
    return out


@generator("optimizer")
def _(g):
    n, s = g.rng.randint(0, 4), g.rng.randint(0, 6)
    kind = g.pick("adamw", "tf_adam")
    scale = g.pick(1, 1e-3, 10)
    grads = g.mat(s, n, -scale, scale)
    if s and n and g.chance(0.3):
        grads[g.rng.randrange(s)][g.rng.randrange(n)] = g.pick(
            "nan", "inf", "-inf")
    args = {"kind": kind, "p": g.vec(n, -2, 2), "grads": grads,
            "lr": g.num(0, 0.1) if g.chance(0.5) else g.vec(s, 0, 0.1),
            "betas": [g.pick(0.9, 0, g.num(0, 0.99)),
                      g.pick(0.95, 0.999, g.num(0, 0.99))],
            "eps": g.pick(1e-8, 1e-5, 1e-3)}
    if kind == "adamw" and g.chance(0.5):
        args["weight_decay"] = g.num(0, 0.3)
    if g.chance(0.5):
        args["max_norm"] = g.pick(1, 0.1, 100)
    return g.done(args)


@rejected("optimizer")
def _():
    ok = {"kind": "adamw", "p": [1, 2], "grads": [[1, 2]], "lr": 0.1,
          "betas": [0.9, 0.99], "eps": 1e-8}
    yield dict(ok, betas=[1, 0.99])
    yield dict(ok, betas=[0.9, 1.0])
    yield dict(ok, betas=[-0.1, 0.9])
    yield dict(ok, betas=[0.9])
    yield dict(ok, eps=-1)
    yield dict(ok, grads=[[1]])
    yield dict(ok, lr=[0.1, 0.1])
    yield dict(ok, max_norm=0)
    yield dict(ok, kind="sgd")
    yield dict(ok, p=["nan", 1])
    yield dict(ok, lr="inf")
    yield dict(ok, weight_decay="nan")


@reference("grad_clip")
def grad_clip(a):
    from core import FREE
    rows = [[number(x) for x in r] for r in a["grads"]]
    norm = norm_of([x for r in rows for x in r])
    if not math.isfinite(norm):
        return {"grads": a["grads"], "norm": FREE, "skipped": True}
    scale = min(1.0, a["max_norm"] / (norm + 1e-6))
    return {"grads": [[x * scale for x in r] for r in rows], "norm": norm,
            "skipped": False}


@generator("grad_clip")
def _(g):
    rows = [g.vec(g.rng.randint(0, 4), -4, 4)
            for _ in range(g.rng.randint(0, 4))]
    if g.chance(0.2) and rows and rows[-1]:
        rows[-1][0] = g.pick("nan", "inf", "-inf")
    return g.done({"grads": rows, "max_norm": g.pick(1, 0.5, 50)})


@rejected("grad_clip")
def _():
    yield {"grads": [[1]], "max_norm": 0}
    yield {"grads": [[1]], "max_norm": "nan"}
    yield {"grads": [1], "max_norm": 1}
    yield {"grads": [[1]]}


@reference("decay_mask")
def decay_mask(a):
    special = ("wte.", "wpe.", "embed", "score.")
    return {"decay": [len(s) >= 2 and not any(k in n for k in special)
                      for n, s in zip(a["names"], a["shapes"])]}


NAMES = [("transformer.wte.weight", 2), ("wpe.weight", 2),
         ("h.0.ln_1.weight", 1), ("h.0.ln_1.bias", 1),
         ("h.0.attn.c_attn.weight", 2), ("h.0.attn.c_attn.bias", 1),
         ("h.1.mlp.c_fc.weight", 2), ("ln_f.weight", 1),
         ("model.embed_tokens.weight", 2), ("score.weight", 2),
         ("model.layers.0.self_attn.q_proj.weight", 2),
         ("model.layers.0.self_attn.q_norm.weight", 1),
         ("model.layers.11.mlp.down_proj.weight", 2),
         ("model.norm.weight", 1), ("score.bias", 1),
         ("encoder.embed_positions.weight", 2),
         ("decoder.embed_positions.weight", 2),
         ("decoder.layers.0.cross_attn.k_proj.weight", 2),
         ("decoder.layers.0.fc1.bias", 1)]


@generator("decay_mask")
def _(g):
    some = g.rng.sample(NAMES, g.rng.randint(0, len(NAMES)))
    return {"names": [n for n, _ in some],
            "shapes": [[1, 8] if n == "score.weight" else
                       [g.rng.randint(2, 9) for _ in range(r)]
                       for n, r in some]}


@rejected("decay_mask")
def _():
    yield {"names": ["a"], "shapes": [[1], [2]]}
    yield {"names": [1], "shapes": [[1]]}
    yield {"names": ["a"], "shapes": [[-1]]}
    yield {"names": ["a"]}


@reference("ema")
def ema(a):
    shadow, out = [float(x) for x in a["theta0"]], []
    for theta in a["thetas"]:
        shadow = [a["decay"] * s + (1 - a["decay"]) * x
                  for s, x in zip(shadow, theta)]
        out.append(shadow)
    return {"shadow": out}


@generator("ema")
def _(g):
    n = g.rng.randint(0, 4)
    return g.done({"theta0": g.vec(n, -2, 2),
                   "thetas": g.mat(g.rng.randint(0, 5), n, -2, 2),
                   "decay": g.pick(0, 1, 0.992, g.num(0, 1))})


@rejected("ema")
def _():
    ok = {"theta0": [1], "thetas": [[2]], "decay": 0.5}
    yield dict(ok, decay=1.5)
    yield dict(ok, decay=-0.5)
    yield dict(ok, thetas=[[1, 2]])
    yield dict(ok, theta0=["nan"])
    yield dict(ok, thetas=[["inf"]])


# --- staleness -------------------------------------------------------------

@reference("staleness_capacity")
def staleness_capacity(a):
    used = a["accepted"] + a["running"]
    room = (a["eta_max"] + a["version"] + 1) * a["batch"] - used
    if a.get("max_concurrent") is not None:
        room = min(room, a["max_concurrent"] - a["running"])
    return {"capacity": max(room, 0)}


@generator("staleness_capacity")
def _(g):
    args = {"eta_max": g.rng.randint(0, 8), "batch": g.rng.randint(1, 64),
            "version": g.rng.randint(0, 20),
            "accepted": g.rng.randint(0, 900), "running": g.rng.randint(0, 99)}
    if g.chance(0.5):
        args["max_concurrent"] = g.pick(None, g.rng.randint(0, 128))
    return args


@rejected("staleness_capacity")
def _():
    ok = {"eta_max": 2, "batch": 8, "version": 0, "accepted": 0,
          "running": 0}
    for name in ok:
        yield dict(ok, **{name: -1})
        yield dict(ok, **{name: 0.5})
        yield {k: v for k, v in ok.items() if k != name}
    yield dict(ok, batch=0)
    yield dict(ok, max_concurrent=-1)


@reference("staleness_filter")
def staleness_filter(a):
    eta = []
    for row in a["token_versions"]:
        if any(v > a["trainer_version"] for v in row):
            raise Invalid
        eta.append(a["trainer_version"] - min(row))
    return {"eta": eta, "keep": [e <= a["eta_max"] for e in eta]}


@generator("staleness_filter")
def _(g):
    v = g.rng.randint(0, 9)
    top = v + (1 if g.chance(0.1) else 0)
    return {"trainer_version": v, "eta_max": g.rng.randint(0, 5),
            "token_versions": [[g.rng.randint(0, top)
                                for _ in range(g.rng.randint(1, 5))]
                               for _ in range(g.rng.randint(0, 5))]}


@rejected("staleness_filter")
def _():
    yield {"trainer_version": 3, "token_versions": [[3, 4]], "eta_max": 2}
    yield {"trainer_version": 3, "token_versions": [[-1]], "eta_max": 2}
    yield {"trainer_version": -1, "token_versions": [], "eta_max": 2}
    yield {"trainer_version": 3, "token_versions": [3], "eta_max": 2}
    yield {"trainer_version": 3, "token_versions": [[3]], "eta_max": -1}
