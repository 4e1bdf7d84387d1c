#include "absl/strings/str_cat.h"
#include "lib/engine/engine.h"

namespace cox {
namespace {

struct Ragged {
  std::string_view name;
  int64_t batch;
  int64_t length;
  const std::vector<int32_t>& ids;
  const std::vector<int32_t>& lengths;
};

absl::Status CheckRows(const Ragged& rows, const ModelConfig& config) {
  const std::string name(rows.name);
  if (rows.length < 1 ||
      static_cast<int64_t>(rows.ids.size()) != rows.batch * rows.length) {
    return absl::InvalidArgumentError(
        absl::StrCat(name, ": expected ", rows.batch, " x ", rows.length,
                     " ids, found ", rows.ids.size()));
  }
  if (static_cast<int64_t>(rows.lengths.size()) != rows.batch) {
    return absl::InvalidArgumentError(
        absl::StrCat(name, ": expected ", rows.batch, " lengths, found ",
                     rows.lengths.size()));
  }
  // Rotary positions have no table that could end.
  const bool bounded = config.family == ModelFamily::kGpt2 ||
                       config.family == ModelFamily::kInstructEncdec;
  for (int64_t b = 0; b < rows.batch; ++b) {
    const int64_t length = rows.lengths[static_cast<size_t>(b)];
    if (length < 1 || length > rows.length) {
      return absl::InvalidArgumentError(
          absl::StrCat(name, ": length of row ", b, ": expected 1 to ",
                       rows.length, ", found ", length));
    }
    if (bounded && length > config.max_positions) {
      return absl::InvalidArgumentError(
          absl::StrCat(name, ": row ", b, " has ", length,
                       " tokens, the model takes ", config.max_positions));
    }
    for (int64_t j = 0; j < length; ++j) {
      const int32_t id = rows.ids[static_cast<size_t>(b * rows.length + j)];
      if (id < 0 || id >= config.vocab_size) {
        return absl::InvalidArgumentError(
            absl::StrCat(name, ": id at [", b, ", ", j, "]: expected 0 to ",
                         config.vocab_size - 1, ", found ", id));
      }
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status TokenBatch::Validate(const ModelConfig& config) const {
  if (batch < 1) {
    return absl::InvalidArgumentError(
        absl::StrCat("batch: expected >= 1, found ", batch));
  }
  COX_RETURN_IF_ERROR(
      CheckRows({"tokens", batch, length, ids, lengths}, config));
  if (!scored.empty() || config.head == HeadKind::kLanguageModel) {
    if (static_cast<int64_t>(scored.size()) != batch * length) {
      return absl::InvalidArgumentError(
          absl::StrCat("scored: expected ", batch, " x ", length,
                       " entries, found ", scored.size()));
    }
    for (int64_t b = 0; b < batch; ++b) {
      // The last real token has no successor.
      for (int64_t j = lengths[static_cast<size_t>(b)] - 1; j < length; ++j) {
        if (scored[static_cast<size_t>(b * length + j)] != 0) {
          return absl::InvalidArgumentError(
              absl::StrCat("scored: set at [", b, ", ", j, "], row has ",
                           lengths[static_cast<size_t>(b)], " tokens"));
        }
      }
    }
  }
  if (!(dropout >= 0 && dropout < 1)) {
    return absl::InvalidArgumentError(
        absl::StrCat("dropout: expected 0 <= p < 1, found ", dropout));
  }
  if (dropout > 0 && static_cast<int64_t>(dropout_keys.size()) != batch) {
    return absl::InvalidArgumentError(absl::StrCat(
        "dropout_keys: expected ", batch, ", found ", dropout_keys.size()));
  }
  if (config.family == ModelFamily::kInstructEncdec) {
    return CheckRows({"instructions", batch, instruction_length,
                      instruction_ids, instruction_lengths},
                     config);
  }
  return absl::OkStatus();
}

}  // namespace cox
