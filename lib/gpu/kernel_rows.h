#ifndef COX_LIB_GPU_KERNEL_ROWS_H_
#define COX_LIB_GPU_KERNEL_ROWS_H_

// What a Block (block.h) of each kernel does with its row of a call of api.h.
// kernels.cu launches these; tests/gpu/host_gpu.h calls them on host memory.

#include "lib/gpu/api.h"
#include "lib/gpu/kernel_math.h"
#include "lib/gpu/sample_math.h"

namespace cox::gpu {

template <typename Block>
COX_HD void DrawRow(const Block& block, const CoxGpuSample& batch,
                    int64_t row) {
  float* logits = batch.device_logits + row * batch.vocab;
  const int64_t step = batch.device_steps[row];
  for (int64_t i = block.rank(); i < batch.forbidden; i += block.threads()) {
    logits[batch.device_forbidden[i]] = -INFINITY;
  }
  if (step < batch.device_min_new[row]) {
    for (int64_t i = block.rank(); i < batch.eos; i += block.threads()) {
      logits[batch.device_eos[i]] = -INFINITY;
    }
  }
  block.Sync();
  SampleArgs args;
  args.vocab = batch.vocab;
  args.temperature = batch.temperature;
  args.top_k = batch.top_k;
  args.top_p = batch.top_p;
  args.min_p = batch.min_p;
  args.uniform =
      Uniform(batch.seed, batch.device_prompt_ids[row],
              batch.device_sample_indices[row], static_cast<uint64_t>(step));
  const Sampled drawn = Sample(block, logits, args);
  if (block.rank() == 0) {
    batch.device_tokens[row] = drawn.valid ? drawn.token : -1;
    batch.device_logprobs[row] = static_cast<float>(drawn.logprob);
  }
}

template <typename T, typename Block>
COX_HD void RotaryCacheRow(const Block& block, const CoxGpuRotaryCache& a,
                           int64_t row) {
  const int64_t kv_width = a.kv_heads * a.head_dim;
  RotaryRow<T> r;
  r.q = static_cast<T*>(a.device_q) + row * a.heads * a.head_dim;
  r.k = static_cast<const T*>(a.device_k) + row * kv_width;
  r.v = static_cast<const T*>(a.device_v) + row * kv_width;
  const bool rotary = a.device_cos != nullptr;
  r.cos = rotary ? a.device_cos + row * a.head_dim : nullptr;
  r.sin = rotary ? a.device_sin + row * a.head_dim : nullptr;
  r.heads = rotary ? a.heads : 0;
  r.slot = row;
  r.position = a.device_positions[row];
  const CacheView<T> cache = {static_cast<T*>(a.device_keys),
                              static_cast<T*>(a.device_values), a.kv_heads,
                              a.capacity, a.head_dim};
  RotateAndCache(block, r, cache);
}

// One query head; `scores` [capacity] is shared by the block's threads.
template <typename T, typename Block>
COX_HD void AttendRow(const Block& block, const CoxGpuAttend& a, int64_t row,
                      int64_t head, float* scores) {
  const int64_t kv_head = head / (a.heads / a.kv_heads);
  const int64_t base = (row * a.kv_heads + kv_head) * a.capacity * a.head_dim;
  const int64_t at = (row * a.heads + head) * a.head_dim;
  AttendArgs<T> args;
  args.q = static_cast<const T*>(a.device_q) + at;
  args.keys = static_cast<const T*>(a.device_keys) + base;
  args.values = static_cast<const T*>(a.device_values) + base;
  args.length = a.device_positions[row] + 1;
  args.head_dim = a.head_dim;
  args.scale = a.scale;
  args.scores = scores;
  args.out = static_cast<T*>(a.device_out) + at;
  AttendHead(block, args);
}

COX_HD void AdamAt(const CoxGpuAdam& a, int64_t i) {
  Bf16* copy = static_cast<Bf16*>(a.device_bf16);
  AdamElement(a, a.device_gradients[i], &a.device_parameters[i], &a.device_m[i],
              &a.device_v[i], copy == nullptr ? nullptr : &copy[i]);
}

}  // namespace cox::gpu

#endif  // COX_LIB_GPU_KERNEL_ROWS_H_
