#include "tests/comm/rank_checks.h"

#include <algorithm>
#include <cstdint>
#include <span>

#include "lib/base/fs.h"
#include "lib/base/hash.h"
#include "lib/base/rng.h"
#include "lib/comm/tree_sum.h"

namespace cox {

std::vector<float> RankData(int rank, size_t n) {
  CounterRng rng(static_cast<uint64_t>(rank), "ranks");
  std::vector<float> data(n);
  for (float& x : data) x = static_cast<float>(rng.NextUniform() - 0.5);
  return data;
}

std::vector<float> TreeOfRanks(int world, size_t n) {
  std::vector<std::vector<float>> data;
  std::vector<std::span<float>> parts;
  for (int rank = 0; rank < world; ++rank) data.push_back(RankData(rank, n));
  for (auto& part : data) parts.emplace_back(part);
  TreeSum<float>(parts);
  return data[0];
}

int RunAllCollectives(Collective& comm, size_t elements,
                      const std::string& out_path) {
  const int world = comm.world_size();
  std::vector<float> data = RankData(comm.rank(), elements);
  CHILD_CHECK_OK(comm.AllReduceSum(std::span<float>(data)));
  const std::vector<float> expected = TreeOfRanks(world, elements);
  CHILD_CHECK(data == expected);
  std::vector<float> few = RankData(comm.rank(), 1001);
  CHILD_CHECK_OK(comm.AllReduceSum(std::span<float>(few)));
  CHILD_CHECK(std::equal(few.begin(), few.end(), expected.begin()));
  std::vector<double> wide = {1.0 + comm.rank(), 1e-300};
  CHILD_CHECK_OK(comm.AllReduceSum(std::span<double>(wide)));
  CHILD_CHECK(wide[0] == world * (world + 1) / 2.0);

  // Block r of everybody is elements [r * n, r * n + n) of its data.
  const size_t share = elements / static_cast<size_t>(world);
  const std::vector<float> raw = RankData(comm.rank(), elements);
  std::vector<float> block(share);
  CHILD_CHECK_OK(comm.ReduceScatterSum(
      std::span(raw).first(share * static_cast<size_t>(world)), block));
  CHILD_CHECK(std::equal(
      block.begin(), block.end(),
      expected.begin() + static_cast<std::ptrdiff_t>(share) * comm.rank()));

  std::vector<int32_t> mine(elements, comm.rank());
  std::vector<int32_t> all(elements * static_cast<size_t>(world));
  CHILD_CHECK_OK(comm.AllGather(std::as_bytes(std::span(mine)),
                                std::as_writable_bytes(std::span(all))));
  for (size_t i = 0; i < all.size(); ++i) {
    CHILD_CHECK(static_cast<size_t>(all[i]) == i / elements);
  }
  CHILD_CHECK_OK(
      comm.Broadcast(std::as_writable_bytes(std::span(mine)), world - 1));
  CHILD_CHECK(mine.front() == world - 1 && mine.back() == world - 1);
  CHILD_CHECK_OK(comm.AllReduceSum(std::span<float>()));
  CHILD_CHECK_OK(comm.Barrier());
  CHILD_CHECK_OK(WriteFileDurably(Fs::Real(), out_path,
                                  Sha256Hex(std::as_bytes(std::span(data)))));
  return 0;
}

}  // namespace cox
