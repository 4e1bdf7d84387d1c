#include "cli/kubectl.h"

#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>

namespace cox {

std::string KubectlName() {
  const char* other = std::getenv("COX_KUBECTL");
  return other == nullptr ? "kubectl" : other;
}

int RunKubectl(const std::vector<std::string>& arguments,
               const std::string& input, std::string* output) {
  int in[2];
  int out[2] = {-1, -1};
  if (pipe(in) != 0 || (output != nullptr && pipe(out) != 0)) return 127;
  const std::string program = KubectlName();
  std::vector<char*> argv;
  argv.push_back(const_cast<char*>(program.c_str()));
  for (const std::string& argument : arguments) {
    argv.push_back(const_cast<char*>(argument.c_str()));
  }
  argv.push_back(nullptr);
  const pid_t child = fork();
  if (child == 0) {
    dup2(in[0], STDIN_FILENO);
    if (output != nullptr) dup2(out[1], STDOUT_FILENO);
    for (const int fd : {in[0], in[1], out[0], out[1]}) {
      if (fd > 2) close(fd);
    }
    execvp(program.c_str(), argv.data());
    _exit(127);
  }
  close(in[0]);
  if (output != nullptr) close(out[1]);
  if (child < 0) return 127;
  // kubectl reads all of its input before it answers.
  for (size_t done = 0; done < input.size();) {
    const ssize_t n = write(in[1], input.data() + done, input.size() - done);
    if (n <= 0) break;
    done += static_cast<size_t>(n);
  }
  close(in[1]);
  if (output != nullptr) {
    char buffer[4096];
    ssize_t n = 0;
    while ((n = read(out[0], buffer, sizeof buffer)) > 0) {
      output->append(buffer, static_cast<size_t>(n));
    }
    close(out[0]);
  }
  int status = 0;
  waitpid(child, &status, 0);
  return WIFEXITED(status) ? WEXITSTATUS(status) : 127;
}

bool ClusterAnswers() {
  std::string output;
  return RunKubectl({"version", "--request-timeout=5s", "-o", "json"}, "",
                    &output) == 0;
}

}  // namespace cox
