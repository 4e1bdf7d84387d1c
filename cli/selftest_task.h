#ifndef COX_CLI_SELFTEST_TASK_H_
#define COX_CLI_SELFTEST_TASK_H_

// Tasks small enough to enumerate every answer, and the closed-form optimum of
// KL-regularised reinforcement learning on them (docs/algorithms.md §5.1):
//   J(π) = E_π[r] − β KL(π‖ref);  π* ∝ ref exp(r/β);  J* = β log Σ ref
//   exp(r/β).

#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace cox {

struct EnumerableTask {
  std::string name;
  int64_t vocab = 0;  // token 0 ends an answer
  int64_t max_new_tokens = 0;
  double beta = 0;               // weight of the KL, reward per nat
  std::vector<int32_t> prompts;  // one token each
  // Every answer: ended by token 0, or max_new_tokens long. A prefix tree's
  // leaves, so the probabilities of a policy add up to 1.
  std::vector<std::vector<int32_t>> responses;
  std::vector<std::vector<double>> rewards;  // [prompt][response]
};

// Three answers of one token, one prompt.
EnumerableTask ThreeArmedBandit();
// Four tokens, answers of up to three: 40 of them, two prompts with different
// rewards, several best answers and near-misses.
EnumerableTask TinyLanguage();

// Per prompt [response]: log-probabilities of whole answers.
using ResponseLogprobs = std::vector<std::vector<double>>;

struct Objective {
  double reward = 0;   // E_π[r]
  double kl = 0;       // KL(π‖ref), nats
  double value = 0;    // reward − β kl
  double optimum = 0;  // J*
  double mass = 0;     // Σ π, the prompt furthest from 1; must be 1
};
// Means over the prompts, which are equally frequent.
Objective Evaluate(const EnumerableTask& task, const ResponseLogprobs& policy,
                   const ResponseLogprobs& reference);

// The table of reward.kind table (docs/ops-protocol.md §9).
std::string TableJson(const EnumerableTask& task);
// {"prompt_ids":[…]} per prompt.
std::string PromptsJsonl(const EnumerableTask& task);
// Every prompt with every response, {"prompt":[…],"response":[…]} per line.
std::string SequencesJsonl(const EnumerableTask& task);

}  // namespace cox

#endif  // COX_CLI_SELFTEST_TASK_H_
