#!/usr/bin/env python3
"""The sentiment recipe on a real cluster of local processes.

  tests/k8s/testbed_run.py [--faults all|none|NAME,...] [--together] [--steps N]
                           [--bin-dir DIR] [--dir DIR] [--json FILE]

Two nodes with real kubelets run the build's own binaries as pods: the overlay
`local` with the certificates of `cox certs init`, two learners on two nodes,
two actors, one reward replica. Each run must end by itself with the weights of
`cox run` on this machine, bit by bit; then the same with each fault. Needs
root, about 2 GB of memory, five minutes and what prepare.sh builds. exit-2,
exit-43 and damaged-record are other runs: they must fail at once. Exit code
0 = all equal, 1 = not, 77 = this machine cannot.
"""
import argparse
import hashlib
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import time

import manifests
import testbed_exits
import testbed_faults
from testbed_cluster import (Cluster, TESTBED, stage_binaries, wait_until)

RUN_LIMIT_S = 900


def run_yaml(prefix_data, checkpoints, steps, changes=()):
    """The recipe; `changes` are pairs of a text in it and another one."""
    with open(f"{TESTBED}/run.yaml", encoding="utf-8") as file:
        text = file.read()
    for old, new in (("/data/", prefix_data + "/"),
                     ("steps: 400", f"steps: {steps}"),
                     ("dir: /checkpoints", f"dir: {checkpoints}"), *changes):
        if old not in text:
            raise SystemExit(f"{TESTBED}/run.yaml: no '{old}' to change")
        text = text.replace(old, new)
    return text


def fingerprint(checkpoints, ledger):
    """What must be equal: every committed step, the last checkpoints' files."""
    found = {}
    for stage in sorted(os.listdir(checkpoints)):
        folders = sorted(x for x in os.listdir(f"{checkpoints}/{stage}")
                         if x.startswith("step_") and "." in x)
        last = f"{checkpoints}/{stage}/{folders[-1]}"
        for folder, _, files in os.walk(last):
            for file in files:
                if file.endswith((".safetensors", ".bin")):
                    path = os.path.join(folder, file)
                    with open(path, "rb") as data:
                        found[f"{stage}/{os.path.relpath(path, last)}"] = (
                            hashlib.sha256(data.read()).hexdigest())
    with sqlite3.connect(f"file:{ledger}?mode=ro", uri=True) as rows:
        for stage, step, batch, weights in rows.execute(
                "SELECT stage, step, batch_sha256, weight_hash FROM step"):
            found[f"step {stage}/{step}"] = f"{weights} {batch}"
    return found


def digest(found):
    return hashlib.sha256(json.dumps(found, sort_keys=True).encode()
                          ).hexdigest()[:16]


class ClusterRun:
    """One run in namespace cox, from empty volumes to the JobSet's end."""

    def __init__(self, cluster, tree, volumes, overlay="testbed"):
        self.cluster, self.volumes = cluster, volumes
        self.folder = f"{tree}/overlays/{overlay}"

    def start(self):
        shutil.rmtree(self.volumes, ignore_errors=True)
        for name in ("run", "checkpoints"):
            os.makedirs(f"{self.volumes}/{name}")
            os.chown(f"{self.volumes}/{name}", 65532, 65532)
        os.symlink(os.path.join(manifests.SOURCE, "examples/data"),
                   f"{self.volumes}/data")
        self.cluster.kubectl("apply", "-k", self.folder)
        self.started = time.monotonic()

    def progress(self):
        """(stage, step, when) of the last committed step, or None."""
        path = f"{self.volumes}/run/run/metrics.jsonl"
        try:
            with open(path, "rb") as file:
                file.seek(max(0, os.path.getsize(path) - 20000))
                line = file.read().decode().strip().splitlines()[-1]
            row = json.loads(line)
            return row["stage"], row["step"], row["ts"]
        except (OSError, ValueError, IndexError):
            return None

    def reached(self, stage, step):
        now = self.progress()
        return now is not None and now[0] == stage and now[1] >= step

    def state(self):
        status = self.cluster.get("jobset", "learner", "-n", "cox")["status"]
        return status.get("terminalState", "")

    def wait_for_end(self):
        wait_until(lambda: self.state() != "", RUN_LIMIT_S, "end of the run")
        if self.state() != "Completed":
            raise TimeoutError(f"the JobSet ended as {self.state()}")
        return time.monotonic() - self.started

    def fingerprint(self):
        return fingerprint(f"{self.volumes}/checkpoints",
                           f"{self.volumes}/run/run/ledger.db")

    def clear(self):
        self.cluster.kubectl("delete", "-k", self.folder,
                             "--timeout=120s", "--ignore-not-found")

    def describe(self):
        """What a person needs to see of a run that went wrong."""
        out = [self.cluster.kubectl("get", "pods,jobset,pv,pvc", "-n", "cox",
                                    "-o", "wide", check=False),
               self.cluster.kubectl("get", "events", "-n", "cox",
                                    "--sort-by=.lastTimestamp", check=False
                                    )[-3000:]]
        for role in ("coordinator", "learner", "actor", "reward"):
            out.append(f"--- {role}\n" + self.cluster.kubectl(
                "logs", "-n", "cox", "-l", f"cox.dev/role={role}", "--prefix",
                "--tail=8", check=False))
        return "\n".join(out)


