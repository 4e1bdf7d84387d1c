#include "lib/model/ops_api.h"

#include <algorithm>
#include <cmath>

#include "ATen/ops/empty.h"
#include "ATen/ops/from_blob.h"
#include "ATen/ops/linear.h"
#include "ATen/ops/log_softmax.h"
#include "absl/strings/str_cat.h"
#include "c10/core/GradMode.h"
#include "lib/model/guard.h"
#include "lib/model/torch_model.h"

namespace cox {
namespace {

struct Grid {
  std::string_view name;
  int64_t batch;
  int64_t length;
  const std::vector<int64_t>& ids;
  const std::vector<uint8_t>& mask;
  // Whether a row may be all padding: its outputs are free, but finite.
  bool empty_rows = false;
};

absl::Status CheckGrid(const Grid& grid, const ModelConfig& config) {
  const std::string name(grid.name);
  if (grid.batch < 1 || grid.length < 1 ||
      static_cast<int64_t>(grid.ids.size()) != grid.batch * grid.length ||
      grid.mask.size() != grid.ids.size()) {
    return absl::InvalidArgumentError(
        absl::StrCat(name, ": expected ids and mask of shape [", grid.batch,
                     ", ", grid.length, "], found ", grid.ids.size(), " and ",
                     grid.mask.size(), " entries"));
  }
  const bool bounded = config.family == ModelFamily::kGpt2 ||
                       config.family == ModelFamily::kInstructEncdec;
  for (int64_t b = 0; b < grid.batch; ++b) {
    int64_t real = 0;
    for (int64_t j = 0; j < grid.length; ++j) {
      const size_t i = static_cast<size_t>(b * grid.length + j);
      if (grid.mask[i] == 0) continue;
      ++real;
      if (grid.ids[i] < 0 || grid.ids[i] >= config.vocab_size) {
        return absl::InvalidArgumentError(
            absl::StrCat(name, ": id at [", b, ", ", j, "]: expected 0 to ",
                         config.vocab_size - 1, ", found ", grid.ids[i]));
      }
    }
    if (real == 0 && !grid.empty_rows) {
      return absl::InvalidArgumentError(
          absl::StrCat(name, ": row ", b, " has no real token"));
    }
    if (bounded && real > config.max_positions) {
      return absl::InvalidArgumentError(
          absl::StrCat(name, ": row ", b, " has ", real,
                       " tokens, the model takes ", config.max_positions));
    }
  }
  return absl::OkStatus();
}

// Positions: exclusive cumulative sum of the mask (docs/algorithms.md §1).
TokenRows MaskedRows(const Grid& grid) {
  std::vector<int64_t> ids(grid.ids.size(), 0);
  std::vector<int64_t> positions(grid.ids.size(), 0);
  for (int64_t b = 0; b < grid.batch; ++b) {
    int64_t seen = 0;
    for (int64_t j = 0; j < grid.length; ++j) {
      const size_t i = static_cast<size_t>(b * grid.length + j);
      if (grid.mask[i] == 0) continue;
      ids[i] = grid.ids[i];
      positions[i] = seen++;
    }
  }
  return {IndexTensor(ids), IndexTensor(positions)};
}

at::Tensor MaskTensor(const Grid& grid) {
  at::Tensor out = at::empty({grid.batch, grid.length}, at::kBool);
  for (size_t i = 0; i < grid.mask.size(); ++i) {
    out.data_ptr<bool>()[i] = grid.mask[i] != 0;
  }
  return out;
}

absl::StatusOr<std::vector<at::Tensor>> MakeParameters(
    const ModelForwardRequest& request) {
  const auto shapes = ParameterShapes(request.config);
  if (request.parameters.size() != shapes.size()) {
    return absl::InvalidArgumentError(
        absl::StrCat("parameters: expected ", shapes.size(), " tensors, found ",
                     request.parameters.size()));
  }
  std::vector<at::Tensor> out;
  for (size_t i = 0; i < shapes.size(); ++i) {
    const std::vector<double>& values = request.parameters[i];
    int64_t count = 1;
    for (int64_t dimension : shapes[i].second) count *= dimension;
    if (static_cast<int64_t>(values.size()) != count) {
      return absl::InvalidArgumentError(
          absl::StrCat("parameters: ", shapes[i].first, ": expected ", count,
                       " values, found ", values.size()));
    }
    at::Tensor view = at::from_blob(const_cast<double*>(values.data()),
                                    shapes[i].second, at::kDouble);
    out.push_back(request.float64 ? view : view.to(at::kFloat));
  }
  return out;
}

std::vector<double> ToDoubles(const at::Tensor& values) {
  at::Tensor flat = values.to(at::kDouble).contiguous();
  const double* data = flat.const_data_ptr<double>();
  return std::vector<double>(data, data + flat.numel());
}

absl::StatusOr<ModelForwardResult> Run(const ModelForwardRequest& request) {
  const ModelConfig& config = request.config;
  const Grid tokens{"tokens",    request.batch, request.length,
                    request.ids, request.mask,  /*empty_rows=*/true};
  const Grid instruction{"instruction", request.batch,
                         request.instruction_length, request.instruction_ids,
                         request.instruction_mask};
  const bool encdec = config.family == ModelFamily::kInstructEncdec;
  COX_RETURN_IF_ERROR(config.Validate());
  if (request.batch == 0 || request.length == 0) {
    ModelForwardResult empty;
    empty.score.assign(request.batch, 0.0);
    return empty;
  }
  COX_RETURN_IF_ERROR(CheckGrid(tokens, config));
  if (encdec) COX_RETURN_IF_ERROR(CheckGrid(instruction, config));
  COX_RETURN_IF_ERROR(CheckTemperature(request.temperature));
  COX_ASSIGN_OR_RETURN(std::vector<at::Tensor> parameters,
                       MakeParameters(request));
  const Network network(config, std::move(parameters));
  const AttentionShape shape = ShapeOf(config, request.fused_attention);
  GridOptions grid;
  grid.batch = request.batch;
  grid.length = request.length;
  grid.key_mask = MaskTensor(tokens);
  at::Tensor memory;
  if (encdec) {
    GridOptions encoder;
    encoder.batch = request.batch;
    encoder.length = request.instruction_length;
    encoder.causal = false;
    encoder.key_mask = MaskTensor(instruction);
    grid.memory_length = encoder.length;
    grid.memory_mask = encoder.key_mask;
    GridAttention attention(shape, encoder);
    memory = network.Encode(MaskedRows(instruction), attention);
  }
  GridAttention attention(shape, grid);
  const at::Tensor states =
      network.Decode(MaskedRows(tokens), memory, attention);
  ModelForwardResult out;
  if (config.head == HeadKind::kScalar) {
    out.values = ToDoubles(ScalarHead(network, states));
    for (int64_t b = 0; b < request.batch; ++b) {
      int64_t last = request.length - 1;
      while (last > 0 &&
             request.mask[static_cast<size_t>(b * request.length + last)] ==
                 0) {
        --last;
      }
      out.score.push_back(
          out.values[static_cast<size_t>(b * request.length + last)]);
    }
    return out;
  }
  std::optional<at::Tensor> bias;
  if (network.head_bias().defined()) bias = network.head_bias();
  const at::Tensor logits = at::linear(states, network.head_weight(), bias);
  const std::vector<double> logprobs =
      ToDoubles(at::log_softmax(logits.div(request.temperature), /*dim=*/-1));
  out.logits = ToDoubles(logits);
  out.logprob.assign(request.ids.size(), 0.0);
  for (int64_t b = 0; b < request.batch; ++b) {
    for (int64_t j = 0; j + 1 < request.length; ++j) {
      const size_t i = static_cast<size_t>(b * request.length + j);
      if (request.mask[i] == 0 || request.mask[i + 1] == 0) continue;
      out.logprob[i] = logprobs[i * static_cast<size_t>(config.vocab_size) +
                                static_cast<size_t>(request.ids[i + 1])];
    }
  }
  return out;
}

}  // namespace

absl::StatusOr<ModelForwardResult> ModelForward(
    const ModelForwardRequest& request) {
  return Guard("model forward", [&] {
    c10::AutoGradMode no_grad(false);
    return Run(request);
  });
}

std::vector<std::vector<double>> SineParameters(const ModelConfig& config,
                                                double a, double b) {
  std::vector<std::vector<double>> out;
  int64_t k = 0;
  for (const auto& [name, shape] : ParameterShapes(config)) {
    TensorInfo tensor;
    tensor.name = name;
    tensor.shape = shape;
    int64_t count = 1;
    for (int64_t dimension : shape) count *= dimension;
    std::vector<double> values;
    for (int64_t n = 0; n < count; ++n) {
      values.push_back(SineFillValue(tensor, k, n, a, b));
    }
    out.push_back(std::move(values));
    ++k;
  }
  return out;
}

absl::StatusOr<std::vector<std::vector<double>>> ParametersOf(
    const Snapshot& snapshot, const ModelConfig& config) {
  return Guard("parameters",
               [&]() -> absl::StatusOr<std::vector<std::vector<double>>> {
                 COX_ASSIGN_OR_RETURN(std::vector<at::Tensor> tensors,
                                      ParametersFromSnapshot(snapshot, config));
                 std::vector<std::vector<double>> out;
                 for (const at::Tensor& tensor : tensors) {
                   out.push_back(ToDoubles(tensor));
                 }
                 return out;
               });
}

}  // namespace cox
