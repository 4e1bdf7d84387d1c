#ifndef COX_CLI_ROW_TABLE_H_
#define COX_CLI_ROW_TABLE_H_

#include <string>
#include <vector>

#include "nlohmann/json.hpp"

namespace cox {

// Rows with the same keys, as an aligned table for people (keys = header,
// hashes shortened) or, with `json`, as one JSON array for programs.
std::string FormatRows(const std::vector<nlohmann::ordered_json>& rows,
                       bool json);

// A hash as people read it: its first 12 digits.
std::string ShortHash(const std::string& hash);

}  // namespace cox

#endif  // COX_CLI_ROW_TABLE_H_
