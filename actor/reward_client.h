#ifndef COX_ACTOR_REWARD_CLIENT_H_
#define COX_ACTOR_REWARD_CLIENT_H_

// Has the trajectories of a unit scored: rewards and reference log-probs at
// once, from whichever replica answers. Results depend on the sequences and
// the models named, never on the replica.

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "cox/v1/rollout.pb.h"
#include "grpcpp/channel.h"
#include "grpcpp/client_context.h"
#include "lib/base/status.h"
#include "lib/base/sync.h"
#include "lib/data/trajectory.h"
#include "lib/rpc/proto_convert.h"

namespace cox {

struct ScoringWork {
  std::vector<Trajectory>* trajectories = nullptr;  // filled in
  std::vector<std::string> prompt_texts;    // per trajectory; "" = no text
  std::vector<std::string> response_texts;  // per trajectory
  double temperature = 1.0;
};

struct RewardClientOptions {
  std::function<CallerIdentity()> caller;
  // Without a good answer from any replica for this long: UNAVAILABLE. The
  // addresses may be old; a new lease has newer ones.
  absl::Duration patience = absl::Seconds(15);
  // The same when all that was heard is UNAVAILABLE: the replicas of the plan
  // are gone, and one that was restarted listens elsewhere. Not for a foreign
  // server, whose address never changes.
  absl::Duration absence = absl::Milliseconds(500);
  // Sequences per request. Fixed, because a request is one batch of the
  // server: the same unit must be cut in the same way every time.
  size_t sequences_per_request = 64;
};

// Thread-safe.
class RewardClient {
 public:
  explicit RewardClient(RewardClientOptions options)
      : options_(std::move(options)) {}

  // `give_up` is asked between attempts; true ends with CANCELLED.
  // UNAVAILABLE: nobody answered (try the unit again later). Anything else is
  // final: INVALID_ARGUMENT, INTERNAL, DATA_LOSS for answers that make no
  // sense.
  absl::Status ScoreUnit(const cox::v1::ScorePlan& plan,
                         const ScoringWork& work,
                         const std::function<bool()>& give_up);

 private:
  struct Part {  // of a unit: sequences [begin, end)
    size_t begin = 0;
    size_t end = 0;
  };
  using Attempt = std::function<grpc::Status(
      const std::shared_ptr<grpc::Channel>&, grpc::ClientContext*)>;

  absl::Status Rewards(const std::vector<std::string>& addresses,
                       absl::Duration absence,
                       const cox::v1::ScoreRequest& prototype,
                       const ScoringWork& work,
                       const std::function<bool()>& give_up,
                       std::vector<cox::v1::SequenceScore>* scores);
  absl::Status References(const cox::v1::ScorePlan& plan,
                          const ScoringWork& work,
                          const std::function<bool()>& give_up,
                          std::vector<cox::v1::SequenceLogprobs>* logprobs);
  // Attempts at one address after the other until one is OK.
  absl::Status CallAny(std::string_view method,
                       const std::vector<std::string>& addresses,
                       absl::Duration absence, size_t first,
                       const std::function<bool()>& give_up,
                       const Attempt& attempt);
  absl::StatusOr<std::shared_ptr<grpc::Channel>> ChannelTo(
      const std::string& address);
  std::vector<Part> Cut(size_t sequences) const;

  const RewardClientOptions options_;
  Mutex mutex_;
  std::map<std::string, std::shared_ptr<grpc::Channel>> channels_
      ABSL_GUARDED_BY(mutex_);
};

}  // namespace cox

#endif  // COX_ACTOR_REWARD_CLIENT_H_
