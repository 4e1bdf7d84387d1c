#include "lib/comm/weight_group.h"

#include <cstring>
#include <utility>

#include "lib/base/failpoint.h"

namespace cox {
namespace {

// A member that has everything wants to load it: it does not wait long for the
// others to leave.
constexpr absl::Duration kLeaveGrace = absl::Seconds(1);

absl::StatusOr<std::unique_ptr<NcclCollective>> Meet(
    const WeightGroupOptions& options, uint64_t bytes) {
  NcclOptions nccl;
  nccl.id = options.id;
  nccl.rank = options.rank;
  nccl.world_size = options.world_size;
  nccl.group = options.name;
  nccl.device = options.device;
  nccl.timeout = options.timeout + WeightTransferTime(bytes);
  nccl.bucket_bytes = options.bucket_bytes;
  nccl.tree_order = false;  // nothing is summed
  nccl.leave_grace = kLeaveGrace;
  nccl.stop = options.stop;
  auto met = MakeNccl(nccl);
  if (met.ok()) return met;
  return Annotate(met.status(), options.name);
}

}  // namespace

std::string WeightGroupName(const std::string& run_id, int64_t generation,
                            const std::string& content_hash, int64_t serial) {
  return absl::StrCat("weights ", run_id, "/g", generation, "/", content_hash,
                      "/", serial);
}

absl::Duration WeightTransferTime(uint64_t bytes) {
  return absl::Seconds(static_cast<double>(bytes) / 1e8);
}

absl::Status SendWeights(const WeightGroupOptions& options,
                         const Snapshot& snapshot) {
  const std::span<const std::byte> arena = snapshot.arena->bytes();
  COX_ASSIGN_OR_RETURN(const std::unique_ptr<NcclCollective> group,
                       Meet(options, arena.size()));
  return Annotate(
      group->Broadcast(NcclStream{
          .bytes = arena.size(),
          .root = 0,
          .fill =
              [&](uint64_t offset, std::span<std::byte> bucket) {
                std::memcpy(bucket.data(), arena.data() + offset,
                            bucket.size());
                if (HitFailpoint("weights.bucket") == FailAction::kFlip) {
                  bucket[bucket.size() / 2] ^= std::byte{0x10};
                }
              },
          .drain = nullptr}),
      options.name);
}

absl::StatusOr<std::shared_ptr<const Snapshot>> ReceiveWeights(
    const WeightGroupOptions& options, const Manifest& manifest,
    const std::string& content_hash, uint64_t max_bytes) {
  COX_ASSIGN_OR_RETURN(
      const std::unique_ptr<SnapshotAssembler> assembler,
      SnapshotAssembler::Create(manifest, content_hash, max_bytes));
  {
    COX_ASSIGN_OR_RETURN(const std::unique_ptr<NcclCollective> group,
                         Meet(options, manifest.arena_bytes));
    absl::Status taken;
    COX_RETURN_IF_ERROR(
        Annotate(group->Broadcast(NcclStream{
                     .bytes = manifest.arena_bytes,
                     .root = 0,
                     .fill = nullptr,
                     .drain =
                         [&](uint64_t, std::span<const std::byte> bucket) {
                           if (taken.ok()) taken = assembler->Append(bucket);
                         }}),
                 options.name));
    COX_RETURN_IF_ERROR(taken);
  }
  auto snapshot = assembler->Finish();
  if (snapshot.ok()) return snapshot;
  return Annotate(snapshot.status(), options.name);
}

}  // namespace cox
