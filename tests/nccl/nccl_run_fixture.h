#ifndef COX_TESTS_NCCL_NCCL_RUN_FIXTURE_H_
#define COX_TESTS_NCCL_NCCL_RUN_FIXTURE_H_

// A folder with a table task, and an environment in which `cox run` finds the
// fake NCCL and notes what it is misused for.

#include <cstdlib>
#include <string>

#include "gtest/gtest.h"
#include "lib/base/fs.h"
#include "tests/nccl/nccl_world.h"
#include "tests/process/run_harness.h"
#include "tests/testing/temp_dir.h"

namespace cox {

class NcclRunFixture : public ::testing::Test {
 protected:
  void SetUp() override {
    file_ = WriteTableTask(dir_.path());
    setenv("COX_FAKE_MISUSE", Path("misuse").c_str(), 1);
    UseFakes();
  }
  void TearDown() override {
    for (const char* name :
         {"COX_FAKE_MISUSE", "COX_FAKE_NCCL", "COX_NCCL", "COX_CUDART",
          "COX_FAKE_CUDA_DEVICES", "COX_FAILPOINT"}) {
      unsetenv(name);
    }
  }
  std::string Path(const std::string& name) const { return dir_.Join(name); }
  std::string Log(const std::string& run, const std::string& process) const {
    return Fs::Real()
        .ReadAll(JoinPath(Path(run), "logs/" + process + ".log"))
        .value_or("");
  }
  std::string Misuses() const {
    return Fs::Real().ReadAll(Path("misuse")).value_or("");
  }

  testing::TempDir dir_;
  std::string file_;
};

}  // namespace cox

#endif  // COX_TESTS_NCCL_NCCL_RUN_FIXTURE_H_
