#include "coordinator/wal_check.h"

#include <algorithm>
#include <array>
#include <optional>

#include "absl/strings/str_cat.h"

namespace cox {
namespace {

constexpr size_t kHeader = 32;
constexpr size_t kFrameHeader = 24;
constexpr uint32_t kMagic = 0x377f0682;  // | 1: words are big-endian

using Sum = std::array<uint32_t, 2>;

uint32_t Inverse(uint32_t odd) {  // modulo 2^32, by Newton's iteration
  uint32_t inverse = odd;
  for (int i = 0; i < 4; ++i) {
    inverse *= 2 - odd * inverse;
  }
  return inverse;
}

class Wal {
 public:
  explicit Wal(std::string_view bytes) : bytes_(bytes) {}

  absl::StatusOr<std::vector<WalFix>> Check() {
    if (bytes_.size() <= kHeader ||
        std::all_of(bytes_.begin(), bytes_.end(),
                    [](char c) { return c == 0; })) {
      return std::vector<WalFix>();
    }
    // The header is synced before the first frame is written.
    if (!ReadHeader()) {
      return absl::DataLossError("its header is damaged");
    }
    const size_t frame = kFrameHeader + page_size_;
    const size_t frames = (bytes_.size() - kHeader) / frame;
    for (size_t i = 0; i < frames; ++i) {
      if (!ReadFrame(kHeader + i * frame, i + 1 < frames)) {
        COX_RETURN_IF_ERROR(CheckEnd(i, frames));
        break;
      }
    }
    return std::move(fixes_);
  }

 private:
  // Big-endian, as all fields of headers are.
  uint32_t Field(size_t at) const {
    uint32_t value = 0;
    for (size_t i = 0; i < 4; ++i) {
      value = value << 8 | static_cast<uint8_t>(bytes_[at + i]);
    }
    return value;
  }
  // As the checksum sees it.
  uint32_t Word(size_t at) const {
    const uint32_t value = Field(at);
    return big_endian_ ? value : __builtin_bswap32(value);
  }
  void Fix(size_t at, uint32_t field) {
    WalFix fix{at, std::string(4, '\0')};
    for (size_t i = 0; i < 4; ++i) {
      fix.bytes[i] = static_cast<char>(field >> (24 - 8 * i));
    }
    fixes_.push_back(std::move(fix));
  }
  void FixWord(size_t at, uint32_t word) {
    Fix(at, big_endian_ ? word : __builtin_bswap32(word));
  }

  Sum Add(Sum sum, size_t from, size_t to) const {
    for (size_t at = from; at < to; at += 8) {
      sum[0] += Word(at) + sum[1];
      sum[1] += Word(at + 4) + sum[0];
    }
    return sum;
  }

  // The words between the places of `parts` of which each alone, if wrong,
  // explains that the checksum is off by `off`: how many, the last one's place
  // and its error. High bits of a word reach few bits of the sum, so that
  // several may.
  struct Part {
    size_t from = 0;
    size_t to = 0;
  };
  struct WrongWord {
    int candidates = 0;
    size_t at = 0;
    uint32_t error = 0;
  };
  static WrongWord FindWrongWord(const std::vector<Part>& parts, Sum off) {
    WrongWord found;
    // How an error of 1 in the first or second word of a pair grows to the end.
    Sum first{1, 1};
    Sum second{0, 1};
    const auto grow = [](Sum& sum) {
      sum[0] += sum[1];
      sum[1] += sum[0];
    };
    const auto consider = [&](size_t at, const Sum& growth) {
      const int odd = growth[0] % 2 == 1 ? 0 : 1;  // never are both even
      const uint32_t error = off[odd] * Inverse(growth[odd]);
      if (error != 0 && error * growth[0] == off[0] &&
          error * growth[1] == off[1]) {
        found = WrongWord{found.candidates + 1, at, error};
      }
    };
    for (auto part = parts.rbegin(); part != parts.rend(); ++part) {
      for (size_t at = part->to; at > part->from; at -= 8) {
        consider(at - 8, first);
        consider(at - 4, second);
        grow(first);
        grow(second);
      }
    }
    return found;
  }

