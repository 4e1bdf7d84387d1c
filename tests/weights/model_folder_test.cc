#include "lib/weights/model_folder.h"

#include <cstring>
#include <numeric>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "lib/base/fault_fs.h"
#include "lib/base/hash.h"
#include "lib/weights/convert.h"
#include "nlohmann/json.hpp"
#include "tests/testing/status_matchers.h"
#include "tests/testing/temp_dir.h"

namespace cox {
namespace {

using ::cox::testing::IsOkAndHolds;
using ::cox::testing::StatusIs;
using ::cox::testing::TempDir;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

Manifest Layout() {
  return LayOut("policy", R"({"model_type":"gpt2"})", DType::kF32,
                {{"wte.weight", {5, 3}}, {"h.0.ln_1.bias", {3}}});
}

std::shared_ptr<const Snapshot> MakeSmall() {
  const Manifest layout = Layout();
  std::vector<float> values(layout.arena_bytes / sizeof(float));
  for (const TensorInfo& tensor : layout.tensors) {
    float* begin = values.data() + tensor.offset / sizeof(float);
    // 1/3 steps: not exact in bf16.
    for (size_t i = 0; i < tensor.bytes / sizeof(float); ++i) {
      begin[i] = static_cast<float>(i) / 3.0f - 1.0f;
    }
  }
  auto snapshot = SnapshotFromFloats(layout, values);
  COX_CHECK(snapshot.ok());
  return *snapshot;
}

template <typename T>
RawTensor Raw(DType dtype, std::vector<int64_t> shape,
              const std::vector<T>& values) {
  return {dtype, std::move(shape),
          std::string(reinterpret_cast<const char*>(values.data()),
                      values.size() * sizeof(T))};
}

ModelFolder MakeFolder() {
  ModelFolder folder;
  std::vector<float> wte(15);
  std::iota(wte.begin(), wte.end(), 0.0f);
  folder.tensors["wte.weight"] = Raw(DType::kF32, {5, 3}, wte);
  folder.tensors["h.0.ln_1.bias"] =
      Raw(DType::kF32, {3}, std::vector<float>{7, 8, 9});
  return folder;
}

class FolderTest : public ::testing::Test {
 protected:
  std::vector<SavedFile> Save(const SaveFolderOptions& options) {
    auto saved = SaveModelFolder(fs_, dir_, *snapshot_, options);
    COX_CHECK(saved.ok());
    return *saved;
  }
  void Write(const std::string& name, std::string_view data) {
    ASSERT_OK(WriteFileDurably(fs_, JoinPath(dir_, name), data));
  }

