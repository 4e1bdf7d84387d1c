// What can be said about a run's objects without a cluster.

#include <algorithm>
#include <map>
#include <set>

#include "absl/strings/ascii.h"
#include "cli/k8s_render.h"

namespace cox {
namespace {

using Names = std::map<std::string, std::set<std::string>>;  // kind -> names

struct Workload {
  std::string where;  // "Deployment actor"
  const K8sObject* pod = nullptr;
  std::set<std::string> claims;  // of volumeClaimTemplates
};

class Checker {
 public:
  std::vector<std::string> Run(const std::vector<K8sObject>& objects) {
    for (const K8sObject& object : objects) Collect(object);
    for (const Workload& workload : workloads_) CheckPod(workload);
    for (const K8sObject& object : objects) CheckSelectors(object);
    for (const K8sObject& object : objects) CheckWorldSize(object);
    for (const K8sObject& object : objects) CheckRuleNames(object);
    return std::move(issues_);
  }

 private:
  void Say(const std::string& where, const std::string& what) {
    issues_.push_back(where + ": " + what);
  }

  void Collect(const K8sObject& object) {
    const bool named =
        object.is_object() && object.contains("kind") &&
        object["kind"].is_string() && object.contains("metadata") &&
        object["metadata"].is_object() && object["metadata"].contains("name") &&
        object["metadata"]["name"].is_string();
    if (!named) {
      Say("object", "expected kind and metadata.name");
      return;
    }
    const std::string kind = object["kind"];
    const std::string name = object["metadata"]["name"];
    const std::string where = kind + " " + name;
    if (!names_[kind].insert(name).second) Say(where, "defined twice");
    const K8sObject spec = object.value("spec", K8sObject::object());
    Workload workload;
    workload.where = where;
    if (kind == "Deployment" || kind == "StatefulSet") {
      workload.pod = Find(object, {"spec", "template"});
      for (const K8sObject& claim :
           spec.value("volumeClaimTemplates", K8sObject::array())) {
        workload.claims.insert(claim["metadata"].value("name", ""));
      }
      const K8sObject* labels =
          Find(object, {"spec", "selector", "matchLabels"});
      if (workload.pod != nullptr && labels != nullptr &&
          !Matches(*labels, *workload.pod)) {
        Say(where,
            "spec.selector does not match spec.template.metadata.labels");
      }
    } else if (kind == "JobSet") {
      const K8sObject* jobs = Find(object, {"spec", "replicatedJobs"});
      if (jobs != nullptr && jobs->is_array() && !jobs->empty()) {
        workload.pod = Find((*jobs)[0], {"template", "spec", "template"});
      }
    } else {
      return;
    }
    if (workload.pod == nullptr) {
      Say(where, "expected a pod template");
      return;
    }
    workloads_.push_back(std::move(workload));
  }

  static const K8sObject* Find(const K8sObject& object,
                               const std::vector<const char*>& path) {
    const K8sObject* at = &object;
    for (const char* key : path) {
      if (!at->is_object() || !at->contains(key)) return nullptr;
      at = &(*at)[key];
    }
    return at;
  }

  static bool Matches(const K8sObject& labels, const K8sObject& pod) {
    const K8sObject* have = Find(pod, {"metadata", "labels"});
    for (const auto& [key, value] : labels.items()) {
      if (have == nullptr || !have->contains(key) || (*have)[key] != value) {
        return false;
      }
    }
    return true;
  }

  void CheckPod(const Workload& workload) {
    const K8sObject* spec = Find(*workload.pod, {"spec"});
    if (spec == nullptr || !spec->contains("containers")) {
      Say(workload.where, "expected spec.containers in the pod template");
      return;
    }
    const std::string account = spec->value("serviceAccountName", "");
    if (!account.empty() && names_["ServiceAccount"].count(account) == 0) {
      Say(workload.where, "serviceAccountName: no ServiceAccount " + account);
    }
    if (spec->value("automountServiceAccountToken", true)) {
      Say(workload.where, "automountServiceAccountToken: expected false");
    }
    const K8sObject* hardening = Find(*spec, {"securityContext"});
    if (hardening == nullptr || !hardening->value("runAsNonRoot", false)) {
      Say(workload.where, "securityContext.runAsNonRoot: expected true");
    }
    const std::set<std::string> volumes = CheckVolumes(workload, *spec);
    for (const K8sObject& container : (*spec)["containers"]) {
      CheckContainer(workload, container, volumes);
    }
  }

