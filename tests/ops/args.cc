#include "tests/ops/args.h"

#include <algorithm>
#include <limits>
#include <map>
#include <utility>

namespace cox::ops {
namespace {

constexpr double kMaxExactInt = 9007199254740992.0;  // 2^53

absl::Status Bad(const std::string& name, std::string_view what) {
  return absl::InvalidArgumentError(
      absl::StrCat(name, ": ", std::string(what)));
}

absl::Status Read(const std::string& name, const Json& node, double* out) {
  if (node.is_number()) {
    *out = node.get<double>();
    return absl::OkStatus();
  }
  if (node.is_string()) {
    const std::string& text = node.get_ref<const std::string&>();
    constexpr double kInf = std::numeric_limits<double>::infinity();
    if (text == "nan") *out = std::numeric_limits<double>::quiet_NaN();
    if (text == "inf") *out = kInf;
    if (text == "-inf") *out = -kInf;
    if (text == "nan" || text == "inf" || text == "-inf") {
      return absl::OkStatus();
    }
  }
  return Bad(name, "must be a number, \"nan\", \"inf\" or \"-inf\"");
}

absl::Status Read(const std::string& name, const Json& node, float* out) {
  double wide = 0;
  COX_RETURN_IF_ERROR(Read(name, node, &wide));
  *out = static_cast<float>(wide);
  return absl::OkStatus();
}

absl::Status Read(const std::string& name, const Json& node, int64_t* out) {
  if (!node.is_number()) return Bad(name, "must be an integer");
  const double wide = node.get<double>();
  if (!(std::abs(wide) <= kMaxExactInt) || wide != std::floor(wide)) {
    return Bad(name, "must be an integer of magnitude up to 2^53");
  }
  *out = static_cast<int64_t>(wide);
  return absl::OkStatus();
}

absl::Status Read(const std::string& name, const Json& node, uint64_t* out) {
  if (node.is_number_unsigned()) {
    *out = node.get<uint64_t>();
    return absl::OkStatus();
  }
  int64_t value = 0;
  COX_RETURN_IF_ERROR(Read(name, node, &value));
  if (value < 0) return Bad(name, "must be at least 0");
  *out = static_cast<uint64_t>(value);
  return absl::OkStatus();
}

absl::Status Read(const std::string& name, const Json& node, uint8_t* out) {
  if (node.is_boolean()) {
    *out = node.get<bool>() ? 1 : 0;
    return absl::OkStatus();
  }
  if (node.is_number()) {
    const double value = node.get<double>();
    if (value == 0 || value == 1) {
      *out = value == 1 ? 1 : 0;
      return absl::OkStatus();
    }
  }
  return Bad(name, "must be 0 or 1");
}

// Appends the leaves of `node`; dims[depth] is -1 until a list of that depth
// has been seen.
template <typename T>
absl::Status Collect(const std::string& name, const Json& node, size_t depth,
                     Tensor<T>* out) {
  if (depth == out->dims.size()) {
    T value{};
    COX_RETURN_IF_ERROR(Read(name, node, &value));
    out->data.push_back(value);
    return absl::OkStatus();
  }
  if (!node.is_array()) {
    return Bad(
        name, absl::StrCat("must be nested lists of depth ", out->dims.size()));
  }
  const int64_t size = static_cast<int64_t>(node.size());
  if (out->dims[depth] < 0) out->dims[depth] = size;
  if (out->dims[depth] != size) return Bad(name, "is ragged");
  for (const Json& child : node) {
    COX_RETURN_IF_ERROR(Collect(name, child, depth + 1, out));
  }
  return absl::OkStatus();
}

template <typename T>
absl::StatusOr<Tensor<T>> ReadTensor(const std::string& name, const Json& node,
                                     int rank) {
  Tensor<T> tensor;
  tensor.dims.assign(rank, -1);
  COX_RETURN_IF_ERROR(Collect(name, node, 0, &tensor));
  for (int64_t& dim : tensor.dims) dim = std::max<int64_t>(dim, 0);
  return tensor;
}

template <typename T>
absl::StatusOr<std::vector<std::vector<T>>> ReadRagged(const std::string& name,
                                                       const Json& node) {
  if (!node.is_array()) return Bad(name, "must be a list of lists");
  std::vector<std::vector<T>> rows;
  for (const Json& child : node) {
    COX_ASSIGN_OR_RETURN(Tensor<T> row, ReadTensor<T>(name, child, 1));
    rows.push_back(std::move(row.data));
  }
  return rows;
}

}  // namespace

absl::Status Named(const std::string& name, const absl::Status& status) {
  return Annotate(status, name);
}

absl::Status CheckDims(const std::string& name, std::span<const int64_t> dims,
                       std::span<const int64_t> expected) {
  // A dimension after an empty one cannot be seen in nested lists.
  for (size_t i = 0; i < expected.size(); ++i) {
    if (dims[i] != expected[i]) {
      return Bad(name, absl::StrCat("dimension ", i, " must be ", expected[i],
                                    ", found ", dims[i]));
    }
    if (dims[i] == 0) break;
  }
  return absl::OkStatus();
}

absl::Status Args::CheckNames(std::span<const std::string_view> allowed) const {
  for (const auto& [key, value] : object_.items()) {
    if (std::find(allowed.begin(), allowed.end(), key) == allowed.end()) {
      return Bad(prefix_ + key, "unknown argument");
    }
  }
  return absl::OkStatus();
}

bool Args::Has(const char* name) const {
  const auto it = object_.find(name);
  return it != object_.end() && !it->is_null();
}

absl::StatusOr<const Json*> Args::Raw(const char* name) const {
  const auto it = object_.find(name);
  if (it == object_.end() || it->is_null()) {
    return Bad(Path(name), "missing");
  }
  return &*it;
}

absl::StatusOr<Args> Args::Object(const char* name) const {
  COX_ASSIGN_OR_RETURN(const Json* node, Raw(name));
  if (!node->is_object()) return Bad(Path(name), "must be an object");
  return Args(*node, Path(name) + ".");
}

absl::StatusOr<double> Args::Number(const char* name) const {
  COX_ASSIGN_OR_RETURN(const Json* node, Raw(name));
  double value = 0;
  COX_RETURN_IF_ERROR(Read(Path(name), *node, &value));
  if (!std::isfinite(value)) return Bad(Path(name), "must be finite");
  return value;
}

absl::StatusOr<double> Args::Number(const char* name, double fallback) const {
  if (!Has(name)) return fallback;
  return Number(name);
}

absl::StatusOr<std::optional<double>> Args::MaybeNumber(
    const char* name) const {
  if (!Has(name)) return std::optional<double>();
  COX_ASSIGN_OR_RETURN(const double value, Number(name));
  return std::optional<double>(value);
}

absl::StatusOr<int64_t> Args::Int(const char* name, int64_t low) const {
  COX_ASSIGN_OR_RETURN(const Json* node, Raw(name));
  int64_t value = 0;
  COX_RETURN_IF_ERROR(Read(Path(name), *node, &value));
  if (value < low) {
    return Bad(Path(name), absl::StrCat("must be at least ", low));
  }
  return value;
}

absl::StatusOr<int64_t> Args::IntOr(const char* name, int64_t fallback,
                                    int64_t low) const {
  if (!Has(name)) return fallback;
  return Int(name, low);
}

absl::StatusOr<uint64_t> Args::Uint(const char* name) const {
  COX_ASSIGN_OR_RETURN(const Json* node, Raw(name));
  uint64_t value = 0;
  COX_RETURN_IF_ERROR(Read(Path(name), *node, &value));
  return value;
}

absl::StatusOr<uint64_t> Args::Uint(const char* name, uint64_t fallback) const {
  if (!Has(name)) return fallback;
  return Uint(name);
}

absl::StatusOr<bool> Args::Bool(const char* name, bool fallback) const {
  if (!Has(name)) return fallback;
  COX_ASSIGN_OR_RETURN(const Json* node, Raw(name));
  uint8_t value = 0;
  COX_RETURN_IF_ERROR(Read(Path(name), *node, &value));
  return value != 0;
}

absl::StatusOr<std::string> Args::String(const char* name) const {
  COX_ASSIGN_OR_RETURN(const Json* node, Raw(name));
  if (!node->is_string()) return Bad(Path(name), "must be a string");
  return node->get<std::string>();
}

absl::StatusOr<std::string> Args::StringOr(const char* name,
                                           const char* fallback) const {
  if (!Has(name)) return std::string(fallback);
  return String(name);
}

template <typename T>
absl::StatusOr<Tensor<T>> Args::Floats(const char* name, int rank) const {
  COX_ASSIGN_OR_RETURN(const Json* node, Raw(name));
  return ReadTensor<T>(Path(name), *node, rank);
}

absl::StatusOr<Tensor<int64_t>> Args::Ints(const char* name, int rank) const {
  COX_ASSIGN_OR_RETURN(const Json* node, Raw(name));
  return ReadTensor<int64_t>(Path(name), *node, rank);
}

absl::StatusOr<Tensor<uint64_t>> Args::Uints(const char* name, int rank) const {
  COX_ASSIGN_OR_RETURN(const Json* node, Raw(name));
  return ReadTensor<uint64_t>(Path(name), *node, rank);
}

absl::StatusOr<Tensor<uint8_t>> Args::Flags(const char* name, int rank) const {
  COX_ASSIGN_OR_RETURN(const Json* node, Raw(name));
  return ReadTensor<uint8_t>(Path(name), *node, rank);
}

absl::StatusOr<Tensor<uint8_t>> Args::Mask(
    std::span<const int64_t> dims) const {
  if (!Has("mask")) {
    int64_t size = 1;
    for (const int64_t dim : dims) size *= dim;
    return Tensor<uint8_t>{{dims.begin(), dims.end()},
                           std::vector<uint8_t>(size, 1)};
  }
  COX_ASSIGN_OR_RETURN(Tensor<uint8_t> mask,
                       Flags("mask", static_cast<int>(dims.size())));
  COX_RETURN_IF_ERROR(CheckDims(Path("mask"), mask.dims, dims));
  return mask;
}

template <typename T>
absl::StatusOr<Tensor<T>> Args::FloatsLike(
    const char* name, std::span<const int64_t> dims) const {
  COX_ASSIGN_OR_RETURN(Tensor<T> tensor,
                       Floats<T>(name, static_cast<int>(dims.size())));
  COX_RETURN_IF_ERROR(CheckDims(Path(name), tensor.dims, dims));
  return tensor;
}

template <typename T>
absl::StatusOr<Tensor<T>> Args::MaybeFloats(
    const char* name, std::span<const int64_t> dims) const {
  if (!Has(name)) return Tensor<T>{{dims.begin(), dims.end()}, {}};
  return FloatsLike<T>(name, dims);
}

absl::StatusOr<std::vector<std::vector<int64_t>>> Args::RaggedInts(
    const char* name, int64_t low) const {
  COX_ASSIGN_OR_RETURN(const Json* node, Raw(name));
  COX_ASSIGN_OR_RETURN(auto rows, ReadRagged<int64_t>(Path(name), *node));
  for (const std::vector<int64_t>& row : rows) {
    for (const int64_t value : row) {
      if (value < low) {
        return Bad(Path(name), absl::StrCat("must be at least ", low));
      }
    }
  }
  return rows;
}

template <typename T>
absl::StatusOr<std::vector<std::vector<T>>> Args::RaggedFloats(
    const char* name) const {
  COX_ASSIGN_OR_RETURN(const Json* node, Raw(name));
  return ReadRagged<T>(Path(name), *node);
}

absl::StatusOr<std::vector<std::string>> Args::Strings(const char* name) const {
  COX_ASSIGN_OR_RETURN(const Json* node, Raw(name));
  if (!node->is_array()) return Bad(Path(name), "must be a list");
  std::vector<std::string> strings;
  for (const Json& child : *node) {
    if (!child.is_string()) return Bad(Path(name), "must hold strings");
    strings.push_back(child.get<std::string>());
  }
  return strings;
}

absl::StatusOr<std::vector<int64_t>> Args::Labels(const char* name) const {
  COX_ASSIGN_OR_RETURN(const Json* node, Raw(name));
  if (!node->is_array()) return Bad(Path(name), "must be a list");
  std::map<std::string, int64_t> numbers;
  std::vector<int64_t> labels;
  for (const Json& child : *node) {
    if (!child.is_number() && !child.is_string()) {
      return Bad(Path(name), "must hold numbers or strings");
    }
    const std::string key =
        child.dump(-1, ' ', false, Json::error_handler_t::replace);
    labels.push_back(
        numbers.try_emplace(key, static_cast<int64_t>(numbers.size()))
            .first->second);
  }
  return labels;
}

Json EncodeBools(std::span<const uint8_t> data) {
  Json list = Json::array();
  for (const uint8_t x : data) list.push_back(x != 0);
  return list;
}

#define COX_INSTANTIATE(T)                                                    \
  template absl::StatusOr<Tensor<T>> Args::Floats<T>(const char*, int) const; \
  template absl::StatusOr<Tensor<T>> Args::FloatsLike<T>(                     \
      const char*, std::span<const int64_t>) const;                           \
  template absl::StatusOr<Tensor<T>> Args::MaybeFloats<T>(                    \
      const char*, std::span<const int64_t>) const;                           \
  template absl::StatusOr<std::vector<std::vector<T>>> Args::RaggedFloats<T>( \
      const char*) const;
COX_INSTANTIATE(float)
COX_INSTANTIATE(double)
#undef COX_INSTANTIATE

}  // namespace cox::ops
