#include "learner/batching.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <string_view>

#include "absl/strings/str_cat.h"
#include "lib/base/rng.h"

namespace cox {

TokenBatch MakeTokenBatch(std::span<const Sequence* const> rows) {
  TokenBatch batch;
  batch.batch = static_cast<int64_t>(rows.size());
  for (const Sequence* row : rows) {
    batch.length = std::max(batch.length, row->length());
    batch.instruction_length =
        std::max(batch.instruction_length,
                 static_cast<int64_t>(row->instruction_ids.size()));
  }
  batch.ids.assign(static_cast<size_t>(batch.batch * batch.length), 0);
  batch.scored.assign(batch.ids.size(), 0);
  batch.instruction_ids.assign(
      static_cast<size_t>(batch.batch * batch.instruction_length), 0);
  for (int64_t b = 0; b < batch.batch; ++b) {
    const Sequence& row = *rows[static_cast<size_t>(b)];
    std::copy(row.ids.begin(), row.ids.end(),
              batch.ids.begin() + b * batch.length);
    batch.lengths.push_back(static_cast<int32_t>(row.length()));
    for (int64_t t = 0; t < row.targets(); ++t) {
      batch.scored[TargetIndex(batch, row, b, t)] = 1;
    }
    if (batch.instruction_length > 0) {
      std::copy(row.instruction_ids.begin(), row.instruction_ids.end(),
                batch.instruction_ids.begin() + b * batch.instruction_length);
      batch.instruction_lengths.push_back(
          static_cast<int32_t>(row.instruction_ids.size()));
    }
  }
  return batch;
}

void AddDropout(const DropoutOptions& options, int64_t step,
                std::span<const int64_t> places, TokenBatch* batch) {
  if (options.rate == 0) return;
  batch->dropout = options.rate;
  CounterRng rng(options.seed,
                 absl::StrCat("dropout/", options.stage, "/", step));
  for (const int64_t place : places) {
    rng.Seek(static_cast<uint64_t>(place));
    batch->dropout_keys.push_back(rng.NextUint64());
  }
}

absl::Status ForMicroBatches(
    std::span<const int64_t> rows, int64_t micro,
    const std::function<absl::Status(std::span<const int64_t>)>& body) {
  const size_t part = micro > 0 ? static_cast<size_t>(micro) : rows.size();
  for (size_t begin = 0; begin < rows.size(); begin += part) {
    COX_RETURN_IF_ERROR(
        body(rows.subspan(begin, std::min(part, rows.size() - begin))));
  }
  return absl::OkStatus();
}

absl::Status BackwardMicroBatches(
    TrainEngine& engine, std::span<const int64_t> rows, int64_t micro,
    const std::function<absl::Status(std::span<const int64_t>)>& body,
    bool more) {
  size_t left = rows.size();
  return ForMicroBatches(rows, micro, [&](std::span<const int64_t> part) {
    left -= part.size();
    if (left == 0 && !more) engine.LastPass();
    return body(part);
  });
}

void HashSequence(const Sequence& sequence, Sha256* hash) {
  const int64_t header[3] = {
      sequence.length(), static_cast<int64_t>(sequence.instruction_ids.size()),
      sequence.first_target};
  hash->Update(std::as_bytes(std::span<const int64_t>(header)));
  hash->Update(std::as_bytes(std::span<const int32_t>(sequence.ids)));
  hash->Update(
      std::as_bytes(std::span<const int32_t>(sequence.instruction_ids)));
}

bool AnyNonFinite(std::span<const float> values) {
  return std::any_of(values.begin(), values.end(),
                     [](float x) { return !std::isfinite(x); });
}

absl::Status PoisonGradient(TrainEngine& engine) {
  if (DeviceState* device = engine.device()) return device->PoisonGradients();
  if (!engine.Gradients().empty()) {
    engine.Gradients()[0] = std::numeric_limits<float>::quiet_NaN();
  }
  return absl::OkStatus();
}

}  // namespace cox
