#ifndef COX_LEARNER_GRADIENT_SUM_H_
#define COX_LEARNER_GRADIENT_SUM_H_

// The sum of an engine's gradients over the ranks, bucket by bucket, while the
// backward pass goes on for the layers before.
//
// Buckets are neighbouring tensors of the layout. All ranks sum the same ones
// in the same order, the last first, which is how backward passes end: one is
// started when its tensors are ready and those behind it were started. An
// element's sum does not depend on its bucket (lib/comm/collective.h), so the
// bits are those of one sum of everything at the end.

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "lib/base/status.h"
#include "lib/comm/collective.h"
#include "lib/engine/engine.h"

namespace cox {

// 16 MiB.
inline constexpr size_t kGradientBucketFloats = size_t{4} << 20;

class GradientSum {
 public:
  // Adds what else this rank has to floats begin .. begin + count - 1 of the
  // gradients. Called once for each, before their sum is started.
  using AddOwn = std::function<absl::Status(size_t begin, size_t count)>;

  struct Options {
    size_t bucket_floats = kGradientBucketFloats;  // and up to one tensor more
  };
  // For one sum. Everything is borrowed.
  GradientSum(TrainEngine& engine, Collective& group, const Options& options,
              AddOwn add_own);
  // Without Finish() a sum that is under way ends the group, since the other
  // ranks wait for the rest of it.
  ~GradientSum();
  GradientSum(const GradientSum&) = delete;
  GradientSum& operator=(const GradientSum&) = delete;

  // For TrainEngine::OnGradientReady. Errors are Finish()'s.
  void Ready(size_t tensor);
  // Starts what is left and waits for all; what ended the group first.
  absl::Status Finish();

 private:
  struct Bucket {
    size_t begin = 0;  // floats
    size_t count = 0;
    size_t missing = 0;  // tensors that are not ready
  };
  // Sums on a thread of its own, where gradients are in host memory.
  class HostSums;

  void StartNext();  // the bucket before `started_`

  TrainEngine& engine_;
  Collective& group_;
  const AddOwn add_own_;
  std::vector<Bucket> buckets_;
  std::vector<size_t> bucket_of_;  // of each tensor
  size_t started_;                 // buckets_[started_] and all behind it
  absl::Status status_;
  std::unique_ptr<HostSums> host_;
  bool finished_ = false;
};

}  // namespace cox

#endif  // COX_LEARNER_GRADIENT_SUM_H_
