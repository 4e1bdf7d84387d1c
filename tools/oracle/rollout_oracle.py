"""docs/ops-protocol.md §3: log-probs, rewards, advantages, statistics."""

import math

import core
import tape
from core import (FREE, Invalid, check, generator, mask_of, reference,
                  rejected, shape2, weights, zeros)


# --- logprob ---------------------------------------------------------------

@reference("logprob")
def logprob(a):
    logits, ids = a["logits"], a["ids"]
    tau = a.get("temperature", 1)
    b, t = shape2(ids)
    mask = mask_of(a, "ids")
    up, ue = a.get("upstream"), a.get("upstream_entropy")
    lp, ent = zeros(b, t), zeros(b, t)
    grad = []
    for i in range(b):
        grad.append([])
        for j in range(t):
            row = logits[i][j]
            if not mask[i][j]:
                grad[i].append([0] * len(row))
                continue
            z = [tape.Var(float(x)) for x in row]
            logp = tape.log_softmax([x / tau for x in z])
            p = [tape.exp(x) if tape.val(x) > -math.inf else 0.0
                 for x in logp]
            h = tape.total([-(x * y) for x, y in zip(p, logp)
                            if tape.val(y) > -math.inf])
            lp[i][j], ent[i][j] = tape.val(logp[ids[i][j]]), h.v
            loss = tape.total([h * (ue[i][j] if ue else 0.0),
                               logp[ids[i][j]] * (up[i][j] if up else 0.0)])
            tape.backward(loss)
            grad[i].append([x.grad for x in z])
    out = {"logprob": lp, "entropy": ent}
    if up is not None or ue is not None:
        out["grad_logits"] = grad
    else:
        out["grad_logits"] = FREE
    return out


@generator("logprob")
def _(g):
    b, t = g.dims(3, 5)
    v = g.pick(1, 2, 3, 7, 11)
    scale = g.pick(1, 5, 30)
    mask = g.mask(b, t)
    logits, ids = [], []
    for i in range(b):
        rows = []
        for j in range(t):
            row = g.vec(v, -scale, scale)
            if v > 2 and g.chance(0.2):
                row[g.rng.randrange(v)] = float("-inf")
            rows.append(row)
        logits.append(rows)
        ids.append([g.rng.choice([k for k in range(v)
                                  if r[k] > -math.inf]) for r in rows])
    for i in range(b):
        for j in range(t):
            if not mask[i][j]:
                logits[i][j] = [g.rng.choice(g.POISON) for _ in range(v)]
    args = {"logits": logits, "ids": g.poison_ids(ids, mask)}
    if g.chance(0.5):
        args["temperature"] = g.pick(0.7, 0.1, 2.5, 1)
    if g.chance(0.6):
        args["upstream"] = g.poison(g.mat(b, t, -2, 2), mask)
    if g.chance(0.6):
        args["upstream_entropy"] = g.poison(g.mat(b, t, -2, 2), mask)
    return g.done(args, mask)


@rejected("logprob")
def _():
    ok = {"logits": [[[0.0, 1.0], [2.0, 3.0]]], "ids": [[0, 1]]}
    yield dict(ok, ids=[[0, 2]])
    yield dict(ok, ids=[[-100, 1]])
    yield dict(ok, ids=[[0, 1, 1]])
    yield dict(ok, ids=[[0.5, 1]])
    yield dict(ok, temperature=0)
    yield dict(ok, temperature=-1)
    yield dict(ok, temperature="inf")
    yield dict(ok, logits=[[["nan", 1], [2, 3]]])
    yield dict(ok, logits=[[["inf", 1], [2, 3]]])
    yield dict(ok, logits=[[["-inf", "-inf"], [2, 3]]])
    yield dict(ok, logits=[[[0, 1], [2]]])
    yield dict(ok, mask=[[1, 1, 1]])
    yield dict(ok, upstream=[["nan", 0]])
    yield dict(ok, upstream=[[0]])
    yield dict(ok, upstream_entropy=[["inf", 0]])
    yield {"logits": ok["logits"]}


# --- positions and cuts ----------------------------------------------------

@reference("position_ids")
def position_ids(a):
    out = []
    for row in a["mask"]:
        seen, ids = 0, []
        for m in row:
            ids.append(seen if m else FREE)
            seen += m
        out.append(ids)
    return {"ids": out}


@generator("position_ids")
def _(g):
    b, t = g.dims()
    return {"mask": g.mask(b, t)}


