"""docs/ops-protocol.md §4: losses and their exact gradients, by the tape."""

import math

import tape
from core import (FREE, agg_args, generator, mask_of, reference, rejected,
                  shape2, weights, zeros)
from rollout_oracle import kl_term, masked, mean
from tape import Var, clamp, exp, maximum


def variables(rows, mask):
    return [[Var(x) if m else None for x, m in zip(r, ms)]
            for r, ms in zip(rows, mask)]


def gradients(vs, loss):
    tape.backward(loss)
    return [[0 if v is None else v.grad for v in r] for r in vs]


def behaviour_weights(a, mask, old, beh):
    """The weight that multiplies each token loss (algorithms.md §7)."""
    mode = a.get("is_mode", "none")
    lo, hi = a.get("is_lo", 0), a.get("is_hi", 2)
    out = []
    for i, ms in enumerate(mask):
        logs = {j: old[i][j] - beh[i][j] for j, m in enumerate(ms) if m}
        w = {j: exp(clamp(x, -20.0, 20.0)) for j, x in logs.items()}
        if mode == "token_truncate":
            w = {j: min(x, hi) for j, x in w.items()}
        elif mode == "token_mask":
            w = {j: x if lo <= x <= hi else 0.0 for j, x in w.items()}
        elif mode in ("seq_truncate", "seq_mask") and logs:
            whole = exp(clamp(math.fsum(logs.values()), -20.0, 20.0))
            if mode == "seq_truncate":
                whole = min(whole, hi)
            elif not lo <= whole <= hi:
                whole = 0.0
            w = dict.fromkeys(w, whole)
        elif mode == "geometric_mask" and logs:
            g = exp(clamp(mean(list(logs.values())), -20.0, 20.0))
            if not lo <= g <= hi:
                w = dict.fromkeys(w, 0.0)
        out.append(w)
    return out


def clipped(u, a):
    return clamp(u, 1 - a.get("eps_lo", 0.2), 1 + a.get("eps_hi", 0.2))


@reference("policy_loss")
def policy_loss(a):
    kind, old, adv = a["kind"], a["old_logprob"], a["advantages"]
    lp = a["logprob"]
    mask = mask_of(a)
    b, t = shape2(lp)
    agg = a.get("agg") or ("seq_mean_token_mean" if kind == "gspo"
                           else "token_mean")
    wt = weights(mask, agg, a.get("t_max"))
    x = variables(lp, mask)
    beh = a.get("behaviour_logprob")
    w = behaviour_weights(a, mask, old, beh) if beh is not None else None
    terms, ratios, clips = [], [], 0
    for i in range(b):
        real = [j for j in range(t) if mask[i][j]]
        if not real:
            continue
        seq = None
        if kind == "gspo":
            logs = [x[i][j] - old[i][j] for j in real]
            seq = exp(clamp(tape.total(logs) / len(real), -20.0, 20.0))
        for j in real:
            u = exp(clamp(x[i][j] - old[i][j], -20.0, 20.0))
            ratios.append(tape.val(u))
            A = adv[i][j]
            if kind == "ppo":
                plain, cut = -A * u, -A * clipped(u, a)
                loss = maximum(plain, cut)
                clips += tape.val(cut) > tape.val(plain)
                c = a.get("dual_clip")
                if c is not None and A < 0:
                    loss = tape.minimum(loss, -A * c)
            elif kind == "gspo":
                loss = maximum(-A * seq, -A * clipped(seq, a))
            elif kind == "cispo":
                loss = x[i][j] * (-A * min(tape.val(u),
                                           1 + a.get("eps_hi", 0.2)))
            else:
                loss = x[i][j] * -A
            if w is not None:
                loss = loss * w[i][j]
            terms.append(loss * wt[i][j])
            if a.get("kl_loss", "none") != "none":
                terms.append(kl_term(x[i][j], a["ref_logprob"][i][j],
                                     a["kl_loss"])
                             * (wt[i][j] * a.get("kl_beta", 0)))
    loss = tape.total(terms)
    diffs = [lp[i][j] - old[i][j] for i in range(b) for j in range(t)
             if mask[i][j]]
    n = len(diffs)
    raw = ([exp(clamp(old[i][j] - beh[i][j], -20.0, 20.0))
            for i in range(b) for j in range(t) if mask[i][j]]
           if beh is not None else [1.0] * n)
    squares = math.fsum(r * r for r in raw)
    return {"loss": loss.v, "grad": gradients(x, loss), "metrics": {
        "approxkl": mean([d * d / 2 for d in diffs]),
        # Of the token ratios; gspo's own ratio is per sequence.
        "ratio": mean(ratios) if kind != "gspo" else FREE,
        "clipfrac": (clips / n if n else 0) if kind == "ppo" else None,
        "w_mean": mean(raw), "w_max": max(raw, default=0),
        "ess": math.fsum(raw) ** 2 / (n * squares) if n else 0}}


