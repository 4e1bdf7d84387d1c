#ifndef COX_TESTS_NCCL_FAKE_TREE_H_
#define COX_TESTS_NCCL_FAKE_TREE_H_

// Folders with shared libraries that hold nothing but their names and needs.

#include <elf.h>

#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "lib/base/fs.h"

namespace cox {

class FakeTree {
 public:
  explicit FakeTree(std::string root) : root_(std::move(root)) {}

  // A library below the root that needs `needed`.
  void Library(const std::string& path, const std::vector<std::string>& needed,
               const std::string& runpath = "") const {
    const std::string full = JoinPath(root_, path);
    COX_CHECK(Fs::Real().MakeDirs(full.substr(0, full.rfind('/'))).ok());
    COX_CHECK(WriteFileDurably(Fs::Real(), full, Elf(needed, runpath)).ok());
  }
  void Text(const std::string& path, const std::string& text) const {
    const std::string full = JoinPath(root_, path);
    COX_CHECK(Fs::Real().MakeDirs(full.substr(0, full.rfind('/'))).ok());
    COX_CHECK(WriteFileDurably(Fs::Real(), full, text).ok());
  }
  std::string Real(const std::string& path) const {
    char* real = realpath(JoinPath(root_, path).c_str(), nullptr);
    const std::string result = real == nullptr ? "" : real;
    std::free(real);
    return result;
  }

 private:
  // Header, two program headers, dynamic section, its strings. Addresses are
  // offsets plus kBase.
  static std::string Elf(const std::vector<std::string>& needed,
                         const std::string& runpath) {
    constexpr uint64_t kBase = 0x10000;
    std::string strings(1, '\0');
    const auto add = [&strings](const std::string& text) -> uint64_t {
      const uint64_t at = strings.size();
      strings += text;
      strings += '\0';
      return at;
    };
    std::vector<Elf64_Dyn> dynamic;
    const auto entry = [&dynamic](int64_t tag, uint64_t value) {
      Elf64_Dyn one = {};
      one.d_tag = tag;
      one.d_un.d_val = value;
      dynamic.push_back(one);
    };
    for (const std::string& name : needed) entry(DT_NEEDED, add(name));
    if (!runpath.empty()) entry(DT_RUNPATH, add(runpath));
    const uint64_t dynamic_at = sizeof(Elf64_Ehdr) + 2 * sizeof(Elf64_Phdr);
    const uint64_t strings_at =
        dynamic_at + (dynamic.size() + 3) * sizeof(Elf64_Dyn);
    entry(DT_STRTAB, kBase + strings_at);
    entry(DT_STRSZ, strings.size());
    entry(DT_NULL, 0);
    Elf64_Ehdr header = {};
    std::memcpy(header.e_ident, ELFMAG, SELFMAG);
    header.e_ident[EI_CLASS] = ELFCLASS64;
    header.e_ident[EI_DATA] = ELFDATA2LSB;
    header.e_type = ET_DYN;
    header.e_phoff = sizeof(header);
    header.e_phentsize = sizeof(Elf64_Phdr);
    header.e_phnum = 2;
    Elf64_Phdr segments[2] = {};
    segments[0].p_type = PT_LOAD;
    segments[0].p_vaddr = kBase;
    segments[0].p_filesz = strings_at + strings.size();
    segments[1].p_type = PT_DYNAMIC;
    segments[1].p_offset = dynamic_at;
    segments[1].p_filesz = dynamic.size() * sizeof(Elf64_Dyn);
    std::string bytes;
    const auto put = [&bytes](const void* data, size_t size) {
      bytes.append(static_cast<const char*>(data), size);
    };
    put(&header, sizeof(header));
    put(segments, sizeof(segments));
    put(dynamic.data(), dynamic.size() * sizeof(Elf64_Dyn));
    return bytes + strings;
  }

  const std::string root_;
};

}  // namespace cox

#endif  // COX_TESTS_NCCL_FAKE_TREE_H_
