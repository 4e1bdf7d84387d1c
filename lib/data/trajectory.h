#ifndef COX_LIB_DATA_TRAJECTORY_H_
#define COX_LIB_DATA_TRAJECTORY_H_

// One sampled response with everything learning needs, and the bytes in which
// the trajectories of a unit travel and are stored.

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "lib/base/ids.h"
#include "lib/base/status.h"

namespace cox {

enum class FinishReason : uint8_t {
  kStop = 0,    // a stop token, or the token that completes a stop string,
                // which is the last of response_ids
  kLength = 1,  // max_new_tokens
  kAbort = 2,   // given up: never trained on
};

// "stop", "length", "abort".
std::string_view FinishReasonName(FinishReason reason);

struct Trajectory {
  TrajectoryId id;
  uint64_t prompt_id = 0;  // the prompt's number in its dataset
  // Decoder input; for an encoder-decoder only the decoder's own start, with
  // the prompt in instruction_ids (empty otherwise).
  std::vector<int32_t> prompt_ids;
  std::vector<int32_t> instruction_ids;
  std::vector<int32_t> response_ids;
  // One per response token, or empty where not computed. Natural logarithm,
  // of the distribution sampled from (behaviour) or of the frozen model.
  std::vector<float> behaviour_logprobs;
  std::vector<float> reference_logprobs;
  FinishReason finish = FinishReason::kStop;
  std::optional<double> reward_total;  // absent until scored; never NaN
  std::vector<std::pair<std::string, double>> reward_parts;  // name, value
  std::string policy_hash;  // of the version's content
  PolicyVersion version;    // that sampled it

  bool operator==(const Trajectory&) const = default;
  // INVALID_ARGUMENT: list lengths that differ, values that are not finite,
  // negative ids, an identity out of range, or a size above the bounds of
  // SerializeUnit.
  absl::Status Validate() const;
};

// Bounds of the format; a decoder rejects what exceeds them before it
// allocates.
inline constexpr size_t kMaxUnitTrajectories = 65536;
inline constexpr size_t kMaxTrajectoryTokens = 1 << 20;  // per list
inline constexpr size_t kMaxUnitBytes = size_t{1} << 30;

// Canonical bytes of a unit's trajectories: equal trajectories give equal
// bytes on every host, and nothing of host, time or attempt is in them, so the
// SHA-256 of the bytes identifies the unit's result.
//
// Format, little-endian: "COXTRAJ1", u32 count, then per trajectory
//   i32 stage, i64 step, i32 index, i32 prompt, i32 sample, u64 prompt_id,
//   u8 finish, i32 version.stage, i64 version.step, string policy_hash,
//   i32 list prompt_ids, instruction_ids, response_ids,
//   f32 list behaviour_logprobs, reference_logprobs,
//   u8 has_reward, f64 reward_total (0 when absent),
//   u32 count, then string name and f64 value per reward part,
// where a list or string is a u32 count and its elements.
//
// INVALID_ARGUMENT when a trajectory fails Validate(), the ids are not
// strictly ascending, or the unit is too large.
absl::StatusOr<std::string> SerializeUnit(
    const std::vector<Trajectory>& trajectories);

// DATA_LOSS, with the byte offset, for anything SerializeUnit cannot have
// written: truncation, trailing bytes, sizes or values out of bounds.
absl::StatusOr<std::vector<Trajectory>> ParseUnit(std::string_view bytes);

// SHA-256 of the canonical bytes.
std::string UnitResultHash(std::string_view serialized);

}  // namespace cox

#endif  // COX_LIB_DATA_TRAJECTORY_H_
