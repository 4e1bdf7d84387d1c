#include "cli/chaos_plan.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "lib/base/failpoint.h"
#include "lib/base/rng.h"

namespace cox {
namespace {

constexpr std::pair<FaultKind, std::string_view> kNames[] = {
    {FaultKind::kKill, "kill"},       {FaultKind::kStop, "stop"},
    {FaultKind::kSlow, "slow"},       {FaultKind::kCut, "cut"},
    {FaultKind::kCorrupt, "corrupt"}, {FaultKind::kEnospc, "enospc"},
};
// Share of kills that are armed at a failpoint instead of an instant.
constexpr double kArmedShare = 0.4;
// Share of faults that do not wait until the one before is overcome.
constexpr double kImpatientShare = 0.25;

std::vector<std::string> Split(std::string_view text) {
  std::vector<std::string> words =
      absl::StrSplit(absl::string_view(text.data(), text.size()), ',');
  std::erase(words, "");
  return words;
}

class Planner {
 public:
  explicit Planner(const ChaosPlanOptions& options)
      : options_(options), rng_(options.seed, "chaos") {}

  std::vector<Fault> Plan() {
    std::vector<Fault> faults;
    const bool kills = std::count(options_.kinds.begin(), options_.kinds.end(),
                                  FaultKind::kKill) > 0;
    for (const FaultKind kind : options_.kinds) {
      const int count = kind == FaultKind::kKill || !kills
                            ? options_.kills
                            : std::max(1, options_.kills / 10);
      std::vector<std::string> turn;
      for (int i = 0; i < count; ++i) {
        if (turn.empty()) turn = Shuffled(RolesFor(kind));
        if (turn.empty()) break;  // none of the roles can have it
        faults.push_back(Draw(kind, turn.back()));
        turn.pop_back();
      }
    }
    // Kills of the first kind stay in turns; the others are mixed in.
    return options_.kinds.size() > 1 ? Shuffled(std::move(faults)) : faults;
  }

 private:
  template <typename T>
  std::vector<T> Shuffled(std::vector<T> items) {
    for (size_t i = items.size(); i > 1; --i) {
      std::swap(items[i - 1], items[rng_.NextBelow(i)]);
    }
    return items;
  }

  // Those of the wanted roles that can have the fault.
  std::vector<std::string> RolesFor(FaultKind kind) const {
    const std::vector<std::string>& wanted =
        options_.roles.empty() ? ChaosRoles() : options_.roles;
    std::vector<std::string> roles;
    for (const std::string& role : wanted) {
      bool fits = true;
      switch (kind) {
        case FaultKind::kKill:
          break;
        case FaultKind::kStop:
          fits = role != "all";
          break;
        case FaultKind::kSlow:
        case FaultKind::kCut:
        case FaultKind::kCorrupt:
          fits = role == "actor";
          break;
        case FaultKind::kEnospc:
          fits = role == "coordinator" || role == "learner";
          break;
      }
      if (fits) roles.push_back(role);
    }
    return roles;
  }

  absl::Duration Between(absl::Duration low, absl::Duration high) {
    return low + (high - low) * rng_.NextUniform();
  }

  Fault Draw(FaultKind kind, const std::string& role) {
    Fault fault;
    fault.kind = kind;
    fault.role = role;
    const auto replicas = options_.replicas.find(role);
    const int32_t count =
        replicas == options_.replicas.end() ? 1 : replicas->second;
    fault.index = static_cast<int32_t>(
        rng_.NextBelow(static_cast<uint64_t>(std::max(1, count))));
    fault.after_recovery = rng_.NextUniform() >= kImpatientShare;
    fault.delay = Between(absl::ZeroDuration(), fault.after_recovery
                                                    ? absl::Milliseconds(400)
                                                    : absl::Seconds(1.5));
    fault.hit = 1 + static_cast<int64_t>(rng_.NextBelow(3));
    const bool armed = rng_.NextUniform() < kArmedShare;
    switch (kind) {
      case FaultKind::kKill:
        if (armed) fault.failpoint = KillPoint(role);
        break;
      case FaultKind::kStop:
        fault.length = Between(absl::Seconds(1), absl::Seconds(10));
        break;
      case FaultKind::kSlow:
      case FaultKind::kCut:
        fault.length = Between(absl::Seconds(1), absl::Seconds(4));
        break;
      case FaultKind::kCorrupt: {
        constexpr const char* kPlaces[] = {"weights.chunk", "actor.memory",
                                           "unit.payload"};
        fault.failpoint = kPlaces[rng_.NextBelow(3)];
        break;
      }
      case FaultKind::kEnospc:
        fault.failpoint = role == "learner"          ? "checkpoint.append"
                          : rng_.NextUniform() < 0.5 ? "ledger.decided"
                                                     : "segment.appended";
        break;
    }
    return fault;
  }

  // "" for "all", whose processes pass no place together.
  std::string KillPoint(const std::string& role) {
    std::vector<std::string> places;
    for (const FailpointName& point : KillFailpoints()) {
      if (point.role == role) places.emplace_back(point.name);
    }
    return places.empty() ? "" : places[rng_.NextBelow(places.size())];
  }

  const ChaosPlanOptions& options_;
  CounterRng rng_;
};

}  // namespace

std::string_view FaultKindName(FaultKind kind) {
  for (const auto& [known, name] : kNames) {
    if (known == kind) return name;
  }
  return "?";
}

std::string FaultText(const Fault& fault) {
  std::string text =
      absl::StrCat(std::string(FaultKindName(fault.kind)), " ", fault.role);
  if (fault.role != "all" && fault.role != "coordinator") {
    absl::StrAppend(&text, "-", fault.index);
  }
  if (!fault.failpoint.empty()) {
    absl::StrAppend(&text, " at passage ", fault.hit, " of ", fault.failpoint);
  }
  if (fault.length > absl::ZeroDuration()) {
    absl::StrAppend(
        &text, " for ",
        absl::FormatDuration(absl::Trunc(fault.length, absl::Milliseconds(1))));
  }
  return text;
}

const std::vector<std::string>& ChaosRoles() {
  static const std::vector<std::string> roles = {"actor", "reward", "learner",
                                                 "coordinator", "all"};
  return roles;
}

absl::StatusOr<std::vector<FaultKind>> ParseFaultKinds(std::string_view text) {
  std::vector<FaultKind> kinds;
  for (const std::string& word : Split(text)) {
    const size_t before = kinds.size();
    for (const auto& [kind, name] : kNames) {
      const bool named = name == word || (word == "slow" && name == "cut");
      if (named && std::count(kinds.begin(), kinds.end(), kind) == 0) {
        kinds.push_back(kind);
      }
    }
    if (kinds.size() == before) {
      return absl::InvalidArgumentError(absl::StrCat(
          "--faults: expected kill, stop, slow, corrupt or enospc, once each, "
          "found '",
          word, "'"));
    }
  }
  if (kinds.empty()) {
    return absl::InvalidArgumentError("--faults: expected at least one");
  }
  return kinds;
}

absl::StatusOr<std::vector<std::string>> ParseChaosRoles(
    std::string_view text) {
  std::vector<std::string> roles = Split(text);
  for (const std::string& role : roles) {
    if (std::count(ChaosRoles().begin(), ChaosRoles().end(), role) == 0) {
      return absl::InvalidArgumentError(absl::StrCat(
          "--roles: expected actor, reward, learner, coordinator or all, "
          "found '",
          role, "'"));
    }
  }
  return roles;
}

std::vector<Fault> PlanFaults(const ChaosPlanOptions& options) {
  return Planner(options).Plan();
}

}  // namespace cox