@check("position_ids")
def _(args, result):
    for row in result["ids"]:
        for x in row:
            if not 0 <= x < max(len(row), 1):
                yield f"position {x} outside [0, {len(row)})"


@rejected("position_ids")
def _():
    yield {"mask": [[0, 2]]}
    yield {"mask": [[0], [0, 1]]}
    yield {"mask": [0, 1]}
    yield {"mask": [["nan"]]}
    yield {}


@reference("cut_response")
def cut_response(a):
    first = a.get("min_stop_index", 0)
    out = {"tokens": [], "mask": [], "length": [], "finish": []}
    for row in a["tokens"]:
        cut = next((i for i, x in enumerate(row)
                    if i >= first and x in a["stop_ids"]), None)
        n = len(row) if cut is None else cut + 1
        out["tokens"].append(row[:n] + [a["pad_id"]] * (len(row) - n))
        out["mask"].append([1] * n + [0] * (len(row) - n))
        out["length"].append(n)
        out["finish"].append("length" if cut is None else "stop")
    return out


@generator("cut_response")
def _(g):
    b, t = g.dims(4, 8)
    v = g.pick(2, 4, 9)
    args = {"tokens": [[g.rng.randint(1, v) for _ in range(t)]
                       for _ in range(b)],
            "stop_ids": [g.rng.randint(1, v)
                         for _ in range(g.rng.randint(0, 3))],
            "pad_id": 0}
    if g.chance(0.5):
        args["min_stop_index"] = g.rng.randint(0, t + 2)
    return g.done(args)


@rejected("cut_response")
def _():
    ok = {"tokens": [[3, 4]], "stop_ids": [4], "pad_id": 0}
    yield dict(ok, min_stop_index=-1)
    yield dict(ok, tokens=[[3, 4], [3]])
    yield dict(ok, tokens=[[3, "nan"]])
    yield dict(ok, stop_ids=4)
    yield {"tokens": [[3]], "stop_ids": [4]}


# --- statistics ------------------------------------------------------------

def masked(x, mask):
    return [v for r, m in zip(x, mask) for v, k in zip(r, m) if k]


def mean(values):
    return math.fsum(values) / len(values) if values else 0.0


@reference("masked_mean")
def masked_mean(a):
    values = masked(a["x"], mask_of(a, "x"))
    return {"mean": mean(values), "count": len(values)}


@generator("masked_mean")
def _(g):
    b, t = g.dims()
    mask = g.mask(b, t)
    return g.done({"x": g.poison(g.mat(b, t, -9, 9), mask)}, mask)


@rejected("masked_mean")
def _():
    yield {"x": [["nan"]]}
    yield {"x": [[1, 2], [3]]}
    yield {"x": [[1, 2]], "mask": [[1]]}
    yield {"x": [[1, 2]], "mask": [[1, 0.5]]}
    yield {"x": 3}


def whitened(values, shift=True, ddof=0, eps=1e-8):
    n = len(values)
    mu = mean(values)
    var = (math.fsum((v - mu) ** 2 for v in values) / (n - ddof)
           if n > ddof else 0.0)
    base = 0.0 if shift else mu
    return [(v - mu) / math.sqrt(var + eps) + base for v in values], mu, var


def scatter(values, mask):
    it = iter(values)
    return [[next(it) if m else 0 for m in r] for r in mask]


@reference("whiten")
def whiten(a):
    mask = mask_of(a, "x")
    out, mu, var = whitened(masked(a["x"], mask), a.get("shift_mean", True),
                            a.get("ddof", 0), a.get("eps", 1e-8))
    return {"out": scatter(out, mask), "mean": mu, "var": var}


@generator("whiten")
def _(g):
    b, t = g.dims(5, 5)
    mask = g.mask(b, t)
    centre = g.pick(0, 0, 1e5 if g.dtype == "float64" else 3)
    x = g.mat(b, t, centre - 3, centre + 3)
    args = {"x": g.poison(x, mask)}
    if g.chance(0.5):
        args["shift_mean"] = g.chance(0.5)
    if g.chance(0.5):
        args["ddof"] = g.pick(0, 1, 1, 2)
    if g.chance(0.3):
        args["eps"] = g.pick(1e-8, 1e-5, 0.1)
    return g.done(g.ranks(args, b), mask)


