// MakeDpoTrainer: DPO, IPO and cDPO over all pairs of ranked answers.

#include <algorithm>
#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "learner/preference_objective.h"
#include "learner/reference_logprobs.h"

namespace cox {
namespace {

// A row of comparisons with its reference log-probs.
struct DpoRow {
  std::vector<Sequence> completions;
  std::vector<int64_t> ranks;
  std::vector<std::vector<float>> reference;     // per completion
  std::vector<std::pair<size_t, size_t>> pairs;  // better, worse
};

std::vector<DpoRow> MakeRows(const std::vector<Comparison>& comparisons) {
  std::vector<DpoRow> rows;
  for (const Comparison& comparison : comparisons) {
    DpoRow& row = rows.emplace_back();
    row.completions = comparison.completions;
    row.ranks = comparison.ranks;
    const size_t count = row.ranks.size();
    for (size_t w = 0; w < count; ++w) {
      for (size_t l = 0; l < count; ++l) {
        // An empty answer has no log-prob to raise or lower.
        if (row.ranks[w] < row.ranks[l] && row.completions[w].targets() > 0 &&
            row.completions[l].targets() > 0) {
          row.pairs.emplace_back(w, l);
        }
      }
    }
  }
  return rows;
}

absl::Status FillReference(const PreferenceParts& parts, const Shards& shards,
                           int64_t forward_rows, std::vector<DpoRow>* rows) {
  std::vector<const Sequence*> flat;
  for (const DpoRow& row : *rows) {
    for (const Sequence& completion : row.completions) {
      flat.push_back(&completion);
    }
  }
  COX_ASSIGN_OR_RETURN(
      std::vector<std::vector<float>> logprobs,
      TargetLogprobs(flat, forward_rows, *parts.reference, shards));
  COX_RETURN_IF_ERROR(CheckReference(logprobs));
  size_t next = 0;
  for (DpoRow& row : *rows) {
    for (size_t k = 0; k < row.completions.size(); ++k) {
      row.reference.push_back(std::move(logprobs[next++]));
    }
  }
  return absl::OkStatus();
}

// Over a batch, or a shard of it.
struct DpoSums {
  double loss = 0;  // Σ over pairs / total
  double correct = 0;
  double chosen = 0;  // rewards
  double rejected = 0;
  double pairs = 0;
  void Add(const DpoSums& other) {
    loss += other.loss;
    correct += other.correct;
    chosen += other.chosen;
    rejected += other.rejected;
    pairs += other.pairs;
  }
};

DpoSums Fold(const std::vector<DpoSums>& shards) {
  DpoSums sums;
  for (const DpoSums& part : shards) {
    sums.Add(part);
  }
  return sums;
}

// The completions of several rows as one batch, and the pairs among them.
struct DpoPart {
  DpoPart(const std::vector<DpoRow>& rows, std::span<const int64_t> indices) {
    for (const int64_t index : indices) {
      const DpoRow& row = rows[static_cast<size_t>(index)];
      if (row.pairs.empty()) continue;
      const size_t base = sequences.size();
      for (size_t k = 0; k < row.completions.size(); ++k) {
        sequences.push_back(&row.completions[k]);
        reference.push_back(&row.reference[k]);
        width = std::max(width, row.completions[k].targets());
      }
      for (const auto& [w, l] : row.pairs) {
        pairs.emplace_back(base + w, base + l);
      }
    }
  }

