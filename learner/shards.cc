#include "learner/shards.h"

#include <algorithm>

#include "absl/strings/str_cat.h"

namespace cox {

absl::StatusOr<Shards> Shards::Create(int64_t count, Collective& group,
                                      const GradientSum::Options& sum) {
  if (count < group.world_size()) {
    return absl::InvalidArgumentError(absl::StrCat(
        "numerics.shards: expected at least the number of learner ranks, ",
        group.world_size(), ", found ", count));
  }
  return Shards(count, group, sum);
}

std::vector<int64_t> Shards::Elements(int64_t n, int64_t shard) const {
  std::vector<int64_t> elements;
  for (int64_t j = shard; j < n; j += count_) {
    elements.push_back(j);
  }
  return elements;
}

absl::Status Shards::ForOwn(
    const std::function<absl::Status(int64_t shard, size_t own)>& body) const {
  for (int64_t i = 0; i < own(); ++i) {
    COX_RETURN_IF_ERROR(body(first() + i, static_cast<size_t>(i)));
  }
  return absl::OkStatus();
}

absl::Status Shards::Backward(
    TrainEngine& engine,
    const std::function<absl::Status(int64_t shard, size_t own)>& body) {
  DeviceState* const device = engine.device();
  const std::span<float> gradients =
      device == nullptr ? engine.Gradients() : std::span<float>();
  const size_t floats =
      static_cast<size_t>(engine.layout().arena_bytes / sizeof(float));
  const size_t last = static_cast<size_t>(own()) - 1;
  size_t depth = 0;  // of waiting_, or of what the device keeps
  // The waiting sum is the left one.
  const auto add_waiting = [&](size_t place, size_t begin,
                               size_t count) -> absl::Status {
    if (device != nullptr) return device->AddKeptGradients(place, begin, count);
    for (size_t i = begin; i < begin + count; ++i) {
      gradients[i] = waiting_[place][i] + gradients[i];
    }
    return absl::OkStatus();
  };
  GradientSum sum(engine, *group_, sum_,
                  [&](size_t begin, size_t count) -> absl::Status {
                    for (size_t place = depth; place > 0; --place) {
                      COX_RETURN_IF_ERROR(add_waiting(place - 1, begin, count));
                    }
                    return absl::OkStatus();
                  });
  const auto own_shard = [&](int64_t shard, size_t i) -> absl::Status {
    engine.ZeroGradients();
    if (i == last) {
      engine.OnGradientReady([&sum](size_t tensor) { sum.Ready(tensor); });
      const absl::Status passed = body(shard, i);
      engine.OnGradientReady(nullptr);
      return passed;
    }
    COX_RETURN_IF_ERROR(body(shard, i));
    // Like a binary counter: shard i completes as many subtrees as i ends in
    // ones.
    for (size_t ones = i; ones % 2 == 1; ones /= 2) {
      COX_RETURN_IF_ERROR(add_waiting(--depth, 0, floats));
    }
    if (device != nullptr) return device->KeepGradients(depth++);
    if (waiting_.size() == depth) waiting_.emplace_back(gradients.size());
    waiting_[depth].assign(gradients.begin(), gradients.end());
    ++depth;
    return absl::OkStatus();
  };
  COX_RETURN_IF_ERROR(ForOwn(own_shard));
  return sum.Finish();
}

absl::Status Shards::GatherBytes(size_t size,
                                 std::span<const std::byte> own_values,
                                 std::span<std::byte> all) const {
  if (own_values.size() != size * static_cast<size_t>(own())) {
    return absl::InternalError(
        absl::StrCat("shards: expected ", own(), " values of ", size,
                     " bytes, found ", own_values.size(), " bytes"));
  }
  const int64_t world = group_->world_size();
  // Ranks may own one shard more or less; the collective wants equal sizes.
  const size_t slots = static_cast<size_t>((count_ + world - 1) / world);
  std::vector<std::byte> mine(size * slots);
  std::copy(own_values.begin(), own_values.end(), mine.begin());
  std::vector<std::byte> gathered(mine.size() * static_cast<size_t>(world));
  COX_RETURN_IF_ERROR(group_->AllGather(mine, gathered));
  for (int64_t rank = 0; rank < world; ++rank) {
    const auto from =
        gathered.begin() +
        static_cast<std::ptrdiff_t>(mine.size() * static_cast<size_t>(rank));
    const size_t first_of = static_cast<size_t>(FirstOf(rank));
    const size_t end_of = static_cast<size_t>(FirstOf(rank + 1));
    std::copy_n(from, size * (end_of - first_of),
                all.begin() + static_cast<std::ptrdiff_t>(size * first_of));
  }
  return absl::OkStatus();
}

}  // namespace cox
