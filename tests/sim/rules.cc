#include "tests/sim/rules.h"

namespace cox::sim {

std::span<const Mutation> Mutations() {
  static constexpr Mutation kMutations[] = {
      {"1", "an older epoch may write", [](Rules& r) { r.fence = false; }},
      {"2", "commits are not synced",
       [](Rules& r) { r.synced_ledger = false; }},
      {"3", "the reply leaves before the commit",
       [](Rules& r) { r.core.ack_after_commit = false; }},
      {"4", "the row is written before the payload is synced",
       [](Rules& r) { r.core.payload_before_row = false; }},
      {"5", "a failed sync is passed over",
       [](Rules& r) { r.core.end_at_failed_sync = false; }},
      {"7", "an older learner generation is served",
       [](Rules& r) { r.core.refuse_stale_generation = false; }},
      {"8", "the last result of a unit wins",
       [](Rules& r) { r.core.first_result_stays = false; }},
      {"9", "the random numbers depend on the attempt",
       [](Rules& r) { r.seed_by_place = false; }},
      {"10", "a lease names the latest weights",
       [](Rules& r) { r.core.exact_version = false; }},
      {"11", "a batch is in order of arrival",
       [](Rules& r) { r.core.unit_order = false; }},
      {"12", "steps are not compared, commits not awaited",
       [](Rules& r) {
         r.core.compare_and_set = false;
         r.lineage.await_commit = false;
       }},
      {"13", "a checkpoint needs no committed step",
       [](Rules& r) {
         r.core.checkpoint_of_committed = false;
         r.lineage.row_after_commit = false;
       }},
      {"14", "a group's generation is not durable",
       [](Rules& r) { r.core.generation_durable = false; }},
      {"15", "a step reads what no checkpoint holds",
       [](Rules& r) { r.closed_state = false; }},
      {"16", "a version is published before its step is committed",
       [](Rules& r) {
         r.core.publish_committed_only = false;
         r.lineage.publish_after_commit = false;
       }},
      {"17", "a checkpoint gets its name before its files are synced",
       [](Rules& r) { r.files_before_name = false; }},
      {"18", "the newest folder is loaded, row or not",
       [](Rules& r) { r.load_by_row = false; }},
      {"19", "a checkpoint's row is written before its files",
       [](Rules& r) { r.lineage.row_after_write = false; }},
      {"20", "checkpoints are deleted too early",
       [](Rules& r) { r.core.keep_two_checkpoints = false; }},
      {"20b", "payloads are deleted that a restart needs",
       [](Rules& r) { r.core.keep_needed_payloads = false; }},
  };
  return kMutations;
}

}  // namespace cox::sim
