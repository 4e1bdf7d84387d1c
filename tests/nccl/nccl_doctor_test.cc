// The GPU section of `cox doctor` on made-up machines.

#include <map>

#include "cli/doctor_gpu.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/nccl/fake_tree.h"
#include "tests/testing/temp_dir.h"

namespace cox {
namespace {

using ::cox::testing::TempDir;
using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

std::map<std::string, GpuRow> Inspect(const GpuPlaces& places) {
  std::map<std::string, GpuRow> rows;
  for (const GpuRow& row : InspectGpuFiles(places)) rows[row.what] = row;
  return rows;
}

GpuPlaces PlacesIn(const TempDir& dir) {
  GpuPlaces places;
  places.search.root = dir.path();
  places.search.env = [site = dir.Join("site")](const std::string& name) {
    return name == "COX_TORCH_DIR" ? site : "";
  };
  return places;
}

TEST(DoctorGpuTest, AnEmptyMachineLacksEverything) {
  TempDir dir;
  const auto rows = Inspect(PlacesIn(dir));
  ASSERT_EQ(rows.size(), 6u);
  for (const auto& [what, row] : rows) EXPECT_FALSE(row.present) << what;
  EXPECT_THAT(rows.at("NVIDIA driver").detail, HasSubstr("libcuda.so.1"));
  EXPECT_THAT(rows.at("NCCL").detail,
              AllOf(HasSubstr("libnccl.so.2"), HasSubstr("COX_NCCL")));
}

TEST(DoctorGpuTest, NamesExactlyTheLibrariesThatLibTorchLacks) {
  TempDir dir;
  const FakeTree tree(dir.path());
  tree.Library(
      "site/torch/lib/libtorch_cuda.so",
      {"libc10_cuda.so", "libcublas.so.13", "libcudnn.so.9", "libnccl.so.2"},
      "$ORIGIN");
  tree.Library("site/torch/lib/libc10_cuda.so", {"libcudart.so.13"});
  tree.Library("site/nvidia/cu13/lib/libcudart.so.13", {});
  tree.Library("site/nvidia/nccl/lib/libnccl.so.2", {});
  tree.Library("site/nvidia/cu13/lib/libcublas.so.13", {"libcublasLt.so.13"});
  const auto rows = Inspect(PlacesIn(dir));
  EXPECT_TRUE(rows.at("CUDA runtime").present);
  EXPECT_TRUE(rows.at("NCCL").present);
  const GpuRow torch = rows.at("LibTorch for CUDA");
  EXPECT_FALSE(torch.present);
  EXPECT_THAT(
      torch.detail,
      AllOf(HasSubstr("libcudnn.so.9 (for libtorch_cuda.so)"),
            HasSubstr("libcublasLt.so.13 (for libcublas.so.13)"),
            Not(HasSubstr("libcublas.so.13 (")), Not(HasSubstr("libnccl"))));
}

TEST(DoctorGpuTest, ACompleteMachineIsOk) {
  TempDir dir;
  const FakeTree tree(dir.path());
  tree.Library("site/torch/lib/libtorch_cuda.so", {"libcudart.so.13"});
  tree.Library("site/nvidia/cu13/lib/libcudart.so.13", {});
  tree.Library("site/nvidia/nccl/lib/libnccl.so.2", {});
  tree.Library("usr/lib/x86_64-linux-gnu/libcuda.so.1", {});
  tree.Text("proc/driver/nvidia/version", "NVRM version: 580.1\nGCC\n");
  tree.Text("dev/nvidia0", "");
  tree.Text("dev/nvidia1", "");
  tree.Text("dev/nvidiactl", "");
  GpuPlaces places = PlacesIn(dir);
  places.plugin = "lib/libcox_gpu.so";
  const auto rows = Inspect(places);
  for (const auto& [what, row] : rows) EXPECT_TRUE(row.present) << what;
  EXPECT_THAT(rows.at("NVIDIA driver").detail,
              HasSubstr("NVRM version: 580.1"));
  EXPECT_THAT(rows.at("GPUs").detail, HasSubstr("2 in /dev"));
}

TEST(DoctorGpuTest, AContainerWithoutTheDriversLibrariesIsTold) {
  TempDir dir;
  const FakeTree tree(dir.path());
  tree.Text("proc/driver/nvidia/version", "NVRM version: 580.1\n");
  const GpuRow row = Inspect(PlacesIn(dir)).at("NVIDIA driver");
  EXPECT_FALSE(row.present);
  EXPECT_THAT(row.detail, HasSubstr("the container lacks"));
}

}  // namespace
}  // namespace cox
