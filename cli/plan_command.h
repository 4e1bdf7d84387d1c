#ifndef COX_CLI_PLAN_COMMAND_H_
#define COX_CLI_PLAN_COMMAND_H_

#include <string>
#include <vector>

namespace cox {

struct PlanCommandOptions {
  std::string file;  // run.yaml
  std::vector<std::string> overrides;
  std::string cluster = "local";  // file, or "local": measure this machine
  double prompt_tokens = 0;       // 0 = those of the prompts
  double answer_tokens = 0;       // 0 = as long as the demonstrations' answers
  std::string compare;            // run directory; "" = none
  bool json = false;
};

// `cox plan run.yaml --cluster SPEC`. Rates that SPEC leaves out are measured
// here, with the run's own shapes, by cox-rates.
int PlanRun(const PlanCommandOptions& options);

}  // namespace cox

#endif  // COX_CLI_PLAN_COMMAND_H_
