#include "lib/model/torch_model.h"

#include <malloc.h>

#include <algorithm>
#include <cstdlib>
#include <map>

#include "ATen/Context.h"
#include "ATen/Parallel.h"
#include "ATen/Version.h"
#include "ATen/ops/arange.h"
#include "ATen/ops/empty.h"
#include "ATen/ops/from_blob.h"
#include "ATen/ops/linear.h"
#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "c10/core/GradMode.h"
#include "lib/gpu/loader.h"
#include "lib/model/guard.h"
#include "lib/model/kernels.h"
#include "lib/model/linear.h"
#include "torch/headeronly/version.h"

namespace cox {
namespace {

std::optional<at::ScalarType> TorchType(DType dtype) {
  switch (dtype) {
    case DType::kF32:
      return at::kFloat;
    case DType::kBF16:
      return at::kBFloat16;
    case DType::kF16:
      return at::kHalf;
    case DType::kF64:
      return at::kDouble;
    default:
      return std::nullopt;
  }
}

// True at [b, j] for j < lengths[b].
at::Tensor LengthMask(int64_t length, const std::vector<int32_t>& lengths) {
  at::Tensor ends =
      at::empty({static_cast<int64_t>(lengths.size()), 1}, at::kLong);
  std::copy(lengths.begin(), lengths.end(), ends.data_ptr<int64_t>());
  return at::arange(length, at::kLong).unsqueeze(0).lt(ends);
}

bool AnyPadding(int64_t length, const std::vector<int32_t>& lengths) {
  return std::any_of(lengths.begin(), lengths.end(),
                     [length](int32_t n) { return n < length; });
}

std::vector<float> ToVector(const at::Tensor& values) {
  at::Tensor flat = values.to(at::kCPU).contiguous();
  const float* data = flat.const_data_ptr<float>();
  return std::vector<float>(data, data + flat.numel());
}

}  // namespace

absl::Status CheckEngineOptions(const EngineOptions& options) {
  if (options.device == "cuda") {
    COX_RETURN_IF_ERROR(LoadGpu().status());
  } else if (options.device != "cpu") {
    return absl::InvalidArgumentError(
        absl::StrCat("device: expected cpu or cuda, found ", options.device));
  }
  if (options.dtype != "fp32" && options.dtype != "bf16") {
    return absl::InvalidArgumentError(
        absl::StrCat("dtype: expected fp32 or bf16, found ", options.dtype));
  }
  if (options.threads < 1 || options.max_logit_elements < 1) {
    return absl::InvalidArgumentError(absl::StrCat(
        "engine: expected threads and max_logit_elements >= 1, found ",
        options.threads, " and ", options.max_logit_elements));
  }
  return absl::OkStatus();
}

bool IsPortable(const EngineOptions& options) {
  return options.portable || options.device != "cpu";
}

absl::StatusOr<const CoxGpuApi*> KernelsOf(const EngineOptions& options) {
  if (options.kernels != nullptr) return options.kernels;
  if (options.device == "cuda") return LoadGpu();
  return nullptr;
}

at::Device DeviceOf(const EngineOptions& options) {
  return at::Device(options.device == "cuda" ? at::kCUDA : at::kCPU);
}

namespace {

// "cpu/avx512", "cuda/NVIDIA H200, 141 GB, sm_90".
absl::StatusOr<std::string> Processor(const EngineOptions& options) {
  if (options.device == "cpu") {
    return "cpu/" + absl::AsciiStrToLower(at::get_cpu_capability());
  }
  COX_ASSIGN_OR_RETURN(const CoxGpuApi* api, LoadGpu());
  char text[256] = "";
  api->describe_device(text, sizeof(text));
  return absl::StrCat("cuda/", text);
}

}  // namespace

absl::StatusOr<std::string> InitTorch(const EngineOptions& options) {
  // cuBLAS picks its workspace at its first use; only these are reproducible.
  if (options.device == "cuda") {
    setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8", /*overwrite=*/0);
  }
  COX_RETURN_IF_ERROR(CheckEngineOptions(options));
  COX_ASSIGN_OR_RETURN(const std::string processor, Processor(options));
  return Guard("init", [&]() -> absl::StatusOr<std::string> {
    // Activations are freed and allocated again every step: keep their pages
    // instead of returning them to the kernel and taking zeroed ones back.
    mallopt(M_MMAP_THRESHOLD, 1 << 30);
    mallopt(M_TRIM_THRESHOLD, 1 << 30);
    at::set_num_threads(options.threads);
    at::Context& context = at::globalContext();
    context.setDeterministicAlgorithms(true, /*warn_only=*/true);
    // Filling every new tensor would cost a pass over memory each.
    context.setDeterministicFillUninitializedMemory(false);
    c10::GradMode::set_enabled(false);
    return absl::StrCat("torch-", TORCH_VERSION, "/", processor,
                        "/threads=", options.threads,
                        options.dtype == "fp32" ? "" : "/" + options.dtype);
  });
}

at::Tensor FloatView(const float* data, const std::vector<int64_t>& shape) {
  // from_blob wants a mutable pointer; frozen engines never write.
  return at::from_blob(const_cast<float*>(data), shape, at::kFloat);
}

absl::StatusOr<std::vector<at::Tensor>> ParametersFromSnapshot(
    const Snapshot& snapshot, const ModelConfig& config) {
  std::map<std::string_view, const TensorInfo*> found;
  for (const TensorInfo& tensor : snapshot.manifest.tensors) {
    found.emplace(tensor.name, &tensor);
  }
  std::vector<at::Tensor> out;
  for (const auto& [name, shape] : ParameterShapes(config)) {
    auto it = found.find(name);
    if (it == found.end()) {
      return absl::FailedPreconditionError(
          absl::StrCat("weights: tensor ", name, " is missing"));
    }
    const TensorInfo& tensor = *it->second;
    if (tensor.shape != shape) {
      return absl::FailedPreconditionError(absl::StrCat(
          "weights: tensor ", name, ": expected [", absl::StrJoin(shape, ", "),
          "], found [", absl::StrJoin(tensor.shape, ", "), "]"));
    }
    COX_ASSIGN_OR_RETURN(auto bytes, snapshot.Tensor(name));
    const std::optional<at::ScalarType> type = TorchType(tensor.dtype);
    if (!type.has_value()) {
      return absl::FailedPreconditionError(
          absl::StrCat("weights: tensor ", name, ": expected floats, found ",
                       std::string(DTypeName(tensor.dtype))));
    }
    void* data = const_cast<std::byte*>(bytes.data());
    out.push_back(at::from_blob(data, shape, *type).to(at::kFloat));
  }
  if (found.size() != out.size()) {
    return absl::FailedPreconditionError(absl::StrCat(
        "weights: expected ", out.size(), " tensors, found ", found.size()));
  }
  return out;
}

TokenRows GridRows(int64_t batch, int64_t length,
                   const std::vector<int32_t>& ids,
                   const std::vector<int32_t>& lengths) {
  TokenRows rows;
  rows.ids = at::empty({batch * length}, at::kLong);
  rows.positions = at::empty({batch * length}, at::kLong);
  int64_t* id = rows.ids.data_ptr<int64_t>();
  int64_t* position = rows.positions.data_ptr<int64_t>();
  for (int64_t b = 0; b < batch; ++b) {
    for (int64_t j = 0; j < length; ++j) {
      const int64_t i = b * length + j;
      const bool real = j < lengths[static_cast<size_t>(b)];
      id[i] = real ? ids[static_cast<size_t>(i)] : 0;
      position[i] = real ? j : 0;
    }
  }
  return rows;
}

namespace {

// Fills the packing fields of `grid` and returns the real tokens as rows.
TokenRows PackRealTokens(const TokenBatch& batch,
                         const std::vector<int64_t>& slots, GridOptions* grid) {
  std::vector<int64_t> ids, positions;
  std::vector<int64_t> row_of_slot(batch.ids.size(), 0);
  for (size_t row = 0; row < slots.size(); ++row) {
    const size_t slot = static_cast<size_t>(slots[row]);
    ids.push_back(batch.ids[slot]);
    positions.push_back(slots[row] % batch.length);
    row_of_slot[slot] = static_cast<int64_t>(row);
  }
  if (slots.size() != batch.ids.size() ||
      slots.size() % static_cast<size_t>(kRowRounding) != 0) {
    // Filler rows: token 0, which no slot refers to and nobody reads.
    const size_t rows = static_cast<size_t>(
        RoundUp(static_cast<int64_t>(slots.size()), kRowRounding));
    std::vector<int64_t> slot_of_row = slots;
    slot_of_row.resize(rows, 0);
    ids.resize(rows, 0);
    positions.resize(rows, 0);
    grid->row_of_slot = IndexTensor(row_of_slot);
    grid->slot_of_row = IndexTensor(slot_of_row);
  }
  return {IndexTensor(ids), IndexTensor(positions)};
}

}  // namespace

namespace {

// Of the decoder's packed rows, or of the encoder's grid; null: none.
std::shared_ptr<const Dropout> DropoutOf(const TokenBatch& batch,
                                         bool encoder) {
  if (batch.dropout == 0 || !c10::GradMode::is_enabled()) return nullptr;
  Dropout::Options options;
  options.rate = batch.dropout;
  options.keys = batch.dropout_keys;
  options.lengths = encoder ? batch.instruction_lengths : batch.lengths;
  if (encoder) {
    options.stack = 1;
    options.stride = batch.instruction_length;
  } else {
    options.memory_lengths = batch.instruction_lengths;
  }
  return std::make_shared<const Dropout>(std::move(options));
}

}  // namespace

BatchStates StatesOf(const Network& network, const TokenBatch& batch,
                     bool fused_attention) {
  const AttentionShape shape = ShapeOf(network.config(), fused_attention);
  const at::Device device = network.device();
  GridOptions grid;
  grid.batch = batch.batch;
  grid.length = batch.length;
  grid.dropout = DropoutOf(batch, /*encoder=*/false);
  at::Tensor memory;
  if (network.config().family == ModelFamily::kInstructEncdec) {
    GridOptions encoder;
    encoder.batch = batch.batch;
    encoder.length = batch.instruction_length;
    encoder.causal = false;
    encoder.dropout = DropoutOf(batch, /*encoder=*/true);
    if (AnyPadding(batch.instruction_length, batch.instruction_lengths)) {
      encoder.key_mask =
          LengthMask(batch.instruction_length, batch.instruction_lengths)
              .to(device);
    }
    grid.memory_length = encoder.length;
    grid.memory_mask = encoder.key_mask;
    GridAttention attention(shape, encoder);
    memory = network.Encode(
        GridRows(batch.batch, batch.instruction_length, batch.instruction_ids,
                 batch.instruction_lengths),
        attention);
  }
  const std::vector<int64_t> slots = RealSlots(batch);
  const TokenRows rows = PackRealTokens(batch, slots, &grid);
  if (grid.row_of_slot.defined()) {
    grid.row_of_slot = grid.row_of_slot.to(device);
    grid.slot_of_row = grid.slot_of_row.to(device);
  }
  BatchStates out;
  out.attention = std::make_shared<GridAttention>(shape, grid);
  out.rows = network.Decode(rows, memory, *out.attention);
  out.row_of_slot.assign(batch.ids.size(), -1);
  for (size_t row = 0; row < slots.size(); ++row) {
    out.row_of_slot[static_cast<size_t>(slots[row])] =
        static_cast<int64_t>(row);
  }
  return out;
}

at::Tensor SelectSlots(const BatchStates& states,
                       const std::vector<int64_t>& slots) {
  if (static_cast<int64_t>(slots.size()) == states.rows.size(0)) {
    return states.rows;
  }
  std::vector<int64_t> rows;
  for (int64_t slot : slots) {
    rows.push_back(states.row_of_slot[static_cast<size_t>(slot)]);
  }
  return states.rows.index_select(0,
                                  IndexTensor(rows).to(states.rows.device()));
}

ScoredSlots FindScored(const TokenBatch& batch) {
  ScoredSlots scored;
  for (size_t i = 0; i < batch.scored.size(); ++i) {
    if (batch.scored[i] == 0) continue;
    scored.slots.push_back(static_cast<int64_t>(i));
    scored.targets.push_back(batch.ids[i + 1]);
  }
  return scored;
}

at::Tensor IndexTensor(const std::vector<int64_t>& values) {
  at::Tensor out = at::empty({static_cast<int64_t>(values.size())}, at::kLong);
  std::copy(values.begin(), values.end(), out.data_ptr<int64_t>());
  return out;
}

std::vector<int64_t> RealSlots(const TokenBatch& batch) {
  std::vector<int64_t> out;
  for (int64_t b = 0; b < batch.batch; ++b) {
    for (int64_t j = 0; j < batch.lengths[static_cast<size_t>(b)]; ++j) {
      out.push_back(b * batch.length + j);
    }
  }
  return out;
}

std::vector<int64_t> LastSlots(const TokenBatch& batch) {
  std::vector<int64_t> out;
  for (int64_t b = 0; b < batch.batch; ++b) {
    out.push_back(b * batch.length + batch.lengths[static_cast<size_t>(b)] - 1);
  }
  return out;
}

at::Tensor ScalarHead(const Network& network, const at::Tensor& states) {
  std::optional<at::Tensor> bias;
  if (network.head_bias().defined()) bias = network.head_bias();
  return at::linear(states.to(network.head_weight().scalar_type()),
                    network.head_weight(), bias)
      .view({-1});
}

absl::Status TorchModel::Load(std::shared_ptr<const Snapshot> snapshot) {
  COX_ASSIGN_OR_RETURN(ModelConfig config,
                       ModelConfig::FromJson(snapshot->manifest.config_json));
  COX_ASSIGN_OR_RETURN(std::vector<at::Tensor> parameters,
                       ParametersFromSnapshot(*snapshot, config));
  if (IsPortable(options_)) {
    if (network_ != nullptr && config.ToJson() == config_.ToJson()) {
      network_->Assign(parameters);
      return absl::OkStatus();
    }
    for (at::Tensor& parameter : parameters) {
      parameter = parameter.to(DeviceOf(options_), at::kFloat,
                               /*non_blocking=*/false, /*copy=*/true);
    }
  } else {
    snapshot_ = std::move(snapshot);
  }
  network_ = std::make_shared<Network>(config, std::move(parameters),
                                       NetworkSettings());
  config_ = config;
  return absl::OkStatus();
}

NetworkOptions TorchModel::NetworkSettings() const {
  NetworkOptions network;
  network.bf16 = options_.dtype == "bf16";
  network.recompute = options_.recompute;
  return network;
}

void TorchModel::Adopt(const ModelConfig& config,
                       std::vector<at::Tensor> parameters,
                       std::vector<at::Tensor> copies) {
  if (NetworkSettings().bf16) {
    adopted_ = parameters;
    copies_ = std::move(copies);
  }
  network_ = std::make_shared<Network>(config, std::move(parameters),
                                       NetworkSettings(), copies_);
  config_ = config;
}

std::shared_ptr<const Network> TorchModel::PassNetwork() const {
  if (adopted_.empty()) return network_;
  return std::make_shared<const Network>(config_, adopted_, NetworkSettings());
}

absl::Status TorchModel::Check(HeadKind head) const {
  if (network_ == nullptr) {
    return absl::FailedPreconditionError("no weights are loaded");
  }
  if (config_.head != head) {
    return absl::FailedPreconditionError(
        head == HeadKind::kScalar
            ? "expected a scalar head, the model has a language-model head"
            : "expected a language-model head, the model has a scalar head");
  }
  return absl::OkStatus();
}

absl::Status TorchModel::Check(const TokenBatch& batch, HeadKind head) const {
  COX_RETURN_IF_ERROR(Check(head));
  return batch.Validate(config_);
}

absl::Status CheckTemperature(double temperature) {
  if (temperature > 0 && temperature < 1e30) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("temperature: expected > 0, found ", temperature));
}