  std::set<std::string> CheckVolumes(const Workload& workload,
                                     const K8sObject& spec) {
    std::set<std::string> volumes = workload.claims;
    for (const K8sObject& volume : spec.value("volumes", K8sObject::array())) {
      const std::string name = volume.value("name", "");
      if (!volumes.insert(name).second) {
        Say(workload.where, "volume " + name + ": defined twice");
      }
      const auto check = [&](const char* source, const char* field,
                             const char* kind, bool required) {
        const K8sObject* target = Find(volume, {source, field});
        if (target == nullptr) return;
        // Secrets are made outside of the folder, unless there are some here.
        if (!required && names_[kind].empty()) return;
        if (names_[kind].count(target->get<std::string>()) == 0) {
          Say(workload.where, absl::StrCat("volume ", name, ": no ", kind, " ",
                                           target->get<std::string>()));
        }
      };
      check("configMap", "name", "ConfigMap", true);
      check("persistentVolumeClaim", "claimName", "PersistentVolumeClaim",
            true);
      check("secret", "secretName", "Secret", false);
    }
    return volumes;
  }

  void CheckContainer(const Workload& workload, const K8sObject& container,
                      const std::set<std::string>& volumes) {
    const std::string where =
        workload.where + ", container " + container.value("name", "?");
    for (const K8sObject& mount :
         container.value("volumeMounts", K8sObject::array())) {
      const std::string name = mount.value("name", "");
      if (volumes.count(name) == 0) {
        Say(where, "volumeMounts: no volume " + name);
      }
    }
    const K8sObject* context = Find(container, {"securityContext"});
    if (context == nullptr ||
        context->value("allowPrivilegeEscalation", true) ||
        !context->value("readOnlyRootFilesystem", false)) {
      Say(where,
          "securityContext: expected allowPrivilegeEscalation false and "
          "readOnlyRootFilesystem true");
    }
    std::set<std::string> ports;
    for (const K8sObject& port : container.value("ports", K8sObject::array())) {
      ports.insert(port.value("name", ""));
    }
    for (const char* probe :
         {"startupProbe", "livenessProbe", "readinessProbe"}) {
      const K8sObject* port = Find(container, {probe, "httpGet", "port"});
      if (port == nullptr) {
        Say(where, absl::StrCat(probe, ": expected httpGet with a port"));
      } else if (port->is_string() &&
                 ports.count(port->get<std::string>()) == 0) {
        Say(where,
            absl::StrCat(probe, ": no port named ", port->get<std::string>()));
      }
    }
  }

  void CheckSelectors(const K8sObject& object) {
    const std::string kind = object.value("kind", "");
    const K8sObject* labels =
        kind == "Service" ? Find(object, {"spec", "selector"})
        : kind == "PodDisruptionBudget"
            ? Find(object, {"spec", "selector", "matchLabels"})
        : kind == "NetworkPolicy"
            ? Find(object, {"spec", "podSelector", "matchLabels"})
            : nullptr;
    if (labels == nullptr) return;
    for (const Workload& workload : workloads_) {
      if (Matches(*labels, *workload.pod)) return;
    }
    Say(kind + " " + object["metadata"].value("name", ""),
        "its selector matches no pod template");
  }

  // Only JobSet's webhook checks these, not its definition.
  void CheckRuleNames(const K8sObject& object) {
    if (object.value("kind", "") != "JobSet") return;
    const K8sObject* rules = Find(object, {"spec", "failurePolicy", "rules"});
    if (rules == nullptr) return;
    for (const K8sObject& rule : *rules) {
      const std::string name = rule.value("name", "");
      const bool fine = std::all_of(name.begin(), name.end(), [](char c) {
        return absl::ascii_isalnum(static_cast<unsigned char>(c)) || c == '_' ||
               c == ',' || c == ':';
      });
      if (!fine) {
        Say("JobSet " + object["metadata"].value("name", ""),
            "failurePolicy.rules: expected a name of letters, digits, '_', "
            "',' and ':', found '" +
                name + "'");
      }
    }
  }

  // Ranks that wait for one that is never started wait for ever.
  void CheckWorldSize(const K8sObject& object) {
    if (object.value("kind", "") != "JobSet") return;
    const std::string where = "JobSet " + object["metadata"].value("name", "");
    for (const K8sObject& job : EmbeddedJobs({object})) {
      const int64_t pods = job["spec"].value("completions", int64_t{1});
      if (job["spec"].value("parallelism", int64_t{1}) != pods) {
        Say(where,
            "parallelism: expected completions, so that all ranks run "
            "at the same time");
      }
      if (job["spec"].value("completionMode", "") != "Indexed") {
        Say(where, "completionMode: expected Indexed, which numbers the ranks");
      }
      for (const K8sObject& container :
           job["spec"]["template"]["spec"]["containers"]) {
        for (const K8sObject& variable :
             container.value("env", K8sObject::array())) {
          if (variable.value("name", "") == "WORLD_SIZE" &&
              variable.value("value", "") != absl::StrCat(pods)) {
            Say(where, absl::StrCat("WORLD_SIZE: expected ", pods,
                                    " (completions), found ",
                                    variable.value("value", "")));
          }
        }
      }
    }
  }

  Names names_;
  std::vector<Workload> workloads_;
  std::vector<std::string> issues_;
};

}  // namespace

std::vector<std::string> CheckObjects(const std::vector<K8sObject>& objects) {
  return Checker().Run(objects);
}

}  // namespace cox
