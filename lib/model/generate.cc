// PolicyEngine: KV-cached decoding.

#include <algorithm>
#include <numeric>

#include "absl/strings/str_cat.h"
#include "c10/core/GradMode.h"
#include "lib/engine/generate_rows.h"
#include "lib/model/decode_pool.h"
#include "lib/model/guard.h"
#include "lib/model/kv_cache.h"
#include "lib/model/linear.h"
#include "lib/model/static_generate.h"
#include "lib/model/torch_model.h"

namespace cox {
namespace {

// Rows are padded to a multiple of this. Matrix products with very few rows
// may take other kernels, and LibTorch's element-wise loops compute what is
// left over after blocks of 32 elements with scalar functions that round
// differently: so every row count x width must be a multiple of 32 for a row's
// bits not to depend on how many others there are.
int64_t RowMultiple(const ModelConfig& config) {
  const bool wide = config.hidden % 8 == 0 && config.intermediate % 8 == 0;
  return wide ? 16 : 32;
}

TokenRows PackRows(const std::vector<int64_t>& ids,
                   const std::vector<int64_t>& positions, int64_t multiple) {
  const size_t rows =
      static_cast<size_t>(RoundUp(static_cast<int64_t>(ids.size()), multiple));
  std::vector<int64_t> padded_ids = ids;
  std::vector<int64_t> padded_positions = positions;
  padded_ids.resize(rows, 0);
  padded_positions.resize(rows, 0);
  return {IndexTensor(padded_ids), IndexTensor(padded_positions)};
}

// Sequences one after the other.
TokenRows PackSequences(const std::vector<std::vector<int32_t>>& sequences,
                        const std::vector<size_t>& order, int64_t multiple) {
  std::vector<int64_t> ids, positions;
  for (size_t row : order) {
    for (size_t j = 0; j < sequences[row].size(); ++j) {
      ids.push_back(sequences[row][j]);
      positions.push_back(static_cast<int64_t>(j));
    }
  }
  return PackRows(ids, positions, multiple);
}

std::vector<int64_t> LengthsOf(
    const std::vector<std::vector<int32_t>>& sequences,
    const std::vector<size_t>& order) {
  std::vector<int64_t> out;
  for (size_t row : order) {
    out.push_back(static_cast<int64_t>(sequences[row].size()));
  }
  return out;
}

// One request from prompts to finished rows. Slot s of the caches belongs to
// request row order_[s]; slots are sorted by prompt length, so that equal
// lengths are neighbours.
class Generation {
 public:
  Generation(const TorchModel& model, const GenerateRequest& request)
      : model_(model),
        network_(model.PassNetwork()),
        request_(request),
        shape_(ShapeOf(model.config(), model.options().fused_attention)),
        multiple_(RowMultiple(model.config())),
        rows_(request),
        order_(request.prompts.size()) {
    std::iota(order_.begin(), order_.end(), size_t{0});
    std::stable_sort(order_.begin(), order_.end(), [&](size_t a, size_t b) {
      return request.prompts[a].size() < request.prompts[b].size();
    });
    prompt_lengths_ = LengthsOf(request.prompts, order_);
    KvCache::Size size;
    size.layers = model.config().layers;
    size.slots = static_cast<int64_t>(order_.size());
    size.positions = prompt_lengths_.back() + request.max_new_tokens - 1;
    cache_ = std::make_unique<KvCache>(shape_, size);
    if (model.config().family == ModelFamily::kInstructEncdec) {
      memories_ = FindMemories(request.instructions, order_);
      size.slots = static_cast<int64_t>(memories_.lengths.size());
      size.positions = memories_.lengths.back();
      cross_cache_ = std::make_unique<KvCache>(shape_, size);
    }
  }

  absl::StatusOr<GenerateResult> Run() {
    COX_RETURN_IF_ERROR(Prefill());
    DecodeAttention attention(shape_, cache_.get(), cross_cache_.get());
    for (int64_t step = 0;; ++step) {
      std::vector<int64_t> slots;
      std::vector<int64_t> ids, positions;
      std::vector<DecodeAttention::Row> decode_rows;
      for (size_t s = 0; s < order_.size(); ++s) {
        const int64_t row = static_cast<int64_t>(order_[s]);
        if (rows_.finished(row)) continue;
        DecodeAttention::Row next;
        next.slot = static_cast<int64_t>(s);
        next.position = prompt_lengths_[s] + step;
        if (cross_cache_ != nullptr) {
          next.memory = memories_.of_slot[s];
          next.memory_length =
              memories_.lengths[static_cast<size_t>(next.memory)];
        }
        decode_rows.push_back(next);
        slots.push_back(next.slot);
        ids.push_back(rows_.last_token(row));
        positions.push_back(next.position);
      }
      if (slots.empty()) return rows_.Take();
      attention.SetRows(std::move(decode_rows));
      const at::Tensor states = network_->Decode(
          PackRows(ids, positions, multiple_), at::Tensor(), attention);
      COX_RETURN_IF_ERROR(Sample(slots, states));
    }
  }

