#include "coordinator/sqlite_rows.h"

#include <cstring>
#include <limits>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "coordinator/left_out.h"
#include "lib/base/hash.h"
#include "nlohmann/json.hpp"

namespace cox {
namespace {

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
    metrics.emplace_back(entry[0].get<std::string>(),
                         entry[1].is_number()
                             ? entry[1].get<double>()
                             : std::numeric_limits<double>::quiet_NaN());
  }
  return metrics;
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

absl::Status SqliteError(int rc, const char* what) {
  const std::string text = absl::StrCat("ledger: ", what, " (", rc, ")");
  switch (rc & 0xff) {
    case SQLITE_CONSTRAINT:
      return absl::AlreadyExistsError(text);
    case SQLITE_FULL:
      return absl::ResourceExhaustedError(text);
    case SQLITE_BUSY:
    case SQLITE_LOCKED:
      return absl::UnavailableError(text);
    case SQLITE_CORRUPT:
    case SQLITE_NOTADB:
      return absl::DataLossError(text);
    default:
      return absl::InternalError(text);
  }
}

// Calls `read` for every row of `sql`.
// Adds the rows of `table` to `sum`; `sql` names all its columns in order.
template <typename Read>
absl::Status ForEach(SqliteDb& db, uint64_t& sum, std::string_view table,
                     const std::string& sql, Read read) {
  SqliteQuery query = db.Prepare(sql);
  while (true) {
    COX_ASSIGN_OR_RETURN(bool row, query.Step());
    if (!row) {
      return absl::OkStatus();
    }
    COX_RETURN_IF_ERROR(read(query));
    sum += query.HashOfRow(table);
  }
}

// Where rows go, and which ones.
struct Loading {
  LedgerRecord record;
  RowFilter filter;
  bool whole;  // with transactions and the numbers of theirs