  FaultFs fs_;
  const std::string dir_ = "run/policy";
  const std::shared_ptr<const Snapshot> snapshot_ = MakeSmall();
};

TEST_F(FolderTest, Float32FolderReadsBackToTheSameVersion) {
  SaveFolderOptions options;
  options.tokenizer_json = "{\"t\":1}";
  options.tokenizer_config_json = "{\"chat_template\":\"x\"}";
  options.eos_ids = {2};
  options.pad_id = 0;
  const std::vector<SavedFile> saved = Save(options);
  ASSERT_EQ(saved.size(), 5u);
  for (const SavedFile& file : saved) {
    ASSERT_OK_AND_ASSIGN(const std::string data,
                         fs_.ReadAll(JoinPath(dir_, file.name)));
    EXPECT_EQ(file.bytes, data.size());
    EXPECT_EQ(file.sha256, Sha256Hex(data));
  }
  ASSERT_OK_AND_ASSIGN(const ModelFolder folder, ReadModelFolder(fs_, dir_));
  EXPECT_EQ(folder.config_json, snapshot_->manifest.config_json);
  EXPECT_EQ(folder.tokenizer_json, options.tokenizer_json);
  EXPECT_EQ(folder.tokenizer_config_json, options.tokenizer_config_json);
  ASSERT_TRUE(folder.generation_config_json.has_value());
  EXPECT_EQ(nlohmann::json::parse(*folder.generation_config_json),
            nlohmann::json::parse(R"({"eos_token_id":2,"pad_token_id":0})"));
  ASSERT_OK_AND_ASSIGN(const auto back, SnapshotFromFolder(folder, Layout()));
  EXPECT_EQ(back->content_hash, snapshot_->content_hash);
}

TEST_F(FolderTest, EverythingIsSynced) {
  ASSERT_OK(fs_.MakeDirs(dir_));
  ASSERT_OK(fs_.SyncDir("/"));
  ASSERT_OK(fs_.SyncDir("run"));
  Save({.max_shard_bytes = 20});
  CounterRng rng(1, "crash");
  fs_.Crash(rng);
  ASSERT_OK_AND_ASSIGN(const ModelFolder folder, ReadModelFolder(fs_, dir_));
  ASSERT_OK_AND_ASSIGN(const auto back, SnapshotFromFolder(folder, Layout()));
  EXPECT_EQ(back->content_hash, snapshot_->content_hash);
}

TEST_F(FolderTest, Bf16RoundsAndSaysSoInTheConfig) {
  Save({.dtype = DType::kBF16});
  ASSERT_OK_AND_ASSIGN(const ModelFolder folder, ReadModelFolder(fs_, dir_));
  EXPECT_EQ(nlohmann::json::parse(folder.config_json),
            nlohmann::json::parse(
                R"({"model_type":"gpt2","torch_dtype":"bfloat16"})"));
  EXPECT_EQ(folder.tensors.at("wte.weight").dtype, DType::kBF16);
  ASSERT_OK_AND_ASSIGN(const auto back, SnapshotFromFolder(folder, Layout()));
  const auto before = snapshot_->arena->floats();
  const auto after = back->arena->floats();
  for (size_t i = 0; i < 15; ++i) {
    EXPECT_EQ(after[i], Bf16ToFloat(FloatToBf16(before[i])));
  }
}

TEST_F(FolderTest, ShardsReadBackToTheSameVersion) {
  const auto saved = Save({.max_shard_bytes = 20});
  std::vector<std::string> names;
  for (const SavedFile& file : saved) names.push_back(file.name);
  EXPECT_THAT(names, ElementsAre("config.json", "model.safetensors.index.json",
                                 "model-00001-of-00002.safetensors",
                                 "model-00002-of-00002.safetensors"));
  ASSERT_OK_AND_ASSIGN(const ModelFolder folder, ReadModelFolder(fs_, dir_));
  ASSERT_OK_AND_ASSIGN(const auto back, SnapshotFromFolder(folder, Layout()));
  EXPECT_EQ(back->content_hash, snapshot_->content_hash);
}

TEST_F(FolderTest, ShardNamesMayNotLeaveTheFolder) {
  Save({.max_shard_bytes = 20});
  for (const char* name :
       {"../model.safetensors", "/etc/x.safetensors", "a/b.safetensors", "..",
        "", ".safetensors", "..\\\\x.safetensors", "x.bin",
        "x\\u0000.safetensors"}) {
    Write("model.safetensors.index.json",
          absl::StrCat(R"({"weight_map":{"w":")", name, "\"}}"));
    EXPECT_THAT(ReadModelFolder(fs_, dir_),
                StatusIs(absl::StatusCode::kDataLoss, HasSubstr("shard name")))
        << name;
  }
}

TEST_F(FolderTest, BrokenIndexes) {
  Save({.max_shard_bytes = 20});
  for (const char* text :
       {"", "[]", "{}", R"({"weight_map":[]})", R"({"weight_map":{"w":1}})"}) {
    Write("model.safetensors.index.json", text);
    EXPECT_THAT(ReadModelFolder(fs_, dir_),
                StatusIs(absl::StatusCode::kDataLoss, HasSubstr("index.json")))
        << text;
  }
  Write("model.safetensors.index.json",
        R"({"weight_map":{"none":"model-00001-of-00002.safetensors"}})");
  EXPECT_THAT(ReadModelFolder(fs_, dir_),
              StatusIs(absl::StatusCode::kDataLoss, HasSubstr("'none'")));
  Write("model.safetensors.index.json",
        R"({"weight_map":{"w":"gone.safetensors"}})");
  EXPECT_THAT(ReadModelFolder(fs_, dir_),
              StatusIs(absl::StatusCode::kNotFound, HasSubstr("gone")));
}

TEST_F(FolderTest, EveryTruncationOfTheFileIsDataLoss) {
  Save({});
  ASSERT_OK_AND_ASSIGN(const std::string file,
                       fs_.ReadAll(JoinPath(dir_, "model.safetensors")));
  for (size_t size = 0; size < file.size(); ++size) {
    Write("model.safetensors", file.substr(0, size));
    ASSERT_THAT(
        ReadModelFolder(fs_, dir_),
        StatusIs(absl::StatusCode::kDataLoss, HasSubstr("model.safetensors")))
        << size;
  }
}

TEST_F(FolderTest, FoldersWithoutWeights) {
  EXPECT_THAT(ReadModelFolder(fs_, dir_),
              StatusIs(absl::StatusCode::kNotFound, HasSubstr("config.json")));
  ASSERT_OK(fs_.MakeDirs(dir_));
  Write("config.json", "{}");
  EXPECT_THAT(ReadModelFolder(fs_, dir_),
              StatusIs(absl::StatusCode::kNotFound));
  Write("pytorch_model.bin", "pickle");
  EXPECT_THAT(
      ReadModelFolder(fs_, dir_),
      StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("pickle")));
}

