#!/usr/bin/env python3
"""Actors that follow the load, and idle ones that go first, on the testbed.

  tests/k8s/testbed_keda.py [--mode sync|fixed_lag|streaming] [--bound N]
                            [--bin-dir DIR] [--dir DIR] [--steps N]

Stands in for KEDA and its HorizontalPodAutoscaler: asks the coordinator over
mutual TLS as KEDA does (scaler_probe) and scales the Deployment to
ceil(metric / 1), 1 to 4. The run's stages need 1 (pretrain), 4 (collect), 1
(rm), up to 4 (ppo) and fewer actors (eval). Checks that the Deployment
followed 1 - 4 - 1, by the ledger that no unit was trained staler than the bound
(sync: 0), that the coordinator put deletion costs on busy pods and may do
nothing else at the API server, and the weights: those of `cox run` in sync and
fixed_lag; in every mode a pod beside the run's volume finds each invariant of
the ledger (`cox ledger verify`) and computes every step of ppo again
(`cox replay`). Exit codes: testbed_run.py.
"""
import argparse
import collections
import json
import os
import shutil
import sqlite3
import sys
import time

import manifests
from testbed_cluster import Cluster, TESTBED, stage_binaries, wait_until
from testbed_run import (ClusterRun, difference, make_tree, on_this_machine)

COST = "controller.kubernetes.io/pod-deletion-cost"
MAXIMUM = 4
AUDIT_LIMIT_S = 900
PPO = 4  # its place among the recipe's stages
# Generation that costs more than training, so that two learners have work for
# several actors.
GENERATION_HEAVY = [("max_new_tokens: 12", "max_new_tokens: 24"),
                    ("prompts_per_step: 16", "prompts_per_step: 32"),
                    ("epochs: 2", "epochs: 1"),
                    ("minibatches: 2", "minibatches: 1")]


class Loop:
    """Polls the signal, scales, remembers what it saw."""

    def __init__(self, cluster, run, probe, certs):
        self.cluster, self.run, self.probe, self.certs = (cluster, run, probe,
                                                          certs)
        self.sizes = []  # (stage, replicas) when either changes
        self.costs = set()
        self.replicas = 1

    def signal(self):
        """KEDA's numbers, or None while the coordinator is away."""
        pods = self.cluster.ready("coordinator")
        if not pods:
            return None
        said = self.cluster.inside(
            self.probe, f"{pods[0]['status']['podIP']}:7100",
            "coordinator.cox.svc", f"{self.certs}/scaler").stdout.split()
        return int(said[1]) if len(said) == 2 else None

    def step(self):
        wanted = self.signal()
        at = self.run.progress()
        stage = at[0] if at else "start"
        if wanted is not None:
            replicas = max(1, min(MAXIMUM, wanted))
            if replicas != self.replicas:
                self.cluster.kubectl("scale", "-n", "cox", "deployment/actor",
                                     f"--replicas={replicas}")
                self.replicas = replicas
        if not self.sizes or self.sizes[-1][1] != self.replicas:
            self.sizes.append((stage, self.replicas))
            print(f"after {stage}: wanted {wanted}, {self.replicas} actors",
                  flush=True)
        for pod in self.cluster.pods("actor"):
            cost = pod["metadata"].get("annotations", {}).get(COST)
            if cost is not None:
                self.costs.add(int(cost))


def changes_for(mode, bound):
    """What the recipe needs for this schedule."""
    if mode == "sync":
        return []
    name = {"fixed_lag": "lag", "streaming": "eta"}[mode]
    schedule = f"schedule: {{mode: {mode}, {name}: {bound}}}\n"
    return [("seed: 3\n", f"seed: 3\n{schedule}"), *GENERATION_HEAVY]


def staleness(ledger, stage):
    """{versions behind: trained units} of `stage`, from the ledger's rows."""
    ages = collections.Counter()
    with sqlite3.connect(f"file:{ledger}?mode=ro", uri=True) as rows:
        version = {(step, index): at for step, index, at in rows.execute(
            "SELECT step, idx, version_step FROM unit WHERE stage = ?",
            (stage,))}
        batches = dict(rows.execute(
            "SELECT step, units FROM batch WHERE stage = ?", (stage,)))
        for step, in rows.execute(
                "SELECT step FROM step WHERE stage = ?", (stage,)):
            if batches:  # streaming: "round.index round.index ..."
                units = [tuple(map(int, unit.split(".")))
                         for unit in batches[step].split()]
            else:
                units = [unit for unit in version if unit[0] == step]
            ages.update(step - 1 - version[unit] for unit in units)
    return dict(sorted(ages.items()))


