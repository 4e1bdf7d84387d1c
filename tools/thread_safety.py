#!/usr/bin/env python3
"""Clang's -Wthread-safety over every file that holds or uses a lock.

  tools/thread_safety.py BUILD_DIR [--jobs N]

g++ builds the tree; it knows nothing of the annotations of lib/base/sync.h.
Files and flags come from BUILD_DIR/compile_commands.json: all of ours, tests
excepted, that name a lock themselves or whose own header does, and that do not
include LibTorch, whose headers clang 14 takes minutes for. Exit 1 with clang's
messages, 77 where there is no clang. Standard library only.
"""

import argparse
import concurrent.futures
import json
import os
import re
import shlex
import shutil
import subprocess
import sys

LOCKS = re.compile(r"ABSL_GUARDED_BY|ABSL_EXCLUSIVE_LOCKS_REQUIRED|MutexLock|"
                   r"\bMutex\b")
CLANG = ("clang++-14", "clang++")


def text(path):
    try:
        with open(path, encoding="utf-8") as f:
            return f.read()
    except OSError:
        return ""


def uses_locks(source):
    header = source.removesuffix(".cc") + ".h"
    # core_turn.cc belongs to core_turn.h; core_audit.cc, of one class with
    # core.cc, to core.h.
    first = re.search(r'#include "([^"]+)"', text(source))
    return any(LOCKS.search(t) for t in (
        text(source), text(header), text(first.group(1)) if first else ""))


def check(clang, entry):
    words = shlex.split(entry["command"])
    flags = [w for w in words if re.match(r"-(I|D|std=|isystem.)", w)]
    for word, value in zip(words, words[1:]):
        if word == "-isystem":
            flags += [word, value]
    done = subprocess.run(
        [clang, "-fsyntax-only", "-Wno-everything", "-Wthread-safety",
         "-Werror=thread-safety", *flags, entry["file"]],
        cwd=entry["directory"], capture_output=True, text=True, check=False)
    return entry["file"], done.returncode, done.stderr


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("build_dir")
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    args = parser.parse_args()
    clang = next((c for c in CLANG if shutil.which(c)), None)
    if clang is None:
        print(f"thread_safety: none of {', '.join(CLANG)} is installed "
              "(tools/setup.sh installs clang-14)")
        return 77
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    os.chdir(root)
    with open(os.path.join(args.build_dir, "compile_commands.json"),
              encoding="utf-8") as f:
        entries = json.load(f)
    chosen = {}
    for entry in entries:
        relative = os.path.relpath(
            os.path.join(entry["directory"], entry["file"]), root)
        if (relative.startswith(("lib/", "actor/", "learner/", "reward/",
                                 "coordinator/", "cli/"))
                and "torch" not in entry["command"].split(" -c ")[0].lower()
                and uses_locks(relative)):
            entry["file"] = os.path.join(root, relative)
            chosen[relative] = entry
    failed = 0
    with concurrent.futures.ThreadPoolExecutor(args.jobs) as pool:
        for file, code, message in pool.map(
                lambda e: check(clang, e), chosen.values()):
            if code != 0:
                failed += 1
                print(f"{os.path.relpath(file, root)}:\n{message}")
    print(f"thread_safety: {len(chosen)} files, {failed} with errors")
    return 1 if failed or not chosen else 0


if __name__ == "__main__":
    sys.exit(main())
