#include <functional>

#include "cli/k8s_render.h"
#include "gmock/gmock.h"
#include "lib/config/config.h"
#include "lib/rpc/certificates.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/temp_dir.h"

namespace cox {
namespace {

using ::cox::testing::StatusIs;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

constexpr char kRun[] =
    "name: demo\n"
    "stages: [ppo]\n"
    "tokenizer: {kind: none, vocab_size: 8, eos_ids: [1]}\n"
    "model: {init: /data/model}\n"
    "reward: {kind: table, path: /data/table.json}\n"
    "ppo: {prompts: [/data/prompts.jsonl], estimator: rloo,\n"
    "      samples_per_prompt: 2}\n"
    "roles: {actors: 5, rewards: 3, learners: 4}\n"
    "numerics: {shards: 4}\n"
    "checkpoint: {dir: /checkpoints/demo}\n";

absl::StatusOr<std::vector<K8sObject>> Render(
    std::vector<std::string> overrides = {}, RenderOptions options = {}) {
  LoadOptions load;
  load.path = "/work/run.yaml";
  load.yaml_text = kRun;
  load.overrides = overrides;
  load.check_files = false;
  COX_ASSIGN_OR_RETURN(const cox::v1::RunConfig config, LoadConfig(load));
  options.run_yaml = kRun;
  options.overrides = std::move(overrides);
  return RenderRun(config, options);
}

K8sObject Get(const std::vector<K8sObject>& objects, const std::string& kind,
              const std::string& name) {
  for (const K8sObject& object : objects) {
    if (object["kind"] == kind && object["metadata"]["name"] == name) {
      return object;
    }
  }
  ADD_FAILURE() << "no " << kind << " " << name;
  return {};
}

TEST(K8sYamlTest, ReadsAsKubernetesDoes) {
  const auto objects = ParseObjects(
      "---\na: 0440\nb: \"2\"\nc: 1.5\nd: true\ne: yes\nf: 30%\ng:\n"
      "h: [x, {y: -3}]\n---\n---\nk: |\n  two\n  lines\n");
  ASSERT_OK(objects.status());
  ASSERT_EQ(objects->size(), 2);
  EXPECT_EQ((*objects)[0]["a"], 288);
  EXPECT_EQ((*objects)[0]["b"], "2");
  EXPECT_EQ((*objects)[0]["c"], 1.5);
  EXPECT_EQ((*objects)[0]["d"], true);
  EXPECT_EQ((*objects)[0]["f"], "30%");
  EXPECT_TRUE((*objects)[0]["g"].is_null());
  EXPECT_EQ((*objects)[0]["h"][1]["y"], -3);
  EXPECT_EQ((*objects)[1]["k"], "two\nlines\n");
  EXPECT_THAT(ParseObjects("a: 1\na: 2\n"),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       HasSubstr("2:1: duplicate key 'a'")));
}

TEST(K8sYamlTest, PrintingIsInvertible) {
  const std::vector<K8sObject> objects = {
      {{"kind", "X"},
       {"quoted", {"true", "2", "a: b", "", "-x", "0440", "#c", "y", "@"}},
       {"numbers", {1, -2, 1.5, true, nullptr}},
       {"empty", {{"list", K8sObject::array()}, {"map", K8sObject::object()}}},
       {"text", "a\n\n  b: c\n"},
       {"no newline", "a\nb"},
       {"nested", {{{"k", {{"v", {1, 2}}}}}, {{"k", "w"}}}},
       {"lists", {{1, 2}, {3}}}},
      {{"kind", "Y"}}};
  const auto back = ParseObjects(PrintObjects(objects));
  ASSERT_OK(back.status());
  EXPECT_EQ(*back, objects) << PrintObjects(objects);
}

TEST(K8sRenderTest, SizesComeFromTheRun) {
  const auto objects = Render({"roles.learners=3"});
  ASSERT_OK(objects.status());
  EXPECT_THAT(CheckObjects(*objects), IsEmpty());
  EXPECT_EQ(Get(*objects, "Deployment", "actor")["spec"]["replicas"], 5);
  EXPECT_EQ(Get(*objects, "Deployment", "reward")["spec"]["replicas"], 3);
  const auto jobs = EmbeddedJobs(*objects);
  ASSERT_EQ(jobs.size(), 1);
  EXPECT_EQ(jobs[0]["spec"]["completions"], 3);
  EXPECT_EQ(jobs[0]["spec"]["parallelism"], 3);
  const K8sObject map = Get(*objects, "ConfigMap", "run");
  EXPECT_EQ(map["data"]["run.yaml"], kRun);
  const K8sObject coordinator = Get(*objects, "StatefulSet", "coordinator");
  const auto args =
      coordinator["spec"]["template"]["spec"]["containers"][0]["args"];
  EXPECT_EQ(args.back(), "roles.learners=3");
  for (const K8sObject& object : *objects) {
    EXPECT_EQ(object["metadata"]["labels"]["cox.dev/run"], "demo");
    // The API server takes a null for a wrong type.
    EXPECT_FALSE(object.contains("spec") && object["spec"].is_null())
        << object["kind"];
    if (object["kind"] != "Namespace") {
      EXPECT_EQ(object["metadata"]["namespace"], "cox-demo");
    }
  }
  // What is printed is what was checked.
  const auto back = ParseObjects(PrintObjects(*objects));
  ASSERT_OK(back.status());
  EXPECT_EQ(*back, *objects);
}

TEST(K8sRenderTest, ImagesAndDevices) {
  RenderOptions options;
  options.image_prefix = "r.example/";
  options.tag = "v1";
  const auto objects = Render({"roles.device=cuda"}, options);
  ASSERT_OK(objects.status());
  const auto container = [&](const char* kind, const char* name) {
    return Get(*objects, kind, name)["spec"]["template"]["spec"]["containers"]
        .at(0);
  };
  EXPECT_EQ(container("Deployment", "actor")["image"],
            "r.example/coxswain-gpu:v1");
  EXPECT_EQ(
      container("Deployment", "actor")["resources"]["limits"]["nvidia.com/gpu"],
      1);
  EXPECT_EQ(container("StatefulSet", "coordinator")["image"],
            "r.example/coxswain-coordinator:v1");
}

TEST(K8sRenderTest, CertificatesAndHostVolumes) {
  testing::TempDir tmp;
  CertificateFolderOptions certs;
  certs.dir = tmp.Join("certs");
  certs.run = "demo";
  ASSERT_OK(InitCertificates(certs));
  RenderOptions options;
  options.ns = "mine";
  options.certs_dir = certs.dir;
  options.host_volumes = "/srv/cox";
  const auto objects = Render({}, options);
  ASSERT_OK(objects.status());
  EXPECT_THAT(CheckObjects(*objects), IsEmpty());
  EXPECT_FALSE(
      Get(*objects, "Secret", "tls-learner")["data"]["tls.key"].empty());
  const K8sObject volume = Get(*objects, "PersistentVolume", "mine-run");
  EXPECT_EQ(volume["spec"]["hostPath"]["path"], "/srv/cox/run");
  EXPECT_EQ(volume["spec"]["claimRef"]["name"], "run-coordinator-0");
  EXPECT_FALSE(volume["metadata"].contains("namespace"));
}

TEST(K8sRenderTest, RefusesWhatCannotRun) {
  EXPECT_THAT(
      Render({"name=Not_A_Label"}),
      StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("Not_A_Label")));
  EXPECT_THAT(
      Render({"checkpoint.dir=/home/me"}),
      StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("/checkpoints")));
}

