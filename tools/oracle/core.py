"""What every oracle shares: registry, random and hostile inputs, comparison.

A reference is a function of the request's args that returns the result, or
raises Invalid. It must not look at values under mask 0; poison there is the
string "nan", which no arithmetic survives.

Comparison: an int, bool, string or None of the reference must be met exactly
(a masked output is the int 0); a float within the tolerance; FREE is not
looked at.
"""

import math
import struct

REFERENCES = {}   # op -> function(args) -> result
GENERATORS = {}   # op -> function(Gen) -> args
REJECTED = {}     # op -> function() -> [(args, code or tuple of codes)]
CHECKS = {}       # op -> function(args, result) -> list of complaints
VECTORS = []      # (op, args, expected part of the result): algorithms.md


class Invalid(Exception):
    """The request must be answered INVALID_ARGUMENT."""


class Free:
    def __repr__(self):
        return "FREE"


FREE = Free()


def reference(op):
    def add(f):
        REFERENCES[op] = f
        return f
    return add


def generator(op):
    def add(f):
        GENERATORS[op] = f
        return f
    return add


def rejected(op):
    def add(f):
        REJECTED[op] = f
        return f
    return add


def check(op):
    def add(f):
        CHECKS[op] = f
        return f
    return add


def vector(op, args, want):
    VECTORS.append((op, args, want))


def f32(x):
    return struct.unpack("f", struct.pack("f", x))[0]


def shape2(x):
    return len(x), (len(x[0]) if x else 0)


def zeros(b, t):
    return [[0] * t for _ in range(b)]


def mask_of(args, like="logprob"):
    rows = args[like]
    return args.get("mask") or [[1] * len(r) for r in rows]


class Gen:
    """Random arguments of one case; everything from one seeded generator."""

    POISON = ("nan", "inf", "-inf", 1e30, -1e30, 0)

    def __init__(self, rng):
        self.rng = rng
        self.dtype = "float32" if rng.random() < 0.35 else "float64"

    def chance(self, p):
        return self.rng.random() < p

    def pick(self, *options):
        return self.rng.choice(options)

    def dims(self, bmax=4, tmax=6):
        b = self.rng.choice([1, 2, 3, bmax, self.rng.randint(0, bmax)])
        t = self.rng.choice([1, 2, 4, tmax, self.rng.randint(0, tmax)])
        return b, t

    def num(self, lo, hi):
        x = self.rng.uniform(lo, hi)
        return f32(x) if self.dtype == "float32" else x

    def vec(self, n, lo, hi):
        return [self.num(lo, hi) for _ in range(n)]

    def mat(self, b, t, lo, hi):
        return [self.vec(t, lo, hi) for _ in range(b)]

    def mask(self, b, t, empty_rows=True):
        style = self.rng.randrange(7 if empty_rows else 4)
        if style == 0:
            m = [[1] * t for _ in range(b)]
        elif style in (1, 2):      # ragged, right-padded
            m = []
            for _ in range(b):
                n = self.rng.randint(1, t) if t else 0
                m.append([1] * n + [0] * (t - n))
        elif style == 3:           # interior zeros, at least one 1
            m = []
            for _ in range(b):
                row = [int(self.chance(0.6)) for _ in range(t)]
                if t and not any(row):
                    row[self.rng.randrange(t)] = 1
                m.append(row)
        elif style == 4:           # anything, rows may be empty
            m = [[int(self.chance(0.5)) for _ in range(t)] for _ in range(b)]
        elif style == 5:           # one whole row empty
            m = [[1] * t for _ in range(b)]
            if b:
                m[self.rng.randrange(b)] = [0] * t
        else:
            m = zeros(b, t)
        return m

    def poison(self, rows, mask):
        """A copy with anything at all where the mask is 0."""
        return [[self.rng.choice(self.POISON) if not m else x
                 for x, m in zip(r, ms)] for r, ms in zip(rows, mask)]

    def poison_ids(self, rows, mask):
        return [[self.rng.choice((-100, -1, 10 ** 9, 0)) if not m else x
                 for x, m in zip(r, ms)] for r, ms in zip(rows, mask)]

    def ranks(self, args, b):
        """World 1..4 with idle ranks, micro-batches of 1..B."""
        if self.chance(0.3):
            return args
        world = self.rng.randint(1, 4)
        args["world"] = world
        if self.chance(0.9):
            used = self.rng.sample(range(world), self.rng.randint(1, world))
            args["rank_of_row"] = [self.rng.choice(used) for _ in range(b)]
        if self.chance(0.7):
            args["micro_batch"] = self.rng.randint(1, max(b, 1))
        return args

    def done(self, args, mask=None):
        if mask is not None:
            ones = all(m == 1 for r in mask for m in r)
            if not ones or self.chance(0.5):
                args["mask"] = mask
        if self.dtype == "float32" or self.chance(0.2):
            args["dtype"] = self.dtype
        return args


