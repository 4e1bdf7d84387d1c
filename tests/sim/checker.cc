#include "tests/sim/checker.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "coordinator/core_types.h"
#include "learner/checkpoint.h"
#include "lib/base/hash.h"

namespace cox::sim {

Checker::Checker(const Variant& variant, const RunPlan& plan, Fs& fs)
    : variant_(variant), plan_(plan), oracle_(OracleOf(variant)), fs_(fs) {}

void Checker::Violation(const std::string& what) {
  if (violation_.empty()) {
    violation_ = what;
  }
}

void Checker::OnRows(const std::vector<LedgerRow>& rows, Epoch epoch) {
  if (epoch < epoch_) {  // 7
    Violation(absl::StrCat("invariant 7: epoch ", epoch.value,
                           " wrote rows after epoch ", epoch_.value));
  }
  epoch_ = epoch;
  for (const LedgerRow& row : rows) {
    std::visit([this](const auto& r) { Check(r); }, row);
  }
}

void Checker::Check(const UnitRow& row) {
  const std::string unit = row.id.ToString();
  if (!units_.emplace(row.id, row).second) {  // 10
    Violation(absl::StrCat("invariant 10: unit ", unit, " has two rows"));
  }
  if (!plan_.UnitExists(row.id)) {
    Violation(absl::StrCat("unit ", unit, " is not in the plan"));
  } else if (!streaming(row.id.stage)) {
    const int64_t version = plan_.VersionFor(row.id.stage, row.id.step).step;
    if (row.version_step != version) {  // 5
      Violation(absl::StrCat("invariant 5: unit ", unit, " of version ",
                             row.version_step, ", ", version, " expected"));
    }
    if (failed_.contains(row.id)) {
      const std::string placeholder =
          PlaceholderOf(row.id, row.policy_hash, row.version_step);
      if (row.sha256 != Sha256Hex(std::string_view(placeholder))) {
        Violation(absl::StrCat("unit ", unit,
                               " was given up, its row is no placeholder's"));
      }
      return;
    }
    auto expected = oracle_.units.find(row.id);
    if (!failed_.empty()) {
      return;  // the undisturbed run has no failed units
    }
    if (expected != oracle_.units.end() && row.sha256 != expected->second) {
      Violation(absl::StrCat("invariant 15: unit ", unit,
                             " is not that of the undisturbed run"));
    }
  }
}

void Checker::Check(const BatchRow& row) {
  batches_[{row.stage, row.step}] = row.units;
  for (const auto* units : {&row.units, &row.dropped}) {
    for (const UnitId& unit : *units) {
      used_in_[unit] = row.step;
    }
  }
  for (const UnitId& unit : row.units) {
    if (!units_.contains(unit)) {  // 3
      Violation(absl::StrCat("invariant 3: batch ", row.step, " names unit ",
                             unit.ToString(), " that has no row"));
    }
    if (!trained_.insert(unit).second) {  // 2
      Violation(absl::StrCat("invariant 2: unit ", unit.ToString(),
                             " is in two steps"));
    }
  }
}

void Checker::Check(const StepRow& row) {
  const std::string what =
      absl::StrCat("stage ", row.stage, " step ", row.step);
  std::vector<StepRow>& steps = steps_[row.stage];
  if (row.step != static_cast<int64_t>(steps.size()) + 1) {  // 1
    Violation(
        absl::StrCat("invariant 1: ", what, " after step ", steps.size()));
  }
  if (row.generation.value < generation_) {  // 7
    Violation(absl::StrCat("invariant 7: ", what, " of generation ",
                           row.generation.value, " after ", generation_));
  }
  generation_ = std::max(generation_, row.generation.value);
  steps.push_back(row);
  const StagePlan& stage = plan_.stage(row.stage);
  std::vector<BatchUnit> batch;
  if (stage.has_units()) {
    std::vector<UnitId> units;
    for (int32_t i = 0; i < stage.units_per_step(); ++i) {
      units.push_back({row.stage, row.step, i});
    }
    if (streaming(row.stage)) {
      units = batches_[{row.stage, row.step}];
    }
    for (const UnitId& id : units) {
      auto unit = units_.find(id);
      if (unit == units_.end()) {  // 3
        return Violation(absl::StrCat("invariant 3: ", what, " without unit ",
                                      id.ToString()));
      }
      used_in_[id] = row.step;
      if (!streaming(row.stage) && !trained_.insert(id).second) {  // 2
        Violation(absl::StrCat("invariant 2: unit ", id.ToString(),
                               " is in two steps"));
      }
      const int64_t staleness = row.step - 1 - unit->second.version_step;
      if (staleness < 0 ||
          (streaming(row.stage) && staleness > plan_.schedule().eta)) {  // 5, 6
        Violation(absl::StrCat("invariant 6: ", what, ": unit ", id.ToString(),
                               " has staleness ", staleness));
      }
      batch.push_back({id, unit->second.sha256, {}});
    }
    if (static_cast<int32_t>(batch.size()) != stage.units_per_step() ||
        BatchHash(batch) != row.batch_sha256) {  // 3
      Violation(absl::StrCat("invariant 3: ", what, ": not its batch"));
    }
  }
  if (variant_.schedule != kSchedules - 1 && failed_.empty()) {  // 9, 15
    auto expected = oracle_.weights.find({row.stage, row.step});
    if (expected == oracle_.weights.end() ||
        expected->second != row.weight_hash) {
      Violation(absl::StrCat("invariant 15: ", what,
                             ": weights differ from the undisturbed run"));
    }
  }
  // In every mode the weights are the fold over the recorded batches.
  if (row.step == 1) {
    const int32_t before = plan_.PolicyStageBefore(row.stage);
    fold_[row.stage] = FreshState(before < 0 || steps_[before].empty()
                                      ? InitialWeights()
                                      : steps_[before].back().weight_hash);
  }
  TrainerState& fold = fold_[row.stage];
  fold.Step(row.batch_sha256, 0);
  if (fold.weights != row.weight_hash) {
    Violation(absl::StrCat("invariant 9: ", what,
                           ": not the fold over the recorded batches"));
  }
}

void Checker::Check(const VersionRow& row) {
  const PolicyVersion& v = row.version;
  if (row.model != "policy" || plan_.stage(v.stage).kind != StageKind::kPpo ||
      v.step == 0) {
    return;
  }
  const std::vector<StepRow>& steps = steps_[v.stage];
  if (v.step > static_cast<int64_t>(steps.size()) ||
      steps[static_cast<size_t>(v.step - 1)].weight_hash != row.content_hash) {
    Violation(absl::StrCat("rule 16: version ", v.ToString(),
                           " is not that of a committed step"));
  }
}

void Checker::CheckpointIsThere(const CheckpointRow& row) {
  const auto manifest =
      VerifyCheckpoint(fs_, row.directory, row.manifest_sha256);
  if (!manifest.ok()) {  // 8, 12
    Violation(absl::StrCat("invariant 8: stage ", row.stage, " step ", row.step,
                           ": ", manifest.status().ToString()));
  }
}

void Checker::Check(const CheckpointRow& row) {
  const std::vector<StepRow>& steps = steps_[row.stage];
  if (row.step < 1 || row.step > static_cast<int64_t>(steps.size()) ||
      steps[static_cast<size_t>(row.step - 1)].weight_hash != row.weight_hash) {
    Violation(absl::StrCat("rule 13: checkpoint of stage ", row.stage, " step ",
                           row.step, " is not that of a committed step"));
  }
  if (row.generation.value < 1 || row.generation.value > generation_ + 1000) {
    Violation("rule 14: a checkpoint without generation");
  }
  checkpoints_[{row.stage, row.step}] = row;
  CheckpointIsThere(row);
}

void Checker::Check(const CheckpointRemovedRow& row) {
  checkpoints_.erase({row.stage, row.step});
  const auto left = std::count_if(
      checkpoints_.begin(), checkpoints_.end(),
      [&](const auto& entry) { return entry.first.first == row.stage; });
  if (left < 2) {  // 12
    Violation(absl::StrCat("rule 20: stage ", row.stage, " keeps only ", left,
                           " checkpoints"));
  }
}

void Checker::Check(const SegmentRemovedRow& row) {
  for (const auto& [id, unit] : units_) {
    if (unit.payload.segment != row.segment) {
      continue;
    }
    bool needed = !done_.contains(id.stage);
    const auto used = used_in_.find(id);
    if (plan_.stage(id.stage).has_learner_steps() &&
        (needed || used != used_in_.end())) {
      // Training resumes from the second newest checkpoint at the earliest.
      std::vector<int64_t> steps;
      for (const auto& [key, checkpoint] : checkpoints_) {
        if (key.first == id.stage) {
          steps.push_back(key.second);
        }
      }
      needed = used == used_in_.end() || steps.size() < 2 ||
               used->second > steps[steps.size() - 2];
    }
    if (needed) {  // 12
      Violation(absl::StrCat("rule 20: segment ", row.segment,
                             " is deleted, but a restart may need unit ",
                             id.ToString()));
    }
  }
}

void Checker::Check(const UnitFailedRow& row) { failed_.insert(row.id); }

void Checker::Check(const GenerationRow& row) {
  if (row.generation.value <= generation_) {
    Violation(absl::StrCat("invariant 7: generation ", row.generation.value,
                           " after ", generation_));
  }
  generation_ = row.generation.value;
}

void Checker::Check(const StageRow& row) {
  if (plan_.stage(row.stage).total_steps == 0) {
    plan_.SetTotalSteps(row.stage, row.total_steps);
  }
  if (row.state == "done") {
    done_.insert(row.stage);
  }
}

void Checker::OnUnitAck(const UnitId& unit, const std::string& sha256,
                        bool durable) {
  if (!durable) {  // 14
    Violation(absl::StrCat("invariant 14: unit ", unit.ToString(),
                           " was acknowledged before its row was synced"));
  }
  auto [found, inserted] = acknowledged_.emplace(unit, sha256);
  if (!inserted && found->second != sha256) {  // 10
    Violation(absl::StrCat("invariant 10: unit ", unit.ToString(),
                           " was acknowledged with two results"));
  }
}

void Checker::OnStepAck(int32_t stage, int64_t step, int64_t /*generation*/) {
  if (static_cast<int64_t>(steps_[stage].size()) < step) {  // 14
    Violation(absl::StrCat("invariant 14: stage ", stage, " step ", step,
                           " was acknowledged before its row was synced"));
  }
}

void Checker::OnServed(int64_t caller_generation, int64_t generation) {
  if (caller_generation < generation) {  // 7
    Violation(absl::StrCat("invariant 7: a learner of generation ",
                           caller_generation, " was served in generation ",
                           generation));
  }
}

void Checker::OnRecovered(const LedgerState& state) {
  for (const auto& [unit, sha256] : acknowledged_) {
    const auto row = std::lower_bound(
        state.units.begin(), state.units.end(), unit,
        [](const UnitRow& r, const UnitId& id) { return r.id < id; });
    if (row == state.units.end() || row->id != unit || row->sha256 != sha256) {
      Violation(absl::StrCat("invariant 14: unit ", unit.ToString(),
                             " was acknowledged and is gone"));
    }
  }
  for (const CheckpointRow& row : state.checkpoints) {
    CheckpointIsThere(row);
  }
}

void Checker::OnLoaded(int32_t stage, const TrainerState& state) {
  const std::vector<StepRow>& steps = steps_[stage];
  if (state.step > static_cast<int64_t>(steps.size()) ||
      (state.step > 0 &&
       steps[static_cast<size_t>(state.step - 1)].weight_hash !=
           state.weights)) {
    Violation(absl::StrCat("invariant 9: stage ", stage,
                           " goes on from a state of step ", state.step,
                           " that was never committed"));
  }
}

void Checker::OnDone(const LedgerState& state) {
  OnRecovered(state);
  for (int32_t s = 0; s < plan_.num_stages(); ++s) {
    const StagePlan& stage = plan_.stage(s);
    if (stage.has_learner_steps() &&
        static_cast<int64_t>(steps_[s].size()) != stage.total_steps) {
      Violation(absl::StrCat("stage ", s, " ended after ", steps_[s].size(),
                             " of ", stage.total_steps, " steps"));
    }
  }
}

}  // namespace cox::sim
