"""Float64 forward passes of docs/ops-protocol.md §8, on lists of floats.

Weights are {name: rows} as they are stored; formulas of algorithms.md §12-13.
"""

import math


def layout(c):
    """[(name, shape)] in the order of the pinned fill."""
    out = []
    family = c["model_type"]
    reward = any("SequenceClassification" in a
                 for a in c.get("architectures", []))
    if family == "gpt2":
        d, inner = c["n_embd"], c.get("n_inner") or 4 * c["n_embd"]
        out += [("wte.weight", [c["vocab_size"], d]),
                ("wpe.weight", [c["n_positions"], d])]
        for i in range(c["n_layer"]):
            h = f"h.{i}."
            for name, shape in (("ln_1", [d]), ("attn.c_attn", [d, 3 * d]),
                                ("attn.c_proj", [d, d]), ("ln_2", [d]),
                                ("mlp.c_fc", [d, inner]),
                                ("mlp.c_proj", [inner, d])):
                out += [(h + name + ".weight", shape),
                        (h + name + ".bias", [shape[-1]])]
        out += [("ln_f.weight", [d]), ("ln_f.bias", [d])]
    elif family == "instruct_encdec":
        d, ff, v = c["d_model"], c["dim_feedforward"], c["vocab_size"]
        pair = lambda n, o, i=None: [
            (n + ".weight", [o] if i is None else [o, i]), (n + ".bias", [o])]
        attn = lambda n: sum((pair(f"{n}.{p}_proj", d, d) for p in "qkvo"),
                             [])
        out += [("embed_tokens.weight", [v, d]),
                ("encoder.embed_positions.weight", [c["max_len"], d]),
                ("decoder.embed_positions.weight", [c["max_len"], d])]
        for i in range(c["num_encoder_layers"]):
            n = f"encoder.layers.{i}."
            out += (pair(n + "norm1", d) + attn(n + "self_attn")
                    + pair(n + "norm2", d) + pair(n + "fc1", ff, d)
                    + pair(n + "fc2", d, ff))
        out += pair("encoder.norm", d)
        for i in range(c["num_decoder_layers"]):
            n = f"decoder.layers.{i}."
            out += (pair(n + "norm1", d) + attn(n + "self_attn")
                    + pair(n + "norm2", d) + attn(n + "cross_attn")
                    + pair(n + "norm3", d) + pair(n + "fc1", ff, d)
                    + pair(n + "fc2", d, ff))
        out += pair("decoder.norm", d)
        if not reward:
            out += pair("lm_head", v, d)
    else:
        d, inter = c["hidden_size"], c["intermediate_size"]
        heads = c["num_attention_heads"]
        kv = c.get("num_key_value_heads") or heads
        hd = c.get("head_dim") or d // heads
        bias = family == "qwen2" or c.get("attention_bias", False)
        out.append(("model.embed_tokens.weight", [c["vocab_size"], d]))
        for i in range(c["num_hidden_layers"]):
            n = f"model.layers.{i}."
            out.append((n + "input_layernorm.weight", [d]))
            for p, rows in (("q", heads * hd), ("k", kv * hd),
                            ("v", kv * hd)):
                out.append((f"{n}self_attn.{p}_proj.weight", [rows, d]))
                if bias:
                    out.append((f"{n}self_attn.{p}_proj.bias", [rows]))
            out.append((n + "self_attn.o_proj.weight", [d, heads * hd]))
            if bias and family == "llama":
                out.append((n + "self_attn.o_proj.bias", [d]))
            if family == "qwen3":
                out += [(n + "self_attn.q_norm.weight", [hd]),
                        (n + "self_attn.k_norm.weight", [hd])]
            out.append((n + "post_attention_layernorm.weight", [d]))
            for p, s in (("gate", [inter, d]), ("up", [inter, d]),
                         ("down", [d, inter])):
                out.append((f"{n}mlp.{p}_proj.weight", s))
                if c.get("mlp_bias"):
                    out.append((f"{n}mlp.{p}_proj.bias", [s[0]]))
        out.append(("model.norm.weight", [d]))
        if not c.get("tie_word_embeddings", False) and not reward:
            out.append(("lm_head.weight", [c["vocab_size"], d]))
    if reward:
        d = c.get("n_embd") or c.get("hidden_size") or c.get("d_model")
        out.append(("score.weight", [1, d]))
    return out


def fill(c, a=1.3, b=0.7):
    weights = {}
    for k, (name, shape) in enumerate(layout(c)):
        n = math.prod(shape)
        s = [math.sin(a * k + b * i) for i in range(n)]
        norm = ("norm" in name or ".ln_" in name or name.startswith("ln_f"))
        if len(shape) == 2:
            x = [0.2 * v for v in s]
            cols = shape[1]
            weights[name] = [x[r * cols:(r + 1) * cols]
                             for r in range(shape[0])]
        elif name.endswith(".bias"):
            weights[name] = [0.1 * v for v in s]
        else:
            assert norm, name
            weights[name] = [1 + 0.1 * v for v in s]
    return weights


