#include "lib/base/fault_fs.h"

#include <algorithm>
#include <functional>
#include <map>
#include <utility>

#include "absl/strings/str_split.h"
#include "lib/base/sync.h"

namespace cox {
namespace {

constexpr size_t kSector = 512;

// An unsynced change of a file: data at `offset`, or a new size.
struct FileChange {
  bool truncate = false;
  size_t offset = 0;  // or the new size
  std::string data;
};

struct Node;
using NodePtr = std::shared_ptr<Node>;  // a name may be live, durable or both
using Entries = std::map<std::string, NodePtr>;

struct Node {
  bool is_dir = false;
  // File: what programs see, what survives, what lies between.
  std::string content;
  std::string durable_content;
  std::vector<FileChange> pending;
  // Folder.
  Entries entries;
  Entries durable_entries;
};

// An unsynced change of one or two folders, atomic: null removes the name.
struct DirChange {
  struct Edit {
    NodePtr dir;
    std::string name;
    NodePtr node;
  };
  std::vector<Edit> edits;
};

void Apply(const FileChange& change, std::string& content) {
  if (change.truncate) {
    content.resize(change.offset, '\0');
    return;
  }
  const size_t end = change.offset + change.data.size();
  if (content.size() < end) content.resize(end, '\0');
  content.replace(change.offset, change.data.size(), change.data);
}

// Sectors of a change reach the disk independently of each other.
void ApplySomeSectors(const FileChange& change, CounterRng& rng,
                      std::string& content) {
  if (change.truncate) {
    if (rng.NextBelow(2) == 0) Apply(change, content);
    return;
  }
  size_t done = 0;
  while (done < change.data.size()) {
    const size_t at = change.offset + done;
    const size_t length =
        std::min(change.data.size() - done, kSector - at % kSector);
    if (rng.NextBelow(2) == 0) {
      Apply({false, at, change.data.substr(done, length)}, content);
    }
    done += length;
  }
}

void ApplyEdits(const std::vector<DirChange::Edit>& edits,
                Entries Node::*entries) {
  for (const DirChange::Edit& edit : edits) {
    if (edit.node == nullptr) {
      ((*edit.dir).*entries).erase(edit.name);
    } else {
      ((*edit.dir).*entries)[edit.name] = edit.node;
    }
  }
}

std::vector<std::string> Split(const std::string& path) {
  std::vector<std::string> parts;
  for (const absl::string_view part : absl::StrSplit(path, '/')) {
    if (!part.empty() && part != ".") parts.emplace_back(part);
  }
  return parts;
}

absl::Status NotFound(const char* operation, const std::string& path) {
  return absl::NotFoundError(
      absl::StrCat(operation, " ", path, ": no such file or folder"));
}

}  // namespace

struct FaultFs::Impl {
  mutable Mutex mutex;
  NodePtr root ABSL_GUARDED_BY(mutex);
  std::vector<DirChange> dir_changes ABSL_GUARDED_BY(mutex);
  int64_t operations ABSL_GUARDED_BY(mutex) = 0;
  int64_t fail_at ABSL_GUARDED_BY(mutex) = -1;
  bool sticky ABSL_GUARDED_BY(mutex) = false;
  absl::Status error ABSL_GUARDED_BY(mutex);
  int64_t crashes ABSL_GUARDED_BY(mutex) = 0;

  absl::Status Count() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex) {
    ++operations;
    if (fail_at < 0 || operations < fail_at) return absl::OkStatus();
    if (operations > fail_at && !sticky) return absl::OkStatus();
    return error;
  }

  NodePtr Find(const std::vector<std::string>& parts, size_t count)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex) {
    NodePtr node = root;
    for (size_t i = 0; i < count; ++i) {
      if (!node->is_dir) return nullptr;
      const auto it = node->entries.find(parts[i]);
      if (it == node->entries.end()) return nullptr;
      node = it->second;
    }
    return node;
  }

  NodePtr Find(const std::string& path) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex) {
    const std::vector<std::string> parts = Split(path);
    return Find(parts, parts.size());
  }

  // The folder that holds the last part; null if it does not exist.
  NodePtr FindParent(const std::vector<std::string>& parts)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex) {
    if (parts.empty()) return nullptr;
    const NodePtr parent = Find(parts, parts.size() - 1);
    return parent != nullptr && parent->is_dir ? parent : nullptr;
  }

  void Change(std::vector<DirChange::Edit> edits)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex) {
    ApplyEdits(edits, &Node::entries);
    dir_changes.push_back({std::move(edits)});
  }

  absl::StatusOr<NodePtr> OpenNode(const std::string& path, bool exclusive)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex) {
    const std::vector<std::string> parts = Split(path);
    const NodePtr parent = FindParent(parts);
    if (parent == nullptr) return NotFound("open", path);
    const auto it = parent->entries.find(parts.back());
    if (it == parent->entries.end()) {
      auto node = std::make_shared<Node>();
      Change({{parent, parts.back(), node}});
      return node;
    }
    if (exclusive) {
      return absl::AlreadyExistsError(absl::StrCat("open ", path, ": exists"));
    }
    if (it->second->is_dir) {
      return absl::InternalError(absl::StrCat("open ", path, ": is a folder"));
    }
    return it->second;
  }

  // A failed sync forgets what was to be synced.
  friend absl::Status SyncNode(Impl& impl, Node& node)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(impl.mutex) {
    const absl::Status counted = impl.Count();
    if (counted.ok()) {
      for (const FileChange& change : node.pending) {
        Apply(change, node.durable_content);
      }
    }
    node.pending.clear();
    return counted;
  }

  absl::StatusOr<NodePtr> FindFile(const std::string& path)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex) {
    NodePtr node = Find(path);
    if (node == nullptr) return NotFound("read", path);
    if (node->is_dir) {
      return absl::InternalError(absl::StrCat("read ", path, ": is a folder"));
    }
    return node;
  }
};

