#ifndef COX_LIB_ALGO_ROLLOUT_H_
#define COX_LIB_ALGO_ROLLOUT_H_

// From generated tokens and scores to token rewards (docs/algorithms.md §1,
// §4, §5, §5.1, §5.2, §6).

#include <cstdint>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

#include "lib/algo/shape.h"
#include "lib/data/trajectory.h"  // FinishReason

namespace cox {

// Exclusive cumulative sum of the mask, [B, T]; first real token = 0.
absl::StatusOr<std::vector<int64_t>> PositionIds(Shape2 shape, Mask mask);

struct CutOptions {
  std::vector<int64_t> stop_ids = {};
  int64_t pad_id = 0;          // must not be a stop id
  int64_t min_stop_index = 0;  // earlier stop tokens do not stop
};
struct CutResult {
  std::vector<int64_t> tokens;  // [B, T], PAD after the cut
  std::vector<uint8_t> mask;    // [B, T], 1 up to and including the stop token
  std::vector<int64_t> length;  // [B]
  std::vector<FinishReason> finish;  // [B], kStop or kLength
};
absl::StatusOr<CutResult> CutResponse(Shape2 shape,
                                      std::span<const int64_t> tokens,
                                      const CutOptions& options);

// §5.1, with δ = logprob − ref_logprob: k1 = δ, k2 = δ²/2, k3 = e^{−δ} − 1 + δ.
enum class KlKind { kK1, kK2, kK3 };
absl::StatusOr<KlKind> ParseKlKind(std::string_view name);  // "k1", ...

// Value and derivative with respect to logprob of one token. `clamp` (k3
// only): −δ to ±20, result to 10, zero derivative outside.
struct KlTerm {
  double value = 0;
  double grad = 0;
};
KlTerm KlOfToken(KlKind kind, double delta, bool clamp = false);

template <typename T>
struct KlEstimated {
  std::vector<T> kl;        // [B, T]
  std::vector<double> sum;  // [B]
  double mean = 0;          // over mask 1 tokens
  std::vector<T> grad;      // [B, T], ∂kl/∂logprob
};
template <typename T>
absl::StatusOr<KlEstimated<T>> EstimateKl(Shape2 shape,
                                          std::span<const T> logprob,
                                          std::span<const T> ref_logprob,
                                          Mask mask, KlKind kind,
                                          bool clamp = false);

enum class ScorePosition { kLast, kAfterLast };
absl::StatusOr<ScorePosition> ParseScorePosition(std::string_view name);
enum class MissingStop { kNone, kReplace, kSubtract };
absl::StatusOr<MissingStop> ParseMissingStop(std::string_view name);

// The score after the missing-stop penalty (replace: −value; subtract:
// score − value) and the clip to ±score_clip, in this order.
// kAbort counts as missing the stop token.
double ShapeScore(double score, FinishReason finish, MissingStop mode,
                  double penalty, std::optional<double> score_clip);

struct ShapeRewardsOptions {
  double beta = 0;  // >= 0
  KlKind kl = KlKind::kK1;
  ScorePosition position = ScorePosition::kLast;
  MissingStop missing_stop = MissingStop::kNone;
  double missing_stop_value = 1;
  std::optional<double> score_clip = std::nullopt;  // >= 0
};
template <typename T>
struct RewardInput {
  Shape2 shape;
  std::span<const T> logprob;      // proximal, [B, T]
  std::span<const T> ref_logprob;  // [B, T]
  Mask mask;
  std::span<const T> scores;             // [B]; rows without mask: not read
  std::span<const FinishReason> finish;  // [B]; empty = all kStop
};
template <typename T>
struct ShapedRewards {
  std::vector<T> rewards;           // [B, T]: −β·kl, plus the placed score
  std::vector<double> kl_sum;       // [B]
  std::vector<uint8_t> value_mask;  // [B, T]: mask, plus the extra position of
                                    // kAfterLast
};
// kLast places the score on the last mask 1 of the row, kAfterLast on the next
// index if there is one. A row without mask gets nothing.
template <typename T>
absl::StatusOr<ShapedRewards<T>> ShapeRewards(
    const RewardInput<T>& input, const ShapeRewardsOptions& options);

// r ← gain·r + bias (§4). kBias: mean 0. kGain: mean 0 and std 1 (ddof 1).
enum class NormalizeMode { kBias, kGain };
struct RewardNormalizer {
  double gain = 1;
  double bias = 0;
  double Apply(double score) const { return gain * score + bias; }
};
// INVALID_ARGUMENT ("scores"): empty, non-finite, or for kGain fewer than two
// or all equal.
absl::StatusOr<RewardNormalizer> FitRewardNormalizer(
    std::span<const double> scores, NormalizeMode mode);

// DAPO's soft penalty (§6): 0 up to l_max − l_cache, linear to −1 at l_max,
// −1 beyond. l_cache > 0.
absl::StatusOr<double> OverlongPenalty(int64_t length, int64_t l_max,
                                       int64_t l_cache);

// 1 for rows whose group has at least two different metric values (§6).
absl::StatusOr<std::vector<uint8_t>> DynamicFilter(
    std::span<const double> metric, std::span<const int64_t> group);

// β of the KL penalty (§5.2). Update() wants the batch mean over ALL ranks of
// the per-sequence sum of k1, and the number of episodes in the global batch.
class KlController {
 public:
  static absl::StatusOr<KlController> Fixed(double beta);
  // target > 0, horizon > 0.
  static absl::StatusOr<KlController> Adaptive(double beta, double target,
                                               double horizon);
  double beta() const { return beta_; }
  // For restoring a checkpoint.
  void set_beta(double beta) { beta_ = beta; }
  // INVALID_ARGUMENT ("kl", "n") if not finite or n < 0.
  absl::Status Update(double kl, double n);

 private:
  KlController(bool adaptive, double beta, double target, double horizon)
      : adaptive_(adaptive), beta_(beta), target_(target), horizon_(horizon) {}
  bool adaptive_;
  double beta_;
  double target_;
  double horizon_;
};

}  // namespace cox

#endif  // COX_LIB_ALGO_ROLLOUT_H_
