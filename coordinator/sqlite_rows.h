#ifndef COX_COORDINATOR_SQLITE_ROWS_H_
#define COX_COORDINATOR_SQLITE_ROWS_H_

// The ledger's database as statements and rows, for the writer
// (sqlite_ledger.cc) and for readers. Not for others.

#include <sqlite3.h>

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "coordinator/ledger.h"
#include "lib/base/status.h"

namespace cox {

// A prepared statement in use: binds in order, resets when it goes.
class SqliteQuery {
 public:
  // `statement` is null when it could not be prepared: `prepared` says why.
  SqliteQuery(sqlite3* db, sqlite3_stmt* statement, absl::Status prepared)
      : db_(db), statement_(statement), prepared_(std::move(prepared)) {}
  ~SqliteQuery() {
    if (statement_ != nullptr) {
      sqlite3_reset(statement_);
      sqlite3_clear_bindings(statement_);
    }
  }
  SqliteQuery(const SqliteQuery&) = delete;
  SqliteQuery& operator=(const SqliteQuery&) = delete;

  SqliteQuery& Bind(int64_t value);
  SqliteQuery& Bind(double value);
  SqliteQuery& Bind(const std::string& value);
  // True = a row is there.
  absl::StatusOr<bool> Step();
  absl::Status Run() { return Step().status(); }
  // The row of `table` that was bound, or that Step() stands on: columns in
  // the table's order. Equal for equal rows.
  uint64_t HashOfBound(std::string_view table);
  uint64_t HashOfRow(std::string_view table);
  int64_t Int(int column) { return sqlite3_column_int64(statement_, column); }
  int32_t Int32(int column) { return static_cast<int32_t>(Int(column)); }
  double Real(int column) { return sqlite3_column_double(statement_, column); }
  std::string Text(int column);

 private:
  sqlite3* const db_;
  sqlite3_stmt* const statement_;
  const absl::Status prepared_;
  int bound_ = 0;
  std::string canonical_;  // of the bound values
};

// An open database and its prepared statements. Thread-compatible.
class SqliteDb {
 public:
  SqliteDb() = default;
  SqliteDb(const SqliteDb&) = delete;
  SqliteDb& operator=(const SqliteDb&) = delete;
  ~SqliteDb() { (void)Close(); }

  // `flags` of sqlite3_open_v2; with SQLITE_OPEN_URI `name` may be a URI.
  absl::Status Open(const std::string& name, int flags);
  bool is_open() const { return db_ != nullptr; }
  // Idempotent.
  absl::Status Close();
  absl::Status Execute(const char* sql);
  SqliteQuery Prepare(const std::string& sql);
  absl::StatusOr<int64_t> Scalar(const std::string& sql);
  // Rows that the last statement changed.
  int changes() const { return sqlite3_changes(db_); }

 private:
  sqlite3* db_ = nullptr;
  std::map<std::string, sqlite3_stmt*> statements_;
};

// Text columns.
std::string MetricsText(const MetricList& metrics);
std::string UnitsText(const std::vector<UnitId>& units);

// Every row of an open ledger, in one transaction of the caller's when other
// processes write. DATA_LOSS: a column is damaged.
absl::StatusOr<LedgerRecord> LoadRecord(SqliteDb& db);
// The same without the rows that `options` leave out, and without any
// transaction's number; all are read, for the digest.
absl::StatusOr<LedgerRecord> LoadRecent(SqliteDb& db,
                                        const LedgerWindow& options);

// The digest of a whole ledger: the hashes of all rows added up, and the fence.
// It stands in a table of its own, so that a flipped bit anywhere in the file
// is noticed when the rows are read.
uint64_t LedgerDigest(uint64_t sum_of_rows, Epoch epoch, Generation generation);

// The version of the tables (PRAGMA user_version) that this build writes: 1
// numbers transactions, 2 has removed segments and failed units.
inline constexpr int64_t kLedgerFormat = 2;

}  // namespace cox

#endif  // COX_COORDINATOR_SQLITE_ROWS_H_