class FaultFs::File : public WritableFile {
 public:
  File(std::shared_ptr<Impl> impl, NodePtr node, int64_t crashes)
      : impl_(std::move(impl)), node_(std::move(node)), crashes_(crashes) {}

  absl::Status Append(std::string_view data) override {
    MutexLock lock(&impl_->mutex);
    COX_RETURN_IF_ERROR(CheckOpen());
    const absl::Status counted = impl_->Count();
    const size_t written = counted.ok() ? data.size() : data.size() / 2;
    FileChange change{false, node_->content.size(),
                      std::string(data.substr(0, written))};
    Apply(change, node_->content);
    node_->pending.push_back(std::move(change));
    return counted;
  }

  absl::Status Sync() override {
    MutexLock lock(&impl_->mutex);
    COX_RETURN_IF_ERROR(CheckOpen());
    return SyncNode(*impl_, *node_);
  }

  absl::Status Close() override {
    closed_ = true;
    return absl::OkStatus();
  }

 private:
  absl::Status CheckOpen() ABSL_EXCLUSIVE_LOCKS_REQUIRED(impl_->mutex) {
    if (closed_ || impl_->crashes != crashes_) {
      return absl::InternalError("file is closed or the machine restarted");
    }
    return absl::OkStatus();
  }

  const std::shared_ptr<Impl> impl_;
  const NodePtr node_;
  const int64_t crashes_;
  bool closed_ = false;
};

class FaultFs::Random : public RandomFile {
 public:
  Random(std::shared_ptr<Impl> impl, NodePtr node, int64_t crashes)
      : impl_(std::move(impl)), node_(std::move(node)), crashes_(crashes) {}

  absl::StatusOr<std::string> Read(uint64_t offset, size_t length) override {
    MutexLock lock(&impl_->mutex);
    COX_RETURN_IF_ERROR(CheckOpen());
    return offset >= node_->content.size()
               ? std::string()
               : node_->content.substr(static_cast<size_t>(offset), length);
  }

  absl::Status Write(uint64_t offset, std::string_view data) override {
    MutexLock lock(&impl_->mutex);
    COX_RETURN_IF_ERROR(CheckOpen());
    const absl::Status counted = impl_->Count();
    const size_t written = counted.ok() ? data.size() : data.size() / 2;
    Add({false, static_cast<size_t>(offset),
         std::string(data.substr(0, written))});
    return counted;
  }

  absl::Status Truncate(uint64_t size) override {
    MutexLock lock(&impl_->mutex);
    COX_RETURN_IF_ERROR(CheckOpen());
    COX_RETURN_IF_ERROR(impl_->Count());
    Add({true, static_cast<size_t>(size), ""});
    return absl::OkStatus();
  }

  absl::Status Sync() override {
    MutexLock lock(&impl_->mutex);
    COX_RETURN_IF_ERROR(CheckOpen());
    return SyncNode(*impl_, *node_);
  }

  absl::StatusOr<uint64_t> Size() override {
    MutexLock lock(&impl_->mutex);
    COX_RETURN_IF_ERROR(CheckOpen());
    return uint64_t{node_->content.size()};
  }

 private:
  absl::Status CheckOpen() ABSL_EXCLUSIVE_LOCKS_REQUIRED(impl_->mutex) {
    return impl_->crashes == crashes_
               ? absl::OkStatus()
               : absl::InternalError("the machine restarted");
  }
  void Add(FileChange change) {
    Apply(change, node_->content);
    node_->pending.push_back(std::move(change));
  }

  const std::shared_ptr<Impl> impl_;
  const NodePtr node_;
  const int64_t crashes_;
};

