#include "lib/metrics/tensorboard.h"

#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <optional>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace cox {
namespace {

// An independent reader: bitwise CRC, generic protobuf wire decoding.
uint32_t SlowCrc32c(std::string_view data) {
  uint32_t crc = ~0u;
  for (const char c : data) {
    crc ^= static_cast<unsigned char>(c);
    for (int bit = 0; bit < 8; ++bit) {
      crc = (crc & 1) != 0 ? (crc >> 1) ^ 0x82f63b78u : crc >> 1;
    }
  }
  return ~crc;
}
uint32_t SlowMasked(std::string_view data) {
  const uint32_t crc = SlowCrc32c(data);
  return ((crc >> 15) | (crc << 17)) + 0xa282ead8u;
}

template <typename T>
T Little(std::string_view data) {
  T value;
  std::memcpy(&value, data.data(), sizeof(T));
  return value;
}

// Records of a file; fails the test on a wrong checksum.
std::vector<std::string> ReadRecords(std::string_view file) {
  std::vector<std::string> records;
  while (!file.empty()) {
    if (file.size() < 16) {
      ADD_FAILURE() << "torn record";
      break;
    }
    const auto length = Little<uint64_t>(file);
    EXPECT_EQ(Little<uint32_t>(file.substr(8)), SlowMasked(file.substr(0, 8)));
    const std::string_view data = file.substr(12, length);
    EXPECT_EQ(Little<uint32_t>(file.substr(12 + length)), SlowMasked(data));
    records.emplace_back(data);
    file.remove_prefix(16 + length);
  }
  return records;
}

struct Field {
  uint64_t number = 0;
  uint64_t varint = 0;     // wire type 0
  std::string_view bytes;  // wire types 1, 2, 5
};

uint64_t TakeVarint(std::string_view* data) {
  uint64_t value = 0;
  for (int shift = 0; !data->empty(); shift += 7) {
    const auto byte = static_cast<unsigned char>(data->front());
    data->remove_prefix(1);
    value |= static_cast<uint64_t>(byte & 0x7f) << shift;
    if (byte < 0x80) break;
  }
  return value;
}

std::vector<Field> ReadFields(std::string_view data) {
  std::vector<Field> fields;
  while (!data.empty()) {
    const uint64_t tag = TakeVarint(&data);
    Field field;
    field.number = tag >> 3;
    size_t length = 0;
    switch (tag & 7) {
      case 0:
        field.varint = TakeVarint(&data);
        break;
      case 1:
        length = 8;
        break;
      case 2:
        length = TakeVarint(&data);
        break;
      case 5:
        length = 4;
        break;
      default:
        ADD_FAILURE() << "wire type " << (tag & 7);
    }
    field.bytes = data.substr(0, length);
    data.remove_prefix(length);
    fields.push_back(field);
  }
  return fields;
}

struct Event {
  double wall_time = 0;
  int64_t step = 0;
  std::string version;
  std::map<std::string, float> scalars;
};

Event ReadEvent(std::string_view data) {
  Event event;
  for (const Field& field : ReadFields(data)) {
    if (field.number == 1) event.wall_time = Little<double>(field.bytes);
    if (field.number == 2) event.step = static_cast<int64_t>(field.varint);
    if (field.number == 3) event.version = std::string(field.bytes);
    if (field.number != 5) continue;
    for (const Field& value : ReadFields(field.bytes)) {
      EXPECT_EQ(value.number, 1u);
      std::string tag;
      float number = 0;
      for (const Field& part : ReadFields(value.bytes)) {
        if (part.number == 1) tag = std::string(part.bytes);
        if (part.number == 2) number = Little<float>(part.bytes);
      }
      event.scalars[tag] = number;
    }
  }
  return event;
}

TEST(TensorboardTest, ChecksumsMatchPublishedVectors) {
  EXPECT_EQ(Crc32c("123456789"), 0xe3069283u);
  EXPECT_EQ(Crc32c(""), 0u);
  // RFC 3720 B.4: 32 bytes of zeros, and of ones.
  EXPECT_EQ(Crc32c(std::string(32, '\0')), 0x8a9136aau);
  EXPECT_EQ(Crc32c(std::string(32, '\xff')), 0x62a8ab43u);
}

TEST(TensorboardTest, ScalarsReadBack) {
  const std::string data =
      EncodeScalarEvent(1.5, 1LL << 40,
                        {{"ppo/objective/kl", 0.25},
                         {"ppo/x", std::numeric_limits<double>::infinity()}});
  const std::vector<std::string> records = ReadRecords(FrameTfRecord(data));
  ASSERT_EQ(records.size(), 1u);
  const Event event = ReadEvent(records[0]);
  EXPECT_EQ(event.wall_time, 1.5);
  EXPECT_EQ(event.step, 1LL << 40);
  EXPECT_EQ(event.scalars.at("ppo/objective/kl"), 0.25f);
  EXPECT_TRUE(std::isinf(event.scalars.at("ppo/x")));
}

TEST(TensorboardTest, WritesAFilePerAttempt) {
  const std::string dir = JoinPath(::testing::TempDir(), "cox_tb");
  ASSERT_TRUE(Fs::Real().RemoveAll(dir).ok());
  FakeClock clock;
  clock.Advance(absl::Seconds(100));
  for (int attempt = 0; attempt < 2; ++attempt) {
    auto writer = TensorboardWriter::Open(Fs::Real(), dir, clock);
    ASSERT_TRUE(writer.ok()) << writer.status();
    for (int64_t step = 1; step <= 3; ++step) {
      ASSERT_TRUE((*writer)
                      ->Append("sft", step,
                               {{"loss/lm", 1.0 / static_cast<double>(step)}})
                      .ok());
    }
    ASSERT_TRUE((*writer)->Close().ok());
  }
  const auto names = Fs::Real().List(dir);
  ASSERT_TRUE(names.ok());
  ASSERT_THAT(*names, ::testing::ElementsAre("events.out.tfevents.100.cox",
                                             "events.out.tfevents.100.cox.1"));
  const std::vector<std::string> records =
      ReadRecords(Fs::Real().ReadAll(JoinPath(dir, (*names)[1])).value());
  ASSERT_EQ(records.size(), 4u);
  EXPECT_EQ(ReadEvent(records[0]).version, "brain.Event:2");
  EXPECT_EQ(ReadEvent(records[3]).step, 3);
  EXPECT_EQ(ReadEvent(records[3]).scalars.at("sft/loss/lm"), 1.0f / 3);
  (void)Fs::Real().RemoveAll(dir);
}

}  // namespace
}  // namespace cox
