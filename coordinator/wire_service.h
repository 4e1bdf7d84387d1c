#ifndef COX_COORDINATOR_WIRE_SERVICE_H_
#define COX_COORDINATOR_WIRE_SERVICE_H_

// Between the core's types and the messages of cox.v1.

#include <vector>

#include "coordinator/core_types.h"
#include "cox/v1/types.pb.h"
#include "google/protobuf/repeated_ptr_field.h"
#include "lib/base/status.h"

namespace cox {

void FillCheckpoint(const CheckpointRow& row, cox::v1::CheckpointRef* out);
CheckpointData FromWire(const cox::v1::CheckpointRef& ref,
                        const std::string& state_sha256);
void FillSource(const SourceData& source, cox::v1::VersionSource* out);
void FillMetrics(const MetricList& metrics,
                 google::protobuf::RepeatedPtrField<cox::v1::Metric>* out);
// INVALID_ARGUMENT: more than kMaxUnitsPerLease units, or a bad one.
absl::StatusOr<std::vector<UnitId>> FromWire(
    const google::protobuf::RepeatedPtrField<cox::v1::UnitId>& units);

}  // namespace cox

#endif  // COX_COORDINATOR_WIRE_SERVICE_H_