FaultFs::FaultFs() : impl_(std::make_shared<Impl>()) {
  MutexLock lock(&impl_->mutex);
  impl_->root = std::make_shared<Node>();
  impl_->root->is_dir = true;
}

FaultFs::~FaultFs() = default;

void FaultFs::FailAt(int64_t k, absl::Status error, bool sticky) {
  COX_CHECK(k >= 1 && !error.ok());
  MutexLock lock(&impl_->mutex);
  impl_->fail_at = impl_->operations + k;
  impl_->error = std::move(error);
  impl_->sticky = sticky;
}

void FaultFs::Heal() {
  MutexLock lock(&impl_->mutex);
  impl_->fail_at = -1;
}

int64_t FaultFs::operations() const {
  MutexLock lock(&impl_->mutex);
  return impl_->operations;
}

void FaultFs::Crash(CounterRng& rng) {
  MutexLock lock(&impl_->mutex);
  for (const DirChange& change : impl_->dir_changes) {
    if (rng.NextBelow(2) == 0) {
      ApplyEdits(change.edits, &Node::durable_entries);
    }
  }
  impl_->dir_changes.clear();
  std::vector<NodePtr> todo = {impl_->root};
  while (!todo.empty()) {
    const NodePtr node = todo.back();
    todo.pop_back();
    for (const FileChange& change : node->pending) {
      ApplySomeSectors(change, rng, node->durable_content);
    }
    node->pending.clear();
    node->content = node->durable_content;
    node->entries = node->durable_entries;
    for (const auto& [name, child] : node->entries) todo.push_back(child);
  }
  ++impl_->crashes;
  impl_->fail_at = -1;
}

std::unique_ptr<FaultFs> FaultFs::Clone() const {
  auto copy = std::make_unique<FaultFs>();
  MutexLock lock(&impl_->mutex);
  MutexLock copy_lock(&copy->impl_->mutex);
  std::map<const Node*, NodePtr> copies;
  const std::function<NodePtr(const NodePtr&)> copied =
      [&](const NodePtr& node) -> NodePtr {
    if (node == nullptr) return nullptr;
    NodePtr& mine = copies[node.get()];
    if (mine != nullptr) return mine;
    mine = std::make_shared<Node>(*node);
    const NodePtr result = mine;  // the map may move
    for (auto& [name, child] : result->entries) child = copied(child);
    for (auto& [name, child] : result->durable_entries) child = copied(child);
    return result;
  };
  copy->impl_->root = copied(impl_->root);
  for (const DirChange& change : impl_->dir_changes) {
    DirChange& mine = copy->impl_->dir_changes.emplace_back();
    for (const DirChange::Edit& edit : change.edits) {
      mine.edits.push_back({copied(edit.dir), edit.name, copied(edit.node)});
    }
  }
  return copy;
}

absl::StatusOr<std::unique_ptr<RandomFile>> FaultFs::OpenRandom(
    const std::string& path, bool create) {
  MutexLock lock(&impl_->mutex);
  if (!create) COX_RETURN_IF_ERROR(impl_->FindFile(path).status());
  if (impl_->Find(path) == nullptr) COX_RETURN_IF_ERROR(impl_->Count());
  COX_ASSIGN_OR_RETURN(NodePtr node,
                       impl_->OpenNode(path, /*exclusive=*/false));
  return std::make_unique<Random>(impl_, std::move(node), impl_->crashes);
}

absl::StatusOr<std::unique_ptr<WritableFile>> FaultFs::Create(
    const std::string& path, bool exclusive) {
  MutexLock lock(&impl_->mutex);
  COX_RETURN_IF_ERROR(impl_->Count());
  COX_ASSIGN_OR_RETURN(NodePtr node, impl_->OpenNode(path, exclusive));
  if (!node->content.empty()) {
    FileChange change{true, 0, ""};
    Apply(change, node->content);
    node->pending.push_back(std::move(change));
  }
  return std::make_unique<File>(impl_, std::move(node), impl_->crashes);
}

absl::StatusOr<std::unique_ptr<WritableFile>> FaultFs::OpenAppend(
    const std::string& path) {
  MutexLock lock(&impl_->mutex);
  COX_RETURN_IF_ERROR(impl_->Count());
  COX_ASSIGN_OR_RETURN(NodePtr node,
                       impl_->OpenNode(path, /*exclusive=*/false));
  return std::make_unique<File>(impl_, std::move(node), impl_->crashes);
}

absl::StatusOr<std::string> FaultFs::ReadAll(const std::string& path) {
  MutexLock lock(&impl_->mutex);
  COX_ASSIGN_OR_RETURN(const NodePtr node, impl_->FindFile(path));
  return node->content;
}

