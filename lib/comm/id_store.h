#ifndef COX_LIB_COMM_ID_STORE_H_
#define COX_LIB_COMM_ID_STORE_H_

// Hands rank 0's communicator id to the other ranks over TCP, where no
// coordinator does it: MASTER_ADDR and MASTER_PORT of a launcher. One line each
// way, no encryption: for trusted networks, like the collective itself.
//
//   rank r: "COXID1 <group> <rank>\n"    rank 0: "OK <id>\n"
//                                             or "OTHER <its group>\n"

#include <string>

#include "absl/time/time.h"
#include "lib/base/status.h"

namespace cox {

struct IdStoreOptions {
  std::string host = "127.0.0.1";  // of rank 0: name or address
  int port = 0;
  // Rank 0 only: a listening socket of `port` that the store takes over; -1:
  // bind.
  int listen_fd = -1;
  int rank = 0;
  int world_size = 1;
  // Contains the generation; without spaces. Ranks of another one are refused.
  std::string group = "";
  absl::Duration timeout = absl::Seconds(60);
};

// Rank 0 gives `id` (one line) and returns when all others have it; the others
// receive it. INVALID_ARGUMENT: impossible options; DEADLINE_EXCEEDED: not all
// came; FAILED_PRECONDITION: this rank's group is not rank 0's.
absl::StatusOr<std::string> ExchangeId(const IdStoreOptions& options,
                                       const std::string& id);

}  // namespace cox

#endif  // COX_LIB_COMM_ID_STORE_H_
