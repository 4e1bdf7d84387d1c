#include "lib/model/decode_pool.h"

#include <algorithm>
#include <bit>
#include <exception>
#include <utility>

#include "ATen/ops/empty.h"
#include "ATen/ops/zeros.h"
#include "lib/model/kernels.h"
#include "lib/model/linear.h"

namespace cox {
namespace {

constexpr int64_t kLeastPositions = 64;
constexpr int64_t kPositionBlock = 1024;

int64_t PowerOfTwo(int64_t n) {
  return static_cast<int64_t>(std::bit_ceil(static_cast<uint64_t>(n)));
}
int64_t PositionsFor(int64_t n) {
  return n > kPositionBlock ? RoundUp(n, kPositionBlock)
                            : PowerOfTwo(std::max(n, kLeastPositions));
}

}  // namespace

DecodeSize BucketOf(const DecodeSize& need) {
  return {PowerOfTwo(need.slots), PositionsFor(need.positions),
          need.memory == 0 ? 0 : PositionsFor(need.memory)};
}

StepGraph::StepGraph(const CoxGpuApi* api, std::function<void()> body)
    : api_(api), body_(std::move(body)), graph_(api->graph_new(), {api}) {
  TORCH_CHECK(graph_ != nullptr, "CUDA graph: ", api_->graph_error());
  Check(api_->graph_record(graph_.get(), &StepGraph::Call, this));
}

void StepGraph::Replay() { Check(api_->graph_replay(graph_.get())); }

// No exception passes through C.
int StepGraph::Call(void* self) {
  StepGraph* graph = static_cast<StepGraph*>(self);
  try {
    graph->body_();
    return 0;
  } catch (...) {
    graph->thrown_ = std::current_exception();
    return 1;
  }
}

void StepGraph::Check(int error) {
  if (error == 0) return;
  if (thrown_ != nullptr) std::rethrow_exception(std::exchange(thrown_, {}));
  TORCH_CHECK(false, "CUDA graph: ", api_->graph_error());
}

at::Tensor LogitsOf(const Network& network, const at::Tensor& states) {
  const at::Tensor& head = network.head_weight();
  return MatMul(states.to(head.scalar_type()), head.t(), network.head_bias());
}

DecodeBucket::DecodeBucket(std::shared_ptr<const Network> network,
                           const AttentionShape& shape, const DecodeSize& size,
                           const Storage& storage, const CoxGpuApi* kernels)
    : network_(std::move(network)), size_(size), kernels_(kernels) {
  const auto index = at::TensorOptions(network_->device()).dtype(at::kLong);
  for (at::Tensor* values : {&ids, &positions, &steps, &prompt_ids,
                             &sample_indices, &min_new, &memory_lengths}) {
    *values = at::zeros({size.slots}, index);
  }
  logprobs = at::zeros({size.slots}, index.dtype(at::kFloat));
  KvCache::Size own = {network_->config().layers, size.slots, size.positions};
  cache_ = std::make_unique<StaticCache>(shape, own, storage.self);
  if (size.memory > 0) {
    own.positions = size.memory;
    cross_ = std::make_unique<StaticCache>(shape, own, storage.cross);
  }
  attention_ = std::make_unique<StaticDecode>(
      shape, StaticDecode::Parts{.cache = cache_.get(),
                                 .positions = positions,
                                 .cross = cross_.get(),
                                 .memory_lengths = memory_lengths,
                                 .kernels = kernels});
}

void DecodeBucket::Reset() {
  for (at::Tensor* values : {&ids, &positions, &steps, &prompt_ids,
                             &sample_indices, &min_new, &logprobs}) {
    values->zero_();
  }
  memory_lengths.fill_(1);
}

void DecodeBucket::Compute() {
  logits_ = LogitsOf(
      *network_, network_->Decode({ids, positions}, at::Tensor(), *attention_));
}

const at::Tensor& DecodeBucket::Step() {
  if (kernels_ == nullptr || !warm_) {
    Compute();
    warm_ = true;
    return logits_;
  }
  if (graph_ == nullptr) {
    graph_ = std::make_unique<StepGraph>(kernels_, [this] { Compute(); });
  }
  graph_->Replay();
  return logits_;
}

DecodeBucket& DecodePool::Take(const std::shared_ptr<const Network>& network,
                               const AttentionShape& shape,
                               const DecodeSize& need, at::ScalarType type) {
  if (network != network_) {
    buckets_.clear();
    storage_ = DecodeBucket::Storage();
    network_ = network;
  }
  const DecodeSize size = BucketOf(need);
  // Zeros, so that what operators multiply by 0 is finite.
  const auto grow = [&](at::Tensor& storage, int64_t positions) {
    const KvCache::Size own = {network->config().layers, size.slots, positions};
    const int64_t elements = StaticCache::Elements(shape, own);
    if (storage.defined() && storage.numel() >= elements) return;
    buckets_.clear();
    storage = at::Tensor();  // free before the larger one is made
    storage =
        at::zeros({elements}, at::TensorOptions(network->device()).dtype(type));
  };
  grow(storage_.self, size.positions);
  if (size.memory > 0) grow(storage_.cross, size.memory);
  if (kernels_ == nullptr) {
    storage_.self.zero_();
    if (storage_.cross.defined()) storage_.cross.zero_();
  }
  std::unique_ptr<DecodeBucket>& bucket = buckets_[size];
  if (bucket == nullptr) {
    bucket = std::make_unique<DecodeBucket>(network, shape, size, storage_,
                                            kernels_);
  }
  bucket->last_use_ = ++uses_;
  DecodeBucket& taken = *bucket;
  if (buckets_.size() > kMostBuckets) {
    buckets_.erase(std::min_element(
        buckets_.begin(), buckets_.end(), [](const auto& a, const auto& b) {
          return a.second->last_use_ < b.second->last_use_;
        }));
  }
  taken.Reset();
  return taken;
}

}  // namespace cox
