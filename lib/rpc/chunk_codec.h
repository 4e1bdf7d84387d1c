#ifndef COX_LIB_RPC_CHUNK_CODEC_H_
#define COX_LIB_RPC_CHUNK_CODEC_H_

// cox.v1.Chunk on the wire without copies of its data: the sender's slices
// point into the arena, the receiver's pieces into what gRPC received. Same
// bytes as the generated code's, so either side may use that.

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "grpcpp/support/byte_buffer.h"
#include "lib/base/status.h"
#include "lib/weights/snapshot.h"

namespace cox {

// arena[begin, end) of `snapshot` as one message. The buffer keeps the snapshot
// alive.
grpc::ByteBuffer EncodeChunk(const std::shared_ptr<const Snapshot>& snapshot,
                             uint64_t begin, uint64_t end);

class ChunkView {
 public:
  // DATA_LOSS when `buffer` is no Chunk, or one with more data than
  // kChunkBytes.
  static absl::StatusOr<ChunkView> Parse(const grpc::ByteBuffer& buffer);

  uint64_t offset() const { return offset_; }
  uint64_t size() const { return size_; }  // of the data
  // Valid as long as this view.
  std::span<const std::string_view> pieces() const { return pieces_; }
  const std::string& xxh3() const { return xxh3_; }

 private:
  std::vector<grpc::Slice> slices_;  // own the bytes
  std::vector<std::string_view> pieces_;
  std::string xxh3_;
  uint64_t offset_ = 0;
  uint64_t size_ = 0;
};

}  // namespace cox

#endif  // COX_LIB_RPC_CHUNK_CODEC_H_
