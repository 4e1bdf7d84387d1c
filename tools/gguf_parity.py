#!/usr/bin/env python3
"""Check the import of a GGUF file against readers that are not ours.

usage: gguf_parity.py --bin build/release/bin FILE.gguf

1. Every tensor of `cox ckpt import` against the blocks expanded here in numpy
   and by the `gguf` package: equal bits.
2. tokenizer.json against merges applied here, cut by llama.cpp's expressions.
3. Logits of cox-ops on the file against transformers, which reads the file with
   its own loader and dequantisation.
4. Greedy answers to ten chat prompts against transformers' generate(); a first
   difference is shown with the gap between the two logits.

Needs torch, transformers, accelerate and gguf (no build dependency). Exit code 0 when
1 and 2 hold, logits differ by at most 1e-3 and every greedy answer is equal or
differs first where the reference's gap is below that.
"""
import argparse
import json
import os
import subprocess
import sys
import tempfile

import gguf
import numpy as np
import regex
import torch
import transformers
from safetensors.numpy import load_file
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

QUESTIONS = [
    "What is the capital of France?",
    "Write one sentence about the sea.",
    "What is 2 + 2?",
    "Name three colours.",
    "Who wrote Hamlet?",
    "Translate 'good morning' to Spanish.",
    "Why is the sky blue?",
    "Give me a short recipe for pancakes.",
    "What does a compiler do?",
    "Say hello in two words.",
]
TEXTS = [
    "Hello world", "  two  spaces\n\n\ttab", "12345 6,789.0", "it's we'll I'D",
    "Ünïcödé 日本語 🙂🙃", "<|im_start|>user\nhi<|im_end|>\n", "x=1;y=2**10 // z",
    "٣٤٥ Ⅷ ½", "a\r\nb\r\n", " ", "", "don't!!! ...why???",
]


def fail(message):
    print("FAIL:", message)
    return False


def expand(kind, raw, shape):
    """Blocks of 32 to float32, by the format's definition."""
    name = kind.name
    if name == "F32":
        return raw.view(np.float32).reshape(shape)
    if name == "F16":
        return raw.view(np.float16).astype(np.float32).reshape(shape)
    width = {"Q8_0": 34, "Q4_0": 18, "Q4_1": 20}[name]
    blocks = raw.reshape(-1, width)
    scale = blocks[:, :2].copy().view(np.float16).astype(np.float32)
    if name == "Q8_0":
        return (scale * blocks[:, 2:].view(np.int8).astype(np.float32)
                ).reshape(shape)
    packed = blocks[:, -16:]
    q = np.concatenate([packed & 15, packed >> 4], 1).astype(np.float32)
    if name == "Q4_0":
        return (scale * (q - np.float32(8))).reshape(shape)
    low = blocks[:, 2:4].copy().view(np.float16).astype(np.float32)
    return (scale * q + low).reshape(shape)


def folder_name(name):
    whole = {"token_embd.weight": "model.embed_tokens.weight",
             "output_norm.weight": "model.norm.weight",
             "output.weight": "lm_head.weight"}
    if name in whole:
        return whole[name]
    parts = {"attn_norm": "input_layernorm", "attn_q": "self_attn.q_proj",
             "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
             "attn_output": "self_attn.o_proj",
             "attn_q_norm": "self_attn.q_norm",
             "attn_k_norm": "self_attn.k_norm",
             "ffn_norm": "post_attention_layernorm",
             "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj",
             "ffn_down": "mlp.down_proj"}
    _, layer, part, kind = name.split(".")
    return f"model.layers.{layer}.{parts[part]}.{kind}"


def sorted_back(name, data, architecture, heads, kv_heads):
    if architecture != "llama":
        return data
    count = {"attn_q": heads, "attn_k": kv_heads}.get(name.split(".")[-2])
    if count is None:
        return data
    shape = data.shape
    half = shape[0] // count // 2
    return data.reshape(count, half, 2, -1).swapaxes(1, 2).reshape(shape)


