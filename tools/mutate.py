#!/usr/bin/env python3
"""Proves that the tests would notice: breaks the arithmetic in a copy.

Each mutation replaces one piece of production code in a copy of the tree,
rebuilds what it touches and expects that at least one unit test fails. Only
for a survivor the oracle (tools/oracle) is asked; its verdict is shown, but
the mutation still counts as survived. Never touches the tree it is run from.

  tools/mutate.py [--work DIR] [--only TEXT] [--jobs N] [--list]

Prints a table and `N caught, N survived`. Exits 1 if one survives or no
longer applies to the source, 2 if the unchanged copy does not build or pass.
Takes about ten minutes on two cores.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
FOLDERS = ("cmake", "lib/base", "lib/algo", "lib/comm", "tests/testing",
           "tests/algo", "tests/ops", "tools/oracle")
TESTS = ("algo_test", "algo_distributed_test")
A = "lib/algo/"

# (what, file, exact old text, new text). The old text occurs once.
MUTATIONS = [
    # Statistics
    ("whitening variance: ddof ignored", A + "stats.cc",
     "first.count - static_cast<double>(options.ddof)", "first.count"),
    ("whitening: per-rank mean instead of global", A + "stats.cc",
     "COX_ASSIGN_OR_RETURN(const Moments first, "
     "AllReduceMoments(local, reducer));",
     "COX_RETURN_IF_ERROR(AllReduceMoments(local, reducer).status());\n"
     "  const Moments first = local;"),
    ("whitening: variance of each rank for itself", A + "stats.cc",
     "COX_RETURN_IF_ERROR(reducer.Sum(squares));\n\n  Whitened",
     "double unused[] = {0.0};\n"
     "  COX_RETURN_IF_ERROR(reducer.Sum(unused));\n\n  Whitened"),
    ("whitening: eps outside the root", A + "stats.cc",
     "std::sqrt(result.var + options.eps)",
     "std::sqrt(result.var) + options.eps"),
    ("whitening: mean shifted although told not to", A + "stats.cc",
     "options.shift_mean ? 0.0 : result.mean",
     "options.shift_mean ? result.mean : 0.0"),
    ("Welford merge: weights swapped", A + "stats.cc",
     "delta * (other.count / both)", "delta * (count / both)"),
    ("mean of means: local token count as denominator", A + "stats.cc",
     "return LossNormalizer{sums[0], sums[1], t_max};",
     "return LossNormalizer{local.tokens, local.sequences, t_max};"),
    ("a row without tokens counts as a sequence", A + "stats.cc",
     "normalizer.sequences += length > 0 ? 1 : 0;",
     "normalizer.sequences += 1;"),
    ("sequence mean divides by all columns", A + "stats.cc",
     "w = 1 / (normalizer.sequences * length);",
     "w = 1 / (normalizer.sequences * static_cast<double>(shape.cols));"),
    ("const aggregation forgets the batch", A + "stats.cc",
     "w = 1 / (normalizer.sequences * normalizer.t_max);",
     "w = 1 / normalizer.t_max;"),
    # Rollout
    ("position ids inclusive", A + "rollout.cc",
     "ids[i] = next;\n      next += mask[i] != 0;",
     "next += mask[i] != 0;\n      ids[i] = next;"),
    ("the stop token is cut off", A + "rollout.cc",
     "for (int64_t i = begin + t + 1; i < begin + shape.cols; ++i)",
     "for (int64_t i = begin + t; i < begin + shape.cols; ++i)"),
    ("stop allowed one token early", A + "rollout.cc",
     "std::min(options.min_stop_index, shape.cols)",
     "std::max<int64_t>(std::min(options.min_stop_index, shape.cols) - 1, 0)"),
    ("sign of the KL in the reward", A + "rollout.cc",
     "static_cast<T>(-options.beta * static_cast<double>(kl.kl[i]))",
     "static_cast<T>(options.beta * static_cast<double>(kl.kl[i]))"),
    ("k2 without its half", A + "rollout.cc",
     "return {0.5 * delta * delta, delta};",
     "return {delta * delta, delta};"),
    ("gradient of k3 has the wrong sign", A + "rollout.cc",
     "-std::expm1(-bounded)};", "std::expm1(-bounded)};"),
    ("KL mean over sequences instead of tokens", A + "rollout.cc",
     "result.mean = total / static_cast<double>(count)",
     "result.mean = total / static_cast<double>(shape.rows)"),
    ("score one position late", A + "rollout.cc",
     "last + (after ? 1 : 0)",
     "last + (last + 1 < shape.cols ? 1 : 0)"),
    ("score clipped before the penalty", A + "rollout.cc",
     "if (finish != FinishReason::kStop) {",
     "if (score_clip) score = std::clamp(score, -*score_clip, *score_clip);\n"
     "  score_clip.reset();\n  if (finish != FinishReason::kStop) {"),
    ("gain from the biased variance", A + "rollout.cc",
     "moments.Variance(/*ddof=*/1);", "moments.Variance(/*ddof=*/0);"),
    ("bias not scaled by the gain", A + "rollout.cc",
     "-moments.mean * normalizer.gain", "-moments.mean"),
    ("overlong penalty off by one", A + "rollout.cc",
     "-static_cast<double>(length - free) /",
     "-static_cast<double>(length - free - 1) /"),
    ("dynamic filter keeps the constant groups", A + "rollout.cc",
     "keep[i] = low < high;", "keep[i] = low <= high;"),
    ("adaptive KL error not clipped", A + "rollout.cc",
     "std::clamp(kl / target_ - 1, -0.2, 0.2)", "kl / target_ - 1"),
    # Advantages
    ("GAE: gamma and lambda swapped in delta", A + "advantage.cc",
     "+ gamma * next_value - value", "+ lambda * next_value - value"),
    ("GAE: lambda forgotten", A + "advantage.cc",
     "delta + gamma * lambda * next_advantage",
     "delta + gamma * next_advantage"),
    ("GAE: masked tokens reset the carry", A + "advantage.cc",
     "if (mask[i] == 0) continue;\n      const double value",
     "if (mask[i] == 0) {\n        next_advantage = 0;\n"
     "        next_value = 0;\n        continue;\n      }\n"
     "      const double value"),
    ("returns without the value", A + "advantage.cc",
     "static_cast<T>(next_advantage + value)",
     "static_cast<T>(next_advantage)"),
    ("RLOO divides by n", A + "advantage.cc",
     "centred * (group.scores.count / (group.scores.count - 1))",
     "centred"),
    ("GRPO: ddof 0", A + "advantage.cc",
     "group.scores.Variance(/*ddof=*/1)", "group.scores.Variance(0)"),
    ("GRPO: eps inside the root", A + "advantage.cc",
     "std::sqrt(group.scores.Variance(/*ddof=*/1)) + eps",
     "std::sqrt(group.scores.Variance(/*ddof=*/1) + eps)"),
    ("an invalid sample enters the baseline", A + "advantage.cc",
     "if (!is_valid(i)) continue;\n    if (!std::isfinite(scores[i])) {",
     "if (!is_valid(i) && !std::isfinite(scores[i])) continue;\n"
     "    if (!std::isfinite(scores[i])) {"),
    ("all-equal group left to rounding", A + "advantage.cc",
     "group.scores.count < 2 || group.low == group.high",
     "group.scores.count < 2"),
    ("return-to-go excludes its own reward", A + "advantage.cc",
     "sum += static_cast<double>(rewards[i]);\n"
     "      returns[i] = static_cast<T>(sum);",
     "returns[i] = static_cast<T>(sum);\n"
     "      sum += static_cast<double>(rewards[i]);"),
    # Policy loss
    ("clip sides swapped", A + "policy_loss.cc",
     "std::clamp(u.value, 1 - options.eps_lo, 1 + options.eps_hi)",
     "std::clamp(u.value, 1 - options.eps_hi, 1 + options.eps_lo)"),
    ("max became min: the optimistic bound", A + "policy_loss.cc",
     "token.clipped = capped > plain;", "token.clipped = capped < plain;"),
    ("a tie counts as clipped", A + "policy_loss.cc",
     "token.clipped = capped > plain;", "token.clipped = capped >= plain;"),
    ("clipped tokens keep their gradient", A + "policy_loss.cc",
     "token.grad = token.clipped || !u.inside ? 0.0 : plain;",
     "token.grad = !u.inside ? 0.0 : plain;"),
    ("dual clip for positive advantages", A + "policy_loss.cc",
     "options.dual_clip && advantage < 0", "options.dual_clip"),
    ("log-ratio not clamped", A + "policy_loss.cc",
     "constexpr double kLogRatioBound = 20.0;",
     "constexpr double kLogRatioBound = 1e3;"),
    ("gradient outside the clamp", A + "policy_loss.cc",
     "return {std::exp(bounded), bounded == log_ratio};",
     "return {std::exp(bounded), true};"),
    ("truncation takes the larger weight", A + "policy_loss.cc",
     "used = std::min(w, options.is_hi);",
     "used = std::max(w, options.is_hi);"),
    ("mask bounds exclusive", A + "policy_loss.cc",
     "return w >= options.is_lo && w <= options.is_hi;",
     "return w > options.is_lo && w < options.is_hi;"),
    ("geometric filter of the sum, not the mean", A + "policy_loss.cc",
     "RatioOf(log_sum / static_cast<double>(row.size())).value",
     "RatioOf(log_sum).value"),
    ("CISPO uses the unbounded ratio", A + "policy_loss.cc",
     "std::min(u.value, 1 + options.eps_hi)", "u.value"),
    ("GSPO: sum instead of mean of log-ratios", A + "policy_loss.cc",
     "RatioOf(log_sum / length), options", "RatioOf(log_sum), options"),
    ("GSPO: gradient not divided by the length", A + "policy_loss.cc",
     "weight_sum * sequence.grad / length", "weight_sum * sequence.grad"),
    ("approxkl without its half", A + "policy_loss.cc",
     "sums->approxkl += 0.5 * diff * diff;",
     "sums->approxkl += diff * diff;"),
    ("importance weight on the KL term", A + "policy_loss.cc",
     "options.kl_beta * agg_weight[at];", "options.kl_beta * weight[i];"),
    ("ESS of one over n", A + "policy_loss.cc",
     "w * w / (tokens * w_squared)", "w * w / w_squared"),
    ("proximal weight upside down", A + "policy_loss.cc",
     "static_cast<double>(versions.proximal - version) /",
     "static_cast<double>(versions.policy - versions.proximal) /"),
    # Value, reward model, preferences
    ("value loss without its half", A + "value_loss.cc",
     "result.loss += 0.5 * weight[i] * square;",
     "result.loss += weight[i] * square;"),
    ("value clip takes the smaller square", A + "value_loss.cc",
     "clipped_error * clipped_error > square",
     "clipped_error * clipped_error < square"),
    ("explained variance of the values", A + "value_loss.cc",
     "result.sums.residuals.Add(target - value);",
     "result.sums.residuals.Add(value);"),
    ("ranks read as the higher the better", A + "rm_loss.cc",
     "if (ranks[w] >= ranks[l]) continue;",
     "if (ranks[w] <= ranks[l]) continue;"),
    ("a tie is a pair", A + "rm_loss.cc",
     "if (ranks[w] >= ranks[l]) continue;",
     "if (ranks[w] > ranks[l] || w == l) continue;"),
    ("margin added", A + "rm_loss.cc", "r_w - r_l - options.margin",
     "r_w - r_l + options.margin"),
    ("an equal pair counts as right", A + "rm_loss.cc",
     "result.correct += r_w > r_l;", "result.correct += r_w >= r_l;"),
    ("label smoothing on the wrong side", A + "preference_loss.cc",
     "(1 - s) * NegLogSigmoid(beta * h) + s * NegLogSigmoid(-beta * h)",
     "s * NegLogSigmoid(beta * h) + (1 - s) * NegLogSigmoid(-beta * h)"),
    ("IPO target 1/beta", A + "preference_loss.cc",
     "h - 1 / (2 * beta)", "h - 1 / beta"),
    ("KTO reference point may be negative", A + "preference_loss.cc",
     "return std::max(0.0, sum / static_cast<double>(policy.size()));",
     "return sum / static_cast<double>(policy.size());"),
    # Language model
    ("temperature forgotten in the log-sum", A + "lm_loss.cc",
     "(static_cast<double>(z) - top) / temperature",
     "static_cast<double>(z) - top"),
    ("temperature forgotten in the gradient", A + "lm_loss.cc",
     "static_cast<T>(g / tau)", "static_cast<T>(g)"),
    ("labels not shifted", A + "lm_loss.cc",
     "labels[b * shape.cols + t + 1];", "labels[b * shape.cols + t];"),
    ("entropy gradient without the entropy", A + "lm_loss.cc",
     "up_h * p * (log_p + entropy)", "up_h * p * log_p"),
    # Optimisation
    ("Adam: bias correction of the second moment off", A + "optim.cc",
     "std::sqrt(1 - std::pow(options.beta2, t))", "1.0 + 0 * t"),
    ("Adam: bias correction of the first moment off", A + "optim.cc",
     "1 - std::pow(options.beta1, t)", "1.0 + 0 * t"),
    ("Adam: betas swapped", A + "optim.cc",
     "f.take2 = static_cast<T>(1 - options.beta2);",
     "f.take2 = static_cast<T>(1 - options.beta1);"),
    ("weight decay not scaled by the rate", A + "optim.cc",
     "1 - step.lr * decay", "1 - decay"),
    ("clip scale may exceed 1", A + "optim.cc",
     "std::min(1.0, max_norm / (norm + 1e-6))",
     "max_norm / (norm + 1e-6)"),
    ("a non-finite norm does not skip the step", A + "optim.cc",
     "return {1.0, /*skip=*/true};", "return {1.0, /*skip=*/false};"),
    ("cosine over a full period", A + "optim.cc",
     "std::cos(std::numbers::pi * u)", "std::cos(2 * std::numbers::pi * u)"),
    ("EMA decay on the new weights", A + "optim.cc",
     "EmaLoop(static_cast<T>(decay), static_cast<T>(1 - decay),",
     "EmaLoop(static_cast<T>(1 - decay), static_cast<T>(decay),"),
    ("embeddings decay", A + "optim.cc",
     'part.find("embed") != std::string_view::npos', "false"),
    # Sampling
    ("CDF >= u", A + "sampling.cc", "cumulative / total_ > u",
     "cumulative / total_ >= u"),
    ("top-k drops its ties", A + "sampling.cc",
     "if (z < threshold) z = -kInf;", "if (z <= threshold) z = -kInf;"),
    ("top-k keeps one more", A + "sampling.cc",
     "const double threshold = order_[k - 1];",
     "std::sort(order_.begin(), order_.end(), std::greater<double>());\n"
     "  const double threshold = order_[k];"),
    ("top-p removes one token too few", A + "sampling.cc",
     "if (cumulative > budget) break;",
     "if (cumulative >= budget) break;"),
    ("top-p keeps the higher id of equals", A + "sampling.cc",
     "scaled_[a] < scaled_[b] : a > b", "scaled_[a] < scaled_[b] : a < b"),
    ("penalty rewards negative logits", A + "sampling.cc",
     "z = z < 0 ? z * options.repetition_penalty",
     "z = z < 0 ? z / options.repetition_penalty"),
    ("penalty once per occurrence", A + "sampling.cc",
     "if (seen_[id] == stamp_) continue;", ""),
    ("EOS allowed one token early", A + "sampling.cc",
     "if (generated < options.min_new_tokens) {",
     "if (generated + 1 < options.min_new_tokens) {"),
    ("log-prob before renormalisation", A + "sampling.cc",
     "return scaled_[id] - log_total_;", "return scaled_[id];"),
    # Staleness
    ("capacity one step short", A + "staleness.cc",
     "__builtin_add_overflow(steps, int64_t{1}, &steps) ||",
     "__builtin_add_overflow(steps, int64_t{0}, &steps) ||"),
    ("staleness of the newest token", A + "staleness.cc",
     "int64_t oldest = trainer_version;\n",
     "int64_t oldest = 0;\n"),
]


def refresh(source, target):
    """Copies what differs, as new: Ninja goes by the time of change."""
    with open(source, "rb") as f:
        text = f.read()
    if os.path.exists(target):
        with open(target, "rb") as f:
            if f.read() == text:
                return
    with open(target, "wb") as f:
        f.write(text)


def copy_tree(work):
    refresh(os.path.join(ROOT, "CMakeLists.txt"),
            os.path.join(work, "CMakeLists.txt"))
    # Headers of other folders, for the types that cross.
    shutil.copytree(os.path.join(ROOT, "lib"), os.path.join(work, "lib"),
                    dirs_exist_ok=True, copy_function=refresh,
                    ignore=lambda folder, names: [
                        n for n in names if not n.endswith(".h") and
                        not os.path.isdir(os.path.join(folder, n))])
    for folder in FOLDERS:
        shutil.copytree(os.path.join(ROOT, folder),
                        os.path.join(work, folder), dirs_exist_ok=True,
                        copy_function=refresh,
                        ignore=shutil.ignore_patterns("__pycache__"))


def failing_names(text):
    return [line.split("]")[1].split()[0].rstrip(",")
            for line in text.splitlines()
            if line.startswith("[  FAILED  ]") and "." in line]


class Copy:
    def __init__(self, work, jobs):
        self.tree = os.path.join(work, "tree")
        self.build = os.path.join(work, "build")
        self.jobs = jobs
        os.makedirs(self.tree, exist_ok=True)
        copy_tree(self.tree)

    def run(self, argv, limit=600):
        try:
            p = subprocess.run(argv, stdout=subprocess.PIPE,
                               stderr=subprocess.STDOUT, timeout=limit)
            return p.returncode, p.stdout.decode(errors="replace")
        except subprocess.TimeoutExpired:
            return -1, "timeout"

    def configure(self):
        only = ";".join(f for f in FOLDERS if f[:3] in ("lib", "tes"))
        return self.run(["cmake", "-S", self.tree, "-B", self.build, "-G",
                         "Ninja", "-DCMAKE_BUILD_TYPE=Release",
                         "-DCMAKE_CXX_FLAGS_RELEASE=-O1",
                         # A mutation may leave a variable unused.
                         "-DCMAKE_CXX_FLAGS=-w",
                         "-DCOX_WITH_TORCH=OFF", f"-DCOX_ONLY={only}"])

    def make(self, targets=TESTS):
        return self.run(["ninja", "-C", self.build, f"-j{self.jobs}",
                         *targets], 1800)

    def tests(self):
        """Names of failing unit tests."""
        failed = []
        for name in TESTS:
            code, text = self.run([os.path.join(self.build, "bin", name),
                                   "--gtest_brief=1"], 120)
            if code:
                failed += (sorted(set(failing_names(text))) or
                           [name + " crashed or hung"])
        return failed

    def oracle_objects(self):
        code, _ = self.make(("cox-ops",))
        if code:
            return False
        code, _ = self.run([sys.executable,
                            os.path.join(self.tree,
                                         "tools/oracle/run_oracle.py"),
                            "--bin", os.path.join(self.build, "bin/cox-ops"),
                            "--cases", "40", "--seed", "3"], 120)
        return code != 0


def apply(path, old, new):
    """True if the text is there exactly once."""
    with open(path) as f:
        source = f.read()
    if source.count(old) != 1:
        return False
    with open(path, "w") as f:
        f.write(source.replace(old, new))
    return True


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--work", help="folder for copy and build "
                        "(default: a temporary one, removed at the end)")
    parser.add_argument("--only", help="mutations whose name or file has it")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--list", action="store_true")
    options = parser.parse_args()
    chosen = [m for m in MUTATIONS if not options.only or
              options.only in m[0] or options.only in m[1]]
    if options.list:
        for what, path, _, _ in chosen:
            print(f"{os.path.basename(path):20} {what}")
        return 0
    os.nice(19 - os.nice(0))
    temporary = None
    if options.work is None:
        temporary = tempfile.TemporaryDirectory(prefix="cox-mutate-")
        options.work = temporary.name
    start = time.monotonic()
    copy = Copy(options.work, options.jobs)
    for step in (copy.configure, copy.make):
        code, text = step()
        if code:
            print(text[-3000:])
            print("mutate: the unchanged copy does not build")
            return 2
    failed = copy.tests()
    if failed:
        print(f"mutate: the unchanged copy fails: {', '.join(failed)}")
        return 2
    caught = survived = stale = 0
    print(f"{'mutation':50} {'file':20} unit tests that fail",
          flush=True)
    for what, path, old, new in chosen:
        full = os.path.join(copy.tree, path)
        with open(full) as f:
            original = f.read()
        if not apply(full, old, new):
            stale += 1
            print(f"{what:50} {os.path.basename(path):20} "
                  "does not apply: the source has changed")
            continue
        code, text = copy.make()
        if code:
            stale += 1
            print(f"{what:50} {os.path.basename(path):20} does not compile: "
                  f"{[x for x in text.splitlines() if ' error: ' in x][:1]}")
        else:
            failed = copy.tests()
            caught += bool(failed)
            survived += not failed
            shown = ", ".join(failed[:2]) + (
                f" and {len(failed) - 2} more" if len(failed) > 2 else "")
            if not failed:
                shown = "SURVIVED" + (
                    " (the oracle would object)" if copy.oracle_objects()
                    else "")
            print(f"{what:50} {os.path.basename(path):20} {shown}",
                  flush=True)
        with open(full, "w") as f:
            f.write(original)
    print(f"{caught} caught, {survived} survived" +
          (f", {stale} no longer apply" if stale else "") +
          f" ({time.monotonic() - start:.0f} s)")
    return 1 if survived or stale else 0


if __name__ == "__main__":
    sys.exit(main())
