#include "cli/hang_watch.h"

#include <set>

namespace cox {
namespace {

using cox::v1::SessionStatus;

bool Joins(const SessionStatus& session) {
  return session.state().starts_with("joining");
}

}  // namespace

std::vector<std::string> HungProcesses(const cox::v1::StatusResponse& status,
                                       const HangLimits& limits) {
  const int64_t silent_ms = absl::ToInt64Milliseconds(limits.silent);
  const int64_t group_ms = absl::ToInt64Milliseconds(limits.group);
  std::set<std::string> alive;
  bool group_waits = false;
  for (const SessionStatus& session : status.sessions()) {
    if (!session.alive()) continue;
    alive.insert(session.name());
    group_waits =
        group_waits || (session.role() == "learner" && Joins(session) &&
                        session.state_ms() > group_ms);
  }
  std::set<std::string> hung;
  for (const SessionStatus& session : status.sessions()) {
    const bool gone = !session.alive() && session.silent_ms() > silent_ms &&
                      !alive.contains(session.name());
    const bool stays_away = group_waits && session.alive() &&
                            session.role() == "learner" && !Joins(session) &&
                            session.state_ms() > group_ms;
    if (gone || stays_away) hung.insert(session.name());
  }
  return {hung.begin(), hung.end()};
}

}  // namespace cox
