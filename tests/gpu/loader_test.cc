// What a machine without a GPU says. On one with a GPU the same test loads it.

#include "lib/gpu/loader.h"

#include <cstdlib>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "lib/base/fs.h"
#include "lib/comm/elf_needs.h"
#include "tests/testing/status_matchers.h"

namespace cox {
namespace {

using ::cox::testing::StatusIs;
using ::testing::HasSubstr;
using ::testing::Not;

TEST(LoadGpuTest, LoadsOrSaysInOneLineWhatIsMissing) {
  const absl::StatusOr<const CoxGpuApi*> api = LoadGpu();
  if (api.ok()) {
    EXPECT_EQ((*api)->version, uint32_t{COX_GPU_API_VERSION});
    return;
  }
  EXPECT_EQ(api.status().code(), absl::StatusCode::kNotFound);
  const std::string line(api.status().message());
  EXPECT_THAT(line, HasSubstr("device cuda: "));
  EXPECT_THAT(line, Not(HasSubstr("\n")));
  EXPECT_EQ(LoadGpu().status(), api.status());  // asked once
}

TEST(OpenGpuPluginTest, RefusesWhatIsNoPlugin) {
  EXPECT_THAT(
      OpenGpuPlugin("/no/such/libcox_gpu.so"),
      StatusIs(absl::StatusCode::kNotFound, HasSubstr("libcox_gpu.so")));
  EXPECT_THAT(OpenGpuPlugin("libc.so.6"),
              StatusIs(absl::StatusCode::kNotFound, HasSubstr("cox_gpu_api")));
}

// The plugin was built and needs LibTorch's CUDA half; nothing else does.
TEST(PluginTest, AloneNeedsCuda) {
  const char* plugin = std::getenv("COX_GPU_PLUGIN");
  if (plugin == nullptr || !Fs::Real().Exists(plugin)) {
    GTEST_SKIP() << "libcox_gpu.so was not built: tools/setup.sh --gpu";
  }
  ASSERT_OK_AND_ASSIGN(const ElfDynamic plugin_needs, ReadElfDynamic(plugin));
  EXPECT_THAT(plugin_needs.needed, ::testing::Contains("libtorch_cuda.so"));
  ASSERT_OK_AND_ASSIGN(const ElfDynamic own, ReadElfDynamic("/proc/self/exe"));
  for (const std::string& name : own.needed) {
    EXPECT_THAT(name, Not(HasSubstr("cuda")));
    EXPECT_THAT(name, Not(HasSubstr("cudart")));
  }
}

}  // namespace
}  // namespace cox
