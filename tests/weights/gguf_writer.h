#ifndef COX_TESTS_WEIGHTS_GGUF_WRITER_H_
#define COX_TESTS_WEIGHTS_GGUF_WRITER_H_

// Writes small GGUF files, well-formed ones and others, for tests.

#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace cox::testing {

template <typename T>
std::string Bytes(T value) {
  std::string out(sizeof(T), '\0');
  std::memcpy(out.data(), &value, sizeof(T));
  return out;
}

inline std::string LengthAnd(std::string_view text) {
  return Bytes<uint64_t>(text.size()) + std::string(text);
}

class GgufWriter {
 public:
  uint32_t version = 3;
  uint64_t alignment = 32;

  void Pair(std::string_view key, uint32_t type, const std::string& value) {
    pairs_ += LengthAnd(key) + Bytes(type) + value;
    ++pair_count_;
  }
  void U32(std::string_view key, uint32_t value) { Pair(key, 4, Bytes(value)); }
  void F32(std::string_view key, float value) { Pair(key, 6, Bytes(value)); }
  void Flag(std::string_view key, bool value) {
    Pair(key, 7, Bytes<uint8_t>(value ? 1 : 0));
  }
  void Text(std::string_view key, std::string_view value) {
    Pair(key, 8, LengthAnd(value));
  }
  void Texts(std::string_view key, const std::vector<std::string>& list) {
    std::string body = Bytes<uint32_t>(8) + Bytes<uint64_t>(list.size());
    for (const std::string& text : list) body += LengthAnd(text);
    Pair(key, 9, body);
  }
  void I32s(std::string_view key, const std::vector<int32_t>& list) {
    std::string body = Bytes<uint32_t>(5) + Bytes<uint64_t>(list.size());
    for (const int32_t value : list) body += Bytes(value);
    Pair(key, 9, body);
  }
  // `shape` row-major, as in GgufTensor.
  void Tensor(std::string_view name, std::vector<uint64_t> shape, uint32_t type,
              std::string_view data) {
    data_.resize((data_.size() + alignment - 1) / alignment * alignment);
    TensorAt(name, std::move(shape), type, data_.size());
    data_ += data;
  }
  void Floats(std::string_view name, std::vector<uint64_t> shape,
              const std::vector<float>& values) {
    Tensor(name, std::move(shape), 0,
           {reinterpret_cast<const char*>(values.data()),
            values.size() * sizeof(float)});
  }
  void TensorAt(std::string_view name, std::vector<uint64_t> shape,
                uint32_t type, uint64_t offset) {
    descriptions_ +=
        LengthAnd(name) + Bytes(static_cast<uint32_t>(shape.size()));
    for (size_t i = shape.size(); i-- > 0;) descriptions_ += Bytes(shape[i]);
    descriptions_ += Bytes(type) + Bytes(offset);
    ++tensor_count_;
  }
  std::string Header() const {
    return "GGUF" + Bytes(version) + Bytes(tensor_count_) + Bytes(pair_count_) +
           pairs_ + descriptions_;
  }
  std::string File() const {
    std::string out = Header();
    out.resize((out.size() + alignment - 1) / alignment * alignment);
    return out + data_;
  }

 private:
  std::string pairs_;
  std::string descriptions_;
  std::string data_;
  uint64_t pair_count_ = 0;
  uint64_t tensor_count_ = 0;
};

}  // namespace cox::testing

#endif  // COX_TESTS_WEIGHTS_GGUF_WRITER_H_