def audit(cluster, steps):
    """Problems that `cox ledger verify` and `cox replay` find in a pod."""
    with open(f"{TESTBED}/audit.yaml", encoding="utf-8") as file:
        text = file.read().replace("STEPS", str(steps))
    cluster.kubectl("apply", "-n", "cox", "-f", "-", input=text)

    def over():
        status = cluster.get("job", "audit", "-n", "cox")["status"]
        return any(c["type"] in ("Complete", "Failed") and c["status"] == "True"
                   for c in status.get("conditions", []))
    wait_until(over, AUDIT_LIMIT_S, "the audit's end")
    said = {name: cluster.kubectl("logs", "-n", "cox", "job/audit", "-c", name,
                                  check=False).strip().splitlines() or [""]
            for name in ("verify", "replay")}
    equal = sum("weights' hash equals the ledger" in line
                for line in said["replay"])
    print(f"{said['verify'][-1]}; replay: {equal} of {steps} steps equal",
          flush=True)
    problems = []
    if ", 0 violated" not in said["verify"][-1]:
        problems.append("ledger verify: " + " / ".join(said["verify"][-4:]))
    if equal != steps:
        problems.append("replay: " + " / ".join(said["replay"][-4:]))
    return problems


def rights(cluster):
    """What the coordinator's account may do, of what it could wish for."""
    who = "system:serviceaccount:cox:coordinator"
    return [f"{verb} {what}" for verb in ("get", "list", "patch", "delete",
                                          "create", "update")
            for what in ("pods", "secrets", "deployments.apps", "nodes")
            if cluster.kubectl("auth", "can-i", verb, what, "-n", "cox",
                               f"--as={who}", check=False).strip().endswith(
                                   "yes")]


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--bin-dir", default=os.environ.get(
        "COX_BIN_DIR", f"{manifests.SOURCE}/build/release/bin"))
    parser.add_argument("--steps", type=int, default=100, help="of ppo")
    parser.add_argument("--mode", default="sync",
                        choices=("sync", "fixed_lag", "streaming"))
    parser.add_argument("--bound", type=int, default=2,
                        help="versions that a trained unit may be behind; not "
                        "with sync")
    parser.add_argument("--dir", help="work here and keep it")
    a = parser.parse_args()
    bound = 0 if a.mode == "sync" else a.bound
    changes = changes_for(a.mode, bound)
    manifests.need_namespaces()
    root = manifests.prepare("all")
    problems = []
    weights = "not compared: streaming follows the clock"
    with manifests.scratch("/var/tmp") as temporary:
        scratch = os.path.abspath(a.dir or temporary)
        os.makedirs(scratch, exist_ok=True)
        os.chmod(scratch, 0o755)
        stage_binaries(a.bin_dir, f"{scratch}/stage")
        volumes = f"{scratch}/volumes"
        tree = make_tree(f"{a.bin_dir}/cox", scratch, volumes, a.steps,
                         changes)
        shutil.copytree(f"{TESTBED}/overlay-keda",
                        f"{tree}/overlays/testbed-keda")
        if a.mode != "streaming":
            want, _ = on_this_machine(f"{a.bin_dir}/cox", scratch, a.steps,
                                      changes)
        with Cluster(root, f"{scratch}/state", f"{scratch}/stage") as cluster:
            with open(f"{root}/crds.yaml", encoding="utf-8") as file:
                cluster.kubectl("apply", "--server-side", "--force-conflicts",
                                "-f", "-", input=file.read())
            run = ClusterRun(cluster, tree, volumes, overlay="testbed-keda")
            run.start()
            loop = Loop(cluster, run, f"{a.bin_dir}/scaler_probe",
                        f"{tree}/overlays/local/certs")
            allowed = rights(cluster)
            started = time.monotonic()
            while run.state() == "":
                loop.step()
                time.sleep(0.5)
                if time.monotonic() - started > 900:
                    problems.append("the run did not end")
                    print(run.describe())
                    break
            for _ in range(20):  # the end needs no actors
                if loop.replicas == 1:
                    break
                loop.step()
                time.sleep(0.5)
            wait_until(lambda: len(cluster.ready("actor")) == 1, 60,
                       "one actor in the end")
            if a.mode != "streaming":
                have = run.fingerprint()
                weights = "equal" if have == want else "DIFFERENT"
                if have != want:
                    problems.append(f"weights differ: {difference(want, have)}")
            ages = staleness(f"{volumes}/run/run/ledger.db", PPO)
            problems += audit(cluster, a.steps)
    sizes = [size for _, size in loop.sizes]
    if 4 not in sizes or sizes[0] != 1 or sizes[-1] != 1:
        problems.append(f"expected 1 - 4 - 1 actors, found {sizes}")
    if not ages or max(ages) > bound or min(ages) < 0:
        problems.append(f"staleness {ages}, expected 0 to {bound}")
    if allowed != ["patch pods"]:
        problems.append(f"rights: {allowed}, expected patch pods alone")
    if 100 not in loop.costs:
        problems.append(f"no busy pod had a deletion cost: {loop.costs}")
    print(f"{a.mode}: actors {' - '.join(map(str, sizes))}; trained units by "
          f"staleness {ages}, bound {bound}; deletion costs seen "
          f"{sorted(loop.costs)}; rights: {allowed}; weights {weights}")
    for problem in problems:
        print(f"FAILED {problem}")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
