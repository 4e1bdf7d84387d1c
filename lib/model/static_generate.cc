#include "lib/model/static_generate.h"

#include <algorithm>
#include <numeric>

#include "absl/strings/str_cat.h"
#include "lib/engine/generate_rows.h"
#include "lib/gpu/api.h"
#include "lib/model/static_cache.h"

namespace cox {
namespace {

at::Tensor Ids(const std::vector<int64_t>& values, at::Device device) {
  return IndexTensor(values).to(device);
}

// Into the first slots.
void CopyTo(const std::vector<int64_t>& values, at::Tensor* slots) {
  slots->narrow(0, 0, static_cast<int64_t>(values.size()))
      .copy_(IndexTensor(values));
}

class StaticGeneration {
 public:
  StaticGeneration(const TorchModel& model, const GenerateRequest& request,
                   DecodePool* pool)
      : request_(request),
        network_(model.PassNetwork()),
        shape_(ShapeOf(model.config(), model.options().fused_attention)),
        device_(DeviceOf(model.options())),
        kernels_(pool->kernels()),
        rows_(request),
        order_(request.prompts.size()) {
    std::iota(order_.begin(), order_.end(), size_t{0});
    std::stable_sort(order_.begin(), order_.end(), [&](size_t a, size_t b) {
      return request.prompts[a].size() < request.prompts[b].size();
    });
    for (size_t row : order_) {
      lengths_.push_back(static_cast<int64_t>(request.prompts[row].size()));
    }
    DecodeSize need;
    need.slots = static_cast<int64_t>(order_.size());
    need.positions = lengths_.back() + request.max_new_tokens;
    if (model.config().family == ModelFamily::kInstructEncdec) {
      memories_ = FindMemories(request.instructions, order_);
      need.memory = memories_.lengths.back();
    }
    const bool bf16 = model.options().dtype == "bf16";
    bucket_ =
        &pool->Take(network_, shape_, need, bf16 ? at::kBFloat16 : at::kFloat);
    FillBucket();
  }

  absl::StatusOr<GenerateResult> Run() {
    COX_RETURN_IF_ERROR(Prefill());
    while (!Done()) {
      COX_RETURN_IF_ERROR(Draw(bucket_->Step()));
      bucket_->positions.add_(1);
    }
    return rows_.Take();
  }

 private:
  bool Done() const {
    for (size_t row : order_) {
      if (!rows_.finished(static_cast<int64_t>(row))) return false;
    }
    return true;
  }

  // What needs the host's sampler: text, context or a forced token.
  bool SamplesOnDevice() const {
    return kernels_ != nullptr && request_.lengths.empty() &&
           request_.sampling.repetition_penalty == 1.0;
  }

  // Slots past the last row repeat token 0 from position 0.
  void FillBucket() {
    CopyTo(lengths_, &bucket_->positions);
    std::vector<int64_t> memory;
    for (const int64_t m : memories_.of_slot) {
      memory.push_back(memories_.lengths[static_cast<size_t>(m)]);
    }
    CopyTo(memory, &bucket_->memory_lengths);
    if (!SamplesOnDevice()) return;
    std::vector<int64_t> prompts, samples;
    for (size_t row : order_) {
      prompts.push_back(static_cast<int64_t>(request_.prompt_ids[row]));
      samples.push_back(static_cast<int64_t>(request_.sample_indices[row]));
    }
    CopyTo(prompts, &bucket_->prompt_ids);
    CopyTo(samples, &bucket_->sample_indices);
    bucket_->min_new.fill_(request_.sampling.min_new_tokens);
    forbidden_ = Ids(request_.sampling.forbid_ids, device_);
    eos_ = Ids(request_.sampling.eos_ids, device_);
  }

  // The given rows of the request, one after the other.
  TokenRows Packed(const std::vector<std::vector<int32_t>>& sequences,
                   const std::vector<size_t>& which) const {
    std::vector<int64_t> ids, positions;
    for (size_t row : which) {
      for (size_t j = 0; j < sequences[row].size(); ++j) {
        ids.push_back(sequences[row][j]);
        positions.push_back(static_cast<int64_t>(j));
      }
    }
    return {IndexTensor(ids), IndexTensor(positions)};
  }

  absl::Status Prefill() {
    at::Tensor memory;
    if (!memories_.lengths.empty()) {
      PackedAttention encoder(shape_, memories_.lengths, /*causal=*/false);
      memory = network_->Encode(Packed(request_.instructions, memories_.rows),
                                encoder);
    }
    StaticPrefill attention(shape_, lengths_, &bucket_->cache(), &memories_,
                            bucket_->cross());
    const at::Tensor states =
        network_->Decode(Packed(request_.prompts, order_), memory, attention);
    std::vector<int64_t> last;
    int64_t end = 0;
    for (const int64_t length : lengths_) {
      end += length;
      last.push_back(end - 1);
    }
    last.resize(static_cast<size_t>(bucket_->slots()), 0);
    return Draw(
        LogitsOf(*network_, states.index_select(0, Ids(last, device_))));
  }

