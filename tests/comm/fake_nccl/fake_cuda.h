#ifndef COX_TESTS_COMM_FAKE_NCCL_FAKE_CUDA_H_
#define COX_TESTS_COMM_FAKE_NCCL_FAKE_CUDA_H_

// What libnccl_fake.so asks of libcudart_fake.so. Names of its own: in a
// process that has the real libcudart, a cuda* name would find that one.
//
// Environment of the fakes (tests only):
//   COX_FAKE_CUDA_DEVICES=N   GPUs (4); 0 = none, -1 = no driver
//   COX_FAKE_CUDA_DELAY_US=N  every operation of a stream first waits up to
//   this
//                             long, so that what is not ordered comes late
//   COX_FAKE_CUDA_ANY_MEMORY=1  memory that was allocated elsewhere is the
//   current device's
//   COX_FAKE_CUDA_FAIL_COPY=K the K-th copy fails, and every call after it
//   COX_FAKE_MISUSE=FILE      wrong uses are appended there, a line each; also
//                             written to stderr and returned as errors

#include <cstddef>

extern "C" {

struct CoxFakeUse {
  const void* pointer;
  size_t bytes;
};

// Runs fn(arg) on the stream's thread, in order. A result other than 0 becomes
// the device's sticky error. The memory in `uses` is in flight until then.
// Returns 0, or a CUDA error.
int CoxFakeEnqueue(void* stream, int (*fn)(void*), void* arg,
                   const CoxFakeUse* uses, int count);
// -1: no such stream.
int CoxFakeStreamDevice(void* stream);
// Device whose allocation holds [pointer, pointer + bytes); -1: none.
int CoxFakeDeviceOf(const void* pointer, size_t bytes);
int CoxFakeCurrentDevice();
void CoxFakeMisuse(const char* text);

}  // extern "C"

#endif  // COX_TESTS_COMM_FAKE_NCCL_FAKE_CUDA_H_