absl::StatusOr<std::string> FaultFs::ReadRange(const std::string& path,
                                               uint64_t offset,
                                               uint64_t length) {
  MutexLock lock(&impl_->mutex);
  COX_ASSIGN_OR_RETURN(const NodePtr node, impl_->FindFile(path));
  const uint64_t size = node->content.size();
  if (offset > size || length > size - offset) {
    return absl::OutOfRangeError(absl::StrCat("read ", path, ": wanted ",
                                              length, " bytes at ", offset,
                                              ", the file has ", size));
  }
  return node->content.substr(static_cast<size_t>(offset),
                              static_cast<size_t>(length));
}

absl::StatusOr<uint64_t> FaultFs::FileSize(const std::string& path) {
  MutexLock lock(&impl_->mutex);
  COX_ASSIGN_OR_RETURN(const NodePtr node, impl_->FindFile(path));
  return uint64_t{node->content.size()};
}

bool FaultFs::Exists(const std::string& path) {
  MutexLock lock(&impl_->mutex);
  return impl_->Find(path) != nullptr;
}

absl::StatusOr<std::vector<std::string>> FaultFs::List(const std::string& dir) {
  MutexLock lock(&impl_->mutex);
  const NodePtr node = impl_->Find(dir);
  if (node == nullptr || !node->is_dir) return NotFound("list", dir);
  std::vector<std::string> names;
  for (const auto& [name, child] : node->entries) names.push_back(name);
  return names;
}

absl::Status FaultFs::MakeDirs(const std::string& path, int /*mode*/) {
  MutexLock lock(&impl_->mutex);
  COX_RETURN_IF_ERROR(impl_->Count());
  NodePtr node = impl_->root;
  for (const std::string& part : Split(path)) {
    const auto it = node->entries.find(part);
    if (it != node->entries.end()) {
      node = it->second;
      if (node->is_dir) continue;
      return absl::AlreadyExistsError(
          absl::StrCat("mkdir ", path, ": ", part, " is a file"));
    }
    auto child = std::make_shared<Node>();
    child->is_dir = true;
    impl_->Change({{node, part, child}});
    node = child;
  }
  return absl::OkStatus();
}

absl::Status FaultFs::Rename(const std::string& from, const std::string& to) {
  MutexLock lock(&impl_->mutex);
  COX_RETURN_IF_ERROR(impl_->Count());
  const std::vector<std::string> from_parts = Split(from);
  const std::vector<std::string> to_parts = Split(to);
  const NodePtr from_dir = impl_->FindParent(from_parts);
  const NodePtr to_dir = impl_->FindParent(to_parts);
  const NodePtr node = impl_->Find(from);
  if (from_dir == nullptr || to_dir == nullptr || node == nullptr) {
    return NotFound("rename", absl::StrCat(from, " to ", to));
  }
  const NodePtr target = impl_->Find(to);
  if (target != nullptr && target != node &&
      (target->is_dir != node->is_dir || !target->entries.empty())) {
    return absl::AlreadyExistsError(
        absl::StrCat("rename ", from, " to ", to, ": target is in the way"));
  }
  if (target == node) return absl::OkStatus();
  impl_->Change({{from_dir, from_parts.back(), nullptr},
                 {to_dir, to_parts.back(), node}});
  return absl::OkStatus();
}

absl::Status FaultFs::RemoveAll(const std::string& path) {
  MutexLock lock(&impl_->mutex);
  COX_RETURN_IF_ERROR(impl_->Count());
  const std::vector<std::string> parts = Split(path);
  const NodePtr parent = impl_->FindParent(parts);
  if (parent == nullptr || !parent->entries.contains(parts.back())) {
    return absl::OkStatus();
  }
  impl_->Change({{parent, parts.back(), nullptr}});
  return absl::OkStatus();
}

absl::Status FaultFs::Truncate(const std::string& path, uint64_t size) {
  MutexLock lock(&impl_->mutex);
  COX_RETURN_IF_ERROR(impl_->Count());
  COX_ASSIGN_OR_RETURN(const NodePtr node, impl_->FindFile(path));
  FileChange change{true, static_cast<size_t>(size), ""};
  Apply(change, node->content);
  node->pending.push_back(std::move(change));
  return absl::OkStatus();
}

absl::Status FaultFs::SyncDir(const std::string& dir) {
  MutexLock lock(&impl_->mutex);
  COX_RETURN_IF_ERROR(impl_->Count());
  const NodePtr node = impl_->Find(dir);
  if (node == nullptr || !node->is_dir) return NotFound("sync", dir);
  std::vector<DirChange> left;
  for (DirChange& change : impl_->dir_changes) {
    const bool touches = std::any_of(
        change.edits.begin(), change.edits.end(),
        [&node](const DirChange::Edit& edit) { return edit.dir == node; });
    if (touches) {
      ApplyEdits(change.edits, &Node::durable_entries);
    } else {
      left.push_back(std::move(change));
    }
  }
  impl_->dir_changes = std::move(left);
  return absl::OkStatus();
}

}  // namespace cox
