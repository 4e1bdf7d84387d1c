#ifndef COX_TESTS_SIM_MODEL_H_
#define COX_TESTS_SIM_MODEL_H_

// What is computed in a simulated run: hashes of inputs in the place of
// models, so that "the same weights" is a comparison of strings. The oracle
// computes the undisturbed run of a variant directly, without any of the cores.

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "coordinator/ledger.h"
#include "coordinator/plan.h"

namespace cox::sim {

// Which run is simulated; drawn from the seed.
struct Variant {
  int stages = 0;    // index into the list of stage lists
  int schedule = 0;  // sync, fixed_lag 1, fixed_lag 2, streaming
  auto operator<=>(const Variant&) const = default;
};
constexpr int kStageLists = 4;
constexpr int kSchedules = 4;
const char* ScheduleName(const Variant& variant);

RunPlan MakePlan(const Variant& variant);
// Steps of an rm stage, known only once the comparisons are there.
constexpr int64_t kRewardModelSteps = 2;

// Canonical bytes of a unit: a function of plan, unit and weights alone.
// `attempt` is 0 unless rule 9 is off.
std::string UnitPayload(const RunPlan& plan, const UnitId& unit,
                        const std::string& weights, int64_t attempt);

// What stands for a unit that is given up.
std::string PlaceholderOf(const UnitId& unit, const std::string& weights,
                          int64_t version_step);

// A trainer's whole state.
struct TrainerState {
  std::string weights;  // as a content hash
  std::string moments;
  int64_t step = 0;
  std::map<int64_t, std::string> older;  // versions that open units may need

  // `stray`: what rule 15 forbids; 0 otherwise.
  void Step(const std::string& batch_sha256, int64_t stray);
  std::string Save() const;
  // False: not such a text.
  static bool Load(const std::string& text, TrainerState* state);
};
std::string InitialWeights();
TrainerState FreshState(const std::string& weights);
// Identity of the data of a step without units.
std::string DataHash(int32_t stage, int64_t step);

// The undisturbed run: hashes of units and weights. Streaming has none.
struct Oracle {
  std::map<UnitId, std::string> units;  // SHA-256 of the payload
  std::map<std::pair<int32_t, int64_t>, std::string> weights;  // stage, step
};
const Oracle& OracleOf(const Variant& variant);  // cached per thread

}  // namespace cox::sim

#endif  // COX_TESTS_SIM_MODEL_H_
