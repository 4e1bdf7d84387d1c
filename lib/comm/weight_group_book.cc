#include "lib/comm/weight_group_book.h"

#include <algorithm>
#include <utility>

namespace cox {

bool WeightGroupBook::Full(const Open& open) const {
  const size_t count = open.group.members.size();
  return count >= kMaxMembers ||
         (open.expected > 0 && static_cast<int64_t>(count) >= open.expected);
}

void WeightGroupBook::Join(MonoTime now, const std::string& content_hash,
                           uint64_t member, int64_t expected) {
  auto open = std::ranges::find_if(open_, [&](const Open& o) {
    return o.group.content_hash == content_hash &&
           o.group.members.size() < kMaxMembers;
  });
  if (open == open_.end()) {
    open = open_.insert(
        open_.end(),
        {.group = {content_hash, {}}, .expected = 0, .closes = now + window_});
  }
  open->group.members.push_back(member);
  open->expected = expected;
}

bool WeightGroupBook::Leave(uint64_t member) {
  for (auto open = open_.begin(); open != open_.end(); ++open) {
    if (std::erase(open->group.members, member) == 0) continue;
    if (open->group.members.empty()) open_.erase(open);
    return true;
  }
  return false;
}

std::optional<WeightGroupBook::Group> WeightGroupBook::Take(MonoTime now) {
  const auto open = std::ranges::find_if(
      open_, [&](const Open& o) { return Full(o) || o.closes <= now; });
  if (open == open_.end()) return std::nullopt;
  Group group = std::move(open->group);
  open_.erase(open);
  return group;
}

std::optional<MonoTime> WeightGroupBook::NextDue() const {
  std::optional<MonoTime> due;
  for (const Open& open : open_) {
    if (!due.has_value() || open.closes < *due) due = open.closes;
  }
  return due;
}

}  // namespace cox
