#include "coordinator/monitor_service.h"

#include <algorithm>
#include <utility>

#include "coordinator/wire_service.h"

namespace cox {
namespace {

// Replies stay below the message limit; callers page on.
constexpr int kMaxRows = 2000;
constexpr int kMaxSamples = 256;

}  // namespace

grpc::ServerUnaryReactor* MonitorServiceImpl::Status(
    grpc::CallbackServerContext* context, const cox::v1::StatusRequest* request,
    cox::v1::StatusResponse* response) {
  return RunUnary(
      service_, context, request->caller(), "MonitorService.Status",
      [this, response](CoordinatorCore& core) -> absl::Status {
        const StatusView view = core.Status();
        response->set_run_id(service_.run->run_id);
        response->set_name(service_.run->config.name());
        response->set_epoch(core.epoch().value);
        response->set_generation(core.generation().value);
        response->set_state(view.state);
        for (const StageView& stage : view.stages) {
          cox::v1::StageStatus* out = response->add_stages();
          out->set_kind(std::string(StageKindName(stage.kind)));
          out->set_state(stage.state);
          out->set_step(stage.step);
          out->set_total_steps(stage.total_steps);
        }
        response->set_current_stage(view.current_stage);
        for (const SessionView& session : view.sessions) {
          cox::v1::SessionStatus* out = response->add_sessions();
          out->set_role(session.role);
          out->set_name(session.name);
          out->set_address(session.address);
          out->set_state(session.state);
          out->set_state_ms(session.state_ms);
          out->set_waiting_for(session.waiting_for);
          out->set_silent_ms(absl::ToInt64Milliseconds(session.silent));
          out->set_alive(session.alive);
          out->set_rss_bytes(session.rss_bytes);
        }
        response->set_units_pending(view.units_pending);
        response->set_units_leased(view.units_leased);
        response->set_units_submitted(view.units_submitted);
        response->set_uptime_s(
            absl::ToDoubleSeconds(Clock::Real().Now() - service_.start));
        FillMetrics(view.last_metrics, response->mutable_last_metrics());
        for (const auto& [role, replicas] : view.wanted) {
          (*response->mutable_wanted())[role] = replicas;
        }
        for (const UnitFailedRow& row : view.failed_units) {
          if (response->units_given_up_size() < kMaxRows) {
            response->add_units_given_up(
                absl::StrCat(row.id.ToString(), ": ", row.why));
          }
        }
        response->set_failure(view.failure);
        response->set_failure_exit_code(view.failure_exit_code);
        return absl::OkStatus();
      });
}

grpc::ServerUnaryReactor* MonitorServiceImpl::Metrics(
    grpc::CallbackServerContext* context,
    const cox::v1::MetricsRequest* request,
    cox::v1::MetricsResponse* response) {
  return RunUnary(
      service_, context, request->caller(), "MonitorService.Metrics",
      [request, response](CoordinatorCore& core) -> absl::Status {
        for (int32_t stage = 0; stage < core.plan().num_stages(); ++stage) {
          if (request->stage() >= 0 && request->stage() != stage) {
            continue;
          }
          const std::string kind(StageKindName(core.plan().stage(stage).kind));
          const auto add = [&](int64_t step, const MetricList& metrics) {
            if (step <= request->after_step() || metrics.empty() ||
                response->rows_size() >= kMaxRows) {
              return;
            }
            cox::v1::MetricsRow* out = response->add_rows();
            out->set_stage(stage);
            out->set_stage_kind(kind);
            out->set_step(step);
            FillMetrics(metrics, out->mutable_metrics());
          };
          for (const auto& [step, row] : core.Steps(stage)) {
            add(step, row.metrics);
          }
          // collect and eval have one row, of their outputs.
          auto done = core.stage_rows().find(stage);
          if (done != core.stage_rows().end() &&
              !done->second.metrics.empty()) {
            add(1, done->second.metrics);
          }
        }
        return absl::OkStatus();
      });
}

grpc::ServerUnaryReactor* MonitorServiceImpl::Samples(
    grpc::CallbackServerContext* context,
    const cox::v1::SamplesRequest* request,
    cox::v1::SamplesResponse* response) {
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  const absl::Status admitted =
      Admit(service_, *context, request->caller(), "MonitorService.Samples");
  if (!admitted.ok()) {
    reactor->Finish(ToGrpc(admitted));
    return reactor;
  }
  // Rows from the core thread, payloads on the I/O thread.
  const auto read = [this, reactor, request,
                     response](const std::vector<UnitRow>& units) {
    const int limit = std::clamp(request->limit(), 1, kMaxSamples);
    const absl::StatusOr<std::vector<SampleText>> samples =
        service_.outputs->ReadSamples(units, static_cast<size_t>(limit));
    if (samples.ok()) {
      for (const SampleText& sample : *samples) {
        cox::v1::Sample* out = response->add_samples();
        out->set_id(sample.id);
        out->set_prompt(sample.prompt);
        out->set_response(sample.response);
        out->set_reward(sample.reward);
        out->set_finish(sample.finish);
      }
    }
    reactor->Finish(ToGrpc(samples.status()));
  };
  const bool posted = service_.host->Post([this, reactor, request, read] {
    const CoordinatorCore& core = service_.host->core();
    if (const absl::Status kept =
            core.CheckPayloadsKept(request->stage(), request->step());
        !kept.ok()) {
      // For whoever only looks, nothing is lost.
      reactor->Finish(ToGrpc(absl::NotFoundError(kept.message())));
      return;
    }
    std::vector<UnitRow> units =
        core.UnitsOfStep(request->stage(), request->step());
    if (!service_.host->PostIo(
            [read, units = std::move(units)] { read(units); })) {
      reactor->Finish(ToGrpc(BusyError()));
    }
  });
  if (!posted) {
    reactor->Finish(ToGrpc(BusyError()));
  }
  return reactor;
}

grpc::ServerUnaryReactor* MonitorServiceImpl::Events(
    grpc::CallbackServerContext* context, const cox::v1::EventsRequest* request,
    cox::v1::EventsResponse* response) {
  return RunUnary(service_, context, request->caller(), "MonitorService.Events",
                  [request, response](CoordinatorCore& core) -> absl::Status {
                    const int limit = std::clamp(request->limit(), 1, kMaxRows);
                    for (const EventRow& row : core.events()) {
                      if (row.number <= request->after()) {
                        continue;
                      }
                      if (response->events_size() == limit) {
                        break;
                      }
                      cox::v1::Event* out = response->add_events();
                      out->set_number(row.number);
                      out->set_wall_time_s(row.wall_time_s);
                      out->set_kind(row.kind);
                      out->set_text(row.text);
                    }
                    return absl::OkStatus();
                  });
}

grpc::ServerUnaryReactor* MonitorServiceImpl::Stuck(
    grpc::CallbackServerContext* context, const cox::v1::StuckRequest* request,
    cox::v1::StuckResponse* response) {
  return RunUnary(service_, context, request->caller(), "MonitorService.Stuck",
                  [response](CoordinatorCore& core) -> absl::Status {
                    for (const WaitView& wait : core.Waits()) {
                      if (response->waits_size() >= kMaxRows) {
                        break;
                      }
                      cox::v1::Wait* out = response->add_waits();
                      out->set_who(wait.who);
                      out->set_whom(wait.whom);
                      out->set_what(wait.what);
                      out->set_since_ms(absl::ToInt64Milliseconds(wait.since));
                    }
                    return absl::OkStatus();
                  });
}

}  // namespace cox
