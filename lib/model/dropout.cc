#include "lib/model/dropout.h"

#include <cmath>
#include <cstring>
#include <utility>

#include "ATen/ops/zeros.h"
#include "lib/base/status.h"
#include "lib/model/kernels.h"

namespace cox {
namespace {

constexpr uint32_t kSitesPerLayer = 8;

}  // namespace

Dropout::Dropout(Options options) : options_(std::move(options)) {
  COX_CHECK(options_.keys.size() == options_.lengths.size());
  threshold_ = static_cast<uint32_t>(std::lround(options_.rate * 0x1.0p16));
  // Of the probability in use, so that the factors' mean is exactly 1.
  scale_ = static_cast<float>(1.0 / (1.0 - threshold_ * 0x1.0p-16));
}

void Dropout::Fill(size_t sequence, int64_t layer, DropoutSite site,
                   int64_t count, float* out) const {
  DropoutFactorsArgs args;
  args.key = options_.keys[sequence];
  args.place = static_cast<uint32_t>(layer) * kSitesPerLayer +
               static_cast<uint32_t>(site);
  args.stack = options_.stack;
  args.threshold = threshold_;
  args.scale = scale_;
  args.n = count;
  DropoutFactors(args, out);
}

at::Tensor Dropout::Apply(const at::Tensor& x, int64_t layer,
                          DropoutSite site) const {
  const int64_t width = x.size(1);
  at::Tensor factors = at::zeros({x.size(0), width}, at::kFloat);
  float* data = factors.mutable_data_ptr<float>();
  int64_t row = 0;
  for (size_t b = 0; b < options_.lengths.size(); ++b) {
    const int64_t length = options_.lengths[b];
    COX_CHECK(row + length <= x.size(0));
    Fill(b, layer, site, length * width, data + row * width);
    row += options_.stride > 0 ? options_.stride : length;
  }
  return x.mul(factors.to(x.options().requires_grad(false)));
}

at::Tensor Dropout::Factors(const at::Tensor& probabilities, int64_t layer,
                            DropoutSite site) const {
  const int64_t heads = probabilities.size(1);
  const int64_t rows = probabilities.size(2);
  const int64_t columns = probabilities.size(3);
  const std::vector<int32_t>& key_lengths =
      site == DropoutSite::kCrossProbabilities ? options_.memory_lengths
                                               : options_.lengths;
  COX_CHECK(key_lengths.size() == options_.lengths.size());
  at::Tensor factors = at::zeros(probabilities.sizes(), at::kFloat);
  float* data = factors.mutable_data_ptr<float>();
  std::vector<float> dense;  // [heads, length, keys] of one sequence
  for (size_t b = 0; b < options_.lengths.size(); ++b) {
    const int64_t length = options_.lengths[b];
    const int64_t keys = key_lengths[b];
    float* grid = data + static_cast<int64_t>(b) * heads * rows * columns;
    if (length == rows && keys == columns) {
      Fill(b, layer, site, heads * length * keys, grid);
      continue;
    }
    dense.resize(static_cast<size_t>(heads * length * keys));
    Fill(b, layer, site, heads * length * keys, dense.data());
    for (int64_t h = 0; h < heads; ++h) {
      for (int64_t i = 0; i < length; ++i) {
        std::memcpy(grid + (h * rows + i) * columns,
                    dense.data() + (h * length + i) * keys,
                    static_cast<size_t>(keys) * sizeof(float));
      }
    }
  }
  return factors.to(probabilities.options().requires_grad(false));
}

}  // namespace cox
