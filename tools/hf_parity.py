#!/usr/bin/env python3
"""Compare models with Hugging Face transformers, in both directions.

usage: hf_parity.py --bin build/release/bin [DIR ...]

Without folders: builds small random models of GPT-2, Llama, Qwen2 and Qwen3 in
many variants (heads, biases, tied or not, every RoPE scaling, sharded, float32,
bfloat16 and float16 storage), saves them with save_pretrained and compares
  - logits of cox-ops model_forward on random ids, and greedy answers,
  - logits of transformers on the folder that `cox ckpt import` writes.
With folders: the same for each of them. Needs torch and transformers (not a
build dependency). Exit code 0 when no logit differs by more than 1e-5 times the
largest logit (or 1e-5, if that is larger) and every greedy answer is equal.
"""
import argparse
import json
import os
import subprocess
import sys
import tempfile

import torch
import transformers
from transformers import (AutoModelForCausalLM, GPT2Config, LlamaConfig,
                          Qwen2Config, Qwen3Config)

LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
          "high_freq_factor": 4.0, "original_max_position_embeddings": 16}
YARN = {"rope_type": "yarn", "factor": 4.0,
        "original_max_position_embeddings": 16}


def gpt2(**more):
    return GPT2Config(**{**dict(vocab_size=61, n_positions=64, n_embd=32,
                                n_layer=2, n_head=4, bos_token_id=0,
                                eos_token_id=1), **more})


def llama_like(kind, theta=1e4, rope=None, **more):
    return kind(**{**dict(
        vocab_size=61, hidden_size=32, intermediate_size=40,
        num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
        max_position_embeddings=64, bos_token_id=0, eos_token_id=1,
        rope_parameters={"rope_theta": theta, "rope_type": "default",
                         **(rope or {})}), **more})


def variants():
    yield "gpt2", gpt2()
    yield "gpt2 untied", gpt2(tie_word_embeddings=False)
    yield "gpt2 n_inner, inverse layer", gpt2(
        n_inner=48, scale_attn_by_inverse_layer_idx=True)
    yield "gpt2 eps, one head", gpt2(n_head=1, layer_norm_epsilon=1e-3)
    for tied in (False, True):
        for heads in (1, 2, 4):
            yield f"llama kv {heads} tied {tied}", llama_like(
                LlamaConfig, num_key_value_heads=heads,
                tie_word_embeddings=tied)
    yield "llama biases", llama_like(LlamaConfig, attention_bias=True,
                                     mlp_bias=True)
    yield "llama head_dim 12, eps", llama_like(LlamaConfig, head_dim=12,
                                               rms_norm_eps=1e-3)
    yield "llama theta 5e5, llama3", llama_like(LlamaConfig, 5e5, LLAMA3)
    yield "llama linear", llama_like(LlamaConfig, rope={
        "rope_type": "linear", "factor": 4.0})
    yield "llama yarn", llama_like(LlamaConfig, rope=YARN)
    yield "llama yarn, own factors", llama_like(LlamaConfig, rope={
        **YARN, "beta_fast": 4.0, "beta_slow": 0.5, "attention_factor": 1.3,
        "truncate": False})
    for tied in (False, True):
        yield f"qwen2 tied {tied}", llama_like(
            Qwen2Config, 1e6, tie_word_embeddings=tied)
        yield f"qwen3 tied {tied}", llama_like(
            Qwen3Config, 1e6, tie_word_embeddings=tied, head_dim=16)
    yield "qwen2 yarn", llama_like(Qwen2Config, 1e6, YARN)
    yield "qwen2 kv 4", llama_like(Qwen2Config, 1e6, num_key_value_heads=4)
    yield "qwen3 yarn", llama_like(Qwen3Config, 1e6, YARN, head_dim=8)
    yield "qwen3 biases", llama_like(Qwen3Config, 1e6, head_dim=8,
                                     attention_bias=True)


def make(config, seed):
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config).float().eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            # Biases and norms start constant; sizes that make logits spread.
            if weight.ndim < 2:
                weight.add_(0.2 * torch.randn_like(weight))
            else:
                weight.copy_(0.2 * torch.randn_like(weight))
    return model


