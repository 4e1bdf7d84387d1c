#include "cli/plan_model.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/strings/str_cat.h"
#include "yaml-cpp/yaml.h"

namespace cox {
namespace {

namespace v1 = cox::v1;

constexpr double kBytesPerFloat = 4;
// Of one trajectory in SerializeUnit: what is not per token.
constexpr double kSampleBytes = 148;
// Id of a prompt token; id and two log-probs of an answer token.
constexpr double kPromptTokenBytes = 4;
constexpr double kAnswerTokenBytes = 12;
// Weights, gradients, Adam's two moments; snapshots of the trained policy that
// are served (the newest, the one before).
constexpr double kTrainedCopies = 4;
constexpr double kServedCopies = 2;
// Floats kept for the backward pass per token and unit of width in one layer:
// two norms, query, key, value, attention's output, projection, and the
// feed-forward's four-fold width before and after its activation.
constexpr double kSavedPerLayer = 16;

struct KeyOfSpec {
  const char* name;
  double ClusterSpec::*number;
  int64_t ClusterSpec::*count;
};
constexpr KeyOfSpec kKeys[] = {
    {"nodes", nullptr, &ClusterSpec::nodes},
    {"cores", &ClusterSpec::cores, nullptr},
    {"memory_gb", &ClusterSpec::memory_gb, nullptr},
    {"link_gbit_s", &ClusterSpec::link_gbit_s, nullptr},
    {"disk_gb_s", &ClusterSpec::disk_gb_s, nullptr},
    {"gpus", nullptr, &ClusterSpec::gpus},
    {"train_gflop_s", &ClusterSpec::train_gflop_s, nullptr},
    {"score_gflop_s", &ClusterSpec::score_gflop_s, nullptr},
    {"decode_gflop_s", &ClusterSpec::decode_gflop_s, nullptr},
    {"update_mparams_s", &ClusterSpec::update_mparams_s, nullptr},
    {"commit_ms", &ClusterSpec::commit_ms, nullptr},
    {"unit_ms", &ClusterSpec::unit_ms, nullptr},
    {"process_mb", &ClusterSpec::process_mb, nullptr},
    {"shared_mb", &ClusterSpec::shared_mb, nullptr},
};

absl::Status SetKey(const YAML::Node& key, const YAML::Node& value,
                    const std::string& name, ClusterSpec& spec) {
  const std::string text = key.Scalar();
  const std::string where = absl::StrCat(name, ":", key.Mark().line + 1, ": ");
  const auto found = std::find_if(
      std::begin(kKeys), std::end(kKeys),
      [&text](const KeyOfSpec& known) { return text == known.name; });
  if (found == std::end(kKeys)) {
    std::string names;
    for (const KeyOfSpec& known : kKeys) {
      absl::StrAppend(&names, names.empty() ? "" : ", ", known.name);
    }
    return absl::InvalidArgumentError(
        absl::StrCat(where, "unknown key '", text, "'; known: ", names));
  }
  double number = 0;
  if (!value.IsScalar() || !YAML::convert<double>::decode(value, number) ||
      !std::isfinite(number) || number < 0) {
    return absl::InvalidArgumentError(
        absl::StrCat(where, text, ": expected a number of at least 0"));
  }
  if (found->number != nullptr) {
    spec.*found->number = number;
  } else {
    spec.*found->count = static_cast<int64_t>(number);
  }
  return absl::OkStatus();
}

double ActivationBytes(const RunSizes& s, double tokens, double heads) {
  return kBytesPerFloat *
         (tokens * kSavedPerLayer * static_cast<double>(s.hidden * s.layers) +
          heads * 2 * static_cast<double>(s.vocab));
}

class Estimator {
 public:
  Estimator(const v1::RunConfig& config, const RunSizes& sizes,
            const ClusterSpec& cluster)
      : config_(config), sizes_(sizes), cluster_(cluster) {
    ranks_ = std::max(1, config.roles().learners());
    shards_ = std::max(ranks_, double(config.numerics().shards()));
    weights_ = kBytesPerFloat * static_cast<double>(sizes.parameters);
  }