  void Number(std::vector<int64_t>& list, int64_t transaction) const {
    if (whole) {
      list.push_back(transaction);
    }
  }
};

// What the filter must know before the first row.
absl::Status Survey(SqliteDb& db, RowFilter& filter) {
  const auto each = [&db](const char* sql, auto add) -> absl::Status {
    SqliteQuery query = db.Prepare(sql);
    while (true) {
      COX_ASSIGN_OR_RETURN(const bool row, query.Step());
      if (!row) {
        return absl::OkStatus();
      }
      add(query);
    }
  };
  COX_RETURN_IF_ERROR(
      each("SELECT stage,MAX(step) FROM step GROUP BY stage",
           [&](SqliteQuery& q) { filter.AddStep(q.Int32(0), q.Int(1)); }));
  COX_RETURN_IF_ERROR(each("SELECT stage,step FROM ckpt", [&](SqliteQuery& q) {
    filter.AddCheckpoint(q.Int32(0), q.Int(1));
  }));
  COX_RETURN_IF_ERROR(
      each("SELECT stage,state FROM stage", [&](SqliteQuery& q) {
        filter.AddStage(q.Int32(0), q.Text(1) == "done");
      }));
  COX_RETURN_IF_ERROR(each("SELECT COALESCE(MAX(number),0) FROM event",
                           [&](SqliteQuery& q) { filter.AddEvent(q.Int(0)); }));
  filter.Settle();
  return absl::OkStatus();
}

absl::Status LoadUnits(SqliteDb& db, Loading& loading) {
  LedgerRecord& record = loading.record;
  // Batches first: they say which step has a unit.
  COX_RETURN_IF_ERROR(ForEach(
      db, record.sum_of_rows, "batch",
      "SELECT stage,step,units,dropped,txn FROM batch ORDER BY stage,step",
      [&](SqliteQuery& q) -> absl::Status {
        BatchRow row{q.Int32(0), q.Int(1), {}, {}};
        COX_ASSIGN_OR_RETURN(row.units, ParseUnits(row.stage, q.Text(2)));
        COX_ASSIGN_OR_RETURN(row.dropped, ParseUnits(row.stage, q.Text(3)));
        if (loading.filter.Take(row)) {
          record.state.batches.push_back(std::move(row));
          loading.Number(record.batch_txn, q.Int(4));
        }
        return absl::OkStatus();
      }));
  return ForEach(
      db, record.sum_of_rows, "unit",
      "SELECT stage,step,idx,version_step,policy_hash,sha256,segment,offset,"
      "length,txn FROM unit ORDER BY stage,step,idx",
      [&](SqliteQuery& q) {
        const UnitId id{q.Int32(0), q.Int(1), q.Int32(2)};
        const PayloadRef payload{q.Int32(6), static_cast<uint64_t>(q.Int(7)),
                                 static_cast<uint64_t>(q.Int(8))};
        if (loading.filter.Take(id, payload)) {
          record.state.units.push_back(
              {id, q.Int(3), q.Text(4), q.Text(5), payload});
          loading.Number(record.unit_txn, q.Int(9));
        }
        return absl::OkStatus();
      });
}

absl::Status LoadSteps(SqliteDb& db, Loading& loading) {
  LedgerRecord& record = loading.record;
  COX_RETURN_IF_ERROR(
      ForEach(db, record.sum_of_rows, "version",
              "SELECT model,stage,step,content_hash,manifest,txn FROM version "
              "ORDER BY model,stage,step",
              [&](SqliteQuery& q) {
                const PolicyVersion version{q.Int32(1), q.Int(2)};
                std::string model = q.Text(0);
                if (loading.filter.KeepsVersion(model, version)) {
                  record.state.versions.push_back(
                      {std::move(model), version, q.Text(3), q.Text(4)});
                  loading.Number(record.version_txn, q.Int(5));
                }
                return absl::OkStatus();
              }));
  COX_RETURN_IF_ERROR(
      ForEach(db, record.sum_of_rows, "step",
              "SELECT stage,step,batch_sha256,weight_hash,skipped,generation,"
              "metrics,txn FROM step ORDER BY stage,step",
              [&](SqliteQuery& q) -> absl::Status {
                StepRow row{q.Int32(0),    q.Int(1),   "", "",
                            q.Int(4) != 0, {q.Int(5)}, {}};
                if (!loading.filter.KeepsStep(row.stage, row.step)) {
                  return absl::OkStatus();
                }
                if (!loading.filter.KeepsMetricsOnly(row.stage, row.step)) {
                  row.batch_sha256 = q.Text(2);
                  row.weight_hash = q.Text(3);
                }
                COX_ASSIGN_OR_RETURN(row.metrics, ParseMetrics(q.Text(6)));
                record.state.steps.push_back(std::move(row));
                loading.Number(record.step_txn, q.Int(7));
                return absl::OkStatus();
              }));
  return ForEach(db, record.sum_of_rows, "ckpt",
                 "SELECT stage,step,directory,manifest_sha256,weight_hash,"
                 "state_sha256,generation,txn FROM ckpt ORDER BY stage,step",
                 [&](SqliteQuery& q) {
                   record.state.checkpoints.push_back({q.Int32(0),
                                                       q.Int(1),
                                                       q.Text(2),
                                                       q.Text(3),
                                                       q.Text(4),
                                                       q.Text(5),
                                                       {q.Int(6)}});
                   loading.Number(record.checkpoint_txn, q.Int(7));
                   return absl::OkStatus();
                 });
}

absl::Status LoadRest(SqliteDb& db, Loading& loading) {
  LedgerRecord& record = loading.record;
  LedgerState& state = record.state;
  COX_RETURN_IF_ERROR(ForEach(db, record.sum_of_rows, "meta",
                              "SELECT key,value FROM meta ORDER BY key",
                              [&](SqliteQuery& q) {
                                state.meta[q.Text(0)] = q.Text(1);
                                return absl::OkStatus();
                              }));
  COX_RETURN_IF_ERROR(ForEach(
      db, record.sum_of_rows, "stage",
      "SELECT stage,state,total_steps,metrics FROM stage ORDER BY stage",
      [&](SqliteQuery& q) -> absl::Status {
        StageRow row{q.Int32(0), q.Text(1), q.Int(2), {}};
        COX_ASSIGN_OR_RETURN(row.metrics, ParseMetrics(q.Text(3)));
        state.stages.push_back(std::move(row));
        return absl::OkStatus();
      }));
  COX_RETURN_IF_ERROR(ForEach(
      db, record.sum_of_rows, "event",
      "SELECT number,wall_time_s,kind,text,txn FROM event ORDER BY number",
      [&](SqliteQuery& q) {
        if (loading.filter.KeepsEvent(q.Int(0))) {
          state.events.push_back({q.Int(0), q.Real(1), q.Text(2), q.Text(3)});
          loading.Number(record.event_txn, q.Int(4));
        }
        return absl::OkStatus();
      }));
  return ForEach(
      db, record.sum_of_rows, "control",
      "SELECT number,command,effective_step FROM control ORDER BY number",
      [&](SqliteQuery& q) {
        state.controls.push_back({q.Int(0), q.Text(1), q.Int(2)});
        return absl::OkStatus();
      });
}

absl::StatusOr<bool> HasTable(SqliteDb& db, const std::string& name) {
  COX_ASSIGN_OR_RETURN(
      const int64_t tables,
      db.Scalar(absl::StrCat("SELECT COUNT(*) FROM sqlite_master WHERE name='",
                             name, "'")));
  return tables > 0;
}

// What is missing because nobody needs it, or because nobody could make it.
absl::Status LoadMissing(SqliteDb& db, Loading& loading) {
  LedgerRecord& record = loading.record;
  COX_ASSIGN_OR_RETURN(const bool there, HasTable(db, "segment_removed"));
  if (!there) {
    return absl::OkStatus();  // format 1
  }
  COX_RETURN_IF_ERROR(
      ForEach(db, record.sum_of_rows, "segment_removed",
              "SELECT segment,bytes,txn FROM segment_removed ORDER BY segment",
              [&](SqliteQuery& q) {
                record.state.removed_segments.push_back(
                    {q.Int32(0), static_cast<uint64_t>(q.Int(1))});
                loading.Number(record.removed_txn, q.Int(2));
                return absl::OkStatus();
              }));
  return ForEach(
      db, record.sum_of_rows, "unit_failed",
      "SELECT stage,step,idx,why,txn FROM unit_failed ORDER BY stage,step,idx",
      [&](SqliteQuery& q) {
        record.state.failed_units.push_back(
            {{q.Int32(0), q.Int(1), q.Int32(2)}, q.Text(3)});
        loading.Number(record.failed_txn, q.Int(4));
        return absl::OkStatus();
      });
}

// A ledger of a build without digests has none.
absl::Status ReadDigest(SqliteDb& db, LedgerRecord& record) {
  COX_ASSIGN_OR_RETURN(const bool there, HasTable(db, "digest"));
  if (!there) {
    return absl::OkStatus();
  }
  SqliteQuery query = db.Prepare("SELECT value FROM digest");
  COX_ASSIGN_OR_RETURN(const bool known, query.Step());
  record.digest_ok =
      !known || static_cast<uint64_t>(query.Int(0)) ==
                    LedgerDigest(record.sum_of_rows, record.epoch,
                                 record.state.generation);
  return absl::OkStatus();
}

void AppendInt(std::string& to, int64_t value) {
  to += 'i';
  to.append(reinterpret_cast<const char*>(&value), sizeof(value));
}
void AppendReal(std::string& to, double value) {
  to += 'r';
  to.append(reinterpret_cast<const char*>(&value), sizeof(value));
}
void AppendText(std::string& to, std::string_view value) {
  to += 't';
  const uint64_t size = value.size();
  to.append(reinterpret_cast<const char*>(&size), sizeof(size));
  to.append(value);
}

uint64_t HashOf(std::string_view table, std::string& canonical) {
  canonical.append(table);
  const std::string hash = Xxh3_128(canonical);
  uint64_t value = 0;
  std::memcpy(&value, hash.data(), sizeof(value));
  return value;
}

}  // namespace

