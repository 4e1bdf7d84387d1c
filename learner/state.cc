#include "learner/state.h"

#include <bit>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"

namespace cox {
namespace {

static_assert(std::endian::native == std::endian::little,
              "the format is the memory of a little-endian host");

constexpr std::string_view kMagic = "COXSTAT1";

template <typename T>
void AppendNumber(T value, std::string* out) {
  out->append(reinterpret_cast<const char*>(&value), sizeof(value));
}

template <typename T>
bool TakeNumber(std::string_view* in, T* value) {
  if (in->size() < sizeof(T)) {
    return false;
  }
  std::memcpy(value, in->data(), sizeof(T));
  in->remove_prefix(sizeof(T));
  return true;
}

absl::Status Malformed(std::string_view what) {
  return absl::DataLossError(
      absl::StrCat("trainer state: ", std::string(what)));
}

}  // namespace

void StateWriter::Put(std::string_view name, const void* data, size_t bytes) {
  sections_[std::string(name)] =
      std::string(static_cast<const char*>(data), bytes);
}

void StateWriter::PutInt(std::string_view name, int64_t value) {
  Put(name, &value, sizeof(value));
}

void StateWriter::PutDouble(std::string_view name, double value) {
  Put(name, &value, sizeof(value));
}

void StateWriter::PutFloats(std::string_view name,
                            std::span<const float> values) {
  Put(name, values.data(), values.size_bytes());
}

std::string StateWriter::Finish() const {
  size_t total = kMagic.size();
  for (const auto& [name, data] : sections_) {
    total += 12 + name.size() + data.size();
  }
  std::string out;
  out.reserve(total);
  out.append(kMagic);
  for (const auto& [name, data] : sections_) {
    AppendNumber(static_cast<uint32_t>(name.size()), &out);
    out.append(name);
    AppendNumber(static_cast<uint64_t>(data.size()), &out);
    out.append(data);
  }
  return out;
}

absl::StatusOr<StateReader> StateReader::Parse(std::string_view bytes) {
  if (!bytes.starts_with(kMagic)) {
    return Malformed("expected COXSTAT1 at the start");
  }
  bytes.remove_prefix(kMagic.size());
  StateReader reader;
  std::string_view previous;
  while (!bytes.empty()) {
    uint32_t name_bytes = 0;
    uint64_t data_bytes = 0;
    if (!TakeNumber(&bytes, &name_bytes) || name_bytes > bytes.size()) {
      return Malformed("truncated name");
    }
    const std::string_view name = bytes.substr(0, name_bytes);
    bytes.remove_prefix(name_bytes);
    if (!TakeNumber(&bytes, &data_bytes) || data_bytes > bytes.size()) {
      return Malformed(absl::StrCat("truncated section ", std::string(name)));
    }
    if (!reader.sections_.empty() && name <= previous) {
      return Malformed("sections are not in order");
    }
    reader.sections_.emplace(std::string(name), bytes.substr(0, data_bytes));
    previous = name;
    bytes.remove_prefix(data_bytes);
  }
  return reader;
}

absl::StatusOr<std::string_view> StateReader::Section(std::string_view name,
                                                      size_t bytes) const {
  const auto it = sections_.find(name);
  if (it == sections_.end()) {
    return Malformed(absl::StrCat("no section ", std::string(name)));
  }
  if (it->second.size() != bytes) {
    return Malformed(absl::StrCat("section ", std::string(name), ": expected ",
                                  bytes, " bytes, found ", it->second.size()));
  }
  return it->second;
}

absl::StatusOr<int64_t> StateReader::Int(std::string_view name) const {
  int64_t value = 0;
  COX_ASSIGN_OR_RETURN(const std::string_view data,
                       Section(name, sizeof(value)));
  std::memcpy(&value, data.data(), sizeof(value));
  return value;
}

absl::StatusOr<double> StateReader::Double(std::string_view name) const {
  double value = 0;
  COX_ASSIGN_OR_RETURN(const std::string_view data,
                       Section(name, sizeof(value)));
  std::memcpy(&value, data.data(), sizeof(value));
  return value;
}

absl::Status StateReader::Floats(std::string_view name,
                                 std::span<float> out) const {
  COX_ASSIGN_OR_RETURN(const std::string_view data,
                       Section(name, out.size_bytes()));
  if (!out.empty()) {
    std::memcpy(out.data(), data.data(), out.size_bytes());
  }
  return absl::OkStatus();
}

}  // namespace cox
