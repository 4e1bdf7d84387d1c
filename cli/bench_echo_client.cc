#include "cli/bench_echo_client.h"

#include <atomic>
#include <chrono>
#include <memory>
#include <string>
#include <utility>

#include "bench/echo.grpc.pb.h"
#include "grpcpp/client_context.h"
#include "lib/base/clock.h"
#include "lib/base/sync.h"
#include "lib/rpc/channel.h"
#include "lib/rpc/server.h"
#include "lib/rpc/status_convert.h"

namespace cox {
namespace {

using cox::bench::v1::Echo;
using cox::bench::v1::Message;

class EchoService : public Echo::CallbackService {
 public:
  grpc::ServerUnaryReactor* Unary(grpc::CallbackServerContext* context,
                                  const Message* request,
                                  Message* response) override {
    *response = *request;
    grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
    reactor->Finish(grpc::Status::OK);
    return reactor;
  }

  grpc::ServerBidiReactor<Message, Message>* Stream(
      grpc::CallbackServerContext*) override {
    class Reactor : public grpc::ServerBidiReactor<Message, Message> {
     public:
      Reactor() { StartRead(&message_); }
      void OnReadDone(bool ok) override {
        if (ok) {
          StartWrite(&message_);
        } else {
          Finish(grpc::Status::OK);
        }
      }
      void OnWriteDone(bool ok) override {
        if (ok) StartRead(&message_);
      }
      void OnDone() override { delete this; }

     private:
      Message message_;
    };
    return new Reactor();
  }
};

// What all slots share. Each slot has one message under way.
struct EchoState {
  std::string payload;
  MonoTime end;
  std::atomic<uint64_t> next{0};
  Mutex mutex;
  CondVar idle;
  int open ABSL_GUARDED_BY(mutex) = 0;
  EchoResult result ABSL_GUARDED_BY(mutex);
  absl::Status failed ABSL_GUARDED_BY(mutex);

  bool Over() const { return Clock::Real().Now() >= end; }
  void Answered(const Message& sent, const Message& answer, MonoTime start) {
    const double us = absl::ToDoubleMicroseconds(Clock::Real().Now() - start);
    const bool same = sent.number() == answer.number() &&
                      answer.payload().size() == payload.size();
    MutexLock lock(&mutex);
    ++result.messages;
    result.rtt_us.push_back(us);
    result.damaged += same ? 0 : 1;
  }
  void Close(const grpc::Status& status) {
    MutexLock lock(&mutex);
    if (!status.ok()) failed.Update(FromGrpc(status));
    if (--open == 0) idle.NotifyAll();
  }
};

void SetDeadline(grpc::ClientContext& context) {
  context.set_deadline(std::chrono::system_clock::now() +
                       std::chrono::hours(1));
}

void SendUnary(EchoState* state, Echo::Stub* stub) {
  struct Call {
    grpc::ClientContext context;
    Message request;
    Message response;
  };
  auto call = std::make_shared<Call>();
  SetDeadline(call->context);
  call->request.set_number(state->next++);
  call->request.set_payload(state->payload);
  const MonoTime start = Clock::Real().Now();
  stub->async()->Unary(&call->context, &call->request, &call->response,
                       [state, stub, call, start](grpc::Status status) {
                         if (status.ok()) {
                           state->Answered(call->request, call->response,
                                           start);
                           if (!state->Over()) {
                             SendUnary(state, stub);
                             return;
                           }
                         }
                         state->Close(status);
                       });
}

class StreamSlot : public grpc::ClientBidiReactor<Message, Message> {
 public:
  StreamSlot(EchoState* state, Echo::Stub* stub) : state_(state) {
    SetDeadline(context_);
    sent_.set_payload(state->payload);
    stub->async()->Stream(&context_, this);
    StartRead(&answer_);
    Send();
    StartCall();
  }
  void OnReadDone(bool ok) override {
    if (!ok) return;
    state_->Answered(sent_, answer_, start_);
    Next();
  }
  void OnWriteDone(bool ok) override {
    if (ok) Next();
  }
  void OnDone(const grpc::Status& status) override {
    state_->Close(status);
    delete this;
  }

 private:
  // The answer may come before its question counts as written; the next one
  // may only be written after both.
  void Next() {
    if (events_.fetch_add(1) % 2 == 0) return;
    if (state_->Over()) {
      StartWritesDone();
    } else {
      StartRead(&answer_);
      Send();
    }
  }
  void Send() {
    sent_.set_number(state_->next++);
    start_ = Clock::Real().Now();
    StartWrite(&sent_);
  }

  EchoState* const state_;
  std::atomic<int> events_{0};
  grpc::ClientContext context_;
  Message sent_;
  Message answer_;
  MonoTime start_;
};

}  // namespace

absl::StatusOr<EchoResult> RunEcho(const EchoOptions& options) {
  EchoService service;
  RpcServerOptions server_options;
  server_options.services = {&service};
  COX_ASSIGN_OR_RETURN(const std::unique_ptr<RpcServer> server,
                       RpcServer::Start(server_options));
  std::vector<std::unique_ptr<Echo::Stub>> stubs;
  for (int i = 0; i < options.clients; ++i) {
    COX_ASSIGN_OR_RETURN(auto channel, MakeChannel(server->address()));
    stubs.push_back(Echo::NewStub(channel));
  }
  EchoState state;
  state.payload.assign(static_cast<size_t>(options.payload), 'x');
  const MonoTime start = Clock::Real().Now();
  state.end = start + absl::Seconds(options.seconds);
  {
    MutexLock lock(&state.mutex);
    state.open = options.clients * options.inflight;
  }
  for (const auto& stub : stubs) {
    for (int slot = 0; slot < options.inflight; ++slot) {
      if (options.stream) {
        new StreamSlot(&state, stub.get());
      } else {
        SendUnary(&state, stub.get());
      }
    }
  }
  MutexLock lock(&state.mutex);
  state.idle.WaitFor(
      state.mutex, absl::InfiniteDuration(),
      [&state]() ABSL_NO_THREAD_SAFETY_ANALYSIS { return state.open == 0; });
  COX_RETURN_IF_ERROR(state.failed);
  state.result.seconds = absl::ToDoubleSeconds(Clock::Real().Now() - start);
  return std::move(state.result);
}

}  // namespace cox
