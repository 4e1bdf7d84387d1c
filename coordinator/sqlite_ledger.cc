// The ledger as one SQLite database beside its write-ahead log.

#include <fcntl.h>
#include <unistd.h>

#include <utility>

#include "absl/strings/str_cat.h"
#include "coordinator/ledger.h"
#include "coordinator/sqlite_rows.h"
#include "coordinator/wal_check.h"
#include "lib/base/fs.h"
#include "lib/base/log.h"

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
CREATE TABLE IF NOT EXISTS segment_removed(
  segment INTEGER PRIMARY KEY, bytes INTEGER NOT NULL,
  txn INTEGER NOT NULL DEFAULT 0);
CREATE TABLE IF NOT EXISTS unit_failed(
  stage INTEGER, step INTEGER, idx INTEGER, why TEXT NOT NULL,
  txn INTEGER NOT NULL DEFAULT 0,
  PRIMARY KEY(stage, step, idx)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS digest(
  id INTEGER PRIMARY KEY CHECK (id = 1), value INTEGER NOT NULL);
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
  int64_t last_transaction() const override { return txn_; }

  absl::Status CheckFence() override {
    absl::StatusOr<int64_t> found = db_.Scalar("SELECT epoch FROM fence");
    COX_RETURN_IF_ERROR(found.status());
    return *found == epoch_.value ? absl::OkStatus() : Fenced();
  }

  absl::Status Commit(const std::vector<LedgerRow>& rows) override {
    const int64_t before = txn_;
    const Digest digest_before = digest_;
    const Generation generation_before = generation_;
    COX_RETURN_IF_ERROR(db_.Execute("BEGIN IMMEDIATE"));
    absl::Status status = WriteAll(rows);
    if (status.ok()) {
      status = db_.Execute("COMMIT");
    }
    if (!status.ok()) {
      txn_ = before;
      digest_ = digest_before;
      generation_ = generation_before;
      (void)db_.Execute("ROLLBACK");
    }
    return status;
  }

  absl::StatusOr<LedgerState> Load(const LedgerWindow& options) override {
    COX_ASSIGN_OR_RETURN(LedgerRecord record, LoadRecent(db_, options));
    if (!record.digest_ok) {
      return absl::DataLossError(
          "ledger: its rows are not those that were written: the file is "
          "damaged");
    }
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
    // The log begins anew, so that no frame of an earlier incarnation lies
    // behind those of this one (wal_check.h). A reader may prevent that.
    COX_ASSIGN_OR_RETURN(const int64_t read,
                         db_.Scalar("PRAGMA wal_checkpoint(TRUNCATE)"));
    if (read == 0) {
      return absl::OkStatus();
    }
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
    COX_RETURN_IF_ERROR(LoadDigest());
    COX_RETURN_IF_ERROR(db_.Execute("UPDATE fence SET epoch = epoch + 1"));
    ++epoch_.value;
    COX_RETURN_IF_ERROR(WriteDigest());
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
    if (tables > 0 && format < 1) {
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
    COX_RETURN_IF_ERROR(
        Add("txn", db_.Prepare("INSERT INTO txn VALUES(?,?,?,?)")
                       .Bind(txn_)
                       .Bind(epoch_.value)
                       .Bind(generation_.value)
                       .Bind(run_id_)));
    return WriteDigest();
  }

  // What the digest is made of (LedgerDigest): the sum over all rows, and the
  // parts of those that may be replaced or deleted.
  struct Digest {
    uint64_t sum = 0;
    std::map<std::string, uint64_t> parts;
  };

  absl::Status LoadDigest() {
    COX_ASSIGN_OR_RETURN(epoch_.value, db_.Scalar("SELECT epoch FROM fence"));
    COX_ASSIGN_OR_RETURN(generation_.value,
                         db_.Scalar("SELECT generation FROM fence"));
    bool known = false;
    {
      SqliteQuery query = db_.Prepare("SELECT value FROM digest");
      COX_ASSIGN_OR_RETURN(known, query.Step());
      digest_.sum = known ? static_cast<uint64_t>(query.Int(0)) -
                                LedgerDigest(0, epoch_, generation_)
                          : 0;
    }
    if (!known) {  // new, or of a build without digests
      COX_ASSIGN_OR_RETURN(const LedgerRecord record,
                           LoadRecent(db_, {.keep_steps = 0}));
      digest_.sum = record.sum_of_rows;
    }
    for (const auto& [table, sql] :
         {std::pair("meta", "SELECT key,value FROM meta"),
          std::pair("stage",
                    "SELECT stage,state,total_steps,metrics FROM stage"),
          std::pair("ckpt",
                    "SELECT stage,step,directory,manifest_sha256,weight_hash,"
                    "state_sha256,generation,txn FROM ckpt")}) {
      SqliteQuery query = db_.Prepare(sql);
      while (true) {
        COX_ASSIGN_OR_RETURN(const bool row, query.Step());
        if (!row) {
          break;
        }
        std::string key = absl::StrCat(table, " ", query.Text(0));
        if (std::string_view(table) == "ckpt") {
          absl::StrAppend(&key, " ", query.Int(1));
        }
        digest_.parts[key] = query.HashOfRow(table);
      }
    }
    return absl::OkStatus();
  }

  absl::Status WriteDigest() {
    return db_.Prepare("INSERT OR REPLACE INTO digest VALUES(1,?)")
        .Bind(static_cast<int64_t>(
            LedgerDigest(digest_.sum, epoch_, generation_)))
        .Run();
  }

  // Runs an insertion of a whole row.
  absl::Status Add(std::string_view table, SqliteQuery& insert) {
    COX_RETURN_IF_ERROR(insert.Run());
    digest_.sum += insert.HashOfBound(table);
    return absl::OkStatus();
  }
  // The same for a row that stands in the place of an earlier one of `key`.
  absl::Status Replace(std::string_view table, const std::string& key,
                       SqliteQuery& insert) {
    COX_RETURN_IF_ERROR(insert.Run());
    uint64_t& part = digest_.parts[key];
    digest_.sum -= part;
    part = insert.HashOfBound(table);
    digest_.sum += part;
    return absl::OkStatus();
  }

  absl::Status Write(const MetaRow& r) {
    if (r.key == "run_id") {
      run_id_ = r.value;
    }
    return Replace("meta", absl::StrCat("meta ", r.key),
                   db_.Prepare("INSERT OR REPLACE INTO meta VALUES(?,?)")
                       .Bind(r.key)
                       .Bind(r.value));
  }
  absl::Status Write(const GenerationRow& r) {
    generation_ = r.generation;
    return db_.Prepare("UPDATE fence SET generation = ?")
        .Bind(r.generation.value)
        .Run();
  }
  absl::Status Write(const UnitRow& r) {
    return Add("unit",
               db_.Prepare("INSERT INTO unit VALUES(?,?,?,?,?,?,?,?,?,?)")
                   .Bind(int64_t{r.id.stage})
                   .Bind(r.id.step)
                   .Bind(int64_t{r.id.index})
                   .Bind(r.version_step)
                   .Bind(r.policy_hash)
                   .Bind(r.sha256)
                   .Bind(int64_t{r.payload.segment})
                   .Bind(static_cast<int64_t>(r.payload.offset))
                   .Bind(static_cast<int64_t>(r.payload.length))
                   .Bind(txn_));
  }
  absl::Status Write(const BatchRow& r) {
    return Add("batch", db_.Prepare("INSERT INTO batch VALUES(?,?,?,?,?)")
                            .Bind(int64_t{r.stage})
                            .Bind(r.step)
                            .Bind(UnitsText(r.units))
                            .Bind(UnitsText(r.dropped))
                            .Bind(txn_));
  }
  absl::Status Write(const VersionRow& r) {
    return Add("version", db_.Prepare("INSERT INTO version VALUES(?,?,?,?,?,?)")
                              .Bind(r.model)
                              .Bind(int64_t{r.version.stage})
                              .Bind(r.version.step)
                              .Bind(r.content_hash)
                              .Bind(r.manifest)
                              .Bind(txn_));
  }
  absl::Status Write(const StepRow& r) {
    return Add("step", db_.Prepare("INSERT INTO step VALUES(?,?,?,?,?,?,?,?)")
                           .Bind(int64_t{r.stage})
                           .Bind(r.step)
                           .Bind(r.batch_sha256)
                           .Bind(r.weight_hash)
                           .Bind(int64_t{r.skipped ? 1 : 0})
                           .Bind(r.generation.value)
                           .Bind(MetricsText(r.metrics))
                           .Bind(txn_));
  }
  absl::Status Write(const CheckpointRow& r) {
    return Replace("ckpt", absl::StrCat("ckpt ", r.stage, " ", r.step),
                   db_.Prepare("INSERT INTO ckpt VALUES(?,?,?,?,?,?,?,?)")
                       .Bind(int64_t{r.stage})
                       .Bind(r.step)
                       .Bind(r.directory)
                       .Bind(r.manifest_sha256)
                       .Bind(r.weight_hash)
                       .Bind(r.state_sha256)
                       .Bind(r.generation.value)
                       .Bind(txn_));
  }
  absl::Status Write(const CheckpointRemovedRow& r) {
    if (auto part =
            digest_.parts.extract(absl::StrCat("ckpt ", r.stage, " ", r.step));
        !part.empty()) {
      digest_.sum -= part.mapped();
    }
    return db_.Prepare("DELETE FROM ckpt WHERE stage = ? AND step = ?")
        .Bind(int64_t{r.stage})
        .Bind(r.step)
        .Run();
  }
  absl::Status Write(const StageRow& r) {
    return Replace("stage", absl::StrCat("stage ", r.stage),
                   db_.Prepare("INSERT OR REPLACE INTO stage VALUES(?,?,?,?)")
                       .Bind(int64_t{r.stage})
                       .Bind(r.state)
                       .Bind(r.total_steps)
                       .Bind(MetricsText(r.metrics)));
  }
  absl::Status Write(const SegmentRemovedRow& r) {
    return Add("segment_removed",
               db_.Prepare("INSERT INTO segment_removed VALUES(?,?,?)")
                   .Bind(int64_t{r.segment})
                   .Bind(static_cast<int64_t>(r.bytes))
                   .Bind(txn_));
  }
  absl::Status Write(const UnitFailedRow& r) {
    return Add("unit_failed",
               db_.Prepare("INSERT INTO unit_failed VALUES(?,?,?,?,?)")
                   .Bind(int64_t{r.id.stage})
                   .Bind(r.id.step)
                   .Bind(int64_t{r.id.index})
                   .Bind(r.why)
                   .Bind(txn_));
  }
  absl::Status Write(const EventRow& r) {
    return Add("event", db_.Prepare("INSERT INTO event VALUES(?,?,?,?,?)")
                            .Bind(r.number)
                            .Bind(r.wall_time_s)
                            .Bind(r.kind)
                            .Bind(r.text)
                            .Bind(txn_));
  }
  absl::Status Write(const ControlRow& r) {
    return Add("control", db_.Prepare("INSERT INTO control VALUES(?,?,?)")
                              .Bind(r.number)
                              .Bind(r.command)
                              .Bind(r.effective_step));
  }

  SqliteDb db_;
  Epoch epoch_;
  Generation generation_;
  Digest digest_;
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

absl::Status WriteAt(const std::string& path,
                     const std::vector<WalFix>& fixes) {
  const int fd = open(path.c_str(), O_WRONLY | O_CLOEXEC);
  if (fd < 0) {
    return absl::InternalError(absl::StrCat(path, ": cannot be opened"));
  }
  bool ok = true;
  for (const WalFix& fix : fixes) {
    ok = ok && pwrite(fd, fix.bytes.data(), fix.bytes.size(),
                      static_cast<off_t>(fix.offset)) ==
                   static_cast<ssize_t>(fix.bytes.size());
  }
  ok = ok && fdatasync(fd) == 0;
  close(fd);
  return ok ? absl::OkStatus()
            : absl::InternalError(absl::StrCat(path, ": cannot be written"));
}

// SQLite would take a damaged frame for the end of the log.
absl::Status MendWal(const std::string& path) {
  Fs& fs = Fs::Real();
  absl::Status damaged;
  // An incarnation that still runs may write meanwhile: a bad verdict counts
  // when it is found twice.
  for (int look = 0; look < 2 && fs.Exists(path); ++look) {
    COX_ASSIGN_OR_RETURN(const std::string wal, fs.ReadAll(path));
    const absl::StatusOr<std::vector<WalFix>> fixes = CheckWal(wal);
    if (fixes.ok()) {
      if (!fixes->empty()) {
        LogWarning("damaged words of the ledger's log were put right",
                   {{"file", path}, Field("words", fixes->size())});
        return WriteAt(path, *fixes);
      }
      return absl::OkStatus();
    }
    damaged = absl::DataLossError(absl::StrCat(
        path, ": ", std::string(fixes.status().message()),
        ". Put back ledger.db and ledger.db-wal from a copy, or start a new "
        "run directory from a checkpoint"));
  }
  return damaged;
}

absl::StatusOr<LedgerRecord> ReadTables(SqliteDb& db) {
  COX_RETURN_IF_ERROR(db.Execute("BEGIN"));
  COX_ASSIGN_OR_RETURN(const int64_t format, db.Scalar("PRAGMA user_version"));
  if (format < 1 || format > kLedgerFormat) {
    return absl::FailedPreconditionError(
        absl::StrCat("ledger: format 1 to ", kLedgerFormat, " expected, found ",
                     format, "; resuming the run converts an older one"));
  }
  return LoadRecord(db);
}

}  // namespace

absl::StatusOr<std::unique_ptr<LedgerStore>> OpenSqliteLedger(
    const std::string& path) {
  COX_RETURN_IF_ERROR(MendWal(path + "-wal"));
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
      return record.ok() ? std::move(record) : Annotate(record.status(), path);
    }
  }
}

}  // namespace cox