@rejected("whiten")
def _():
    ok = {"x": [[1, 2], [3, 4]]}
    yield dict(ok, x=[["inf", 1]])
    yield dict(ok, ddof=-1)
    yield dict(ok, ddof=0.5)
    yield dict(ok, eps=-1e-8)
    yield dict(ok, world=0)
    yield dict(ok, micro_batch=0)
    yield dict(ok, world=2, rank_of_row=[0, 2])
    yield dict(ok, world=2, rank_of_row=[0, -1])
    yield dict(ok, world=2, rank_of_row=[0])
    yield dict(ok, shift_mean="yes")


@reference("aggregate")
def aggregate(a):
    mask = mask_of(a, "loss")
    w = weights(mask, a["mode"], a.get("t_max"))
    value = math.fsum(x * y for r, v, m in zip(a["loss"], w, mask)
                      for x, y, k in zip(r, v, m) if k)
    return {"value": value, "weight": w}


@generator("aggregate")
def _(g):
    b, t = g.dims(5, 5)
    mask = g.mask(b, t)
    args = {"loss": g.poison(g.mat(b, t, -4, 4), mask),
            "mode": g.pick("token_mean", "seq_mean_token_mean",
                           "seq_mean_token_sum", "const")}
    if args["mode"] == "const":
        args["t_max"] = g.rng.randint(1, t + 4)
    return g.done(g.ranks(args, b), mask)


@rejected("aggregate")
def _():
    ok = {"loss": [[1, 2]], "mode": "token_mean"}
    yield dict(ok, mode="mean")
    yield dict(ok, mode="const")
    yield dict(ok, mode="const", t_max=0)
    yield dict(ok, mode="const", t_max=-3)
    yield dict(ok, loss=[["nan", 2]])
    yield {"loss": [[1]]}


# --- KL, rewards -----------------------------------------------------------

def kl_term(x, ref, kind, clip=False):
    """x may be a Var; algorithms.md §5.1."""
    d = x - ref
    if kind == "k1":
        return d
    if kind == "k2":
        return d * d / 2
    n = -d
    if clip:
        n = tape.clamp(n, -20.0, 20.0)
    k = tape.exp(n) - 1 - n
    return tape.minimum(k, 10.0) if clip else k


@reference("kl_estimate")
def kl_estimate(a):
    lp, ref = a["logprob"], a["ref_logprob"]
    mask = mask_of(a)
    b, t = shape2(lp)
    kl, grad = zeros(b, t), zeros(b, t)
    for i in range(b):
        for j in range(t):
            if mask[i][j]:
                x = tape.Var(lp[i][j])
                k = kl_term(x, ref[i][j], a["kind"], a.get("clamp", False))
                kl[i][j] = float(tape.val(k))
                if isinstance(k, tape.Var):
                    tape.backward(k)
                    grad[i][j] = x.grad
    return {"kl": kl, "sum": [math.fsum(r) if any(m) else 0
                              for r, m in zip(kl, mask)],
            "mean": mean(masked(kl, mask)), "grad": grad}


@generator("kl_estimate")
def _(g):
    b, t = g.dims()
    mask = g.mask(b, t)
    kind = g.pick("k1", "k2", "k3")
    clip = kind == "k3" and g.chance(0.5)
    span = 60 if clip and g.dtype == "float64" else 3
    args = {"logprob": g.poison(g.mat(b, t, -span, 0), mask),
            "ref_logprob": g.poison(g.mat(b, t, -span, 0), mask),
            "kind": kind}
    if clip or g.chance(0.2):
        args["clamp"] = clip
    return g.done(args, mask)


@rejected("kl_estimate")
def _():
    ok = {"logprob": [[-1, -2]], "ref_logprob": [[-1, -1]], "kind": "k1"}
    yield dict(ok, kind="k4")
    yield dict(ok, logprob=[["nan", -1]])
    yield dict(ok, ref_logprob=[["-inf", -1]])
    yield dict(ok, ref_logprob=[[-1]])
    yield {"logprob": [[-1]], "ref_logprob": [[-1]]}


