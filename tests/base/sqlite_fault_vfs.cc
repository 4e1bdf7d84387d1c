#include "tests/base/sqlite_fault_vfs.h"

#include <sqlite3.h>

#include <array>
#include <cstring>
#include <map>
#include <string>
#include <utility>
#include <vector>

namespace cox {
namespace {

constexpr int kSector = 512;
constexpr int kMaxPath = 512;

// The "-shm" of a database: regions and the locks of WAL mode.
struct SharedMemory {
  std::vector<std::vector<char>> regions;
  struct Lock {
    int shared = 0;
    const void* exclusive = nullptr;
  };
  std::array<Lock, SQLITE_SHM_NLOCK> locks;
};

}  // namespace

struct SqliteFaultVfs::State {
  FaultFs* fs = nullptr;
  int64_t generation = 0;
  std::map<std::string, std::shared_ptr<SharedMemory>> shared;
  sqlite3_vfs vfs{};
  sqlite3_vfs* before = nullptr;
  uint64_t random = 0;
  int temporaries = 0;
};

namespace {

using State = SqliteFaultVfs::State;

// What SQLite allocates: its header, then ours behind a pointer.
struct OpenFile {
  State* state = nullptr;
  int64_t generation = 0;
  std::string path;
  std::unique_ptr<RandomFile> file;
  bool sync_folder = false;
  bool delete_on_close = false;
  std::shared_ptr<SharedMemory> shm;
  std::array<int, SQLITE_SHM_NLOCK> held{};  // 1 shared, 2 exclusive
};
struct SqliteFile {
  sqlite3_file base;
  OpenFile* open;
};

OpenFile& Of(sqlite3_file* file) {
  return *reinterpret_cast<SqliteFile*>(file)->open;
}

int CodeOf(const absl::Status& status, int otherwise) {
  return status.ok()                         ? SQLITE_OK
         : absl::IsResourceExhausted(status) ? SQLITE_FULL
                                             : otherwise;
}

int ShmUnmap(sqlite3_file* file, int remove);

int Close(sqlite3_file* file) {
  OpenFile& open = Of(file);
  ShmUnmap(file, 0);
  if (open.delete_on_close && open.generation == open.state->generation) {
    static_cast<void>(open.state->fs->RemoveAll(open.path));
  }
  delete &open;
  reinterpret_cast<SqliteFile*>(file)->open = nullptr;
  return SQLITE_OK;
}

int Read(sqlite3_file* file, void* to, int amount, sqlite3_int64 offset) {
  const absl::StatusOr<std::string> bytes = Of(file).file->Read(
      static_cast<uint64_t>(offset), static_cast<size_t>(amount));
  if (!bytes.ok()) return SQLITE_IOERR_READ;
  std::memcpy(to, bytes->data(), bytes->size());
  const size_t wanted = static_cast<size_t>(amount);
  if (bytes->size() == wanted) return SQLITE_OK;
  std::memset(static_cast<char*>(to) + bytes->size(), 0,
              wanted - bytes->size());
  return SQLITE_IOERR_SHORT_READ;
}

int Write(sqlite3_file* file, const void* from, int amount,
          sqlite3_int64 offset) {
  return CodeOf(
      Of(file).file->Write(static_cast<uint64_t>(offset),
                           std::string_view(static_cast<const char*>(from),
                                            static_cast<size_t>(amount))),
      SQLITE_IOERR_WRITE);
}

int Truncate(sqlite3_file* file, sqlite3_int64 size) {
  return CodeOf(Of(file).file->Truncate(static_cast<uint64_t>(size)),
                SQLITE_IOERR_TRUNCATE);
}

int Sync(sqlite3_file* file, int /*flags*/) {
  OpenFile& open = Of(file);
  absl::Status status = open.file->Sync();
  if (status.ok() && open.sync_folder) {
    status = open.state->fs->SyncDir(DirName(open.path));
    open.sync_folder = false;
  }
  return CodeOf(status, SQLITE_IOERR_FSYNC);
}

int Size(sqlite3_file* file, sqlite3_int64* size) {
  const absl::StatusOr<uint64_t> found = Of(file).file->Size();
  if (!found.ok()) return SQLITE_IOERR_FSTAT;
  *size = static_cast<sqlite3_int64>(*found);
  return SQLITE_OK;
}

// In WAL mode what matters is in the shared memory's locks.
int Lock(sqlite3_file*, int) { return SQLITE_OK; }
int Unlock(sqlite3_file*, int) { return SQLITE_OK; }
int IsReserved(sqlite3_file*, int* result) {
  *result = 0;
  return SQLITE_OK;
}
int Control(sqlite3_file*, int, void*) { return SQLITE_NOTFOUND; }
int Sector(sqlite3_file*) { return kSector; }
int Characteristics(sqlite3_file*) {
  return SQLITE_IOCAP_POWERSAFE_OVERWRITE;  // as on Linux
}

int ShmMap(sqlite3_file* file, int region, int size, int extend,
           void volatile** to) {
  OpenFile& open = Of(file);
  *to = nullptr;
  if (open.shm == nullptr) {
    std::shared_ptr<SharedMemory>& shared = open.state->shared[open.path];
    if (shared == nullptr) shared = std::make_shared<SharedMemory>();
    open.shm = shared;
  }
  auto& regions = open.shm->regions;
  const size_t index = static_cast<size_t>(region);
  if (index >= regions.size() && extend == 0) return SQLITE_OK;
  while (regions.size() <= index) {
    regions.emplace_back(static_cast<size_t>(size), '\0');
  }
  *to = regions[index].data();
  return SQLITE_OK;
}

int ShmLock(sqlite3_file* file, int offset, int n, int flags) {
  OpenFile& open = Of(file);
  auto& locks = open.shm->locks;
  const bool exclusive = (flags & SQLITE_SHM_EXCLUSIVE) != 0;
  const auto each = [&](auto fn) {
    for (int i = offset; i < offset + n; ++i) fn(static_cast<size_t>(i));
  };
  if ((flags & SQLITE_SHM_UNLOCK) != 0) {
    each([&](size_t i) {
      if (open.held[i] == 2) locks[i].exclusive = nullptr;
      if (open.held[i] == 1) --locks[i].shared;
      open.held[i] = 0;
    });
    return SQLITE_OK;
  }
  bool busy = false;
  each([&](size_t i) {
    busy |= open.held[i] == 0 && (locks[i].exclusive != nullptr ||
                                  (exclusive && locks[i].shared > 0));
  });
  if (busy) return SQLITE_BUSY;
  each([&](size_t i) {
    if (open.held[i] != 0) return;
    open.held[i] = exclusive ? 2 : 1;
    if (exclusive) {
      locks[i].exclusive = &open;
    } else {
      ++locks[i].shared;
    }
  });
  return SQLITE_OK;
}

void ShmBarrier(sqlite3_file*) {}

int ShmUnmap(sqlite3_file* file, int remove) {
  OpenFile& open = Of(file);
  if (open.shm == nullptr) return SQLITE_OK;
  ShmLock(file, 0, SQLITE_SHM_NLOCK, SQLITE_SHM_UNLOCK);
  open.shm = nullptr;
  if (remove != 0 && open.generation == open.state->generation) {
    open.state->shared.erase(open.path);
  }
  return SQLITE_OK;
}

const sqlite3_io_methods kMethods = {2,
                                     Close,
                                     Read,
                                     Write,
                                     Truncate,
                                     Sync,
                                     Size,
                                     Lock,
                                     Unlock,
                                     IsReserved,
                                     Control,
                                     Sector,
                                     Characteristics,
                                     ShmMap,
                                     ShmLock,
                                     ShmBarrier,
                                     ShmUnmap,
                                     nullptr,
                                     nullptr};

State& StateOf(sqlite3_vfs* vfs) { return *static_cast<State*>(vfs->pAppData); }

int Open(sqlite3_vfs* vfs, const char* name, sqlite3_file* file, int flags,
         int* out_flags) {
  State& state = StateOf(vfs);
  auto* mine = reinterpret_cast<SqliteFile*>(file);
  mine->base.pMethods = nullptr;
  const std::string path =
      name != nullptr ? std::string(name)
                      : "/temporary-" + std::to_string(++state.temporaries);
  const bool existed = state.fs->Exists(path);
  absl::StatusOr<std::unique_ptr<RandomFile>> opened =
      state.fs->OpenRandom(path, (flags & SQLITE_OPEN_CREATE) != 0);
  if (!opened.ok()) return CodeOf(opened.status(), SQLITE_CANTOPEN);
  auto open = std::make_unique<OpenFile>();
  open->state = &state;
  open->generation = state.generation;
  open->path = path;
  open->file = *std::move(opened);
  constexpr int kLogs =
      SQLITE_OPEN_WAL | SQLITE_OPEN_MAIN_JOURNAL | SQLITE_OPEN_SUPER_JOURNAL;
  open->sync_folder = !existed && (flags & kLogs) != 0;
  open->delete_on_close = (flags & SQLITE_OPEN_DELETEONCLOSE) != 0;
  mine->open = open.release();
  mine->base.pMethods = &kMethods;
  if (out_flags != nullptr) *out_flags = flags;
  return SQLITE_OK;
}

int Delete(sqlite3_vfs* vfs, const char* name, int sync_folder) {
  State& state = StateOf(vfs);
  if (!state.fs->Exists(name)) return SQLITE_IOERR_DELETE_NOENT;
  absl::Status status = state.fs->RemoveAll(name);
  if (status.ok() && sync_folder != 0) {
    status = state.fs->SyncDir(DirName(name));
  }
  return CodeOf(status, SQLITE_IOERR_DELETE);
}

int Access(sqlite3_vfs* vfs, const char* name, int /*flags*/, int* result) {
  *result = StateOf(vfs).fs->Exists(name) ? 1 : 0;
  return SQLITE_OK;
}

int FullPath(sqlite3_vfs*, const char* name, int size, char* out) {
  sqlite3_snprintf(size, out, "%s", name);
  return SQLITE_OK;
}

int Randomness(sqlite3_vfs* vfs, int size, char* out) {
  State& state = StateOf(vfs);
  for (int i = 0; i < size; ++i) {
    state.random = state.random * 6364136223846793005u + 1442695040888963407u;
    out[i] = static_cast<char>(state.random >> 56);
  }
  return size;
}

int Sleep(sqlite3_vfs*, int microseconds) { return microseconds; }

int Now(sqlite3_vfs*, double* julian) {
  *julian = 2461000.5;
  return SQLITE_OK;
}

int LastError(sqlite3_vfs*, int, char*) { return 0; }

}  // namespace

SqliteFaultVfs::SqliteFaultVfs(FaultFs* fs)
    : state_(std::make_unique<State>()) {
  state_->fs = fs;
  state_->before = sqlite3_vfs_find(nullptr);
  sqlite3_vfs& vfs = state_->vfs;
  vfs.iVersion = 1;
  vfs.szOsFile = sizeof(SqliteFile);
  vfs.mxPathname = kMaxPath;
  vfs.zName = "cox-fault";
  vfs.pAppData = state_.get();
  vfs.xOpen = Open;
  vfs.xDelete = Delete;
  vfs.xAccess = Access;
  vfs.xFullPathname = FullPath;
  vfs.xRandomness = Randomness;
  vfs.xSleep = Sleep;
  vfs.xCurrentTime = Now;
  vfs.xGetLastError = LastError;
  COX_CHECK(sqlite3_vfs_register(&vfs, /*makeDflt=*/1) == SQLITE_OK);
}

SqliteFaultVfs::~SqliteFaultVfs() {
  sqlite3_vfs_unregister(&state_->vfs);
  sqlite3_vfs_register(state_->before, /*makeDflt=*/1);
}

void SqliteFaultVfs::Use(FaultFs* fs) {
  state_->fs = fs;
  ++state_->generation;
  state_->shared.clear();
}

}  // namespace cox