uint64_t LedgerDigest(uint64_t sum_of_rows, Epoch epoch,
                      Generation generation) {
  std::string fence;
  AppendInt(fence, epoch.value);
  AppendInt(fence, generation.value);
  return sum_of_rows + HashOf("fence", fence);
}

SqliteQuery& SqliteQuery::Bind(int64_t value) {
  sqlite3_bind_int64(statement_, ++bound_, value);
  AppendInt(canonical_, value);
  return *this;
}

SqliteQuery& SqliteQuery::Bind(double value) {
  sqlite3_bind_double(statement_, ++bound_, value);
  AppendReal(canonical_, value);
  return *this;
}

SqliteQuery& SqliteQuery::Bind(const std::string& value) {
  sqlite3_bind_text64(statement_, ++bound_, value.data(), value.size(),
                      SQLITE_TRANSIENT, SQLITE_UTF8);
  AppendText(canonical_, value);
  return *this;
}

uint64_t SqliteQuery::HashOfBound(std::string_view table) {
  return HashOf(table, canonical_);
}

uint64_t SqliteQuery::HashOfRow(std::string_view table) {
  canonical_.clear();
  const int columns = sqlite3_column_count(statement_);
  for (int i = 0; i < columns; ++i) {
    switch (sqlite3_column_type(statement_, i)) {
      case SQLITE_INTEGER:
        AppendInt(canonical_, Int(i));
        break;
      case SQLITE_FLOAT:
        AppendReal(canonical_, Real(i));
        break;
      default: {
        const auto* text =
            reinterpret_cast<const char*>(sqlite3_column_text(statement_, i));
        const int bytes = sqlite3_column_bytes(statement_, i);
        AppendText(canonical_,
                   text == nullptr
                       ? std::string_view()
                       : std::string_view(text, static_cast<size_t>(bytes)));
        break;
      }
    }
  }
  return HashOf(table, canonical_);
}

