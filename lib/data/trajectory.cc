#include "lib/data/trajectory.h"

#include <bit>
#include <cmath>
#include <concepts>
#include <limits>
#include <span>
#include <type_traits>

#include "lib/base/hash.h"

namespace cox {
namespace {

constexpr std::string_view kMagic = "COXTRAJ1";
constexpr size_t kMaxNameBytes = 256;
constexpr size_t kMaxRewardParts = 64;
// What the fields of one trajectory take at least, all lists empty: bounds the
// count before anything is allocated for it.
constexpr size_t kMinTrajectoryBytes =
    4 + 8 + 4 + 4 + 4 + 8 + 1 + 4 + 8 + 4 + 3 * 4 + 2 * 4 + 1 + 8 + 4;

template <typename T>
using BitsOf =
    std::conditional_t<sizeof(T) == 8, uint64_t,
                       std::conditional_t<sizeof(T) == 4, uint32_t, uint8_t>>;

class Writer {
 public:
  explicit Writer(std::string& out) : out_(out) {}

  template <typename T>
  void Put(T value) {
    const auto bits = std::bit_cast<BitsOf<T>>(value);
    for (size_t i = 0; i < sizeof(T); ++i) {
      out_.push_back(static_cast<char>((bits >> (8 * i)) & 0xff));
    }
  }

  void PutSize(size_t size) { Put(static_cast<uint32_t>(size)); }

  void PutString(std::string_view text) {
    PutSize(text.size());
    out_.append(text);
  }

  template <typename T>
  void PutList(const std::vector<T>& values) {
    PutSize(values.size());
    for (const T value : values) {
      Put(value);
    }
  }

 private:
  std::string& out_;
};

// Every Get fails with DATA_LOSS at the offset where bytes are missing or a
// count exceeds its bound; the first error sticks and later calls return
// zeros, so that callers check once per trajectory.
class Reader {
 public:
  explicit Reader(std::string_view bytes) : bytes_(bytes) {}

  const absl::Status& status() const { return status_; }
  size_t offset() const { return offset_; }
  size_t left() const { return bytes_.size() - offset_; }

  void Fail(std::string_view message) {
    if (status_.ok()) {
      status_ = absl::DataLossError(
          absl::StrCat("unit: byte ", offset_, ": ", std::string(message)));
    }
  }

  template <typename T>
  T Get() {
    if (!status_.ok() || left() < sizeof(T)) {
      Fail("ends too early");
      return T{};
    }
    BitsOf<T> bits = 0;
    for (size_t i = 0; i < sizeof(T); ++i) {
      const auto byte = static_cast<uint8_t>(bytes_[offset_ + i]);
      bits = static_cast<BitsOf<T>>(bits |
                                    (static_cast<BitsOf<T>>(byte) << (8 * i)));
    }
    offset_ += sizeof(T);
    return std::bit_cast<T>(bits);
  }

  // A count of elements of `element_bytes` each, all of which are there.
  size_t GetCount(size_t element_bytes, size_t max) {
    const size_t count = Get<uint32_t>();
    if (!status_.ok()) {
      return 0;
    }
    if (count > max) {
      Fail(
          absl::StrCat("a count of at most ", max, " expected, found ", count));
      return 0;
    }
    if (count * element_bytes > left()) {
      Fail("ends too early");
      return 0;
    }
    return count;
  }

  std::string GetString(size_t max) {
    const size_t size = GetCount(1, max);
    std::string text(bytes_.substr(offset_, size));
    offset_ += size;
    return text;
  }

  template <typename T>
  std::vector<T> GetList() {
    std::vector<T> values(GetCount(sizeof(T), kMaxTrajectoryTokens));
    for (T& value : values) {
      value = Get<T>();
    }
    return values;
  }