  bool ReadHeader() {
    // A damaged magic number says nothing about the order of bytes: the one
    // for which the checksum holds is right.
    const uint32_t magic = Field(0);
    for (const bool big : {(magic & 1) != 0, (magic & 1) == 0}) {
      big_endian_ = big;
      const Sum sum = Add({0, 0}, 0, 24);
      const Sum stored{Field(24), Field(28)};
      const Sum off{sum[0] - stored[0], sum[1] - stored[1]};
      fixes_.clear();
      sum_ = stored;
      Sum fixed_salts{Field(16), Field(20)};
      page_size_ = Field(8);
      uint32_t fixed_magic = magic;
      if (off != Sum{0, 0}) {
        const WrongWord wrong = FindWrongWord({{0, 24}}, off);
        // As in ReadFrame: the first frame goes on from the right sum.
        const bool sum_is_wrong =
            (off[0] == 0 || off[1] == 0) && PageSizeIsSound() &&
            bytes_.size() >= kHeader + kFrameHeader + page_size_ &&
            Continues(sum, kHeader);
        if (sum_is_wrong) {
          const int which = off[0] == 0 ? 1 : 0;
          Fix(which == 0 ? 24 : 28, sum[which]);
          sum_ = sum;
        } else if (wrong.candidates == 1) {
          const uint32_t word = Word(wrong.at) - wrong.error;
          const uint32_t field = big ? word : __builtin_bswap32(word);
          FixWord(wrong.at, word);
          fixed_magic = wrong.at == 0 ? field : magic;
          page_size_ = wrong.at == 8 ? field : page_size_;
          fixed_salts[0] = wrong.at == 16 ? field : fixed_salts[0];
          fixed_salts[1] = wrong.at == 20 ? field : fixed_salts[1];
        } else {
          continue;
        }
      }
      salts_ = fixed_salts;
      if (fixed_magic == (kMagic | (big ? 1u : 0u)) && PageSizeIsSound()) {
        return true;
      }
    }
    return false;
  }

  bool PageSizeIsSound() const {
    return page_size_ >= 512 && page_size_ <= 65536 &&
           (page_size_ & (page_size_ - 1)) == 0;
  }

  bool HasSalts(size_t at) const {
    return Field(at + 8) == salts_[0] && Field(at + 12) == salts_[1];
  }

  // Whether the frame at `at` follows, as it is or put right.
  bool ReadFrame(size_t at, bool followed) {
    const size_t data = at + kFrameHeader;
    const size_t end = data + page_size_;
    const Sum sum = Add(Add(sum_, at, at + 8), data, end);
    const Sum stored{Field(at + 16), Field(at + 20)};
    const Sum off{sum[0] - stored[0], sum[1] - stored[1]};
    if (off == Sum{0, 0}) {
      if (!HasSalts(at)) {
        const bool first = Field(at + 8) != salts_[0];
        if (first && Field(at + 12) != salts_[1]) {
          return false;
        }
        Fix(at + (first ? 8 : 12), salts_[first ? 0 : 1]);
      }
      sum_ = stored;
      return true;
    }
    if (!HasSalts(at)) {
      return false;
    }
    const WrongWord wrong = FindWrongWord({{at, at + 8}, {data, end}}, off);
    // Rather a flipped bit than a write that was torn.
    suspect_ = wrong.candidates > 0;
    if (off[0] == 0 || off[1] == 0) {
      // The stored sum itself may be wrong: the next frame goes on from the
      // right one.
      if (wrong.candidates == 0 || (followed && Continues(sum, end))) {
        const int which = off[0] == 0 ? 1 : 0;
        Fix(at + 16 + 4 * static_cast<size_t>(which), sum[which]);
        sum_ = sum;
        return true;
      }
      if (!followed) {
        return false;
      }
    }
    if (wrong.candidates == 1) {
      FixWord(wrong.at, Word(wrong.at) - wrong.error);
      sum_ = stored;
      return true;
    }
    return false;
  }

  // Whether the frame at `at` has the checksum that follows from `sum`.
  bool Continues(Sum sum, size_t at) const {
    const Sum chained = Add(Add(sum, at, at + 8), at + kFrameHeader,
                            at + kFrameHeader + page_size_);
    return chained == Sum{Field(at + 16), Field(at + 20)};
  }

  // Frame `bad` cannot be read. Anything of this log behind the end of another
  // transaction was written after the sync of the one that frame belongs to.
  absl::Status CheckEnd(size_t bad, size_t frames) const {
    if (suspect_) {
      return absl::DataLossError(
          absl::StrCat("a bit of frame ", bad + 1, " of ", frames,
                       " is flipped, it cannot be told which one"));
    }
    const size_t frame = kFrameHeader + page_size_;
    std::optional<uint32_t> ended;  // page of the first end behind `bad`
    for (size_t i = bad + 1; i < frames; ++i) {
      const size_t at = kHeader + i * frame;
      if (!HasSalts(at)) {
        continue;
      }
      const uint32_t page = Field(at);
      const bool end = Field(at + 4) != 0;
      // SQLite may repeat a last frame to fill a sector.
      if (ended.has_value() && !(end && page == *ended)) {
        return absl::DataLossError(absl::StrCat(
            "frame ", bad + 1, " of ", frames,
            " is damaged, and transactions that were committed behind it "
            "cannot be read"));
      }
      if (end) {
        ended = page;
      }
    }
    return absl::OkStatus();
  }

  const std::string_view bytes_;
  bool big_endian_ = false;
  size_t page_size_ = 0;
  Sum salts_{};
  Sum sum_{};             // of what was read so far
  bool suspect_ = false;  // the last frame that was not read
  std::vector<WalFix> fixes_;
};

}  // namespace

absl::StatusOr<std::vector<WalFix>> CheckWal(std::string_view wal) {
  return Wal(wal).Check();
}

}  // namespace cox
