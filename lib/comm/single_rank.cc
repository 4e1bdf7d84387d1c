#include <algorithm>
#include <atomic>

#include "lib/comm/collective.h"

namespace cox {
namespace {

class SingleRank : public Collective {
 public:
  int rank() const override { return 0; }
  int world_size() const override { return 1; }
  absl::Status AllReduceSum(std::span<float>) override { return Check(); }
  absl::Status AllReduceSum(std::span<double>) override { return Check(); }
  absl::Status ReduceScatterSum(std::span<const float> in,
                                std::span<float> out) override {
    COX_RETURN_IF_ERROR(
        CheckBlocks("reduce-scatter", in.size(), out.size(), 1));
    std::copy(in.begin(), in.end(), out.begin());
    return Check();
  }
  absl::Status Broadcast(std::span<std::byte>, int root) override {
    COX_RETURN_IF_ERROR(CheckRoot(root, 1));
    return Check();
  }
  absl::Status AllGather(std::span<const std::byte> in,
                         std::span<std::byte> out) override {
    COX_RETURN_IF_ERROR(CheckBlocks("all-gather", out.size(), in.size(), 1));
    std::copy(in.begin(), in.end(), out.begin());
    return Check();
  }
  absl::Status Barrier() override { return Check(); }
  void Abort() override { aborted_.store(true); }

 private:
  absl::Status Check() const {
    return aborted_.load() ? absl::AbortedError("collective was aborted")
                           : absl::OkStatus();
  }
  std::atomic<bool> aborted_{false};
};

}  // namespace

absl::Status CheckBlocks(const char* operation, size_t large, size_t small,
                         int world) {
  if (large == small * static_cast<size_t>(world)) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(operation, ": one side has ", small, " elements, the other ",
                   large, ", which is not ", world, " times as many"));
}

absl::Status CheckRoot(int root, int world) {
  if (root >= 0 && root < world) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("broadcast: root ", root, " in a world of ", world));
}

std::unique_ptr<Collective> MakeSingleRank() {
  return std::make_unique<SingleRank>();
}

}  // namespace cox