 private:
  std::string_view bytes_;
  size_t offset_ = 0;
  absl::Status status_;
};

void Write(const Trajectory& t, Writer& out) {
  out.Put(t.id.unit.stage);
  out.Put(t.id.unit.step);
  out.Put(t.id.unit.index);
  out.Put(t.id.prompt);
  out.Put(t.id.sample);
  out.Put(t.prompt_id);
  out.Put(static_cast<uint8_t>(t.finish));
  out.Put(t.version.stage);
  out.Put(t.version.step);
  out.PutString(t.policy_hash);
  out.PutList(t.prompt_ids);
  out.PutList(t.instruction_ids);
  out.PutList(t.response_ids);
  out.PutList(t.behaviour_logprobs);
  out.PutList(t.reference_logprobs);
  out.Put(static_cast<uint8_t>(t.reward_total.has_value() ? 1 : 0));
  out.Put(t.reward_total.value_or(0.0));
  out.PutSize(t.reward_parts.size());
  for (const auto& [name, value] : t.reward_parts) {
    out.PutString(name);
    out.Put(value);
  }
}

Trajectory Read(Reader& in) {
  Trajectory t;
  t.id.unit.stage = in.Get<int32_t>();
  t.id.unit.step = in.Get<int64_t>();
  t.id.unit.index = in.Get<int32_t>();
  t.id.prompt = in.Get<int32_t>();
  t.id.sample = in.Get<int32_t>();
  t.prompt_id = in.Get<uint64_t>();
  const uint8_t finish = in.Get<uint8_t>();
  if (finish > static_cast<uint8_t>(FinishReason::kAbort)) {
    in.Fail(absl::StrCat("a finish reason of 0..2 expected, found ", finish));
  } else {
    t.finish = static_cast<FinishReason>(finish);
  }
  t.version.stage = in.Get<int32_t>();
  t.version.step = in.Get<int64_t>();
  t.policy_hash = in.GetString(kMaxNameBytes);
  t.prompt_ids = in.GetList<int32_t>();
  t.instruction_ids = in.GetList<int32_t>();
  t.response_ids = in.GetList<int32_t>();
  t.behaviour_logprobs = in.GetList<float>();
  t.reference_logprobs = in.GetList<float>();
  const uint8_t has_reward = in.Get<uint8_t>();
  const double reward = in.Get<double>();
  if (has_reward == 1) {
    t.reward_total = reward;
  } else if (has_reward != 0 || std::bit_cast<uint64_t>(reward) != 0) {
    in.Fail("a reward flag of 0 or 1 expected, and a zero without a reward");
  }
  const size_t parts = in.GetCount(4 + 8, kMaxRewardParts);
  for (size_t i = 0; i < parts; ++i) {
    std::string name = in.GetString(kMaxNameBytes);
    const double value = in.Get<double>();
    t.reward_parts.emplace_back(std::move(name), value);
  }
  return t;
}

absl::Status CheckIds(std::string_view name, const std::vector<int32_t>& ids) {
  if (ids.size() > kMaxTrajectoryTokens) {
    return absl::InvalidArgumentError(
        absl::StrCat(std::string(name), ": at most ", kMaxTrajectoryTokens,
                     " tokens are allowed, found ", ids.size()));
  }
  for (const int32_t id : ids) {
    if (id < 0) {
      return absl::InvalidArgumentError(
          absl::StrCat(std::string(name), ": a negative id, ", id));
    }
  }
  return absl::OkStatus();
}

absl::Status CheckLogprobs(std::string_view name,
                           const std::vector<float>& values, size_t length) {
  if (!values.empty() && values.size() != length) {
    return absl::InvalidArgumentError(
        absl::StrCat(std::string(name), ": expected none or ", length,
                     " values, found ", values.size()));
  }
  for (const float value : values) {
    if (!std::isfinite(value)) {
      return absl::InvalidArgumentError(
          absl::StrCat(std::string(name), ": a value is not finite"));
    }
  }
  return absl::OkStatus();
}

absl::Status CheckRewards(const Trajectory& t) {
  if (t.reward_total.has_value() && !std::isfinite(*t.reward_total)) {
    return absl::InvalidArgumentError("reward_total is not finite");
  }
  if (t.reward_parts.size() > kMaxRewardParts) {
    return absl::InvalidArgumentError(
        absl::StrCat("reward_parts: at most ", kMaxRewardParts,
                     " are allowed, found ", t.reward_parts.size()));
  }
  for (const auto& [name, value] : t.reward_parts) {
    if (!std::isfinite(value) || name.size() > kMaxNameBytes) {
      return absl::InvalidArgumentError(
          absl::StrCat("reward part '", name.substr(0, kMaxNameBytes),
                       "': the value is not finite or the name is too long"));
    }
  }
  return absl::OkStatus();
}

}  // namespace

std::string_view FinishReasonName(FinishReason reason) {
  switch (reason) {
    case FinishReason::kStop:
      return "stop";
    case FinishReason::kLength:
      return "length";
    case FinishReason::kAbort:
      return "abort";
  }
  return "unknown";
}

absl::Status Trajectory::Validate() const {
  const absl::Status status = [this]() -> absl::Status {
    if (id.unit.stage < 0 || id.unit.step < 0 || id.unit.index < 0 ||
        id.prompt < 0 || id.sample < 0 || version.stage < 0 ||
        version.step < 0) {
      return absl::InvalidArgumentError("an identity is negative");
    }
    if (policy_hash.size() > kMaxNameBytes) {
      return absl::InvalidArgumentError("policy_hash is too long");
    }
    COX_RETURN_IF_ERROR(CheckIds("prompt_ids", prompt_ids));
    COX_RETURN_IF_ERROR(CheckIds("instruction_ids", instruction_ids));
    COX_RETURN_IF_ERROR(CheckIds("response_ids", response_ids));
    COX_RETURN_IF_ERROR(CheckLogprobs("behaviour_logprobs", behaviour_logprobs,
                                      response_ids.size()));
    COX_RETURN_IF_ERROR(CheckLogprobs("reference_logprobs", reference_logprobs,
                                      response_ids.size()));
    return CheckRewards(*this);
  }();
  return Annotate(status, absl::StrCat("trajectory ", id.ToString()));
}

absl::StatusOr<std::string> SerializeUnit(
    const std::vector<Trajectory>& trajectories) {
  if (trajectories.size() > kMaxUnitTrajectories) {
    return absl::InvalidArgumentError(
        absl::StrCat("unit: at most ", kMaxUnitTrajectories,
                     " trajectories are allowed, found ", trajectories.size()));
  }
  std::string bytes(kMagic);
  Writer out(bytes);
  out.PutSize(trajectories.size());
  const Trajectory* previous = nullptr;
  for (const Trajectory& trajectory : trajectories) {
    COX_RETURN_IF_ERROR(trajectory.Validate());
    if (previous != nullptr && !(previous->id < trajectory.id)) {
      return absl::InvalidArgumentError(absl::StrCat(
          "unit: ascending ids expected, found ", trajectory.id.ToString(),
          " after ", previous->id.ToString()));
    }
    previous = &trajectory;
    Write(trajectory, out);
    if (bytes.size() > kMaxUnitBytes) {
      return absl::InvalidArgumentError(
          absl::StrCat("unit: at most ", kMaxUnitBytes, " bytes are allowed"));
    }
  }
  return bytes;
}

absl::StatusOr<std::vector<Trajectory>> ParseUnit(std::string_view bytes) {
  if (bytes.size() > kMaxUnitBytes) {
    return absl::DataLossError(absl::StrCat("unit: at most ", kMaxUnitBytes,
                                            " bytes expected, found ",
                                            bytes.size()));
  }
  if (bytes.substr(0, kMagic.size()) != kMagic) {
    return absl::DataLossError("unit: byte 0: expected the magic COXTRAJ1");
  }
  Reader in(bytes.substr(0));
  for (size_t i = 0; i < kMagic.size(); ++i) {
    in.Get<uint8_t>();
  }
  const size_t count = in.GetCount(kMinTrajectoryBytes, kMaxUnitTrajectories);
  std::vector<Trajectory> trajectories;
  trajectories.reserve(count);
  for (size_t i = 0; i < count && in.status().ok(); ++i) {
    const size_t start = in.offset();
    Trajectory trajectory = Read(in);
    if (!in.status().ok()) {
      break;
    }
    if (const absl::Status valid = trajectory.Validate(); !valid.ok()) {
      return absl::DataLossError(absl::StrCat("unit: byte ", start, ": ",
                                              std::string(valid.message())));
    }
    if (!trajectories.empty() && !(trajectories.back().id < trajectory.id)) {
      return absl::DataLossError(
          absl::StrCat("unit: byte ", start, ": ids are not ascending"));
    }
    trajectories.push_back(std::move(trajectory));
  }
  COX_RETURN_IF_ERROR(in.status());
  if (in.left() != 0) {
    return absl::DataLossError(absl::StrCat("unit: byte ", in.offset(), ": ",
                                            in.left(), " bytes too many"));
  }
  return trajectories;
}

std::string UnitResultHash(std::string_view serialized) {
  return Sha256Hex(serialized);
}

}  // namespace cox
