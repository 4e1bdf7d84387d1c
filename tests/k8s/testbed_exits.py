"""Exit codes that must fail the JobSet at once, provoked on the testbed."""
import os
import signal
import time

from testbed_cluster import wait_until

FAIL_LIMIT_S = 300
STAYS_S = 15


def cut_payloads(cluster, run):
    """Half of the newest payload segment is gone and the coordinator dies: a
    record that its next start must refuse (DATA_LOSS)."""
    wait_until(lambda: run.reached("ppo", 10), FAIL_LIMIT_S, "step 10 of ppo")
    folder = f"{run.volumes}/run/run/segments"
    path = max((os.path.join(folder, name) for name in os.listdir(folder)),
               key=os.path.getmtime)
    os.truncate(path, os.path.getsize(path) // 2)
    os.kill(cluster.process("cox-coordinator"), signal.SIGKILL)


# Name: changes of run.yaml, what is done to the run, the learners' exit code,
# how often the group may start again before a learner can know.
EXITS = {
    # 4 prompts a unit become 5, which do not divide the 16 of a step: the
    # coordinator refuses its configuration.
    "exit-2": ([("unit_prompts: 4", "unit_prompts: 5")], None, 2, 0),
    # A step that no floating-point number survives: training diverges.
    "exit-43": ([("lr: 3.0e-3", "lr: 1.0e+36")], None, 43, 0),
    "damaged-record": ([], cut_payloads, 43, 1),
}


def provoke(name, cluster, run):
    """A row of the table; the run must end as Failed, and stay so."""
    _, act, code, allowed = EXITS[name]
    row = {"fault": name, "equal": False, "want": f"Failed by exit code {code}"}
    learners, restarted = set(), set()

    def look():
        for pod in cluster.pods("learner"):
            learners.add(pod["metadata"]["uid"])
            for container in pod["status"].get("containerStatuses", []):
                if container["restartCount"] > 0:
                    restarted.add(pod["metadata"]["name"])
        return run.state() != ""
    run.start()
    try:
        if act:
            act(cluster, run)
        struck = time.monotonic()
        wait_until(look, FAIL_LIMIT_S, "the JobSet's end")
    except TimeoutError as error:
        row["different"] = str(error)
        print(run.describe(), flush=True)
        return row
    row["run_s"] = round(time.monotonic() - struck, 1)
    time.sleep(STAYS_S)
    look()
    status = cluster.get("jobset", "learner", "-n", "cox")["status"]
    row["restarts"] = status.get("restarts", 0)
    row["counted"] = status.get("restartsCountTowardsMax", 0)
    jobs = cluster.kubectl("get", "events", "-n", "cox", "-o",
                           "jsonpath={range .items[*]}{.message}{'\\n'}{end}")
    why = [line for line in jobs.splitlines()
           if f"exit code {code} matching" in line]
    groups = allowed + 1
    problems = [text for bad, text in (
        (run.state() != "Failed", f"the JobSet ended as {run.state()}"),
        (not why, f"no event names exit code {code}"),
        (row["restarts"] > allowed, f"{row['restarts']} restarts"),
        (len(learners) > 2 * groups, f"{len(learners)} learner pods"),
        (restarted, f"containers started again: {sorted(restarted)}")) if bad]
    row["equal"] = not problems
    row["different"] = "; ".join(problems)
    if problems:
        print(run.describe(), flush=True)
    return row