@reference("shape_rewards")
def shape_rewards(a):
    lp, ref = a["logprob"], a["ref_logprob"]
    mask = mask_of(a)
    b, t = shape2(lp)
    finish = a.get("finish") or ["stop"] * b
    missing = a.get("missing_stop") or {"mode": "none"}
    rewards, value_mask, sums = zeros(b, t), [list(r) for r in mask], []
    for i in range(b):
        score = a["scores"][i]
        penalty = missing.get("value", 1)
        if finish[i] == "length" and missing["mode"] == "replace":
            score = -penalty
        if finish[i] == "length" and missing["mode"] == "subtract":
            score -= penalty
        clip = a.get("score_clip")
        if clip is not None and any(mask[i]):
            score = min(max(score, -clip), clip)
        kl = [kl_term(float(lp[i][j]), ref[i][j], a.get("kl", "k1"))
              if mask[i][j] else None for j in range(t)]
        for j in range(t):
            if mask[i][j]:
                rewards[i][j] = -a["beta"] * kl[j]
        sums.append(math.fsum(k for k in kl if k is not None)
                    if any(mask[i]) else 0)
        if not any(mask[i]):
            continue
        last = max(j for j in range(t) if mask[i][j])
        if a.get("position", "last") == "after_last" and last + 1 < t:
            last += 1
            value_mask[i][last] = 1
        rewards[i][last] = float(rewards[i][last] + score)
    return {"rewards": rewards, "kl_sum": sums, "value_mask": value_mask}


@generator("shape_rewards")
def _(g):
    b, t = g.dims()
    mask = g.mask(b, t)
    args = {"logprob": g.poison(g.mat(b, t, -4, 0), mask),
            "ref_logprob": g.poison(g.mat(b, t, -4, 0), mask),
            "scores": g.vec(b, -3, 3), "beta": g.num(0, 0.5)}
    if g.chance(0.5):
        args["kl"] = g.pick("k1", "k2", "k3")
    if g.chance(0.6):
        args["position"] = g.pick("last", "after_last")
    if g.chance(0.7):
        args["finish"] = [g.pick("stop", "length") for _ in range(b)]
    if g.chance(0.6):
        args["missing_stop"] = {"mode": g.pick("none", "replace", "subtract")}
        if g.chance(0.7):
            args["missing_stop"]["value"] = g.num(0, 3)
    if g.chance(0.4):
        args["score_clip"] = g.num(0.1, 2)
    return g.done(args, mask)


@rejected("shape_rewards")
def _():
    ok = {"logprob": [[-1, -2]], "ref_logprob": [[-1, -1]], "scores": [1],
          "beta": 0.1}
    yield dict(ok, beta=-0.1)
    yield dict(ok, beta="nan")
    yield dict(ok, scores=["nan"])
    yield dict(ok, scores=[1, 2])
    yield dict(ok, kl="k5")
    yield dict(ok, position="first")
    yield dict(ok, finish=["abc"])
    yield dict(ok, finish=["stop", "stop"])
    yield dict(ok, missing_stop={"mode": "drop"})
    yield dict(ok, missing_stop={"mode": "replace", "value": "nan"})
    yield dict(ok, missing_stop={"mode": "replace", "surplus": 1})
    yield dict(ok, logprob=[["-inf", -1]])


# --- advantages ------------------------------------------------------------

@reference("gae")
def gae(a):
    rewards, values = a["rewards"], a["values"]
    mask = mask_of(a, "rewards")
    b, t = shape2(rewards)
    gamma, lam = a.get("gamma", 1), a.get("lambda", 0.95)
    adv, ret = zeros(b, t), zeros(b, t)
    for i in range(b):
        real = [j for j in range(t) if mask[i][j]]
        # Each advantage as its own sum over the later steps, not as a carry.
        delta = []
        for n, j in enumerate(real):
            nxt = values[i][real[n + 1]] if n + 1 < len(real) else 0.0
            delta.append(rewards[i][j] + gamma * nxt - values[i][j])
        for n, j in enumerate(real):
            adv[i][j] = math.fsum((gamma * lam) ** (k - n) * delta[k]
                                  for k in range(n, len(real)))
            ret[i][j] = adv[i][j] + values[i][j]
    return {"advantages": adv, "returns": ret}


@generator("gae")
def _(g):
    b, t = g.dims(4, 9)
    mask = g.mask(b, t)
    args = {"rewards": g.poison(g.mat(b, t, -2, 2), mask),
            "values": g.poison(g.mat(b, t, -2, 2), mask)}
    if g.chance(0.6):
        args["gamma"] = g.pick(0, 1, g.num(0, 1))
    if g.chance(0.6):
        args["lambda"] = g.pick(0, 1, g.num(0, 1))
    return g.done(args, mask)


@rejected("gae")
def _():
    ok = {"rewards": [[1, 2]], "values": [[1, 2]]}
    yield dict(ok, gamma=1.0001)
    yield {**ok, "lambda": -0.1}
    yield dict(ok, rewards=[["nan", 1]])
    yield dict(ok, values=[[1]])
    yield dict(ok, values=[[1], [2]])
    yield dict(ok, mask=[[1, 1], [1, 1]])
    yield {"rewards": [[1]]}


