#include "lib/comm/nccl_group.h"

#include <algorithm>
#include <bit>
#include <chrono>
#include <string>
#include <thread>
#include <utility>

namespace cox {
namespace {

// Looks again at once, then ever more rarely: a small sum takes tens of
// microseconds, and a wait of milliseconds must not keep a core busy.
class Pause {
 public:
  void Wait() {
    if (++count_ <= 200) {
      std::this_thread::yield();
      return;
    }
    std::this_thread::sleep_for(std::chrono::microseconds(delay_us_));
    delay_us_ = std::min(delay_us_ + delay_us_ / 4 + 1, 500);
  }

 private:
  int count_ = 0;
  int delay_us_ = 20;
};

bool IsPowerOfTwo(int n) {
  return std::has_single_bit(static_cast<unsigned>(n));
}

}  // namespace

NcclGroup::NcclGroup(const NcclApi& nccl, const CudaApi& cuda, int rank,
                     int world_size, const Notification* stop)
    : nccl_(nccl),
      cuda_(cuda),
      rank_(rank),
      world_size_(world_size),
      stop_(stop) {}

NcclGroup::~NcclGroup() { Abort(); }

absl::Status NcclGroup::ErrorOf(const char* operation, NcclResult result,
                                NcclComm* comm) const {
  std::string text = nccl_.get_error_string(result);
  const char* detail = nccl_.get_last_error(comm);
  if (detail != nullptr && *detail != '\0') {
    absl::StrAppend(&text, ": ", detail);
  }
  std::replace(text.begin(), text.end(), '\n', ' ');
  const std::string message = absl::StrCat(
      operation, ": NCCL error ", static_cast<int>(result), " (", text, ")");
  if (result != NcclResult::kInvalidArgument &&
      result != NcclResult::kInvalidUsage) {
    return absl::AbortedError(message);
  }
  return connected_ ? absl::InternalError(message)
                    : absl::InvalidArgumentError(message);
}

absl::Status NcclGroup::Die(const absl::Status& why) {
  MutexLock lock(&mutex_);
  if (dead_.ok()) {
    dead_ = why;
    // Under the lock: nobody else may use a communicator meanwhile, and none
    // is used again.
    for (NcclComm*& comm : comms_) {
      if (comm != nullptr) nccl_.comm_abort(std::exchange(comm, nullptr));
    }
  }
  return dead_;
}

void NcclGroup::Abort() {
  static_cast<void>(Die(absl::AbortedError("collective was aborted")));
}

absl::Status NcclGroup::status() const {
  MutexLock lock(&mutex_);
  return dead_;
}

absl::Status NcclGroup::Checked(const char* operation, CudaResult result) {
  if (result == CudaResult::kSuccess) return absl::OkStatus();
  return Die(CudaStatus(cuda_, operation, result));
}

absl::Status NcclGroup::Patience(const char* operation, MonoTime deadline) {
  if (stop_ != nullptr && stop_->HasBeenNotified()) {
    return Die(absl::CancelledError(
        absl::StrCat(operation, ": this process is leaving")));
  }
  if (Clock::Real().Now() < deadline) return absl::OkStatus();
  return Die(absl::DeadlineExceededError(
      absl::StrCat(operation, ": the other ranks did not answer in time")));
}

absl::Status NcclGroup::Settle(const char* operation, NcclComm* comm,
                               NcclResult result, MonoTime deadline) {
  Pause pause;
  while (result == NcclResult::kInProgress) {
    COX_RETURN_IF_ERROR(Patience(operation, deadline));
    pause.Wait();
    MutexLock lock(&mutex_);
    if (!dead_.ok()) return dead_;
    NcclResult state = NcclResult::kSuccess;
    result = nccl_.comm_get_async_error(comm, &state);
    if (result == NcclResult::kSuccess) result = state;
  }
  if (result == NcclResult::kSuccess) return absl::OkStatus();
  absl::Status error;
  {
    MutexLock lock(&mutex_);
    if (!dead_.ok()) return dead_;
    error = ErrorOf(operation, result, comm);
  }
  return Die(error);
}

template <typename Call>
absl::Status NcclGroup::Issue(const char* operation, size_t index,
                              MonoTime deadline, Call call) {
  NcclResult result = NcclResult::kSuccess;
  NcclComm* comm = nullptr;
  {
    MutexLock lock(&mutex_);
    if (!dead_.ok()) return dead_;
    comm = comms_[index];
    if (comm == nullptr) return absl::OkStatus();
    result = call(comm);
  }
  return Settle(operation, comm, result, deadline);
}

absl::Status NcclGroup::Connect(const NcclUniqueId& id, bool tree_order,
                                MonoTime deadline) {
  NcclConfig config;
  config.blocking = 0;
  NcclResult result = NcclResult::kSuccess;
  NcclComm* comm = nullptr;
  {
    MutexLock lock(&mutex_);
    if (!dead_.ok()) return dead_;
    result =
        nccl_.comm_init_rank_config(&comm, world_size_, id, rank_, &config);
    if (comm != nullptr) comms_ = {comm};
  }
  if (comm == nullptr && result == NcclResult::kInProgress) {
    result = NcclResult::kInternalError;  // nothing to wait on
  }
  COX_RETURN_IF_ERROR(Settle("nccl: meeting", comm, result, deadline));
  tree_order_ = tree_order && world_size_ > 2;
  for (int stride = 1; tree_order_ && stride < world_size_; stride *= 2) {
    const int first = rank_ / (2 * stride) * (2 * stride);
    int color = kNcclSplitNoColor;
    if (IsPowerOfTwo(world_size_)) {
      // Every rank adds, so that all have the sum in the end.
      color = first / 2 + rank_ % stride;
    } else if (first + stride < world_size_ &&
               (rank_ == first || rank_ == first + stride)) {
      color = first;  // only the tree's inner nodes
    }
    COX_RETURN_IF_ERROR(AddLevel(color, deadline));
  }
  connected_ = true;
  return absl::OkStatus();
}

absl::Status NcclGroup::AddLevel(int color, MonoTime deadline) {
  // NCCL may write it from a thread of its own after the call has returned.
  NcclComm** slot =
      split_results_.emplace_back(std::make_unique<NcclComm*>(nullptr)).get();
  COX_RETURN_IF_ERROR(
      Issue("nccl: tree level", 0, deadline, [&](NcclComm* whole) {
        return nccl_.comm_split(whole, color, rank_, slot, nullptr);
      }));
  NcclComm* const level = *slot;
  {
    MutexLock lock(&mutex_);
    if (!dead_.ok()) return dead_;
    comms_.push_back(level);
  }
  if (color == kNcclSplitNoColor) return absl::OkStatus();
  if (level == nullptr) {
    return Die(absl::InternalError("nccl: tree level: no communicator"));
  }
  return Settle("nccl: tree level", level, NcclResult::kInProgress, deadline);
}

absl::Status NcclGroup::AllReduceSum(void* data, size_t count, NcclType type,
                                     CudaStream stream, MonoTime deadline) {
  const auto reduce = [&](size_t comm) {
    return Issue("all-reduce", comm, deadline, [&](NcclComm* c) {
      return nccl_.all_reduce(data, data, count, type, NcclOp::kSum, c, stream);
    });
  };
  if (!tree_order_) return reduce(0);
  size_t level = 1;
  for (int stride = 1; stride < world_size_; stride *= 2) {
    COX_RETURN_IF_ERROR(reduce(level++));
  }
  if (IsPowerOfTwo(world_size_)) return absl::OkStatus();
  return Broadcast(data, count, type, /*root=*/0, stream, deadline);
}

absl::Status NcclGroup::ReduceScatterSum(void* in, void* out, size_t count,
                                         NcclType type, CudaStream stream,
                                         MonoTime deadline) {
  if (!tree_order_) {
    return Issue("reduce-scatter", 0, deadline, [&](NcclComm* c) {
      return nccl_.reduce_scatter(in, out, count, type, NcclOp::kSum, c,
                                  stream);
    });
  }
  COX_RETURN_IF_ERROR(AllReduceSum(in, count * static_cast<size_t>(world_size_),
                                   type, stream, deadline));
  const size_t bytes = count * BytesOf(type);
  const std::byte* block =
      static_cast<std::byte*>(in) + static_cast<size_t>(rank_) * bytes;
  if (block == out || bytes == 0) return absl::OkStatus();
  return Checked(
      "reduce-scatter",
      cuda_.memcpy_async(out, block, bytes, CudaCopy::kDeviceToDevice, stream));
}

absl::Status NcclGroup::AllGather(const void* in, void* out, size_t count,
                                  NcclType type, CudaStream stream,
                                  MonoTime deadline) {
  return Issue("all-gather", 0, deadline, [&](NcclComm* c) {
    return nccl_.all_gather(in, out, count, type, c, stream);
  });
}

absl::Status NcclGroup::Broadcast(void* data, size_t count, NcclType type,
                                  int root, CudaStream stream,
                                  MonoTime deadline) {
  return Issue("broadcast", 0, deadline, [&](NcclComm* c) {
    return nccl_.broadcast(data, data, count, type, root, c, stream);
  });
}

absl::Status NcclGroup::AwaitEvent(const char* operation, CudaEvent event,
                                   MonoTime deadline) {
  Pause pause;
  while (true) {
    const CudaResult result = cuda_.event_query(event);
    if (result == CudaResult::kSuccess) return status();
    if (result != CudaResult::kNotReady) return Checked(operation, result);
    absl::Status error;
    {
      MutexLock lock(&mutex_);
      if (!dead_.ok()) return dead_;
      for (NcclComm* comm : comms_) {
        NcclResult state = NcclResult::kSuccess;
        if (comm == nullptr) continue;
        const NcclResult asked = nccl_.comm_get_async_error(comm, &state);
        if (asked != NcclResult::kSuccess) state = asked;
        if (state == NcclResult::kSuccess || state == NcclResult::kInProgress) {
          continue;
        }
        error = ErrorOf(operation, state, comm);
        break;
      }
    }
    if (!error.ok()) return Die(error);
    COX_RETURN_IF_ERROR(Patience(operation, deadline));
    pause.Wait();
  }
}

void NcclGroup::Close(MonoTime deadline) {
  // Levels first: they were split from the whole group.
  size_t count = 0;
  {
    MutexLock lock(&mutex_);
    count = comms_.size();
  }
  for (size_t i = count; i-- > 0;) {
    const absl::Status left = Issue("leaving", i, deadline, [&](NcclComm* c) {
      return nccl_.comm_finalize(c);
    });
    if (!left.ok()) return;  // dead: aborted
    MutexLock lock(&mutex_);
    if (dead_.ok() && comms_[i] != nullptr) {
      nccl_.comm_destroy(std::exchange(comms_[i], nullptr));
    }
  }
}

}  // namespace cox