LanguageHead::Options TorchModel::HeadOptions(const Network& network,
                                              double temperature) const {
  LanguageHead::Options head;
  head.weight = network.head_weight().detach();
  if (network.head_bias().defined()) {
    head.bias = network.head_bias().detach();
  }
  head.temperature = temperature;
  head.max_logit_elements = options_.max_logit_elements;
  head.loops = !IsPortable(options_);
  return head;
}

LogprobOutput ScatterLogprobs(const TokenBatch& batch,
                              const ScoredSlots& scored,
                              const LanguageHead::Output& output,
                              bool want_entropy) {
  LogprobOutput out;
  out.logprobs.assign(batch.ids.size(), 0.0f);
  if (want_entropy) out.entropies.assign(batch.ids.size(), 0.0f);
  for (size_t r = 0; r < scored.slots.size(); ++r) {
    const size_t slot = static_cast<size_t>(scored.slots[r]);
    out.logprobs[slot] = output.logprobs[r];
    if (want_entropy) out.entropies[slot] = output.entropies[r];
  }
  return out;
}

absl::StatusOr<LogprobOutput> TorchModel::Logprobs(const TokenBatch& batch,
                                                   double temperature,
                                                   bool want_entropy) const {
  COX_RETURN_IF_ERROR(Check(batch, HeadKind::kLanguageModel));
  COX_RETURN_IF_ERROR(CheckTemperature(temperature));
  c10::AutoGradMode no_grad(false);
  const ScoredSlots scored = FindScored(batch);
  const std::shared_ptr<const Network> network = PassNetwork();
  const BatchStates states =
      StatesOf(*network, batch, options_.fused_attention);
  LanguageHead head(HeadOptions(*network, temperature));
  const LanguageHead::Output output =
      head.Forward(SelectSlots(states, scored.slots), scored.targets,
                   /*keep_logits=*/false);
  return ScatterLogprobs(batch, scored, output, want_entropy);
}

absl::StatusOr<std::vector<float>> TorchModel::Values(
    const TokenBatch& batch) const {
  COX_RETURN_IF_ERROR(Check(batch, HeadKind::kScalar));
  c10::AutoGradMode no_grad(false);
  const std::shared_ptr<const Network> network = PassNetwork();
  const std::vector<int64_t> slots = RealSlots(batch);
  const std::vector<float> values = ToVector(ScalarHead(
      *network,
      SelectSlots(StatesOf(*network, batch, options_.fused_attention), slots)));
  std::vector<float> out(batch.ids.size(), 0.0f);
  for (size_t i = 0; i < slots.size(); ++i) {
    out[static_cast<size_t>(slots[i])] = values[i];
  }
  return out;
}

absl::StatusOr<std::vector<float>> TorchModel::Scores(
    const TokenBatch& batch) const {
  COX_RETURN_IF_ERROR(Check(batch, HeadKind::kScalar));
  c10::AutoGradMode no_grad(false);
  const std::shared_ptr<const Network> network = PassNetwork();
  return ToVector(ScalarHead(
      *network, SelectSlots(StatesOf(*network, batch, options_.fused_attention),
                            LastSlots(batch))));
}

}  // namespace cox