  std::vector<const Sequence*> sequences;
  std::vector<const std::vector<float>*> reference;
  std::vector<std::pair<size_t, size_t>> pairs;
  int64_t width = 0;  // longest answer
};

// One side of the pairs as [pairs, width] arrays.
struct Side {
  std::vector<double> policy;
  std::vector<double> reference;
  std::vector<uint8_t> mask;
  CompletionLogprobs<double> View(Shape2 shape) const {
    return {shape, policy, reference, mask};
  }
};

Side MakeSide(const DpoPart& part, const TokenBatch& batch,
              std::span<const float> output, bool better) {
  Side side;
  const size_t size = part.pairs.size() * static_cast<size_t>(part.width);
  side.policy.assign(size, 0.0);
  side.reference.assign(size, 0.0);
  side.mask.assign(size, 0);
  size_t base = 0;
  for (const auto& [w, l] : part.pairs) {
    const size_t row = better ? w : l;
    const Sequence& sequence = *part.sequences[row];
    for (int64_t t = 0; t < sequence.targets(); ++t) {
      const size_t i = base + static_cast<size_t>(t);
      side.policy[i] = double{
          output[TargetIndex(batch, sequence, static_cast<int64_t>(row), t)]};
      side.reference[i] =
          double{(*part.reference[row])[static_cast<size_t>(t)]};
      side.mask[i] = 1;
    }
    base += static_cast<size_t>(part.width);
  }
  return side;
}

void AddGradient(const DpoPart& part, const TokenBatch& batch, bool better,
                 std::span<const double> grad, std::vector<float>* gradient) {
  size_t base = 0;
  for (const auto& [w, l] : part.pairs) {
    const size_t row = better ? w : l;
    const Sequence& sequence = *part.sequences[row];
    for (int64_t t = 0; t < sequence.targets(); ++t) {
      (*gradient)[TargetIndex(batch, sequence, static_cast<int64_t>(row), t)] +=
          static_cast<float>(grad[base + static_cast<size_t>(t)]);
    }
    base += static_cast<size_t>(part.width);
  }
}

// Loss of the part's pairs; adds its gradient unless `gradient` is null.
absl::StatusOr<DpoSums> PartLoss(const PreferenceOptions& options,
                                 const DpoPart& part, const TokenBatch& batch,
                                 std::span<const float> output, double total,
                                 std::vector<float>* gradient) {
  const Shape2 shape = {static_cast<int64_t>(part.pairs.size()), part.width};
  const Side chosen = MakeSide(part, batch, output, /*better=*/true);
  const Side rejected = MakeSide(part, batch, output, /*better=*/false);
  COX_ASSIGN_OR_RETURN(
      const PreferenceResult<double> loss,
      PreferenceLoss<double>(chosen.View(shape), rejected.View(shape), options,
                             total));
  DpoSums sums;
  sums.loss = loss.loss;
  for (size_t p = 0; p < part.pairs.size(); ++p) {
    sums.chosen += loss.reward_chosen[p];
    sums.rejected += loss.reward_rejected[p];
    sums.correct += loss.reward_chosen[p] > loss.reward_rejected[p] ? 1 : 0;
    sums.pairs += 1;
  }
  if (gradient != nullptr) {
    AddGradient(part, batch, /*better=*/true, loss.grad_chosen, gradient);
    AddGradient(part, batch, /*better=*/false, loss.grad_rejected, gradient);
  }
  return sums;
}

class DpoObjective final : public PreferenceObjective {
 public:
  DpoObjective(const PreferenceOptions& options, std::vector<DpoRow> train,
               std::vector<DpoRow> heldout)
      : options_(options),
        train_(std::move(train)),
        heldout_(std::move(heldout)) {}

  std::string_view name() const override { return "dpo"; }
  int64_t rows() const override { return static_cast<int64_t>(train_.size()); }

  void HashRow(int64_t row, Sha256* hash) const override {
    const DpoRow& data = train_[static_cast<size_t>(row)];
    for (const Sequence& completion : data.completions) {
      HashSequence(completion, hash);
    }
    hash->Update(std::as_bytes(std::span<const int64_t>(data.ranks)));
  }

  int64_t Tokens(int64_t row) const override {
    int64_t tokens = 0;
    for (const Sequence& s : train_[static_cast<size_t>(row)].completions) {
      tokens += s.targets();
    }
    return tokens;
  }

  absl::Status Backward(std::span<const int64_t> batch,
                        const PreferenceRun& run,
                        std::map<std::string, double>* metrics) override {
    double total = 0;
    for (const int64_t row : batch) {
      total +=
          static_cast<double>(train_[static_cast<size_t>(row)].pairs.size());
    }
    std::vector<DpoSums> own(static_cast<size_t>(run.shards.own()));
    COX_RETURN_IF_ERROR(
        run.shards.Backward(run.policy, [&](int64_t shard, size_t i) {
          return ShardBackward(batch, shard, total, run, &own[i]);
        }));
    COX_ASSIGN_OR_RETURN(const std::vector<DpoSums> all,
                         run.shards.Gather(own));
    const DpoSums sums = Fold(all);
    (*metrics)["loss/dpo"] = sums.loss;
    if (sums.pairs > 0) {
      (*metrics)["dpo/accuracy"] = sums.correct / sums.pairs;
      (*metrics)["dpo/reward_chosen"] = sums.chosen / sums.pairs;
      (*metrics)["dpo/reward_rejected"] = sums.rejected / sums.pairs;
      (*metrics)["dpo/margin"] = (sums.chosen - sums.rejected) / sums.pairs;
    }
    return absl::OkStatus();
  }

