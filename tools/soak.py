#!/usr/bin/env python3
"""Long run under kills: are memory, descriptors and threads of each role flat?

Starts `cox run FILE` in a folder of its own, SIGKILLs one of its processes
every --kill-every seconds (role and process by the seed; `cox run` starts it
again) and reads /proc of every process every --every seconds. At the end the
run is stopped with `cox stop` and `cox ledger verify` must find nothing.

  tools/soak.py run.yaml --minutes 60 [--seed N] [--dir DIR] [a.b.c=value ...]

Per role it prints the largest process in the window after the warm-up
(minutes 10 to 20 of 60, in proportion) and in the last sixth, and the growth
between them. A process younger than a minute does not count: it is loading.
Exit 1 if memory grew by more than --tolerance (5 % and 4 MiB), descriptors or
threads by more than 2, or the ledger is not whole. Standard library only.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import time

ROLES = ("coordinator", "actor", "reward", "learner")
PAGE = os.sysconf("SC_PAGE_SIZE")
TICKS = os.sysconf("SC_CLK_TCK")


def read(path):
    try:
        with open(path, "rb") as f:
            return f.read()
    except OSError:
        return b""


def children(parent):
    """(pid, role) of the living processes that `parent` started."""
    found = []
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        stat = read(f"/proc/{name}/stat")
        if not stat:
            continue
        fields = stat[stat.rfind(b")") + 2:].split()
        if int(fields[1]) != parent or fields[0] == b"Z":
            continue
        program = os.path.basename(
            read(f"/proc/{name}/cmdline").split(b"\0")[0].decode())
        role = program.removeprefix("cox-")
        if role in ROLES:
            found.append((int(name), role))
    return found


def sample(pid):
    """Age in seconds, private resident bytes, descriptors, threads; or None."""
    stat = read(f"/proc/{pid}/stat")
    memory = read(f"/proc/{pid}/smaps_rollup").decode()
    if not stat or not memory:
        return None
    fields = stat[stat.rfind(b")") + 2:].split()
    age = float(read("/proc/uptime").split()[0]) - int(fields[19]) / TICKS
    private = sum(int(line.split()[1]) * 1024 for line in memory.splitlines()
                  if line.startswith("Private_"))
    try:
        descriptors = len(os.listdir(f"/proc/{pid}/fd"))
    except OSError:
        return None
    return {"age": age, "bytes": private, "descriptors": descriptors,
            "threads": int(fields[17])}


def window(samples, role, begin, end):
    """Largest values of a role's grown-up processes in a span of time."""
    chosen = [s for s in samples if s["role"] == role
              and begin <= s["at"] < end and s["age"] >= 60]
    if not chosen:
        return None
    return {key: max(s[key] for s in chosen)
            for key in ("bytes", "descriptors", "threads")}


def judge(samples, seconds, tolerance):
    """Rows (role, early, late) and the complaints about them."""
    rows, complaints = [], []
    for role in ROLES:
        early = window(samples, role, seconds / 6, seconds / 3)
        late = window(samples, role, seconds * 5 / 6, seconds + 1)
        if early is None or late is None:
            complaints.append(f"{role}: no process lived for a minute in "
                              "one of the two windows")
            continue
        rows.append((role, early, late))
        grown = late["bytes"] - early["bytes"]
        if grown > max(tolerance * early["bytes"], 4 << 20):
            complaints.append(f"{role}: memory grew by {grown / 1e6:.1f} MB")
        for key in ("descriptors", "threads"):
            if late[key] > early[key] + 2:
                complaints.append(
                    f"{role}: {key} grew from {early[key]} to {late[key]}")
    return rows, complaints


def watch(run, args, log):
    """Samples until the time is over; kills on the way."""
    rng = random.Random(args.seed)
    begin = time.monotonic()
    samples, kills = [], {role: 0 for role in ROLES}
    next_kill, said = args.kill_every, 0.0
    while run.poll() is None:
        now = time.monotonic() - begin
        if now >= args.minutes * 60:
            break
        living = children(run.pid)
        for pid, role in living:
            row = sample(pid)
            if row:
                row.update(role=role, pid=pid, at=now)
                samples.append(row)
                log.write(json.dumps(row) + "\n")
        if now >= next_kill:
            next_kill += args.kill_every
            role = rng.choice(ROLES)
            pids = [pid for pid, r in living if r == role]
            if pids:
                os.kill(rng.choice(pids), signal.SIGKILL)
                kills[role] += 1
        if now - said >= 60:
            said = now
            print(f"minute {now / 60:.0f}: {len(living)} processes, "
                  f"{sum(kills.values())} kills", file=sys.stderr)
        time.sleep(args.every)
    return samples, kills


def main():
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("file", help="run.yaml with more steps than time")
    parser.add_argument("overrides", nargs="*", help="a.b.c=value")
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--kill-every", type=float, default=150,
                        help="seconds between kills")
    parser.add_argument("--every", type=float, default=10,
                        help="seconds between looks at /proc")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--tolerance", type=float, default=0.05)
    parser.add_argument("--dir", default="soak", help="new run directory")
    parser.add_argument("--cox", default="build/release/bin/cox")
    args = parser.parse_args()
    if os.path.exists(args.dir):
        parser.error(f"{args.dir}: is there already")
    cox, folder = os.path.abspath(args.cox), os.path.abspath(args.dir)
    with open(folder + ".log", "w") as out, \
            open(folder + ".samples.jsonl", "w") as log:
        run = subprocess.Popen(
            [cox, "run", args.file, f"run_dir={folder}", *args.overrides],
            stdout=out, stderr=subprocess.STDOUT)
        samples, kills = watch(run, args, log)
        ended = run.poll()
        if ended is None:
            subprocess.run([cox, "stop", folder], stdout=out, stderr=out,
                           timeout=120, check=False)
            run.wait(timeout=120)
    rows, complaints = judge(samples, args.minutes * 60, args.tolerance)
    if ended is not None:
        complaints.append(f"the run ended early with exit code {ended}; see "
                          f"{folder}.log")
    print(f"{'role':<12}{'kills':>6}{'MB early':>10}{'MB late':>9}"
          f"{'fds early':>11}{'late':>6}{'threads early':>15}{'late':>6}")
    for role, early, late in rows:
        print(f"{role:<12}{kills[role]:>6}{early['bytes'] / 1e6:>10.1f}"
              f"{late['bytes'] / 1e6:>9.1f}{early['descriptors']:>11}"
              f"{late['descriptors']:>6}{early['threads']:>15}"
              f"{late['threads']:>6}")
    verify = subprocess.run([cox, "ledger", "verify", folder],
                            capture_output=True, text=True)
    print(verify.stdout.strip().splitlines()[-1] if verify.stdout else
          verify.stderr.strip())
    if verify.returncode != 0:
        complaints.append("the ledger is not whole")
    for complaint in complaints:
        print(f"soak: {complaint}")
    return 1 if complaints else 0


if __name__ == "__main__":
    sys.exit(main())
