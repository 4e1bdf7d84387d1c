#include "lib/rpc/proto_convert.h"

#include <algorithm>
#include <cmath>
#include <random>
#include <utility>

#include "lib/base/hash.h"
#include "lib/rpc/limits.h"

namespace cox {
namespace {

absl::Status Bad(std::string_view field, std::string_view what) {
  return absl::InvalidArgumentError(
      absl::StrCat(std::string(field), ": ", std::string(what)));
}

}  // namespace

std::string NewSessionId() {
  std::random_device device;
  std::string id;
  static constexpr char kDigits[] = "0123456789abcdef";
  for (int word = 0; word < 4; ++word) {
    uint32_t bits = device();
    for (int digit = 0; digit < 8; ++digit, bits >>= 4) {
      id.push_back(kDigits[bits & 15u]);
    }
  }
  return id;
}

void ToProto(const CallerIdentity& caller, cox::v1::Caller* proto) {
  proto->set_run_id(caller.run_id);
  proto->set_session(caller.session);
  proto->set_role(caller.role);
  proto->set_name(caller.name);
  proto->set_epoch(caller.epoch.value);
  proto->set_generation(caller.generation.value);
}

CallerIdentity FromProto(const cox::v1::Caller& proto) {
  return {proto.run_id(), proto.session(),      proto.role(),
          proto.name(),   Epoch{proto.epoch()}, Generation{proto.generation()}};
}

void ToProto(const UnitId& unit, cox::v1::UnitId* proto) {
  proto->set_stage(unit.stage);
  proto->set_step(unit.step);
  proto->set_index(unit.index);
}

absl::StatusOr<UnitId> FromProto(const cox::v1::UnitId& proto) {
  if (proto.stage() < 0) return Bad("unit.stage", "expected >= 0");
  if (proto.step() < 1) return Bad("unit.step", "expected >= 1");
  if (proto.index() < 0) return Bad("unit.index", "expected >= 0");
  return UnitId{proto.stage(), proto.step(), proto.index()};
}

void ToProto(const PolicyVersion& version, cox::v1::PolicyVersion* proto) {
  proto->set_stage(version.stage);
  proto->set_step(version.step);
}

absl::StatusOr<PolicyVersion> FromProto(const cox::v1::PolicyVersion& proto) {
  if (proto.stage() < 0) return Bad("version.stage", "expected >= 0");
  if (proto.step() < 0) return Bad("version.step", "expected >= 0");
  return PolicyVersion{proto.stage(), proto.step()};
}

void ToProto(const VersionSource& source, cox::v1::VersionSource* proto) {
  proto->mutable_ref()->set_model(source.model);
  ToProto(source.version, proto->mutable_ref()->mutable_version());
  proto->mutable_ref()->set_content_hash(source.content_hash);
  proto->set_manifest(source.manifest);
  proto->mutable_addresses()->Assign(source.addresses.begin(),
                                     source.addresses.end());
  proto->mutable_canary()->Assign(source.canary.begin(), source.canary.end());
  if (source.group.address.empty()) return;
  proto->mutable_group()->set_address(source.group.address);
  proto->mutable_group()->set_generation(source.group.generation);
  proto->mutable_group()->set_actors(source.group.actors);
}

absl::StatusOr<VersionSource> FromProto(const cox::v1::VersionSource& proto) {
  VersionSource source;
  source.model = proto.ref().model();
  COX_ASSIGN_OR_RETURN(source.version, FromProto(proto.ref().version()));
  source.content_hash = proto.ref().content_hash();
  if (!IsSha256Hex(source.content_hash)) {
    return Bad("ref.content_hash", "expected 64 lower-case hex digits");
  }
  if (proto.manifest().size() > kMaxManifestBytes) {
    return Bad("manifest", "larger than 1 MiB");
  }
  source.manifest = proto.manifest();
  source.addresses.assign(proto.addresses().begin(), proto.addresses().end());
  source.canary.assign(proto.canary().begin(), proto.canary().end());
  source.group = {.address = proto.group().address(),
                  .generation = proto.group().generation(),
                  .actors = proto.group().actors()};
  return source;
}

void ToProto(const Trajectory& trajectory, std::string_view prompt_text,
             std::string_view response_text, cox::v1::ScoredSequence* proto) {
  proto->mutable_prompt_ids()->Assign(trajectory.prompt_ids.begin(),
                                      trajectory.prompt_ids.end());
  proto->mutable_response_ids()->Assign(trajectory.response_ids.begin(),
                                        trajectory.response_ids.end());
  proto->mutable_instruction_ids()->Assign(trajectory.instruction_ids.begin(),
                                           trajectory.instruction_ids.end());
  proto->set_prompt_text(std::string(prompt_text));
  proto->set_response_text(std::string(response_text));
  proto->set_finish(std::string(FinishReasonName(trajectory.finish)));
  proto->set_prompt_id(trajectory.prompt_id);
}

absl::Status ApplyScore(const cox::v1::SequenceScore& score,
                        Trajectory* trajectory) {
  std::vector<std::pair<std::string, double>> parts;
  for (const cox::v1::NamedPart& part : score.parts()) {
    if (part.name().empty() || !std::isfinite(part.value())) {
      return Bad("scores.parts", absl::StrCat("part '", part.name(),
                                              "': expected a finite value"));
    }
    parts.emplace_back(part.name(), part.value());
  }
  if (score.scored() && !std::isfinite(score.total())) {
    return Bad("scores.total", "expected a finite value");
  }
  trajectory->reward_parts = std::move(parts);
  trajectory->reward_total.reset();
  if (score.scored()) trajectory->reward_total = score.total();
  return absl::OkStatus();
}

absl::Status ApplyLogprobs(const cox::v1::SequenceLogprobs& logprobs,
                           Trajectory* trajectory) {
  const size_t expected = trajectory->response_ids.size();
  if (static_cast<size_t>(logprobs.logprobs_size()) != expected) {
    return Bad("sequences.logprobs",
               absl::StrCat("expected ", expected, " values, found ",
                            logprobs.logprobs_size()));
  }
  for (float value : logprobs.logprobs()) {
    if (!std::isfinite(value) || value > 0.0f) {
      return Bad("sequences.logprobs",
                 absl::StrCat("expected finite values <= 0, found ", value));
    }
  }
  trajectory->reference_logprobs.assign(logprobs.logprobs().begin(),
                                        logprobs.logprobs().end());
  return absl::OkStatus();
}

cox::v1::Chunk MakeChunk(uint64_t offset, std::string_view data) {
  const std::string_view piece =
      data.substr(std::min<uint64_t>(offset, data.size()), kChunkBytes);
  cox::v1::Chunk chunk;
  chunk.set_offset(offset);
  chunk.set_data(piece.data(), piece.size());
  chunk.set_xxh3(Xxh3_128(piece));
  return chunk;
}

size_t ChunkCount(uint64_t bytes) {
  return std::max<size_t>(1, (bytes + kChunkBytes - 1) / kChunkBytes);
}

absl::Status AppendChunk(const cox::v1::Chunk& chunk, uint64_t max_bytes,
                         std::string* bytes) {
  if (chunk.offset() != bytes->size()) {
    return Bad("chunk.offset", absl::StrCat("expected ", bytes->size(),
                                            ", found ", chunk.offset()));
  }
  if (chunk.data().size() > kChunkBytes) {
    return Bad("chunk.data", "larger than 1 MiB");
  }
  if (bytes->size() + chunk.data().size() > max_bytes) {
    return Bad("chunk.data", absl::StrCat("more than ", max_bytes, " bytes"));
  }
  if (Xxh3_128(chunk.data()) != chunk.xxh3()) {
    return absl::DataLossError(
        absl::StrCat("chunk at ", chunk.offset(), ": XXH3 differs"));
  }
  bytes->append(chunk.data());
  return absl::OkStatus();
}

bool IsSha256Hex(std::string_view text) {
  return text.size() == 64 && std::all_of(text.begin(), text.end(), [](char c) {
           return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f');
         });
}

}  // namespace cox
