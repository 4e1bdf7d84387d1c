#ifndef COX_TESTS_COMM_RANK_CHECKS_H_
#define COX_TESTS_COMM_RANK_CHECKS_H_

// What the tests of every collective between processes share: checks inside a
// forked rank, its data, and one pass over all operations.

#include <cstddef>
#include <cstdio>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "lib/base/status.h"
#include "lib/comm/collective.h"

namespace cox {

// Far from any timeout of a group in these tests, except where stated: what
// takes longer has hung.
inline constexpr absl::Duration kSoon = absl::Seconds(30);

// A rank that fails a check says so and returns 1, its exit code.
#define CHILD_CHECK(condition)                                             \
  do {                                                                     \
    if (!(condition)) {                                                    \
      std::fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition); \
      return 1;                                                            \
    }                                                                      \
  } while (false)
#define CHILD_CHECK_OK(expr)                                  \
  do {                                                        \
    const absl::Status child_status = (expr);                 \
    if (!child_status.ok()) {                                 \
      std::fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, \
                   child_status.ToString().c_str());          \
      return 1;                                               \
    }                                                         \
  } while (false)

// Deterministic, with many bits, different on every rank.
std::vector<float> RankData(int rank, size_t n);
// What a sum over `world` ranks must leave (lib/comm/tree_sum.h).
std::vector<float> TreeOfRanks(int world, size_t n);

// Every operation once, on `elements` (at least 1001) floats. Writes the hash
// of the sum to `out_path`. 0, or 1 when a check failed.
int RunAllCollectives(Collective& comm, size_t elements,
                      const std::string& out_path);

}  // namespace cox

#endif  // COX_TESTS_COMM_RANK_CHECKS_H_
