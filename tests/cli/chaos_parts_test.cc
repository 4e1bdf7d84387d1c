// The parts of `cox chaos` besides its plan: comparison, report, proxy.

#include <arpa/inet.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <string>

#include "cli/chaos_compare.h"
#include "cli/chaos_proxy.h"
#include "cli/chaos_report.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace cox {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

LedgerState SmallLedger() {
  LedgerState state;
  for (int64_t step = 1; step <= 3; ++step) {
    StepRow row;
    row.step = step;
    row.weight_hash = "w" + std::to_string(step);
    row.batch_sha256 = "b" + std::to_string(step);
    state.steps.push_back(row);
    UnitRow unit;
    unit.id = {0, step, 0};
    unit.sha256 = "u" + std::to_string(step);
    state.units.push_back(unit);
    state.batches.push_back({0, step, {unit.id}, {}});
  }
  return state;
}

TEST(ChaosCompareTest, NamesWhatDiffers) {
  const LedgerState calm = SmallLedger();
  EXPECT_THAT(CompareLedgers(calm, calm), IsEmpty());
  LedgerState hurt = calm;
  hurt.steps[1].weight_hash = "other";
  EXPECT_THAT(CompareLedgers(calm, hurt),
              ElementsAre(HasSubstr("stage 0 step 2: expected weights w2")));
  hurt = calm;
  hurt.units.pop_back();
  EXPECT_THAT(CompareLedgers(calm, hurt), ElementsAre("unit s0.3.0: missing"));
  EXPECT_THAT(CompareLedgers(hurt, calm), ElementsAre("unit s0.3.0: too many"));
  hurt = calm;
  for (StepRow& row : hurt.steps) row.skipped = true;
  EXPECT_THAT(CompareLedgers(calm, hurt, 1),
              ElementsAre(HasSubstr("skipped"), "... and 2 more"));
}

TEST(ChaosCompareTest, StreamingUnitsAreInOneStepEach) {
  LedgerState state = SmallLedger();
  EXPECT_THAT(CheckStreamingLedger(state), IsEmpty());
  state.batches[2].units = state.batches[1].units;
  EXPECT_THAT(CheckStreamingLedger(state),
              ElementsAre("unit s0.2.0: in steps 2 and 3"));
  state = SmallLedger();
  state.units.erase(state.units.begin());
  EXPECT_THAT(CheckStreamingLedger(state), ElementsAre(HasSubstr("no result")));
  state = SmallLedger();
  state.batches.pop_back();
  EXPECT_THAT(CheckStreamingLedger(state),
              ElementsAre(HasSubstr("no batch is recorded")));
}

TEST(ChaosReportTest, PercentilesAreNearestRank) {
  EXPECT_EQ(Percentile({3.0, 1.0, 2.0}, 0.5), 2.0);
  EXPECT_EQ(Percentile({3.0, 1.0, 2.0}, 0.99), 3.0);
  EXPECT_EQ(Percentile({5.0}, 0.5), 5.0);
}

TEST(ChaosReportTest, SaysHowItEnded) {
  ChaosFigures figures;
  figures.mode = "sync";
  figures.runs = 2;
  figures.equal = 2;
  DeliveredFault fault;
  fault.fault.role = "actor";
  fault.serving = absl::Seconds(1.25);
  figures.faults.push_back(fault);
  EXPECT_THAT(ChaosTable(figures), HasSubstr("1.25 / 1.25"));
  EXPECT_THAT(ChaosTable(figures), HasSubstr("result: all 2 runs equal"));
  figures.equal = 1;
  figures.problems = {"unit s0.1.0: missing"};
  EXPECT_THAT(ChaosTable(figures), HasSubstr("FAILED"));
  EXPECT_THAT(ChaosJson(figures), HasSubstr("\"equal\": 1"));
}