def dot(x, y):
    return sum(map(float.__mul__, x, y))


def linear(x, w, b=None):
    """y = x W^T + b, W stored [out, in]."""
    y = [dot(x, row) for row in w]
    return [p + q for p, q in zip(y, b)] if b else y


def conv1d(x, w, b):
    """y = x W + b, W stored [in, out]."""
    y = list(b)
    for xi, row in zip(x, w):
        for j, wij in enumerate(row):
            y[j] += xi * wij
    return y


def layer_norm(x, w, b, eps):
    mu = sum(x) / len(x)
    var = sum((v - mu) ** 2 for v in x) / len(x)
    r = 1 / math.sqrt(var + eps)
    return [(v - mu) * r * p + q for v, p, q in zip(x, w, b)]


def rms_norm(x, w, eps):
    r = 1 / math.sqrt(sum(v * v for v in x) / len(x) + eps)
    return [v * r * p for v, p in zip(x, w)]


def add(x, y):
    return [p + q for p, q in zip(x, y)]


def attend(q, keys, values, scale):
    s = [dot(q, k) * scale for k in keys]
    top = max(s)
    e = [math.exp(v - top) for v in s]
    z = sum(e)
    return [sum(w * v[i] for w, v in zip(e, values)) / z
            for i in range(len(values[0]))]


def multi_head(q, k, v, heads, kv, scale, visible):
    """q: one row per query; visible(i): the keys that query i may see."""
    hd = len(q[0]) // heads
    out = []
    for i, row in enumerate(q):
        seen = visible(i)
        o = []
        for h in range(heads):
            g = h // (heads // kv)
            part = slice(g * hd, (g + 1) * hd)
            o += attend(row[h * hd:(h + 1) * hd],
                        [k[j][part] for j in seen],
                        [v[j][part] for j in seen], scale)
        out.append(o)
    return out


def gelu_new(x):
    return 0.5 * x * (1 + math.tanh(math.sqrt(2 / math.pi)
                                    * (x + 0.044715 * x ** 3)))


def gelu_erf(x):
    return 0.5 * x * (1 + math.erf(x / math.sqrt(2)))


def silu(x):
    return x / (1 + math.exp(-x))


