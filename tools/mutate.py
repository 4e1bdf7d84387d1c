#!/usr/bin/env python3
"""Proves that the tests would notice: breaks the arithmetic in a copy.

Each mutation replaces one piece of production code in a copy of the tree,
rebuilds what it touches and expects that at least one unit test fails. Only
for a survivor the oracle (tools/oracle) is asked; its verdict is shown, but
the mutation still counts as survived. Never touches the tree it is run from.

  tools/mutate.py [--work DIR] [--group algo|learner] [--only TEXT] [--jobs N]
                  [--list]

Two groups, each in a copy of its own: lib/algo, and learner (how batches,
shards and updates are put together). Prints a table and `N caught, N
survived`. Exits 1 if one survives or no longer applies to the source, 2 if the
unchanged copy does not build or pass. Takes about ten minutes on two cores.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
A = "lib/algo/"
L = "learner/"

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

LEARNER_MUTATIONS = [
    # Shards and micro-batches
    ("the last shard is dropped", L + "shards.cc",
     "for (int64_t i = 0; i < own(); ++i) {",
     "for (int64_t i = 0; i < own() - (own() > 1 ? 1 : 0); ++i) {"),
    ("shards are summed one after the other", L + "shards.cc",
     "for (size_t ones = i; ones % 2 == 1; ones /= 2)",
     "for (size_t ones = i; ones > 0; ones = 0)"),
    ("a short last micro-batch is dropped", L + "batching.cc",
     "begin < rows.size(); begin += part",
     "begin < rows.size() && begin + part <= rows.size(); begin += part"),
    ("targets marked one late", L + "batching.h",
     "sequence.first_target - 1 +\n                             t);",
     "sequence.first_target +\n                             t);"),
    ("a non-finite output is not told to the others", L + "batching.cc",
     "engine.Gradients()[0] = std::numeric_limits<float>::quiet_NaN();",
     "engine.Gradients()[0] = 0;"),
    # Language model
    ("denominator of the micro-batch", L + "lm_trainer.cc",
     "batch.scored, total));",
     "batch.scored, total * static_cast<double>(rows.size()) /\n"
     "      static_cast<double>(shard_rows.size())));"),
    ("schedule one step ahead", L + "trained_model.cc",
     "optimizer_.Apply(step - 1, engine_, group)",
     "optimizer_.Apply(step, engine_, group)"),
    ("every step trains the same batch", L + "lm_trainer.cc",
     "source_.At((step - 1) * options_.batch + j)", "source_.At(j)"),
    ("a restored trainer forgets its step", L + "trained_model.cc",
     'COX_ASSIGN_OR_RETURN(step_, reader.Int("step"));',
     'COX_RETURN_IF_ERROR(reader.Int("step").status());'),
    # Dropout
    ("dropout: the key ignores the step", L + "batching.cc",
     'absl::StrCat("dropout/", options.stage, "/", step)',
     'absl::StrCat("dropout/", options.stage)'),
    ("dropout: the key ignores the stage", L + "batching.cc",
     'absl::StrCat("dropout/", options.stage, "/", step)',
     'absl::StrCat("dropout/", step)'),
    ("dropout: keyed by the place in the micro-batch", L + "lm_trainer.cc",
     "AddDropout(options.dropout, options.step, rows, &batch);",
     "std::vector<int64_t> places(rows.size());\n"
     "    std::iota(places.begin(), places.end(), int64_t{0});\n"
     "    AddDropout(options.dropout, options.step, places, &batch);"),
    ("dropout: answers to one prompt share a key", L + "rm_trainer.cc",
     "places.push_back(place);", "places.push_back(j);"),
    # Reward model and preferences
    ("reward model: denominator of the micro-batch", L + "rm_trainer.cc",
     "options_.loss, total));", "options_.loss));"),
    ("dpo: an answer of two pairs learns from one", L + "dpo_objective.cc",
     "(*gradient)[TargetIndex(batch, sequence, static_cast<int64_t>(row), t)]"
     " +=",
     "(*gradient)[TargetIndex(batch, sequence, static_cast<int64_t>(row), t)]"
     " ="),
    # Optimizer
    ("a skipped update counts", L + "optimizer.cc",
     "if (clip.skip) {\n", "if (clip.skip) {\n    ++updates_;\n"),
    ("every tensor decays", L + "optimizer.cc",
     ".decay = range.decay", ".decay = true"),
    ("moments are not restored", L + "optimizer.cc",
     'COX_RETURN_IF_ERROR(reader.Floats(base + "/v", v_));', ""),
    # Rollout batch
    ("aborted answers train", L + "rollout_batch.cc",
     "trajectory.finish != FinishReason::kAbort &&", ""),
    ("groups of different units are one", L + "rollout_batch.cc",
     "{trajectory.id.unit, trajectory.id.prompt}",
     "{UnitId{}, trajectory.id.prompt}"),
    ("fixed lag: versions before the first", L + "rollout_batch.cc",
     "std::max<int64_t>(0, current - options.lag)", "current - options.lag"),
    ("an older version is taken in sync", L + "rollout_batch.cc",
     "int64_t low = current;", "int64_t low = current - 1;"),
    # PPO update
    ("ppo: denominators of the shard", L + "ppo_update.cc",
     "return PolicyPart(options, part, minibatch.policy, output, gradient,",
     "return PolicyPart(options, part, CountRows(batch, part.rows, batch.mask,"
     "\n              options.t_max), output, gradient,"),
    ("ppo: every epoch has the same order", L + "ppo_update.cc",
     '"/", step, "/",\n                               epoch)', '"/", step)'),
    ("ppo: schedule one step ahead", L + "ppo_trainer.cc",
     "((step - 1) * options_.epochs + epoch) * options_.minibatches",
     "(step * options_.epochs + epoch) * options_.minibatches"),
    ("ppo: PTX coefficient ignored", L + "ppo_trainer.cc",
     ".coef = options_.ptx_coef}", ".coef = 1.0}"),
    ("ppo: every update has the same text", L + "ppo_trainer.cc",
     ".first_position = update * options_.ptx_batch", ".first_position = 0"),
    ("ppo: gain missing in the value's gradient", L + "ppo_update.cc",
     "static_cast<float>(gain * loss.grad[i])",
     "static_cast<float>(loss.grad[i])"),
    ("ppo: value of the place after the answer forgotten", L + "ppo_update.cc",
     "part.Gather(output, /*extra=*/1)", "part.Gather(output, /*extra=*/0)"),
]

LIBRARIES = tuple("lib/" + name for name in (
    "base", "config", "metrics", "data", "algo", "weights", "comm", "engine",
    "rpc"))


class Group:
    def __init__(self, name, folders, tests, mutations, oracle):
        self.name, self.folders, self.tests = name, folders, tests
        self.mutations, self.oracle = mutations, oracle


GROUPS = (
    Group("algo", ("cmake", "lib/base", "lib/algo", "lib/comm",
                   "tests/testing", "tests/algo", "tests/ops",
                   "tools/oracle"),
          ("algo_test", "algo_distributed_test"), MUTATIONS, True),
    Group("learner", ("cmake", "proto", *LIBRARIES, "learner",
                      "tests/testing", "tests/learner"),
          ("learner_parts_test", "learner_trainers_test"), LEARNER_MUTATIONS,
          False),
)


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


def copy_tree(work, folders):
    refresh(os.path.join(ROOT, "CMakeLists.txt"),
            os.path.join(work, "CMakeLists.txt"))
    # Headers of other folders, for the types that cross.
    shutil.copytree(os.path.join(ROOT, "lib"), os.path.join(work, "lib"),
                    dirs_exist_ok=True, copy_function=refresh,
                    ignore=lambda folder, names: [
                        n for n in names if not n.endswith(".h") and
                        not os.path.isdir(os.path.join(folder, n))])
    for folder in folders:
        shutil.copytree(os.path.join(ROOT, folder),
                        os.path.join(work, folder), dirs_exist_ok=True,
                        copy_function=refresh,
                        ignore=shutil.ignore_patterns("__pycache__"))


def failing_names(text):
    return [line.split("]")[1].split()[0].rstrip(",")
            for line in text.splitlines()
            if line.startswith("[  FAILED  ]") and "." in line]


class Copy:
    def __init__(self, work, jobs, group):
        self.tree = os.path.join(work, group.name, "tree")
        self.build = os.path.join(work, group.name, "build")
        self.jobs = jobs
        self.group = group
        os.makedirs(self.tree, exist_ok=True)
        copy_tree(self.tree, group.folders)

    def run(self, argv, limit=600):
        try:
            p = subprocess.run(argv, stdout=subprocess.PIPE,
                               stderr=subprocess.STDOUT, timeout=limit)
            return p.returncode, p.stdout.decode(errors="replace")
        except subprocess.TimeoutExpired:
            return -1, "timeout"

    def configure(self):
        only = ";".join(f for f in self.group.folders
                        if f[:4] in ("lib/", "test", "lear", "prot"))
        return self.run(["cmake", "-S", self.tree, "-B", self.build, "-G",
                         "Ninja", "-DCMAKE_BUILD_TYPE=Release",
                         "-DCMAKE_CXX_FLAGS_RELEASE=-O1",
                         # A mutation may leave a variable unused.
                         "-DCMAKE_CXX_FLAGS=-w",
                         "-DCOX_WITH_TORCH=OFF", f"-DCOX_ONLY={only}"])

    def make(self, targets=()):
        return self.run(["ninja", "-C", self.build, f"-j{self.jobs}",
                         *(targets or self.group.tests)], 1800)

    def tests(self):
        """Names of failing unit tests."""
        failed = []
        for name in self.group.tests:
            code, text = self.run([os.path.join(self.build, "bin", name),
                                   "--gtest_brief=1"], 120)
            if code:
                failed += (sorted(set(failing_names(text))) or
                           [name + " crashed or hung"])
        return failed

    def oracle_objects(self):
        if not self.group.oracle:
            return False
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


def run_group(group, mutations, options, counts):
    """False if the unchanged copy does not build or pass."""
    copy = Copy(options.work, options.jobs, group)
    for step in (copy.configure, copy.make):
        code, text = step()
        if code:
            print(text[-3000:])
            print(f"mutate: the unchanged copy of {group.name} does not build")
            return False
    failed = copy.tests()
    if failed:
        print(f"mutate: the unchanged copy fails: {', '.join(failed)}")
        return False
    for what, path, old, new in mutations:
        full = os.path.join(copy.tree, path)
        with open(full) as f:
            original = f.read()
        print(f"{what:50} {os.path.basename(path):20} "
              f"{try_mutation(copy, full, old, new, counts)}", flush=True)
        with open(full, "w") as f:
            f.write(original)
    return True


def try_mutation(copy, path, old, new, counts):
    """The table's last column; counts what became of it."""
    if not apply(path, old, new):
        counts["stale"] += 1
        return "does not apply: the source has changed"
    code, text = copy.make()
    if code:
        counts["stale"] += 1
        errors = [x for x in text.splitlines() if " error: " in x][:1]
        return f"does not compile: {errors}"
    failed = copy.tests()
    counts["caught" if failed else "survived"] += 1
    if not failed:
        return "SURVIVED" + (" (the oracle would object)"
                             if copy.oracle_objects() else "")
    return ", ".join(failed[:2]) + (
        f" and {len(failed) - 2} more" if len(failed) > 2 else "")


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--work", help="folder for copy and build "
                        "(default: a temporary one, removed at the end)")
    parser.add_argument("--group", choices=[g.name for g in GROUPS])
    parser.add_argument("--only", help="mutations whose name or file has it")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--list", action="store_true")
    options = parser.parse_args()
    chosen = [(group, [m for m in group.mutations if not options.only or
                       options.only in m[0] or options.only in m[1]])
              for group in GROUPS
              if options.group in (None, group.name)]
    chosen = [(group, mutations) for group, mutations in chosen if mutations]
    if options.list:
        for _, mutations in chosen:
            for what, path, _, _ in mutations:
                print(f"{os.path.basename(path):20} {what}")
        return 0
    os.nice(19 - os.nice(0))
    temporary = None
    if options.work is None:
        temporary = tempfile.TemporaryDirectory(prefix="cox-mutate-")
        options.work = temporary.name
    start = time.monotonic()
    counts = {"caught": 0, "survived": 0, "stale": 0}
    print(f"{'mutation':50} {'file':20} unit tests that fail", flush=True)
    for group, mutations in chosen:
        if not run_group(group, mutations, options, counts):
            return 2
    stale = counts["stale"]
    print(f"{counts['caught']} caught, {counts['survived']} survived" +
          (f", {stale} no longer apply" if stale else "") +
          f" ({time.monotonic() - start:.0f} s)")
    return 1 if counts["survived"] or stale else 0


if __name__ == "__main__":
    sys.exit(main())
