#include "coordinator/stage_outputs.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <optional>
#include <set>
#include <utility>

#include "absl/strings/str_format.h"
#include "absl/strings/str_split.h"
#include "lib/algo/stats.h"
#include "lib/base/rng.h"
#include "nlohmann/json.hpp"

namespace cox {
namespace {

using Json = nlohmann::ordered_json;

// The samples of one prompt, in sample order.
struct Group {
  uint64_t prompt_id = 0;
  std::vector<const Trajectory*> samples;
};

std::vector<Group> GroupByPrompt(const std::vector<OutputUnit>& units) {
  std::vector<Group> groups;
  for (const OutputUnit& unit : units) {
    for (const Trajectory& trajectory : unit.trajectories) {
      if (groups.empty() || groups.back().prompt_id != trajectory.prompt_id) {
        groups.push_back({trajectory.prompt_id, {}});
      }
      groups.back().samples.push_back(&trajectory);
    }
  }
  return groups;
}

// Without those of units that were given up: nobody can rank no answers.
std::vector<Group> AnsweredGroups(const std::vector<OutputUnit>& units) {
  std::vector<Group> groups = GroupByPrompt(units);
  std::erase_if(groups, [](const Group& group) {
    return std::all_of(group.samples.begin(), group.samples.end(),
                       [](const Trajectory* sample) {
                         return sample->finish == FinishReason::kAbort;
                       });
  });
  return groups;
}

std::optional<double> Part(const Trajectory& trajectory,
                           std::string_view name) {
  for (const auto& [part, value] : trajectory.reward_parts) {
    if (part == name) {
      return value;
    }
  }
  return std::nullopt;
}

std::string Text(const DecodeFunction& decode, std::span<const int32_t> ids) {
  return decode ? decode(ids) : std::string();
}

// Competition ranking: 1 + number of strictly better samples.
std::vector<int> RanksOf(std::span<const double> scores) {
  std::vector<int> ranks(scores.size(), 1);
  for (size_t i = 0; i < scores.size(); ++i) {
    for (double other : scores) {
      ranks[i] += other > scores[i] ? 1 : 0;
    }
  }
  return ranks;
}

std::string Dump(const Json& json) {
  return json.dump(-1, ' ', false, Json::error_handler_t::replace);
}

std::string ComparisonRow(const Group& group, std::span<const int> ranks,
                          std::span<const double> scores,
                          const DecodeFunction& decode) {
  const Trajectory& first = *group.samples.front();
  Json row;
  row["prompt"] = ReadablePrompt(first, decode);
  row["prompt_ids"] = first.prompt_ids;
  if (!first.instruction_ids.empty()) {
    row["instruction_ids"] = first.instruction_ids;
  }
  Json texts = Json::array();
  Json ids = Json::array();
  for (const Trajectory* sample : group.samples) {
    texts.push_back(Text(decode, sample->response_ids));
    ids.push_back(sample->response_ids);
  }
  row["responses"] = std::move(texts);
  row["response_ids"] = std::move(ids);
  row["ranking"] = std::vector<int>(ranks.begin(), ranks.end());
  if (!scores.empty()) {
    row["scores"] = std::vector<double>(scores.begin(), scores.end());
  }
  return Dump(row) + "\n";
}

// Which groups (by place) are held out.
std::set<int64_t> HeldOut(size_t groups, const CollectOptions& options) {
  const auto count = static_cast<size_t>(
      std::floor(static_cast<double>(groups) * options.heldout_fraction));
  const std::vector<int64_t> order = Permutation(
      static_cast<int64_t>(groups), options.seed, "collect/heldout");
  return std::set<int64_t>(order.begin(),
                           order.begin() + static_cast<int64_t>(count));
}

}  // namespace

std::string ReadablePrompt(const Trajectory& trajectory,
                           const DecodeFunction& decode) {
  std::string text = Text(decode, trajectory.prompt_ids);
  if (trajectory.instruction_ids.empty()) {
    return text;
  }
  const std::string instruction = Text(decode, trajectory.instruction_ids);
  return text.empty() ? instruction : absl::StrCat(instruction, "\n", text);
}

absl::StatusOr<CollectFiles> MakeCollectFiles(
    const CollectOptions& options, const std::vector<OutputUnit>& units,
    const DecodeFunction& decode) {
  const std::vector<Group> groups = GroupByPrompt(units);
  const std::set<int64_t> heldout = HeldOut(groups.size(), options);
  CollectFiles files;
  int64_t ranked = 0;
  int64_t unscored = 0;
  double gold_sum = 0.0;
  int64_t gold_count = 0;
  for (size_t g = 0; g < groups.size(); ++g) {
    const Group& group = groups[g];
    std::vector<double> scores;
    std::vector<double> noisy;
    for (size_t k = 0; k < group.samples.size(); ++k) {
      const std::optional<double> gold = Part(*group.samples[k], "gold");
      if (!gold.has_value()) {
        break;
      }
      CounterRng noise(options.seed,
                       absl::StrCat("collect/noise/", group.prompt_id, "/", k));
      scores.push_back(*gold);
      noisy.push_back(*gold + options.label_noise * noise.NextNormal());
    }
    if (scores.size() != group.samples.size() || scores.size() < 2) {
      ++unscored;
      continue;
    }
    ++ranked;
    gold_sum += std::accumulate(scores.begin(), scores.end(), 0.0);
    gold_count += static_cast<int64_t>(scores.size());
    const std::string row =
        ComparisonRow(group, RanksOf(noisy), scores, decode);
    (heldout.contains(static_cast<int64_t>(g)) ? files.heldout_jsonl
                                               : files.train_jsonl) += row;
  }
  if (files.train_jsonl.empty()) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "collect: no prompt could be ranked: %d prompts, of which %d have "
        "samples without a gold score; expected at least one prompt with two "
        "scored samples",
        groups.size(), unscored));
  }
  files.metrics["collect/prompts"] = static_cast<double>(ranked);
  files.metrics["collect/unscored"] = static_cast<double>(unscored);
  files.metrics["objective/gold"] = gold_sum / static_cast<double>(gold_count);
  return files;
}