def write_run(tree, steps, changes=()):
    with open(f"{tree}/base/run.yaml", "w", encoding="utf-8") as file:
        file.write(run_yaml("/data", "/checkpoints", steps, changes))


def make_tree(cox, scratch, volumes, steps, changes=()):
    """k8s/ with the testbed's overlay, run, certificates and volumes."""
    tree = f"{scratch}/k8s"
    shutil.copytree(f"{manifests.SOURCE}/k8s", tree)
    shutil.copytree(f"{TESTBED}/overlay", f"{tree}/overlays/testbed")
    manifests.output(cox, "certs", "init", f"{tree}/overlays/local/certs",
                     "--run", "sentiment", "--namespace", "cox",
                     "--dns", "coordinator.cox.svc")
    write_run(tree, steps, changes)
    path = f"{tree}/overlays/local/volumes.yaml"
    with open(path, encoding="utf-8") as file:
        text = file.read()
    with open(path, "w", encoding="utf-8") as file:
        file.write(text.replace("/srv/cox", volumes)
                   .replace("DirectoryOrCreate", "Directory"))
    return tree


def on_this_machine(cox, scratch, steps, changes=()):
    """Fingerprint of `cox run`, and its seconds."""
    folder = f"{scratch}/alone"
    os.makedirs(folder)
    with open(f"{folder}/run.yaml", "w", encoding="utf-8") as file:
        file.write(run_yaml(os.path.join(manifests.SOURCE, "examples/data"),
                            f"{folder}/checkpoints", steps, changes))
    started = time.monotonic()
    done = subprocess.run([cox, "run", f"{folder}/run.yaml",
                           f"run_dir={folder}/run", "--quiet"],
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                          text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"cox run: exit {done.returncode}\n{done.stdout}")
    return (fingerprint(f"{folder}/checkpoints", f"{folder}/run/ledger.db"),
            time.monotonic() - started)


def difference(want, have):
    keys = sorted(k for k in want.keys() | have.keys()
                  if want.get(k) != have.get(k))
    return ", ".join(keys[:5]) + (f" and {len(keys) - 5} more"
                                  if len(keys) > 5 else "")


def one(cluster, tree, volumes, want, faults):
    """A row of the table: one run with these faults, one after the other."""
    run = ClusterRun(cluster, tree, volumes)
    row = {"fault": "+".join(faults) or "none", "equal": False}
    if len(faults) > 1:
        row["fault"] = f"all {len(faults)} in one"
    try:
        run.start()
        for fault in faults:
            struck = testbed_faults.strike(fault, cluster, run)
            if len(faults) == 1:
                row.update(struck)
            else:
                row.setdefault("each", {})[fault] = struck
                print(f"  {fault:<16} {struck['pods_s']:>7} "
                      f"{struck['step_s']:>7}", flush=True)
        row["run_s"] = round(run.wait_for_end(), 1)
        have = run.fingerprint()
        row["hash"] = digest(have)
        row["equal"] = have == want
        if not row["equal"]:
            row["different"] = difference(want, have)
        status = cluster.get("jobset", "learner", "-n", "cox")["status"]
        row["restarts"] = status.get("restarts", 0)
        row["counted"] = status.get("restartsCountTowardsMax", 0)
    except TimeoutError as error:
        row["different"] = str(error)
        print(run.describe(), flush=True)
    run.clear()
    for fault in faults:
        testbed_faults.mend(fault, cluster)
    return row


