// `cox bench generate`: tokens per second of cached decoding.

#include <algorithm>
#include <cstdio>
#include <string>
#include <vector>

#include "CLI/CLI.hpp"
#include "absl/strings/str_cat.h"
#include "cli/bench_model.h"
#include "lib/base/fs.h"
#include "lib/model/api.h"
#include "lib/model/measure.h"
#include "nlohmann/json.hpp"

namespace cox {
namespace {

constexpr char kFormula[] =
    "decode step of N rows, A attended positions: flop = 2 (P + H) N + 4 "
    "layers heads head_dim A; bytes = P w + H h + 2 layers kv_heads head_dim "
    "c A; roofline_s = sum over steps of max(flop / gemm, bytes / read)";

struct GenerateFlags {
  BenchModelFlags model;
  std::string prompts;
  int64_t num_prompts = 16;
  int64_t prompt_tokens = 32;  // of random prompts
  int64_t batch = 16;
  int64_t new_tokens = 64;
  std::string lengths;
  int64_t samples = 1;
  SamplingOptions sampling;
  int64_t eos_id = -1;
  bool record_logprobs = true;
  std::string dump;
  int64_t check_rows = 16;
};

// One repeat: all rows, `batch` at a time.
struct Wave {
  GenerateRequest request;
  GenerateResult result;
};
struct Repeat {
  std::vector<Wave> waves;
  double wall_s = 0;
  double prefill_s = 0;  // until each wave's first token, summed
};

absl::StatusOr<std::vector<Wave>> MakeWaves(const GenerateFlags& flags,
                                            const ModelConfig& config) {
  std::vector<std::vector<int32_t>> prompts;
  if (flags.prompts.empty()) {
    prompts =
        RandomIds(flags.num_prompts, flags.prompt_tokens, config.vocab_size);
  } else {
    COX_ASSIGN_OR_RETURN(prompts, ReadIds(flags.prompts, "prompt_ids"));
    if (static_cast<int64_t>(prompts.size()) < flags.num_prompts) {
      return absl::InvalidArgumentError(
          absl::StrCat(flags.prompts, ": expected ", flags.num_prompts,
                       " prompts, found ", prompts.size()));
    }
    prompts.resize(static_cast<size_t>(flags.num_prompts));
  }
  std::vector<int64_t> lengths;
  if (!flags.lengths.empty()) {
    COX_ASSIGN_OR_RETURN(lengths, ReadIntegers(flags.lengths));
  }
  std::vector<int64_t> eos(config.eos_ids.begin(), config.eos_ids.end());
  if (flags.eos_id >= 0) eos = {flags.eos_id};
  const int64_t rows = flags.num_prompts * flags.samples;
  if (!lengths.empty() && static_cast<int64_t>(lengths.size()) < rows) {
    return absl::InvalidArgumentError(absl::StrCat(flags.lengths, ": expected ",
                                                   rows, " lengths, found ",
                                                   lengths.size()));
  }
  std::vector<Wave> waves;
  for (int64_t row = 0; row < rows; ++row) {
    if (row % flags.batch == 0) {
      GenerateRequest& request = waves.emplace_back().request;
      request.sampling = flags.sampling;
      request.max_new_tokens = lengths.empty() ? flags.new_tokens : 1;
      if (lengths.empty()) {
        request.sampling.forbid_ids = eos;
      } else {
        request.sampling.eos_ids = eos;
      }
    }
    GenerateRequest& request = waves.back().request;
    request.prompts.push_back(
        prompts[static_cast<size_t>(row / flags.samples)]);
    request.prompt_ids.push_back(static_cast<uint64_t>(row / flags.samples));
    request.sample_indices.push_back(
        static_cast<uint64_t>(row % flags.samples));
    if (!lengths.empty()) {
      request.lengths.push_back(lengths[static_cast<size_t>(row)]);
      request.max_new_tokens =
          std::max(request.max_new_tokens, request.lengths.back());
    }
  }
  return waves;
}

absl::StatusOr<Repeat> RunOnce(PolicyEngine& engine, std::vector<Wave> waves,
                               uint64_t seed) {
  Repeat repeat;
  repeat.waves = std::move(waves);
  const double start = BenchSeconds();
  for (Wave& wave : repeat.waves) {
    wave.request.seed = seed;
    const double wave_start = BenchSeconds();
    double first = 0;
    wave.request.on_token = [&first](int64_t, int32_t) {
      if (first == 0) first = BenchSeconds();
    };
    COX_ASSIGN_OR_RETURN(wave.result, engine.Generate(wave.request));
    wave.request.on_token = nullptr;
    repeat.prefill_s += first - wave_start;
  }
  repeat.wall_s = BenchSeconds() - start;
  return repeat;
}

int64_t TokensOf(const Wave& wave) {
  int64_t tokens = 0;
  for (const auto& row : wave.result.tokens) {
    tokens += static_cast<int64_t>(row.size());
  }
  return tokens;
}

int64_t LongestOf(const Wave& wave) {
  size_t longest = 0;
  for (const auto& row : wave.result.tokens) {
    longest = std::max(longest, row.size());
  }
  return static_cast<int64_t>(longest);
}

// Least seconds of the wave's decode steps after prefill, and their work.
double RooflineOf(const Wave& wave, const ModelConfig& config,
                  const EngineOptions& options, const MachineCeilings& ceilings,
                  BenchWork* total) {
  double seconds = 0;
  for (int64_t t = 1; t < LongestOf(wave); ++t) {
    double rows = 0, pairs = 0;
    for (size_t r = 0; r < wave.result.tokens.size(); ++r) {
      if (static_cast<int64_t>(wave.result.tokens[r].size()) <= t) continue;
      ++rows;
      pairs += static_cast<double>(wave.request.prompts[r].size()) +
               static_cast<double>(t);
    }
    const BenchWork work = DecodeWork(config, options, rows, pairs);
    total->Add(work);
    seconds += ceilings.Seconds(work);
  }
  return seconds;
}

absl::Status Dump(const GenerateFlags& flags, const Repeat& repeat) {
  std::string text;
  for (const Wave& wave : repeat.waves) {
    for (size_t r = 0; r < wave.result.tokens.size(); ++r) {
      nlohmann::ordered_json line;
      line["prompt_ids"] = wave.request.prompts[r];
      line["response_ids"] = wave.result.tokens[r];
      if (flags.record_logprobs) line["logprobs"] = wave.result.logprobs[r];
      text += line.dump() + "\n";
    }
  }
  return WriteFileDurably(Fs::Real(), flags.dump, text);
}

// Same seed, same tokens; log-probs as one training pass gives them; lengths
// as scheduled.
absl::StatusOr<bool> SelfCheck(const GenerateFlags& flags,
                               const BenchModel& model, PolicyEngine& engine,
                               const EngineOptions& options, const Repeat& last,
                               BenchReport& report) {
  const Wave& wave = last.waves.front();
  COX_ASSIGN_OR_RETURN(const GenerateResult again,
                       engine.Generate(wave.request));
  const bool repeats = again.tokens == wave.result.tokens &&
                       again.logprobs == wave.result.logprobs;
  bool lengths = true;
  for (const Wave& w : last.waves) {
    for (size_t r = 0; r < w.result.tokens.size(); ++r) {
      const int64_t expected =
          w.request.lengths.empty() ? flags.new_tokens : w.request.lengths[r];
      lengths &= static_cast<int64_t>(w.result.tokens[r].size()) == expected;
    }
  }
  GenerateRequest request = wave.request;
  GenerateResult result = wave.result;
  const size_t rows =
      std::min(request.prompts.size(), static_cast<size_t>(flags.check_rows));
  request.prompts.resize(rows);
  request.prompt_ids.resize(rows);
  request.sample_indices.resize(rows);
  if (!request.lengths.empty()) request.lengths.resize(rows);
  COX_ASSIGN_OR_RETURN(const LogprobCheck check,
                       CheckLogprobs(options, model.snapshot, request, result));
  const double bound = options.dtype == "fp32" ? 1e-4 : 2e-2;
  const bool near = check.max_abs <= bound &&
                    check.removed <= (check.tokens + check.removed) / 100;
  report.Flag("check_same_seed_same_tokens", repeats);
  report.Flag("check_lengths", lengths);
  report.Number("check_logprob_max_abs", check.max_abs);
  report.Number("check_logprob_bound", bound);
  report.Integer("check_logprob_tokens", check.tokens);
  if (!repeats || !lengths || !near) {
    std::fprintf(stderr,
                 "cox bench generate: self-check failed: same tokens %d, "
                 "lengths %d, log-probs differ by %g (bound %g), %lld of %lld "
                 "tokens truncated away\n",
                 repeats, lengths, check.max_abs, bound,
                 static_cast<long long>(check.removed),
                 static_cast<long long>(check.tokens + check.removed));
  }
  return repeats && lengths && near;
}

// Rates over the runs.
struct Rates {
  std::vector<double> prefill_s, prefill_tok_s, decode_tok_s, new_tok_s,
      per_cpu_s, occupancy, share;
};

void AddRates(const GenerateFlags& flags, const Repeat& repeat,
              const BenchUse& use, double roofline_s, Rates* out) {
  double new_tokens = 0, prompt_tokens = 0, rows = 0, slots = 0;
  for (const Wave& wave : repeat.waves) {
    new_tokens += static_cast<double>(TokensOf(wave));
    rows += static_cast<double>(wave.result.tokens.size());
    slots += static_cast<double>(flags.batch * LongestOf(wave));
    for (const auto& prompt : wave.request.prompts) {
      prompt_tokens += static_cast<double>(prompt.size());
    }
  }
  const double decode_s = repeat.wall_s - repeat.prefill_s;
  out->prefill_s.push_back(repeat.prefill_s);
  out->prefill_tok_s.push_back(prompt_tokens / repeat.prefill_s);
  out->decode_tok_s.push_back((new_tokens - rows) / decode_s);
  out->new_tok_s.push_back(new_tokens / repeat.wall_s);
  out->per_cpu_s.push_back(new_tokens / std::max(use.cpu_s, 1e-9));
  out->occupancy.push_back(new_tokens / slots);
  out->share.push_back(roofline_s / decode_s);
}

absl::Status Measure(const GenerateFlags& flags, BenchReport& report,
                     bool* ok) {
  const EngineOptions options =
      BenchEngineOptions(flags.model, BenchThreads(flags.model.common));
  COX_ASSIGN_OR_RETURN(const BenchModel model,
                       LoadBenchModel(flags.model, HeadKind::kLanguageModel));
  COX_ASSIGN_OR_RETURN(std::vector<Wave> waves, MakeWaves(flags, model.config));
  COX_ASSIGN_OR_RETURN(auto engine, MakePolicyEngine(options));
  COX_RETURN_IF_ERROR(engine->Load(model.snapshot));
  COX_ASSIGN_OR_RETURN(const MachineCeilings ceilings,
                       MeasureCeilings(model.config, options, flags.batch));
  Repeat last;
  Rates rates;
  BenchWork work;
  double roofline_s = 0;
  const BenchFlags& common = flags.model.common;
  for (int run = -common.warmup; run < common.runs; ++run) {
    WaitIdle(run < 0 ? 0 : common.wait_idle_s);
    const BenchMeter meter;
    COX_ASSIGN_OR_RETURN(
        last, RunOnce(*engine, waves,
                      common.seed + static_cast<uint64_t>(std::max(run, 0))));
    const BenchUse use = meter.Stop();
    if (run < 0) continue;
    report.AddRun(use);
    work = BenchWork();
    roofline_s = 0;
    for (const Wave& wave : last.waves) {
      roofline_s += RooflineOf(wave, model.config, options, ceilings, &work);
    }
    AddRates(flags, last, use, roofline_s, &rates);
  }
  int64_t prompt_tokens = 0, new_tokens = 0;
  for (const Wave& wave : last.waves) {
    new_tokens += TokensOf(wave);
    for (const auto& p : wave.request.prompts) {
      prompt_tokens += static_cast<int64_t>(p.size());
    }
  }
  report.Integer("params", model.config.ParameterCount());
  report.Integer("batch", flags.batch);
  report.Integer("num_prompts", flags.num_prompts);
  report.Integer("prompt_tokens", prompt_tokens);
  report.Integer("new_tokens", new_tokens);
  report.Text("lengths", flags.lengths.empty() ? "fixed" : "scheduled");
  report.Spread("prefill_s", rates.prefill_s);
  report.Spread("prefill_tok_s", rates.prefill_tok_s);
  report.Spread("decode_tok_s", rates.decode_tok_s);
  report.Spread("new_tok_s", rates.new_tok_s);
  report.Spread("new_tok_per_cpu_s", rates.per_cpu_s);
  report.Spread("slot_occupancy", rates.occupancy);
  report.Spread("ceiling_share", rates.share);
  report.Text("roofline_formula", kFormula);
  report.Number("roofline_flop", work.flop);
  report.Number("roofline_bytes", work.bytes);
  report.Number("roofline_s", roofline_s);
  ReportCeilings(ceilings, report);
  COX_ASSIGN_OR_RETURN(*ok,
                       SelfCheck(flags, model, *engine, options, last, report));
  return flags.dump.empty() ? absl::OkStatus() : Dump(flags, last);
}

}  // namespace

int BenchGenerate(int argc, char** argv) {
  GenerateFlags flags;
  CLI::App app{"Tokens per second of cached decoding", "cox bench generate"};
  AddBenchModelFlags(app, flags.model);
  const auto positive = CLI::Range(int64_t{1}, int64_t{1} << 30);
  app.add_option("--prompts", flags.prompts,
                 "JSONL with prompt_ids; else random prompts");
  app.add_option("--num-prompts", flags.num_prompts)->check(positive);
  app.add_option("--prompt-tokens", flags.prompt_tokens,
                 "length of random prompts")
      ->check(positive);
  app.add_option("--batch", flags.batch, "rows decoded together")
      ->check(positive);
  app.add_option("--new-tokens", flags.new_tokens, "per row; EOS banned")
      ->check(positive);
  app.add_option("--lengths", flags.lengths,
                 "file of integers: row i ends with EOS as its lengths[i]-th "
                 "token and never before");
  app.add_option("--samples-per-prompt", flags.samples)->check(positive);
  app.add_option("--temperature", flags.sampling.temperature);
  app.add_option("--top-p", flags.sampling.top_p);
  app.add_option("--top-k", flags.sampling.top_k);
  app.add_option("--min-p", flags.sampling.min_p);
  app.add_option("--eos-id", flags.eos_id, "instead of the model's");
  app.add_option("--record-logprobs", flags.record_logprobs, "in the dump");
  app.add_option("--dump", flags.dump,
                 "JSONL of prompt_ids, response_ids, logprobs");
  app.add_option("--check-rows", flags.check_rows,
                 "rows whose log-probs are recomputed")
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 20));
  int exit_code = 0;
  if (!StartModelBench(app, argc, argv, flags.model, &exit_code)) {
    return exit_code;
  }
  BenchReport report("generate", flags.model.common);
  bool ok = false;
  const absl::Status measured = Measure(flags, report, &ok);
  if (!measured.ok()) return BenchFailed("generate", measured);
  return report.Print(ok);
}

}  // namespace cox
