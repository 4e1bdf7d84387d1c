#ifndef COX_LIB_GPU_API_H_
#define COX_LIB_GPU_API_H_

// The border between the binaries and libcox_gpu.so: a table of C functions,
// found with dlsym, so that binaries built without CUDA run with and without
// the plugin. Pointers named device_* are device memory; everything runs on
// `stream` (a cudaStream_t) and returns at once. Functions return 0 or a
// cudaError_t.

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

// One more for every incompatible change. A plugin of another version is
// refused.
#define COX_GPU_API_VERSION 2

enum CoxGpuType { COX_GPU_F32 = 0, COX_GPU_BF16 = 1 };

// A batch of rows to sample from (lib/gpu/sample_math.h).
struct CoxGpuSample {
  float* device_logits;  // [rows, vocab]; forbidden ids become -inf
  int64_t rows;
  int64_t vocab;
  double temperature;
  int64_t top_k;
  double top_p;
  double min_p;
  const int64_t* device_forbidden;  // [forbidden]
  int64_t forbidden;
  const int64_t* device_eos;  // [eos], forbidden before min_new_tokens
  int64_t eos;
  const int64_t* device_min_new;  // [rows]
  uint64_t seed;
  const uint64_t* device_prompt_ids;      // [rows]
  const uint64_t* device_sample_indices;  // [rows]
  const int64_t* device_steps;            // [rows], tokens drawn so far
  int64_t* device_tokens;                 // [rows], out; -1 = no valid token
  float* device_logprobs;                 // [rows], out
};

struct CoxGpuRotaryCache {
  int type;  // CoxGpuType of q, k, v and the cache
  int64_t rows, heads, kv_heads, head_dim, capacity;
  void* device_q;        // [rows, heads * head_dim], in place
  const void* device_k;  // [rows, kv_heads * head_dim]
  const void* device_v;
  const float* device_cos;  // [rows, head_dim], or null
  const float* device_sin;
  const int64_t* device_positions;  // [rows]
  void* device_keys;                // [slots, kv_heads, capacity, head_dim]
  void* device_values;
};

struct CoxGpuAttend {
  int type;
  int64_t rows, heads, kv_heads, head_dim, capacity;
  const void* device_q;
  const void* device_keys;
  const void* device_values;
  const int64_t* device_positions;  // [rows]; positions 0 .. it are visible
  float scale;
  void* device_out;  // [rows, heads * head_dim]
};

struct CoxGpuAdam {
  float* device_parameters;
  const float* device_gradients;
  float* device_m;
  float* device_v;
  void* device_bf16;  // copy of the parameters, or null
  int64_t count;
  // AdamFactors<float> of lib/algo/optim.h.
  float keep, beta1, beta2, take1, take2, grad_scale, root_scale, rate, eps;
};

struct CoxGpuApi {
  uint32_t version;  // COX_GPU_API_VERSION
  uint32_t size;     // of this struct

  int (*sample)(const struct CoxGpuSample* batch, void* stream);
  // x, out [rows, width] of `type`; weight [width] float32.
  int (*rms_norm)(int type, const void* device_x, const float* device_weight,
                  int64_t rows, int64_t width, float eps, void* device_out,
                  void* stream);
  int (*rotary_cache)(const struct CoxGpuRotaryCache* args, void* stream);
  int (*attend)(const struct CoxGpuAttend* args, void* stream);
  int (*adam)(const struct CoxGpuAdam* args, void* stream);
  // device_sum [1] = sum of squares; device_scratch [1024].
  int (*squared_norm)(const float* device_values, int64_t count,
                      double* device_scratch, double* device_sum, void* stream);
  const char* (*error_text)(int error);

  // LibTorch's side. Names the device, "NVIDIA H200, 141 GB, sm_90"; returns
  // the number of devices, 0 when there is none.
  int (*describe_device)(char* text, int64_t size);
  void* (*current_stream)(void);
  void (*synchronize)(void);
  // CUDA graphs: what LibTorch and the functions above launch while `body` is
  // called is recorded, not run; memory allocated meanwhile belongs to the
  // graph. `body` returns 0 or, to give up, anything else; `context` lives as
  // long as the graph. Null or nonzero: see graph_error.
  void* (*graph_new)(void);
  int (*graph_record)(void* graph, int (*body)(void* context), void* context);
  int (*graph_replay)(void* graph);
  void (*graph_delete)(void* graph);
  const char* (*graph_error)(void);
};

// The one symbol that is looked up. Null when `version` is another.
const struct CoxGpuApi* cox_gpu_api(uint32_t version);

#ifdef __cplusplus
}  // extern "C"
#endif

#endif  // COX_LIB_GPU_API_H_
