#ifndef COX_LIB_COMM_TREE_SUM_H_
#define COX_LIB_COMM_TREE_SUM_H_

// The one order in which contributions are added: neighbours first, then
// neighbouring pairs, ((0 + 1) + (2 + 3)) + ..., an odd one waits for the next
// level. With 2^k contributions every aligned part of 2^j is a subtree, so a
// sum has the same bits however many ranks share its contributions.

#include <cstddef>
#include <span>

namespace cox {

// Into parts[0]; the others are overwritten. REQUIRES: equal sizes.
template <typename T>
void TreeSum(std::span<const std::span<T>> parts) {
  for (size_t stride = 1; stride < parts.size(); stride *= 2) {
    for (size_t at = 0; at + stride < parts.size(); at += 2 * stride) {
      const std::span<T> to = parts[at];
      const std::span<T> from = parts[at + stride];
      for (size_t i = 0; i < to.size(); ++i) to[i] += from[i];
    }
  }
}

}  // namespace cox

#endif  // COX_LIB_COMM_TREE_SUM_H_
