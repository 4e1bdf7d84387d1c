// Collectives over c10d's Gloo backend. The only file that calls c10d, which
// reports by throwing: every call goes through Guarded().

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <exception>
#include <optional>
#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroupGloo.hpp>
#include <torch/csrc/distributed/c10d/TCPStore.hpp>
#include <utility>
#include <vector>

#include "lib/base/clock.h"
#include "lib/base/sync.h"
#include "lib/comm/collective.h"
#include "lib/comm/tree_sum.h"

namespace cox {
namespace {

using WorkPtr = c10::intrusive_ptr<c10d::Work>;
using ProcessGroupPtr = c10::intrusive_ptr<c10d::ProcessGroupGloo>;

// Gloo works on copies of at most this size. A copy costs a tenth of the
// transfer, and lets a call return at once after Abort(): an operation still
// in flight then writes into memory of its own, never into the caller's.
constexpr size_t kSegmentBytes = size_t{8} << 20;
// Below this a sum costs its round trips, not its bytes.
constexpr size_t kSmallBytes = size_t{64} << 10;
// How long after the deadline Gloo may take to report its own timeout.
constexpr absl::Duration kTimeoutSlack = absl::Milliseconds(500);

std::chrono::milliseconds ToMillis(absl::Duration duration) {
  // Rounded up, so that Gloo's timeout never comes before our deadline; at
  // least 1, because c10d reads zero as "no timeout given".
  return std::chrono::milliseconds(std::max<int64_t>(
      1,
      absl::ToInt64Milliseconds(absl::Ceil(duration, absl::Milliseconds(1)))));
}

// Shared with the completion callbacks, which may outlive the collective.
struct Signal {
  Mutex mutex;
  CondVar cv;
  bool aborted ABSL_GUARDED_BY(mutex) = false;
  bool work_done ABSL_GUARDED_BY(mutex) = false;
};

// Runs `body` and turns what it throws into a Status. Gloo throws one type for
// a lost peer and for a timeout; the clock tells them apart.
template <typename Body>
absl::Status Guarded(const char* operation, MonoTime deadline, Body body) {
  std::string what;
  try {
    body();
    return absl::OkStatus();
  } catch (const c10::Error& e) {
    what = e.what_without_backtrace();
  } catch (const std::exception& e) {
    what = e.what();
  }
  const std::string message = absl::StrCat(operation, ": ", what);
  return Clock::Real().Now() >= deadline ? absl::DeadlineExceededError(message)
                                         : absl::AbortedError(message);
}

class GlooCollective : public Collective {
 public:
  explicit GlooCollective(const GlooOptions& options) : options_(options) {}
  ~GlooCollective() override {
    if (in_flight_ == nullptr) return;
    // The group's destructor would wait for an operation that hangs on a dead
    // peer. The process is about to rejoin or exit: leave the group behind.
    static_cast<void>(in_flight_.release());
    static_cast<void>(group_.release());
    static_cast<void>(store_.release());
  }
  GlooCollective(const GlooCollective&) = delete;
  GlooCollective& operator=(const GlooCollective&) = delete;

  absl::Status Connect() {
    const MonoTime deadline = Clock::Real().Now() + options_.timeout;
    COX_RETURN_IF_ERROR(Guarded("gloo rendezvous", deadline, [this] {
      c10d::TCPStoreOptions store_options;
      store_options.port = static_cast<uint16_t>(options_.port);
      store_options.isServer = options_.rank == 0;
      store_options.numWorkers = static_cast<size_t>(options_.world_size);
      store_options.waitWorkers = false;
      store_options.timeout = ToMillis(options_.timeout);
      if (options_.rank == 0 && options_.listen_fd >= 0) {
        store_options.masterListenFd = options_.listen_fd;
      }
      store_ =
          c10::make_intrusive<c10d::TCPStore>(options_.host, store_options);
      auto group_options =
          c10d::ProcessGroupGloo::Options::create(ToMillis(options_.timeout));
      group_options->threads = 1;  // one operation at a time
      group_options->devices.push_back(
          c10d::ProcessGroupGloo::createDeviceForHostname(
              options_.interface_address));
      group_ = c10::make_intrusive<c10d::ProcessGroupGloo>(
          c10::make_intrusive<c10d::PrefixStore>(options_.prefix, store_),
          options_.rank, options_.world_size, group_options);
    }));
    // No rank may leave while another still reads rank 0's store.
    return Barrier();
  }

