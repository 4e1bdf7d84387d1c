#ifndef COX_LIB_COMM_WEIGHT_GROUP_BOOK_H_
#define COX_LIB_COMM_WEIGHT_GROUP_BOOK_H_

// Who waits for which version, and when that is a group. Pure.
//
// A group closes when as many have come as are expected, or `window` after the
// first: the actors ask within milliseconds of a publication, and nobody waits
// for one that is busy, gone or not there yet. Who comes later is in the next
// group of that version.

#include <cstdint>
#include <list>
#include <optional>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "lib/base/clock.h"

namespace cox {

// Thread-compatible.
class WeightGroupBook {
 public:
  // At most this many members in one group; the others are in the next.
  static constexpr size_t kMaxMembers = 1023;

  explicit WeightGroupBook(absl::Duration window) : window_(window) {}

  struct Group {
    std::string content_hash;
    std::vector<uint64_t> members;  // in order of arrival
  };

  // `member` is new here. `expected`: members that may come, itself included;
  // 0 = unknown. The newest answer counts.
  void Join(MonoTime now, const std::string& content_hash, uint64_t member,
            int64_t expected);
  // False when it is not waiting (any more).
  bool Leave(uint64_t member);
  // The oldest group that is closed at `now`, which is forgotten.
  std::optional<Group> Take(MonoTime now);
  // When Take() will have something without a further event; nullopt: never.
  std::optional<MonoTime> NextDue() const;

 private:
  struct Open {
    Group group;
    int64_t expected = 0;
    MonoTime closes;
  };
  bool Full(const Open& open) const;

  const absl::Duration window_;
  std::list<Open> open_;  // by arrival of the first member
};

}  // namespace cox

#endif  // COX_LIB_COMM_WEIGHT_GROUP_BOOK_H_
