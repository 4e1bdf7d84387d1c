#!/usr/bin/env python3
"""Every manifest through a real API server, and broken copies refused.

etcd, kube-apiserver and JobSet's webhooks run in a network namespace of their
own, with the definitions of JobSet, KEDA, Kueue, cert-manager and the
Prometheus operator. JobSet's webhook does not look into its job template, so
that is sent as a Job too. Needs root, COX_BIN_DIR (the build's bin folder); skips where namespaces
cannot be made or prepare.sh can't build.
"""
import os
import subprocess
import sys
import time

import manifests

TESTBED = os.path.join(manifests.HERE, "testbed")


class Server:
    """etcd and API server in `scratch`, until the end of the `with` block."""

    def __init__(self, root, scratch):
        self.state = os.path.join(scratch, "state")
        self.root = root

    def __enter__(self):
        try:
            done = subprocess.run(
                [f"{TESTBED}/up.sh", self.root, self.state, "0"],
                env={**os.environ, "TESTBED_API_ONLY": "1"},
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                check=False, timeout=180)
            if done.returncode != 0:
                self.__exit__()
                sys.exit(f"up.sh: {done.stdout}\n{self.log()}")
        except subprocess.TimeoutExpired:
            self.__exit__()
            sys.exit(f"up.sh: no API server within 180 s\n{self.log()}")
        return self

    def __exit__(self, *_):
        subprocess.run([f"{TESTBED}/down.sh", self.state], check=False)

    def log(self):
        path = os.path.join(self.state, "log/kube-apiserver")
        if not os.path.exists(path):
            return ""
        with open(path, encoding="utf-8") as file:
            return "".join(file.readlines()[-20:])

    def kubectl(self, *arguments, text=None):
        """(exit code, output) of kubectl."""
        done = subprocess.run([f"{self.state}/in", "kubectl", *arguments],
                              input=text, text=True, stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT, check=False)
        return done.returncode, done.stdout

    def must(self, *arguments, text=None):
        code, said = self.kubectl(*arguments, text=text)
        if code != 0:
            sys.exit(f"kubectl {' '.join(arguments)}: {said}\n{self.log()}")
        return said

    def dry_run(self, text):
        """"" when the server accepts all, else what it says."""
        code, said = self.kubectl("create", "--dry-run=server",
                                  "--validate=strict", "-f", "-", text=text)
        return said if code != 0 else ""


def embedded_jobs(objects):
    for item in objects:
        for job in item.get("spec", {}).get("replicatedJobs", []):
            yield {"apiVersion": "batch/v1", "kind": "Job",
                   "metadata": {"name": "embedded", "namespace":
                                item["metadata"].get("namespace", "cox")},
                   "spec": job["template"]["spec"]}


def check(server, root, cox, scratch):
    with open(f"{root}/crds.yaml", encoding="utf-8") as file:
        server.must("apply", "--server-side", "--force-conflicts", "-f", "-",
                    text=file.read())
    server.must("wait", "--for=condition=Established", "crd", "--all",
                "--timeout=60s")
    texts = manifests.render_all(f"{root}/bin/kubectl", cox, scratch)
    for namespace in ("cox", "cox-sentiment"):
        server.must("create", "namespace", namespace)
    failures = jobs = refused = 0
    for name, text in texts.items():
        objects = manifests.load(text)
        embedded = list(embedded_jobs(objects))
        jobs += len(embedded)
        # The namespace exists: create would refuse only that.
        rest = [x for x in objects if x["kind"] != "Namespace"]
        said = server.dry_run(manifests.dump(rest + embedded))
        failures += bool(said)
        print(f"FAILED {name}: {said}" if said else
              f"ok     {name}: {len(rest)} objects, {len(embedded)} job inside")
    for title, damaged, field in manifests.broken_copies(
            texts, manifests.BROKEN + manifests.BROKEN_FOR_SERVERS):
        said = server.dry_run(manifests.dump(damaged))
        if not said:  # what JobSet's definition lets pass, the Job does not
            said = server.dry_run(
                manifests.dump(list(embedded_jobs(damaged))) or "{}")
        if field in said:
            refused += 1
            print(f"ok     refused {title}")
        else:
            failures += 1
            print(f"FAILED {title}: '{field}' not in: {said or 'accepted'}")
    # `cox k8s check` asks the same server, for the job inside too.
    for name, text, want in (
            ("accepts", texts["rendered"], 0),
            ("accepts before the first launch, without a namespace",
             texts["rendered"].replace("cox-sentiment", "cox-first"), 0),
            ("refuses", texts["rendered"].replace(
                "backoffLimit: 0", "backoffLimit: -1"), 1)):
        done = subprocess.run([f"{server.state}/in", cox, "k8s", "check", "-"],
                              input=text, text=True, stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT, check=False)
        if done.returncode != want or (want and
                                       "backoffLimit" not in done.stdout):
            failures += 1
            print(f"FAILED cox k8s check {name}: {done.returncode}: "
                  f"{done.stdout}")
        else:
            print(f"ok     cox k8s check {name}")
    print(f"{len(texts)} folders and {jobs} jobs inside accepted, {refused} "
          f"broken copies refused, {failures} failures")
    return failures


def main():
    manifests.need_namespaces()
    root = manifests.prepare("api")
    cox = os.path.join(os.path.abspath(os.environ["COX_BIN_DIR"]), "cox")
    started = time.monotonic()
    with manifests.scratch() as scratch, Server(root, scratch) as server:
        print(f"API server up in {time.monotonic() - started:.1f} s",
              flush=True)
        return 1 if check(server, root, cox, scratch) else 0


if __name__ == "__main__":
    sys.exit(main())
