// cox-ops: answers one JSON request per line of stdin with one line of stdout
// (docs/ops-protocol.md). Exits 0 at the end of input.

#include <iostream>
#include <string>

#include "tests/ops/registry.h"

int main() {
  cox::ops::Registry registry;
  cox::ops::RegisterRolloutOps(&registry);
  cox::ops::RegisterAdvantageOps(&registry);
  cox::ops::RegisterPolicyOps(&registry);
  cox::ops::RegisterPreferenceOps(&registry);
  cox::ops::RegisterOptimOps(&registry);
  cox::ops::RegisterSamplingOps(&registry);
#ifdef COX_OPS_WITH_TABLE
  cox::ops::RegisterTableOps(&registry);
#endif
#ifdef COX_OPS_WITH_MODEL
  cox::ops::RegisterModelOps(&registry);
#endif
  std::ios::sync_with_stdio(false);
  std::string line;
  while (std::getline(std::cin, line)) {
    std::cout << registry.Answer(line) << '\n' << std::flush;
  }
  return 0;
}
