#ifndef COX_LIB_RPC_COORDINATOR_CLIENT_H_
#define COX_LIB_RPC_COORDINATOR_CLIENT_H_

// A role's connection to the coordinator: one blocking method per RPC.
//
// Every method fills in the caller, sets the deadline of lib/rpc/limits.h,
// and, where the table allows it, tries again with backoff and jitter after
// UNAVAILABLE or DEADLINE_EXCEEDED until `patience` has passed without an
// answer. A coordinator that restarted knows no sessions: NOT_FOUND or
// FAILED_PRECONDITION from a newer epoch makes the client register again and
// repeat the call. The address is resolved again at every reconnection.
//
// Errors that all methods share: UNAVAILABLE (patience is over; exit 42),
// CANCELLED (StopWaiting was called during a wait), PERMISSION_DENIED (other
// run), FAILED_PRECONDITION with ErrorReason::kStaleGeneration (learners), and
// whatever the coordinator answers. Thread-safe.
//
//   CoordinatorClient client({.address = "file:/runs/a/endpoints.json",
//                             .role = "actor", .name = "actor-0",
//                             .own_address = server->address()});
//   COX_ASSIGN_OR_RETURN(v1::RegisterResponse run, client.Register());
//   COX_ASSIGN_OR_RETURN(v1::Assignment a,
//                        client.GetAssignment(0, absl::Seconds(10)));

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/time/time.h"
#include "cox/v1/checkpoint.pb.h"
#include "cox/v1/experience.pb.h"
#include "cox/v1/rollout.pb.h"
#include "cox/v1/run.pb.h"
#include "cox/v1/version.pb.h"
#include "lib/base/ids.h"
#include "lib/base/status.h"
#include "lib/rpc/proto_convert.h"

namespace cox {

struct CoordinatorClientOptions {
  std::string address;         // see ResolveEndpoint()
  std::string run_id;          // "" = learn it from the first Register
  std::string role;            // "actor", "reward", "learner", ...
  std::string name;            // "actor-0"
  std::string session;         // "" = draw one
  std::string own_address;     // this process's gRPC host:port; "" = none
  std::string numerics_class;  // "" = no engine (yet)
  int32_t rank = 0;            // learners
  // Until Register has told the run's limits.
  absl::Duration patience = absl::Seconds(120);
  absl::Duration max_backoff = absl::Seconds(2);
};

struct FetchedFile {
  std::string bytes;
  std::string sha256;  // of `bytes`, hex
};

struct SubmitUnitOptions {
  UnitId unit;
  int64_t attempt = 0;
  std::string policy_hash;
  std::string payload;  // SerializeUnit()
};
enum class SubmitOutcome { kAccepted, kDuplicate, kAlreadyConsumed };

struct TakenBatch {
  std::vector<std::pair<UnitId, std::string>> units;  // payload, verified
  std::string batch_sha256;                           // as the ledger has it
  std::optional<double> kl_coef;  // an operator's, from this step on
};

class CoordinatorClient {
 public:
  explicit CoordinatorClient(CoordinatorClientOptions options);
  ~CoordinatorClient();
  CoordinatorClient(const CoordinatorClient&) = delete;
  CoordinatorClient& operator=(const CoordinatorClient&) = delete;

  // --- RunService
  // First call. May be repeated, e.g. after set_numerics_class.
  absl::StatusOr<cox::v1::RegisterResponse> Register();
  // `caller` need not be set. One attempt: the next beat is the retry.
  absl::StatusOr<cox::v1::HeartbeatResponse> Heartbeat(
      cox::v1::HeartbeatRequest request);
  absl::StatusOr<cox::v1::Assignment> GetAssignment(int64_t known_serial,
                                                    absl::Duration wait);
  // Sets the generation of later calls when `ready`.
  absl::StatusOr<cox::v1::JoinGroupResponse> JoinGroup(
      int32_t rank, int32_t world_size, const std::string& rendezvous,
      absl::Duration wait);
  absl::Status Drain(const std::string& reason);
  absl::StatusOr<FetchedFile> FetchFile(const std::string& name);

  // --- RolloutService
  absl::StatusOr<cox::v1::LeaseUnitsResponse> LeaseUnits(int32_t max_units,
                                                         absl::Duration wait);
  // Per unit, in order: still held by this session.
  absl::StatusOr<std::vector<bool>> RenewLease(
      const std::vector<UnitId>& units);
  absl::StatusOr<SubmitOutcome> SubmitUnit(const SubmitUnitOptions& options);
  // `failed`: why no result of them could be made or was accepted; "" = they
  // are returned for other reasons.
  absl::Status ReturnUnits(const std::vector<UnitId>& units,
                           const std::string& failed = "");

  // --- ExperienceService
  // UNAVAILABLE with ErrorReason::kNotReady: alive, batch not complete after
  // `wait`; ask again. DATA_LOSS: a payload does not hash to its header.
  absl::StatusOr<TakenBatch> TakeBatch(int32_t stage, int64_t step,
                                       int32_t rank, absl::Duration wait);
  // True = had been committed before, with equal hashes (replay).
  absl::StatusOr<bool> CommitStep(cox::v1::CommitStepRequest request);

  // --- VersionService
  // Takes ref (model, version, content_hash) and manifest from `source`;
  // `address` is the publisher's WeightService.
  absl::Status PublishVersion(const VersionSource& source,
                              const std::string& address);
  // Calls `on_target` in this thread for the current target of `model` and
  // every later one, until it returns false. Reconnects by itself.
  absl::Status WatchVersions(
      const std::string& model,
      const std::function<bool(const VersionSource&)>& on_target);
  // `damaged`: what was wrong with a version that is not held any more.
  absl::Status ReportHeld(const std::vector<std::string>& content_hashes,
                          const std::string& address,
                          const std::string& damaged = "");

  // --- CheckpointService
  // The directory's final path; write to <path>.tmp and rename.
  absl::StatusOr<std::string> BeginCheckpoint(int32_t stage, int64_t step);
  // Returns directories to delete.
  absl::StatusOr<std::vector<std::string>> CommitCheckpoint(
      const cox::v1::CheckpointRef& checkpoint, const std::string& weight_hash,
      const std::string& state_sha256);
  // Newest first; `stage` -1 = any.
  absl::StatusOr<std::vector<cox::v1::CheckpointRef>> LatestCheckpoint(
      int32_t stage);

  // --- This process
  CallerIdentity caller() const;  // with what was learned: run id, epoch
  void set_generation(Generation generation);
  void set_numerics_class(std::string numerics_class);
  void set_own_address(std::string own_address);
  // Long polls, retries and WatchVersions end with CANCELLED, now and later;
  // other calls still get one short chance (Drain, ReturnUnits).
  void StopWaiting();

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace cox

#endif  // COX_LIB_RPC_COORDINATOR_CLIENT_H_
