// table_reward of docs/ops-protocol.md §9.

#include "lib/base/fs.h"
#include "reward/table_reward.h"
#include "tests/ops/registry.h"

namespace cox::ops {
namespace {

absl::StatusOr<std::vector<std::vector<int32_t>>> ReadIds(const Args& args,
                                                          const char* name) {
  COX_ASSIGN_OR_RETURN(const auto rows, args.RaggedInts(name));
  std::vector<std::vector<int32_t>> ids;
  for (const std::vector<int64_t>& row : rows) {
    ids.emplace_back();
    for (const int64_t id : row) {
      if (id > INT32_MAX) {
        return absl::InvalidArgumentError(
            absl::StrCat(name, ": ", id, " is no token id"));
      }
      ids.back().push_back(static_cast<int32_t>(id));
    }
  }
  return ids;
}

absl::StatusOr<Json> TableRewardOp(const Args& args) {
  COX_ASSIGN_OR_RETURN(const std::string path, args.String("path"));
  COX_ASSIGN_OR_RETURN(const auto prompts, ReadIds(args, "prompts"));
  COX_ASSIGN_OR_RETURN(const auto responses, ReadIds(args, "responses"));
  COX_RETURN_IF_ERROR(CheckSize("responses", responses.size(),
                                static_cast<int64_t>(prompts.size())));
  COX_ASSIGN_OR_RETURN(const TableReward table,
                       TableReward::FromFile(Fs::Real(), path));
  Json rewards = Json::array();
  for (size_t i = 0; i < prompts.size(); ++i) {
    const std::optional<double> reward = table.Lookup(prompts[i], responses[i]);
    rewards.push_back(reward ? EncodeNumber(*reward) : Json());
  }
  return Json{{"rewards", std::move(rewards)}};
}

}  // namespace

void RegisterTableOps(Registry* registry) {
  registry->Add("table_reward", {"path", "prompts", "responses"},
                TableRewardOp);
}

}  // namespace cox::ops
