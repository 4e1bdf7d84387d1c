// cox-group-check: one rank of the all-reduce that `cox k8s doctor
// --all-reduce` starts in two pods. RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT
// as launchers set them; POD_IP is the address that the others reach.

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "lib/base/clock.h"
#include "lib/base/process.h"
#include "lib/base/status.h"
#include "lib/comm/collective.h"

namespace cox {
namespace {

constexpr size_t kElements = size_t{16} << 20;  // 64 MiB of floats
constexpr int kTimes = 5;

std::string Environment(const char* name, const char* otherwise) {
  const char* value = std::getenv(name);
  return value == nullptr ? otherwise : value;
}

absl::StatusOr<GlooOptions> OptionsFromEnvironment() {
  GlooOptions options;
  options.host = Environment("MASTER_ADDR", "127.0.0.1");
  options.interface_address = Environment("POD_IP", "127.0.0.1");
  options.prefix = "doctor";
  options.timeout = absl::Seconds(90);
  struct Number {
    const char* name;
    const char* otherwise;
    int* value;
  };
  for (const Number& number : {Number{"RANK", "0", &options.rank},
                               Number{"WORLD_SIZE", "1", &options.world_size},
                               Number{"MASTER_PORT", "29500", &options.port}}) {
    const std::string text = Environment(number.name, number.otherwise);
    if (!absl::SimpleAtoi(text, number.value) || *number.value < 0) {
      return absl::InvalidArgumentError(absl::StrCat(
          number.name, ": expected a number from 0, found '", text, "'"));
    }
  }
  return options;
}

absl::Status Check() {
  COX_ASSIGN_OR_RETURN(const GlooOptions options, OptionsFromEnvironment());
  COX_ASSIGN_OR_RETURN(const std::unique_ptr<Collective> group,
                       MakeGloo(options));
  // 1 + 2 + ... + n in every place.
  const float want = static_cast<float>(options.world_size) *
                     static_cast<float>(options.world_size + 1) / 2;
  std::vector<float> data(kElements);
  double best_s = 1e9;
  for (int i = 0; i < kTimes; ++i) {
    std::fill(data.begin(), data.end(), static_cast<float>(options.rank + 1));
    COX_RETURN_IF_ERROR(group->Barrier());
    const MonoTime start = Clock::Real().Now();
    COX_RETURN_IF_ERROR(group->AllReduceSum(std::span<float>(data)));
    best_s =
        std::min(best_s, absl::ToDoubleSeconds(Clock::Real().Now() - start));
    const auto wrong = std::find_if(data.begin(), data.end(),
                                    [want](float x) { return x != want; });
    if (wrong != data.end()) {
      return absl::DataLossError(absl::StrCat("element ", wrong - data.begin(),
                                              ": expected ", want, ", found ",
                                              *wrong));
    }
  }
  const double bytes = static_cast<double>(kElements * sizeof(float));
  std::printf("all-reduce rank %d of %d at %s: %.0f MiB in %.3f s, %.2f GB/s\n",
              options.rank, options.world_size,
              options.interface_address.c_str(), bytes / (1 << 20), best_s,
              bytes / best_s / 1e9);
  return group->Barrier();
}

}  // namespace
}  // namespace cox

int main() {
  cox::InitProcess(/*die_with_parent=*/false);
  const absl::Status status = cox::Check();
  if (status.ok()) return cox::kExitDone;
  std::fprintf(stderr, "cox-group-check: %s\n", status.ToString().c_str());
  return cox::kExitCheckFailed;
}
