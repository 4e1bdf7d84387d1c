"""What both manifest tests look at: every overlay, rendered runs, and copies
of them that are broken on purpose."""
import copy
import os
import shutil
import signal
import subprocess
import sys
import tempfile

import yaml

SKIPPED = 77  # ctest's SKIP_RETURN_CODE
HERE = os.path.dirname(os.path.abspath(__file__))
SOURCE = os.path.dirname(os.path.dirname(HERE))
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
DUMPER = getattr(yaml, "CSafeDumper", yaml.SafeDumper)


def skip(reason):
    print(f"SKIPPED: {reason}", flush=True)
    sys.exit(SKIPPED)


def need_namespaces():
    """Skips where up.sh could not make its network. From here on a signal ends
    the program by way of its `with` blocks, which stop the cluster; a parent
    that runs it in the background may have told it to ignore SIGINT."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: sys.exit(130))
    if os.geteuid() != 0:
        skip("needs root for a network namespace")
    probe = "ip link set lo up && ip link add probe0 type bridge"
    done = subprocess.run(["unshare", "-n", "-m", "sh", "-c", probe],
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                          text=True, check=False)
    if done.returncode != 0:
        skip(f"a network namespace cannot be made here: {done.stdout.strip()}")


def prepare(part):
    """The folder of tests/k8s/testbed/prepare.sh; skips where it says why."""
    done = subprocess.run([os.path.join(HERE, "testbed/prepare.sh"), part],
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          text=True, check=False)
    if done.returncode == SKIPPED:
        skip(done.stderr.strip().splitlines()[-1])
    if done.returncode != 0:
        sys.exit(f"prepare.sh {part}: {done.stderr}")
    return done.stdout.strip()


def output(*command, **options):
    return subprocess.run(command, check=True, text=True,
                          stdout=subprocess.PIPE, **options).stdout


def load(text):
    return [x for x in yaml.load_all(text, Loader=LOADER) if x]


def dump(objects):
    # A string like 0440 keeps its quotes; octal numbers come out decimal.
    return yaml.dump_all(objects, Dumper=DUMPER, sort_keys=False)


def render_all(kubectl, cox, scratch):
    """name -> text of `kubectl kustomize` of the base and every overlay, and
    of `cox k8s render` with and without its options."""
    tree = os.path.join(scratch, "k8s")
    shutil.copytree(os.path.join(SOURCE, "k8s"), tree)
    certs = os.path.join(tree, "overlays/local/certs")
    output(cox, "certs", "init", certs, "--run", "sentiment", "--namespace",
           "cox", "--dns", "coordinator.cox.svc")
    texts = {"base": output(kubectl, "kustomize", f"{tree}/base")}
    for overlay in sorted(os.listdir(f"{tree}/overlays")):
        texts[overlay] = output(kubectl, "kustomize",
                                f"{tree}/overlays/{overlay}")
    run = os.path.join(tree, "base/run.yaml")
    texts["rendered"] = output(cox, "k8s", "render", run)
    texts["rendered-full"] = output(
        cox, "k8s", "render", run, "--certs", certs, "--host-volumes",
        "/srv/cox", "roles.learners=1", "roles.actors=3")
    return texts


# What is broken: overlay, kind, name, path to the field, its new value
# (REMOVE deletes it), and the word that the refusal must contain.
REMOVE = object()
POD = ["spec", "template", "spec"]
JOB = ["spec", "replicatedJobs", 0, "template", "spec"]
BROKEN = [
    # Misspelt fields.
    ("base", "JobSet", "learner", ["spec", "failurePolicyy"], {},
     "failurePolicyy"),
    ("base", "JobSet", "learner", JOB + ["completionmode"], "Indexed",
     "completionmode"),
    ("base", "Deployment", "actor", POD + ["containers", 0, "redinessProbe"],
     {}, "redinessProbe"),
    ("base", "StatefulSet", "coordinator", ["spec", "volumeClaimTemplate"], [],
     "volumeClaimTemplate"),
    ("base", "NetworkPolicy", "learner", ["spec", "policyType"], [],
     "policyType"),
    ("base", "PodDisruptionBudget", "actor", ["spec", "maxUnavailible"], 1,
     "maxUnavailible"),
    ("base", "Service", "coordinator", ["spec", "selectors"], {},
     "selectors"),
    ("keda", "ScaledObject", "actor", ["spec", "minReplicas"], 0,
     "minReplicas"),
    ("kueue", "LocalQueue", "cox", ["spec", "clusterqueue"], "x",
     "clusterqueue"),
    ("cert-manager", "Certificate", "tls-actor", ["spec", "dnsName"], ["x"],
     "dnsName"),
    ("monitoring", "PodMonitor", "cox", ["spec", "podMetricsEndpoint"], [],
     "podMetricsEndpoint"),
    # Wrong types.
    ("base", "Deployment", "reward", ["spec", "replicas"], "two", "replicas"),
    ("base", "JobSet", "learner", JOB + ["parallelism"], "2", "parallelism"),
    ("rendered", "ConfigMap", "run", ["data", "run.yaml"], {"a": 1},
     "data"),
    ("monitoring", "PrometheusRule", "cox", ["spec", "groups", 0, "rules"],
     "none", "rules"),
    # Out of range, or missing.
    ("base", "StatefulSet", "coordinator",
     POD + ["containers", 0, "ports", 0, "containerPort"], 71000,
     "containerPort"),
    ("base", "Service", "coordinator", ["spec", "ports", 0, "port"], 800000,
     "port"),
    ("base", "JobSet", "learner", JOB + ["backoffLimit"], -1, "backoffLimit"),
    ("base", "Deployment", "actor", ["spec", "selector"], REMOVE, "selector"),
    ("base", "JobSet", "learner", ["spec", "failurePolicy", "rules", 0,
                                   "action"], "FailAll", "action"),
]
# What only a server knows: JobSet's webhook, the API server's own validation.
BROKEN_FOR_SERVERS = [
    ("base", "JobSet", "learner", ["spec", "failurePolicy", "rules", 0,
                                   "name"], "needs-a-person", "rule name"),
    ("base", "JobSet", "learner", JOB + ["podFailurePolicy", "rules", 0,
                                         "onExitCodes", "values"], [],
     "podFailurePolicy.rules[0].onExitCodes.values"),
    ("base", "Deployment", "actor", POD + ["containers", 0, "volumeMounts", 0,
                                           "name"], "lts", "volumeMounts"),
    ("base", "PodDisruptionBudget", "actor", ["spec", "maxUnavailable"], -1,
     "maxUnavailable"),
]


def broken_copies(texts, broken):
    """(title, objects, field): the one object that was damaged, alone."""
    for overlay, kind, name, path, value, field in broken:
        found = [x for x in load(texts[overlay])
                 if x["kind"] == kind and x["metadata"]["name"] == name]
        if len(found) != 1:
            sys.exit(f"{overlay}: no {kind} {name} to break")
        damaged = copy.deepcopy(found[0])
        at = damaged
        for step in path[:-1]:
            at = at[step]
        if value is REMOVE:
            del at[path[-1]]
        else:
            at[path[-1]] = value
        where = ".".join(str(step) for step in path)
        yield f"{overlay}: {kind} {name} {where}", [damaged], field


def scratch(where=None):
    return tempfile.TemporaryDirectory(prefix="cox-k8s-", dir=where)
