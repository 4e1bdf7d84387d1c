#include <algorithm>
#include <iterator>

#include "coordinator/ledger_audit.h"

namespace cox {
namespace {

struct Description {
  const char* name;
  const char* text;
  const char* things;
};
// In the order of Invariant.
constexpr Description kDescriptions[] = {
    {"steps-contiguous", "steps of a stage are 1, 2, ..., one row each",
     "steps"},
    {"unit-in-one-step", "every unit is in at most one step", "units"},
    {"step-units",
     "every committed step has its planned units, all submitted before it",
     "steps"},
    {"payload-hash", "stored bytes hash to their row and are that unit's",
     "payloads"},
    {"batch-hash", "a step's batch hash is that of its units' results",
     "steps"},
    {"unit-version", "every unit comes from the version its schedule names",
     "units"},
    {"staleness", "no trained unit is older than the schedule's bound",
     "units"},
    {"published-weights",
     "every unit's weights are a version published before it", "units"},
    {"weight-hashes",
     "version s has the weights of step s, and its manifest hashes to them",
     "versions"},
    {"generations", "learner generations never decrease", "rows"},
    {"epochs", "transactions are numbered and epochs never decrease",
     "transactions"},
    {"run-id", "every transaction and checkpoint is of this run", "rows"},
    {"checkpoint-files", "every file of every checkpoint hashes to its row",
     "checkpoints"},
    {"checkpoint-of-step", "a checkpoint holds the state of a committed step",
     "checkpoints"},
    {"conservation",
     "planned units = submitted + open; none is outside the plan", "units"},
    {"nothing-deleted",
     "nothing that a row refers to is gone, but what no restart needs",
     "references"},
    {"failed-units",
     "units that were given up have a placeholder, and no others", "units"},
};
static_assert(std::size(kDescriptions) ==
              static_cast<size_t>(Invariant::kCount));

}  // namespace

AuditReport EmptyAuditReport() {
  AuditReport report;
  for (size_t i = 0; i < std::size(kDescriptions); ++i) {
    const Description& d = kDescriptions[i];
    report.findings.push_back(
        {static_cast<Invariant>(i), d.name, d.text, d.things, 0, 0, ""});
  }
  return report;
}

bool AuditReport::ok() const {
  return std::all_of(
      findings.begin(), findings.end(),
      [](const AuditFinding& finding) { return finding.violations == 0; });
}

}  // namespace cox