absl::StatusOr<bool> SqliteQuery::Step() {
  COX_RETURN_IF_ERROR(prepared_);
  const int rc = sqlite3_step(statement_);
  if (rc == SQLITE_ROW || rc == SQLITE_DONE) {
    return rc == SQLITE_ROW;
  }
  return SqliteError(rc, sqlite3_errmsg(db_));
}

std::string SqliteQuery::Text(int column) {
  const unsigned char* text = sqlite3_column_text(statement_, column);
  const int bytes = sqlite3_column_bytes(statement_, column);
  return text == nullptr ? std::string()
                         : std::string(reinterpret_cast<const char*>(text),
                                       static_cast<size_t>(bytes));
}

absl::Status SqliteDb::Open(const std::string& name, int flags) {
  if (sqlite3_open_v2(name.c_str(), &db_, flags, nullptr) != SQLITE_OK) {
    const std::string text = absl::StrCat(
        name, ": ", db_ != nullptr ? sqlite3_errmsg(db_) : "out of memory");
    (void)Close();
    return absl::InternalError(text);
  }
  sqlite3_extended_result_codes(db_, 1);
  sqlite3_busy_timeout(db_, 5000);
  return absl::OkStatus();
}

absl::Status SqliteDb::Close() {
  if (db_ == nullptr) {
    return absl::OkStatus();
  }
  for (auto& [sql, statement] : statements_) {
    sqlite3_finalize(statement);
  }
  statements_.clear();
  const int rc = sqlite3_close(db_);
  db_ = nullptr;
  return rc == SQLITE_OK ? absl::OkStatus()
                         : absl::InternalError("ledger: close failed");
}

