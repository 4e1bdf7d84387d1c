#ifndef COX_LIB_MODEL_DECODE_POOL_H_
#define COX_LIB_MODEL_DECODE_POOL_H_

// What cached decoding keeps from request to request: tensors whose shapes and
// addresses do not change, and with the plugin's functions the decode step on
// them, recorded once as a CUDA graph. A request takes the smallest bucket that
// holds it. The graph ends at the logits, so that one serves every sampling.

#include <compare>
#include <cstdint>
#include <exception>
#include <functional>
#include <map>
#include <memory>

#include "ATen/core/Tensor.h"
#include "lib/gpu/api.h"
#include "lib/model/network.h"
#include "lib/model/static_cache.h"

namespace cox {

// Sizes of a bucket, each rounded up from what a request needs: rows to a power
// of two, positions to a power of two from 64 and beyond 1024 to a multiple of
// it.
struct DecodeSize {
  int64_t slots = 0;
  int64_t positions = 0;  // per slot
  int64_t memory = 0;     // rows that a slot attends across to; 0 = no encoder
  std::strong_ordering operator<=>(const DecodeSize&) const = default;
};
DecodeSize BucketOf(const DecodeSize& need);

// A recorded sequence of launches.
class StepGraph {
 public:
  // Records `body`, which must stay callable; runs nothing.
  StepGraph(const CoxGpuApi* api, std::function<void()> body);
  StepGraph(const StepGraph&) = delete;
  StepGraph& operator=(const StepGraph&) = delete;
  void Replay();

 private:
  struct Delete {
    const CoxGpuApi* api;
    void operator()(void* graph) const { api->graph_delete(graph); }
  };
  static int Call(void* self);  // body_, from C
  void Check(int error);

  const CoxGpuApi* api_;
  std::function<void()> body_;
  std::exception_ptr thrown_;  // by body_
  std::unique_ptr<void, Delete> graph_;
};

class DecodeBucket {
 public:
  struct Storage {
    at::Tensor self, cross;  // flat; of StaticCache
  };
  DecodeBucket(std::shared_ptr<const Network> network,
               const AttentionShape& shape, const DecodeSize& size,
               const Storage& storage, const CoxGpuApi* kernels);
  DecodeBucket(const DecodeBucket&) = delete;
  DecodeBucket& operator=(const DecodeBucket&) = delete;

  // For a new request: all 0, memory lengths 1.
  void Reset();
  // [slots] int64, written in place: the token to decode, where it goes, how
  // many were drawn, the random stream's keys, the least number to draw, the
  // memory's rows.
  at::Tensor ids, positions, steps, prompt_ids, sample_indices, min_new;
  at::Tensor memory_lengths;
  at::Tensor logprobs;  // [slots] float32
  StaticCache& cache() { return *cache_; }
  StaticCache* cross() { return cross_.get(); }  // null without encoder
  int64_t slots() const { return size_.slots; }

  // Decodes `ids` at `positions`; the logits [slots, V] are valid until the
  // next step of any bucket. The first step runs as it is, since libraries
  // choose their kernels then; the next one is recorded.
  const at::Tensor& Step();

 private:
  friend class DecodePool;
  void Compute();

  const std::shared_ptr<const Network> network_;
  const DecodeSize size_;
  const CoxGpuApi* kernels_;
  std::unique_ptr<StaticCache> cache_, cross_;
  std::unique_ptr<StaticDecode> attention_;
  at::Tensor logits_;
  std::unique_ptr<StepGraph> graph_;
  bool warm_ = false;
  int64_t last_use_ = 0;
};

// Logits [rows, V] of final states, float32.
at::Tensor LogitsOf(const Network& network, const at::Tensor& states);

class DecodePool {
 public:
  // `kernels`: null = LibTorch's operators, nothing is recorded.
  explicit DecodePool(const CoxGpuApi* kernels) : kernels_(kernels) {}

  const CoxGpuApi* kernels() const { return kernels_; }
  // The bucket of `need`, valid until the next call. Those of another network
  // are dropped; weights that change in place (Network::Assign) keep them, and
  // so their graphs. All buckets share one storage: one that must grow drops
  // them too. Of more than kMostBuckets the one longest unused is dropped.
  DecodeBucket& Take(const std::shared_ptr<const Network>& network,
                     const AttentionShape& shape, const DecodeSize& need,
                     at::ScalarType type);

 private:
  static constexpr size_t kMostBuckets = 16;

  const CoxGpuApi* kernels_;
  std::shared_ptr<const Network> network_;
  DecodeBucket::Storage storage_;
  std::map<DecodeSize, std::unique_ptr<DecodeBucket>> buckets_;
  int64_t uses_ = 0;
};

}  // namespace cox

#endif  // COX_LIB_MODEL_DECODE_POOL_H_
