#!/usr/bin/env python3
"""Compare a model folder's logits with Hugging Face transformers.

usage: hf_parity.py --ops build/release/bin/cox-ops DIR [DIR ...]

Loads DIR with AutoModelForCausalLM.from_pretrained (needs torch and
transformers; neither is a build dependency) and with cox-ops model_forward, on
random token ids from a fixed seed, and prints the largest absolute difference.
Exit code 0 when it is at most 1e-4 for every folder.
"""
import argparse
import json
import subprocess
import sys

import torch
from transformers import AutoModelForCausalLM


def ours(ops, folder, tokens):
    request = {"op": "model_forward",
               "args": {"model": {"dir": folder}, "tokens": tokens,
                        "dtype": "float32"}}
    done = subprocess.run([ops], input=json.dumps(request) + "\n",
                          capture_output=True, text=True, check=True)
    reply = json.loads(done.stdout.splitlines()[0])
    if not reply["ok"]:
        raise SystemExit(f"{folder}: {reply['error']}")
    return torch.tensor(reply["result"]["logits"])


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ops", required=True)
    parser.add_argument("--length", type=int, default=24)
    parser.add_argument("--batch", type=int, default=3)
    parser.add_argument("folders", nargs="+")
    options = parser.parse_args()
    worst = 0.0
    for folder in options.folders:
        model = AutoModelForCausalLM.from_pretrained(
            folder, torch_dtype=torch.float32).eval()
        torch.manual_seed(0)
        tokens = torch.randint(0, model.config.vocab_size,
                               (options.batch, options.length))
        with torch.no_grad():
            theirs = model(tokens).logits
        difference = (ours(options.ops, folder, tokens.tolist())
                      - theirs).abs().max().item()
        worst = max(worst, difference)
        print(f"{folder}: max |difference| of logits {difference:.3g} "
              f"over {theirs.numel()} values")
    return 0 if worst <= 1e-4 else 1


if __name__ == "__main__":
    sys.exit(main())
