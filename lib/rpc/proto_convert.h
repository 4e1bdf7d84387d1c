#ifndef COX_LIB_RPC_PROTO_CONVERT_H_
#define COX_LIB_RPC_PROTO_CONVERT_H_

// Between domain types and the messages of cox.v1. A proto is a wire format:
// what comes in is checked here, errors are INVALID_ARGUMENT with the field.

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "cox/v1/reward.pb.h"
#include "cox/v1/types.pb.h"
#include "lib/base/ids.h"
#include "lib/base/status.h"
#include "lib/data/trajectory.h"

namespace cox {

// Who calls; goes into every request.
struct CallerIdentity {
  std::string run_id;
  std::string session;  // 32 hex digits
  std::string role;
  std::string name;
  Epoch epoch;
  Generation generation;
};

// 32 random hex digits.
std::string NewSessionId();

void ToProto(const CallerIdentity& caller, cox::v1::Caller* proto);
CallerIdentity FromProto(const cox::v1::Caller& proto);

void ToProto(const UnitId& unit, cox::v1::UnitId* proto);
absl::StatusOr<UnitId> FromProto(const cox::v1::UnitId& proto);

void ToProto(const PolicyVersion& version, cox::v1::PolicyVersion* proto);
absl::StatusOr<PolicyVersion> FromProto(const cox::v1::PolicyVersion& proto);

// A version of a model and where to fetch it.
// Of a version's publisher: it also sends over NCCL (lib/rpc/weight_groups.h).
struct WeightGroupOffer {
  std::string address;  // "" = it does not
  int64_t generation = 0;
  int32_t actors = 0;  // alive now; 0 = unknown
};

struct VersionSource {
  std::string model;  // "policy", "reward", "reference"
  PolicyVersion version;
  std::string content_hash;            // 64 hex digits
  std::string manifest;                // canonical text
  std::vector<std::string> addresses;  // WeightService, preferred first
  std::vector<float> canary =
      {};  // the publisher's CanaryLogprobs(); {} = none
  WeightGroupOffer group = {};
};
void ToProto(const VersionSource& source, cox::v1::VersionSource* proto);
absl::StatusOr<VersionSource> FromProto(const cox::v1::VersionSource& proto);

// A trajectory as the reward services see it. `prompt_text` and
// `response_text` stay empty without a tokenizer.
void ToProto(const Trajectory& trajectory, std::string_view prompt_text,
             std::string_view response_text, cox::v1::ScoredSequence* proto);

// Copies a reward service's answer into `trajectory`: total (absent when not
// scored) and parts. INVALID_ARGUMENT for values that are not finite.
absl::Status ApplyScore(const cox::v1::SequenceScore& score,
                        Trajectory* trajectory);
// Copies reference log-probs. INVALID_ARGUMENT unless there is one finite
// value <= 0 per response token.
absl::Status ApplyLogprobs(const cox::v1::SequenceLogprobs& logprobs,
                           Trajectory* trajectory);

// Pieces of a byte stream: `data` cut into chunks of at most kChunkBytes, each
// with offset and XXH3. At least one chunk, so that an empty file has one too.
cox::v1::Chunk MakeChunk(uint64_t offset, std::string_view data);
size_t ChunkCount(uint64_t bytes);

// Appends a chunk that must continue `bytes` and hash right. DATA_LOSS or
// INVALID_ARGUMENT (out of order, larger than a chunk, beyond `max_bytes`).
absl::Status AppendChunk(const cox::v1::Chunk& chunk, uint64_t max_bytes,
                         std::string* bytes);

// True for 64 lower-case hex digits.
bool IsSha256Hex(std::string_view text);

}  // namespace cox

#endif  // COX_LIB_RPC_PROTO_CONVERT_H_