def agg_args(g, args, t):
    """Sometimes names an aggregation; `const` needs its t_max."""
    if g.chance(0.7):
        args["agg"] = g.pick("token_mean", "seq_mean_token_mean",
                             "seq_mean_token_sum", "const")
        if args["agg"] == "const":
            args["t_max"] = g.rng.randint(1, t + 3)
    return args


def weights(mask, mode, t_max=None):
    """d(aggregate)/d(loss), algorithms.md §1.1."""
    rows = [r for r in mask if any(r)]
    tokens = sum(map(sum, rows))
    out = []
    for r in mask:
        n = sum(r)
        if n == 0:
            out.append([0] * len(r))
            continue
        w = {"token_mean": lambda: 1.0 / tokens,
             "seq_mean_token_mean": lambda: 1.0 / n / len(rows),
             "seq_mean_token_sum": lambda: 1.0 / len(rows),
             "const": lambda: 1.0 / (len(rows) * t_max)}[mode]()
        out.append([w if m else 0 for m in r])
    return out


def encode(x):
    """Numbers JSON lacks become strings."""
    if isinstance(x, float):
        if math.isnan(x):
            return "nan"
        if math.isinf(x):
            return "inf" if x > 0 else "-inf"
        return x
    if isinstance(x, (list, tuple)):
        return [encode(y) for y in x]
    if isinstance(x, dict):
        return {k: encode(v) for k, v in x.items()}
    return x


def number(x):
    if isinstance(x, bool) or x is None:
        return None
    if isinstance(x, (int, float)):
        return float(x)
    return {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}.get(x)


def compare(want, got, tol, where="result"):
    """The first difference as text, or None."""
    if want is FREE:
        return None
    if isinstance(want, dict):
        if not isinstance(got, dict):
            return f"{where}: want an object, got {got!r}"
        extra = set(got) - set(want)
        if extra:
            return f"{where}: unexpected {sorted(extra)}"
        for k, v in want.items():
            if k not in got:
                if v is FREE:
                    continue
                return f"{where}.{k}: missing"
            t = tol["grad"] if k.startswith("grad") else tol["value"]
            why = compare(v, got[k], dict(tol, value=t), f"{where}.{k}")
            if why:
                return why
        return None
    if isinstance(want, (list, tuple)):
        if not isinstance(got, list) or len(got) != len(want):
            return (f"{where}: want {len(want)} entries, got "
                    f"{len(got) if isinstance(got, list) else got!r}")
        for i, (a, b) in enumerate(zip(want, got)):
            why = compare(a, b, tol, f"{where}[{i}]")
            if why:
                return why
        return None
    if isinstance(want, bool) or want is None or isinstance(want, str):
        same = want == got and type(want) is type(got)
        if isinstance(want, bool) and isinstance(got, int):
            same = want == bool(got) and got in (0, 1)
        return None if same else f"{where}: want {want!r}, got {got!r}"
    x = number(got)
    if x is None:
        return f"{where}: want a number, got {got!r}"
    if isinstance(want, int):
        return None if x == want else f"{where}: want exactly {want}, got {x}"
    if math.isinf(want):
        return None if x == want else f"{where}: want {want}, got {x}"
    if not abs(x - want) <= tol["value"] * max(1.0, abs(want)):
        return f"{where}: want {want:.12g}, got {x:.12g}"
    return None