std::string MakeLabelRequests(const std::vector<OutputUnit>& units,
                              const DecodeFunction& decode) {
  std::string out;
  for (const Group& group : AnsweredGroups(units)) {
    Json row;
    row["prompt_id"] = group.prompt_id;
    row["prompt"] = ReadablePrompt(*group.samples.front(), decode);
    Json texts = Json::array();
    for (const Trajectory* sample : group.samples) {
      texts.push_back(Text(decode, sample->response_ids));
    }
    row["responses"] = std::move(texts);
    out += Dump(row) + "\n";
  }
  return out;
}

namespace {

// One line of people's rankings, checked against the samples.
absl::StatusOr<std::pair<uint64_t, std::vector<int>>> ParseLabel(
    std::string_view line, int64_t number,
    const std::map<uint64_t, size_t>& samples_of) {
  const auto fail = [number](std::string_view what) {
    return absl::InvalidArgumentError(
        absl::StrCat("labels:", number, ": ", std::string(what)));
  };
  const Json row = Json::parse(line, nullptr, /*allow_exceptions=*/false);
  if (!row.is_object() || !row.contains("prompt_id") ||
      !row["prompt_id"].is_number_unsigned() || !row.contains("ranking") ||
      !row["ranking"].is_array()) {
    return fail(
        "expected an object with \"prompt_id\" (unsigned) and \"ranking\" "
        "(list of ranks, 1 = best)");
  }
  const auto prompt_id = row["prompt_id"].get<uint64_t>();
  const auto found = samples_of.find(prompt_id);
  if (found == samples_of.end()) {
    return fail(absl::StrCat("prompt_id ", prompt_id,
                             " is not one of the collected prompts"));
  }
  std::vector<int> ranks;
  for (const Json& rank : row["ranking"]) {
    const int64_t value = rank.is_number_integer() ? rank.get<int64_t>() : 0;
    if (value < 1 || value > static_cast<int64_t>(found->second)) {
      return fail(absl::StrCat("expected ranks between 1 and ", found->second,
                               ", found ", rank.dump()));
    }
    ranks.push_back(static_cast<int>(value));
  }
  if (ranks.size() != found->second) {
    return fail(absl::StrCat("expected ", found->second, " ranks, found ",
                             ranks.size()));
  }
  return std::make_pair(prompt_id, std::move(ranks));
}

}  // namespace

