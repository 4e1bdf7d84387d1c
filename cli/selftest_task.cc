#include "cli/selftest_task.h"

#include <algorithm>
#include <cmath>

#include "nlohmann/json.hpp"

namespace cox {
namespace {

using Json = nlohmann::json;

// Depth first, so that the order is that of the ids.
void Extend(int64_t vocab, int64_t max_new_tokens, std::vector<int32_t>& prefix,
            std::vector<std::vector<int32_t>>& out) {
  for (int32_t token = 0; token < vocab; ++token) {
    prefix.push_back(token);
    if (token == 0 || static_cast<int64_t>(prefix.size()) == max_new_tokens) {
      out.push_back(prefix);
    } else {
      Extend(vocab, max_new_tokens, prefix, out);
    }
    prefix.pop_back();
  }
}

EnumerableTask MakeTask(std::string name, int64_t vocab, int64_t max_new_tokens,
                        double beta, std::vector<int32_t> prompts) {
  EnumerableTask task;
  task.name = std::move(name);
  task.vocab = vocab;
  task.max_new_tokens = max_new_tokens;
  task.beta = beta;
  task.prompts = std::move(prompts);
  std::vector<int32_t> prefix;
  Extend(vocab, max_new_tokens, prefix, task.responses);
  return task;
}

}  // namespace

EnumerableTask ThreeArmedBandit() {
  EnumerableTask task = MakeTask("bandit", 3, 1, 0.3, {1});
  task.rewards = {{0.1, 0.5, 1.0}};
  return task;
}

EnumerableTask TinyLanguage() {
  EnumerableTask task = MakeTask("language", 4, 3, 0.2, {1, 2});
  for (const int64_t prompt : task.prompts) {
    std::vector<double>& row = task.rewards.emplace_back();
    for (int64_t i = 0; i < static_cast<int64_t>(task.responses.size()); ++i) {
      // Any fixed table would do: eleven levels without a pattern by token.
      row.push_back(
          static_cast<double>((7 * i * (prompt + 1) + 3 * i * i) % 11) / 10);
    }
  }
  return task;
}

Objective Evaluate(const EnumerableTask& task, const ResponseLogprobs& policy,
                   const ResponseLogprobs& reference) {
  Objective out;
  out.mass = 1;
  const double share = 1.0 / static_cast<double>(task.prompts.size());
  for (size_t p = 0; p < task.prompts.size(); ++p) {
    double mass = 0;
    double partition = 0;
    for (size_t i = 0; i < task.responses.size(); ++i) {
      const double probability = std::exp(policy[p][i]);
      const double reward = task.rewards[p][i];
      mass += probability;
      out.reward += share * probability * reward;
      out.kl += share * probability * (policy[p][i] - reference[p][i]);
      partition += std::exp(reference[p][i] + reward / task.beta);
    }
    out.optimum += share * task.beta * std::log(partition);
    if (std::abs(mass - 1) > std::abs(out.mass - 1)) out.mass = mass;
  }
  out.value = out.reward - task.beta * out.kl;
  return out;
}

std::string TableJson(const EnumerableTask& task) {
  Json entries = Json::array();
  for (size_t p = 0; p < task.prompts.size(); ++p) {
    for (size_t i = 0; i < task.responses.size(); ++i) {
      entries.push_back({{"prompt", {task.prompts[p]}},
                         {"response", task.responses[i]},
                         {"reward", task.rewards[p][i]}});
    }
  }
  // An answer outside the table would be excluded and counted.
  return Json{{"default", nullptr}, {"entries", std::move(entries)}}.dump();
}

std::string PromptsJsonl(const EnumerableTask& task) {
  std::string text;
  for (const int32_t prompt : task.prompts) {
    text += Json{{"prompt_ids", {prompt}}}.dump() + "\n";
  }
  return text;
}

std::string SequencesJsonl(const EnumerableTask& task) {
  std::string text;
  for (const int32_t prompt : task.prompts) {
    for (const std::vector<int32_t>& response : task.responses) {
      text += Json{{"prompt", {prompt}}, {"response", response}}.dump() + "\n";
    }
  }
  return text;
}

}  // namespace cox