  // What one rank computes in a step of a learner stage.
  struct Work {
    double flops = 0;    // model FLOPs
    double updates = 0;  // optimizer steps
    bool operator==(const Work&) const = default;
  };
  Work LearnerWork(const std::string& name) const {
    if (name == "ppo") return PpoWork();
    const StageSizes s = SizesOf(name);
    const double rows = s.rows / ranks_;
    return {3 * ForwardFlops(sizes_, rows * s.tokens, s.tokens,
                             name == "rm" ? 0 : rows * s.targets),
            1};
  }
  // One optimizer step, with the sum over ranks.
  double UpdateSeconds() const {
    const double own = cluster_.update_mparams_s > 0
                           ? static_cast<double>(sizes_.parameters) /
                                 (1e6 * cluster_.update_mparams_s)
                           : 0;
    return own + Wire(ranks_ > 1 ? 2 * weights_ * (ranks_ - 1) / ranks_ : 0);
  }
  double Threads() const {
    return cluster_.gpus > 0 ? 1 : std::max(1, config_.roles().threads());
  }
  RunEstimate Run() {
    RunEstimate run;
    for (const std::string& name : config_.stages()) {
      StageEstimate stage = Stage(name);
      double memory = 0;
      for (const RoleEstimate& role : stage.roles) {
        memory += role.all_memory_bytes;
      }
      double shared = 1e6 * cluster_.shared_mb;
      for (const auto& [role, bytes] : cluster_.role_program) shared += bytes;
      memory += shared * std::max(1.0, static_cast<double>(cluster_.nodes));
      run.memory_bytes = std::max(run.memory_bytes, memory);
      run.total_s += stage.step_s * static_cast<double>(stage.steps);
      if (stage.steps == 0) {
        run.warnings.push_back(absl::StrCat(
            name, ": its steps are known when its data are there"));
      }
      run.stages.push_back(std::move(stage));
    }
    const double room =
        1e9 * cluster_.memory_gb * static_cast<double>(cluster_.nodes);
    if (room > 0 && run.memory_bytes > room) {
      run.warnings.push_back(absl::StrCat("memory: ", run.memory_bytes / 1e9,
                                          " GB are needed, the cluster has ",
                                          room / 1e9));
    }
    return run;
  }

 private:
  // Of `busy` processes with threads of work; more than cores share them.
  double Slowdown(double busy) const {
    if (cluster_.gpus > 0) {
      return std::max(
          1.0, busy / static_cast<double>(cluster_.gpus * cluster_.nodes));
    }
    return std::max(1.0,
                    busy * std::max(1, config_.roles().threads()) /
                        (cluster_.cores * static_cast<double>(cluster_.nodes)));
  }
  double Seconds(double flops, double gflop_s) const {
    return gflop_s > 0 ? flops / (1e9 * gflop_s * Threads()) : 0;
  }
  // Of a kind of stage, else the one for all.
  static double RateOf(const std::map<std::string, double>& rates,
                       const std::string& stage, double otherwise) {
    const auto found = rates.find(stage);
    return found == rates.end() ? otherwise : found->second;
  }
  double LearnerSeconds(const std::string& name) const {
    const Work work = LearnerWork(name);
    return (Seconds(work.flops, RateOf(cluster_.stage_train_gflop_s, name,
                                       cluster_.train_gflop_s)) +
            work.updates * UpdateSeconds()) *
           Slowdown(ranks_);
  }
  double Wire(double bytes) const {
    return cluster_.link_gbit_s > 0 ? 8 * bytes / (1e9 * cluster_.link_gbit_s)
                                    : 0;
  }

