#include "cli/chaos_compare.h"

#include <map>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "coordinator/ledger_reader.h"
#include "lib/base/fs.h"

namespace cox {
namespace {

using Facts = std::map<std::string, std::string>;

Facts StepFacts(const LedgerState& state) {
  Facts facts;
  for (const StepRow& row : state.steps) {
    facts[absl::StrCat("stage ", row.stage, " step ", row.step)] =
        absl::StrCat("weights ", row.weight_hash, " batch ", row.batch_sha256,
                     row.skipped ? " skipped" : "");
  }
  return facts;
}

Facts UnitFacts(const LedgerState& state) {
  Facts facts;
  for (const UnitRow& row : state.units) {
    facts[absl::StrCat("unit ", row.id.ToString())] =
        absl::StrCat("version ", row.version_step, " weights ", row.policy_hash,
                     " result ", row.sha256);
  }
  return facts;
}

Facts CheckpointFacts(const LedgerState& state) {
  Facts facts;
  for (const CheckpointRow& row : state.checkpoints) {
    facts[absl::StrCat("checkpoint of stage ", row.stage, " step ", row.step)] =
        absl::StrCat("state ", row.state_sha256);
  }
  return facts;
}

void Compare(const Facts& calm, const Facts& hurt, bool same_keys,
             std::vector<std::string>* differences) {
  for (const auto& [key, value] : calm) {
    const auto found = hurt.find(key);
    if (found == hurt.end()) {
      if (same_keys) differences->push_back(absl::StrCat(key, ": missing"));
    } else if (found->second != value) {
      differences->push_back(
          absl::StrCat(key, ": expected ", value, ", found ", found->second));
    }
  }
  for (const auto& [key, value] : hurt) {
    if (same_keys && !calm.contains(key)) {
      differences->push_back(absl::StrCat(key, ": too many"));
    }
  }
}

std::vector<std::string> AtMost(std::vector<std::string> lines, size_t limit) {
  if (lines.size() > limit) {
    const size_t more = lines.size() - limit;
    lines.resize(limit);
    lines.push_back(absl::StrCat("... and ", more, " more"));
  }
  return lines;
}

}  // namespace

absl::StatusOr<LedgerState> ReadLedgerOf(const std::string& run_dir) {
  COX_ASSIGN_OR_RETURN(const RecordedRun run,
                       RecordedRun::Open(Fs::Real(), run_dir));
  return run.state();
}

std::vector<std::string> CompareLedgers(const LedgerState& calm,
                                        const LedgerState& hurt, size_t limit) {
  std::vector<std::string> differences;
  Compare(StepFacts(calm), StepFacts(hurt), /*same_keys=*/true, &differences);
  Compare(UnitFacts(calm), UnitFacts(hurt), /*same_keys=*/true, &differences);
  // Leaving at a signal may write one more.
  Compare(CheckpointFacts(calm), CheckpointFacts(hurt), /*same_keys=*/false,
          &differences);
  return AtMost(std::move(differences), limit);
}

std::vector<std::string> CheckStreamingLedger(const LedgerState& state,
                                              size_t limit) {
  std::vector<std::string> problems;
  std::set<UnitId> units;
  for (const UnitRow& row : state.units) units.insert(row.id);
  std::map<UnitId, int64_t> trained;
  std::set<std::pair<int32_t, int64_t>> batches;
  for (const BatchRow& batch : state.batches) {
    batches.insert({batch.stage, batch.step});
    for (const UnitId& unit : batch.units) {
      if (!units.contains(unit)) {
        problems.push_back(absl::StrCat("step ", batch.step, ": unit ",
                                        unit.ToString(), " has no result"));
      }
      const auto [found, first] = trained.emplace(unit, batch.step);
      if (!first) {
        problems.push_back(absl::StrCat("unit ", unit.ToString(), ": in steps ",
                                        found->second, " and ", batch.step));
      }
    }
  }
  std::set<int32_t> with_batches;
  for (const auto& [stage, step] : batches) with_batches.insert(stage);
  for (const StepRow& row : state.steps) {
    if (with_batches.contains(row.stage) &&
        !batches.contains({row.stage, row.step})) {
      problems.push_back(absl::StrCat("stage ", row.stage, " step ", row.step,
                                      ": no batch is recorded"));
    }
  }
  return AtMost(std::move(problems), limit);
}

}  // namespace cox
