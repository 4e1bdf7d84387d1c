#include "cli/exec_sibling.h"

#include <unistd.h>

#include <cstdio>

#include "lib/base/fs.h"
#include "lib/base/process.h"

namespace cox {

int ExecSibling(const std::string& binary,
                const std::vector<std::string>& arguments) {
  const std::string path = JoinPath(ExecutableDir(), binary);
  std::vector<std::string> words = arguments;
  words.insert(words.begin(), path);
  std::vector<char*> pointers;
  for (std::string& word : words) {
    pointers.push_back(word.data());
  }
  pointers.push_back(nullptr);
  execv(path.c_str(), pointers.data());
  std::fprintf(stderr, "cox: cannot start %s; it is built only with LibTorch\n",
               path.c_str());
  return kExitUsage;
}

}  // namespace cox