@reference("group_advantages")
def group_advantages(a):
    kind, mask = a["kind"], a["mask"]
    b = len(mask)
    if kind == "reinforce_pp":
        r = a["token_rewards"]
        values = [math.fsum(r[i][s] for s in range(j, len(mask[i]))
                            if mask[i][s])
                  for i in range(b) for j in range(len(mask[i]))
                  if mask[i][j]]
        return {"advantages": scatter(whitened(values)[0], mask)}
    valid = a.get("valid") or [True] * b
    adv = [0] * b
    for name in set(map(repr, a["group"])):
        members = [i for i in range(b) if repr(a["group"][i]) == name]
        good = [i for i in members if valid[i]]
        if len(good) < 2:
            for i in good:
                adv[i] = 0.0
            continue
        scores = [a["scores"][i] for i in good]
        if len(set(scores)) == 1:
            for i in good:
                adv[i] = 0.0 if kind == "reinforce_pp_baseline" else 0
            continue
        mu = mean(scores)
        std = math.sqrt(math.fsum((s - mu) ** 2 for s in scores)
                        / (len(scores) - 1))
        for i, s in zip(good, scores):
            if kind == "rloo":
                others = list(scores)
                others.remove(s)
                adv[i] = s - mean(others)
            elif kind == "grpo":
                adv[i] = (s - mu) / (std + a.get("eps", 1e-6))
            else:
                adv[i] = s - mu
    if kind == "reinforce_pp_baseline":
        live = [[m if valid[i] else 0 for m in mask[i]] for i in range(b)]
        values = [adv[i] for i in range(b) for m in live[i] if m]
        return {"advantages": scatter(whitened(values)[0], live)}
    return {"advantages": [[adv[i] if m and valid[i] else 0 for m in mask[i]]
                           for i in range(b)]}


@generator("group_advantages")
def _(g):
    kind = g.pick("rloo", "grpo", "dr_grpo", "reinforce_pp",
                  "reinforce_pp_baseline")
    groups = g.rng.randint(0, 3)
    names = g.rng.sample([7, -3, "a", "x y", 0, 10 ** 12, "7"], groups)
    group = [n for n in names for _ in range(g.rng.randint(2, 4))]
    g.rng.shuffle(group)
    b = len(group)
    t = g.pick(1, 2, 5)
    mask = g.mask(b, t)
    # Scores on a grid, so that ties and all-equal groups happen.
    step = g.pick(0.25, None)
    args = {"kind": kind, "mask": mask}
    scores = [g.rng.randint(-2, 2) * step if step else g.num(-2, 2)
              for _ in range(b)]
    if g.chance(0.2):
        same = {n: g.num(-1, 1) for n in names}
        scores = [same[n] for n in group]
    if kind != "reinforce_pp" or g.chance(0.3):
        args.update(scores=scores, group=group)
        if g.chance(0.5):
            args["valid"] = [g.chance(0.7) for _ in range(b)]
            args["scores"] = [s if ok else g.pick("nan", "inf", s)
                              for s, ok in zip(scores, args["valid"])]
    if kind == "reinforce_pp":
        args["token_rewards"] = g.poison(g.mat(b, t, -2, 2), mask)
    if kind == "grpo" and g.chance(0.5):
        args["eps"] = g.pick(1e-6, 1e-4, 0.1)
    return g.done(g.ranks(args, b))


@rejected("group_advantages")
def _():
    ok = {"kind": "rloo", "mask": [[1], [1]], "scores": [1, 2],
          "group": [0, 0]}
    for kind in ("rloo", "grpo", "dr_grpo", "reinforce_pp_baseline"):
        yield dict(ok, kind=kind, group=[0, 1])
        yield dict(ok, kind=kind, scores=["nan", 1])
        yield dict(ok, kind=kind, mask=[[1]], scores=[1], group=[0])
        yield dict(ok, kind=kind, world=2, rank_of_row=[0, 1], group=[0, 1])
        yield {"kind": kind, "mask": [[1], [1]]}
    yield dict(ok, kind="ppo")
    yield dict(ok, scores=[1])
    yield dict(ok, group=[0])
    yield dict(ok, valid=[True])
    yield dict(ok, valid=[True, 3])
    yield dict(ok, kind="grpo", eps=-1)
    yield dict(ok, kind="reinforce_pp")
    yield dict(ok, kind="reinforce_pp", token_rewards=[["nan"], [1]])


# --- scalars ---------------------------------------------------------------