// Broken on purpose: each is found, and the place is named.
TEST(K8sCheckTest, FindsWhatIsBroken) {
  const auto good = Render();
  ASSERT_OK(good.status());
  struct Case {
    const char* kind;
    const char* name;
    std::function<void(K8sObject&)> damage;
    const char* says;
  };
  const auto pod = [](K8sObject& object) -> K8sObject& {
    return object["kind"] == "JobSet" ? object["spec"]["replicatedJobs"][0]
                                              ["template"]["spec"]["template"]
                                      : object["spec"]["template"];
  };
  const Case cases[] = {
      {"JobSet", "learner",
       [](K8sObject& o) {
         o["spec"]["replicatedJobs"][0]["template"]["spec"]["completions"] = 2;
       },
       "WORLD_SIZE: expected 2"},
      {"JobSet", "learner",
       [](K8sObject& o) {
         o["spec"]["replicatedJobs"][0]["template"]["spec"]["completionMode"] =
             "NonIndexed";
       },
       "expected Indexed"},
      {"JobSet", "learner",
       [](K8sObject& o) {
         o["spec"]["failurePolicy"]["rules"][0]["name"] = "needs-a-person";
       },
       "failurePolicy.rules"},
      {"Deployment", "actor",
       [&](K8sObject& o) {
         pod(o)["metadata"]["labels"]["cox.dev/role"] = "x";
       },
       "spec.selector does not match"},
      {"Deployment", "reward",
       [&](K8sObject& o) { pod(o)["spec"]["volumes"].erase(0); },
       "no volume tls"},
      {"Deployment", "actor",
       [&](K8sObject& o) {
         pod(o)["spec"]["containers"][0]["livenessProbe"]["httpGet"]["port"] =
             "web";
       },
       "no port named web"},
      {"StatefulSet", "coordinator",
       [&](K8sObject& o) {
         pod(o)["spec"]["containers"][0]["securityContext"]
               ["readOnlyRootFilesystem"] = false;
       },
       "readOnlyRootFilesystem true"},
      {"StatefulSet", "coordinator",
       [&](K8sObject& o) { pod(o)["spec"]["serviceAccountName"] = "nobody"; },
       "no ServiceAccount nobody"},
      {"Deployment", "actor",
       [&](K8sObject& o) {
         pod(o)["spec"]["automountServiceAccountToken"] = true;
       },
       "automountServiceAccountToken"},
      {"NetworkPolicy", "reward",
       [](K8sObject& o) {
         o["spec"]["podSelector"]["matchLabels"]["cox.dev/role"] = "rewrd";
       },
       "matches no pod template"},
      {"Service", "coordinator",
       [](K8sObject& o) { o["metadata"].erase("name"); }, "metadata.name"},
  };
  for (const Case& c : cases) {
    std::vector<K8sObject> objects = *good;
    for (K8sObject& object : objects) {
      if (object["kind"] == c.kind && object["metadata"]["name"] == c.name) {
        c.damage(object);
        break;
      }
    }
    EXPECT_THAT(CheckObjects(objects), ::testing::Contains(HasSubstr(c.says)))
        << c.kind << " " << c.name;
  }
  std::vector<K8sObject> twice = *good;
  twice.push_back(twice.back());
  EXPECT_THAT(CheckObjects(twice),
              ::testing::Contains(HasSubstr("defined twice")));
}

}  // namespace
}  // namespace cox
