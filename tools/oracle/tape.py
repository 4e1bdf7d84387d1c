"""Scalar reverse-mode differentiation, enough for the losses of the oracle.

A Var is a float with the recipe of its derivative. detach() is stop-gradient;
clamp() has zero gradient outside its bounds (docs/ops-protocol.md §2.4).
"""

import math


class Var:
    __slots__ = ("v", "edges", "grad")

    def __init__(self, v, edges=()):
        self.v = float(v)
        self.edges = edges
        self.grad = 0.0

    def __add__(self, o):
        if isinstance(o, Var):
            return Var(self.v + o.v, ((self, 1.0), (o, 1.0)))
        return Var(self.v + o, ((self, 1.0),))

    __radd__ = __add__

    def __mul__(self, o):
        if isinstance(o, Var):
            return Var(self.v * o.v, ((self, o.v), (o, self.v)))
        return Var(self.v * o, ((self, float(o)),))

    __rmul__ = __mul__

    def __neg__(self):
        return self * -1.0

    def __sub__(self, o):
        return self + (-o)

    def __rsub__(self, o):
        return (-self) + o

    def __truediv__(self, o):
        assert not isinstance(o, Var)
        return Var(self.v / o, ((self, 1.0 / o),))


def val(x):
    return x.v if isinstance(x, Var) else x


def detach(x):
    return val(x)


def exp(x):
    if not isinstance(x, Var):
        return math.exp(x)
    e = math.exp(x.v)
    return Var(e, ((x, e),))


def softplus(x):
    """log(1 + e^x); its derivative is the logistic function."""
    v = val(x)
    s = max(v, 0.0) + math.log1p(math.exp(-abs(v)))
    return Var(s, ((x, sigmoid(v)),)) if isinstance(x, Var) else s


def sigmoid(x):
    v = val(x)
    s = (1.0 / (1.0 + math.exp(-v)) if v >= 0
         else math.exp(v) / (1.0 + math.exp(v)))
    return Var(s, ((x, s * (1.0 - s)),)) if isinstance(x, Var) else s


def clamp(x, lo, hi):
    if val(x) < lo:
        return lo
    if val(x) > hi:
        return hi
    return x


def maximum(first, second):
    """The first of two equal values: only a strictly larger second wins."""
    return second if val(second) > val(first) else first


def minimum(first, second):
    return second if val(second) < val(first) else first


def log_softmax(row):
    """Of Vars or floats; entries at -inf stay -inf and get no gradient."""
    top = max(val(x) for x in row)
    weights = [math.exp(val(x) - top) for x in row]
    total = math.fsum(weights)
    lse = top + math.log(total)
    if not any(isinstance(x, Var) for x in row):
        return [x - lse if x > -math.inf else -math.inf for x in row]
    node = Var(lse, tuple((x, w / total) for x, w in zip(row, weights)
                          if isinstance(x, Var)))
    return [x - node if val(x) > -math.inf else -math.inf for x in row]


def total(items):
    """Sum in one node, so that long sums stay shallow."""
    items = list(items)
    out = Var(math.fsum(val(x) for x in items),
              tuple((x, 1.0) for x in items if isinstance(x, Var)))
    return out


def backward(out):
    """Fills .grad of everything that `out` depends on."""
    order, seen = [], set()
    stack = [(out, False)]
    while stack:
        node, done = stack.pop()
        if done:
            order.append(node)
            continue
        if id(node) in seen:
            continue
        seen.add(id(node))
        stack.append((node, True))
        for parent, _ in node.edges:
            if id(parent) not in seen:
                stack.append((parent, False))
    for node in order:
        node.grad = 0.0
    out.grad = 1.0
    for node in reversed(order):
        for parent, slope in node.edges:
            parent.grad += node.grad * slope
