#include "lib/base/failpoint.h"

#include <unistd.h>

#include <csignal>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <map>
#include <string>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "lib/base/sync.h"

namespace cox {
namespace {

constexpr FailpointName kKillFailpoints[] = {
    {"actor", "actor.loaded"},           {"actor", "actor.generated"},
    {"actor", "actor.scored"},           {"actor", "actor.submitted"},
    {"reward", "reward.received"},       {"reward", "reward.scored"},
    {"coordinator", "segment.appended"}, {"coordinator", "segment.synced"},
    {"coordinator", "ledger.decided"},   {"coordinator", "ledger.committed"},
    {"coordinator", "ledger.replied"},   {"coordinator", "endpoints.written"},
    {"learner", "learner.trained"},      {"learner", "checkpoint.written"},
    {"learner", "checkpoint.renamed"},   {"learner", "checkpoint.verified"},
    {"learner", "learner.committed"},    {"learner", "learner.published"},
};

struct Spec {
  std::string name;
  int64_t hit = 0;
  std::string action;
};

// False for anything malformed: a test that mistypes arms nothing, and sees
// that nothing happened.
bool ParseSpec(std::string_view text, Spec* spec) {
  text = text.substr(0, text.find('#'));
  while (!text.empty() && (text.back() == '\n' || text.back() == ' ')) {
    text.remove_suffix(1);
  }
  const std::vector<std::string> parts =
      absl::StrSplit(absl::string_view(text.data(), text.size()), ':');
  if (parts.size() < 2 || parts.size() > 3 || parts[0].empty() ||
      !absl::SimpleAtoi(parts[1], &spec->hit) || spec->hit < 1) {
    return false;
  }
  spec->name = parts[0];
  spec->action = parts.size() == 3 ? parts[2] : "kill";
  return true;
}

class Failpoints {
 public:
  Failpoints() {
    const char* value = std::getenv("COX_FAILPOINT");
    const std::string text = value == nullptr ? "" : value;
    if (text.starts_with("@")) {
      path_ = text.substr(1);
    } else {
      line_ = text;
    }
  }

  std::string Hit(std::string_view name) {
    MutexLock lock(&mutex_);
    if (!path_.empty()) {
      std::ifstream in(path_);
      if (!in) return "";
      const std::string line((std::istreambuf_iterator<char>(in)),
                             std::istreambuf_iterator<char>());
      if (line != line_) {
        line_ = line;
        passages_ = 0;
      }
    }
    Spec spec;
    if (!ParseSpec(line_, &spec) || spec.name != name ||
        ++passages_ != spec.hit) {
      return "";
    }
    // Whoever removes the file acts; the others were too late.
    if (!path_.empty() && unlink(path_.c_str()) != 0) return "";
    return spec.action;
  }

 private:
  Mutex mutex_;
  std::string path_;
  std::string line_ ABSL_GUARDED_BY(mutex_);
  int64_t passages_ ABSL_GUARDED_BY(mutex_) = 0;
};

}  // namespace

namespace internal {

const bool failpoints_on = std::getenv("COX_FAILPOINT") != nullptr;

FailAction HitFailpoint(std::string_view name) {
  // Never destroyed: other threads may pass while the process ends.
  static Failpoints* const points = new Failpoints();
  const std::string action = points->Hit(name);
  if (action.empty()) return FailAction::kNone;
  if (action == "enospc") return FailAction::kEnospc;
  if (action == "eio") return FailAction::kEio;
  if (action == "flip") return FailAction::kFlip;
  if (action == "hang") {
    while (true) pause();
  }
  kill(getpid(), SIGKILL);
  while (true) pause();
}

}  // namespace internal

std::span<const FailpointName> KillFailpoints() { return kKillFailpoints; }

absl::Status FailpointStatus(std::string_view name) {
  const std::string text =
      absl::StrCat(absl::string_view(name.data(), name.size()), ": failpoint");
  switch (HitFailpoint(name)) {
    case FailAction::kEnospc:
      return absl::ResourceExhaustedError(text);
    case FailAction::kEio:
      return absl::InternalError(text);
    default:
      return absl::OkStatus();
  }
}

}  // namespace cox
