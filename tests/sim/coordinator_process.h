#ifndef COX_TESTS_SIM_COORDINATOR_PROCESS_H_
#define COX_TESTS_SIM_COORDINATOR_PROCESS_H_

// The production coordinator without its threads: CoreTurn on the simulated
// disk. Calls that arrive while a turn is on its way form the next one.

#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "coordinator/core_turn.h"
#include "tests/sim/world.h"

namespace cox::sim {

template <typename T>
using ReplyTo = std::function<void(const absl::StatusOr<T>&)>;

class CoordinatorProcess : public Process, public EffectHandler {
 public:
  CoordinatorProcess(World& world, std::string its_name);

  // What the gRPC services do. `decide(core)` runs in the next turn, `reply`
  // after its commit.
  template <typename T, typename Decide>
  void Unary(Decide decide, ReplyTo<T> reply) {
    CoreTurn::Item item;
    item.task = [this, decide = std::move(decide), reply = std::move(reply)] {
      absl::StatusOr<T> result = decide(turn_->core());
      turn_->AfterCommit(
          [result = std::move(result), reply](const absl::Status& committed) {
            reply(committed.ok() ? result : absl::StatusOr<T>(committed));
          });
    };
    Post(std::move(item));
  }
  // A long poll: `decide(core)` gives nullopt for "not yet"; `empty` is the
  // answer when the wait is over.
  template <typename T, typename Decide>
  void Poll(Ns wait, T empty, Decide decide, ReplyTo<T> reply) {
    CoreTurn::Item item;
    item.task = [this, wait, empty = std::move(empty),
                 decide = std::move(decide), reply = std::move(reply)] {
      turn_->Park({world_.loop.now() + wait}, [this, empty, decide,
                                               reply](bool expired) {
        absl::StatusOr<std::optional<T>> found = decide(turn_->core());
        if (found.ok() && !found->has_value() && !expired) {
          return false;
        }
        absl::StatusOr<T> result =
            !found.ok() ? absl::StatusOr<T>(found.status())
                        : absl::StatusOr<T>(found->value_or(empty));
        turn_->AfterCommit(
            [result = std::move(result), reply](const absl::Status& committed) {
              reply(committed.ok() ? result : absl::StatusOr<T>(committed));
            });
        return true;
      });
    };
    Post(std::move(item));
  }
  void Submit(SubmitEvent event, std::string payload,
              ReplyTo<SubmitResult> reply);

  // nullptr while it is dead.
  const CoordinatorCore* core() const {
    return turn_ == nullptr ? nullptr : &turn_->core();
  }
  const CoreTurn& turn() const { return *turn_; }

  void OnEffect(CoordinatorCore& core, const Effect& effect) override;
  void OnTick(CoordinatorCore&) override {}
  absl::StatusOr<std::string> MakePlaceholder(const UnitId& unit,
                                              const std::string& policy_hash,
                                              int64_t version_step) override;

 protected:
  void OnStart() override;
  void OnKilled() override;

 private:
  absl::Status Open();
  void Post(CoreTurn::Item item);
  void RunTurn();
  void ScheduleWake();

  std::unique_ptr<CoreTurn> turn_;
  std::vector<CoreTurn::Item> queue_;
  bool turn_due_ = false;
  int64_t turns_ = 0;
};

}  // namespace cox::sim

#endif  // COX_TESTS_SIM_COORDINATOR_PROCESS_H_
