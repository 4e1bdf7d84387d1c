"""Cases of docs/ops-protocol.md §8 and of generate (§6)."""

import json
import math
import os
import struct

import model_oracle as oracle
import tape
from core import (FREE, check, generator, reference, rejected)
from sampling_oracle import TABLES, draw, processed, processing

BASE = {
    "gpt2": {"model_type": "gpt2", "vocab_size": 11, "n_positions": 16,
             "n_embd": 8, "n_layer": 2, "n_head": 2},
    "llama": {"model_type": "llama", "vocab_size": 11, "hidden_size": 8,
              "intermediate_size": 12, "num_hidden_layers": 2,
              "num_attention_heads": 2, "num_key_value_heads": 1,
              "rms_norm_eps": 1e-5, "rope_theta": 1e4,
              "tie_word_embeddings": False,
              "max_position_embeddings": 64},
    "qwen2": {"model_type": "qwen2", "vocab_size": 11, "hidden_size": 8,
              "intermediate_size": 12, "num_hidden_layers": 2,
              "num_attention_heads": 2, "num_key_value_heads": 1,
              "rms_norm_eps": 1e-6, "rope_theta": 1e6,
              "tie_word_embeddings": True, "max_position_embeddings": 64},
    "qwen3": {"model_type": "qwen3", "vocab_size": 11, "hidden_size": 8,
              "intermediate_size": 12, "num_hidden_layers": 2,
              "num_attention_heads": 2, "num_key_value_heads": 1,
              "head_dim": 6, "rms_norm_eps": 1e-6, "rope_theta": 1e6,
              "tie_word_embeddings": True, "max_position_embeddings": 64},
    "instruct_encdec": {"model_type": "instruct_encdec", "vocab_size": 11,
                        "d_model": 8, "nhead": 2, "num_encoder_layers": 1,
                        "num_decoder_layers": 2, "dim_feedforward": 12,
                        "max_len": 16, "dropout": 0.1, "bos_token_id": 1,
                        "eos_token_id": 2, "pad_token_id": 0},
}
HEADS = {"gpt2": "GPT2", "llama": "Llama", "qwen2": "Qwen2",
         "qwen3": "Qwen3", "instruct_encdec": "InstructEncDec"}


def random_config(g, reward=None):
    c = dict(BASE[g.rng.choice(sorted(BASE))])
    f = c["model_type"]
    c["vocab_size"] = g.pick(3, 11, 17)
    if f == "gpt2":
        c["n_layer"] = g.pick(1, 2)
        c["n_head"] = g.pick(1, 2, 4)
        if g.chance(0.3):
            c["n_inner"] = g.pick(None, 20)
        if g.chance(0.3):
            c["scale_attn_by_inverse_layer_idx"] = True
    elif f == "instruct_encdec":
        c["nhead"] = g.pick(1, 2, 4)
        c["num_encoder_layers"] = g.pick(1, 2)
    else:
        c["num_attention_heads"] = g.pick(2, 4)
        c["num_key_value_heads"] = g.pick(1, 2)
        c["tie_word_embeddings"] = g.chance(0.5)
        c["num_hidden_layers"] = g.pick(1, 2)
        if g.chance(0.3):
            c["head_dim"] = g.pick(2, 4, 6)
        if f == "llama" and g.chance(0.4):
            scaling = {"factor": 8.0, "low_freq_factor": 1.0,
                       "high_freq_factor": 4.0,
                       "original_max_position_embeddings": 16}
            if g.chance(0.5):
                c["rope_scaling"] = dict(
                    scaling, **{g.pick("rope_type", "type"): "llama3"})
            else:
                c["rope_parameters"] = dict(scaling, rope_type="llama3",
                                            rope_theta=c.pop("rope_theta"))
        if f == "llama" and g.chance(0.2):
            c["attention_bias"] = True
    if reward if reward is not None else g.chance(0.25):
        c["architectures"] = [HEADS[f] + "ForSequenceClassification"]
        c["num_labels"] = 1
    return c