def check_tensors(reader, folder):
    field = lambda key: reader.fields[key].contents()
    architecture = field("general.architecture")
    heads = field(f"{architecture}.attention.head_count")
    kv_heads = field(f"{architecture}.attention.head_count_kv")
    ours = load_file(os.path.join(folder, "model.safetensors"))
    kinds = {}
    for tensor in reader.tensors:
        if tensor.name == "rope_freqs.weight":
            continue
        shape = [int(n) for n in reversed(tensor.shape)]
        raw = np.ascontiguousarray(tensor.data).reshape(-1).view(np.uint8)
        mine = expand(tensor.tensor_type, raw, shape)
        theirs = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        if not np.array_equal(mine.view(np.uint32),
                              np.ascontiguousarray(theirs, np.float32)
                              .reshape(shape).view(np.uint32)):
            return fail(f"{tensor.name}: numpy and gguf differ")
        mine = sorted_back(tensor.name, mine, architecture, heads, kv_heads)
        found = ours.pop(folder_name(tensor.name))
        if not np.array_equal(found.view(np.uint32),
                              np.ascontiguousarray(mine).view(np.uint32)):
            return fail(f"{tensor.name}: the import differs")
        kinds[tensor.tensor_type.name] = kinds.get(
            tensor.tensor_type.name, 0) + 1
    if ours:
        return fail(f"not in the file: {sorted(ours)}")
    print(f"tensors: equal bits, {kinds}")
    return True


# llama.cpp's expressions of tokenizer.ggml.pre, applied one after the other.
GPT2 = (r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+"
        r"|\s+(?!\S)")
CUTS = {
    "gpt-2": [GPT2],
    "smollm": [r"\p{N}", GPT2],
    "llama-bpe": [
        r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
        r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
        r"|\s*[\r\n]+|\s+(?!\S)|\s+"],
    "qwen2": [
        r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
        r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
        r"|\s*[\r\n]+|\s+(?!\S)|\s+"],
}


def byte_alphabet():
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    table = {b: chr(b) for b in plain}
    for b in range(256):
        if b not in table:
            table[b] = chr(256 + len(table) - len(plain))
    return table


class Merges:
    """Byte-pair encoding as in the GPT-2 paper, slow and plain."""

    def __init__(self, reader):
        field = lambda key: reader.fields[f"tokenizer.ggml.{key}"].contents()
        self.ids = {t: i for i, t in enumerate(field("tokens"))}
        self.rank = {tuple(m.split(" ")): i
                     for i, m in enumerate(field("merges"))}
        self.cuts = [regex.compile(p) for p in CUTS[field("pre")]]
        self.whole_words = field("pre") == "llama-bpe"
        self.table = byte_alphabet()

    def encode(self, text):
        pieces = [text]
        for pattern in self.cuts:
            out = []
            for piece in pieces:
                end = 0
                for match in pattern.finditer(piece):
                    out += [piece[end:match.start()], match.group()]
                    end = match.end()
                out.append(piece[end:])
            pieces = [p for p in out if p]
        ids = []
        for piece in pieces:
            word = [self.table[b] for b in piece.encode()]
            if self.whole_words and "".join(word) in self.ids:
                word = ["".join(word)]
            while len(word) > 1:
                best = min(zip(word, word[1:]),
                           key=lambda p: self.rank.get(p, 1 << 60))
                if best not in self.rank:
                    break
                out = []
                while word:
                    if tuple(word[:2]) == best:
                        out.append(word[0] + word[1])
                        word = word[2:]
                    else:
                        out.append(word.pop(0))
                word = out
            ids += [self.ids[t] for t in word]
        return ids


