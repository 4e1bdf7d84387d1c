#include "coordinator/wire_service.h"

#include "lib/rpc/limits.h"
#include "lib/rpc/proto_convert.h"

namespace cox {

void FillCheckpoint(const CheckpointRow& row, cox::v1::CheckpointRef* out) {
  out->set_stage(row.stage);
  out->set_step(row.step);
  out->set_directory(row.directory);
  out->set_manifest_sha256(row.manifest_sha256);
  out->set_generation(row.generation.value);
}

CheckpointData FromWire(const cox::v1::CheckpointRef& ref,
                        const std::string& state_sha256) {
  return {ref.step(), ref.directory(), ref.manifest_sha256(), state_sha256};
}

void FillSource(const SourceData& source, cox::v1::VersionSource* out) {
  out->mutable_ref()->set_model(source.version.model);
  ToProto(source.version.version, out->mutable_ref()->mutable_version());
  out->mutable_ref()->set_content_hash(source.version.content_hash);
  out->set_manifest(source.version.manifest);
  for (const std::string& address : source.addresses) {
    out->add_addresses(address);
  }
  for (const float value : source.canary) {
    out->add_canary(value);
  }
  if (!source.group_address.empty()) {
    out->mutable_group()->set_address(source.group_address);
    out->mutable_group()->set_generation(source.group_generation);
    out->mutable_group()->set_actors(static_cast<int32_t>(source.live_actors));
  }
}

void FillMetrics(const MetricList& metrics,
                 google::protobuf::RepeatedPtrField<cox::v1::Metric>* out) {
  for (const auto& [name, value] : metrics) {
    cox::v1::Metric* metric = out->Add();
    metric->set_name(name);
    metric->set_value(value);
  }
}

absl::StatusOr<std::vector<UnitId>> FromWire(
    const google::protobuf::RepeatedPtrField<cox::v1::UnitId>& units) {
  if (units.size() > kMaxUnitsPerLease) {
    return absl::InvalidArgumentError(
        absl::StrCat("units: at most ", kMaxUnitsPerLease, " expected, found ",
                     units.size()));
  }
  std::vector<UnitId> out;
  for (const cox::v1::UnitId& unit : units) {
    COX_ASSIGN_OR_RETURN(UnitId id, FromProto(unit));
    out.push_back(id);
  }
  return out;
}

}  // namespace cox