@generator("policy_loss")
def _(g):
    kind = g.pick("ppo", "ppo", "gspo", "cispo", "reinforce")
    b, t = g.dims()
    mask = g.mask(b, t)
    spread = 0.6
    if g.dtype == "float64" and g.chance(0.1):
        spread = 30          # past the clamp of the exponent
    lp = g.mat(b, t, -4, 0)
    near = lambda: [[x + g.num(-spread, spread) for x in r] for r in lp]
    if g.dtype == "float32":
        from core import f32
        near = lambda: [[f32(x + g.rng.uniform(-spread, spread)) for x in r]
                        for r in lp]
    adv = ([[v] * t for v in g.vec(b, -2, 2)] if kind == "gspo"
           else g.mat(b, t, -2, 2))
    if g.chance(0.1):
        adv = [[0.0] * t for _ in range(b)]
    old = [list(r) for r in lp] if g.chance(0.1) else near()
    args = {"kind": kind, "logprob": g.poison(lp, mask),
            "old_logprob": g.poison(old, mask),
            "advantages": g.poison(adv, mask)}
    if g.chance(0.5):
        args["eps_lo"] = g.pick(0.2, 3e-4, g.num(0, 1))
        args["eps_hi"] = g.pick(0.28, 4e-4, g.num(0, 2))
    if kind == "ppo" and g.chance(0.4):
        args["dual_clip"] = g.pick(3, 1, g.num(1, 2))
    agg_args(g, args, t)
    if g.chance(0.5):
        args["behaviour_logprob"] = g.poison(near(), mask)
        if g.chance(0.8):
            args["is_mode"] = g.pick("none", "token_truncate", "token_mask",
                                     "seq_truncate", "seq_mask",
                                     "geometric_mask")
            args["is_lo"] = g.pick(0, g.num(0.3, 0.9))
            args["is_hi"] = g.pick(2, g.num(1, 3))
    if g.chance(0.4):
        args["ref_logprob"] = g.poison(near(), mask)
        args["kl_loss"] = g.pick("none", "k2", "k3") if spread < 1 else "k2"
        args["kl_beta"] = g.num(0, 1)
    return g.done(g.ranks(args, b), mask)


@rejected("policy_loss")
def _():
    ok = {"kind": "ppo", "logprob": [[-1, -2]], "old_logprob": [[-1, -1]],
          "advantages": [[1, 2]]}
    yield dict(ok, kind="trpo")
    yield dict(ok, eps_lo=-0.1)
    yield dict(ok, eps_hi=-0.1)
    yield dict(ok, dual_clip=0.5)
    yield dict(ok, agg="mean")
    yield dict(ok, agg="const")
    yield dict(ok, is_mode="token")
    yield dict(ok, behaviour_logprob=[["nan", 1]])
    yield dict(ok, behaviour_logprob=[[-1]])
    yield dict(ok, ref_logprob=[[-1, -1]], kl_loss="k1", kl_beta=0.1)
    yield dict(ok, kl_loss="k2", kl_beta=0.1)
    yield dict(ok, ref_logprob=[[-1, -1]], kl_loss="k2", kl_beta=-1)
    yield dict(ok, advantages=[["inf", 1]])
    yield dict(ok, logprob=[["nan", 1]])
    yield dict(ok, old_logprob=[["-inf", 1]])
    yield dict(ok, old_logprob=[[1]])
    yield dict(ok, world=2, rank_of_row=[2])


