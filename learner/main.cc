// cox-learner: one data-parallel rank of the learners.

#include <cstdlib>
#include <string>
#include <vector>

#include "absl/strings/numbers.h"
#include "learner/learner_service.h"
#include "lib/base/log.h"
#include "lib/base/process.h"
#include "lib/model/api.h"
#include "lib/rpc/role_flags.h"
#include "lib/rpc/tls.h"

namespace cox {
namespace {

absl::StatusOr<LearnerEngineSet> SetupEngines(const EngineOptions& options) {
  LearnerEngineSet set;
  COX_ASSIGN_OR_RETURN(set.numerics_class, InitTorch(options));
  set.make_engine = [options] { return MakeTrainEngine(options); };
  return set;
}

struct RankFlags {
  int rank = 0;
  int world = 0;  // 0 = roles.learners
};

// Takes --rank and --world out of the command line. JobSet's RANK and
// WORLD_SIZE are the defaults.
absl::StatusOr<RankFlags> TakeRankFlags(std::vector<const char*>* args) {
  RankFlags flags;
  const auto parse = [](const std::string& name, const std::string& text,
                        int* value) -> absl::Status {
    if (!absl::SimpleAtoi(text, value) || *value < 0) {
      return absl::InvalidArgumentError(
          absl::StrCat(name, ": expected a number from 0, found '", text, "'"));
    }
    return absl::OkStatus();
  };
  if (const char* rank = std::getenv("RANK")) {
    COX_RETURN_IF_ERROR(parse("RANK", rank, &flags.rank));
  }
  if (const char* world = std::getenv("WORLD_SIZE")) {
    COX_RETURN_IF_ERROR(parse("WORLD_SIZE", world, &flags.world));
  }
  for (size_t i = 1; i < args->size();) {
    const std::string flag = (*args)[i];
    const std::string name = flag.substr(0, flag.find('='));
    if (name != "--rank" && name != "--world") {
      ++i;
      continue;
    }
    size_t taken = 1;
    std::string value;
    if (name.size() < flag.size()) {
      value = flag.substr(name.size() + 1);
    } else if (i + 1 < args->size()) {
      value = (*args)[i + 1];
      taken = 2;
    }
    COX_RETURN_IF_ERROR(
        parse(name, value, name == "--rank" ? &flags.rank : &flags.world));
    const auto at = args->begin() + static_cast<std::ptrdiff_t>(i);
    args->erase(at, at + static_cast<std::ptrdiff_t>(taken));
  }
  return flags;
}

int Main(int argc, char** argv) {
  std::vector<const char*> args(argv, argv + argc);
  const absl::StatusOr<RankFlags> ranks = TakeRankFlags(&args);
  if (!ranks.ok()) {
    return PrintFlagsStatus(ranks.status());
  }
  absl::StatusOr<RoleFlags> flags =
      ParseRoleFlags("cox-learner [--rank R] [--world N]",
                     absl::StrCat("learner-", ranks->rank),
                     static_cast<int>(args.size()), args.data());
  if (!flags.ok()) {
    return PrintFlagsStatus(flags.status());
  }
  InitProcess(flags->die_with_parent);
  InitLog(flags->name);
  if (const absl::Status tls = InitProcessTls(flags->tls_dir, "learner");
      !tls.ok()) {
    return PrintFlagsStatus(tls);
  }
  LearnerOptions options;
  options.coordinator.address = flags->coordinator;
  options.coordinator.run_id = flags->run_id;
  options.coordinator.name = flags->name;
  options.rank = ranks->rank;
  options.world_size = ranks->world;
  options.bind = flags->bind;
  options.advertise = flags->advertise;
  if (!flags->advertise.empty()) {
    options.rendezvous_host = flags->advertise;
  }
  options.http_host = flags->http_host;
  options.http_port = flags->http_port;
  options.setup_engines = SetupEngines;
  options.make_group = MakeGloo;
  Learner learner(std::move(options));
  const absl::Status status = RunUntilSignal(
      [&learner] { return learner.Run(); }, [&learner] { learner.Stop(); });
  if (status.ok()) {
    return kExitDone;
  }
  if (absl::IsCancelled(status)) {
    LogInfo("learner leaves", {{"why", std::string(status.message())}});
    return kExitRetryable;
  }
  LogError("learner failed", {{"error", status.ToString()}});
  return ExitCodeFor(status);
}

}  // namespace
}  // namespace cox

int main(int argc, char** argv) { return cox::Main(argc, argv); }