  // `extra`: beside the weights. What was measured holds all of it.
  RoleEstimate Role(const std::string& name, int64_t processes,
                    double weight_bytes, double extra) const {
    RoleEstimate role;
    role.role = name;
    role.processes = processes;
    role.weight_bytes = weight_bytes;
    const double n = static_cast<double>(processes);
    role.memory_bytes = 1e6 * cluster_.process_mb + weight_bytes + extra;
    role.all_memory_bytes = n * role.memory_bytes;
    const auto measured = cluster_.role_private.find(name);
    const auto first = cluster_.role_private.find(name + "-0");
    if (measured != cluster_.role_private.end()) {
      role.memory_bytes = measured->second;
      role.all_memory_bytes = n * role.memory_bytes;
    }
    if (first != cluster_.role_private.end() && processes > 0) {
      role.all_memory_bytes += first->second - role.memory_bytes;
      role.memory_bytes = std::max(role.memory_bytes, first->second);
    }
    return role;
  }
  // What every stage has: idle roles are there too.
  void AddRoles(StageEstimate& stage, double learner_extra,
                double learner_weights, bool serves) const {
    // No LibTorch in it: a quarter of a role's private memory.
    RoleEstimate coordinator =
        Role("coordinator", 1, 0,
             4 * stage.payload_bytes - 0.75e6 * cluster_.process_mb);
    coordinator.sent_bytes = stage.payload_bytes * ranks_;
    coordinator.busy_s = 1e-3 * cluster_.commit_ms;
    stage.roles.push_back(coordinator);
    RoleEstimate learner = Role("learner", static_cast<int64_t>(ranks_),
                                learner_weights, learner_extra);
    learner.sent_bytes =
        stage.broadcast_bytes + (ranks_ > 1 ? 2 * weights_ * (ranks_ - 1) : 0);
    stage.roles.push_back(learner);
    stage.roles.push_back(
        Role("actor", config_.roles().actors(), serves ? 2 * weights_ : 0, 0));
    stage.roles.push_back(Role("reward", config_.roles().rewards(),
                               serves ? 2 * weights_ : 0, 0));
    if (cluster_.role_private.contains("run")) {
      stage.roles.push_back(Role("run", 1, 0, 0));
    }
  }
  RoleEstimate& Find(StageEstimate& stage, const char* name) const {
    return *std::find_if(
        stage.roles.begin(), stage.roles.end(),
        [name](const RoleEstimate& role) { return role.role == name; });
  }

  StageEstimate Stage(const std::string& name) const {
    if (name == "collect" || name == "eval") return Collect(name);
    if (name == "ppo") return Ppo();
    return Supervised(name);
  }

  // Measured, else what the configuration allows at most.
  StageSizes SizesOf(const std::string& name) const {
    if (const auto found = sizes_.stages.find(name);
        found != sizes_.stages.end()) {
      return found->second;
    }
    if (name == "pretrain" || name == "sft") {
      const v1::LmSettings& lm =
          name == "sft" ? config_.sft() : config_.pretrain();
      const double length = static_cast<double>(lm.sequence_length());
      return {static_cast<double>(lm.batch()), length, length, lm.steps(), 0};
    }
    // Sequences: a prompt with each of its answers.
    const double answers = std::max(2, config_.collect().samples_per_prompt());
    const double batch =
        name == "rm"    ? static_cast<double>(config_.rm().batch())
        : name == "dpo" ? static_cast<double>(config_.dpo().batch())
        : name == "kto" ? static_cast<double>(config_.kto().batch())
                        : static_cast<double>(config_.rft().batch());
    return {name == "rft" ? batch : batch * answers,
            sizes_.prompt_tokens + sizes_.answer_tokens, sizes_.answer_tokens,
            0, 0};
  }

  StageEstimate Supervised(const std::string& name) const {
    StageEstimate stage;
    stage.stage = name;
    const StageSizes s = SizesOf(name);
    stage.steps = s.steps;
    stage.checkpoint_bytes = 3 * weights_;
    const double train = LearnerSeconds(name);
    const double shard = s.rows / shards_;  // rows at a time
    AddRoles(stage,
             ActivationBytes(sizes_, shard * s.tokens,
                             name == "rm" ? 0 : shard * s.targets),
             kTrainedCopies * weights_ + weights_, /*serves=*/false);
    Find(stage, "learner").busy_s = train;
    stage.step_s = train + 1e-3 * cluster_.commit_ms;
    stage.bottleneck = "learner";
    return stage;
  }

