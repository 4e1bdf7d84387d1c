// The ledger as one SQLite database beside its write-ahead log.

#include <utility>

#include "absl/strings/str_cat.h"
#include "coordinator/ledger.h"
#include "coordinator/sqlite_rows.h"
#include "lib/base/fs.h"

namespace cox {
namespace {

constexpr char kSchema[] = R"sql(
CREATE TABLE IF NOT EXISTS fence(
  id INTEGER PRIMARY KEY CHECK (id = 1),
  epoch INTEGER NOT NULL, generation INTEGER NOT NULL);
INSERT OR IGNORE INTO fence VALUES(1, 0, 0);
CREATE TABLE IF NOT EXISTS txn(
  number INTEGER PRIMARY KEY, epoch INTEGER NOT NULL,
  generation INTEGER NOT NULL, run_id TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS meta(
  key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS unit(
  stage INTEGER, step INTEGER, idx INTEGER, version_step INTEGER NOT NULL,
  policy_hash TEXT NOT NULL, sha256 TEXT NOT NULL, segment INTEGER NOT NULL,
  offset INTEGER NOT NULL, length INTEGER NOT NULL,
  txn INTEGER NOT NULL DEFAULT 0,
  PRIMARY KEY(stage, step, idx)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS batch(
  stage INTEGER, step INTEGER, units TEXT NOT NULL, dropped TEXT NOT NULL,
  txn INTEGER NOT NULL DEFAULT 0,
  PRIMARY KEY(stage, step)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS version(
  model TEXT, stage INTEGER, step INTEGER, content_hash TEXT NOT NULL,
  manifest TEXT NOT NULL, txn INTEGER NOT NULL DEFAULT 0,
  PRIMARY KEY(model, stage, step));
CREATE TABLE IF NOT EXISTS step(
  stage INTEGER, step INTEGER, batch_sha256 TEXT NOT NULL,
  weight_hash TEXT NOT NULL, skipped INTEGER NOT NULL,
  generation INTEGER NOT NULL, metrics TEXT NOT NULL,
  txn INTEGER NOT NULL DEFAULT 0,
  PRIMARY KEY(stage, step)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS ckpt(
  stage INTEGER, step INTEGER, directory TEXT NOT NULL,
  manifest_sha256 TEXT NOT NULL, weight_hash TEXT NOT NULL,
  state_sha256 TEXT NOT NULL, generation INTEGER NOT NULL,
  txn INTEGER NOT NULL DEFAULT 0,
  PRIMARY KEY(stage, step)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS stage(
  stage INTEGER PRIMARY KEY, state TEXT NOT NULL,
  total_steps INTEGER NOT NULL, metrics TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS event(
  number INTEGER PRIMARY KEY, wall_time_s REAL NOT NULL, kind TEXT NOT NULL,
  text TEXT NOT NULL, txn INTEGER NOT NULL DEFAULT 0);
CREATE TABLE IF NOT EXISTS control(
  number INTEGER PRIMARY KEY, command TEXT NOT NULL,
  effective_step INTEGER NOT NULL);
)sql";

// From the format without numbered transactions; their rows keep number 0.
constexpr char kUpgrade[] = R"sql(
ALTER TABLE unit ADD COLUMN txn INTEGER NOT NULL DEFAULT 0;
ALTER TABLE batch ADD COLUMN txn INTEGER NOT NULL DEFAULT 0;
ALTER TABLE version ADD COLUMN txn INTEGER NOT NULL DEFAULT 0;
ALTER TABLE step ADD COLUMN txn INTEGER NOT NULL DEFAULT 0;
ALTER TABLE ckpt ADD COLUMN txn INTEGER NOT NULL DEFAULT 0;
ALTER TABLE event ADD COLUMN txn INTEGER NOT NULL DEFAULT 0;
)sql";

class SqliteLedger : public LedgerStore {
 public:
  ~SqliteLedger() override { (void)Close(); }

  absl::Status Open(const std::string& path) {
    COX_RETURN_IF_ERROR(db_.Open(path, SQLITE_OPEN_READWRITE |
                                           SQLITE_OPEN_CREATE |
                                           SQLITE_OPEN_NOMUTEX));
    return Annotate(OpenTables(), path);
  }

  Epoch epoch() const override { return epoch_; }

  absl::Status CheckFence() override {
    absl::StatusOr<int64_t> found = db_.Scalar("SELECT epoch FROM fence");
    COX_RETURN_IF_ERROR(found.status());
    return *found == epoch_.value ? absl::OkStatus() : Fenced();
  }

  absl::Status Commit(const std::vector<LedgerRow>& rows) override {
    const int64_t before = txn_;
    COX_RETURN_IF_ERROR(db_.Execute("BEGIN IMMEDIATE"));
    absl::Status status = WriteAll(rows);
    if (status.ok()) {
      status = db_.Execute("COMMIT");
    }
    if (!status.ok()) {
      txn_ = before;
      (void)db_.Execute("ROLLBACK");
    }
    return status;
  }

  absl::StatusOr<LedgerState> Load() override {
    COX_ASSIGN_OR_RETURN(LedgerRecord record, LoadRecord(db_));
    return std::move(record.state);
  }

  absl::Status Close() override {
    if (!db_.is_open()) {
      return absl::OkStatus();
    }
    (void)db_.Execute("PRAGMA wal_checkpoint(TRUNCATE)");
    return db_.Close();
  }

 private:
  // What is read now is durable from here on. An earlier incarnation may have
  // ended at a failed sync: the log then lies in the page cache, looks whole,
  // and no later sync writes it. Copied into the database it is written anew.
  absl::Status MakeDurable() {
    COX_ASSIGN_OR_RETURN(const int64_t busy,
                         db_.Scalar("PRAGMA wal_checkpoint(FULL)"));
    return busy == 0 ? absl::OkStatus()
                     : absl::UnavailableError(
                           "ledger: another process is reading or writing it");
  }

  absl::Status OpenTables() {
    COX_RETURN_IF_ERROR(db_.Execute("PRAGMA journal_mode=WAL"));
    COX_RETURN_IF_ERROR(db_.Execute("PRAGMA synchronous=FULL"));
    COX_RETURN_IF_ERROR(db_.Execute("PRAGMA foreign_keys=ON"));
    // Other builds have other defaults, and a file system without shared
    // memory silently refuses WAL: read back what holds (rule 2).
    {
      SqliteQuery mode = db_.Prepare("PRAGMA journal_mode");
      COX_RETURN_IF_ERROR(mode.Run());
      if (mode.Text(0) != "wal") {
        return absl::FailedPreconditionError(absl::StrCat(
            "ledger: journal mode wal expected, found ", mode.Text(0)));
      }
    }
    COX_ASSIGN_OR_RETURN(int64_t synchronous, db_.Scalar("PRAGMA synchronous"));
    COX_ASSIGN_OR_RETURN(int64_t keys, db_.Scalar("PRAGMA foreign_keys"));
    if (synchronous != 2 || keys != 1) {
      return absl::FailedPreconditionError(absl::StrCat(
          "ledger: synchronous 2 and foreign_keys 1 expected, found ",
          synchronous, " and ", keys));
    }
    COX_RETURN_IF_ERROR(MakeDurable());
    COX_RETURN_IF_ERROR(db_.Execute("BEGIN IMMEDIATE"));
    COX_RETURN_IF_ERROR(MakeTables());
    COX_RETURN_IF_ERROR(db_.Execute("UPDATE fence SET epoch = epoch + 1"));
    COX_ASSIGN_OR_RETURN(epoch_.value, db_.Scalar("SELECT epoch FROM fence"));
    COX_ASSIGN_OR_RETURN(txn_,
                         db_.Scalar("SELECT COALESCE(MAX(number),0) FROM txn"));
    {
      SqliteQuery run =
          db_.Prepare("SELECT value FROM meta WHERE key='run_id'");
      COX_ASSIGN_OR_RETURN(const bool known, run.Step());
      run_id_ = known ? run.Text(0) : "";
    }
    return db_.Execute("COMMIT");
  }

  absl::Status MakeTables() {
    COX_ASSIGN_OR_RETURN(const int64_t format,
                         db_.Scalar("PRAGMA user_version"));
    if (format > kLedgerFormat) {
      return absl::FailedPreconditionError(
          absl::StrCat("ledger: format ", kLedgerFormat, " expected, found ",
                       format, ", of a newer build"));
    }
    COX_ASSIGN_OR_RETURN(
        const int64_t tables,
        db_.Scalar("SELECT COUNT(*) FROM sqlite_master WHERE name='unit'"));
    if (tables > 0 && format < kLedgerFormat) {
      COX_RETURN_IF_ERROR(db_.Execute(kUpgrade));
    }
    COX_RETURN_IF_ERROR(db_.Execute(kSchema));
    return db_.Execute(
        absl::StrCat("PRAGMA user_version=", kLedgerFormat).c_str());
  }

  absl::Status Fenced() {
    return absl::FailedPreconditionError(
        absl::StrCat("ledger: a newer epoch took over from ", epoch_.value));
  }

  absl::Status WriteAll(const std::vector<LedgerRow>& rows) {
    {
      // The proof that this incarnation still owns the ledger, inside the
      // transaction (rule 1).
      SqliteQuery fence = db_.Prepare(
          "UPDATE fence SET generation = generation WHERE epoch = ?");
      COX_RETURN_IF_ERROR(fence.Bind(epoch_.value).Run());
      if (db_.changes() != 1) {
        return Fenced();
      }
    }
    ++txn_;
    for (const LedgerRow& row : rows) {
      COX_RETURN_IF_ERROR(
          std::visit([this](const auto& r) { return Write(r); }, row));
    }
    return db_.Prepare("INSERT INTO txn SELECT ?,epoch,generation,? FROM fence")
        .Bind(txn_)
        .Bind(run_id_)
        .Run();
  }

  absl::Status Write(const MetaRow& r) {
    if (r.key == "run_id") {
      run_id_ = r.value;
    }
    return db_.Prepare("INSERT OR REPLACE INTO meta VALUES(?,?)")
        .Bind(r.key)
        .Bind(r.value)
        .Run();
  }
  absl::Status Write(const GenerationRow& r) {
    return db_.Prepare("UPDATE fence SET generation = ?")
        .Bind(r.generation.value)
        .Run();
  }
  absl::Status Write(const UnitRow& r) {
    return db_.Prepare("INSERT INTO unit VALUES(?,?,?,?,?,?,?,?,?,?)")
        .Bind(int64_t{r.id.stage})
        .Bind(r.id.step)
        .Bind(int64_t{r.id.index})
        .Bind(r.version_step)
        .Bind(r.policy_hash)
        .Bind(r.sha256)
        .Bind(int64_t{r.payload.segment})
        .Bind(static_cast<int64_t>(r.payload.offset))
        .Bind(static_cast<int64_t>(r.payload.length))
        .Bind(txn_)
        .Run();
  }
  absl::Status Write(const BatchRow& r) {
    return db_.Prepare("INSERT INTO batch VALUES(?,?,?,?,?)")
        .Bind(int64_t{r.stage})
        .Bind(r.step)
        .Bind(UnitsText(r.units))
        .Bind(UnitsText(r.dropped))
        .Bind(txn_)
        .Run();
  }
  absl::Status Write(const VersionRow& r) {
    return db_.Prepare("INSERT INTO version VALUES(?,?,?,?,?,?)")
        .Bind(r.model)
        .Bind(int64_t{r.version.stage})
        .Bind(r.version.step)
        .Bind(r.content_hash)
        .Bind(r.manifest)
        .Bind(txn_)
        .Run();
  }
  absl::Status Write(const StepRow& r) {
    return db_.Prepare("INSERT INTO step VALUES(?,?,?,?,?,?,?,?)")
        .Bind(int64_t{r.stage})
        .Bind(r.step)
        .Bind(r.batch_sha256)
        .Bind(r.weight_hash)
        .Bind(int64_t{r.skipped ? 1 : 0})
        .Bind(r.generation.value)
        .Bind(MetricsText(r.metrics))
        .Bind(txn_)
        .Run();
  }
  absl::Status Write(const CheckpointRow& r) {
    return db_.Prepare("INSERT INTO ckpt VALUES(?,?,?,?,?,?,?,?)")
        .Bind(int64_t{r.stage})
        .Bind(r.step)
        .Bind(r.directory)
        .Bind(r.manifest_sha256)
        .Bind(r.weight_hash)
        .Bind(r.state_sha256)
        .Bind(r.generation.value)
        .Bind(txn_)
        .Run();
  }
  absl::Status Write(const CheckpointRemovedRow& r) {
    return db_.Prepare("DELETE FROM ckpt WHERE stage = ? AND step = ?")
        .Bind(int64_t{r.stage})
        .Bind(r.step)
        .Run();
  }
  absl::Status Write(const StageRow& r) {
    return db_.Prepare("INSERT OR REPLACE INTO stage VALUES(?,?,?,?)")
        .Bind(int64_t{r.stage})
        .Bind(r.state)
        .Bind(r.total_steps)
        .Bind(MetricsText(r.metrics))
        .Run();
  }
  absl::Status Write(const EventRow& r) {
    return db_.Prepare("INSERT INTO event VALUES(?,?,?,?,?)")
        .Bind(r.number)
        .Bind(r.wall_time_s)
        .Bind(r.kind)
        .Bind(r.text)
        .Bind(txn_)
        .Run();
  }
  absl::Status Write(const ControlRow& r) {
    return db_.Prepare("INSERT INTO control VALUES(?,?,?)")
        .Bind(r.number)
        .Bind(r.command)
        .Bind(r.effective_step)
        .Run();
  }

  SqliteDb db_;
  Epoch epoch_;
  std::string run_id_;
  int64_t txn_ = 0;  // of the last transaction, or of the one in progress
};

// `path` as a URI of a file that nobody changes.
std::string FileUri(const std::string& path) {
  std::string uri = "file:";
  for (const char c : path) {
    if (c == '?' || c == '#' || c == '%') {
      absl::StrAppend(&uri, "%", absl::Hex(c, absl::kZeroPad2));
    } else {
      uri += c;
    }
  }
  return uri + "?immutable=1";
}

absl::StatusOr<LedgerRecord> ReadTables(SqliteDb& db) {
  COX_RETURN_IF_ERROR(db.Execute("BEGIN"));
  COX_ASSIGN_OR_RETURN(const int64_t format, db.Scalar("PRAGMA user_version"));
  if (format != kLedgerFormat) {
    return absl::FailedPreconditionError(absl::StrCat(
        "ledger: format ", kLedgerFormat, " expected, found ", format,
        "; resuming the run converts an older one"));
  }
  return LoadRecord(db);
}

}  // namespace

absl::StatusOr<std::unique_ptr<LedgerStore>> OpenSqliteLedger(
    const std::string& path) {
  auto ledger = std::make_unique<SqliteLedger>();
  COX_RETURN_IF_ERROR(ledger->Open(path));
  return ledger;
}

absl::StatusOr<LedgerRecord> ReadSqliteLedger(const std::string& path) {
  Fs& fs = Fs::Real();
  if (!fs.Exists(path)) {
    return absl::NotFoundError(absl::StrCat(path, ": no ledger there"));
  }
  // Without a log nobody has it open: read the file itself, so that SQLite
  // makes no log of its own. A writer may start meanwhile; then read again.
  for (int attempt = 0;; ++attempt) {
    const bool live = fs.Exists(path + "-wal") || attempt > 2;
    SqliteDb db;
    COX_RETURN_IF_ERROR(
        live ? db.Open(path, SQLITE_OPEN_READONLY | SQLITE_OPEN_NOMUTEX)
             : db.Open(FileUri(path), SQLITE_OPEN_READONLY | SQLITE_OPEN_URI |
                                          SQLITE_OPEN_NOMUTEX));
    absl::StatusOr<LedgerRecord> record = ReadTables(db);
    if (live || !fs.Exists(path + "-wal")) {
      return record.ok() ? std::move(record)
                         : Annotate(record.status(), path);
    }
  }
}

}  // namespace cox