  absl::Status Measure(const PreferenceRun& run,
                       std::map<std::string, double>* metrics) override {
    std::vector<DpoSums> own(static_cast<size_t>(run.shards.own()));
    COX_RETURN_IF_ERROR(run.shards.ForOwn([&](int64_t shard, size_t i) {
      const auto forward = [&](std::span<const int64_t> rows) -> absl::Status {
        const DpoPart part(heldout_, rows);
        if (part.pairs.empty()) return absl::OkStatus();
        const TokenBatch batch = MakeTokenBatch(part.sequences);
        COX_ASSIGN_OR_RETURN(const LogprobOutput output,
                             run.policy.Logprobs(batch, /*temperature=*/1.0,
                                                 /*want_entropy=*/false));
        COX_ASSIGN_OR_RETURN(const DpoSums sums,
                             PartLoss(options_, part, batch, output.logprobs,
                                      /*total=*/1.0, nullptr));
        own[i].Add(sums);
        return absl::OkStatus();
      };
      return ForMicroBatches(
          run.shards.Elements(static_cast<int64_t>(heldout_.size()), shard),
          run.forward_rows, forward);
    }));
    COX_ASSIGN_OR_RETURN(const std::vector<DpoSums> all,
                         run.shards.Gather(own));
    const DpoSums sums = Fold(all);
    if (sums.pairs > 0) {
      (*metrics)["dpo/heldout_loss"] = sums.loss / sums.pairs;
      (*metrics)["dpo/heldout_accuracy"] = sums.correct / sums.pairs;
      (*metrics)["dpo/heldout_margin"] =
          (sums.chosen - sums.rejected) / sums.pairs;
    }
    return absl::OkStatus();
  }

 private:
  absl::Status ShardBackward(std::span<const int64_t> batch, int64_t shard,
                             double total, const PreferenceRun& run,
                             DpoSums* sums) const {
    COX_ASSIGN_OR_RETURN(
        const bool finite,
        BackwardShard(batch, shard, run, [&](std::span<const int64_t> rows) {
          auto part = std::make_shared<const DpoPart>(train_, rows);
          return PreferenceMicroBatch{
              part->sequences,
              [this, part, total, sums](
                  const TokenBatch& tokens, std::span<const float> logprobs,
                  std::vector<float>* gradient) -> absl::Status {
                COX_ASSIGN_OR_RETURN(const DpoSums part_sums,
                                     PartLoss(options_, *part, tokens, logprobs,
                                              total, gradient));
                sums->Add(part_sums);
                return absl::OkStatus();
              }};
        }));
    if (!finite) {
      sums->loss = std::numeric_limits<double>::quiet_NaN();
    }
    return absl::OkStatus();
  }

  const PreferenceOptions options_;
  const std::vector<DpoRow> train_;
  const std::vector<DpoRow> heldout_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<StageTrainer>> MakeDpoTrainer(
    const PreferenceTrainOptions& options, const PreferenceOptions& loss,
    const PreferenceParts& parts, const DpoData& data) {
  COX_ASSIGN_OR_RETURN(Shards shards, CheckPreference(options, parts));
  COX_RETURN_IF_ERROR(CheckPositive("dpo.beta", loss.beta));
  COX_RETURN_IF_ERROR(
      CheckRange("dpo.label_smoothing", loss.label_smoothing, 0.0, 1.0));
  std::vector<DpoRow> train = MakeRows(data.train);
  std::vector<DpoRow> heldout = MakeRows(data.heldout);
  if (std::all_of(train.begin(), train.end(),
                  [](const DpoRow& row) { return row.pairs.empty(); })) {
    return absl::InvalidArgumentError(
        "dpo: no pair to train on: expected answers of different rank");
  }
  const int64_t forward_rows =
      options.micro_batch > 0 ? options.micro_batch : options.batch;
  COX_RETURN_IF_ERROR(FillReference(parts, shards, forward_rows, &train));
  COX_RETURN_IF_ERROR(FillReference(parts, shards, forward_rows, &heldout));
  return MakePreferenceTrainer(options, parts, std::move(shards),
                               std::make_unique<DpoObjective>(
                                   loss, std::move(train), std::move(heldout)));
}

}  // namespace cox
