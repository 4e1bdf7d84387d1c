#!/usr/bin/env python3
"""`cox k8s doctor --all-reduce` on the testbed: two pods on two nodes sum.

  tests/k8s/testbed_doctor.py [--bin-dir DIR]

Exit codes: testbed_run.py.
"""
import argparse
import os
import sys

import manifests
from testbed_cluster import Cluster, stage_binaries


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--bin-dir", default=os.environ.get(
        "COX_BIN_DIR", f"{manifests.SOURCE}/build/release/bin"))
    a = parser.parse_args()
    manifests.need_namespaces()
    root = manifests.prepare("all")
    with manifests.scratch("/var/tmp") as scratch:
        os.chmod(scratch, 0o755)
        stage_binaries(a.bin_dir, f"{scratch}/stage")
        with Cluster(root, f"{scratch}/state", f"{scratch}/stage") as cluster:
            done = cluster.inside(f"{a.bin_dir}/cox", "k8s", "doctor",
                                  "--all-reduce")
            print(done.stdout)
            sums = [line for line in done.stdout.splitlines()
                    if line.startswith("all-reduce rank")]
            nodes = {line.split(" at ")[1].rsplit(".", 1)[0] for line in sums}
            if done.returncode != 0 or len(sums) != 2 or len(nodes) != 2:
                print(cluster.kubectl("get", "events", "--sort-by="
                                      ".lastTimestamp", check=False)[-2000:])
                print(f"FAILED exit {done.returncode}, {len(sums)} sums on "
                      f"{len(nodes)} nodes")
                return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
