// The ledger as one SQLite database beside its write-ahead log.

#include <sqlite3.h>

#include <array>
#include <cstring>
#include <string_view>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_split.h"
#include "coordinator/ledger.h"
#include "nlohmann/json.hpp"

namespace cox {
namespace {

constexpr char kSchema[] = R"sql(
CREATE TABLE IF NOT EXISTS fence(
  id INTEGER PRIMARY KEY CHECK (id = 1),
  epoch INTEGER NOT NULL, generation INTEGER NOT NULL);
INSERT OR IGNORE INTO fence VALUES(1, 0, 0);
CREATE TABLE IF NOT EXISTS meta(
  key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS unit(
  stage INTEGER, step INTEGER, idx INTEGER, version_step INTEGER NOT NULL,
  policy_hash TEXT NOT NULL, sha256 TEXT NOT NULL, segment INTEGER NOT NULL,
  offset INTEGER NOT NULL, length INTEGER NOT NULL,
  PRIMARY KEY(stage, step, idx)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS batch(
  stage INTEGER, step INTEGER, units TEXT NOT NULL, dropped TEXT NOT NULL,
  PRIMARY KEY(stage, step)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS version(
  model TEXT, stage INTEGER, step INTEGER, content_hash TEXT NOT NULL,
  manifest TEXT NOT NULL, PRIMARY KEY(model, stage, step));
CREATE TABLE IF NOT EXISTS step(
  stage INTEGER, step INTEGER, batch_sha256 TEXT NOT NULL,
  weight_hash TEXT NOT NULL, skipped INTEGER NOT NULL,
  generation INTEGER NOT NULL, metrics TEXT NOT NULL,
  PRIMARY KEY(stage, step)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS ckpt(
  stage INTEGER, step INTEGER, directory TEXT NOT NULL,
  manifest_sha256 TEXT NOT NULL, weight_hash TEXT NOT NULL,
  state_sha256 TEXT NOT NULL, generation INTEGER NOT NULL,
  PRIMARY KEY(stage, step)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS stage(
  stage INTEGER PRIMARY KEY, state TEXT NOT NULL,
  total_steps INTEGER NOT NULL, metrics TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS event(
  number INTEGER PRIMARY KEY, wall_time_s REAL NOT NULL, kind TEXT NOT NULL,
  text TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS control(
  number INTEGER PRIMARY KEY, command TEXT NOT NULL,
  effective_step INTEGER NOT NULL);
)sql";

// Every metric is finite or written as null, which reads back as NaN.
std::string MetricsText(const MetricList& metrics) {
  nlohmann::ordered_json json = nlohmann::ordered_json::array();
  for (const auto& [name, value] : metrics) {
    json.push_back({name, value});
  }
  return json.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

absl::StatusOr<MetricList> ParseMetrics(const std::string& text) {
  const auto json = nlohmann::json::parse(text, nullptr, false);
  if (!json.is_array()) {
    return absl::DataLossError("ledger: a metrics column is damaged");
  }
  MetricList metrics;
  for (const auto& entry : json) {
    if (!entry.is_array() || entry.size() != 2 || !entry[0].is_string()) {
      return absl::DataLossError("ledger: a metrics column is damaged");
    }
    metrics.emplace_back(
        entry[0].get<std::string>(),
        entry[1].is_number() ? entry[1].get<double>()
                             : std::numeric_limits<double>::quiet_NaN());
  }
  return metrics;
}

// "step.index step.index ..."; the stage is the row's.
std::string UnitsText(const std::vector<UnitId>& units) {
  std::string text;
  for (const UnitId& unit : units) {
    absl::StrAppend(&text, text.empty() ? "" : " ", unit.step, ".",
                    unit.index);
  }
  return text;
}

absl::StatusOr<std::vector<UnitId>> ParseUnits(int32_t stage,
                                               const std::string& text) {
  std::vector<UnitId> units;
  for (absl::string_view part : absl::StrSplit(text, ' ', absl::SkipEmpty())) {
    const std::pair<absl::string_view, absl::string_view> halves =
        absl::StrSplit(part, '.');
    UnitId unit;
    unit.stage = stage;
    if (!absl::SimpleAtoi(halves.first, &unit.step) ||
        !absl::SimpleAtoi(halves.second, &unit.index)) {
      return absl::DataLossError("ledger: a batch column is damaged");
    }
    units.push_back(unit);
  }
  return units;
}

// A prepared statement in use: binds in order, resets when it goes.
class Query {
 public:
  Query(sqlite3* db, sqlite3_stmt* statement)
      : db_(db), statement_(statement) {}
  ~Query() {
    sqlite3_reset(statement_);
    sqlite3_clear_bindings(statement_);
  }
  Query(const Query&) = delete;
  Query& operator=(const Query&) = delete;

  Query& Bind(int64_t value) {
    sqlite3_bind_int64(statement_, ++bound_, value);
    return *this;
  }
  Query& Bind(double value) {
    sqlite3_bind_double(statement_, ++bound_, value);
    return *this;
  }
  Query& Bind(const std::string& value) {
    sqlite3_bind_text64(statement_, ++bound_, value.data(), value.size(),
                        SQLITE_TRANSIENT, SQLITE_UTF8);
    return *this;
  }
  // True = a row is there.
  absl::StatusOr<bool> Step() {
    const int rc = sqlite3_step(statement_);
    if (rc == SQLITE_ROW || rc == SQLITE_DONE) {
      return rc == SQLITE_ROW;
    }
    const std::string text =
        absl::StrCat("ledger: ", sqlite3_errmsg(db_), " (", rc, ")");
    switch (rc & 0xff) {
      case SQLITE_CONSTRAINT:
        return absl::AlreadyExistsError(text);
      case SQLITE_FULL:
        return absl::ResourceExhaustedError(text);
      case SQLITE_BUSY:
      case SQLITE_LOCKED:
        return absl::UnavailableError(text);
      default:
        return absl::InternalError(text);
    }
  }
  absl::Status Run() { return Step().status(); }
  int64_t Int(int column) { return sqlite3_column_int64(statement_, column); }
  int32_t Int32(int column) { return static_cast<int32_t>(Int(column)); }
  double Real(int column) { return sqlite3_column_double(statement_, column); }
  std::string Text(int column) {
    const unsigned char* text = sqlite3_column_text(statement_, column);
    const int bytes = sqlite3_column_bytes(statement_, column);
    return text == nullptr ? std::string()
                           : std::string(reinterpret_cast<const char*>(text),
                                         static_cast<size_t>(bytes));
  }

 private:
  sqlite3* const db_;
  sqlite3_stmt* const statement_;
  int bound_ = 0;
};

class SqliteLedger : public LedgerStore {
 public:
  ~SqliteLedger() override { (void)Close(); }

  absl::Status Open(const std::string& path) {
    if (sqlite3_open_v2(path.c_str(), &db_,
                        SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE |
                            SQLITE_OPEN_NOMUTEX,
                        nullptr) != SQLITE_OK) {
      return absl::InternalError(absl::StrCat(
          path, ": ", db_ != nullptr ? sqlite3_errmsg(db_) : "out of memory"));
    }
    sqlite3_extended_result_codes(db_, 1);
    sqlite3_busy_timeout(db_, 5000);
    COX_RETURN_IF_ERROR(Annotate(OpenTables(), path));
    return absl::OkStatus();
  }

  Epoch epoch() const override { return epoch_; }

  absl::Status CheckFence() override {
    absl::StatusOr<int64_t> found = Scalar("SELECT epoch FROM fence");
    COX_RETURN_IF_ERROR(found.status());
    return *found == epoch_.value ? absl::OkStatus() : Fenced();
  }

  absl::Status Commit(const std::vector<LedgerRow>& rows) override {
    COX_RETURN_IF_ERROR(Execute("BEGIN IMMEDIATE"));
    absl::Status status = WriteAll(rows);
    if (status.ok()) {
      status = Execute("COMMIT");
    }
    if (!status.ok()) {
      (void)Execute("ROLLBACK");
    }
    return status;
  }

  absl::StatusOr<LedgerState> Load() override {
    LedgerState state;
    COX_ASSIGN_OR_RETURN(state.generation.value,
                         Scalar("SELECT generation FROM fence"));
    COX_RETURN_IF_ERROR(LoadUnits(state));
    COX_RETURN_IF_ERROR(LoadSteps(state));
    COX_RETURN_IF_ERROR(LoadRest(state));
    return state;
  }

  absl::Status Close() override {
    if (db_ == nullptr) {
      return absl::OkStatus();
    }
    for (auto& [sql, statement] : statements_) {
      sqlite3_finalize(statement);
    }
    statements_.clear();
    (void)Execute("PRAGMA wal_checkpoint(TRUNCATE)");
    const int rc = sqlite3_close(db_);
    db_ = nullptr;
    return rc == SQLITE_OK ? absl::OkStatus()
                           : absl::InternalError("ledger: close failed");
  }

 private:
  absl::Status OpenTables() {
    COX_RETURN_IF_ERROR(Execute("PRAGMA journal_mode=WAL"));
    COX_RETURN_IF_ERROR(Execute("PRAGMA synchronous=FULL"));
    COX_RETURN_IF_ERROR(Execute("PRAGMA foreign_keys=ON"));
    // Other builds have other defaults, and a file system without shared
    // memory silently refuses WAL: read back what holds (rule 2).
    {
      Query mode = Prepare("PRAGMA journal_mode");
      COX_RETURN_IF_ERROR(mode.Run());
      if (mode.Text(0) != "wal") {
        return absl::FailedPreconditionError(absl::StrCat(
            "ledger: journal mode wal expected, found ", mode.Text(0)));
      }
    }
    COX_ASSIGN_OR_RETURN(int64_t synchronous, Scalar("PRAGMA synchronous"));
    COX_ASSIGN_OR_RETURN(int64_t keys, Scalar("PRAGMA foreign_keys"));
    if (synchronous != 2 || keys != 1) {
      return absl::FailedPreconditionError(absl::StrCat(
          "ledger: synchronous 2 and foreign_keys 1 expected, found ",
          synchronous, " and ", keys));
    }
    COX_RETURN_IF_ERROR(Execute("BEGIN IMMEDIATE"));
    COX_RETURN_IF_ERROR(Execute(kSchema));
    COX_RETURN_IF_ERROR(Execute("UPDATE fence SET epoch = epoch + 1"));
    COX_ASSIGN_OR_RETURN(epoch_.value, Scalar("SELECT epoch FROM fence"));
    return Execute("COMMIT");
  }

  absl::Status Fenced() {
    return absl::FailedPreconditionError(
        absl::StrCat("ledger: a newer epoch took over from ", epoch_.value));
  }

  absl::Status Execute(const char* sql) {
    char* error = nullptr;
    const int rc = sqlite3_exec(db_, sql, nullptr, nullptr, &error);
    if (rc == SQLITE_OK) {
      return absl::OkStatus();
    }
    const std::string text = absl::StrCat(
        "ledger: ", error != nullptr ? error : "error", " (", rc, ")");
    sqlite3_free(error);
    if ((rc & 0xff) == SQLITE_BUSY) {
      return absl::UnavailableError(text);
    }
    return (rc & 0xff) == SQLITE_FULL ? absl::ResourceExhaustedError(text)
                                      : absl::InternalError(text);
  }

  Query Prepare(const std::string& sql) {
    sqlite3_stmt*& statement = statements_[sql];
    if (statement == nullptr) {
      const int rc = sqlite3_prepare_v3(db_, sql.c_str(), -1,
                                        SQLITE_PREPARE_PERSISTENT, &statement,
                                        nullptr);
      COX_CHECK(rc == SQLITE_OK && statement != nullptr);
    }
    return Query(db_, statement);
  }

  absl::StatusOr<int64_t> Scalar(const std::string& sql) {
    Query query = Prepare(sql);
    COX_ASSIGN_OR_RETURN(bool row, query.Step());
    if (!row) {
      return absl::DataLossError(absl::StrCat("ledger: no answer to ", sql));
    }
    return query.Int(0);
  }

  absl::Status WriteAll(const std::vector<LedgerRow>& rows) {
    {
      // The proof that this incarnation still owns the ledger, inside the
      // transaction (rule 1).
      Query fence = Prepare(
          "UPDATE fence SET generation = generation WHERE epoch = ?");
      COX_RETURN_IF_ERROR(fence.Bind(epoch_.value).Run());
      if (sqlite3_changes(db_) != 1) {
        return Fenced();
      }
    }
    for (const LedgerRow& row : rows) {
      COX_RETURN_IF_ERROR(
          std::visit([this](const auto& r) { return Write(r); }, row));
    }
    return absl::OkStatus();
  }

  absl::Status Write(const MetaRow& r) {
    return Prepare("INSERT OR REPLACE INTO meta VALUES(?,?)")
        .Bind(r.key)
        .Bind(r.value)
        .Run();
  }
  absl::Status Write(const GenerationRow& r) {
    return Prepare("UPDATE fence SET generation = ?")
        .Bind(r.generation.value)
        .Run();
  }
  absl::Status Write(const UnitRow& r) {
    return Prepare("INSERT INTO unit VALUES(?,?,?,?,?,?,?,?,?)")
        .Bind(int64_t{r.id.stage})
        .Bind(r.id.step)
        .Bind(int64_t{r.id.index})
        .Bind(r.version_step)
        .Bind(r.policy_hash)
        .Bind(r.sha256)
        .Bind(int64_t{r.payload.segment})
        .Bind(static_cast<int64_t>(r.payload.offset))
        .Bind(static_cast<int64_t>(r.payload.length))
        .Run();
  }
  absl::Status Write(const BatchRow& r) {
    return Prepare("INSERT INTO batch VALUES(?,?,?,?)")
        .Bind(int64_t{r.stage})
        .Bind(r.step)
        .Bind(UnitsText(r.units))
        .Bind(UnitsText(r.dropped))
        .Run();
  }
  absl::Status Write(const VersionRow& r) {
    return Prepare("INSERT INTO version VALUES(?,?,?,?,?)")
        .Bind(r.model)
        .Bind(int64_t{r.version.stage})
        .Bind(r.version.step)
        .Bind(r.content_hash)
        .Bind(r.manifest)
        .Run();
  }
  absl::Status Write(const StepRow& r) {
    return Prepare("INSERT INTO step VALUES(?,?,?,?,?,?,?)")
        .Bind(int64_t{r.stage})
        .Bind(r.step)
        .Bind(r.batch_sha256)
        .Bind(r.weight_hash)
        .Bind(int64_t{r.skipped ? 1 : 0})
        .Bind(r.generation.value)
        .Bind(MetricsText(r.metrics))
        .Run();
  }
  absl::Status Write(const CheckpointRow& r) {
    return Prepare("INSERT INTO ckpt VALUES(?,?,?,?,?,?,?)")
        .Bind(int64_t{r.stage})
        .Bind(r.step)
        .Bind(r.directory)
        .Bind(r.manifest_sha256)
        .Bind(r.weight_hash)
        .Bind(r.state_sha256)
        .Bind(r.generation.value)
        .Run();
  }
  absl::Status Write(const CheckpointRemovedRow& r) {
    return Prepare("DELETE FROM ckpt WHERE stage = ? AND step = ?")
        .Bind(int64_t{r.stage})
        .Bind(r.step)
        .Run();
  }
  absl::Status Write(const StageRow& r) {
    return Prepare("INSERT OR REPLACE INTO stage VALUES(?,?,?,?)")
        .Bind(int64_t{r.stage})
        .Bind(r.state)
        .Bind(r.total_steps)
        .Bind(MetricsText(r.metrics))
        .Run();
  }
  absl::Status Write(const EventRow& r) {
    return Prepare("INSERT INTO event VALUES(?,?,?,?)")
        .Bind(r.number)
        .Bind(r.wall_time_s)
        .Bind(r.kind)
        .Bind(r.text)
        .Run();
  }
  absl::Status Write(const ControlRow& r) {
    return Prepare("INSERT INTO control VALUES(?,?,?)")
        .Bind(r.number)
        .Bind(r.command)
        .Bind(r.effective_step)
        .Run();
  }

  // Calls `read` for every row of `sql`.
  template <typename Read>
  absl::Status ForEach(const std::string& sql, Read read) {
    Query query = Prepare(sql);
    while (true) {
      COX_ASSIGN_OR_RETURN(bool row, query.Step());
      if (!row) {
        return absl::OkStatus();
      }
      COX_RETURN_IF_ERROR(read(query));
    }
  }

  absl::Status LoadUnits(LedgerState& state) {
    COX_RETURN_IF_ERROR(ForEach(
        "SELECT stage,step,idx,version_step,policy_hash,sha256,segment,offset,"
        "length FROM unit ORDER BY stage,step,idx",
        [&](Query& q) {
          state.units.push_back(
              {{q.Int32(0), q.Int(1), q.Int32(2)},
               q.Int(3),
               q.Text(4),
               q.Text(5),
               {q.Int32(6), static_cast<uint64_t>(q.Int(7)),
                static_cast<uint64_t>(q.Int(8))}});
          return absl::OkStatus();
        }));
    return ForEach(
        "SELECT stage,step,units,dropped FROM batch ORDER BY stage,step",
        [&](Query& q) -> absl::Status {
          BatchRow row{q.Int32(0), q.Int(1), {}, {}};
          COX_ASSIGN_OR_RETURN(row.units, ParseUnits(row.stage, q.Text(2)));
          COX_ASSIGN_OR_RETURN(row.dropped, ParseUnits(row.stage, q.Text(3)));
          state.batches.push_back(std::move(row));
          return absl::OkStatus();
        });
  }

  absl::Status LoadSteps(LedgerState& state) {
    COX_RETURN_IF_ERROR(ForEach(
        "SELECT model,stage,step,content_hash,manifest FROM version "
        "ORDER BY model,stage,step",
        [&](Query& q) {
          state.versions.push_back({q.Text(0),
                                    {q.Int32(1), q.Int(2)},
                                    q.Text(3),
                                    q.Text(4)});
          return absl::OkStatus();
        }));
    COX_RETURN_IF_ERROR(ForEach(
        "SELECT stage,step,batch_sha256,weight_hash,skipped,generation,"
        "metrics FROM step ORDER BY stage,step",
        [&](Query& q) -> absl::Status {
          StepRow row{q.Int32(0), q.Int(1),   q.Text(2), q.Text(3),
                      q.Int(4) != 0, {q.Int(5)}, {}};
          COX_ASSIGN_OR_RETURN(row.metrics, ParseMetrics(q.Text(6)));
          state.steps.push_back(std::move(row));
          return absl::OkStatus();
        }));
    return ForEach(
        "SELECT stage,step,directory,manifest_sha256,weight_hash,"
        "state_sha256,generation FROM ckpt ORDER BY stage,step",
        [&](Query& q) {
          state.checkpoints.push_back({q.Int32(0), q.Int(1), q.Text(2),
                                       q.Text(3), q.Text(4), q.Text(5),
                                       {q.Int(6)}});
          return absl::OkStatus();
        });
  }

  absl::Status LoadRest(LedgerState& state) {
    COX_RETURN_IF_ERROR(
        ForEach("SELECT key,value FROM meta ORDER BY key", [&](Query& q) {
          state.meta[q.Text(0)] = q.Text(1);
          return absl::OkStatus();
        }));
    COX_RETURN_IF_ERROR(ForEach(
        "SELECT stage,state,total_steps,metrics FROM stage ORDER BY stage",
        [&](Query& q) -> absl::Status {
          StageRow row{q.Int32(0), q.Text(1), q.Int(2), {}};
          COX_ASSIGN_OR_RETURN(row.metrics, ParseMetrics(q.Text(3)));
          state.stages.push_back(std::move(row));
          return absl::OkStatus();
        }));
    COX_RETURN_IF_ERROR(ForEach(
        "SELECT number,wall_time_s,kind,text FROM event ORDER BY number",
        [&](Query& q) {
          state.events.push_back({q.Int(0), q.Real(1), q.Text(2), q.Text(3)});
          return absl::OkStatus();
        }));
    return ForEach(
        "SELECT number,command,effective_step FROM control ORDER BY number",
        [&](Query& q) {
          state.controls.push_back({q.Int(0), q.Text(1), q.Int(2)});
          return absl::OkStatus();
        });
  }

  sqlite3* db_ = nullptr;
  Epoch epoch_;
  std::map<std::string, sqlite3_stmt*> statements_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<LedgerStore>> OpenSqliteLedger(
    const std::string& path) {
  auto ledger = std::make_unique<SqliteLedger>();
  COX_RETURN_IF_ERROR(ledger->Open(path));
  return ledger;
}

}  // namespace cox