@reference("prox_interpolate")
def prox_interpolate(a):
    out = []
    for beh, lp, v in zip(a["behaviour_logprob"], a["logprob"], a["v_beh"]):
        row = []
        for x, y, n in zip(beh, lp, v):
            if n >= a["v_prox"]:
                row.append(float(x))
            else:
                alpha = (a["v_prox"] - n) / (a["v_theta"] - n)
                row.append((1 - alpha) * x + alpha * y)
        out.append(row)
    return {"prox": out}


@generator("prox_interpolate")
def _(g):
    b, t = g.dims()
    prox = g.rng.randint(0, 6)
    return g.done({"behaviour_logprob": g.mat(b, t, -4, 0),
                   "logprob": g.mat(b, t, -4, 0),
                   "v_beh": [[g.rng.randint(0, prox + 1) for _ in range(t)]
                             for _ in range(b)],
                   "v_prox": prox, "v_theta": prox + g.rng.randint(0, 3)})


@rejected("prox_interpolate")
def _():
    ok = {"behaviour_logprob": [[-1]], "logprob": [[-2]], "v_beh": [[0]],
          "v_prox": 1, "v_theta": 2}
    yield dict(ok, v_theta=0)
    yield dict(ok, v_beh=[[-1]])
    yield dict(ok, v_beh=[[0, 1]])
    yield dict(ok, logprob=[["nan"]])
    yield dict(ok, v_prox=-1)


@reference("value_loss")
def value_loss(a):
    mask = mask_of(a, "values")
    wt = weights(mask, a.get("agg", "token_mean"), a.get("t_max"))
    clip = a.get("clip", 0.2)
    x = variables(a["values"], mask)
    terms, clips, errors, returns = [], 0, [], []
    for i, row in enumerate(x):
        for j, v in enumerate(row):
            if v is None:
                continue
            r, old = a["returns"][i][j], a["old_values"][i][j]
            square = (v - r) * (v - r)
            loss = square
            if clip is not None:
                vc = clamp(v - old, -clip, clip) + old
                cut = (vc - r) * (vc - r)
                loss = maximum(square, cut)
                clips += (abs(v.v - old) > clip
                          and tape.val(cut) > square.v)
            terms.append((loss if isinstance(loss, Var) else Var(loss))
                         * (0.5 * wt[i][j]))
            errors.append(v.v - r)
            returns.append(r)
    loss = tape.total(terms)
    n = len(errors)
    spread = lambda z: mean([(q - mean(z)) ** 2 for q in z])
    explained = 0
    if n and len(set(returns)) > 1:
        explained = 1 - spread(errors) / spread(returns)
    return {"loss": loss.v, "grad": gradients(x, loss),
            "clipfrac": clips / n if n else 0,
            "error": mean([e * e for e in errors]),
            "explained_var": explained}


@generator("value_loss")
def _(g):
    b, t = g.dims(5, 5)
    mask = g.mask(b, t)
    returns = g.mat(b, t, -2, 2)
    if g.chance(0.25):
        returns = [[returns[0][0] if b and t else 0.0] * t for _ in range(b)]
    args = {"values": g.poison(g.mat(b, t, -2, 2), mask),
            "old_values": g.poison(g.mat(b, t, -2, 2), mask),
            "returns": g.poison(returns, mask)}
    if g.chance(0.6):
        args["clip"] = g.pick(None, g.num(0, 2), 0.5)
    agg_args(g, args, t)
    return g.done(g.ranks(args, b), mask)