absl::Status SqliteDb::Execute(const char* sql) {
  char* error = nullptr;
  const int rc = sqlite3_exec(db_, sql, nullptr, nullptr, &error);
  if (rc == SQLITE_OK) {
    return absl::OkStatus();
  }
  const absl::Status status =
      SqliteError(rc, error != nullptr ? error : "error");
  sqlite3_free(error);
  return status;
}

SqliteQuery SqliteDb::Prepare(const std::string& sql) {
  sqlite3_stmt*& statement = statements_[sql];
  if (statement == nullptr) {
    const int rc = sqlite3_prepare_v3(
        db_, sql.c_str(), -1, SQLITE_PREPARE_PERSISTENT, &statement, nullptr);
    if (rc != SQLITE_OK) {
      // A damaged file: our own statements are right.
      return SqliteQuery(db_, nullptr, SqliteError(rc, sqlite3_errmsg(db_)));
    }
  }
  return SqliteQuery(db_, statement, absl::OkStatus());
}

absl::StatusOr<int64_t> SqliteDb::Scalar(const std::string& sql) {
  SqliteQuery query = Prepare(sql);
  COX_ASSIGN_OR_RETURN(bool row, query.Step());
  if (!row) {
    return absl::DataLossError(absl::StrCat("ledger: no answer to ", sql));
  }
  return query.Int(0);
}

// Every metric is finite or written as null, which reads back as NaN.
std::string MetricsText(const MetricList& metrics) {
  nlohmann::ordered_json json = nlohmann::ordered_json::array();
  for (const auto& [name, value] : metrics) {
    json.push_back({name, value});
  }
  return json.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

// "step.index step.index ..."; the stage is the row's.
std::string UnitsText(const std::vector<UnitId>& units) {
  std::string text;
  for (const UnitId& unit : units) {
    absl::StrAppend(&text, text.empty() ? "" : " ", unit.step, ".", unit.index);
  }
  return text;
}

namespace {

absl::StatusOr<LedgerRecord> LoadRows(SqliteDb& db, const LedgerWindow& options,
                                      bool whole) {
  Loading loading{{}, RowFilter(options), whole};
  LedgerRecord& record = loading.record;
  COX_RETURN_IF_ERROR(Survey(db, loading.filter));
  COX_ASSIGN_OR_RETURN(record.epoch.value,
                       db.Scalar("SELECT epoch FROM fence"));
  COX_ASSIGN_OR_RETURN(record.state.generation.value,
                       db.Scalar("SELECT generation FROM fence"));
  COX_RETURN_IF_ERROR(LoadUnits(db, loading));
  COX_RETURN_IF_ERROR(LoadSteps(db, loading));
  COX_RETURN_IF_ERROR(LoadRest(db, loading));
  COX_RETURN_IF_ERROR(LoadMissing(db, loading));
  COX_RETURN_IF_ERROR(
      ForEach(db, record.sum_of_rows, "txn",
              "SELECT number,epoch,generation,run_id FROM txn ORDER BY number",
              [&](SqliteQuery& q) {
                if (whole) {
                  record.transactions.push_back(
                      {q.Int(0), {q.Int(1)}, {q.Int(2)}, q.Text(3)});
                }
                return absl::OkStatus();
              }));
  COX_RETURN_IF_ERROR(ReadDigest(db, record));
  record.state.left_out = loading.filter.TakeLeftOut();
  return std::move(record);
}

}  // namespace

absl::StatusOr<LedgerRecord> LoadRecord(SqliteDb& db) {
  return LoadRows(db, LedgerWindow(), /*whole=*/true);
}

absl::StatusOr<LedgerRecord> LoadRecent(SqliteDb& db,
                                        const LedgerWindow& options) {
  return LoadRows(db, options, /*whole=*/false);
}

}  // namespace cox
