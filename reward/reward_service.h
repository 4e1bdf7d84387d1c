#ifndef COX_REWARD_REWARD_SERVICE_H_
#define COX_REWARD_REWARD_SERVICE_H_

// RewardService and ReferenceService over an EngineDriver. Handlers check and
// enqueue; the answer is made in the driver's thread.

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>

#include "cox/v1/reward.grpc.pb.h"
#include "lib/base/sync.h"
#include "reward/engine_driver.h"
#include "reward/reward_core.h"

namespace cox {

// What handlers work with, known only after the replica has registered.
struct RewardBackend {
  std::string run_id;  // "" = any caller
  RewardRules rules;
  EngineDriver* driver = nullptr;
};

// Shared by both services. Thread-safe.
class RewardBackendHolder {
 public:
  // UNAVAILABLE handlers until then. `backend.driver` must outlive the server.
  void Attach(RewardBackend backend);
  std::shared_ptr<const RewardBackend> Get() const;  // null before Attach
  std::string run_id() const;

  std::atomic<uint64_t> sequences_scored{0};
  std::atomic<uint64_t> sequences_excluded{0};
  std::atomic<uint64_t> sequences_referenced{0};
  std::atomic<uint64_t> requests_refused{0};

 private:
  mutable Mutex mutex_;
  // Shared because a handler may still use it in the driver's thread.
  std::shared_ptr<const RewardBackend> backend_ ABSL_GUARDED_BY(mutex_);
};

// Thread-safe. `holder` must outlive the server.
class RewardServiceImpl final : public cox::v1::RewardService::CallbackService {
 public:
  explicit RewardServiceImpl(RewardBackendHolder* holder) : holder_(holder) {}
  grpc::ServerUnaryReactor* Score(grpc::CallbackServerContext* context,
                                  const cox::v1::ScoreRequest* request,
                                  cox::v1::ScoreResponse* response) override;

 private:
  RewardBackendHolder* const holder_;
};

class ReferenceServiceImpl final
    : public cox::v1::ReferenceService::CallbackService {
 public:
  explicit ReferenceServiceImpl(RewardBackendHolder* holder)
      : holder_(holder) {}
  grpc::ServerUnaryReactor* Logprobs(
      grpc::CallbackServerContext* context,
      const cox::v1::LogprobsRequest* request,
      cox::v1::LogprobsResponse* response) override;

 private:
  RewardBackendHolder* const holder_;
};

}  // namespace cox

#endif  // COX_REWARD_REWARD_SERVICE_H_
