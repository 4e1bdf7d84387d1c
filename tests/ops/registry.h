#ifndef COX_TESTS_OPS_REGISTRY_H_
#define COX_TESTS_OPS_REGISTRY_H_

// The ops that this binary knows, and the line protocol around them. A file
// with more ops adds a Register function and a call in main.cc.

#include <functional>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "lib/base/status.h"
#include "tests/ops/args.h"

namespace cox::ops {

using Handler = std::function<absl::StatusOr<Json>(const Args& args)>;

struct Op {
  // Beside "dtype", which every op takes.
  std::vector<std::string_view> args;
  Handler float64;
  Handler float32;
};

class Registry {
 public:
  void Add(std::string name, Op op) {
    ops_.insert_or_assign(std::move(name), std::move(op));
  }
  // For ops without float tensors.
  void Add(std::string name, std::vector<std::string_view> args,
           Handler handler) {
    Add(std::move(name), Op{std::move(args), handler, handler});
  }

  // The answer to one request line, without the newline. Any bytes may come
  // in; the answer is always one line of valid JSON.
  std::string Answer(std::string_view line) const;

 private:
  absl::StatusOr<Json> Run(const Json& request) const;
  std::map<std::string, Op> ops_;
};

void RegisterRolloutOps(Registry* registry);
void RegisterAdvantageOps(Registry* registry);
void RegisterPolicyOps(Registry* registry);
void RegisterPreferenceOps(Registry* registry);
void RegisterOptimOps(Registry* registry);
void RegisterSamplingOps(Registry* registry);
// Only in builds with reward/ (table_ops.cc) and with LibTorch (model_ops.cc).
void RegisterTableOps(Registry* registry);
void RegisterModelOps(Registry* registry);

}  // namespace cox::ops

#endif  // COX_TESTS_OPS_REGISTRY_H_
