#ifndef COX_LIB_CONFIG_CONFIG_H_
#define COX_LIB_CONFIG_CONFIG_H_

// The configuration of a run: run.yaml -> cox.v1.RunConfig, by reflection over
// the schema proto/cox/v1/run_config.proto, whose option (cox.v1.setting)
// carries the doc, default, range and choices of every field.
//
// A *resolved* configuration has every field set (defaults filled in) and
// absolute paths; LoadConfig returns only resolved and valid ones. All
// functions here are pure (LoadConfig also reads files) and thread-safe.

#include <string>
#include <string_view>
#include <vector>

#include "cox/v1/run_config.pb.h"
#include "lib/base/status.h"

namespace cox {

struct LoadOptions {
  // run.yaml: names the file in messages; its folder is the base of relative
  // paths (the working folder if empty).
  std::string path;
  // "a.b.c=value", value as YAML (lists as [a,b]); applied in order after the
  // file. Relative paths have the same base as in the file.
  std::vector<std::string> overrides;
  // Content, instead of reading `path`. At least one of both is set.
  std::string yaml_text;
  // Whether files that the stages need must exist. Off for a machine that
  // only inspects a configuration.
  bool check_files = true;
  // The text is what PrintConfig wrote, perhaps before some key existed: such a
  // key takes the schema's default, no profile's or family's.
  bool recorded = false;
};

// INVALID_ARGUMENT with one line per problem, in the order of the file:
//   run.yaml:14:5: unknown field 'ppo.kl_coeff' (did you mean 'kl_coef'?)
// NOT_FOUND or INTERNAL when the file itself cannot be read. Accepts at most
// 1 MiB, 32 levels of nesting and 100,000 nodes with aliases expanded.
absl::StatusOr<cox::v1::RunConfig> LoadConfig(const LoadOptions& options);

// A problem of a resolved configuration; `field` as in "ppo.unit_prompts".
struct ConfigIssue {
  std::string field;
  std::string message;
};
// Ranges, choices and everything that involves more than one field; touches no
// files. Empty = valid.
std::vector<ConfigIssue> CheckConfig(const cox::v1::RunConfig& config);
// INVALID_ARGUMENT with one "field: message" line per issue.
absl::Status ValidateConfig(const cox::v1::RunConfig& config);

// All defaults, before any file: what an empty run.yaml means.
cox::v1::RunConfig DefaultConfig();

// Canonical YAML of every field in schema order. Loading it gives an equal
// message back.
std::string PrintConfig(const cox::v1::RunConfig& config);

// SHA-256 (hex) of the canonical YAML without fields that a resumed run may
// change (run_dir is one of them).
std::string ConfigHash(const cox::v1::RunConfig& config);

// "ppo.kl_coef: 0.05 -> 0.1", in schema order.
std::vector<std::string> DiffConfigs(const cox::v1::RunConfig& a,
                                     const cox::v1::RunConfig& b);
// Only what forbids resuming: differing fields that are not resumable. Empty
// iff the hashes are equal.
std::vector<std::string> ResumableDiff(const cox::v1::RunConfig& recorded,
                                       const cox::v1::RunConfig& wanted);

// Type, default, range, choices and doc of "ppo.kl_coef", or of everything
// below a prefix such as "ppo". NOT_FOUND with the nearest name.
absl::StatusOr<std::string> Explain(std::string_view field);
std::string ExplainAll();

// True if `stage` ("ppo") is one of config.stages.
bool HasStage(const cox::v1::RunConfig& config, std::string_view stage);

}  // namespace cox

#endif  // COX_LIB_CONFIG_CONFIG_H_
