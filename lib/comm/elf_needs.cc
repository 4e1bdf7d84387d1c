#include "lib/comm/elf_needs.h"

#include <elf.h>
#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <deque>
#include <set>
#include <string_view>
#include <utility>

#include "absl/strings/str_replace.h"
#include "absl/strings/str_split.h"

namespace cox {
namespace {

// A library of 1 GB has a string table of a few MB; what claims more is
// damaged.
constexpr uint64_t kMaxTable = uint64_t{64} << 20;

class File {
 public:
  explicit File(const std::string& path)
      : fd_(open(path.c_str(), O_RDONLY | O_CLOEXEC)) {}
  ~File() {
    if (fd_ >= 0) close(fd_);
  }
  File(const File&) = delete;
  File& operator=(const File&) = delete;
  bool is_open() const { return fd_ >= 0; }
  bool Read(uint64_t offset, void* out, size_t bytes) const {
    return pread(fd_, out, bytes, static_cast<off_t>(offset)) ==
           static_cast<ssize_t>(bytes);
  }

 private:
  int fd_;
};

std::string_view BaseName(std::string_view path) {
  return path.substr(path.rfind('/') + 1);
}

// glibc and the C++ runtime: present wherever this program runs.
bool IsRuntime(const std::string& name) {
  for (const char* prefix : {"libc.so", "libm.so", "libdl.so", "libpthread.so",
                             "librt.so", "libutil.so", "libstdc++.so",
                             "libgcc_s.so", "ld-linux", "linux-vdso"}) {
    if (name.rfind(prefix, 0) == 0) return true;
  }
  return false;
}

// Offset in the file of virtual address `address`; 0 = in no segment.
uint64_t OffsetOf(const std::vector<Elf64_Phdr>& segments, uint64_t address) {
  for (const Elf64_Phdr& segment : segments) {
    if (segment.p_type == PT_LOAD && address >= segment.p_vaddr &&
        address - segment.p_vaddr < segment.p_filesz) {
      return segment.p_offset + (address - segment.p_vaddr);
    }
  }
  return 0;
}

absl::Status Damaged(const std::string& path, const char* what) {
  return absl::DataLossError(
      absl::StrCat(path, ": not a 64-bit ELF library (", what, ")"));
}

absl::StatusOr<std::vector<Elf64_Phdr>> ReadSegments(const File& file,
                                                     const std::string& path) {
  Elf64_Ehdr header = {};
  if (!file.Read(0, &header, sizeof(header)) ||
      std::memcmp(header.e_ident, ELFMAG, SELFMAG) != 0 ||
      header.e_ident[EI_CLASS] != ELFCLASS64 ||
      header.e_ident[EI_DATA] != ELFDATA2LSB ||
      header.e_phentsize != sizeof(Elf64_Phdr)) {
    return Damaged(path, "header");
  }
  std::vector<Elf64_Phdr> segments(header.e_phnum);
  if (!file.Read(header.e_phoff, segments.data(),
                 segments.size() * sizeof(Elf64_Phdr))) {
    return Damaged(path, "program headers");
  }
  return segments;
}

std::vector<std::string> SplitRunPath(const std::string& text,
                                      const std::string& path) {
  const std::string folder = path.substr(0, path.rfind('/'));
  std::vector<std::string> parts;
  for (const auto part : absl::StrSplit(text, ':', absl::SkipEmpty())) {
    parts.push_back(absl::StrReplaceAll(
        part, {{"$ORIGIN", folder}, {"${ORIGIN}", folder}}));
  }
  return parts;
}

}  // namespace

absl::StatusOr<ElfDynamic> ReadElfDynamic(const std::string& path) {
  const File file(path);
  if (!file.is_open()) {
    return absl::NotFoundError(absl::StrCat(path, ": cannot be opened"));
  }
  COX_ASSIGN_OR_RETURN(const std::vector<Elf64_Phdr> segments,
                       ReadSegments(file, path));
  std::vector<Elf64_Dyn> entries;
  for (const Elf64_Phdr& segment : segments) {
    if (segment.p_type != PT_DYNAMIC || segment.p_filesz > kMaxTable) continue;
    entries.resize(segment.p_filesz / sizeof(Elf64_Dyn));
    if (!file.Read(segment.p_offset, entries.data(),
                   entries.size() * sizeof(Elf64_Dyn))) {
      return Damaged(path, "dynamic section");
    }
  }
  uint64_t table_at = 0;
  uint64_t table_bytes = 0;
  for (const Elf64_Dyn& entry : entries) {
    if (entry.d_tag == DT_STRTAB)
      table_at = OffsetOf(segments, entry.d_un.d_ptr);
    if (entry.d_tag == DT_STRSZ) table_bytes = entry.d_un.d_val;
  }
  if (table_at == 0 || table_bytes == 0 || table_bytes > kMaxTable) {
    return Damaged(path, "no dynamic strings");
  }
  std::string table(table_bytes, '\0');
  if (!file.Read(table_at, table.data(), table.size())) {
    return Damaged(path, "dynamic strings");
  }
  const auto text = [&table](uint64_t at) -> std::string {
    return at < table.size() ? table.c_str() + at : "";
  };
  ElfDynamic result;
  for (const Elf64_Dyn& entry : entries) {
    if (entry.d_tag == DT_NULL) break;
    if (entry.d_tag == DT_NEEDED) {
      result.needed.push_back(text(entry.d_un.d_val));
    } else if (entry.d_tag == DT_SONAME) {
      result.soname = text(entry.d_un.d_val);
    } else if (entry.d_tag == DT_RUNPATH || entry.d_tag == DT_RPATH) {
      result.runpath = SplitRunPath(text(entry.d_un.d_val), path);
    }
  }
  return result;
}

absl::StatusOr<ElfWalk> WalkElfNeeds(const std::string& path,
                                     const std::vector<std::string>& folders) {
  ElfWalk walk;
  std::set<std::string> seen;
  std::deque<std::string> open = {path};
  while (!open.empty()) {
    const std::string current = open.front();
    open.pop_front();
    absl::StatusOr<ElfDynamic> dynamic = ReadElfDynamic(current);
    if (!dynamic.ok()) return dynamic.status();
    for (const std::string& name : dynamic->needed) {
      if (IsRuntime(name) || !seen.insert(name).second) continue;
      std::vector<std::string> places = dynamic->runpath;
      places.insert(places.end(), folders.begin(), folders.end());
      const auto at = std::find_if(
          places.begin(), places.end(), [&name](const std::string& folder) {
            return access(absl::StrCat(folder, "/", name).c_str(), R_OK) == 0;
          });
      if (at == places.end()) {
        walk.missing.push_back({name, std::string(BaseName(current))});
      } else {
        walk.found.push_back(absl::StrCat(*at, "/", name));
        open.push_back(walk.found.back());
      }
    }
  }
  return walk;
}

}  // namespace cox
