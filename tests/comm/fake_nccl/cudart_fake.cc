// A CUDA runtime without a GPU: the C symbols of libcudart that lib/comm loads.
// Device memory is host memory that only this library's copies may touch by
// contract; streams are threads, so what a caller has not ordered runs in any
// order. Built for tests, never installed.

#include <fcntl.h>
#include <unistd.h>

#include <condition_variable>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "tests/comm/fake_nccl/fake_cuda.h"

namespace {

constexpr int kSuccess = 0;
constexpr int kInvalidValue = 1;
constexpr int kMemoryAllocation = 2;
constexpr int kInsufficientDriver = 35;
constexpr int kNoDevice = 100;
constexpr int kInvalidDevice = 101;
constexpr int kInvalidHandle = 400;
constexpr int kNotReady = 600;
constexpr int kIllegalAddress = 700;
constexpr int kHostToDevice = 1;
constexpr int kDeviceToHost = 2;

int64_t Setting(const char* name, int64_t value) {
  const char* text = std::getenv(name);
  return text == nullptr ? value : std::atoll(text);
}

struct Allocation {
  size_t bytes = 0;
  int device = -1;  // -1: page-locked host memory
  int in_flight = 0;
};

struct Event {
  std::mutex mutex;
  std::condition_variable cv;
  uint64_t recorded = 0;
  uint64_t happened = 0;
};

struct Stream {
  std::mutex mutex;
  std::condition_variable cv;
  std::deque<std::function<void()>> queue;
  bool busy = false;
  bool closing = false;
  int device = 0;
};

// Never destroyed: streams' threads may outlive main().
struct World {
  std::mutex mutex;
  std::map<uintptr_t, Allocation> memory;
  std::map<void*, std::shared_ptr<Stream>> streams;
  std::map<void*, std::shared_ptr<Event>> events;
  int sticky = kSuccess;
  int64_t copies = 0;
};
World& TheWorld() {
  static auto* world = new World;
  return *world;
}

thread_local int current_device = 0;

int DeviceCount() {
  return static_cast<int>(Setting("COX_FAKE_CUDA_DEVICES", 4));
}

void Delay() {
  static const int64_t most = Setting("COX_FAKE_CUDA_DELAY_US", 0);
  if (most <= 0) return;
  thread_local uint64_t state = reinterpret_cast<uintptr_t>(&state);
  state = state * 6364136223846793005u + 1442695040888963407u;
  std::this_thread::sleep_for(std::chrono::microseconds(
      (state >> 33) % static_cast<uint64_t>(most + 1)));
}

void RunStream(const std::shared_ptr<Stream>& stream) {
  while (true) {
    std::function<void()> work;
    {
      std::unique_lock<std::mutex> lock(stream->mutex);
      stream->cv.wait(
          lock, [&] { return !stream->queue.empty() || stream->closing; });
      if (stream->queue.empty()) return;
      work = std::move(stream->queue.front());
      stream->queue.pop_front();
      stream->busy = true;
    }
    Delay();
    work();
    std::lock_guard<std::mutex> lock(stream->mutex);
    stream->busy = false;
    stream->cv.notify_all();
  }
}

std::shared_ptr<Stream> NewStream(int device) {
  auto stream = std::make_shared<Stream>();
  stream->device = device;
  std::thread([stream] { RunStream(stream); }).detach();
  return stream;
}

// nullptr is each device's default stream.
std::shared_ptr<Stream> FindStream(void* handle) {
  World& w = TheWorld();
  std::lock_guard<std::mutex> lock(w.mutex);
  void* key =
      handle == nullptr
          ? reinterpret_cast<void*>(static_cast<intptr_t>(current_device + 1))
          : handle;
  auto at = w.streams.find(key);
  if (at != w.streams.end()) return at->second;
  if (handle != nullptr) return nullptr;
  return w.streams[key] = NewStream(current_device);
}

std::shared_ptr<Event> FindEvent(void* handle) {
  World& w = TheWorld();
  std::lock_guard<std::mutex> lock(w.mutex);
  const auto at = w.events.find(handle);
  return at == w.events.end() ? nullptr : at->second;
}

void Push(Stream& stream, std::function<void()> work) {
  std::lock_guard<std::mutex> lock(stream.mutex);
  stream.queue.push_back(std::move(work));
  stream.cv.notify_all();
}

// The allocation that holds the range. REQUIRES: the world's lock.
Allocation* Holding(const void* pointer, size_t bytes) {
  World& w = TheWorld();
  const auto address = reinterpret_cast<uintptr_t>(pointer);
  auto at = w.memory.upper_bound(address);
  if (at == w.memory.begin()) return nullptr;
  --at;
  return address - at->first + bytes <= at->second.bytes ? &at->second
                                                         : nullptr;
}

int Misuse(const std::string& text, int code) {
  CoxFakeMisuse(text.c_str());
  return code;
}

int Sticky() {
  World& w = TheWorld();
  std::lock_guard<std::mutex> lock(w.mutex);
  return w.sticky;
}

int Allocate(void** pointer, size_t bytes, int device) {
  // Aligned and filled, so that reading what was never written shows.
  void* memory = nullptr;
  if (posix_memalign(&memory, 256, bytes == 0 ? 1 : bytes) != 0) {
    return kMemoryAllocation;
  }
  std::memset(memory, 0xcd, bytes);
  World& w = TheWorld();
  std::lock_guard<std::mutex> lock(w.mutex);
  w.memory[reinterpret_cast<uintptr_t>(memory)] = {bytes, device, 0};
  *pointer = memory;
  return kSuccess;
}

int Release(void* pointer, bool host) {
  if (pointer == nullptr) return kSuccess;
  World& w = TheWorld();
  std::unique_lock<std::mutex> lock(w.mutex);
  const auto at = w.memory.find(reinterpret_cast<uintptr_t>(pointer));
  if (at == w.memory.end() || (at->second.device < 0) != host) {
    lock.unlock();
    return Misuse("free of memory that was not allocated so", kInvalidValue);
  }
  if (at->second.in_flight > 0) {
    // Left allocated: the operation still writes there.
    lock.unlock();
    return Misuse("memory freed while an operation uses it", kInvalidValue);
  }
  w.memory.erase(at);
  lock.unlock();
  std::free(pointer);
  return kSuccess;
}

int Copy(void* to, const void* from, size_t bytes, int kind, void* stream) {
  World& w = TheWorld();
  std::shared_ptr<std::vector<char>> staged;
  {
    std::unique_lock<std::mutex> lock(w.mutex);
    if (w.sticky != kSuccess) return w.sticky;
    if (++w.copies == Setting("COX_FAKE_CUDA_FAIL_COPY", 0)) {
      return w.sticky = kIllegalAddress;
    }
    const Allocation* target = Holding(to, bytes);
    const Allocation* source = Holding(from, bytes);
    const bool to_device = target != nullptr && target->device >= 0;
    const bool from_device = source != nullptr && source->device >= 0;
    const bool good = kind == kHostToDevice   ? to_device && !from_device
                      : kind == kDeviceToHost ? !to_device && from_device
                                              : to_device && from_device;
    if (!good) {
      lock.unlock();
      return Misuse("copy between memory of other kinds or sizes than named",
                    kInvalidValue);
    }
    if (source == nullptr) {
      // Pageable memory is staged before the call returns.
      const char* bytes_from = static_cast<const char*>(from);
      staged =
          std::make_shared<std::vector<char>>(bytes_from, bytes_from + bytes);
    }
    if (target == nullptr) {
      lock.unlock();
      return Misuse("asynchronous copy to pageable memory", kInvalidValue);
    }
  }
  struct Args {
    void* to;
    const void* from;
    size_t bytes;
    std::shared_ptr<std::vector<char>> staged;
  };
  auto* args = new Args{to, staged ? staged->data() : from, bytes, staged};
  const CoxFakeUse uses[] = {{to, bytes}, {from, bytes}};
  const int code = CoxFakeEnqueue(
      stream,
      [](void* raw) {
        const std::unique_ptr<Args> a(static_cast<Args*>(raw));
        std::memcpy(a->to, a->from, a->bytes);
        return kSuccess;
      },
      args, uses, 2);
  if (code != kSuccess) delete args;
  return code;
}

}  // namespace

