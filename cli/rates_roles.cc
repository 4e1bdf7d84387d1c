#include "cli/rates_roles.h"

#include <algorithm>
#include <map>

#include "absl/strings/str_cat.h"
#include "cli/process_memory.h"
#include "learner/stage_service.h"
#include "lib/algo/sampling.h"
#include "lib/base/clock.h"
#include "lib/base/fs.h"
#include "lib/config/config.h"
#include "lib/data/chat_template.h"
#include "lib/engine/model_config.h"
#include "lib/model/api.h"
#include "lib/rpc/engine_settings.h"
#include "reward/sequence_batch.h"

namespace cox {
namespace {

using Json = nlohmann::json;

RatesUnit ReadUnit(const Json& json) {
  RatesUnit unit;
  unit.kind = json.value("kind", "");
  unit.scored = json.value("scored", false);
  unit.work.unit.stage = json.value("stage", 0);
  unit.work.unit.step = 1;
  unit.work.samples_per_prompt = json.value("samples", 1);
  for (const Json& prompt : json.value("prompts", Json::array())) {
    PromptInput& input = unit.work.prompts.emplace_back();
    input.prompt_id = unit.work.prompts.size();
    input.ids = prompt.value("ids", std::vector<int32_t>());
    input.instruction_ids =
        prompt.value("instruction_ids", std::vector<int32_t>());
  }
  unit.lengths = json.value("lengths", std::vector<int64_t>());
  return unit;
}

absl::StatusOr<std::shared_ptr<const Snapshot>> InitialPolicy(
    const RatesJob& job, const std::string& model) {
  StageContext context;
  context.config = job.config;
  context.vocab_size = job.vocab_size;
  context.eos_ids = job.eos_ids;
  context.pad_id = job.pad_id;
  context.fs = &Fs::Real();
  return StartingPolicy(context, {}, model);
}

// Median seconds of the first unit of each stage; the others run once, as
// memory grows with every shape that is new.
absl::StatusOr<Json> EachStage(
    const RatesJob& job,
    const std::function<absl::Status(const RatesUnit&)>& pass) {
  std::map<std::string, double> done;
  Json stages = Json::array();
  for (const RatesUnit& unit : job.units) {
    if (done.contains(unit.kind)) {
      COX_RETURN_IF_ERROR(pass(unit));
      continue;
    }
    COX_ASSIGN_OR_RETURN(done[unit.kind],
                         MedianSeconds([&] { return pass(unit); }));
    stages.push_back({{"kind", unit.kind}, {"unit_s", done[unit.kind]}});
  }
  return stages;
}

}  // namespace

absl::StatusOr<RatesJob> ReadRatesJob(const std::string& dir) {
  RatesJob job;
  job.dir = dir;
  LoadOptions load;
  load.path = JoinPath(dir, "config.yaml");
  load.check_files = false;
  COX_ASSIGN_OR_RETURN(job.config, LoadConfig(load));
  const std::string tokenizer = JoinPath(dir, "tokenizer.json");
  if (Fs::Real().Exists(tokenizer)) {
    COX_ASSIGN_OR_RETURN(job.tokenizer, Tokenizer::FromFile(tokenizer));
  }
  if (const auto text =
          Fs::Real().ReadAll(JoinPath(dir, "tokenizer_config.json"));
      text.ok()) {
    COX_ASSIGN_OR_RETURN(job.chat, ReadChatTemplate(*text));
  }
  COX_ASSIGN_OR_RETURN(const std::string text,
                       Fs::Real().ReadAll(JoinPath(dir, "rehearsal.json")));
  const Json json = Json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!json.is_object()) {
    return absl::InvalidArgumentError(
        absl::StrCat(dir, "/rehearsal.json: expected a JSON object"));
  }
  job.eos_ids = json.value("eos_ids", std::vector<int32_t>());
  job.pad_id = json.value("pad_id", 0);
  job.vocab_size = json.value("vocab_size", int64_t{0});
  for (const Json& stage : json.value("stages", Json::array())) {
    job.stages.push_back({stage.value("stage", 0), stage.value("kind", ""),
                          stage.value("steps", int64_t{1})});
  }
  for (const Json& unit : json.value("units", Json::array())) {
    job.units.push_back(ReadUnit(unit));
  }
  return job;
}

std::vector<int32_t> RatesAnswer(const RatesJob& job, int64_t length,
                                 size_t row) {
  std::vector<int32_t> ids;
  for (int64_t i = 0; i + 1 < length; ++i) {
    ids.push_back(static_cast<int32_t>(
        (static_cast<int64_t>(row) * 31 + i * 7919) % job.vocab_size));
  }
  ids.push_back(job.eos_ids.empty() ? 0 : job.eos_ids.front());
  return ids;
}