 private:
  absl::Status Prefill() {
    PrefillAttention attention(shape_, prompt_lengths_, cache_.get());
    at::Tensor memory;
    if (cross_cache_ != nullptr) {
      memory = EncodeInstructions();
      attention.AttendAcross(&memories_, cross_cache_.get());
    }
    const at::Tensor states = network_->Decode(
        PackSequences(request_.prompts, order_, multiple_), memory, attention);
    std::vector<int64_t> slots, last;
    int64_t end = 0;
    for (size_t s = 0; s < order_.size(); ++s) {
      end += prompt_lengths_[s];
      slots.push_back(static_cast<int64_t>(s));
      last.push_back(end - 1);
    }
    last.resize(static_cast<size_t>(
                    RoundUp(static_cast<int64_t>(last.size()), multiple_)),
                0);
    return Sample(slots, states.index_select(0, IndexTensor(last)));
  }

  // Encoder states of the memories, packed (filler rows at the end).
  at::Tensor EncodeInstructions() {
    PackedAttention attention(shape_, memories_.lengths, /*causal=*/false);
    return network_->Encode(
        PackSequences(request_.instructions, memories_.rows, multiple_),
        attention);
  }

  // `states` [>= slots, hidden]: row i belongs to slots[i].
  absl::Status Sample(const std::vector<int64_t>& slots,
                      const at::Tensor& states) {
    const at::Tensor& head = network_->head_weight();
    const at::Tensor logits =
        MatMul(states.to(head.scalar_type()), head.t(), network_->head_bias());
    const float* data = logits.const_data_ptr<float>();
    const size_t vocab = static_cast<size_t>(logits.size(1));
    for (size_t i = 0; i < slots.size(); ++i) {
      const size_t slot = static_cast<size_t>(slots[i]);
      COX_RETURN_IF_ERROR(rows_.Sample(static_cast<int64_t>(order_[slot]),
                                       {data + i * vocab, vocab}));
    }
    return absl::OkStatus();
  }

  const TorchModel& model_;
  const std::shared_ptr<const Network> network_;
  const GenerateRequest& request_;
  AttentionShape shape_;
  int64_t multiple_;
  GenerateRows rows_;
  std::vector<size_t> order_;
  std::vector<int64_t> prompt_lengths_;  // per slot
  Memories memories_;                    // encoder-decoder only
  std::unique_ptr<KvCache> cache_;
  std::unique_ptr<KvCache> cross_cache_;
};

class TorchPolicyEngine : public PolicyEngine {
 public:
  TorchPolicyEngine(const EngineOptions& options, const CoxGpuApi* kernels)
      : model_(options), pool_(kernels) {}
  absl::Status Load(std::shared_ptr<const Snapshot> snapshot) override {
    return Guard("load", [&] { return model_.Load(std::move(snapshot)); });
  }
  const ModelConfig& config() const override { return model_.config(); }
  absl::StatusOr<LogprobOutput> Logprobs(const TokenBatch& batch,
                                         double temperature,
                                         bool want_entropy) override {
    return Guard("log-probs", [&] {
      return model_.Logprobs(batch, temperature, want_entropy);
    });
  }
  absl::StatusOr<std::vector<float>> Values(const TokenBatch& batch) override {
    return Guard("values", [&] { return model_.Values(batch); });
  }
  absl::StatusOr<std::vector<float>> Scores(const TokenBatch& batch) override {
    return Guard("scores", [&] { return model_.Scores(batch); });
  }
  absl::StatusOr<GenerateResult> Generate(
      const GenerateRequest& request) override {
    return Guard("generate", [&]() -> absl::StatusOr<GenerateResult> {
      COX_RETURN_IF_ERROR(model_.Check(HeadKind::kLanguageModel));
      COX_RETURN_IF_ERROR(ValidateGenerateRequest(request, model_.config()));
      if (request.prompts.empty()) return GenerateResult();
      c10::AutoGradMode no_grad(false);
      if (IsPortable(model_.options())) {
        return StaticGenerate(model_, request, &pool_);
      }
      return Generation(model_, request).Run();
    });
  }

 private:
  TorchModel model_;
  DecodePool pool_;  // of static generation only
};

}  // namespace

absl::StatusOr<std::unique_ptr<PolicyEngine>> MakePolicyEngine(
    const EngineOptions& options) {
  COX_RETURN_IF_ERROR(CheckEngineOptions(options));
  COX_ASSIGN_OR_RETURN(const CoxGpuApi* kernels, KernelsOf(options));
  return std::unique_ptr<PolicyEngine>(new TorchPolicyEngine(options, kernels));
}

}  // namespace cox
