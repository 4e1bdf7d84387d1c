#include "learner/gradient_sum.h"

#include <deque>
#include <utility>

#include "lib/base/sync.h"
#include "lib/base/thread.h"

namespace cox {

class GradientSum::HostSums {
 public:
  explicit HostSums(Collective& group)
      : group_(group), thread_("gradient-sum", [this] { Run(); }) {}
  ~HostSums() { Close(); }

  void Push(std::span<float> range) {
    MutexLock lock(&mutex_);
    ranges_.push_back(range);
    changed_.NotifyOne();
  }
  // All that was pushed is summed, or an error has come.
  absl::Status Finish() {
    Close();
    MutexLock lock(&mutex_);
    return status_;
  }

 private:
  void Close() {
    {
      MutexLock lock(&mutex_);
      closed_ = true;
      changed_.NotifyOne();
    }
    thread_.Join();
  }
  void Run() {
    for (;;) {
      std::span<float> range;
      {
        MutexLock lock(&mutex_);
        changed_.WaitFor(mutex_, absl::InfiniteDuration(),
                         [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
                           return closed_ || !ranges_.empty();
                         });
        if (ranges_.empty()) return;
        range = ranges_.front();
        ranges_.pop_front();
      }
      const absl::Status done = group_.AllReduceSum(range);
      if (done.ok()) continue;
      MutexLock lock(&mutex_);
      status_ = done;  // the group is dead
      return;
    }
  }

  Collective& group_;
  Mutex mutex_;
  CondVar changed_;
  std::deque<std::span<float>> ranges_ ABSL_GUARDED_BY(mutex_);
  bool closed_ ABSL_GUARDED_BY(mutex_) = false;
  absl::Status status_ ABSL_GUARDED_BY(mutex_);
  Thread thread_;  // last: it uses the others
};

GradientSum::GradientSum(TrainEngine& engine, Collective& group,
                         const Options& options, AddOwn add_own)
    : engine_(engine), group_(group), add_own_(std::move(add_own)) {
  const Manifest& layout = engine.layout();
  const size_t floats = static_cast<size_t>(layout.arena_bytes / sizeof(float));
  for (const TensorInfo& tensor : layout.tensors) {
    const size_t at = static_cast<size_t>(tensor.offset / sizeof(float));
    if (buckets_.empty() ||
        at - buckets_.back().begin >= options.bucket_floats) {
      // The first one begins before all tensors, whatever their offset.
      buckets_.push_back({.begin = buckets_.empty() ? 0 : at});
    }
    ++buckets_.back().missing;
    bucket_of_.push_back(buckets_.size() - 1);
  }
  size_t end = floats;
  for (size_t b = buckets_.size(); b > 0; --b) {
    Bucket& bucket = buckets_[b - 1];
    bucket.count = end - bucket.begin;
    end = bucket.begin;
  }
  started_ = buckets_.size();
}

GradientSum::~GradientSum() {
  if (!finished_ && started_ < buckets_.size()) group_.Abort();
}

void GradientSum::StartNext() {
  const Bucket& bucket = buckets_[--started_];
  if (!status_.ok()) return;
  status_ = add_own_(bucket.begin, bucket.count);
  if (!status_.ok() || group_.world_size() == 1) return;
  if (DeviceState* device = engine_.device()) {
    status_ = device->StartAllReduce(group_, bucket.begin, bucket.count);
    return;
  }
  const std::span<float> range =
      engine_.Gradients().subspan(bucket.begin, bucket.count);
  if (host_ == nullptr && finished_) {  // there is nothing to overlap with
    status_ = group_.AllReduceSum(range);
    return;
  }
  if (host_ == nullptr) host_ = std::make_unique<HostSums>(group_);
  host_->Push(range);
}

void GradientSum::Ready(size_t tensor) {
  if (group_.world_size() == 1) return;
  --buckets_[bucket_of_[tensor]].missing;
  // The first one waits for Finish(): it is the last to be ready anyway, and
  // PoisonGradient (batching.h) must reach its first element until then.
  while (started_ > 1 && buckets_[started_ - 1].missing == 0) StartNext();
}

absl::Status GradientSum::Finish() {
  finished_ = true;
  while (started_ > 0) StartNext();
  if (!status_.ok()) group_.Abort();  // nobody gets the rest
  if (host_ != nullptr) {
    const absl::Status summed = host_->Finish();
    if (status_.ok()) status_ = summed;
  }
  DeviceState* const device = engine_.device();
  if (status_.ok() && device != nullptr) {
    status_ = device->WaitAllReduce(group_);
  }
  return status_;
}

}  // namespace cox