  int rank() const override { return options_.rank; }
  int world_size() const override { return options_.world_size; }

  absl::Status AllReduceSum(std::span<float> data) override {
    return AllReduce(data, at::kFloat);
  }
  absl::Status AllReduceSum(std::span<double> data) override {
    return AllReduce(data, at::kDouble);
  }

  absl::Status ReduceScatterSum(std::span<const float> in,
                                std::span<float> out) override {
    const auto world = static_cast<size_t>(options_.world_size);
    COX_RETURN_IF_ERROR(CheckBlocks("reduce-scatter", in.size(), out.size(),
                                    options_.world_size));
    const MonoTime deadline = Clock::Real().Now() + options_.timeout;
    const size_t segment =
        std::max<size_t>(kSegmentBytes / sizeof(float) / world, 1);
    for (size_t done = 0; done < out.size(); done += segment) {
      const auto part = out.subspan(done, std::min(segment, out.size() - done));
      COX_ASSIGN_OR_RETURN(
          const at::Tensor received,
          Exchange<float>("reduce-scatter", part.size(), at::kFloat, deadline,
                          [&](float* to) {
                            for (size_t rank = 0; rank < world; ++rank) {
                              const auto block = in.subspan(
                                  rank * out.size() + done, part.size());
                              to = std::copy(block.begin(), block.end(), to);
                            }
                          }));
      const std::span<float> sum =
          SumBlocks(static_cast<float*>(received.data_ptr()), part.size());
      std::copy(sum.begin(), sum.end(), part.begin());
    }
    return absl::OkStatus();
  }

  absl::Status Broadcast(std::span<std::byte> data, int root) override {
    COX_RETURN_IF_ERROR(CheckRoot(root, options_.world_size));
    const MonoTime deadline = Clock::Real().Now() + options_.timeout;
    c10d::BroadcastOptions broadcast;
    broadcast.rootRank = root;
    for (size_t done = 0; done < data.size(); done += kSegmentBytes) {
      const auto part =
          data.subspan(done, std::min(kSegmentBytes, data.size() - done));
      COX_RETURN_IF_ERROR(Run("broadcast", deadline, [&] {
        tensors_ = {CopyIn(part.data(), part.size(), at::kByte)};
        broadcast.timeout = Left(deadline);
        return group_->broadcast(tensors_, broadcast);
      }));
      std::memcpy(part.data(), tensors_[0].data_ptr(), part.size());
    }
    return absl::OkStatus();
  }

  absl::Status AllGather(std::span<const std::byte> in,
                         std::span<std::byte> out) override {
    const auto world = static_cast<size_t>(options_.world_size);
    COX_RETURN_IF_ERROR(
        CheckBlocks("all-gather", out.size(), in.size(), options_.world_size));
    const MonoTime deadline = Clock::Real().Now() + options_.timeout;
    const size_t segment = std::max<size_t>(kSegmentBytes / world, 1);
    std::vector<std::byte> gathered;
    for (size_t done = 0; done < in.size(); done += segment) {
      const auto part = in.subspan(done, std::min(segment, in.size() - done));
      gathered.resize(part.size() * world);
      COX_RETURN_IF_ERROR(GatherSegment(part, gathered, deadline));
      for (size_t rank = 0; rank < world; ++rank) {
        std::memcpy(out.data() + rank * in.size() + done,
                    gathered.data() + rank * part.size(), part.size());
      }
    }
    return absl::OkStatus();
  }

  absl::Status Barrier() override {
    // A sum needs every rank, and takes the path that is used all the time.
    float one = 1;
    return AllReduceSum(std::span<float>(&one, 1));
  }

  void Abort() override {
    MutexLock lock(&signal_->mutex);
    signal_->aborted = true;
    signal_->cv.NotifyAll();
  }

 private:
  static std::chrono::milliseconds Left(MonoTime deadline) {
    return ToMillis(deadline - Clock::Real().Now());
  }

