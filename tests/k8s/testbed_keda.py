#!/usr/bin/env python3
"""Actors that follow the load, and idle ones that go first, on the testbed.

  tests/k8s/testbed_keda.py [--bin-dir DIR] [--dir DIR] [--steps N]

Stands in for KEDA and its HorizontalPodAutoscaler: asks the coordinator over
mutual TLS as KEDA does (scaler_probe) and scales the Deployment to
ceil(metric / 1), 1 to 4. The run's stages need 1 (pretrain), 4 (collect), 1
(rm), 4 (ppo) and fewer actors (eval). Checks that the Deployment followed
1 - 4 - 1, that no batch was older than the schedule allows, that the
coordinator put deletion costs on busy pods and may do nothing else at the API
server, and that the weights are those of `cox run`. Exit codes: testbed_run.py.
"""
import argparse
import json
import os
import shutil
import sys
import time

import manifests
from testbed_cluster import Cluster, TESTBED, stage_binaries, wait_until
from testbed_run import (ClusterRun, difference, make_tree, on_this_machine)

COST = "controller.kubernetes.io/pod-deletion-cost"
MAXIMUM = 4


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


def staleness(volumes):
    """The highest staleness of any committed batch, in versions."""
    worst = 0
    with open(f"{volumes}/run/run/metrics.jsonl", encoding="utf-8") as file:
        for line in file:
            worst = max(worst, json.loads(line).get("async/staleness_max", 0))
    return worst


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
    parser.add_argument("--dir", help="work here and keep it")
    a = parser.parse_args()
    manifests.need_namespaces()
    root = manifests.prepare("all")
    problems = []
    with manifests.scratch("/var/tmp") as temporary:
        scratch = os.path.abspath(a.dir or temporary)
        os.makedirs(scratch, exist_ok=True)
        os.chmod(scratch, 0o755)
        stage_binaries(a.bin_dir, f"{scratch}/stage")
        volumes = f"{scratch}/volumes"
        tree = make_tree(f"{a.bin_dir}/cox", scratch, volumes, a.steps)
        shutil.copytree(f"{TESTBED}/overlay-keda",
                        f"{tree}/overlays/testbed-keda")
        want, _ = on_this_machine(f"{a.bin_dir}/cox", scratch, a.steps)
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
            have = run.fingerprint()
            if have != want:
                problems.append(f"weights differ: {difference(want, have)}")
            worst = staleness(volumes)
    sizes = [size for _, size in loop.sizes]
    if 4 not in sizes or sizes[0] != 1 or sizes[-1] != 1:
        problems.append(f"expected 1 - 4 - 1 actors, found {sizes}")
    if worst > 0:
        problems.append(f"staleness {worst} in sync")
    if allowed != ["patch pods"]:
        problems.append(f"rights: {allowed}, expected patch pods alone")
    if 100 not in loop.costs:
        problems.append(f"no busy pod had a deletion cost: {loop.costs}")
    print(f"actors {' - '.join(map(str, sizes))}; staleness at most {worst}; "
          f"deletion costs seen {sorted(loop.costs)}; rights: {allowed}; "
          f"weights {'equal' if have == want else 'DIFFERENT'}")
    for problem in problems:
        print(f"FAILED {problem}")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
