// `cox bench score`: sequences per second through a scalar head.

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "CLI/CLI.hpp"
#include "absl/strings/str_cat.h"
#include "cli/bench_model.h"
#include "cli/bench_score_service.h"
#include "lib/base/fs.h"
#include "lib/model/api.h"
#include "nlohmann/json.hpp"

namespace cox {
namespace {

using Documents = std::vector<std::vector<int32_t>>;

struct ScoreFlags {
  BenchModelFlags model;
  std::string docs;
  int64_t num = 64;
  int64_t doc_tokens = 128;
  int64_t batch = 16;
  std::string through = "inproc";
  std::string dump;
};

// Scores of one batch.
using ScoreBatch =
    std::function<absl::StatusOr<std::vector<float>>(const Documents& docs)>;

absl::StatusOr<std::vector<float>> ScoreInProcess(ScoreEngine& engine,
                                                  const Documents& docs) {
  TokenBatch tokens;
  tokens.batch = static_cast<int64_t>(docs.size());
  for (const std::vector<int32_t>& doc : docs) {
    tokens.length = std::max(tokens.length, static_cast<int64_t>(doc.size()));
  }
  for (const std::vector<int32_t>& doc : docs) {
    const size_t begin = tokens.ids.size();
    tokens.ids.insert(tokens.ids.end(), doc.begin(), doc.end());
    tokens.ids.resize(begin + static_cast<size_t>(tokens.length));
    tokens.lengths.push_back(static_cast<int32_t>(doc.size()));
  }
  tokens.scored.assign(tokens.ids.size(), 0);
  return engine.Scores(tokens);
}

absl::StatusOr<std::vector<float>> ScoreAll(const ScoreBatch& score,
                                            const Documents& docs,
                                            size_t batch) {
  std::vector<float> scores;
  for (size_t first = 0; first < docs.size(); first += batch) {
    const auto at = [&](size_t d) {
      return docs.begin() + static_cast<std::ptrdiff_t>(d);
    };
    const size_t end = std::min(docs.size(), first + batch);
    COX_ASSIGN_OR_RETURN(const std::vector<float> part,
                         score(Documents(at(first), at(end))));
    scores.insert(scores.end(), part.begin(), part.end());
  }
  return scores;
}

// `through`: inproc or grpc.
absl::StatusOr<ScoreBatch> MakeScorer(
    const std::string& through, const EngineOptions& options,
    const std::shared_ptr<const Snapshot>& snapshot) {
  if (through == "grpc") {
    COX_ASSIGN_OR_RETURN(std::shared_ptr<BenchScoreService> service,
                         StartBenchScoreService(options, snapshot));
    return ScoreBatch(
        [service](const Documents& docs) { return service->Score(docs); });
  }
  COX_ASSIGN_OR_RETURN(std::shared_ptr<ScoreEngine> engine,
                       MakeScoreEngine(options));
  COX_RETURN_IF_ERROR(engine->Load(snapshot));
  return ScoreBatch([engine](const Documents& docs) {
    return ScoreInProcess(*engine, docs);
  });
}

absl::Status Measure(const ScoreFlags& flags, BenchReport& report, bool* ok) {
  const BenchFlags& common = flags.model.common;
  const EngineOptions options =
      BenchEngineOptions(flags.model, BenchThreads(common));
  COX_ASSIGN_OR_RETURN(const BenchModel model,
                       LoadBenchModel(flags.model, HeadKind::kScalar));
  Documents docs =
      RandomIds(flags.num, flags.doc_tokens, model.config.vocab_size);
  if (!flags.docs.empty()) {
    COX_ASSIGN_OR_RETURN(docs, ReadIds(flags.docs, "ids"));
    docs.resize(std::min(docs.size(), static_cast<size_t>(flags.num)));
  }
  COX_ASSIGN_OR_RETURN(const ScoreBatch scorer,
                       MakeScorer(flags.through, options, model.snapshot));
  COX_ASSIGN_OR_RETURN(
      const MachineCeilings ceilings,
      MeasureCeilings(model.config, options, flags.batch * 32));
  double tokens = 0, pairs = 0;
  for (const auto& doc : docs) {
    const double n = static_cast<double>(doc.size());
    tokens += n;
    pairs += n * (n + 1) / 2;
  }
  const double least_s = ForwardWork(model.config, tokens, pairs).flop /
                         (1e9 * ceilings.gemm_gflop_s);
  std::vector<float> scores, before;
  std::vector<double> samples_s, tok_s, per_cpu_s, share;
  for (int run = -common.warmup; run < common.runs; ++run) {
    WaitIdle(run < 0 ? 0 : common.wait_idle_s);
    before = scores;
    const BenchMeter meter;
    COX_ASSIGN_OR_RETURN(
        scores, ScoreAll(scorer, docs, static_cast<size_t>(flags.batch)));
    const BenchUse use = meter.Stop();
    if (run < 0) continue;
    report.AddRun(use);
    samples_s.push_back(static_cast<double>(docs.size()) / use.wall_s);
    tok_s.push_back(tokens / use.wall_s);
    per_cpu_s.push_back(static_cast<double>(docs.size()) /
                        std::max(use.cpu_s, 1e-9));
    share.push_back(least_s / use.wall_s);
  }
  // Alone, each document scores the same; and twice the same.
  const size_t checked = std::min<size_t>(docs.size(), 8);
  COX_ASSIGN_OR_RETURN(
      const std::vector<float> alone,
      ScoreAll(scorer,
               Documents(docs.begin(),
                         docs.begin() + static_cast<std::ptrdiff_t>(checked)),
               1));
  double worst = 0, sum = 0;
  for (size_t d = 0; d < checked; ++d) {
    worst = std::max(worst, std::abs(double{alone[d]} - double{scores[d]}));
  }
  for (float score : scores) sum += double{score};
  const double bound = options.dtype == "fp32" ? 1e-4 : 2e-2;
  const bool same = before.empty() || before == scores;
  *ok = same && worst <= bound && std::isfinite(sum);
  report.Text("through", flags.through);
  report.Integer("params", model.config.ParameterCount());
  report.Integer("num_samples", static_cast<int64_t>(docs.size()));
  report.Number("real_tokens", tokens);
  report.Spread("samples_s", samples_s);
  report.Spread("tok_s", tok_s);
  report.Spread("samples_per_cpu_s", per_cpu_s);
  report.Number("score_sum", sum);
  report.Spread("ceiling_share", share);
  report.Text("roofline_formula",
              "flop = 2 (P + H) tokens + 4 layers heads head_dim (token, "
              "position) pairs; share = flop / gemm / wall_s");
  ReportCeilings(ceilings, report);
  report.Number("check_batching_max_abs", worst);
  report.Flag("check_same_scores", same);
  if (!*ok) {
    std::fprintf(stderr,
                 "cox bench score: self-check failed: repeats equal %d, alone "
                 "and in a batch differ by %g (bound %g)\n",
                 same, worst, bound);
  }
  if (flags.dump.empty()) return absl::OkStatus();
  return WriteFileDurably(Fs::Real(), flags.dump,
                          nlohmann::json(scores).dump() + "\n");
}

}  // namespace

int BenchScore(int argc, char** argv) {
  ScoreFlags flags;
  CLI::App app{"Sequences per second through a scalar head", "cox bench score"};
  AddBenchModelFlags(app, flags.model);
  app.add_option("--docs", flags.docs, "JSONL with ids; else random documents");
  app.add_option("--num", flags.num, "documents at most")
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 30));
  app.add_option("--doc-tokens", flags.doc_tokens, "length of random documents")
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 20));
  app.add_option("--batch", flags.batch)
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 20));
  app.add_option("--through", flags.through,
                 "grpc = a reward service of this process, over loopback")
      ->check(CLI::IsMember({"inproc", "grpc"}));
  app.add_option("--dump", flags.dump, "JSON list in the order of the input");
  int exit_code = 0;
  if (!StartModelBench(app, argc, argv, flags.model, &exit_code)) {
    return exit_code;
  }
  BenchReport report("score", flags.model.common);
  bool ok = false;
  const absl::Status measured = Measure(flags, report, &ok);
  if (!measured.ok()) return BenchFailed("score", measured);
  return report.Print(ok);
}

}  // namespace cox