@rejected("value_loss")
def _():
    ok = {"values": [[1, 2]], "old_values": [[1, 2]], "returns": [[1, 2]]}
    yield dict(ok, clip=-0.1)
    yield dict(ok, clip="nan")
    yield dict(ok, agg="x")
    yield dict(ok, agg="const")
    yield dict(ok, returns=[["nan", 1]])
    yield dict(ok, returns=[[1]])
    yield {"values": [[1]], "old_values": [[1]]}


# --- preferences -----------------------------------------------------------

def side(x):
    return x.get("mask") or [[1] * len(r) for r in x["logprob"]]


@reference("preference_loss")
def preference_loss(a):
    beta, smooth = a.get("beta", 0.1), a.get("label_smoothing", 0)
    xs, ratios, rewards = [], [], []
    for name in ("chosen", "rejected"):
        s = a[name]
        mask = side(s)
        x = variables(s["logprob"], mask)
        xs.append(x)
        sums = [tape.total([v - r for v, r, m in zip(row, ref, ms) if m])
                for row, ref, ms in zip(x, s["ref_logprob"], mask)]
        rewards.append([beta * q.v for q in sums])
        if a["kind"] == "ipo" and a.get("length_norm", True):
            sums = [q / sum(ms) for q, ms in zip(sums, mask)]
        ratios.append(sums)
    b = len(ratios[0])
    terms = []
    for w, l in zip(*ratios):
        h = w - l
        if a["kind"] == "ipo":
            d = h - 1 / (2 * beta)
            terms.append(d * d / b)
        else:
            terms.append((tape.softplus(h * -beta) * (1 - smooth)
                          + tape.softplus(h * beta) * smooth) / b)
    loss = tape.total(terms)
    return {"loss": loss.v, "grad_chosen": gradients(xs[0], loss),
            "grad_rejected": gradients(xs[1], loss),
            "reward_chosen": rewards[0], "reward_rejected": rewards[1],
            "accuracy": (sum(c > r for c, r in zip(*rewards)) / b if b
                         else 0)}


@generator("preference_loss")
def _(g):
    b = g.rng.randint(0, 4)
    args = {"kind": g.pick("dpo", "dpo", "ipo")}
    for name in ("chosen", "rejected"):
        t = g.rng.randint(1, 6)
        mask = g.mask(b, t, empty_rows=False)
        s = {"logprob": g.poison(g.mat(b, t, -4, 0), mask),
             "ref_logprob": g.poison(g.mat(b, t, -4, 0), mask)}
        if not all(m for r in mask for m in r) or g.chance(0.5):
            s["mask"] = mask
        args[name] = s
    if g.chance(0.6):
        args["beta"] = g.pick(0.1, 0.05, g.num(0.05, 3))
    if args["kind"] == "dpo" and g.chance(0.5):
        args["label_smoothing"] = g.pick(0, 0.1, 0.5, 1, g.num(0, 1))
    if args["kind"] == "ipo" and g.chance(0.5):
        args["length_norm"] = g.chance(0.5)
    return g.done(args)


@rejected("preference_loss")
def _():
    s = {"logprob": [[-1, -2]], "ref_logprob": [[-1, -1]]}
    ok = {"kind": "dpo", "chosen": s, "rejected": s}
    yield dict(ok, kind="kto")
    yield dict(ok, beta=0)
    yield dict(ok, beta=-1)
    yield dict(ok, label_smoothing=1.1)
    yield dict(ok, label_smoothing=-0.1)
    yield dict(ok, chosen=dict(s, mask=[[0, 0]]))
    yield dict(ok, rejected=dict(s, mask=[[0, 0]]))
    yield dict(ok, chosen=dict(s, mask=[[1]]))
    yield dict(ok, chosen=dict(s, surplus=1))
    yield dict(ok, chosen=dict(s, logprob=[["nan", 1]]))
    yield dict(ok, chosen={"logprob": [[-1], [-1]],
                           "ref_logprob": [[-1], [-1]]})
    yield dict(ok, chosen=[1])
    yield {"kind": "dpo", "chosen": s}


