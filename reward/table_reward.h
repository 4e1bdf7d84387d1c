#ifndef COX_REWARD_TABLE_REWARD_H_
#define COX_REWARD_TABLE_REWARD_H_

// An exact reward for small enumerable tasks: a table of token ids.

#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "lib/base/fs.h"
#include "lib/base/status.h"

namespace cox {

// Immutable and thread-safe. A lookup costs O(log entries).
class TableReward {
 public:
  // {"default": x or null, "entries": [{"prompt": [ids] (omitted = any),
  //  "response": [ids with EOS], "reward": r}]}
  // INVALID_ARGUMENT names the entry and what was expected: no JSON object, an
  // unknown key, ids that are no int32 >= 0, a reward that is no finite
  // number, the same prompt and response twice.
  static absl::StatusOr<TableReward> FromJson(std::string_view text);
  // As FromJson with the path in messages; NOT_FOUND.
  static absl::StatusOr<TableReward> FromFile(Fs& fs, const std::string& path);

  // The entry with this prompt, else the one for any prompt, else the default.
  // nullopt: none of them and default null; the sample is not trained on.
  std::optional<double> Lookup(std::span<const int32_t> prompt,
                               std::span<const int32_t> response) const;

  size_t size() const { return exact_.size() + any_prompt_.size(); }

 private:
  TableReward() = default;

  using Ids = std::vector<int32_t>;
  std::map<std::pair<Ids, Ids>, double> exact_;  // (prompt, response)
  std::map<Ids, double> any_prompt_;             // response
  std::optional<double> default_;
};

}  // namespace cox

#endif  // COX_REWARD_TABLE_REWARD_H_