  static at::Tensor CopyIn(const void* data, size_t elements,
                           at::ScalarType type) {
    at::Tensor tensor = at::empty({static_cast<int64_t>(elements)}, type);
    std::memcpy(tensor.data_ptr(), data, tensor.nbytes());
    return tensor;
  }

  template <typename T>
  absl::Status AllReduce(std::span<T> data, at::ScalarType type) {
    const MonoTime deadline = Clock::Real().Now() + options_.timeout;
    constexpr size_t kSegment = kSegmentBytes / sizeof(T);
    for (size_t done = 0; done < data.size(); done += kSegment) {
      const auto part =
          data.subspan(done, std::min(kSegment, data.size() - done));
      if (options_.world_size <= 2) {
        // Gloo's ring computes an element's sum on one rank and distributes
        // it; of two terms there is only one order.
        COX_RETURN_IF_ERROR(Run("all-reduce", deadline, [&] {
          tensors_ = {CopyIn(part.data(), part.size(), type)};
          c10d::AllreduceOptions reduce;
          reduce.timeout = Left(deadline);
          return group_->allreduce(tensors_, reduce);
        }));
        std::memcpy(part.data(), tensors_[0].data_ptr(), part.size_bytes());
      } else if (part.size_bytes() <= kSmallBytes) {
        COX_RETURN_IF_ERROR(ReduceSmall(part, deadline));
      } else {
        COX_RETURN_IF_ERROR(ReduceScattered(part, type, deadline));
      }
    }
    return absl::OkStatus();
  }

  // [world, block] -> the tree sum of its rows, in the first one.
  template <typename T>
  std::span<T> SumBlocks(T* blocks, size_t block) const {
    std::vector<std::span<T>> parts;
    for (int rank = 0; rank < options_.world_size; ++rank) {
      parts.emplace_back(blocks + static_cast<size_t>(rank) * block, block);
    }
    TreeSum<T>(parts);
    return parts[0];
  }

  // Everybody gets everything and adds it: one round.
  template <typename T>
  absl::Status ReduceSmall(std::span<T> part, MonoTime deadline) {
    std::vector<T> all(part.size() * static_cast<size_t>(options_.world_size));
    COX_RETURN_IF_ERROR(GatherSegment(
        std::as_bytes(part), std::as_writable_bytes(std::span(all)), deadline));
    const std::span<T> sum = SumBlocks(all.data(), part.size());
    std::copy(sum.begin(), sum.end(), part.begin());
    return absl::OkStatus();
  }

  // Rank r gets block r of all ranks: [world, block] elements, which `fill`
  // writes on this side.
  template <typename T, typename Fill>
  absl::StatusOr<at::Tensor> Exchange(const char* operation, size_t block,
                                      at::ScalarType type, MonoTime deadline,
                                      Fill fill) {
    at::Tensor received;
    COX_RETURN_IF_ERROR(Run(operation, deadline, [&] {
      const auto elements = static_cast<int64_t>(block) * options_.world_size;
      at::Tensor sent = at::empty({elements}, type);
      fill(static_cast<T*>(sent.data_ptr()));
      received = at::empty({elements}, type);
      std::vector<int64_t> equal_splits;
      c10d::AllToAllOptions exchange;
      exchange.timeout = Left(deadline);
      return group_->alltoall_base(received, sent, equal_splits, equal_splits,
                                   exchange);
    }));
    return received;
  }

  // Rank r gets block r of all, adds it, and everybody gathers the sums: the
  // traffic of a ring in an order that is ours.
  template <typename T>
  absl::Status ReduceScattered(std::span<T> part, at::ScalarType type,
                               MonoTime deadline) {
    const auto world = static_cast<size_t>(options_.world_size);
    const size_t block = (part.size() + world - 1) / world;
    COX_ASSIGN_OR_RETURN(
        const at::Tensor received,
        Exchange<T>("all-reduce", block, type, deadline, [&](T* to) {
          std::fill(std::copy(part.begin(), part.end(), to), to + block * world,
                    T{0});
        }));
    const std::span<T> sum =
        SumBlocks(static_cast<T*>(received.data_ptr()), block);
    std::vector<T> all(block * world);
    COX_RETURN_IF_ERROR(GatherSegment(
        std::as_bytes(sum), std::as_writable_bytes(std::span(all)), deadline));
    std::copy_n(all.begin(), part.size(), part.begin());
    return absl::OkStatus();
  }