def refused(cluster, tree, volumes, steps, name):
    """A row of the table: a run that must fail for good."""
    write_run(tree, steps, testbed_exits.EXITS[name][0])
    run = ClusterRun(cluster, tree, volumes)
    row = testbed_exits.provoke(name, cluster, run)
    run.clear()
    write_run(tree, steps)
    return row


def print_row(row):
    cell = lambda key: str(row.get(key, "-"))
    print(f"{row['fault']:<18} {cell('pods_s'):>7} {cell('step_s'):>7} "
          f"{cell('run_s'):>7} {cell('restarts'):>8} {cell('counted'):>7}  "
          f"{row.get('want', 'equal') if row['equal'] else ''}"
          f"{'' if row['equal'] else 'DIFFERENT ' + cell('different')}",
          flush=True)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--faults", default="all", help="all, none, or of: " +
                        ", ".join([*testbed_faults.FAULTS,
                                   *testbed_exits.EXITS]))
    parser.add_argument("--steps", type=int, default=400,
                        help="of ppo: fewer on a busy machine, more on a fast "
                        "one, so that faults strike in its middle")
    parser.add_argument("--together", action="store_true",
                        help="one run with all the faults instead of one each")
    parser.add_argument("--bin-dir", default=os.environ.get(
        "COX_BIN_DIR", f"{manifests.SOURCE}/build/release/bin"))
    parser.add_argument("--dir", help="work here and keep it")
    parser.add_argument("--json", help="write the rows to this file")
    a = parser.parse_args()
    known = [*testbed_faults.FAULTS, *testbed_exits.EXITS]
    chosen = {"all": known, "none": []}.get(a.faults, a.faults.split(","))
    for name in chosen:
        if name not in known:
            sys.exit(f"--faults: unknown '{name}'")
    faults = [name for name in chosen if name in testbed_faults.FAULTS]
    exits = [name for name in chosen if name in testbed_exits.EXITS]
    manifests.need_namespaces()
    root = manifests.prepare("all")
    # Not in /tmp: every pod has its own.
    with manifests.scratch("/var/tmp") as temporary:
        scratch = os.path.abspath(a.dir or temporary)
        os.makedirs(scratch, exist_ok=True)
        os.chmod(scratch, 0o755)
        stage_binaries(a.bin_dir, f"{scratch}/stage")
        cox = f"{a.bin_dir}/cox"
        volumes = f"{scratch}/volumes"
        tree = make_tree(cox, scratch, volumes, a.steps)
        want, seconds = on_this_machine(cox, scratch, a.steps)
        print(f"cox run on this machine: {seconds:.1f} s, "
              f"{len(want)} hashes, digest {digest(want)}", flush=True)
        rows = []
        with Cluster(root, f"{scratch}/state", f"{scratch}/stage") as cluster:
            print(f"{'fault':<18} {'pods s':>7} {'step s':>7} {'run s':>7} "
                  f"{'restarts':>8} {'counted':>7}  weights", flush=True)
            runs = [faults] if a.together else [[], *([x] for x in faults)]
            if exits and not faults:
                runs = []
            for struck in runs:
                rows.append(one(cluster, tree, volumes, want, struck))
                print_row(rows[-1])
            for name in exits:
                rows.append(refused(cluster, tree, volumes, a.steps, name))
                print_row(rows[-1])
        if a.json:
            with open(a.json, "w", encoding="utf-8") as file:
                json.dump({"alone_s": seconds, "digest": digest(want),
                           "rows": rows}, file, indent=1)
    print("pods s: until every pod is Ready again; step s: until the first "
          "step\ncommitted by the restored group; counted: restarts that count "
          "toward the limit")
    return 0 if all(row["equal"] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