def gpt2_hidden(c, w, ids):
    d, heads, eps = c["n_embd"], c["n_head"], c.get("layer_norm_epsilon",
                                                    1e-5)
    x = [add(w["wte.weight"][t], w["wpe.weight"][p])
         for p, t in enumerate(ids)]
    for i in range(c["n_layer"]):
        n = f"h.{i}."
        p = lambda k: (w[n + k + ".weight"], w[n + k + ".bias"])
        h = [layer_norm(r, *p("ln_1"), eps) for r in x]
        qkv = [conv1d(r, *p("attn.c_attn")) for r in h]
        scale = 1 / math.sqrt(d // heads)
        if c.get("scale_attn_by_inverse_layer_idx"):
            scale /= i + 1
        o = multi_head([r[:d] for r in qkv], [r[d:2 * d] for r in qkv],
                       [r[2 * d:] for r in qkv], heads, heads, scale,
                       lambda j: range(j + 1))
        x = [add(r, conv1d(y, *p("attn.c_proj"))) for r, y in zip(x, o)]
        h = [layer_norm(r, *p("ln_2"), eps) for r in x]
        act = [[gelu_new(v) for v in conv1d(r, *p("mlp.c_fc"))] for r in h]
        x = [add(r, conv1d(y, *p("mlp.c_proj"))) for r, y in zip(x, act)]
    return [layer_norm(r, w["ln_f.weight"], w["ln_f.bias"], eps) for r in x]


def rope_frequencies(c, hd):
    scaling = c.get("rope_parameters") or c.get("rope_scaling") or {}
    theta = scaling.get("rope_theta") or c.get("rope_theta", 10000.0)
    out = []
    for i in range(hd // 2):
        f = theta ** (-2 * i / hd)
        kind = scaling.get("rope_type", scaling.get("type", "default"))
        if kind == "linear":
            f /= scaling["factor"]
        if kind == "llama3":
            factor = scaling["factor"]
            low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
            old = scaling["original_max_position_embeddings"]
            wave = 2 * math.pi / f
            if wave > old / low:
                f /= factor
            elif wave >= old / high:
                s = (old / wave - low) / (high - low)
                f = (1 - s) * f / factor + s * f
        out.append(f)
    return out


def rotate(x, pos, freqs, hd):
    out = []
    half = hd // 2
    for h in range(0, len(x), hd):
        a, b = x[h:h + half], x[h + half:h + hd]
        cos = [math.cos(pos * f) for f in freqs]
        sin = [math.sin(pos * f) for f in freqs]
        out += [p * c - q * s for p, q, c, s in zip(a, b, cos, sin)]
        out += [q * c + p * s for p, q, c, s in zip(a, b, cos, sin)]
    return out


def llama_hidden(c, w, ids):
    d, heads = c["hidden_size"], c["num_attention_heads"]
    kv = c.get("num_key_value_heads") or heads
    hd = c.get("head_dim") or d // heads
    eps = c.get("rms_norm_eps", 1e-6)
    freqs = rope_frequencies(c, hd)
    x = [list(w["model.embed_tokens.weight"][t]) for t in ids]
    for i in range(c["num_hidden_layers"]):
        n = f"model.layers.{i}."
        h = [rms_norm(r, w[n + "input_layernorm.weight"], eps) for r in x]
        proj = lambda p, r: linear(r, w[f"{n}{p}_proj.weight"],
                                   w.get(f"{n}{p}_proj.bias"))
        q, k, v = ([proj(f"self_attn.{p}", r) for r in h] for p in "qkv")
        if c["model_type"] == "qwen3":
            norm = lambda r, g: sum(
                (rms_norm(r[j:j + hd], g, eps) for j in range(0, len(r), hd)),
                [])
            q = [norm(r, w[n + "self_attn.q_norm.weight"]) for r in q]
            k = [norm(r, w[n + "self_attn.k_norm.weight"]) for r in k]
        q = [rotate(r, p, freqs, hd) for p, r in enumerate(q)]
        k = [rotate(r, p, freqs, hd) for p, r in enumerate(k)]
        o = multi_head(q, k, v, heads, kv, 1 / math.sqrt(hd),
                       lambda j: range(j + 1))
        x = [add(r, proj("self_attn.o", y)) for r, y in zip(x, o)]
        h = [rms_norm(r, w[n + "post_attention_layernorm.weight"], eps)
             for r in x]
        x = [add(r, proj("mlp.down", [silu(g) * u for g, u in
                                      zip(proj("mlp.gate", y),
                                          proj("mlp.up", y))]))
             for r, y in zip(x, h)]
    return [rms_norm(r, w["model.norm.weight"], eps) for r in x]


def encdec_hidden(c, w, ids, instruction):
    d, heads, eps = c["d_model"], c["nhead"], c.get("layer_norm_eps", 1e-5)
    scale = 1 / math.sqrt(d // heads)
    p = lambda n: (w[n + ".weight"], w[n + ".bias"])

    def attention(n, x, memory, visible):
        q = [linear(r, *p(n + ".q_proj")) for r in x]
        k = [linear(r, *p(n + ".k_proj")) for r in memory]
        v = [linear(r, *p(n + ".v_proj")) for r in memory]
        o = multi_head(q, k, v, heads, heads, scale, visible)
        return [linear(r, *p(n + ".o_proj")) for r in o]

    def feed(n, norm, x):
        out = []
        for r in x:
            h = layer_norm(r, *p(n + norm), eps)
            h = [gelu_erf(v) for v in linear(h, *p(n + "fc1"))]
            out.append(add(r, linear(h, *p(n + "fc2"))))
        return out

    def embed(side, tokens):
        pos = w[side + ".embed_positions.weight"]
        return [add(w["embed_tokens.weight"][t], pos[i])
                for i, t in enumerate(tokens)]

    m = embed("encoder", instruction)
    everything = lambda _: range(len(instruction))
    for i in range(c["num_encoder_layers"]):
        n = f"encoder.layers.{i}."
        h = [layer_norm(r, *p(n + "norm1"), eps) for r in m]
        m = [add(r, y) for r, y in
             zip(m, attention(n + "self_attn", h, h, everything))]
        m = feed(n, "norm2", m)
    m = [layer_norm(r, *p("encoder.norm"), eps) for r in m]
    x = embed("decoder", ids)
    for i in range(c["num_decoder_layers"]):
        n = f"decoder.layers.{i}."
        h = [layer_norm(r, *p(n + "norm1"), eps) for r in x]
        x = [add(r, y) for r, y in zip(x, attention(
            n + "self_attn", h, h, lambda j: range(j + 1)))]
        h = [layer_norm(r, *p(n + "norm2"), eps) for r in x]
        x = [add(r, y) for r, y in
             zip(x, attention(n + "cross_attn", h, m, everything))]
        x = feed(n, "norm3", x)
    return [layer_norm(r, *p("decoder.norm"), eps) for r in x]


def hidden(c, w, ids, instruction=None):
    if not ids:
        return []
    if c["model_type"] == "gpt2":
        return gpt2_hidden(c, w, ids)
    if c["model_type"] == "instruct_encdec":
        return encdec_hidden(c, w, ids, instruction)
    return llama_hidden(c, w, ids)


def logits(c, w, ids, instruction=None):
    """[L][V] of one row without padding."""
    x = hidden(c, w, ids, instruction)
    if c["model_type"] == "gpt2":
        head, bias = w["wte.weight"], None
    elif c["model_type"] == "instruct_encdec":
        head, bias = w["lm_head.weight"], w["lm_head.bias"]
    elif c.get("tie_word_embeddings", False):
        head, bias = w["model.embed_tokens.weight"], None
    else:
        head, bias = w["lm_head.weight"], None
    return [linear(r, head, bias) for r in x]


def values(c, w, ids, instruction=None):
    return [dot(r, w["score.weight"][0])
            for r in hidden(c, w, ids, instruction)]