  struct Rollout {
    double generate_s = 0;  // of one actor, all its units
    double score_s = 0;     // of one reward process
    double wall_s = 0;
    double payload_bytes = 0;
  };
  Rollout RolloutOf(const std::string& stage, double prompts, double samples,
                    double unit_prompts, bool scored) const {
    Rollout r;
    const double units = std::ceil(prompts / unit_prompts);
    const double rows = std::min(unit_prompts, prompts) * samples;
    const double length = sizes_.prompt_tokens + sizes_.answer_tokens;
    const double actors = std::max(1, config_.roles().actors());
    const double rewards = std::max(1, config_.roles().rewards());
    const double heads = rows * sizes_.answer_tokens;
    const double trunk = ForwardFlops(sizes_, rows * length, length, 0);
    const double full = ForwardFlops(sizes_, rows * length, length, heads);
    const double generate =
        Seconds(full, RateOf(cluster_.stage_decode_gflop_s, stage,
                             cluster_.decode_gflop_s)) +
        1e-3 * cluster_.unit_ms;
    // The reference's pass, and the reward model's.
    const double passes = full + (config_.reward().kind() == "rm" ? trunk : 0);
    const double score =
        scored ? Seconds(passes, RateOf(cluster_.stage_score_gflop_s, stage,
                                        cluster_.score_gflop_s))
               : 0;
    r.generate_s = std::ceil(units / actors) * generate;
    r.score_s = units / rewards * score;
    // Generation and scoring overlap but for the last unit; together they
    // cannot use more than all cores.
    const double critical =
        std::max(r.generate_s + score, generate + r.score_s);
    const double work = (units * (generate + score)) *
                        std::max(1, config_.roles().threads()) /
                        (cluster_.cores * static_cast<double>(cluster_.nodes));
    r.wall_s = cluster_.gpus > 0 ? critical : std::max(critical, work);
    r.payload_bytes = prompts * samples *
                      (kSampleBytes + kPromptTokenBytes * sizes_.prompt_tokens +
                       kAnswerTokenBytes * sizes_.answer_tokens);
    return r;
  }

  StageEstimate Collect(const std::string& name) const {
    const bool collect = name == "collect";
    double prompts =
        static_cast<double>(collect ? config_.collect().max_prompts()
                                    : config_.eval().max_prompts());
    if (const auto found = sizes_.stages.find(name);
        found != sizes_.stages.end()) {
      prompts = found->second.prompts;
    }
    const double samples = collect ? config_.collect().samples_per_prompt()
                                   : config_.eval().best_of();
    const double unit = collect ? config_.collect().unit_prompts()
                                : config_.eval().unit_prompts();
    StageEstimate stage;
    stage.stage = name;
    stage.steps = prompts > 0 ? 1 : 0;
    // Without a number of prompts: of one unit per actor.
    const Rollout r =
        RolloutOf(name, prompts > 0 ? prompts : unit * config_.roles().actors(),
                  samples, unit, !collect);
    stage.payload_bytes = r.payload_bytes;
    stage.broadcast_bytes = weights_ * config_.roles().actors();
    stage.step_s = r.wall_s + Wire(stage.broadcast_bytes);
    AddRoles(stage, 0, weights_, /*serves=*/true);
    Find(stage, "actor").busy_s = r.generate_s;
    Find(stage, "reward").busy_s = r.score_s;
    stage.bottleneck = r.generate_s >= r.score_s ? "actor" : "reward";
    return stage;
  }

  Work PpoWork() const {
    const v1::PpoSettings& ppo = config_.ppo();
    const double rows = static_cast<double>(ppo.prompts_per_step()) *
                        ppo.samples_per_prompt() / ranks_;
    const double length = sizes_.prompt_tokens + sizes_.answer_tokens;
    const double policy = ForwardFlops(sizes_, rows * length, length,
                                       rows * sizes_.answer_tokens);
    const double critic = ppo.estimator() == "gae"
                              ? ForwardFlops(sizes_, rows * length, length, 0)
                              : 0;
    const double epochs = ppo.epochs();
    const double updates = epochs * ppo.minibatches();
    Work work;
    work.flops = (ppo.prox() == "recompute" ? policy : 0) + critic +
                 epochs * 3 * (policy + critic);
    if (ppo.ptx().coef() > 0) {
      const double text = static_cast<double>(ppo.ptx().batch()) / ranks_;
      const double text_length =
          static_cast<double>(ppo.ptx().sequence_length());
      work.flops += updates * 3 *
                    ForwardFlops(sizes_, text * text_length, text_length,
                                 text * text_length);
    }
    work.updates = updates * (critic > 0 ? 2 : 1);
    return work;
  }