def random_fill(g):
    return {"a": g.pick(1.3, g.rng.uniform(0.1, 3)),
            "b": g.pick(0.7, g.rng.uniform(0.1, 3))}


STORED = {"float64": ("F64", "<%dd"), "float32": ("F32", "<%df"),
          "float16": ("F16", "<%de"), "bfloat16": ("BF16", "<%dH")}


def flat(x):
    return [v for r in x for v in r] if isinstance(x[0], list) else list(x)


def bf16(x):
    """Bits and value of the nearest bfloat16, ties to even."""
    bits = struct.unpack("<I", struct.pack("<f", x))[0]
    bits = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return bits, struct.unpack("<f", struct.pack("<I", bits << 16))[0]


def save(g, c, weights):
    """Writes a folder; returns (path, weights as stored)."""
    path = os.path.join(TABLES.name, f"model{g.rng.getrandbits(60):x}")
    os.mkdir(path)
    kind = g.rng.choice(sorted(STORED))
    tag, fmt = STORED[kind]
    shapes = dict(oracle.layout(c))
    stored, blobs = {}, {}
    for name, w in weights.items():
        x = flat(w)
        if kind == "bfloat16":
            pairs = [bf16(v) for v in x]
            data = struct.pack(fmt % len(x), *(p[0] for p in pairs))
            x = [p[1] for p in pairs]
        else:
            data = struct.pack(fmt % len(x), *x)
            x = list(struct.unpack(fmt % len(x), data))
        s = shapes[name]
        stored[name] = ([x[i * s[1]:(i + 1) * s[1]] for i in range(s[0])]
                        if len(s) == 2 else x)
        blobs[name] = (tag, s, data)
    prefix = ("transformer." if c["model_type"] == "gpt2" and g.chance(0.5)
              else "")
    blobs = {(n if n == "score.weight" else prefix + n): b
             for n, b in blobs.items()}
    if c["model_type"] == "gpt2" and g.chance(0.5):
        n = c["n_positions"]
        blobs[prefix + "h.0.attn.bias"] = (
            "U8", [1, 1, n, n], bytes(n * n))
        blobs[prefix + "h.0.attn.masked_bias"] = (
            "F32", [], struct.pack("<f", -1e4))
        if "score.weight" not in weights:
            blobs["lm_head.weight"] = blobs[prefix + "wte.weight"]
    names = sorted(blobs)
    shards = [names]
    if g.chance(0.4):
        cut = g.rng.randrange(1, len(names))
        shards = [names[:cut], names[cut:]]
    index = {}
    for i, part in enumerate(shards):
        file = ("model.safetensors" if len(shards) == 1 else
                f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors")
        header, data = {"__metadata__": {"format": "pt"}}, b""
        for name in part:
            tag, shape, blob = blobs[name]
            header[name] = {"dtype": tag, "shape": shape,
                            "data_offsets": [len(data),
                                             len(data) + len(blob)]}
            data += blob
            index[name] = file
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        with open(os.path.join(path, file), "wb") as f:
            f.write(struct.pack("<Q", len(text)) + text + data)
    if len(shards) > 1:
        with open(os.path.join(path, "model.safetensors.index.json"),
                  "w") as f:
            json.dump({"metadata": {}, "weight_map": index}, f)
    with open(os.path.join(path, "config.json"), "w") as f:
        json.dump(c, f)
    return path, stored


SAVED = {}     # path -> (config, weights)


def model_of(a):
    m = a["model"]
    if "dir" in m:
        return SAVED[m["dir"]]
    f = m.get("fill", {})
    return m["config"], oracle.fill(m["config"], f.get("a", 1.3),
                                    f.get("b", 0.7))


def random_model(g, reward=None):
    c = random_config(g, reward)
    f = random_fill(g)
    if g.chance(0.4):
        path, stored = save(g, c, oracle.fill(c, f["a"], f["b"]))
        SAVED[path] = (c, stored)
        return c, {"dir": path}
    return c, {"config": c, "fill": f}


@reference("model_forward")
def model_forward(a):
    c, w = model_of(a)
    tokens = a["tokens"]
    mask = a.get("attention_mask") or [[1] * len(r) for r in tokens]
    tau = a.get("temperature", 1)
    reward = "score.weight" in w
    out = ({"values": [], "score": []} if reward else
           {"logits": [], "logprob": []})
    for b, (row, ms) in enumerate(zip(tokens, mask)):
        real = [j for j, m in enumerate(ms) if m]
        ids = [row[j] for j in real]
        instruction = None
        if "instruction" in a:
            im = a.get("instruction_mask")
            instruction = [t for j, t in enumerate(a["instruction"][b])
                           if im is None or im[b][j]]
        if reward:
            v = oracle.values(c, w, ids, instruction)
            line = [FREE] * len(row)
            for j, x in zip(real, v):
                line[j] = x
            out["values"].append(line)
            out["score"].append(v[-1] if v else FREE)
            continue
        z = oracle.logits(c, w, ids, instruction)
        line, lps = [FREE] * len(row), [FREE] * len(row)
        for n, j in enumerate(real):
            line[j] = z[n]
            if n + 1 < len(real) and real[n + 1] == j + 1:
                lps[j] = tape.log_softmax([x / tau for x in z[n]])[
                    ids[n + 1]]
        if row:
            lps[-1] = 0.0
        out["logits"].append(line)
        out["logprob"].append(lps)
    return out


@generator("model_forward")
def _(g):
    c, model = random_model(g)
    v = c["vocab_size"]
    b, length = g.pick(1, 1, 2, 3, 3, 0), g.pick(1, 2, 5, 8)
    tokens = [[g.rng.randrange(v) for _ in range(length)] for _ in range(b)]
    args = {"model": model, "tokens": tokens}
    if g.chance(0.7):
        mask = []
        for row in tokens:
            pad = g.rng.randrange(length)
            keep = [1] * (length - pad)
            encdec = c["model_type"] == "instruct_encdec"
            left = not encdec and g.chance(0.5)
            m = [0] * pad + keep if left else keep + [0] * pad
            if g.chance(0.05):
                m = [0] * length
            mask.append(m)
        args["attention_mask"] = mask
        args["tokens"] = g.poison_ids(tokens, mask)
    if c["model_type"] == "instruct_encdec":
        n = g.pick(1, 3, 6)
        args["instruction"] = [[g.rng.randrange(v) for _ in range(n)]
                               for _ in range(b)]
        if g.chance(0.6):
            im = []
            for _ in range(b):
                k = g.rng.randint(1, n)
                im.append([1] * k + [0] * (n - k))
            args["instruction_mask"] = im
            args["instruction"] = g.poison_ids(args["instruction"], im)
    if g.chance(0.4):
        args["temperature"] = g.pick(0.7, 2)
    return g.done(args)


@check("model_forward")
def _(args, result):
    def finite(x):
        if isinstance(x, list):
            return all(map(finite, x))
        return isinstance(x, (int, float)) and math.isfinite(x)
    if not all(finite(x) for x in result.values()):
        yield "a non-finite entry"


@rejected("model_forward")
def _():
    m = {"config": BASE["llama"]}
    ok = {"model": m, "tokens": [[1, 2, 3]]}
    yield dict(ok, tokens=[[1, 2, 11]])
    yield dict(ok, tokens=[[1, 2, -1]])
    yield dict(ok, tokens=[[1], [1, 2]])
    yield dict(ok, temperature=0)
    yield dict(ok, attention_mask=[[1, 1]])
    yield dict(ok, model={"config": dict(BASE["llama"], model_type="bert")})
    yield dict(ok, model={"config": dict(BASE["llama"], hidden_size=0)})
    yield dict(ok, model={"config": dict(BASE["llama"], hidden_size="x")})
    yield dict(ok, model={"config": dict(BASE["llama"], hidden_size=-8)})
    yield dict(ok, model={"config": dict(BASE["llama"],
                                         num_hidden_layers=1e30)})
    yield dict(ok, model={"config": []})
    yield dict(ok, model={})
    yield dict(ok, model={"config": BASE["gpt2"], "fill": {"c": 1}})
    yield dict(ok, model={"config": BASE["gpt2"]}, tokens=[[1] * 17])
    e = {"model": {"config": BASE["instruct_encdec"]}, "tokens": [[1, 2]]}
    yield e
    yield dict(e, instruction=[[1]], instruction_mask=[[0]])
    yield dict(e, instruction=[[11]])
    yield dict(e, instruction=[[1], [1]])
    yield dict(e, instruction=[[1]], tokens=[[1] * 17])
    yield dict(ok, instruction=[[1]])


# --- generate --------------------------------------------------------------

ASK = {}       # set by the runner: ASK["uniforms"](seed, keys) -> u


@reference("generate")
def generate(a):
    c, w = model_of(a)
    sample = {k: a[k] for k in ("temperature", "top_k", "top_p", "min_p",
                                "repetition_penalty", "forbid_ids",
                                "min_new_tokens", "eos_ids") if k in a}
    out = {"tokens": [], "logprob": [], "finish": []}
    for r, prompt in enumerate(a["prompts"]):
        instruction = a["instructions"][r] if "instructions" in a else None
        ids, lps, finish = [], [], "length"
        unsure = False
        keys = [[*a["keys"][r], t] for t in range(a["max_new_tokens"])]
        u = ASK["uniforms"](a.get("seed", 0), keys)
        for t in range(a["max_new_tokens"]):
            z = oracle.logits(c, w, prompt + ids, instruction)[-1]
            lp = processed(dict(sample, logits=z, context=prompt + ids,
                                generated=t))
            # float32 kernels may decide what lies this close.
            live = sorted((x for x in lp if x > -math.inf), reverse=True)
            token = draw(lp, u[t])
            if token is None or near_boundary(sample, z, lp):
                unsure = True
                break
            ids.append(token)
            lps.append(lp[token])
            if token in a.get("eos_ids", []):
                finish = "stop"
                break
        out["tokens"].append(FREE if unsure else ids)
        out["logprob"].append(FREE if unsure else lps)
        out["finish"].append(FREE if unsure else finish)
    return out


def near_boundary(sample, z, lp):
    """A truncation whose keep-set a shift of 1e-4 would change."""
    if sample.get("temperature", 1) == 0:
        top = sorted((x for x in z), reverse=True)
        return len(top) > 1 and top[0] - top[1] < 1e-3
    keep = [x > -math.inf for x in lp]
    for f in (1 - 1e-4, 1 + 1e-4):
        s = dict(sample)
        if "top_p" in s and s["top_p"] < 1:
            s["top_p"] = min(s["top_p"] * f, 1)
        if "min_p" in s:
            s["min_p"] = min(s["min_p"] * f, 1)
        other = processed(dict(s, logits=z, context=s.get("_c", []),
                               generated=10 ** 6))
        if s.get("repetition_penalty", 1) == 1 and \
                not s.get("min_new_tokens") and \
                [x > -math.inf for x in other] != keep:
            return True
    return False


def random_prompts(g, c):
    v = c["vocab_size"]
    n = g.pick(1, 2, 4)
    args = {"prompts": [[g.rng.randrange(v)
                         for _ in range(g.rng.randint(1, 5))]
                        for _ in range(n)]}
    if c["model_type"] == "instruct_encdec":
        args["instructions"] = [[g.rng.randrange(v)
                                 for _ in range(g.rng.randint(1, 4))]
                                for _ in range(n)]
    return args


@generator("generate")
def _(g):
    c, model = random_model(g, reward=False)
    args = dict(random_prompts(g, c), model=model)
    args["keys"] = [[g.rng.getrandbits(40), g.rng.randint(0, 5)]
                    for _ in args["prompts"]]
    args["seed"] = g.rng.getrandbits(40)
    args["max_new_tokens"] = g.pick(1, 3, 6)
    processing(g, c["vocab_size"], args)
    if "eos_ids" not in args:
        args["eos_ids"] = [g.rng.randrange(c["vocab_size"])]
    if len(set(args.get("forbid_ids", [])) | set(args["eos_ids"])) \
            >= c["vocab_size"]:
        args.pop("forbid_ids")
    if args.get("repetition_penalty", 1) != 1 or args.get("min_new_tokens"):
        args.pop("top_p", None)
        args.pop("min_p", None)
    args["pad_id"] = 0
    return args


@rejected("generate")
def _():
    ok = {"model": {"config": BASE["llama"]}, "prompts": [[1, 2]],
          "keys": [[0, 0]], "max_new_tokens": 2, "eos_ids": [0]}
    yield dict(ok, prompts=[[]])
    yield dict(ok, prompts=[[11]])
    yield dict(ok, prompts=[[-1]])
    yield dict(ok, keys=[])
    yield dict(ok, keys=[[0, 0], [0, 1]])
    yield dict(ok, keys=[[0, -1]])
    yield dict(ok, max_new_tokens=0)
    yield dict(ok, temperature=-1)
    yield dict(ok, top_k=-1)
    yield dict(ok, top_p=0)
    yield dict(ok, min_p=2)
    yield dict(ok, repetition_penalty=0)
    yield dict(ok, seed=-1)
    yield dict(ok, forbid_ids=list(range(11)))
    yield dict(ok, instructions=[[1]])
    yield dict(ok, model={"config": BASE["gpt2"]}, max_new_tokens=30)
    yield dict(ok, model={"config": BASE["instruct_encdec"]})
    yield dict(ok, model={"config": BASE["instruct_encdec"]},
               instructions=[[]])


@reference("generate_greedy")
def generate_greedy(a):
    b = dict(a, temperature=0, keys=[[0, 0]] * len(a["prompts"]))
    out = generate(b)
    del out["logprob"]
    return out


@generator("generate_greedy")
def _(g):
    c, model = random_model(g, reward=False)
    args = dict(random_prompts(g, c), model=model)
    args["max_new_tokens"] = g.pick(1, 3, 6)
    args["eos_ids"] = [g.rng.randrange(c["vocab_size"])]
    if g.chance(0.4):
        args["min_new_tokens"] = g.rng.randint(0, 4)
    args["pad_id"] = 0
    return args


@rejected("generate_greedy")
def _():
    ok = {"model": {"config": BASE["llama"]}, "prompts": [[1, 2]],
          "max_new_tokens": 2, "eos_ids": [0]}
    yield dict(ok, prompts=[[]])
    yield dict(ok, max_new_tokens=0)
    yield dict(ok, temperature=1)
    yield dict(ok, seed=1)


# --- fill ------------------------------------------------------------------

@reference("model_fill")
def model_fill(a):
    # GPT-2's names may carry a prefix: see the check.
    return {"tensors": [{"name": FREE, "shape": s}
                        for _, s in oracle.layout(a["config"])]}


@generator("model_fill")
def _(g):
    c = random_config(g)
    path = os.path.join(TABLES.name, f"fill{g.rng.getrandbits(60):x}")
    args = {"config": c, "fill": random_fill(g), "out_dir": path}
    if g.chance(0.5):
        args["save_dtype"] = g.pick("float32", "bfloat16")
    if g.chance(0.4):
        args["max_shard_bytes"] = g.pick(300, 3000)
    return args


def read_folder(path):
    index = os.path.join(path, "model.safetensors.index.json")
    files = ["model.safetensors"]
    if os.path.exists(index):
        with open(index) as f:
            files = sorted(set(json.load(f)["weight_map"].values()))
    out = {}
    for name in files:
        with open(os.path.join(path, name), "rb") as f:
            size = struct.unpack("<Q", f.read(8))[0]
            header, data = json.loads(f.read(size)), f.read()
        for tensor, t in header.items():
            if tensor == "__metadata__":
                continue
            raw = data[slice(*t["data_offsets"])]
            if t["dtype"] == "BF16":
                x = [struct.unpack("<f", struct.pack("<I", v << 16))[0]
                     for v in struct.unpack(f"<{len(raw) // 2}H", raw)]
            else:
                x = list(struct.unpack(f"<{len(raw) // 4}f", raw))
            out[tensor] = (t["dtype"], t["shape"], x)
    return out


@check("model_fill")
def _(args, result):
    names = [t["name"].removeprefix("transformer.")
             for t in result["tensors"]]
    if names != [n for n, _ in oracle.layout(args["config"])]:
        yield f"not the pinned order: {names}"
    f = args["fill"]
    want = oracle.fill(args["config"], f["a"], f["b"])
    got = read_folder(args["out_dir"])
    got = {n.removeprefix("transformer."): v for n, v in got.items()}
    shapes = dict(oracle.layout(args["config"]))
    tag = {"bfloat16": "BF16"}.get(args.get("save_dtype"), "F32")
    tol = 5e-3 if tag == "BF16" else 1e-6
    if set(want) != set(got):
        yield f"names differ: {sorted(set(want) ^ set(got))}"
        return
    for name, w in want.items():
        dtype, shape, x = got[name]
        if dtype != tag or shape != shapes[name]:
            yield f"{name}: {dtype} {shape}"
        elif any(abs(p - q) > tol for p, q in zip(flat(w), x)):
            yield f"{name}: values differ"
    with open(os.path.join(args["out_dir"], "config.json")) as fh:
        c = json.load(fh)
    if c["model_type"] != args["config"]["model_type"]:
        yield "config.json has another model_type"


@rejected("model_fill")
def _():
    ok = {"config": BASE["gpt2"], "out_dir": TABLES.name + "/x"}
    yield dict(ok, save_dtype="int8")
    yield dict(ok, max_shard_bytes=0)
    yield {"config": BASE["gpt2"]}
    yield {"out_dir": TABLES.name + "/x"}


def reject_folders():
    """(args, code) of folders that cannot be used."""
    import random

    from core import Gen
    ok = {"tokens": [[1, 2]]}
    yield (dict(ok, model={"dir": TABLES.name + "/none"}), "NOT_FOUND", "")

    def broken(change, name):
        g = Gen(random.Random(len(SAVED) + len(os.listdir(TABLES.name))))
        c = dict(BASE["qwen2"])
        w = oracle.fill(c)
        path, _ = save(g, c, w)
        change(path)
        return (dict(ok, model={"dir": path}), "FAILED_PRECONDITION", name)

    def config(**kw):
        def change(path):
            file = os.path.join(path, "config.json")
            with open(file) as f:
                c = json.load(f)
            c.update(kw)
            with open(file, "w") as f:
                json.dump(c, f)
        return change

    def truncate(path):
        for name in os.listdir(path):
            if name.endswith(".safetensors"):
                file = os.path.join(path, name)
                os.truncate(file, os.path.getsize(file) - 4)

    yield broken(config(intermediate_size=13), "mlp")
    yield broken(config(num_hidden_layers=3), "layers.2")
    yield broken(config(vocab_size=12), "embed_tokens")
    yield broken(config(tie_word_embeddings=False), "lm_head")
    yield broken(truncate, "")
