"""The testbed as an object: nodes, pods, our processes in them."""
import json
import os
import shutil
import subprocess
import time

import manifests

TESTBED = os.path.join(manifests.HERE, "testbed")
ROLES = ("coordinator", "learner", "actor", "reward")


def stage_binaries(bin_dir, target):
    """Copies what pods run to where any user may read it."""
    os.makedirs(f"{target}/bin")
    os.makedirs(f"{target}/lib")
    for name in ("cox", "cox-group-check", "cox-replay",
                 *(f"cox-{r}" for r in ROLES)):
        if not os.path.exists(f"{bin_dir}/{name}"):
            continue
        subprocess.run(["strip", "-o", f"{target}/bin/{name}",
                        f"{bin_dir}/{name}"], check=True)
        os.chmod(f"{target}/bin/{name}", 0o755)
    said = manifests.output("ldd", f"{bin_dir}/cox-learner")
    for line in said.splitlines():
        path = line.split("=>")[-1].split("(")[0].strip()
        if "/libtorch" not in path:
            continue
        for file in os.listdir(os.path.dirname(path)):
            if ".so" in file and not os.path.exists(f"{target}/lib/{file}"):
                source = os.path.join(os.path.dirname(path), file)
                try:
                    os.link(source, f"{target}/lib/{file}")
                except OSError:
                    shutil.copy(source, f"{target}/lib/{file}")
    os.chmod(target, 0o755)


class Cluster:
    """Nodes 1..n of real kubelets; stopped at the end of the `with` block."""

    def __init__(self, root, state, binaries, nodes=2):
        self.root, self.state, self.nodes = root, state, nodes
        self.environment = {**os.environ, "TESTBED_PATH": f"{binaries}/bin",
                            "TESTBED_LIBS": f"{binaries}/lib"}

    def __enter__(self):
        with open(f"{self.state}.log", "w", encoding="utf-8") as log:
            done = subprocess.run(
                [f"{TESTBED}/up.sh", self.root, self.state, str(self.nodes)],
                env=self.environment, stdout=log, stderr=log, check=False)
        if done.returncode != 0:
            with open(f"{self.state}.log", encoding="utf-8") as log:
                text = log.read()
            self.__exit__()
            raise SystemExit(f"up.sh: {text}")
        return self

    def __exit__(self, *_):
        subprocess.run([f"{TESTBED}/down.sh", self.state], check=False)

    def inside(self, *command, **options):
        """Runs `command` in the cluster's network."""
        return subprocess.run([f"{self.state}/in", *command], text=True,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                              check=False, **options)

    def kubectl(self, *arguments, check=True, **options):
        done = self.inside("kubectl", *arguments, **options)
        if check and done.returncode != 0:
            raise SystemExit(f"kubectl {' '.join(arguments)}: {done.stdout}")
        return done.stdout

    def get(self, *what):
        return json.loads(self.kubectl("get", *what, "-o", "json"))

    def pods(self, role=None, namespace="cox"):
        chosen = ["-l", f"cox.dev/role={role}"] if role else []
        return self.get("pods", "-n", namespace, *chosen)["items"]

    def ready(self, role):
        """Pods of `role` that are Ready and stay, on nodes that answer."""
        return [pod for pod in self.pods(role)
                if "deletionTimestamp" not in pod["metadata"] and
                any(c["type"] == "Ready" and c["status"] == "True"
                    for c in pod["status"].get("conditions", []))]

    def node(self, action, number):
        subprocess.run([f"{TESTBED}/node.sh", self.state, action, str(number)],
                       check=True)

    def cut(self, pod, way):
        subprocess.run([f"{TESTBED}/cut.sh", self.state, pod, way], check=True)

    def runtimes(self):
        """Process ids of the container runtimes."""
        out = set()
        for node in range(1, self.nodes + 1):
            with open(f"{self.state}/pid/proccri-{node}",
                      encoding="utf-8") as file:
                out.add(int(file.read()))
        return out

    def process(self, program, *arguments):
        """The process id of `program` with these arguments in a container."""
        runtimes = self.runtimes()
        for entry in os.listdir("/proc"):
            if not entry.isdigit():
                continue
            try:
                with open(f"/proc/{entry}/cmdline", "rb") as file:
                    words = file.read().decode().split("\0")
                with open(f"/proc/{entry}/stat", encoding="utf-8") as file:
                    parent = int(file.read().rsplit(")", 1)[1].split()[1])
            except (OSError, ValueError):
                continue
            if (parent in runtimes and os.path.basename(words[0]) == program
                    and all(x in words for x in arguments)):
                return int(entry)
        raise SystemExit(f"no process {program} {' '.join(arguments)}")


def wait_until(condition, limit, what):
    """Seconds until `condition()` is true; ends the program after `limit`."""
    started = time.monotonic()
    while not condition():
        if time.monotonic() - started > limit:
            raise TimeoutError(f"{what}: not within {limit} s")
        time.sleep(0.3)
    return time.monotonic() - started