def rewrite_config(folder):
    """rope_parameters as the older rope_theta and rope_scaling."""
    path = os.path.join(folder, "config.json")
    config = json.load(open(path))
    rope = config.pop("rope_parameters", None)
    if rope is None:
        return False
    config["rope_theta"] = rope.pop("rope_theta")
    kind = rope.pop("rope_type")
    config["rope_scaling"] = (None if kind == "default"
                              else {"type": kind, **rope})
    json.dump(config, open(path, "w"))
    return True


class Cox:
    def __init__(self, folder):
        self.folder = folder

    def ask(self, op, args):
        done = subprocess.run([os.path.join(self.folder, "cox-ops")],
                              input=json.dumps({"op": op, "args": args}) + "\n",
                              capture_output=True, text=True, check=True)
        reply = json.loads(done.stdout.splitlines()[0])
        if not reply["ok"]:
            raise SystemExit(f"{op}: {reply['error']}")
        return reply["result"]

    def logits(self, folder, tokens):
        return torch.tensor(self.ask(
            "model_forward", {"model": {"dir": folder}, "dtype": "float32",
                              "tokens": tokens.tolist()})["logits"])

    def greedy(self, folder, prompts, count):
        return self.ask("generate_greedy",
                        {"model": {"dir": folder}, "prompts": prompts,
                         "max_new_tokens": count, "eos_ids": []})["tokens"]

    def export(self, source, out):
        subprocess.run([os.path.join(self.folder, "cox"), "ckpt", "import",
                        source, out], check=True, stdout=subprocess.DEVNULL)


def load(folder):
    return AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32).eval()


def compare(cox, name, folder, work):
    """Largest difference of logits, both ways, and whether greedy agrees."""
    model = load(folder)
    torch.manual_seed(1)
    tokens = torch.randint(0, model.config.vocab_size, (3, 40))
    with torch.no_grad():
        theirs = model(tokens).logits
    there = (cox.logits(folder, tokens) - theirs).abs().max().item()
    prompts = [row[:n].tolist() for row, n in zip(tokens, (3, 7, 20))]
    answers = cox.greedy(folder, prompts, 12)
    same = True
    for prompt, answer in zip(prompts, answers):
        ids = list(prompt)
        for token in answer:
            with torch.no_grad():
                best = model(torch.tensor([ids])).logits[0, -1].argmax().item()
            same = same and best == token
            ids.append(token)
    out = os.path.join(work, "out")
    cox.export(folder, out)
    with torch.no_grad():
        back = (load(out)(tokens).logits - theirs).abs().max().item()
    subprocess.run(["rm", "-r", out], check=True)
    largest = theirs.abs().max().item()
    good = max(there, back) <= 1e-5 * max(1.0, largest) and same
    print(f"{'ok ' if good else 'BAD'} {name}: logits up to {largest:.2f} "
          f"differ by {there:.2g}, of our export by {back:.2g}, greedy "
          f"{'equal' if same else 'DIFFERS'}", flush=True)
    return good, max(there, back)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bin", required=True)
    parser.add_argument("folders", nargs="*")
    options = parser.parse_args()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    cox = Cox(options.bin)
    results = []
    with tempfile.TemporaryDirectory() as work:
        for folder in options.folders:
            results.append(compare(cox, folder, folder, work))
        for seed, (name, config) in enumerate(
                () if options.folders else variants()):
            model = make(config, seed)
            # Storage goes round, so that every kind meets every family.
            dtype = (torch.float32, torch.bfloat16, torch.float16)[seed % 3]
            shards = ("20KB", "5GB")[seed // 3 % 2]
            folder = os.path.join(work, str(seed))
            model.to(dtype).save_pretrained(folder, max_shard_size=shards)
            files = sum(f.endswith(".safetensors") for f in os.listdir(folder))
            label = f"{name}, {str(dtype)[6:]}, {files} files"
            results.append(compare(cox, label, folder, work))
            if rewrite_config(folder):
                results.append(compare(cox, label + ", old rope keys", folder,
                                       work))
    bad = sum(not good for good, _ in results)
    worst = max(d for _, d in results)
    print(f"{len(results)} comparisons, {bad} bad, largest difference "
          f"{worst:.3g}")
    return 0 if bad == 0 else 1


if __name__ == "__main__":
    sys.exit(main())
