#include "lib/comm/nccl.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <utility>
#include <vector>

#include "absl/strings/escaping.h"
#include "absl/strings/numbers.h"
#include "lib/base/hash.h"
#include "lib/comm/nccl_group.h"

namespace cox {
namespace {

// How long the device may take to end what an abort has cut off.
constexpr absl::Duration kDrainGrace = absl::Seconds(2);
constexpr char kIdPrefix[] = "nccl:";

// Makes the collective's GPU current, and the caller's again afterwards.
class DeviceScope {
 public:
  DeviceScope(const CudaApi& cuda, int device) : cuda_(cuda) {
    if (cuda_.get_device(&before_) != CudaResult::kSuccess) before_ = device;
    if (before_ != device) cuda_.set_device(device);
    changed_ = before_ != device;
  }
  ~DeviceScope() {
    if (changed_) cuda_.set_device(before_);
  }
  DeviceScope(const DeviceScope&) = delete;
  DeviceScope& operator=(const DeviceScope&) = delete;

 private:
  const CudaApi& cuda_;
  int before_ = 0;
  bool changed_ = false;
};

// One bucket on its way. `in`, `reduced` and `out` happen when the copy to the
// device, the collective and the copy back are done.
struct Slot {
  std::byte* pinned = nullptr;
  std::byte* device = nullptr;
  CudaEvent in = nullptr;
  CudaEvent reduced = nullptr;
  CudaEvent out = nullptr;
};

// What a bucket occupies of its slot: bytes that are copied to the device
// before, and back after the collective.
struct Extent {
  size_t in_at = 0;
  size_t in_bytes = 0;
  size_t out_at = 0;
  size_t out_bytes = 0;
};

struct StagedCall {
  const char* name;
  size_t buckets;
  std::function<Extent(size_t bucket)> extent;
  std::function<void(size_t bucket, std::byte* pinned)> fill;
  std::function<absl::Status(size_t bucket, std::byte* device)> enqueue;
  std::function<void(size_t bucket, const std::byte* pinned)> drain;
};

template <typename T>
constexpr NcclType kTypeOf = sizeof(T) == 4 ? NcclType::kFloat32
                                            : NcclType::kFloat64;

class NcclImpl : public NcclCollective {
 public:
  NcclImpl(const NcclOptions& options, const NcclApi& nccl, const CudaApi& cuda)
      : options_(options),
        world_(static_cast<size_t>(options.world_size)),
        cuda_(cuda),
        group_(nccl, cuda_, options.rank, options.world_size, options.stop) {}
  ~NcclImpl() override;
  NcclImpl(const NcclImpl&) = delete;
  NcclImpl& operator=(const NcclImpl&) = delete;

  absl::Status Connect();

  int rank() const override { return options_.rank; }
  int world_size() const override { return options_.world_size; }
  int device() const override { return options_.device; }
  const CudaApi& cuda() const override { return cuda_; }
  absl::Status AllReduceSum(std::span<float> data) override {
    return AllReduce(data);
  }
  absl::Status AllReduceSum(std::span<double> data) override {
    return AllReduce(data);
  }
  absl::Status ReduceScatterSum(std::span<const float> in,
                                std::span<float> out) override;
  absl::Status Broadcast(std::span<std::byte> data, int root) override;
  absl::Status Broadcast(const NcclStream& stream) override;
  absl::Status AllGather(std::span<const std::byte> in,
                         std::span<std::byte> out) override;
  absl::Status Barrier() override {
    float one = 1;
    return AllReduceSum(std::span<float>(&one, 1));
  }
  void Abort() override { group_.Abort(); }

  absl::StatusOr<int64_t> Start(const NcclCall& call) override;
  absl::Status Wait(int64_t ticket) override;
  absl::Status WaitOnStream(int64_t ticket, CudaStream consumer) override;

 private:
  MonoTime Deadline() const { return Clock::Real().Now() + options_.timeout; }
  absl::Status Prepare();
  absl::Status PrepareSlots();
  absl::Status CheckSameGroup();
  absl::StatusOr<CudaEvent> TakeEvent();
  absl::Status Enqueue(const NcclCall& call, MonoTime deadline);
  absl::Status RunStaged(const StagedCall& call);
  absl::Status SendBucket(const StagedCall& call, size_t bucket, Slot& slot);
  template <typename T>
  absl::Status AllReduce(std::span<T> data);
  absl::StatusOr<size_t> IndexOf(int64_t ticket) const;