absl::StatusOr<CollectFiles> MakeLabelledFiles(
    const CollectOptions& options, const std::vector<OutputUnit>& units,
    std::string_view labels_jsonl, const DecodeFunction& decode) {
  const std::vector<Group> groups = AnsweredGroups(units);
  std::map<uint64_t, size_t> samples_of;
  for (const Group& group : groups) {
    samples_of[group.prompt_id] = group.samples.size();
  }
  std::map<uint64_t, std::vector<int>> ranks_of;
  int64_t number = 0;
  const std::string text(labels_jsonl);
  for (const auto line : absl::StrSplit(text, '\n')) {
    ++number;
    if (line.empty()) {
      continue;
    }
    COX_ASSIGN_OR_RETURN(auto label,
                         ParseLabel(std::string_view(line.data(), line.size()),
                                    number, samples_of));
    if (!ranks_of.emplace(label.first, label.second).second) {
      return absl::InvalidArgumentError(absl::StrCat(
          "labels:", number, ": prompt_id ", label.first, " ranked twice"));
    }
  }
  if (ranks_of.size() != groups.size()) {
    return absl::InvalidArgumentError(
        absl::StrCat("labels: expected rankings for ", groups.size(),
                     " prompts, found ", ranks_of.size()));
  }
  const std::set<int64_t> heldout = HeldOut(groups.size(), options);
  CollectFiles files;
  for (size_t g = 0; g < groups.size(); ++g) {
    const std::string row = ComparisonRow(
        groups[g], ranks_of[groups[g].prompt_id], /*scores=*/{}, decode);
    (heldout.contains(static_cast<int64_t>(g)) ? files.heldout_jsonl
                                               : files.train_jsonl) += row;
  }
  files.metrics["collect/prompts"] = static_cast<double>(groups.size());
  return files;
}

namespace {

// What is measured of one policy: one chosen sample per prompt.
struct Column {
  std::vector<double> gold;
  std::vector<double> reward;
  std::vector<double> kl;      // sum of behaviour - reference log-probs
  std::vector<double> length;  // tokens, EOS included
  std::vector<std::vector<int64_t>> tokens;
  double reference_nll = 0.0;
  int64_t reference_tokens = 0;
  int64_t stopped = 0;
  int64_t count = 0;
};

void Measure(const Trajectory& sample, Column& column) {
  if (sample.finish == FinishReason::kAbort) {
    return;
  }
  ++column.count;
  if (const auto gold = Part(sample, "gold")) {
    column.gold.push_back(*gold);
  }
  if (sample.reward_total.has_value()) {
    column.reward.push_back(*sample.reward_total);
  }
  column.length.push_back(static_cast<double>(sample.response_ids.size()));
  column.stopped += sample.finish == FinishReason::kStop ? 1 : 0;
  column.tokens.emplace_back(sample.response_ids.begin(),
                             sample.response_ids.end());
  if (!sample.reference_logprobs.empty() &&
      sample.reference_logprobs.size() == sample.behaviour_logprobs.size()) {
    double kl = 0.0;
    for (size_t t = 0; t < sample.reference_logprobs.size(); ++t) {
      kl += static_cast<double>(sample.behaviour_logprobs[t]) -
            static_cast<double>(sample.reference_logprobs[t]);
      column.reference_nll -= static_cast<double>(sample.reference_logprobs[t]);
    }
    column.kl.push_back(kl);
    column.reference_tokens +=
        static_cast<int64_t>(sample.reference_logprobs.size());
  }
}

absl::StatusOr<Json> Summary(std::span<const double> values,
                             const EvalOptions& options) {
  if (values.empty()) {
    return Json(nullptr);
  }
  BootstrapOptions bootstrap;
  bootstrap.resamples = options.bootstrap;
  bootstrap.seed = options.seed;
  COX_ASSIGN_OR_RETURN(const Interval interval,
                       BootstrapMean(values, bootstrap));
  Json json;
  json["mean"] = interval.mean;
  json["low"] = interval.low;
  json["high"] = interval.high;
  return json;
}

absl::StatusOr<Json> RowOf(std::string_view name, const Column& column,
                           const EvalOptions& options) {
  Json row;
  row["name"] = name;
  row["n"] = column.count;
  COX_ASSIGN_OR_RETURN(row["gold"], Summary(column.gold, options));
  COX_ASSIGN_OR_RETURN(row["reward"], Summary(column.reward, options));
  COX_ASSIGN_OR_RETURN(row["kl"], Summary(column.kl, options));
  COX_ASSIGN_OR_RETURN(row["length"], Summary(column.length, options));
  row["stop_frac"] = column.count == 0 ? 0.0
                                       : static_cast<double>(column.stopped) /
                                             static_cast<double>(column.count);
  COX_ASSIGN_OR_RETURN(
      row["distinct2"],
      DistinctN(std::span<const std::vector<int64_t>>(column.tokens.data(),
                                                      column.tokens.size()),
                2));
  row["reference_ppl"] =
      column.reference_tokens == 0
          ? Json(nullptr)
          : Json(std::exp(column.reference_nll /
                          static_cast<double>(column.reference_tokens)));
  return row;
}

// The sample with the highest reward; the first on ties.
const Trajectory& BestByReward(const Group& group) {
  const Trajectory* best = group.samples.front();
  for (const Trajectory* sample : group.samples) {
    if (sample->reward_total.has_value() &&
        (!best->reward_total.has_value() ||
         *sample->reward_total > *best->reward_total)) {
      best = sample;
    }
  }
  return *best;
}

Json SampleRow(const Group& reference, const Group* policy,
               const DecodeFunction& decode) {
  const auto describe = [&decode](const Trajectory& sample) {
    Json json;
    json["text"] = Text(decode, sample.response_ids);
    const auto gold = Part(sample, "gold");
    json["gold"] = gold.has_value() ? Json(*gold) : Json(nullptr);
    json["reward"] = sample.reward_total.has_value()
                         ? Json(*sample.reward_total)
                         : Json(nullptr);
    return json;
  };
  Json row;
  row["prompt"] = Text(decode, reference.samples.front()->prompt_ids);
  row["before"] = describe(*reference.samples.front());
  if (BestByReward(reference).reward_total.has_value()) {
    row["best_of_n"] = describe(BestByReward(reference));
  }
  if (policy != nullptr) {
    row["after"] = describe(*policy->samples.front());
  }
  return row;
}

void AddMetrics(const Json& row, std::string_view prefix,
                std::map<std::string, double>& metrics) {
  for (const char* key : {"gold", "reward", "kl", "length"}) {
    if (row[key].is_object()) {
      metrics[absl::StrCat(std::string(prefix), "/", key)] =
          row[key]["mean"].get<double>();
    }
  }
}

}  // namespace