  StageEstimate Ppo() const {
    const v1::PpoSettings& ppo = config_.ppo();
    StageEstimate stage;
    stage.stage = "ppo";
    stage.steps = ppo.steps();
    const double samples = ppo.samples_per_prompt();
    const double prompts = ppo.prompts_per_step();
    const Rollout r = RolloutOf("ppo", prompts, samples, ppo.unit_prompts(),
                                /*scored=*/true);
    stage.payload_bytes = r.payload_bytes;
    stage.broadcast_bytes = weights_ * config_.roles().actors();
    stage.checkpoint_bytes = (ppo.estimator() == "gae" ? 6 : 3) * weights_;
    const double rows = prompts * samples / ranks_;
    const double length = sizes_.prompt_tokens + sizes_.answer_tokens;
    const bool critic = ppo.estimator() == "gae";
    const double train = LearnerSeconds("ppo");
    const double publish = 1e-3 * cluster_.commit_ms +
                           Wire(stage.broadcast_bytes) +
                           Wire(stage.payload_bytes * ranks_);
    const double shard =
        rows / std::max(1, ppo.minibatches()) * ranks_ / shards_;
    AddRoles(
        stage,
        ActivationBytes(sizes_, shard * length, shard * sizes_.answer_tokens),
        (critic ? 2 : 1) * kTrainedCopies * weights_ + kServedCopies * weights_,
        /*serves=*/true);
    Find(stage, "learner").busy_s = train;
    Find(stage, "actor").busy_s = r.generate_s;
    Find(stage, "reward").busy_s = r.score_s;
    const bool overlapped = config_.schedule().mode() != "sync";
    stage.step_s = overlapped ? std::max(train, r.wall_s) + publish
                              : train + r.wall_s + publish;
    stage.bottleneck = train >= r.wall_s           ? "learner"
                       : r.generate_s >= r.score_s ? "actor"
                                                   : "reward";
    return stage;
  }

  const v1::RunConfig& config_;
  const RunSizes& sizes_;
  const ClusterSpec& cluster_;
  double ranks_ = 1;
  double shards_ = 1;
  double weights_ = 0;  // bytes
};

}  // namespace

double ForwardFlops(const RunSizes& s, double tokens, double length,
                    double heads) {
  const double table = static_cast<double>(s.vocab * s.hidden);
  const double trunk = std::max(0.0, static_cast<double>(s.parameters) - table);
  const double attention =
      4.0 * length * static_cast<double>(s.hidden * s.layers);
  return tokens * (2 * trunk + attention) + heads * 2 * table;
}

double TrainRate(const v1::RunConfig& config, const RunSizes& sizes,
                 const ClusterSpec& cluster, const std::string& name,
                 double step_s) {
  const Estimator estimator(config, sizes, cluster);
  const Estimator::Work work = estimator.LearnerWork(name);
  // Where the updates seem to take all of it, noise does: leave a fifth.
  const double compute =
      std::max(0.2 * step_s, step_s - work.updates * estimator.UpdateSeconds());
  return work.flops / (1e9 * estimator.Threads() * std::max(1e-9, compute));
}

absl::StatusOr<ClusterSpec> ParseClusterSpec(const std::string& yaml,
                                             const std::string& name) {
  YAML::Node root;
  try {
    root = YAML::Load(yaml);
  } catch (const YAML::Exception& error) {
    return absl::InvalidArgumentError(
        absl::StrCat(name, ":", error.mark.line + 1, ": ", error.msg));
  }
  if (!root.IsMap()) {
    return absl::InvalidArgumentError(
        absl::StrCat(name, ": expected lines such as 'cores: 8'"));
  }
  ClusterSpec spec;
  for (const auto& entry : root) {
    COX_RETURN_IF_ERROR(SetKey(entry.first, entry.second, name, spec));
  }
  if (spec.nodes < 1 || spec.cores <= 0) {
    return absl::InvalidArgumentError(
        absl::StrCat(name, ": expected nodes >= 1 and cores > 0"));
  }
  return spec;
}

RunEstimate EstimateRun(const v1::RunConfig& config, const RunSizes& sizes,
                        const ClusterSpec& cluster) {
  return Estimator(config, sizes, cluster).Run();
}

}  // namespace cox
