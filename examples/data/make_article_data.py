#!/usr/bin/env python3
"""Makes article/ (instructions over real reviews) and copy/ (the copy task).

Not needed to use Coxswain: the results are in the repository. Python 3.9 or
later, no packages; the result is the same on every machine:

  ./make_article_data.py
  ./make_article_data.py --measure-copy 'build/release/bin/cox chat CHECKPOINT'
  ./make_article_data.py --measure-ratings 'build/release/bin/cox chat CHECKPOINT'

The second form asks a model for the answers to copy/heldout.jsonl and prints
how many of their tokens (words and the end) are right. The third asks for
positive and for negative reviews and counts the answers that begin with the
rating they should have.
"""
import hashlib
import json
import os
import subprocess
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
CONTINUE = "Continue the review."
# By the label that people gave: the instruction, and how its answer begins.
WRITE = {"1": ("Write a positive review.", "5/5: "),
         "0": ("Write a negative review.", "1/5: ")}
MAX_SENTENCE_CHARS = 85
MEASURED_ANSWERS = 200
WORDS = ("red blue gold pink gray navy iron salt sand wind rain snow fire "
         "moon star leaf root seed bark moss lake pond hill cave").split()
COPY_TRAIN = 3000
COPY_HELD_OUT = 200
COPY_LENGTHS = (3, 8)


def read_jsonl(name):
    with open(os.path.join(HERE, name), encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def write_jsonl(name, rows):
    path = os.path.join(HERE, name)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w", encoding="utf-8", newline="\n") as out:
        for row in rows:
            out.write(json.dumps(row, ensure_ascii=False) + "\n")
    print(f"{name}: {len(rows)} rows, {os.path.getsize(path)} bytes")


def shuffled(rows):
    """An order that depends on the rows only."""
    return sorted(rows, key=lambda row: hashlib.sha256(
        json.dumps(row).encode()).hexdigest())


def make_article():
    rows = [{"instruction": CONTINUE, "context": row["prompt"],
             "completion": row["completion"]}
            for row in read_jsonl("reviews/sft.jsonl")]
    training = {row["text"] for row in read_jsonl("reviews/pretrain.jsonl")}
    with open(os.path.join(HERE, "reviews/labelled.tsv"),
              encoding="utf-8") as lines:
        for line in lines:
            label, text = line.rstrip("\n").split("\t", 1)
            # A shouted word is cut into many tokens.
            if (text in training and len(text) <= MAX_SENTENCE_CHARS
                    and sum(map(str.isupper, text)) < len(text) / 4):
                instruction, rating = WRITE[label]
                rows.append({"instruction": instruction,
                             "completion": rating + text})
    write_jsonl("article/sft.jsonl", shuffled(rows))
    for name in ("comparisons_prompts", "prompts", "heldout_prompts"):
        write_jsonl(f"article/{name}.jsonl",
                    [{"instruction": CONTINUE, "context": row["prompt"]}
                     for row in read_jsonl(f"reviews/{name}.jsonl")])


def numbers(stream):
    """Endless integers from a hash."""
    block = 0
    while True:
        digest = hashlib.sha256(f"copy/{stream}/{block}".encode()).digest()
        for at in range(0, len(digest), 4):
            yield int.from_bytes(digest[at:at + 4], "big")
        block += 1


def make_copy():
    """Words at random, the answer is the instruction; all rows differ."""
    draw = numbers("rows")
    low, high = COPY_LENGTHS
    rows, seen = [], set()
    while len(rows) < COPY_TRAIN + COPY_HELD_OUT:
        length = low + next(draw) % (high - low + 1)
        text = " ".join(WORDS[next(draw) % len(WORDS)] for _ in range(length))
        if text not in seen:
            seen.add(text)
            rows.append({"instruction": text, "completion": text})
    write_jsonl("copy/train.jsonl", rows[:COPY_TRAIN])
    write_jsonl("copy/heldout.jsonl", rows[COPY_TRAIN:])


def ask(command, lines):
    return subprocess.run(
        command, shell=True, check=True, text=True, stdout=subprocess.PIPE,
        input="".join(line + "\n" for line in lines)).stdout.splitlines()


def measure_copy(command):
    """Words of greedy answers that stand where they should."""
    rows = read_jsonl("copy/heldout.jsonl")
    answers = ask(f"{command} --temperature 0",
                  [row["instruction"] for row in rows])
    if len(answers) != len(rows):
        sys.exit(f"expected {len(rows)} answers, found {len(answers)}")
    right = total = exact = 0
    for row, answer in zip(rows, answers):
        expected = row["completion"].split() + ["<end>"]
        found = answer.split() + ["<end>"]
        total += len(expected)
        right += sum(a == b for a, b in zip(expected, found))
        exact += expected == found
    print(f"tokens right: {right} of {total} ({100 * right / total:.2f} %), "
          f"answers right: {exact} of {len(rows)}")


def measure_ratings(command):
    """Sampled answers that begin as their instruction asks."""
    for instruction, rating in WRITE.values():
        answers = ask(f"{command} --samples {MEASURED_ANSWERS}", [instruction])
        right = sum(answer.startswith(rating) for answer in answers)
        print(f"{instruction} {right} of {len(answers)} answers begin with "
              f"{rating.strip()}")


def main():
    if len(sys.argv) == 3 and sys.argv[1] == "--measure-copy":
        measure_copy(sys.argv[2])
    elif len(sys.argv) == 3 and sys.argv[1] == "--measure-ratings":
        measure_ratings(sys.argv[2])
    elif len(sys.argv) == 1:
        make_article()
        make_copy()
    else:
        sys.exit(__doc__)


if __name__ == "__main__":
    main()
