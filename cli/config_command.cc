#include "cli/config_command.h"

#include <cstdio>

#include "lib/base/process.h"
#include "lib/config/config.h"

namespace cox {
namespace {

int Fail(const absl::Status& status) {
  std::fprintf(stderr, "%s\n", std::string(status.message()).c_str());
  return ExitCodeFor(status);
}

}  // namespace

int ConfigCheck(const std::string& file,
                const std::vector<std::string>& overrides) {
  auto config = LoadConfig({.path = file,
                            .overrides = overrides,
                            .yaml_text = "",
                            .check_files = true});
  if (!config.ok()) {
    return Fail(config.status());
  }
  std::printf("%s: ok (configuration %s)\n", file.c_str(),
              ConfigHash(*config).substr(0, 12).c_str());
  return kExitDone;
}

int ConfigShow(const std::string& file,
               const std::vector<std::string>& overrides) {
  auto config = LoadConfig({.path = file,
                            .overrides = overrides,
                            .yaml_text = "",
                            .check_files = false});
  if (!config.ok()) {
    return Fail(config.status());
  }
  std::fputs(PrintConfig(*config).c_str(), stdout);
  return kExitDone;
}

int ConfigExplain(const std::string& key) {
  if (key.empty()) {
    std::fputs(ExplainAll().c_str(), stdout);
    return kExitDone;
  }
  auto text = Explain(key);
  if (!text.ok()) {
    return Fail(text.status());
  }
  std::fputs(text->c_str(), stdout);
  return kExitDone;
}

}  // namespace cox