  // Draws for the request's slots from `logits` [slots, V] and puts the tokens
  // where the next step reads them.
  absl::Status Draw(const at::Tensor& logits) {
    const int64_t rows = static_cast<int64_t>(order_.size());
    return SamplesOnDevice() ? DrawOnDevice(rows, logits)
                             : DrawOnHost(rows, logits);
  }

  absl::Status DrawOnDevice(int64_t rows, const at::Tensor& logits) {
    const SamplingOptions& sampling = request_.sampling;
    CoxGpuSample batch = {};
    batch.device_logits = logits.data_ptr<float>();
    batch.rows = rows;
    batch.vocab = logits.size(1);
    batch.temperature = sampling.temperature;
    batch.top_k = sampling.top_k;
    batch.top_p = sampling.top_p;
    batch.min_p = sampling.min_p;
    batch.device_forbidden = forbidden_.const_data_ptr<int64_t>();
    batch.forbidden = forbidden_.numel();
    batch.device_eos = eos_.const_data_ptr<int64_t>();
    batch.eos = eos_.numel();
    batch.device_min_new = bucket_->min_new.const_data_ptr<int64_t>();
    batch.seed = request_.seed;
    batch.device_prompt_ids = reinterpret_cast<const uint64_t*>(
        bucket_->prompt_ids.const_data_ptr<int64_t>());
    batch.device_sample_indices = reinterpret_cast<const uint64_t*>(
        bucket_->sample_indices.const_data_ptr<int64_t>());
    batch.device_steps = bucket_->steps.const_data_ptr<int64_t>();
    batch.device_tokens = bucket_->ids.data_ptr<int64_t>();
    batch.device_logprobs = bucket_->logprobs.data_ptr<float>();
    const int error = kernels_->sample(&batch, kernels_->current_stream());
    TORCH_CHECK(error == 0, "GPU sampling: ", kernels_->error_text(error));
    bucket_->steps.add_(1);
    const at::Tensor tokens =
        bucket_->ids.to(at::kCPU, at::kLong, /*non_blocking=*/false,
                        /*copy=*/true);
    // Of a finished row an invalid token is no error.
    bucket_->ids.clamp_min_(0);
    const at::Tensor logprobs = bucket_->logprobs.to(at::kCPU);
    for (int64_t slot = 0; slot < rows; ++slot) {
      const int64_t row = Row(slot);
      if (rows_.finished(row)) continue;
      const int64_t token = tokens.const_data_ptr<int64_t>()[slot];
      if (token < 0) {
        return absl::InvalidArgumentError(absl::StrCat(
            "row ", row, ": logits: NaN, +inf, or no token is left to draw"));
      }
      rows_.Record(row, static_cast<int32_t>(token),
                   logprobs.const_data_ptr<float>()[slot]);
    }
    return absl::OkStatus();
  }

  absl::Status DrawOnHost(int64_t rows, const at::Tensor& device_logits) {
    const at::Tensor logits = device_logits.to(at::kCPU).contiguous();
    const float* data = logits.const_data_ptr<float>();
    const size_t vocab = static_cast<size_t>(logits.size(1));
    std::vector<int64_t> tokens(static_cast<size_t>(bucket_->slots()), 0);
    for (int64_t slot = 0; slot < rows; ++slot) {
      const int64_t row = Row(slot);
      if (!rows_.finished(row)) {
        COX_RETURN_IF_ERROR(rows_.Sample(
            row, {data + static_cast<size_t>(slot) * vocab, vocab}));
      }
      tokens[static_cast<size_t>(slot)] = rows_.last_token(row);
    }
    bucket_->ids.copy_(IndexTensor(tokens));
    return absl::OkStatus();
  }

  int64_t Row(int64_t slot) const {
    return static_cast<int64_t>(order_[static_cast<size_t>(slot)]);
  }

  const GenerateRequest& request_;
  const std::shared_ptr<const Network> network_;
  const AttentionShape shape_;
  const at::Device device_;
  const CoxGpuApi* kernels_;
  GenerateRows rows_;
  std::vector<size_t> order_;     // request row of each slot
  std::vector<int64_t> lengths_;  // of the slots' prompts, ascending
  Memories memories_;             // encoder-decoder only
  DecodeBucket* bucket_ = nullptr;
  at::Tensor forbidden_, eos_;
};

}  // namespace

absl::StatusOr<GenerateResult> StaticGenerate(const TorchModel& model,
                                              const GenerateRequest& request,
                                              DecodePool* pool) {
  return StaticGeneration(model, request, pool).Run();
}

}  // namespace cox