@reference("kto_loss")
def kto_loss(a):
    beta = a.get("beta", 0.1)
    gaps = [x - r for x, r in zip(a["mismatch_logprob"],
                                  a["mismatch_ref_logprob"])]
    z0 = max(0.0, mean(gaps))
    x = [Var(v) for v in a["logprob"]]
    b = len(x)
    terms = []
    for v, r, good in zip(x, a["ref_logprob"], a["desirable"]):
        s = v - r - z0
        if good:
            terms.append((1 - tape.sigmoid(s * beta))
                         * (a.get("lambda_d", 1) / b))
        else:
            terms.append((1 - tape.sigmoid(s * -beta))
                         * (a.get("lambda_u", 1) / b))
    loss = tape.total(terms)
    tape.backward(loss)
    return {"loss": loss.v, "grad": [v.grad for v in x], "z0": z0}


@generator("kto_loss")
def _(g):
    b, n = g.rng.randint(0, 5), g.rng.randint(1, 5)
    args = {"logprob": g.vec(b, -20, 0), "ref_logprob": g.vec(b, -20, 0),
            "desirable": [g.chance(0.5) for _ in range(b)],
            "mismatch_logprob": g.vec(n, -9, 0),
            "mismatch_ref_logprob": g.vec(n, -9, 0)}
    if g.chance(0.6):
        args["beta"] = g.num(0.05, 2)
    if g.chance(0.5):
        args.update(lambda_d=g.num(0, 2), lambda_u=g.num(0, 2))
    return g.done(args)


@rejected("kto_loss")
def _():
    ok = {"logprob": [-1], "ref_logprob": [-2], "desirable": [True],
          "mismatch_logprob": [-1], "mismatch_ref_logprob": [-2]}
    yield dict(ok, beta=0)
    yield dict(ok, desirable=[2])
    yield dict(ok, desirable=[True, True])
    yield dict(ok, logprob=["nan"])
    yield dict(ok, mismatch_logprob=["inf"])
    yield dict(ok, mismatch_ref_logprob=[-1, -2])
    yield dict(ok, ref_logprob=[[-2]])


# --- reward model, SFT -----------------------------------------------------

@reference("rm_loss")
def rm_loss(a):
    if a.get("kind") == "best_of":
        rows = [[Var(s) for s in r] for r in a["scores"]]
        terms, hits = [], 0
        for r, best in zip(rows, a["best"]):
            terms.append(-tape.log_softmax(r)[best] / len(rows))
            top = max(v.v for v in r)
            hits += [v.v for v in r].index(top) == best
        loss = tape.total(terms)
        tape.backward(loss)
        return {"loss": loss.v, "grad": [[v.grad for v in r] for r in rows],
                "accuracy": hits / len(rows) if rows else 0, "pairs": FREE}
    margin, center = a.get("margin", 0), a.get("center", 0)
    rows = [[Var(s) for s in r] for r in a["scores"]]
    per_prompt, pairs, right = [], 0, 0
    for r, ranks in zip(rows, a["ranks"]):
        here = []
        for w in range(len(r)):
            for l in range(len(r)):
                if ranks[w] < ranks[l]:
                    gap, both = r[w] - r[l], r[w] + r[l]
                    here.append(tape.softplus(-(gap - margin))
                                + both * both * center)
                    right += r[w].v > r[l].v
        pairs += len(here)
        if here:
            per_prompt.append(tape.total(here) / len(here))
    loss = (tape.total(per_prompt) / len(per_prompt) if per_prompt
            else Var(0))
    tape.backward(loss)
    return {"loss": loss.v, "grad": [[v.grad for v in r] for r in rows],
            "accuracy": right / pairs if pairs else 0, "pairs": pairs}