def check_tokenizer(reader, folder, file):
    # The file itself, as any program would load it.
    ours = Tokenizer.from_file(os.path.join(folder, "tokenizer.json"))
    merges = Merges(reader)
    texts = [t for t in TEXTS + QUESTIONS if "<|" not in t]
    wrong = 0
    for text in texts:
        expected = merges.encode(text)
        found = ours.encode(text, add_special_tokens=False).ids
        if found != expected or ours.decode(
                found, skip_special_tokens=False) != text:
            wrong += 1
            print(f"  {text!r}: expected {expected}, found {found}")
    print(f"tokenizer: {len(texts)} texts, {wrong} encode otherwise")
    return wrong == 0, AutoTokenizer.from_pretrained(folder)


def ask(binary, op, args):
    done = subprocess.run([os.path.join(binary, "cox-ops")],
                          input=json.dumps({"op": op, "args": args}) + "\n",
                          capture_output=True, text=True, check=True)
    reply = json.loads(done.stdout.splitlines()[0])
    if not reply["ok"]:
        raise SystemExit(f"{op}: {reply['error']}")
    return reply["result"]


def check_model(options, folder, file, tokenizer):
    model = AutoModelForCausalLM.from_pretrained(
        os.path.dirname(file), gguf_file=os.path.basename(file),
        dtype=torch.float32).eval()
    torch.manual_seed(0)
    tokens = torch.randint(0, model.config.vocab_size, (2, 12))
    mine = torch.tensor(ask(options.bin, "model_forward",
                            {"model": {"dir": file}, "tokens": tokens.tolist(),
                             "dtype": "float32"})["logits"])
    with torch.no_grad():
        theirs = model(tokens).logits
    worst = (mine - theirs).abs().max().item()
    print(f"logits: max |difference| {worst:.3g} over {mine.numel()} values "
          f"(their largest {theirs.abs().max():.3g})")
    good = worst <= 1e-3
    template = json.load(open(os.path.join(folder, "tokenizer_config.json")))[
        "chat_template"]
    prompts = [tokenizer.apply_chat_template(
        [{"role": "user", "content": q}], chat_template=template,
        add_generation_prompt=True, tokenize=True)["input_ids"]
        for q in QUESTIONS]
    eos = tokenizer.convert_tokens_to_ids("<|im_end|>")
    answers = ask(options.bin, "generate_greedy",
                  {"model": {"dir": file}, "prompts": prompts,
                   "max_new_tokens": options.tokens, "eos_ids": [eos]}
                  )["tokens"]
    equal = 0
    for question, prompt, answer in zip(QUESTIONS, prompts, answers):
        with torch.no_grad():
            whole = model.generate(
                torch.tensor([prompt]), do_sample=False, eos_token_id=eos,
                pad_token_id=eos, max_new_tokens=options.tokens)[0].tolist()
        theirs = whole[len(prompt):]
        if theirs == answer:
            equal += 1
            print(f"  equal, {len(answer)} tokens: {question} -> "
                  f"{tokenizer.decode(answer, skip_special_tokens=True)!r}")
            continue
        at = next(i for i in range(min(len(theirs), len(answer)))
                  if theirs[i] != answer[i])
        with torch.no_grad():
            last = model(torch.tensor([prompt + theirs[:at]])).logits[0, -1]
        gap = (last[theirs[at]] - last[answer[at]]).item()
        print(f"  differs at token {at}: {question}: gap {gap:.3g}")
        good = good and gap < 1e-3
    print(f"greedy: {equal} of {len(QUESTIONS)} equal")
    return good


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bin", required=True)
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("file")
    options = parser.parse_args()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    file = os.path.abspath(options.file)
    with tempfile.TemporaryDirectory() as work:
        folder = os.path.join(work, "model")
        subprocess.run([os.path.join(options.bin, "cox"), "ckpt", "import",
                        file, folder], check=True)
        reader = gguf.GGUFReader(file)
        good = check_tensors(reader, folder)
        tokens, tokenizer = check_tokenizer(reader, folder, file)
        good = check_model(options, folder, file, tokenizer) and good and tokens
    print("good" if good else "NOT GOOD")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
