#include "cli/k8s_render.h"

#include <algorithm>
#include <functional>
#include <set>

#include "lib/base/fs.h"
#include "openssl/evp.h"

namespace cox {
namespace {

constexpr char kRunLabel[] = "cox.dev/run";
constexpr const char* kCluster[] = {"Namespace", "PersistentVolume"};

bool IsClusterWide(const K8sObject& object) {
  return std::any_of(std::begin(kCluster), std::end(kCluster),
                     [&](const char* kind) { return object["kind"] == kind; });
}

bool IsDnsLabel(const std::string& text) {
  return !text.empty() && text.size() <= 50 && text.front() != '-' &&
         text.back() != '-' &&
         std::all_of(text.begin(), text.end(), [](char c) {
           return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '-';
         });
}

// The pod template of a workload, or null.
K8sObject* PodTemplate(K8sObject& object) {
  const std::string kind = object.value("kind", "");
  if (kind == "Deployment" || kind == "StatefulSet" || kind == "Job") {
    return &object["spec"]["template"];
  }
  if (kind == "JobSet") {
    return &object["spec"]["replicatedJobs"][0]["template"]["spec"]["template"];
  }
  return nullptr;
}

std::string RoleOf(const K8sObject& object) {
  const auto& metadata = object["metadata"];
  return metadata.contains("labels")
             ? metadata["labels"].value("cox.dev/role", "")
             : "";
}

void ForEachContainer(K8sObject& object,
                      const std::function<void(K8sObject&)>& visit) {
  K8sObject* pod = PodTemplate(object);
  if (pod == nullptr) return;
  for (K8sObject& container : (*pod)["spec"]["containers"]) visit(container);
}

std::string Base64(const std::string& data) {
  std::string out((data.size() + 2) / 3 * 4 + 1, '\0');
  const int size =
      EVP_EncodeBlock(reinterpret_cast<unsigned char*>(out.data()),
                      reinterpret_cast<const unsigned char*>(data.data()),
                      static_cast<int>(data.size()));
  out.resize(static_cast<size_t>(size));
  return out;
}

absl::StatusOr<std::vector<K8sObject>> Secrets(const std::string& dir) {
  std::vector<K8sObject> out;
  for (const char* role :
       {"coordinator", "learner", "actor", "reward", "operator", "scaler"}) {
    K8sObject secret = {{"apiVersion", "v1"},
                        {"kind", "Secret"},
                        {"metadata", {{"name", absl::StrCat("tls-", role)}}},
                        {"type", "Opaque"},
                        {"data", K8sObject::object()}};
    for (const char* file : {"ca.crt", "tls.crt", "tls.key"}) {
      COX_ASSIGN_OR_RETURN(
          const std::string text,
          Fs::Real().ReadAll(JoinPath(JoinPath(dir, role), file)));
      secret["data"][file] = Base64(text);
    }
    out.push_back(std::move(secret));
  }
  return out;
}

// Volumes that are folders of the node, for one-node clusters and tests.
void UseHostVolumes(const RenderOptions& options, const std::string& ns,
                    std::vector<K8sObject>* objects) {
  std::vector<K8sObject> volumes;
  const auto bind = [&](K8sObject& spec, const std::string& name,
                        const std::string& claim) {
    const std::string volume = absl::StrCat(ns, "-", name);
    spec["storageClassName"] = "";
    spec["volumeName"] = volume;
    volumes.push_back({{"apiVersion", "v1"},
                       {"kind", "PersistentVolume"},
                       {"metadata", {{"name", volume}}},
                       {"spec",
                        {{"accessModes", spec["accessModes"]},
                         {"capacity", spec["resources"]["requests"]},
                         {"persistentVolumeReclaimPolicy", "Retain"},
                         {"storageClassName", ""},
                         {"claimRef",
                          {{"apiVersion", "v1"},
                           {"kind", "PersistentVolumeClaim"},
                           {"name", claim},
                           {"namespace", ns}}},
                         {"hostPath",
                          {{"path", JoinPath(options.host_volumes, name)},
                           {"type", "DirectoryOrCreate"}}}}}});
  };
  for (K8sObject& object : *objects) {
    if (object["kind"] == "PersistentVolumeClaim") {
      const std::string name = object["metadata"]["name"];
      bind(object["spec"], name, name);
    } else if (object["kind"] == "StatefulSet") {
      for (K8sObject& claim : object["spec"]["volumeClaimTemplates"]) {
        const std::string name = claim["metadata"]["name"];
        bind(claim["spec"], name,
             absl::StrCat(name, "-",
                          object["metadata"]["name"].get<std::string>(), "-0"));
      }
    }
  }
  objects->insert(objects->begin() + 1, volumes.begin(), volumes.end());
}

// Paths must be those inside the pods.
absl::Status CheckPaths(const cox::v1::RunConfig& config) {
  const std::string& dir = config.checkpoint().dir();
  if (dir != "/checkpoints" && !dir.starts_with("/checkpoints/")) {
    return absl::InvalidArgumentError(absl::StrCat(
        "checkpoint.dir: in a cluster a folder in /checkpoints is expected, "
        "which all learners share; found '",
        dir, "'"));
  }
  return absl::OkStatus();
}

void SetSizes(const cox::v1::RunConfig& config, K8sObject& object) {
  const std::string role = RoleOf(object);
  if (!object.contains("spec")) return;  // [] would make a null one
  K8sObject& spec = object["spec"];
  if (object["kind"] == "Deployment" && role == "actor") {
    spec["replicas"] = config.roles().actors();
  } else if (object["kind"] == "Deployment" && role == "reward") {
    spec["replicas"] = config.roles().rewards();
  } else if (object["kind"] == "JobSet") {
    const int32_t ranks = config.roles().learners();
    K8sObject& job = spec["replicatedJobs"][0]["template"]["spec"];
    job["completions"] = ranks;
    job["parallelism"] = ranks;
    ForEachContainer(object, [ranks](K8sObject& container) {
      for (K8sObject& variable : container["env"]) {
        if (variable["name"] == "WORLD_SIZE") {
          variable["value"] = absl::StrCat(ranks);
        }
      }
    });
  }
}

void SetContainers(const cox::v1::RunConfig& config,
                   const RenderOptions& options, K8sObject& object) {
  const bool cuda = config.roles().device() == "cuda";
  ForEachContainer(object, [&](K8sObject& container) {
    std::string image = container["image"];
    const bool torch = image == "coxswain";
    if (torch && cuda) image = "coxswain-gpu";
    container["image"] =
        absl::StrCat(options.image_prefix, image, ":", options.tag);
    if (torch && cuda) {
      container["resources"]["limits"]["nvidia.com/gpu"] = 1;
    }
    if (container["name"] == "coordinator") {
      for (const std::string& override : options.overrides) {
        container["args"].push_back(override);
      }
    }
  });
}

}  // namespace

absl::StatusOr<std::vector<K8sObject>> RenderRun(
    const cox::v1::RunConfig& config, const RenderOptions& options) {
  const std::string ns =
      options.ns.empty() ? absl::StrCat("cox-", config.name()) : options.ns;
  if (!IsDnsLabel(config.name()) || !IsDnsLabel(ns)) {
    return absl::InvalidArgumentError(absl::StrCat(
        "name: in a cluster lower-case letters, digits and '-' are expected, "
        "at most 50; found '",
        config.name(), "', namespace '", ns, "'"));
  }
  COX_RETURN_IF_ERROR(CheckPaths(config));
  std::vector<K8sObject> objects;
  for (const auto& [name, text] : BaseManifests()) {
    if (name == "kustomization.yaml" || name == "run.yaml") continue;
    absl::StatusOr<std::vector<K8sObject>> parsed = ParseObjects(text);
    COX_RETURN_IF_ERROR(Annotate(parsed.status(), std::string(name)));
    objects.insert(objects.end(), parsed->begin(), parsed->end());
  }
  // The namespace first, then what others refer to.
  std::stable_sort(
      objects.begin(), objects.end(),
      [](const K8sObject& a, const K8sObject& b) {
        const auto rank = [](const K8sObject& object) {
          const std::string kind = object["kind"];
          return kind == "Namespace" ? 0 : kind == "ServiceAccount" ? 1 : 2;
        };
        return rank(a) < rank(b);
      });
  K8sObject map = {{"apiVersion", "v1"},
                   {"kind", "ConfigMap"},
                   {"metadata", {{"name", "run"}}},
                   {"data", {{"run.yaml", options.run_yaml}}}};
  objects.insert(objects.begin() + 1, std::move(map));
  if (!options.certs_dir.empty()) {
    COX_ASSIGN_OR_RETURN(std::vector<K8sObject> secrets,
                         Secrets(options.certs_dir));
    objects.insert(objects.begin() + 1, secrets.begin(), secrets.end());
  }
  if (!options.host_volumes.empty()) UseHostVolumes(options, ns, &objects);
  for (K8sObject& object : objects) {
    K8sObject& metadata = object["metadata"];
    if (object["kind"] == "Namespace") metadata["name"] = ns;
    if (!IsClusterWide(object)) metadata["namespace"] = ns;
    metadata["labels"]["app.kubernetes.io/name"] = "coxswain";
    metadata["labels"][kRunLabel] = config.name();
    if (K8sObject* pod = PodTemplate(object)) {
      (*pod)["metadata"]["labels"][kRunLabel] = config.name();
    }
    SetSizes(config, object);
    SetContainers(config, options, object);
  }
  return objects;
}

std::vector<K8sObject> EmbeddedJobs(const std::vector<K8sObject>& objects) {
  std::vector<K8sObject> jobs;
  for (const K8sObject& object : objects) {
    if (object.value("kind", "") != "JobSet" || !object.contains("spec")) {
      continue;
    }
    for (const K8sObject& replicated : object["spec"]["replicatedJobs"]) {
      K8sObject job = {{"apiVersion", "batch/v1"}, {"kind", "Job"}};
      job["metadata"] = {
          {"name", absl::StrCat(object["metadata"].value("name", ""), "-",
                                replicated.value("name", ""), "-check")}};
      if (object["metadata"].contains("namespace")) {
        job["metadata"]["namespace"] = object["metadata"]["namespace"];
      }
      job["spec"] = replicated["template"]["spec"];
      jobs.push_back(std::move(job));
    }
  }
  return jobs;
}

}  // namespace cox