absl::StatusOr<EvalOutput> MakeEvalOutput(
    const EvalOptions& options, const std::vector<OutputUnit>& reference,
    const std::vector<OutputUnit>& policy,
    const std::map<std::string, double>& run_metrics,
    const DecodeFunction& decode) {
  const std::vector<Group> before = GroupByPrompt(reference);
  const std::vector<Group> after = GroupByPrompt(policy);
  if (before.empty()) {
    return absl::InvalidArgumentError("eval: no samples of the reference");
  }
  if (!after.empty() && after.size() != before.size()) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "eval: expected as many prompts for the policy as for the reference "
        "(%d), found %d",
        before.size(), after.size()));
  }
  Column first, best, trained;
  for (const Group& group : before) {
    Measure(*group.samples.front(), first);
    Measure(BestByReward(group), best);
  }
  for (const Group& group : after) {
    Measure(*group.samples.front(), trained);
  }
  EvalOutput output;
  Json json;
  json["rows"] = Json::array();
  COX_ASSIGN_OR_RETURN(Json first_row, RowOf("reference", first, options));
  AddMetrics(first_row, "eval/reference", output.metrics);
  json["rows"].push_back(std::move(first_row));
  const size_t n = before.front().samples.size();
  // Without a reward there is no best one.
  if (n > 1 && !best.reward.empty()) {
    COX_ASSIGN_OR_RETURN(Json best_row,
                         RowOf(absl::StrCat("best-of-", n), best, options));
    // A best-of-n sample is not a draw from one distribution: its KL is the
    // closed form log n - (n - 1)/n.
    const double exact = std::log(static_cast<double>(n)) -
                         (static_cast<double>(n) - 1) / static_cast<double>(n);
    best_row["kl"] = {{"mean", exact}, {"low", exact}, {"high", exact}};
    AddMetrics(best_row, "eval/best_of_n", output.metrics);
    json["rows"].push_back(std::move(best_row));
  }
  if (!after.empty()) {
    COX_ASSIGN_OR_RETURN(Json row, RowOf("policy", trained, options));
    AddMetrics(row, "eval/policy", output.metrics);
    json["rows"].push_back(std::move(row));
  }
  json["measured"] = Json::object();
  for (const auto& [name, value] : run_metrics) {
    json["measured"][name] = value;
  }
  json["samples"] = Json::array();
  const size_t shown = std::min<size_t>(before.size(), 40);
  for (size_t g = 0; g < shown; ++g) {
    json["samples"].push_back(
        SampleRow(before[g], after.empty() ? nullptr : &after[g], decode));
  }
  output.json = Dump(json) + "\n";
  return output;
}

}  // namespace cox
