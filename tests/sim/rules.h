#ifndef COX_TESTS_SIM_RULES_H_
#define COX_TESTS_SIM_RULES_H_

// The rules of docs/durability.md that a simulation can switch off, to show
// that it notices. Those of the production cores travel in their options;
// the rest belong to what stands in for the disk, the models and the files.

#include <functional>
#include <span>
#include <string_view>

#include "coordinator/core_types.h"
#include "learner/lineage_core.h"

namespace cox::sim {

struct Rules {
  CoreRules core;
  LineageRules lineage;
  bool fence = true;              // 1: an older epoch cannot write
  bool synced_ledger = true;      // 2: a commit is synced
  bool seed_by_place = true;      // 9: random numbers know no attempt
  bool closed_state = true;       // 15: a step reads state and batch alone
  bool files_before_name = true;  // 17: files are synced before the rename
  bool load_by_row = true;        // 18: a row names the checkpoint, not a file
};

struct Mutation {
  std::string_view rule;  // number of docs/durability.md
  std::string_view text;  // what goes wrong
  void (*apply)(Rules&);
};
std::span<const Mutation> Mutations();

}  // namespace cox::sim

#endif  // COX_TESTS_SIM_RULES_H_
