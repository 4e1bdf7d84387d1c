#include "lib/metrics/tensorboard.h"

#include <array>
#include <bit>
#include <utility>

#include "absl/strings/str_cat.h"

namespace cox {
namespace {

constexpr std::array<uint32_t, 256> MakeCrcTable() {
  std::array<uint32_t, 256> table{};
  for (uint32_t i = 0; i < 256; ++i) {
    uint32_t crc = i;
    for (int bit = 0; bit < 8; ++bit) {
      // Reversed Castagnoli polynomial.
      crc = (crc & 1) != 0 ? (crc >> 1) ^ 0x82f63b78u : crc >> 1;
    }
    table[i] = crc;
  }
  return table;
}
constexpr std::array<uint32_t, 256> kCrcTable = MakeCrcTable();

void AppendLittleEndian(uint64_t value, int bytes, std::string* out) {
  for (int i = 0; i < bytes; ++i) {
    out->push_back(static_cast<char>((value >> (8 * i)) & 0xff));
  }
}

void AppendVarint(uint64_t value, std::string* out) {
  while (value >= 0x80) {
    out->push_back(static_cast<char>((value & 0x7f) | 0x80));
    value >>= 7;
  }
  out->push_back(static_cast<char>(value));
}

enum WireType : uint64_t {
  kVarint = 0,
  kFixed64 = 1,
  kBytes = 2,
  kFixed32 = 5,
};

void AppendTag(uint64_t field, WireType type, std::string* out) {
  AppendVarint(field << 3 | type, out);
}

void AppendBytes(uint64_t field, std::string_view data, std::string* out) {
  AppendTag(field, kBytes, out);
  AppendVarint(data.size(), out);
  out->append(data);
}

std::string EventPrefix(double wall_time_s) {
  std::string event;
  AppendTag(1, kFixed64, &event);
  AppendLittleEndian(std::bit_cast<uint64_t>(wall_time_s), 8, &event);
  return event;
}

double WallSeconds(const Clock& clock) {
  return absl::ToDoubleSeconds(clock.WallNow() - absl::UnixEpoch());
}

}  // namespace

uint32_t Crc32c(std::string_view data) {
  uint32_t crc = 0xffffffffu;
  for (const char c : data) {
    crc = (crc >> 8) ^ kCrcTable[(crc ^ static_cast<unsigned char>(c)) & 0xff];
  }
  return ~crc;
}

uint32_t MaskedCrc32c(std::string_view data) {
  return std::rotr(Crc32c(data), 15) + 0xa282ead8u;
}

std::string FrameTfRecord(std::string_view data) {
  std::string record;
  record.reserve(data.size() + 16);
  AppendLittleEndian(data.size(), 8, &record);
  AppendLittleEndian(MaskedCrc32c(record), 4, &record);
  record.append(data);
  AppendLittleEndian(MaskedCrc32c(data), 4, &record);
  return record;
}

std::string EncodeVersionEvent(double wall_time_s) {
  std::string event = EventPrefix(wall_time_s);
  AppendBytes(3, "brain.Event:2", &event);
  return event;
}

std::string EncodeScalarEvent(double wall_time_s, int64_t step,
                              const std::map<std::string, double>& scalars) {
  std::string summary;
  for (const auto& [tag, value] : scalars) {
    std::string entry;
    AppendBytes(1, tag, &entry);
    AppendTag(2, kFixed32, &entry);
    AppendLittleEndian(std::bit_cast<uint32_t>(static_cast<float>(value)), 4,
                       &entry);
    AppendBytes(1, entry, &summary);
  }
  std::string event = EventPrefix(wall_time_s);
  AppendTag(2, kVarint, &event);
  AppendVarint(static_cast<uint64_t>(step), &event);
  AppendBytes(5, summary, &event);
  return event;
}

absl::StatusOr<std::unique_ptr<TensorboardWriter>> TensorboardWriter::Open(
    Fs& fs, const std::string& dir, const Clock& clock) {
  COX_RETURN_IF_ERROR(fs.MakeDirs(dir));
  const double now = WallSeconds(clock);
  const std::string base = JoinPath(
      dir,
      absl::StrCat("events.out.tfevents.", static_cast<int64_t>(now), ".cox"));
  // Two attempts of a run may start within one second.
  std::string path = base;
  for (int n = 1; fs.Exists(path); ++n) path = absl::StrCat(base, ".", n);
  COX_ASSIGN_OR_RETURN(auto file, fs.Create(path, /*exclusive=*/true));
  COX_RETURN_IF_ERROR(file->Append(FrameTfRecord(EncodeVersionEvent(now))));
  return std::unique_ptr<TensorboardWriter>(
      new TensorboardWriter(std::move(file), clock));
}

absl::Status TensorboardWriter::Append(
    std::string_view stage, int64_t step,
    const std::map<std::string, double>& metrics) {
  std::map<std::string, double> tagged;
  for (const auto& [name, value] : metrics) {
    tagged[absl::StrCat(std::string(stage), "/", name)] = value;
  }
  return file_->Append(
      FrameTfRecord(EncodeScalarEvent(WallSeconds(clock_), step, tagged)));
}

absl::Status TensorboardWriter::Close() { return file_->Close(); }

}  // namespace cox