Json PeakMemory() {
  const ProcessMemory memory = OwnMemory();
  return {{"private_bytes", memory.peak_private},
          {"libraries_bytes", memory.libraries},
          {"program_bytes", memory.program}};
}

absl::StatusOr<double> MedianSeconds(
    const std::function<absl::Status()>& pass) {
  COX_RETURN_IF_ERROR(pass());
  std::vector<double> times;
  const MonoTime begin = Clock::Real().Now();
  while (times.size() < 3 || (times.size() < 50 &&
                              Clock::Real().Now() - begin < absl::Seconds(1))) {
    const MonoTime start = Clock::Real().Now();
    COX_RETURN_IF_ERROR(pass());
    times.push_back(absl::ToDoubleSeconds(Clock::Real().Now() - start));
  }
  std::sort(times.begin(), times.end());
  return times[times.size() / 2];
}

absl::StatusOr<Json> RehearseActor(const RatesJob& job) {
  // Without units a run gives it no weights.
  if (job.units.empty()) {
    return Json{{"stages", Json::array()}, {"memory", PeakMemory()}};
  }
  COX_ASSIGN_OR_RETURN(const std::unique_ptr<PolicyEngine> engine,
                       MakePolicyEngine(EngineOptionsOf(job.config)));
  UnitSampling sampling;
  sampling.seed = job.config.seed();
  sampling.max_new_tokens = job.config.generation().max_new_tokens();
  sampling.pad_id = job.pad_id;
  sampling.sampling.temperature = job.config.generation().temperature();
  sampling.sampling.eos_ids.assign(job.eos_ids.begin(), job.eos_ids.end());
  // The version that is held, and the one before.
  COX_ASSIGN_OR_RETURN(std::shared_ptr<const Snapshot> held,
                       InitialPolicy(job, "policy"));
  COX_RETURN_IF_ERROR(engine->Load(held));
  COX_ASSIGN_OR_RETURN(const std::shared_ptr<const Snapshot> newer,
                       InitialPolicy(job, "policy"));
  COX_RETURN_IF_ERROR(engine->Load(newer));
  Json out;
  COX_ASSIGN_OR_RETURN(
      out["stages"], EachStage(job, [&](const RatesUnit& unit) {
        GenerateRequest request = MakeGenerateRequest(unit.work, sampling);
        request.lengths = unit.lengths;
        return engine->Generate(request).status();
      }));
  out["memory"] = PeakMemory();
  return out;
}

absl::StatusOr<Json> RehearseReward(const RatesJob& job) {
  if (std::none_of(job.units.begin(), job.units.end(),
                   [](const RatesUnit& unit) { return unit.scored; })) {
    return Json{{"stages", Json::array()}, {"memory", PeakMemory()}};
  }
  const EngineOptions options = EngineOptionsOf(job.config);
  COX_ASSIGN_OR_RETURN(const std::unique_ptr<ScoreEngine> reference,
                       MakeScoreEngine(options));
  COX_ASSIGN_OR_RETURN(const std::shared_ptr<const Snapshot> policy,
                       InitialPolicy(job, "reference"));
  COX_RETURN_IF_ERROR(reference->Load(policy));
  std::unique_ptr<ScoreEngine> reward;
  std::shared_ptr<const Snapshot> model;
  if (job.config.reward().kind() == "rm") {
    COX_ASSIGN_OR_RETURN(reward, MakeScoreEngine(options));
    COX_ASSIGN_OR_RETURN(model, WithHead(*policy, HeadKind::kScalar, "reward",
                                         job.config.seed()));
    COX_RETURN_IF_ERROR(reward->Load(model));
  }
  Json out;
  COX_ASSIGN_OR_RETURN(
      out["stages"], EachStage(job, [&](const RatesUnit& unit) -> absl::Status {
        if (!unit.scored) return absl::OkStatus();
        std::vector<ScoreInput> inputs;
        for (size_t row = 0; row < unit.lengths.size(); ++row) {
          const PromptInput& prompt =
              unit.work.prompts[row / static_cast<size_t>(
                                          unit.work.samples_per_prompt)];
          inputs.push_back({prompt.ids,
                            RatesAnswer(job, unit.lengths[row], row),
                            prompt.instruction_ids, "", ""});
        }
        COX_RETURN_IF_ERROR(
            ReferenceLogprobs(reference.get(), inputs,
                              job.config.generation().temperature())
                .status());
        if (reward == nullptr) return absl::OkStatus();
        COX_ASSIGN_OR_RETURN(const TokenBatch batch, MakeSequenceBatch(inputs));
        return reward->Scores(batch).status();
      }));
  out["memory"] = PeakMemory();
  return out;
}

}  // namespace cox