  const NcclOptions options_;
  const size_t world_;
  const CudaApi cuda_;
  NcclGroup group_;
  CudaStream in_stream_ = nullptr;
  CudaStream comm_stream_ = nullptr;
  CudaStream out_stream_ = nullptr;
  CudaEvent produced_ = nullptr;
  std::vector<Slot> slots_;
  int64_t last_ticket_ = 0;
  // Of the newest tickets, oldest first.
  std::deque<CudaEvent> tickets_;
  std::vector<CudaEvent> free_events_;
};

NcclImpl::~NcclImpl() {
  const DeviceScope scope(cuda_, options_.device);
  group_.Close(Clock::Real().Now() +
               std::min(options_.leave_grace, options_.timeout));
  group_.Abort();
  const MonoTime deadline = Clock::Real().Now() + kDrainGrace;
  bool idle = true;
  for (CudaStream stream : {in_stream_, comm_stream_, out_stream_}) {
    while (stream != nullptr && idle &&
           cuda_.stream_query(stream) == CudaResult::kNotReady) {
      absl::SleepFor(absl::Milliseconds(1));
      idle = Clock::Real().Now() < deadline;
    }
  }
  // The device still uses the buffers. The process is about to rejoin or exit.
  if (!idle) return;
  for (const Slot& slot : slots_) {
    if (slot.pinned != nullptr) cuda_.free_host(slot.pinned);
    if (slot.device != nullptr) cuda_.free(slot.device);
    free_events_.insert(free_events_.end(), {slot.in, slot.reduced, slot.out});
  }
  free_events_.insert(free_events_.end(), tickets_.begin(), tickets_.end());
  free_events_.push_back(produced_);
  for (CudaEvent event : free_events_) {
    if (event != nullptr) cuda_.event_destroy(event);
  }
  for (CudaStream stream : {in_stream_, comm_stream_, out_stream_}) {
    if (stream != nullptr) cuda_.stream_destroy(stream);
  }
}

absl::Status NcclImpl::Prepare() {
  for (CudaStream* stream : {&in_stream_, &comm_stream_, &out_stream_}) {
    COX_RETURN_IF_ERROR(group_.Checked(
        "nccl: stream", cuda_.stream_create(stream, kCudaStreamNonBlocking)));
  }
  COX_ASSIGN_OR_RETURN(produced_, TakeEvent());
  return absl::OkStatus();
}

absl::Status NcclImpl::PrepareSlots() {
  if (!slots_.empty()) return absl::OkStatus();
  // Named first: a failure half-way must leave what there is to the destructor.
  slots_.resize(static_cast<size_t>(options_.slots));
  for (Slot& slot : slots_) {
    void* memory = nullptr;
    COX_RETURN_IF_ERROR(
        group_.Checked("nccl: page-locked memory",
                       cuda_.malloc_host(&memory, options_.bucket_bytes)));
    slot.pinned = static_cast<std::byte*>(memory);
    COX_RETURN_IF_ERROR(group_.Checked(
        "nccl: device memory", cuda_.malloc(&memory, options_.bucket_bytes)));
    slot.device = static_cast<std::byte*>(memory);
    COX_ASSIGN_OR_RETURN(slot.in, TakeEvent());
    COX_ASSIGN_OR_RETURN(slot.reduced, TakeEvent());
    COX_ASSIGN_OR_RETURN(slot.out, TakeEvent());
  }
  return absl::OkStatus();
}

absl::StatusOr<CudaEvent> NcclImpl::TakeEvent() {
  CudaEvent event = nullptr;
  if (!free_events_.empty()) {
    event = free_events_.back();
    free_events_.pop_back();
    return event;
  }
  COX_RETURN_IF_ERROR(group_.Checked(
      "nccl: event", cuda_.event_create(&event, kCudaEventDisableTiming)));
  return event;
}

absl::Status NcclImpl::Connect() {
  const DeviceScope scope(cuda_, options_.device);
  COX_RETURN_IF_ERROR(Prepare());
  COX_RETURN_IF_ERROR(
      group_.Connect(options_.id, options_.tree_order, Deadline()));
  return CheckSameGroup();
}

// Ranks that disagree about run, generation or the cutting of buckets would
// sum what does not belong together.
absl::Status NcclImpl::CheckSameGroup() {
  const std::string mine =
      Sha256Hex(absl::StrCat(options_.group, "|", options_.world_size, "|",
                             options_.bucket_bytes, "|", options_.tree_order));
  std::string all(mine.size() * world_, '\0');
  COX_RETURN_IF_ERROR(AllGather(AsBytes(mine), std::as_writable_bytes(std::span(
                                                   all.data(), all.size()))));
  for (size_t rank = 0; rank < world_; ++rank) {
    if (all.compare(rank * mine.size(), mine.size(), mine) != 0) {
      return group_.Die(absl::AbortedError(absl::StrCat(
          "nccl: rank ", rank, " is of another group than '", options_.group,
          "' of ", world_, " ranks, or cuts its buckets otherwise")));
    }
  }
  return absl::OkStatus();
}

absl::Status NcclImpl::SendBucket(const StagedCall& call, size_t bucket,
                                  Slot& slot) {
  const Extent extent = call.extent(bucket);
  call.fill(bucket, slot.pinned);
  if (extent.in_bytes > 0) {
    COX_RETURN_IF_ERROR(group_.Checked(
        call.name, cuda_.memcpy_async(
                       slot.device + extent.in_at, slot.pinned + extent.in_at,
                       extent.in_bytes, CudaCopy::kHostToDevice, in_stream_)));
  }
  COX_RETURN_IF_ERROR(
      group_.Checked(call.name, cuda_.event_record(slot.in, in_stream_)));
  COX_RETURN_IF_ERROR(group_.Checked(
      call.name, cuda_.stream_wait_event(comm_stream_, slot.in, 0)));
  COX_RETURN_IF_ERROR(call.enqueue(bucket, slot.device));
  COX_RETURN_IF_ERROR(group_.Checked(
      call.name, cuda_.event_record(slot.reduced, comm_stream_)));
  COX_RETURN_IF_ERROR(group_.Checked(
      call.name, cuda_.stream_wait_event(out_stream_, slot.reduced, 0)));
  if (extent.out_bytes > 0) {
    COX_RETURN_IF_ERROR(group_.Checked(
        call.name,
        cuda_.memcpy_async(slot.pinned + extent.out_at,
                           slot.device + extent.out_at, extent.out_bytes,
                           CudaCopy::kDeviceToHost, out_stream_)));
  }
  return group_.Checked(call.name, cuda_.event_record(slot.out, out_stream_));
}

absl::Status NcclImpl::RunStaged(const StagedCall& call) {
  COX_RETURN_IF_ERROR(group_.status());
  const DeviceScope scope(cuda_, options_.device);
  COX_RETURN_IF_ERROR(PrepareSlots());
  const MonoTime deadline = Deadline();
  const size_t depth = slots_.size();
  for (size_t i = 0; i < call.buckets + depth; ++i) {
    Slot& slot = slots_[i % depth];
    if (i >= depth && i - depth < call.buckets) {
      COX_RETURN_IF_ERROR(group_.AwaitEvent(call.name, slot.out, deadline));
      call.drain(i - depth, slot.pinned);
    }
    if (i < call.buckets) {
      COX_RETURN_IF_ERROR(SendBucket(call, i, slot));
    }
  }
  return absl::OkStatus();
}

// `n` things cut into buckets of `per`: the size of bucket `i`.
size_t PartOf(size_t n, size_t per, size_t i) {
  return std::min(per, n - i * per);
}
size_t BucketsOf(size_t n, size_t per) { return (n + per - 1) / per; }

template <typename T>
absl::Status NcclImpl::AllReduce(std::span<T> data) {
  const size_t per = options_.bucket_bytes / sizeof(T);
  const auto part = [&](size_t i) {
    return data.subspan(i * per, PartOf(data.size(), per, i));
  };
  const MonoTime deadline = Deadline();
  return RunStaged(
      {.name = "all-reduce",
       .buckets = BucketsOf(data.size(), per),
       .extent =
           [&](size_t i) {
             const size_t bytes = part(i).size_bytes();
             return Extent{0, bytes, 0, bytes};
           },
       .fill =
           [&](size_t i, std::byte* pinned) {
             std::memcpy(pinned, part(i).data(), part(i).size_bytes());
           },
       .enqueue =
           [&](size_t i, std::byte* device) {
             return group_.AllReduceSum(device, part(i).size(), kTypeOf<T>,
                                        comm_stream_, deadline);
           },
       .drain =
           [&](size_t i, const std::byte* pinned) {
             std::memcpy(part(i).data(), pinned, part(i).size_bytes());
           }});
}

absl::Status NcclImpl::ReduceScatterSum(std::span<const float> in,
                                        std::span<float> out) {
  COX_RETURN_IF_ERROR(CheckBlocks("reduce-scatter", in.size(), out.size(),
                                  options_.world_size));
  const size_t per = options_.bucket_bytes / sizeof(float) / world_;
  const auto size = [&](size_t i) { return PartOf(out.size(), per, i); };
  const auto own = [&](size_t i) {  // bytes before this rank's block
    return static_cast<size_t>(options_.rank) * size(i) * sizeof(float);
  };
  const MonoTime deadline = Deadline();
  return RunStaged({.name = "reduce-scatter",
                    .buckets = BucketsOf(out.size(), per),
                    .extent =
                        [&](size_t i) {
                          const size_t bytes = size(i) * sizeof(float);
                          return Extent{0, bytes * world_, own(i), bytes};
                        },
                    .fill =
                        [&](size_t i, std::byte* pinned) {
                          const size_t bytes = size(i) * sizeof(float);
                          for (size_t rank = 0; rank < world_; ++rank) {
                            std::memcpy(pinned + rank * bytes,
                                        in.data() + rank * out.size() + i * per,
                                        bytes);
                          }
                        },
                    .enqueue =
                        [&](size_t i, std::byte* device) {
                          return group_.ReduceScatterSum(
                              device, device + own(i), size(i),
                              NcclType::kFloat32, comm_stream_, deadline);
                        },
                    .drain =
                        [&](size_t i, const std::byte* pinned) {
                          std::memcpy(out.data() + i * per, pinned + own(i),
                                      size(i) * sizeof(float));
                        }});
}

absl::Status NcclImpl::Broadcast(std::span<std::byte> data, int root) {
  const auto part = [&](uint64_t offset, size_t size) {
    return data.subspan(static_cast<size_t>(offset), size);
  };
  return Broadcast(NcclStream{
      .bytes = data.size(),
      .root = root,
      .fill =
          [&](uint64_t offset, std::span<std::byte> bucket) {
            std::memcpy(bucket.data(), part(offset, bucket.size()).data(),
                        bucket.size());
          },
      .drain =
          [&](uint64_t offset, std::span<const std::byte> bucket) {
            std::memcpy(part(offset, bucket.size()).data(), bucket.data(),
                        bucket.size());
          }});
}

absl::Status NcclImpl::Broadcast(const NcclStream& stream) {
  COX_RETURN_IF_ERROR(CheckRoot(stream.root, options_.world_size));
  const size_t per = options_.bucket_bytes;
  const size_t bytes = static_cast<size_t>(stream.bytes);
  const bool sends = options_.rank == stream.root;
  const auto size = [&](size_t i) { return PartOf(bytes, per, i); };
  const MonoTime deadline = Deadline();
  return RunStaged(
      {.name = "broadcast",
       .buckets = BucketsOf(bytes, per),
       .extent =
           [&](size_t i) {
             return sends ? Extent{0, size(i), 0, 0} : Extent{0, 0, 0, size(i)};
           },
       .fill =
           [&](size_t i, std::byte* pinned) {
             if (sends) stream.fill(i * per, {pinned, size(i)});
           },
       .enqueue =
           [&](size_t i, std::byte* device) {
             return group_.Broadcast(device, size(i), NcclType::kUint8,
                                     stream.root, comm_stream_, deadline);
           },
       .drain =
           [&](size_t i, const std::byte* pinned) {
             if (!sends) stream.drain(i * per, {pinned, size(i)});
           }});
}

absl::Status NcclImpl::AllGather(std::span<const std::byte> in,
                                 std::span<std::byte> out) {
  COX_RETURN_IF_ERROR(
      CheckBlocks("all-gather", out.size(), in.size(), options_.world_size));
  const size_t per = options_.bucket_bytes / world_;
  const auto size = [&](size_t i) { return PartOf(in.size(), per, i); };
  const auto own = [&](size_t i) {
    return static_cast<size_t>(options_.rank) * size(i);
  };
  const MonoTime deadline = Deadline();
  return RunStaged(
      {.name = "all-gather",
       .buckets = BucketsOf(in.size(), per),
       .extent =
           [&](size_t i) {
             return Extent{own(i), size(i), 0, size(i) * world_};
           },
       .fill =
           [&](size_t i, std::byte* pinned) {
             std::memcpy(pinned + own(i), in.data() + i * per, size(i));
           },
       .enqueue =
           [&](size_t i, std::byte* device) {
             return group_.AllGather(device + own(i), device, size(i),
                                     NcclType::kUint8, comm_stream_, deadline);
           },
       .drain =
           [&](size_t i, const std::byte* pinned) {
             for (size_t rank = 0; rank < world_; ++rank) {
               std::memcpy(out.data() + rank * in.size() + i * per,
                           pinned + rank * size(i), size(i));
             }
           }});
}

absl::Status NcclImpl::Enqueue(const NcclCall& call, MonoTime deadline) {
  switch (call.kind) {
    case NcclCall::Kind::kAllReduceSum:
      return group_.AllReduceSum(call.out, call.count, call.type, comm_stream_,
                                 deadline);
    case NcclCall::Kind::kReduceScatterSum:
      return group_.ReduceScatterSum(call.in, call.out, call.count, call.type,
                                     comm_stream_, deadline);
    case NcclCall::Kind::kAllGather:
      return group_.AllGather(call.in, call.out, call.count, call.type,
                              comm_stream_, deadline);
    case NcclCall::Kind::kBroadcast:
      return group_.Broadcast(call.out, call.count, call.type, call.root,
                              comm_stream_, deadline);
  }
  return absl::InvalidArgumentError("nccl: unknown call");
}

absl::StatusOr<int64_t> NcclImpl::Start(const NcclCall& call) {
  COX_RETURN_IF_ERROR(CheckRoot(call.root, options_.world_size));
  COX_RETURN_IF_ERROR(group_.status());
  const DeviceScope scope(cuda_, options_.device);
  COX_RETURN_IF_ERROR(group_.Checked(
      "nccl: start", cuda_.event_record(produced_, call.producer)));
  COX_RETURN_IF_ERROR(group_.Checked(
      "nccl: start", cuda_.stream_wait_event(comm_stream_, produced_, 0)));
  COX_RETURN_IF_ERROR(Enqueue(call, Deadline()));
  COX_ASSIGN_OR_RETURN(CudaEvent done, TakeEvent());
  tickets_.push_back(done);
  COX_RETURN_IF_ERROR(
      group_.Checked("nccl: start", cuda_.event_record(done, comm_stream_)));
  return ++last_ticket_;
}

// Position in `tickets_`, or -1 (as size_t) for one that was waited for.
absl::StatusOr<size_t> NcclImpl::IndexOf(int64_t ticket) const {
  if (ticket < 1 || ticket > last_ticket_) {
    return absl::InvalidArgumentError(
        absl::StrCat("nccl: ticket ", ticket, ", the last is ", last_ticket_));
  }
  const int64_t first =
      last_ticket_ - static_cast<int64_t>(tickets_.size()) + 1;
  return static_cast<size_t>(ticket - first);
}

absl::Status NcclImpl::Wait(int64_t ticket) {
  COX_ASSIGN_OR_RETURN(const size_t index, IndexOf(ticket));
  COX_RETURN_IF_ERROR(group_.status());
  if (index >= tickets_.size()) return absl::OkStatus();
  const DeviceScope scope(cuda_, options_.device);
  COX_RETURN_IF_ERROR(
      group_.AwaitEvent("nccl: wait", tickets_[index], Deadline()));
  for (size_t i = 0; i <= index; ++i) {
    free_events_.push_back(tickets_.front());
    tickets_.pop_front();
  }
  return absl::OkStatus();
}

absl::Status NcclImpl::WaitOnStream(int64_t ticket, CudaStream consumer) {
  COX_ASSIGN_OR_RETURN(const size_t index, IndexOf(ticket));
  COX_RETURN_IF_ERROR(group_.status());
  if (index >= tickets_.size()) return absl::OkStatus();
  const DeviceScope scope(cuda_, options_.device);
  return group_.Checked("nccl: wait on stream",
                        cuda_.stream_wait_event(consumer, tickets_[index], 0));
}

absl::Status Validate(const NcclOptions& options) {
  if (options.world_size < 1 || options.rank < 0 ||
      options.rank >= options.world_size) {
    return absl::InvalidArgumentError(absl::StrCat(
        "nccl: rank ", options.rank, " in a world of ", options.world_size));
  }
  if (options.timeout <= absl::ZeroDuration() ||
      options.timeout > absl::Hours(24)) {
    return absl::InvalidArgumentError(
        absl::StrCat("nccl: timeout ", absl::FormatDuration(options.timeout),
                     ", allowed (0, 24h]"));
  }
  const size_t least = 16 * static_cast<size_t>(options.world_size);
  if (options.bucket_bytes < least || options.bucket_bytes % 8 != 0 ||
      options.slots < 1) {
    return absl::InvalidArgumentError(absl::StrCat(
        "nccl: ", options.slots, " buckets of ", options.bucket_bytes,
        " bytes; expected at least one, of a multiple of 8 from ", least));
  }
  return absl::OkStatus();
}

}  // namespace

int NcclDevice(int rank, int count) {
  int local = rank;
  if (const char* text = std::getenv("LOCAL_RANK")) {
    if (!absl::SimpleAtoi(text, &local) || local < 0) local = rank;
  }
  return local % count;
}

absl::StatusOr<NcclUniqueId> NewNcclId(const std::string& nccl_path) {
  COX_ASSIGN_OR_RETURN(const NcclApi nccl, LoadNcclApi(nccl_path));
  NcclUniqueId id = {};
  const NcclResult result = nccl.get_unique_id(&id);
  if (result == NcclResult::kSuccess) return id;
  return absl::AbortedError(absl::StrCat("nccl: ncclGetUniqueId: error ",
                                         static_cast<int>(result), " (",
                                         nccl.get_error_string(result), ")"));
}

std::string NcclIdText(const NcclUniqueId& id) {
  return absl::StrCat(kIdPrefix, absl::BytesToHexString(absl::string_view(
                                     id.bytes, sizeof(id.bytes))));
}

absl::StatusOr<NcclUniqueId> ParseNcclId(const std::string& text) {
  NcclUniqueId id = {};
  const size_t prefix = sizeof(kIdPrefix) - 1;
  const bool good =
      text.size() == prefix + 2 * sizeof(id.bytes) &&
      text.rfind(kIdPrefix, 0) == 0 &&
      text.find_first_not_of("0123456789abcdef", prefix) == std::string::npos;
  if (!good) {
    return absl::InvalidArgumentError(absl::StrCat(
        "expected an NCCL id (nccl: and 256 hexadecimal digits), found '", text,
        "'"));
  }
  const std::string bytes = absl::HexStringToBytes(text.substr(prefix));
  std::memcpy(id.bytes, bytes.data(), sizeof(id.bytes));
  return id;
}

absl::StatusOr<std::unique_ptr<NcclCollective>> MakeNccl(
    const NcclOptions& options) {
  COX_RETURN_IF_ERROR(Validate(options));
  COX_ASSIGN_OR_RETURN(const CudaApi cuda, LoadCudaApi(options.cudart_path));
  COX_ASSIGN_OR_RETURN(const NcclApi nccl, LoadNcclApi(options.nccl_path));
  COX_ASSIGN_OR_RETURN(const int count, CountCudaDevices(cuda));
  NcclOptions resolved = options;
  if (resolved.device < 0) resolved.device = NcclDevice(options.rank, count);
  if (resolved.device >= count) {
    return absl::InvalidArgumentError(absl::StrCat(
        "nccl: device ", resolved.device, ", this machine has ", count));
  }
  auto collective = std::make_unique<NcclImpl>(resolved, nccl, cuda);
  COX_RETURN_IF_ERROR(collective->Connect());
  return std::unique_ptr<NcclCollective>(std::move(collective));
}

}  // namespace cox