  // `out` is [world, in.size()].
  absl::Status GatherSegment(std::span<const std::byte> in,
                             std::span<std::byte> out, MonoTime deadline) {
    at::Tensor gathered;
    COX_RETURN_IF_ERROR(Run("all-gather", deadline, [&] {
      at::Tensor mine = CopyIn(in.data(), in.size(), at::kByte);
      gathered = at::empty({static_cast<int64_t>(out.size())}, at::kByte);
      c10d::AllgatherOptions gather;
      gather.timeout = Left(deadline);
      return group_->_allgather_base(gathered, mine, gather);
    }));
    std::memcpy(out.data(), gathered.data_ptr(), out.size());
    return absl::OkStatus();
  }

  // Starts an operation, then waits for its end, Abort() or the deadline.
  template <typename Start>
  absl::Status Run(const char* operation, MonoTime deadline, Start start) {
    if (!dead_.ok()) return dead_;
    dead_ = RunAlive(operation, deadline, start);
    return dead_;
  }

  template <typename Start>
  absl::Status RunAlive(const char* operation, MonoTime deadline, Start start) {
    {
      MutexLock lock(&signal_->mutex);
      if (signal_->aborted) return AbortedHere(operation);
      signal_->work_done = false;
    }
    COX_RETURN_IF_ERROR(Guarded(operation, deadline, [&] {
      in_flight_ = start();
      in_flight_->getFuture()->addCallback(
          [signal = signal_](c10::ivalue::Future&) {
            MutexLock lock(&signal->mutex);
            signal->work_done = true;
            signal->cv.NotifyAll();
          });
    }));
    bool done = false;
    {
      MutexLock lock(&signal_->mutex);
      signal_->cv.WaitFor(signal_->mutex,
                          deadline - Clock::Real().Now() + kTimeoutSlack,
                          [this]() ABSL_NO_THREAD_SAFETY_ANALYSIS {
                            return signal_->work_done || signal_->aborted;
                          });
      done = signal_->work_done;
      if (!done && signal_->aborted) return AbortedHere(operation);
    }
    if (!done) {
      return absl::DeadlineExceededError(
          absl::StrCat(operation, ": no answer within ",
                       absl::FormatDuration(options_.timeout)));
    }
    const WorkPtr work = std::move(in_flight_);
    in_flight_.reset();
    return Guarded(operation, deadline, [&] { work->wait(); });
  }

  static absl::Status AbortedHere(const char* operation) {
    return absl::AbortedError(
        absl::StrCat(operation, ": collective was aborted"));
  }

  const GlooOptions options_;
  // Shared with callbacks of operations that outlive an Abort().
  const std::shared_ptr<Signal> signal_ = std::make_shared<Signal>();
  absl::Status dead_;  // once not OK, every call returns it
  c10::intrusive_ptr<c10d::TCPStore> store_;
  ProcessGroupPtr group_;
  std::vector<at::Tensor> tensors_;  // of the running operation
  WorkPtr in_flight_;
};

absl::Status Validate(const GlooOptions& options) {
  if (options.world_size < 1 || options.rank < 0 ||
      options.rank >= options.world_size) {
    return absl::InvalidArgumentError(absl::StrCat(
        "gloo: rank ", options.rank, " in a world of ", options.world_size));
  }
  if (options.port < 1 || options.port > 65535) {
    return absl::InvalidArgumentError(
        absl::StrCat("gloo: port ", options.port));
  }
  if (options.timeout <= absl::ZeroDuration() ||
      options.timeout > absl::Hours(24)) {
    return absl::InvalidArgumentError(
        absl::StrCat("gloo: timeout ", absl::FormatDuration(options.timeout),
                     ", allowed (0, 24h]"));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::unique_ptr<Collective>> MakeGloo(
    const GlooOptions& options) {
  COX_RETURN_IF_ERROR(Validate(options));
  auto collective = std::make_unique<GlooCollective>(options);
  COX_RETURN_IF_ERROR(collective->Connect());
  return std::unique_ptr<Collective>(std::move(collective));
}

}  // namespace cox
