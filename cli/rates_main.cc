// cox-rates DIR ROLE RANK WORLD PORT OUT: how long the work of a role takes
// here, and how much memory it needs. DIR is what `cox plan` prepared
// (rates_roles.h); ROLE is learner, actor or reward; the WORLD learners meet at
// PORT. OUT gets a JSON object.

#include <cstdio>
#include <memory>
#include <string>

#include "absl/strings/numbers.h"
#include "cli/process_memory.h"
#include "cli/rates_roles.h"
#include "grpcpp/channel.h"
#include "lib/base/fs.h"
#include "lib/base/log.h"
#include "lib/base/process.h"
#include "lib/model/api.h"
#include "lib/rpc/channel.h"
#include "lib/rpc/engine_settings.h"
#include "lib/rpc/http_server.h"
#include "lib/rpc/server.h"
#include "lib/rpc/weight_server.h"

namespace cox {
namespace {

struct Arguments {
  std::string dir;
  std::string role;
  int rank = 0;
  int world = 1;
  int port = 0;
  std::string out;
};

absl::Status Run(const Arguments& arguments) {
  // What every role has open, connected and idle.
  SnapshotStore store;
  WeightServiceImpl service(&store, {});
  COX_ASSIGN_OR_RETURN(const std::unique_ptr<RpcServer> server,
                       RpcServer::Start({.services = {&service}}));
  COX_ASSIGN_OR_RETURN(const std::unique_ptr<HttpServer> http,
                       HttpServer::Start({}));
  COX_ASSIGN_OR_RETURN(const std::shared_ptr<grpc::Channel> channel,
                       MakeChannel(server->address()));
  channel->WaitForConnected(absl::ToChronoTime(absl::Now() + absl::Seconds(5)));
  COX_ASSIGN_OR_RETURN(const RatesJob job, ReadRatesJob(arguments.dir));
  COX_RETURN_IF_ERROR(InitTorch(EngineOptionsOf(job.config)).status());
  const double idle = OwnMemory().peak_private;
  absl::StatusOr<nlohmann::json> out =
      arguments.role == "learner"
          ? RehearseLearner(job, arguments.rank, arguments.world,
                            arguments.port)
      : arguments.role == "actor" ? RehearseActor(job)
                                  : RehearseReward(job);
  COX_RETURN_IF_ERROR(out.status());
  (*out)["idle_bytes"] = idle;
  return WriteFileDurably(Fs::Real(), arguments.out, out->dump());
}

}  // namespace
}  // namespace cox

int main(int argc, char** argv) {
  cox::InitProcess(/*die_with_parent=*/true);
  cox::Arguments arguments;
  if (argc != 7 || !absl::SimpleAtoi(argv[3], &arguments.rank) ||
      !absl::SimpleAtoi(argv[4], &arguments.world) ||
      !absl::SimpleAtoi(argv[5], &arguments.port)) {
    std::fprintf(stderr,
                 "usage: cox-rates DIR learner|actor|reward RANK WORLD PORT "
                 "OUT; started by cox plan\n");
    return cox::kExitUsage;
  }
  arguments.dir = argv[1];
  arguments.role = argv[2];
  arguments.out = argv[6];
  cox::InitLog("rates-" + arguments.role);
  if (const absl::Status status = cox::Run(arguments); !status.ok()) {
    std::fprintf(stderr, "cox-rates: %s\n",
                 std::string(status.message()).c_str());
    return cox::ExitCodeFor(status);
  }
  return cox::kExitDone;
}
