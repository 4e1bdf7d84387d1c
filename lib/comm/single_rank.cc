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
  absl::Status Broadcast(std::span<std::byte>, int root) override {
    if (root != 0) {
      return absl::InvalidArgumentError(
          absl::StrCat("broadcast: root ", root, " in a world of one"));
    }
    return Check();
  }
  absl::Status AllGather(std::span<const std::byte> in,
                         std::span<std::byte> out) override {
    if (out.size() != in.size()) {
      return absl::InvalidArgumentError(
          absl::StrCat("all-gather: in has ", in.size(), " bytes, out ",
                       out.size(), ", world 1"));
    }
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

std::unique_ptr<Collective> MakeSingleRank() {
  return std::make_unique<SingleRank>();
}

}  // namespace cox