TEST_F(FolderTest, FullDiskIsReported) {
  fs_.FailAt(4, absl::ResourceExhaustedError("disk full"));
  EXPECT_THAT(SaveModelFolder(fs_, dir_, *snapshot_, {}),
              StatusIs(absl::StatusCode::kResourceExhausted));
}

TEST_F(FolderTest, OnlyFloatFormatsAreWritten) {
  EXPECT_THAT(SaveModelFolder(fs_, dir_, *snapshot_, {.dtype = DType::kF16}),
              StatusIs(absl::StatusCode::kInvalidArgument));
}

TEST(RealFolderTest, WorksOnDisk) {
  TempDir dir;
  const auto snapshot = MakeSmall();
  ASSERT_OK(SaveModelFolder(Fs::Real(), dir.Join("m"), *snapshot, {}));
  ASSERT_OK_AND_ASSIGN(const ModelFolder folder,
                       ReadModelFolder(Fs::Real(), dir.Join("m")));
  ASSERT_OK_AND_ASSIGN(const auto back, SnapshotFromFolder(folder, Layout()));
  EXPECT_EQ(back->content_hash, snapshot->content_hash);
}

// --- SnapshotFromFolder

TEST(SnapshotFromFolderTest, ConvertsDtypes) {
  ModelFolder folder = MakeFolder();
  folder.tensors["h.0.ln_1.bias"] =
      Raw(DType::kF64, {3}, std::vector<double>{7, 8, 9});
  ASSERT_OK_AND_ASSIGN(const auto converted,
                       SnapshotFromFolder(folder, Layout()));
  ASSERT_OK_AND_ASSIGN(const auto plain,
                       SnapshotFromFolder(MakeFolder(), Layout()));
  EXPECT_EQ(converted->content_hash, plain->content_hash);
  folder.tensors["h.0.ln_1.bias"] =
      Raw(DType::kI32, {3}, std::vector<int32_t>{7, 8, 9});
  EXPECT_THAT(SnapshotFromFolder(folder, Layout()),
              StatusIs(absl::StatusCode::kFailedPrecondition,
                       HasSubstr("'h.0.ln_1.bias'")));
}

TEST(SnapshotFromFolderTest, AcceptsPrefixedNamesOnEitherSide) {
  ModelFolder prefixed;
  for (const auto& [name, tensor] : MakeFolder().tensors) {
    prefixed.tensors["transformer." + name] = tensor;
  }
  ASSERT_OK_AND_ASSIGN(const auto plain,
                       SnapshotFromFolder(MakeFolder(), Layout()));
  ASSERT_OK_AND_ASSIGN(const auto from_prefixed,
                       SnapshotFromFolder(prefixed, Layout()));
  EXPECT_EQ(from_prefixed->content_hash, plain->content_hash);
  EXPECT_OK(SnapshotFromFolder(
      MakeFolder(),
      LayOut("policy", "{}", DType::kF32,
             {{"model.wte.weight", {5, 3}}, {"h.0.ln_1.bias", {3}}})));
  prefixed.tensors["wte.weight"] = MakeFolder().tensors["wte.weight"];
  EXPECT_THAT(SnapshotFromFolder(prefixed, Layout()),
              StatusIs(absl::StatusCode::kFailedPrecondition,
                       HasSubstr("same tensor")));
}

TEST(SnapshotFromFolderTest, IgnoresBuffersAndATiedHead) {
  ModelFolder folder = MakeFolder();
  folder.tensors["lm_head.weight"] = folder.tensors["wte.weight"];
  folder.tensors["transformer.h.0.attn.bias"] =
      Raw(DType::kBool, {1, 1, 2, 2}, std::vector<char>{1, 0, 1, 1});
  folder.tensors["h.0.attn.masked_bias"] =
      Raw(DType::kF32, {}, std::vector<float>{-1e4f});
  EXPECT_OK(SnapshotFromFolder(folder, Layout()));
  folder.tensors["h.0.attn.q_norm.weight"] = folder.tensors["wte.weight"];
  EXPECT_THAT(
      SnapshotFromFolder(folder, Layout()),
      StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("q_norm")));
}

TEST(SnapshotFromFolderTest, NamesMissingTensorsAndWrongShapes) {
  ModelFolder folder = MakeFolder();
  folder.tensors["wte.weight"].shape = {3, 5};
  EXPECT_THAT(SnapshotFromFolder(folder, Layout()),
              StatusIs(absl::StatusCode::kFailedPrecondition,
                       HasSubstr("'wte.weight': expected shape [5,3], found "
                                 "[3,5]")));
  folder.tensors.erase("wte.weight");
  EXPECT_THAT(SnapshotFromFolder(folder, Layout()),
              StatusIs(absl::StatusCode::kFailedPrecondition,
                       HasSubstr("'wte.weight' is missing")));
}

}  // namespace
}  // namespace cox
