"""Faults on the testbed, each in the middle of ppo, and how long they hurt."""
import os
import signal
import time

from testbed_cluster import wait_until

TAINT = "node.kubernetes.io/out-of-service=nodeshutdown:NoExecute"
START_LIMIT_S = 600
RECOVERY_LIMIT_S = 400
WANTED = {"coordinator": 1, "learner": 2, "actor": 2, "reward": 1}


def node_number(pod):
    return int(pod["spec"]["nodeName"].rsplit("-", 1)[1])


def coordinator_node(cluster):
    return node_number(cluster.ready("coordinator")[0])


def kill_learner(cluster, _):
    name = cluster.ready("learner")[1]["metadata"]["name"]
    os.kill(cluster.process("cox-learner", f"--name={name}"), signal.SIGKILL)


def kill_actor(cluster, _):
    name = cluster.ready("actor")[0]["metadata"]["name"]
    os.kill(cluster.process("cox-actor", f"--name={name}"), signal.SIGKILL)


def kill_reward(cluster, _):
    os.kill(cluster.process("cox-reward"), signal.SIGKILL)


def kill_coordinator(cluster, _):
    os.kill(cluster.process("cox-coordinator"), signal.SIGKILL)


def drain(cluster, _):
    """The node without the coordinator, whose budget forbids its eviction."""
    node = 3 - coordinator_node(cluster)
    cluster.kubectl("drain", f"node-{node}", "--ignore-daemonsets",
                    "--delete-emptydir-data", "--timeout=120s")
    cluster.kubectl("uncordon", f"node-{node}")


def reboot(cluster, _):
    """Power cut of the coordinator's node, boot after three seconds."""
    node = coordinator_node(cluster)
    cluster.node("kill", node)
    time.sleep(3)
    cluster.node("start", node)


def partition(cluster, _):
    """An actor's pod without network for twenty seconds."""
    name = cluster.ready("actor")[0]["metadata"]["name"]
    cluster.cut(f"cox/{name}", "down")
    time.sleep(20)
    cluster.cut(f"cox/{name}", "up")


def lose_node(cluster, _):
    """The coordinator's node dies for good; the documented remedy once the
    cluster has noticed, as a person would see it."""
    node = coordinator_node(cluster)
    cluster.node("kill", node)

    def not_ready():
        conditions = cluster.get("node", f"node-{node}")["status"]["conditions"]
        return any(c["type"] == "Ready" and c["status"] != "True"
                   for c in conditions)
    wait_until(not_ready, 120, "NotReady")
    cluster.kubectl("taint", "node", f"node-{node}", TAINT)


FAULTS = {"kill-learner": kill_learner, "kill-actor": kill_actor,
          "kill-reward": kill_reward, "kill-coordinator": kill_coordinator,
          "drain": drain, "reboot": reboot, "partition": partition,
          "lose-node": lose_node}


def stamps(cluster):
    """What changes when a pod or its container is another one."""
    return {pod["metadata"]["uid"]: [c.get("restartCount", 0) for c in
                                     pod["status"].get("containerStatuses", [])]
            for role in WANTED for pod in cluster.ready(role)}


def strike(fault, cluster, run):
    """Waits for ppo's tenth step (five more after an earlier fault), strikes,
    waits for recovery. Seconds from the fault to: all pods Ready, the first
    step after that."""
    at = run.progress()
    step = max(10, at[1] + 5) if at and at[0] == "ppo" else 10
    wait_until(lambda: run.reached("ppo", step) or run.state() != "",
               START_LIMIT_S, f"step {step} of ppo")
    if run.state() != "":
        raise TimeoutError(f"the run ended before {fault}")
    wait_until(lambda: all(len(cluster.ready(r)) == n
                           for r, n in WANTED.items()), RECOVERY_LIMIT_S,
               "all pods ready")
    before = stamps(cluster)
    started = time.time()
    FAULTS[fault](cluster, run)

    def back():
        if run.state() != "":
            return True
        # A pod counts as ready until its kubelet or node says otherwise.
        if fault != "partition" and stamps(cluster) == before:
            return False
        return all(len(cluster.ready(r)) == n for r, n in WANTED.items())
    wait_until(back, RECOVERY_LIMIT_S, "pods back")
    pods_s = time.time() - started
    at = run.progress()

    def stepped():
        now = run.progress()
        return run.state() != "" or now is not None and now != at
    wait_until(stepped, RECOVERY_LIMIT_S, "a step after the fault")
    now = run.progress()
    return {"pods_s": round(pods_s, 1), "step_s": round(now[2] - started, 1),
            "ended_before": run.state() != ""}


def mend(fault, cluster):
    """Two nodes again, for the next run."""
    if fault == "lose-node":
        lost = [n for n in range(1, cluster.nodes + 1)
                if any(t["key"].endswith("out-of-service") for t in
                       cluster.get("node", f"node-{n}")["spec"].get("taints",
                                                                    []))]
        for node in lost:
            cluster.node("start", node)
            cluster.kubectl("taint", "node", f"node-{node}", TAINT + "-")
    cluster.kubectl("wait", "--for=condition=Ready", "node", "--all",
                    "--timeout=60s")
