#ifndef COX_TESTS_COMM_FAKE_NCCL_FAKE_WIRE_H_
#define COX_TESTS_COMM_FAKE_NCCL_FAKE_WIRE_H_

// How the fake's ranks meet: each connects to a thread of the process that made
// the unique id, over a Unix socket, and sends it one request per collective;
// that thread computes for all and answers. A rank that dies is an end of file
// there, and then for all others.

#include <cstddef>
#include <cstdint>
#include <string>

namespace cox_fake {

enum class Kind : uint32_t {
  kHello,  // count = ranks, root = rank
  kAllReduce,
  kReduceScatter,  // count per rank
  kAllGather,      // count per rank
  kBroadcast,
  kSplit,  // payload: int32 color, int32 key; answer: SplitAnswer
  kBye,
};

struct Request {
  Kind kind = Kind::kHello;
  uint32_t type = 0;  // ncclDataType_t
  int32_t root = 0;
  uint32_t padding = 0;
  uint64_t sequence = 0;
  uint64_t count = 0;
  uint64_t payload = 0;  // bytes that follow
};

struct Answer {
  uint64_t code = 0;  // ncclResult_t
  uint64_t payload = 0;
};

struct SplitAnswer {
  char name[96] = {};
  int32_t rank = 0;
  int32_t ranks = 0;  // 0: no color
};

size_t BytesOfType(uint32_t type);  // 0: not known to the fake

// Starts a meeting of this process; returns its name. "" = no socket.
std::string StartMeeting();
// A connected socket, or -1.
int Connect(const std::string& name);
bool SendAll(int fd, const void* data, size_t bytes);
bool ReadAll(int fd, void* data, size_t bytes);

}  // namespace cox_fake

#endif  // COX_TESTS_COMM_FAKE_NCCL_FAKE_WIRE_H_
