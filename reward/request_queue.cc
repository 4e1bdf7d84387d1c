#include "reward/request_queue.h"

#include <algorithm>
#include <utility>

namespace cox {
namespace {

bool Ready(const RequestTicket& ticket,
           const std::map<ModelSlot, std::string>& held) {
  if (ticket.hash.empty()) return true;
  const auto it = held.find(ticket.slot);
  return it != held.end() && it->second == ticket.hash;
}

std::string_view SlotName(ModelSlot slot) {
  return slot == ModelSlot::kReward ? "reward model" : "reference policy";
}

absl::Status Overdue(const RequestTicket& ticket,
                     const std::map<ModelSlot, std::string>& held) {
  if (Ready(ticket, held)) {
    return absl::DeadlineExceededError("the request waited too long");
  }
  const auto it = held.find(ticket.slot);
  const std::string name(SlotName(ticket.slot));
  return absl::FailedPreconditionError(absl::StrCat(
      name, ": expected ", ticket.hash, ", held ",
      it == held.end() || it->second.empty() ? "none" : it->second));
}

}  // namespace

absl::Status RequestQueue::Push(RequestTicket ticket) {
  if (tickets_.size() >= capacity_) {
    return absl::ResourceExhaustedError(
        absl::StrCat("reward queue: ", capacity_, " requests wait already"));
  }
  tickets_.push_back(std::move(ticket));
  return absl::OkStatus();
}

std::optional<RequestQueue::Decision> RequestQueue::Next(
    MonoTime now, const std::map<ModelSlot, std::string>& held) {
  auto it =
      std::find_if(tickets_.begin(), tickets_.end(),
                   [now](const RequestTicket& t) { return t.deadline <= now; });
  absl::Status verdict;
  if (it != tickets_.end()) {
    verdict = Overdue(*it, held);
  } else {
    it = std::find_if(
        tickets_.begin(), tickets_.end(),
        [&held](const RequestTicket& t) { return Ready(t, held); });
    if (it == tickets_.end()) return std::nullopt;
  }
  Decision decision{it->id, std::move(verdict)};
  tickets_.erase(it);
  return decision;
}

std::optional<MonoTime> RequestQueue::NextDeadline() const {
  std::optional<MonoTime> earliest;
  for (const RequestTicket& ticket : tickets_) {
    if (!earliest.has_value() || ticket.deadline < *earliest) {
      earliest = ticket.deadline;
    }
  }
  return earliest;
}

}  // namespace cox