extern "C" {

void CoxFakeMisuse(const char* text) {
  std::fprintf(stderr, "fake CUDA, process %d: %s\n", getpid(), text);
  const char* path = std::getenv("COX_FAKE_MISUSE");
  if (path == nullptr) return;
  const int fd = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
  const std::string line = std::string(text) + "\n";
  if (fd >= 0 && write(fd, line.data(), line.size()) < 0) std::abort();
  if (fd >= 0) close(fd);
}

int CoxFakeEnqueue(void* handle, int (*fn)(void*), void* arg,
                   const CoxFakeUse* uses, int count) {
  const std::shared_ptr<Stream> stream = FindStream(handle);
  if (stream == nullptr) {
    return Misuse("work for a stream that is not there", kInvalidHandle);
  }
  World& w = TheWorld();
  std::vector<CoxFakeUse> held(uses, uses + count);
  const auto hold = [&w](const std::vector<CoxFakeUse>& all, int by) {
    std::lock_guard<std::mutex> lock(w.mutex);
    for (const CoxFakeUse& use : all) {
      Allocation* at = Holding(use.pointer, use.bytes);
      if (at != nullptr) at->in_flight += by;
    }
  };
  hold(held, 1);
  Push(*stream, [&w, held, hold, fn, arg] {
    const int code = fn(arg);
    hold(held, -1);
    std::lock_guard<std::mutex> lock(w.mutex);
    if (code != kSuccess && w.sticky == kSuccess) w.sticky = code;
  });
  return kSuccess;
}

int CoxFakeStreamDevice(void* handle) {
  const std::shared_ptr<Stream> stream = FindStream(handle);
  return stream == nullptr ? -1 : stream->device;
}

int CoxFakeDeviceOf(const void* pointer, size_t bytes) {
  World& w = TheWorld();
  std::lock_guard<std::mutex> lock(w.mutex);
  const Allocation* at = Holding(pointer, bytes);
  if (at != nullptr) return at->device;
  return Setting("COX_FAKE_CUDA_ANY_MEMORY", 0) != 0 ? current_device : -1;
}

int CoxFakeCurrentDevice() { return current_device; }

int cudaGetDeviceCount(int* count) {
  *count = DeviceCount() < 0 ? 0 : DeviceCount();
  if (DeviceCount() < 0) return kInsufficientDriver;
  return DeviceCount() == 0 ? kNoDevice : kSuccess;
}
int cudaGetDevice(int* device) {
  *device = current_device;
  return kSuccess;
}
int cudaSetDevice(int device) {
  if (device < 0 || device >= DeviceCount()) return kInvalidDevice;
  current_device = device;
  return kSuccess;
}
int cudaMalloc(void** pointer, size_t bytes) {
  return Allocate(pointer, bytes, current_device);
}
int cudaMallocHost(void** pointer, size_t bytes) {
  return Allocate(pointer, bytes, -1);
}
int cudaFree(void* pointer) { return Release(pointer, false); }
int cudaFreeHost(void* pointer) { return Release(pointer, true); }
int cudaMemcpyAsync(void* to, const void* from, size_t bytes, int kind,
                    void* stream) {
  return Copy(to, from, bytes, kind, stream);
}

int cudaStreamCreateWithFlags(void** handle, unsigned int) {
  auto stream = NewStream(current_device);
  World& w = TheWorld();
  std::lock_guard<std::mutex> lock(w.mutex);
  w.streams[stream.get()] = stream;
  *handle = stream.get();
  return kSuccess;
}
int cudaStreamDestroy(void* handle) {
  std::shared_ptr<Stream> stream;
  {
    World& w = TheWorld();
    std::lock_guard<std::mutex> lock(w.mutex);
    const auto at = w.streams.find(handle);
    if (at != w.streams.end()) {
      stream = at->second;
      w.streams.erase(at);
    }
  }
  if (stream == nullptr) return Misuse("no such stream", kInvalidHandle);
  // What is enqueued still runs; the thread ends after it.
  std::lock_guard<std::mutex> lock(stream->mutex);
  stream->closing = true;
  stream->cv.notify_all();
  return kSuccess;
}
int cudaStreamQuery(void* handle) {
  if (const int error = Sticky()) return error;
  const std::shared_ptr<Stream> stream = FindStream(handle);
  if (stream == nullptr) return Misuse("no such stream", kInvalidHandle);
  std::lock_guard<std::mutex> lock(stream->mutex);
  return stream->queue.empty() && !stream->busy ? kSuccess : kNotReady;
}
int cudaStreamSynchronize(void* handle) {
  const std::shared_ptr<Stream> stream = FindStream(handle);
  if (stream == nullptr) return Misuse("no such stream", kInvalidHandle);
  {
    std::unique_lock<std::mutex> lock(stream->mutex);
    stream->cv.wait(lock,
                    [&] { return stream->queue.empty() && !stream->busy; });
  }
  return Sticky();
}
int cudaStreamWaitEvent(void* handle, void* event_handle, unsigned int) {
  const std::shared_ptr<Stream> stream = FindStream(handle);
  const std::shared_ptr<Event> event = FindEvent(event_handle);
  if (stream == nullptr || event == nullptr) {
    return Misuse("no such stream or event", kInvalidHandle);
  }
  uint64_t until = 0;
  {
    std::lock_guard<std::mutex> lock(event->mutex);
    until = event->recorded;
  }
  Push(*stream, [event, until] {
    std::unique_lock<std::mutex> lock(event->mutex);
    event->cv.wait(lock, [&] { return event->happened >= until; });
  });
  return kSuccess;
}

int cudaEventCreateWithFlags(void** handle, unsigned int) {
  auto event = std::make_shared<Event>();
  World& w = TheWorld();
  std::lock_guard<std::mutex> lock(w.mutex);
  w.events[event.get()] = event;
  *handle = event.get();
  return kSuccess;
}
int cudaEventDestroy(void* handle) {
  World& w = TheWorld();
  std::unique_lock<std::mutex> lock(w.mutex);
  if (w.events.erase(handle) == 1) return kSuccess;
  lock.unlock();
  return Misuse("no such event", kInvalidHandle);
}
int cudaEventRecord(void* handle, void* stream_handle) {
  const std::shared_ptr<Stream> stream = FindStream(stream_handle);
  const std::shared_ptr<Event> event = FindEvent(handle);
  if (stream == nullptr || event == nullptr) {
    return Misuse("no such stream or event", kInvalidHandle);
  }
  uint64_t number = 0;
  {
    std::lock_guard<std::mutex> lock(event->mutex);
    number = ++event->recorded;
  }
  Push(*stream, [event, number] {
    std::lock_guard<std::mutex> lock(event->mutex);
    if (event->happened < number) event->happened = number;
    event->cv.notify_all();
  });
  return kSuccess;
}
int cudaEventQuery(void* handle) {
  if (const int error = Sticky()) return error;
  const std::shared_ptr<Event> event = FindEvent(handle);
  if (event == nullptr) return Misuse("no such event", kInvalidHandle);
  std::lock_guard<std::mutex> lock(event->mutex);
  return event->happened >= event->recorded ? kSuccess : kNotReady;
}

int cudaDriverGetVersion(int* version) {
  *version = DeviceCount() < 0 ? 0 : 13000;
  return kSuccess;
}
int cudaRuntimeGetVersion(int* version) {
  *version = 13000;
  return kSuccess;
}
const char* cudaGetErrorString(int code) {
  return code == kIllegalAddress ? "fake: illegal address" : "fake CUDA error";
}

}  // extern "C"