@reference("reward_normalizer")
def reward_normalizer(a):
    s = a["scores"]
    if a["mode"] == "gain" and (len(s) < 2 or len(set(s)) == 1):
        raise Invalid
    mu = mean(s)
    gain = 1.0
    if a["mode"] == "gain":
        gain = 1.0 / math.sqrt(math.fsum((x - mu) ** 2 for x in s)
                               / (len(s) - 1))
    return {"gain": gain, "bias": -gain * mu,
            "out": [gain * (x - mu) for x in s]}


@generator("reward_normalizer")
def _(g):
    n = g.pick(1, 2, 3, 8)
    centre = g.pick(0, 5)
    s = g.vec(n, centre - 2, centre + 2)
    if g.chance(0.15):
        s = [s[0]] * n
    return g.done({"scores": s, "mode": g.pick("bias", "gain")})


@rejected("reward_normalizer")
def _():
    yield {"scores": [1], "mode": "gain"}
    yield {"scores": [], "mode": "gain"}
    yield {"scores": [0.1, 0.1, 0.1], "mode": "gain"}
    yield {"scores": ["nan", 1], "mode": "bias"}
    yield {"scores": [1, 2], "mode": "std"}
    yield {"scores": [[1, 2]], "mode": "bias"}


@reference("overlong_penalty")
def overlong_penalty(a):
    soft = a["l_max"] - a["l_cache"]
    out = []
    for n in a["lengths"]:
        if n <= soft:
            out.append(0.0)
        elif n <= a["l_max"]:
            out.append(-(n - soft) / a["l_cache"])
        else:
            out.append(-1.0)
    return {"penalty": out}


@generator("overlong_penalty")
def _(g):
    top = g.rng.randint(1, 60)
    return g.done({"lengths": [g.rng.randint(0, top + 9)
                               for _ in range(g.rng.randint(0, 6))],
                   "l_max": top, "l_cache": g.rng.randint(1, top)})


@rejected("overlong_penalty")
def _():
    ok = {"lengths": [3], "l_max": 5, "l_cache": 2}
    yield dict(ok, l_cache=0)
    yield dict(ok, lengths=[-1])
    yield dict(ok, lengths=[1.5])
    yield dict(ok, l_max=-1)
    yield {"lengths": [3], "l_max": 5}


@reference("dynamic_filter")
def dynamic_filter(a):
    values = {}
    for m, n in zip(a["metric"], a["group"]):
        values.setdefault(repr(n), set()).add(m)
    return {"keep": [len(values[repr(n)]) > 1 for n in a["group"]]}


@generator("dynamic_filter")
def _(g):
    b = g.rng.randint(0, 9)
    names = g.rng.sample([1, 2, "a", "1"], 3)
    return g.done({"metric": [g.pick(0, 1, 0.5, 0.1) for _ in range(b)],
                   "group": [g.rng.choice(names) for _ in range(b)]})


@rejected("dynamic_filter")
def _():
    yield {"metric": ["nan"], "group": [0]}
    yield {"metric": [1, 2], "group": [0]}
    yield {"metric": [1]}


@reference("kl_controller")
def kl_controller(a):
    beta, out = a["beta"], []
    for kl, n in a["stream"]:
        if a["kind"] == "adaptive":
            e = min(max(kl / a["target"] - 1, -0.2), 0.2)
            beta *= 1 + e * n / a["horizon"]
        out.append(float(beta))
    return {"beta": out}


@generator("kl_controller")
def _(g):
    args = {"kind": g.pick("fixed", "adaptive", "adaptive"),
            "beta": g.num(0, 1),
            "stream": [[g.num(-2, 14), g.rng.randint(0, 512)]
                       for _ in range(g.rng.randint(0, 6))]}
    if args["kind"] == "adaptive" or g.chance(0.3):
        args.update(target=g.num(0.5, 8), horizon=g.rng.randint(600, 10000))
    return g.done(args)


@rejected("kl_controller")
def _():
    ok = {"kind": "adaptive", "beta": 0.1, "target": 6, "horizon": 100,
          "stream": [[8, 4]]}
    yield dict(ok, beta=-1)
    yield dict(ok, target=0)
    yield dict(ok, horizon=0)
    yield dict(ok, kind="pid")
    yield dict(ok, stream=[[8]])
    yield dict(ok, stream=[["nan", 4]])
    yield dict(ok, stream=[[8, -1]])
    yield {"kind": "adaptive", "beta": 0.1, "stream": [[8, 4]]}