class Socket {
 public:
  explicit Socket(int fd) : fd_(fd) {}
  ~Socket() { Close(); }
  Socket(const Socket&) = delete;
  Socket& operator=(const Socket&) = delete;
  int fd() const { return fd_; }
  void Close() {
    if (fd_ >= 0) close(fd_);
    fd_ = -1;
  }
  void Send(const std::string& text) {
    EXPECT_EQ(send(fd_, text.data(), text.size(), MSG_NOSIGNAL),
              static_cast<ssize_t>(text.size()));
  }
  // What comes within `ms`, up to `size` bytes; "<closed>" at the end.
  std::string Receive(size_t size, int ms) {
    std::string all;
    char bytes[4096];
    pollfd event = {fd_, POLLIN, 0};
    while (all.size() < size && poll(&event, 1, ms) > 0) {
      const ssize_t n = read(fd_, bytes, sizeof(bytes));
      if (n <= 0) return all + "<closed>";
      all.append(bytes, static_cast<size_t>(n));
    }
    return all;
  }

 private:
  int fd_;
};

sockaddr_in Loopback(int port) {
  sockaddr_in address = {};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  address.sin_port = htons(static_cast<uint16_t>(port));
  return address;
}

class ProxyTest : public ::testing::Test {
 protected:
  ProxyTest() : listener_(socket(AF_INET, SOCK_STREAM, 0)) {
    sockaddr_in address = Loopback(0);
    socklen_t size = sizeof(address);
    auto* generic = reinterpret_cast<sockaddr*>(&address);
    EXPECT_EQ(bind(listener_.fd(), generic, size), 0);
    EXPECT_EQ(listen(listener_.fd(), 8), 0);
    EXPECT_EQ(getsockname(listener_.fd(), generic, &size), 0);
    const int port = ntohs(address.sin_port);
    auto proxy = ChaosProxy::Start([port] { return port; });
    EXPECT_TRUE(proxy.ok()) << proxy.status();
    proxy_ = *std::move(proxy);
  }
  int Connect() {
    const int fd = socket(AF_INET, SOCK_STREAM, 0);
    const sockaddr_in address = Loopback(proxy_->port());
    EXPECT_EQ(connect(fd, reinterpret_cast<const sockaddr*>(&address),
                      sizeof(address)),
              0);
    return fd;
  }
  int Accept() { return accept(listener_.fd(), nullptr, nullptr); }

  Socket listener_;
  std::unique_ptr<ChaosProxy> proxy_;
};

constexpr int kSoon = 5000;  // for what must come
constexpr int kNever = 100;  // for what must not

TEST_F(ProxyTest, PassesBothWaysAndTheEnd) {
  Socket client(Connect());
  Socket server(Accept());
  client.Send("hello");
  EXPECT_EQ(server.Receive(5, kSoon), "hello");
  server.Send("world");
  EXPECT_EQ(client.Receive(5, kSoon), "world");
  server.Close();
  EXPECT_EQ(client.Receive(1, kSoon), "<closed>");
}

TEST_F(ProxyTest, CutsOneDirectionAndThenTheConnection) {
  Socket client(Connect());
  Socket server(Accept());
  proxy_->SetMode(ChaosProxy::Mode::kCutUp);
  // The mode is looked at once in a round.
  EXPECT_EQ(client.Receive(1, kNever), "");
  client.Send("lost");
  EXPECT_EQ(server.Receive(1, kNever), "");
  server.Send("down");
  EXPECT_EQ(client.Receive(4, kSoon), "down");
  proxy_->SetMode(ChaosProxy::Mode::kPass);
  EXPECT_EQ(client.Receive(1, kSoon), "<closed>");
}

TEST_F(ProxyTest, SlowGivesEverythingInTheEnd) {
  proxy_->SetMode(ChaosProxy::Mode::kSlow);
  Socket client(Connect());
  Socket server(Accept());
  const std::string text(300, 'x');
  client.Send(text);
  EXPECT_EQ(server.Receive(300, kSoon), text);
}

}  // namespace
}  // namespace cox
