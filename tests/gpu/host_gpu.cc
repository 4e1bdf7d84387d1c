#include "tests/gpu/host_gpu.h"

#include <vector>

#include "lib/gpu/kernel_rows.h"
#include "tests/gpu/host_block.h"

namespace cox {
namespace {

HostGpuCounts counts;

// A block of one thread, which is the caller's.
template <typename Body>
void Alone(Body&& body) {
  gpu::HostBlock::Shared shared(1);
  body(gpu::HostBlock(&shared, 0));
}

int Sample(const CoxGpuSample* batch, void*) {
  ++counts.samples;
  for (int64_t row = 0; row < batch->rows; ++row) {
    Alone(
        [&](const gpu::HostBlock& block) { gpu::DrawRow(block, *batch, row); });
  }
  return 0;
}

template <typename T>
void RmsNormRows(const void* x, const float* weight, int64_t rows,
                 int64_t width, float eps, void* out) {
  for (int64_t row = 0; row < rows; ++row) {
    Alone([&](const gpu::HostBlock& block) {
      gpu::RmsNormRow(block, static_cast<const T*>(x) + row * width, weight,
                      width, eps, static_cast<T*>(out) + row * width);
    });
  }
}

int RmsNorm(int type, const void* x, const float* weight, int64_t rows,
            int64_t width, float eps, void* out, void*) {
  const auto run =
      type == COX_GPU_BF16 ? RmsNormRows<gpu::Bf16> : RmsNormRows<float>;
  run(x, weight, rows, width, eps, out);
  return 0;
}

int RotaryCache(const CoxGpuRotaryCache* args, void*) {
  ++counts.rotary_caches;
  if (args->device_cos != nullptr) ++counts.rotations;
  for (int64_t row = 0; row < args->rows; ++row) {
    Alone([&](const gpu::HostBlock& block) {
      if (args->type == COX_GPU_BF16) {
        gpu::RotaryCacheRow<gpu::Bf16>(block, *args, row);
      } else {
        gpu::RotaryCacheRow<float>(block, *args, row);
      }
    });
  }
  return 0;
}

int Attend(const CoxGpuAttend* args, void*) {
  ++counts.attends;
  std::vector<float> scores(static_cast<size_t>(args->capacity));
  for (int64_t row = 0; row < args->rows; ++row) {
    for (int64_t head = 0; head < args->heads; ++head) {
      Alone([&](const gpu::HostBlock& block) {
        if (args->type == COX_GPU_BF16) {
          gpu::AttendRow<gpu::Bf16>(block, *args, row, head, scores.data());
        } else {
          gpu::AttendRow<float>(block, *args, row, head, scores.data());
        }
      });
    }
  }
  return 0;
}

int Adam(const CoxGpuAdam* args, void*) {
  ++counts.adams;
  if (args->device_bf16 != nullptr) ++counts.bf16_copies;
  for (int64_t i = 0; i < args->count; ++i) gpu::AdamAt(*args, i);
  return 0;
}

int SquaredNorm(const float* values, int64_t count, double*, double* sum,
                void*) {
  Alone([&](const gpu::HostBlock& block) {
    *sum = gpu::SquaresOf(block, values, count, 0, 1);
  });
  return 0;
}

const char* Text(int) { return "no error is known"; }
int DescribeDevice(char*, int64_t) { return 1; }
void* CurrentStream() { return nullptr; }
void Synchronize() {}

struct Graph {
  int (*body)(void*) = nullptr;
  void* context = nullptr;
};
void* GraphNew() {
  ++counts.graphs;
  return new Graph;
}
int GraphRecord(void* graph, int (*body)(void*), void* context) {
  ++counts.records;
  *static_cast<Graph*>(graph) = {body, context};
  return 0;
}
int GraphReplay(void* graph) {
  ++counts.replays;
  const Graph& recorded = *static_cast<Graph*>(graph);
  return recorded.body(recorded.context);
}
void GraphDelete(void* graph) {
  --counts.graphs;
  delete static_cast<Graph*>(graph);
}
const char* GraphError() { return "the body failed"; }

constexpr CoxGpuApi kHost = {
    .version = COX_GPU_API_VERSION,
    .size = sizeof(CoxGpuApi),
    .sample = Sample,
    .rms_norm = RmsNorm,
    .rotary_cache = RotaryCache,
    .attend = Attend,
    .adam = Adam,
    .squared_norm = SquaredNorm,
    .error_text = Text,
    .describe_device = DescribeDevice,
    .current_stream = CurrentStream,
    .synchronize = Synchronize,
    .graph_new = GraphNew,
    .graph_record = GraphRecord,
    .graph_replay = GraphReplay,
    .graph_delete = GraphDelete,
    .graph_error = GraphError,
};

}  // namespace

const CoxGpuApi* HostGpu() { return &kHost; }
HostGpuCounts& HostGpuCalls() { return counts; }

}  // namespace cox
