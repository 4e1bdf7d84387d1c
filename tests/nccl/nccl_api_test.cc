#include <sys/stat.h>

#include <cstdio>
#include <cstdlib>
#include <map>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "lib/base/fs.h"
#include "lib/comm/cuda_search.h"
#include "lib/comm/elf_needs.h"
#include "tests/nccl/fake_tree.h"
#include "tests/nccl/nccl_world.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/temp_dir.h"

namespace cox {
namespace {

using ::cox::testing::StatusIs;
using ::cox::testing::TempDir;
using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;

MATCHER(IsOneLine, "is one line") {
  return std::string(arg).find('\n') == std::string::npos;
}

TEST(NcclApiTest, ALibraryThatIsNotThereIsOneLineWithItsPath) {
  for (const absl::Status& status :
       {LoadNcclApi("/nowhere/libnccl.so.2").status(),
        LoadCudaApi("/nowhere/libnccl.so.2").status()}) {
    EXPECT_THAT(status,
                StatusIs(absl::StatusCode::kNotFound,
                         AllOf(HasSubstr("cannot load /nowhere/libnccl.so.2"),
                               IsOneLine())));
  }
}

TEST(NcclApiTest, AnotherLibraryIsRefusedWithTheFunctionThatItLacks) {
  EXPECT_THAT(LoadNcclApi(JoinPath(FakeLibraries(), "libcudart_fake.so")),
              StatusIs(absl::StatusCode::kFailedPrecondition,
                       AllOf(HasSubstr("no function ncclGetVersion"),
                             HasSubstr("NCCL 2.18"))));
}

TEST(NcclApiTest, TheTablesReachTheLibraries) {
  UseFakes();
  ASSERT_OK_AND_ASSIGN(const NcclApi nccl, LoadNcclApi());
  int version = 0;
  EXPECT_EQ(nccl.get_version(&version), NcclResult::kSuccess);
  EXPECT_EQ(version, 22809);
  EXPECT_EQ(nccl.group_start(), NcclResult::kSuccess);
  EXPECT_EQ(nccl.group_end(), NcclResult::kSuccess);
  ASSERT_OK_AND_ASSIGN(const CudaApi cuda, LoadCudaApi());
  EXPECT_THAT(cuda.path, HasSubstr("libcudart_fake.so"));
  EXPECT_EQ(CountCudaDevices(cuda).value_or(0), 4);
}

TEST(NcclApiTest, NoDriverAndNoGpuAreOneLineEach) {
  UseFakes();
  ASSERT_OK_AND_ASSIGN(const CudaApi cuda, LoadCudaApi());
  setenv("COX_FAKE_CUDA_DEVICES", "-1", 1);
  EXPECT_THAT(CountCudaDevices(cuda),
              StatusIs(absl::StatusCode::kNotFound,
                       AllOf(HasSubstr("no NVIDIA driver"),
                             HasSubstr("CUDA 13.0"), IsOneLine())));
  setenv("COX_FAKE_CUDA_DEVICES", "0", 1);
  EXPECT_THAT(CountCudaDevices(cuda),
              StatusIs(absl::StatusCode::kNotFound,
                       AllOf(HasSubstr("shows no device"), IsOneLine())));
  unsetenv("COX_FAKE_CUDA_DEVICES");
}

TEST(NcclApiTest, ADeviceIsChosenByLocalRank) {
  unsetenv("LOCAL_RANK");
  EXPECT_EQ(NcclDevice(5, 4), 1);
  setenv("LOCAL_RANK", "2", 1);
  EXPECT_EQ(NcclDevice(5, 4), 2);
  unsetenv("LOCAL_RANK");
}

CudaSearchInput SearchOf(std::map<std::string, std::string> env,
                         const std::string& root) {
  CudaSearchInput input;
  input.root = root;
  input.env = [env](const std::string& name) {
    const auto at = env.find(name);
    return at == env.end() ? std::string() : at->second;
  };
  return input;
}

TEST(CudaSearchTest, APyTorchFolderComesBeforeTheSystem) {
  TempDir dir;
  const FakeTree tree(dir.path());
  tree.Library("site/torch/lib/libtorch_cuda.so", {});
  tree.Library("site/nvidia/nccl/lib/libnccl.so.2", {});
  tree.Library("usr/local/cuda/lib64/libnccl.so.2", {});
  // Each of these names the same folder.
  for (const char* given : {"site", "site/torch"}) {
    const auto folders =
        CudaFolders(SearchOf({{"COX_TORCH_DIR", dir.Join(given)}}, dir.path()));
    EXPECT_EQ(FindCudaLibrary(folders, {"libnccl.so.2"}).value_or(""),
              tree.Real("site/nvidia/nccl/lib/libnccl.so.2"))
        << given;
  }
  const CudaSearchInput none = SearchOf({}, dir.path());
  EXPECT_EQ(FindCudaLibrary(CudaFolders(none), {"libnccl.so.2"}).value_or(""),
            tree.Real("usr/local/cuda/lib64/libnccl.so.2"));
  EXPECT_EQ(FindCudaLibrary(CudaFolders(none), {"libcudart.so.13"}),
            std::nullopt);
  EXPECT_THAT(DescribeCudaSearch(none),
              AllOf(HasSubstr("COX_TORCH_DIR (not set)"),
                    HasSubstr("system (1 folder)")));
}

TEST(CudaSearchTest, AVirtualEnvironmentIsSearched) {
  TempDir dir;
  const FakeTree tree(dir.path());
  tree.Library(
      "venv/lib/python3.11/site-packages/nvidia/cu13/lib/libcudart.so.13", {});
  const auto folders = CudaFolders(
      SearchOf({{"VIRTUAL_ENV", dir.Join("venv")}}, dir.Join("none")));
  ASSERT_EQ(folders.size(), 2u);  // venv/lib itself, and the wheel's
  EXPECT_EQ(folders[1].origin, "VIRTUAL_ENV");
  EXPECT_TRUE(FindCudaLibrary(folders, {"libcudart.so.13"}).has_value());
}

TEST(ElfNeedsTest, NamesWhatIsMissingAndForWhom) {
  TempDir dir;
  const FakeTree tree(dir.path());
  tree.Library("torch/libtorch_cuda.so",
               {"libcublas.so.13", "libcudnn.so.9", "libc.so.6"},
               "$ORIGIN/../cu13");
  tree.Library("cu13/libcublas.so.13", {"libcublasLt.so.13"});
  tree.Library("other/libcublasLt.so.13", {"libcublas.so.13"});
  ASSERT_OK_AND_ASSIGN(
      const ElfWalk walk,
      WalkElfNeeds(dir.Join("torch/libtorch_cuda.so"), {dir.Join("other")}));
  ASSERT_EQ(walk.missing.size(), 1u);
  EXPECT_EQ(walk.missing[0].name, "libcudnn.so.9");
  EXPECT_EQ(walk.missing[0].needed_by, "libtorch_cuda.so");
  EXPECT_EQ(walk.found.size(), 2u);  // a circle of needs ends
}

TEST(ElfNeedsTest, ReadsARealLibrary) {
  ASSERT_OK_AND_ASSIGN(
      const ElfDynamic dynamic,
      ReadElfDynamic(JoinPath(FakeLibraries(), "libnccl_fake.so")));
  EXPECT_EQ(dynamic.soname, "libnccl_fake.so");
  EXPECT_THAT(dynamic.needed, ::testing::Contains("libcudart_fake.so"));
}

TEST(ElfNeedsTest, OtherFilesAreRefused) {
  TempDir dir;
  EXPECT_THAT(ReadElfDynamic(dir.Join("none")),
              StatusIs(absl::StatusCode::kNotFound));
  const std::string text = dir.Join("text.so");
  ASSERT_OK(WriteFileDurably(Fs::Real(), text, "INPUT(libnccl.so.2)\n"));
  EXPECT_THAT(ReadElfDynamic(text), StatusIs(absl::StatusCode::kDataLoss));
  // A library cut off at any byte is refused, not read beyond.
  const FakeTree tree(dir.path());
  tree.Library("whole.so", {"libx.so"});
  ASSERT_OK_AND_ASSIGN(const std::string whole,
                       Fs::Real().ReadAll(dir.Join("whole.so")));
  for (size_t size = 0; size < whole.size(); size += 7) {
    ASSERT_OK(WriteFileDurably(Fs::Real(), text, whole.substr(0, size)));
    EXPECT_THAT(ReadElfDynamic(text), StatusIs(absl::StatusCode::kDataLoss))
        << size;
  }
}

}  // namespace
}  // namespace cox
