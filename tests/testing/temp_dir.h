#ifndef COX_TESTS_TESTING_TEMP_DIR_H_
#define COX_TESTS_TESTING_TEMP_DIR_H_

#include <stdlib.h>

#include <filesystem>
#include <string>
#include <string_view>
#include <system_error>

#include "lib/base/fs.h"
#include "lib/base/status.h"

namespace cox::testing {

// A fresh folder, removed with its content at scope exit.
class TempDir {
 public:
  TempDir() {
    std::error_code error;
    std::string pattern =
        (std::filesystem::temp_directory_path(error) / "cox-test-XXXXXX")
            .string();
    COX_CHECK(mkdtemp(pattern.data()) != nullptr);
    path_ = pattern;
  }
  ~TempDir() {
    std::error_code error;
    std::filesystem::remove_all(path_, error);
  }
  TempDir(const TempDir&) = delete;
  TempDir& operator=(const TempDir&) = delete;

  const std::string& path() const { return path_; }
  std::string Join(std::string_view name) const {
    return JoinPath(path_, name);
  }

 private:
  std::string path_;
};

}  // namespace cox::testing

#endif  // COX_TESTS_TESTING_TEMP_DIR_H_
