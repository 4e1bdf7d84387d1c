#ifndef COX_ACTOR_ACTOR_CORE_H_
#define COX_ACTOR_ACTOR_CORE_H_

// What an actor does next, given its leases and the weights it holds. Pure: no
// threads, clock or sockets.
//
// Life of a lease: ready -> generating -> scoring -> gone. It also ends when it
// expires or is refused at renewal. An actor counts a lease from the moment it
// sent the request, the coordinator from when it got it, so the actor gives up
// first.

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "lib/base/clock.h"
#include "lib/base/ids.h"

namespace cox {

struct ActorCoreOptions {
  int units_per_lease = 1;  // a small number shares the work out evenly
  // Generated units that may wait for their scores when another is begun.
  int max_scoring = 1;
};

// A lease within this process; never reused, unlike a unit's id.
using LocalLease = uint64_t;

struct GrantedUnit {
  UnitId unit;
  absl::Duration lease;     // relative, from the sending of the request
  std::string policy_hash;  // weights to generate with
};

struct ActorAction {
  enum class Kind {
    kWait,      // until an event or `wake`
    kLease,     // ask for `max_units`
    kSwap,      // get the weights of `lease`, then ask again
    kGenerate,  // `lease`
  };
  Kind kind = Kind::kWait;
  int max_units = 0;
  LocalLease lease = 0;
  std::optional<MonoTime> wake;
};

// Thread-compatible.
class ActorCore {
 public:
  explicit ActorCore(ActorCoreOptions options) : options_(options) {}

  // --- Events
  // Whether the run wants units now. What is leased already is finished.
  void SetServing(bool serving) { serving_ = serving; }
  // Numbers of the leases, in order. `sent`: when the request left.
  std::vector<LocalLease> OnLeased(MonoTime sent,
                                   const std::vector<GrantedUnit>& units);
  // `held[i]` false: lease i is lost.
  void OnRenewed(MonoTime sent, const std::vector<LocalLease>& leases,
                 const std::vector<bool>& held);
  void OnGenerating(LocalLease lease);
  void OnGenerated(LocalLease lease);
  // Submitted, given back or abandoned.
  void OnFinished(LocalLease lease);

  // --- Decisions
  // The oldest unit first, so that no step waits for its last one; a unit with
  // other weights than `held_hash` needs a swap first. Call when no unit is
  // being generated.
  ActorAction Next(MonoTime now, const std::string& held_hash);

  struct Renewal {
    std::vector<LocalLease> leases;
    std::vector<UnitId> units;
  };
  // All leases once a third of one has passed, else none.
  Renewal RenewalDue(MonoTime now) const;
  // When RenewalDue() will next have something; nullopt without leases.
  std::optional<MonoTime> NextRenewal() const;

  // False when lost, expired or finished.
  bool Holds(LocalLease lease, MonoTime now) const;
  // Units of all leases, by unit: to give back when leaving.
  std::vector<UnitId> Units() const;

 private:
  enum class Phase { kReady, kGenerating, kScoring };
  struct Lease {
    UnitId unit;
    std::string policy_hash;
    absl::Duration length;
    MonoTime renewed;
    Phase phase = Phase::kReady;
    MonoTime expiry() const { return renewed + length; }
  };

  void DropExpired(MonoTime now);

  const ActorCoreOptions options_;
  bool serving_ = false;
  LocalLease next_ = 1;
  std::map<LocalLease, Lease> leases_;
};

}  // namespace cox

#endif  // COX_ACTOR_ACTOR_CORE_H_