@generator("rm_loss")
def _(g):
    prompts = g.rng.randint(0, 4)
    if g.chance(0.35):
        k = g.rng.randint(1, 5)
        return g.done({"kind": "best_of",
                       "scores": g.mat(prompts, k, -3, 3),
                       "best": [g.rng.randrange(k) for _ in range(prompts)]})
    sizes = [g.rng.randint(1, 6) for _ in range(prompts)]
    span = g.pick(2, 2, 40)
    args = {"scores": [g.vec(n, -span, span) for n in sizes],
            "ranks": [[g.rng.randint(1, n) for _ in range(n)]
                      for n in sizes]}
    if g.chance(0.3):
        args["scores"] = [[1.0] * n for n in sizes]
    if g.chance(0.3):
        args["kind"] = "pairwise"
    if g.chance(0.4):
        args["margin"] = g.num(0, 1)
    if g.chance(0.4):
        args["center"] = g.num(0, 0.2)
    return g.done(args)


@rejected("rm_loss")
def _():
    ok = {"scores": [[1, 2]], "ranks": [[1, 2]]}
    yield dict(ok, ranks=[[1]])
    yield dict(ok, ranks=[[1, 2], [1, 2]])
    yield dict(ok, ranks=[[1, "nan"]])
    yield dict(ok, scores=[["nan", 1]])
    yield dict(ok, margin="inf")
    yield dict(ok, center=-1)
    yield dict(ok, kind="listwise")
    best = {"kind": "best_of", "scores": [[1, 2]], "best": [0]}
    yield dict(best, best=[2])
    yield dict(best, best=[-1])
    yield dict(best, best=[0, 1])
    yield dict(best, scores=[[1, "inf"]])
    yield dict(best, scores=[[1, 2], [1]], best=[0, 0])
    yield {"kind": "best_of", "scores": [[1, 2]]}


@reference("sft_loss")
def sft_loss(a):
    labels = a["labels"]
    targets = sum(x != -100 for r in labels for x in r[1:])
    grads, terms = [], []
    xs = []
    for row, lab in zip(a["logits"], labels):
        xs.append([])
        for j, z in enumerate(row):
            if j + 1 < len(row) and lab[j + 1] != -100:
                v = [Var(float(q)) for q in z]
                terms.append(-tape.log_softmax(v)[lab[j + 1]] / targets)
                xs[-1].append(v)
            else:
                xs[-1].append([None] * len(z))
    loss = tape.total(terms)
    for rows in xs:
        grads.append(gradients(rows, loss))
    return {"loss": loss.v, "tokens": targets, "grad_logits": grads}


@generator("sft_loss")
def _(g):
    b, t = g.dims(4, 5)
    v = g.pick(1, 2, 6)
    keep = g.mask(b, t)
    labels = [[g.rng.randrange(v) if k else -100 for k in r] for r in keep]
    logits = []
    for i in range(b):
        rows = []
        for j in range(t):
            row = g.vec(v, -5, 5)
            if v > 2 and g.chance(0.2):
                dead = g.rng.randrange(v)
                if j + 1 >= t or labels[i][j + 1] != dead:
                    row[dead] = float("-inf")
            if j + 1 >= t or labels[i][j + 1] == -100:
                row = [g.rng.choice(g.POISON) for _ in range(v)]
            rows.append(row)
        logits.append(rows)
    if g.chance(0.3):          # the first label has no logits to score it
        for r in labels:
            if r:
                r[0] = g.pick(-100, 0, v - 1)
    return g.done(g.ranks({"logits": logits, "labels": labels}, b))


@rejected("sft_loss")
def _():
    ok = {"logits": [[[0, 1], [2, 3]]], "labels": [[0, 1]]}
    yield dict(ok, labels=[[0, 2]])
    yield dict(ok, labels=[[0, -1]])
    yield dict(ok, labels=[[0]])
    yield dict(ok, logits=[[["nan", 1], [2, 3]]])
    yield dict(ok, logits=[[["-inf", "-inf"], [2, 3]]])
    yield dict(ok, logits=[[["inf", 1], [2, 3]]])
    yield {"logits": [[[0, 1]]]}
