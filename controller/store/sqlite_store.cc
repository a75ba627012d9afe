#include "controller/store/sqlite_store.h"

#include <sqlite3.h>

#include <array>
#include <filesystem>
#include <system_error>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "controller/store/records.pb.h"
#include "proto/base/release.h"
#include "proto/base/status_macros.h"
#include "proto/base/sync_folder.h"

namespace ballast {
namespace {

// "BLST" in ASCII: tells a Ballast store from other SQLite files.
constexpr int64_t kApplicationId = 0x424C5354;

// kMigrations[v] leads from schema version v to v + 1.
constexpr std::array<const char*, SqliteStore::kSchemaVersion> kMigrations = {
    "CREATE TABLE kv (key BLOB PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID",
    // One row: the version of the program that opened the store last.
    "CREATE TABLE program (version TEXT NOT NULL)",
};

// The first key after all that start with `prefix`; nothing when there is none.
std::optional<std::string> PrefixEnd(std::string_view prefix) {
  std::string end(prefix);
  while (!end.empty() && static_cast<unsigned char>(end.back()) == 0xFF) end.pop_back();
  if (end.empty()) return std::nullopt;
  end.back() = static_cast<char>(static_cast<unsigned char>(end.back()) + 1);
  return end;
}

class Statement {
 public:
  explicit Statement(sqlite3_stmt* statement) : statement_(statement) {}
  ~Statement() { sqlite3_finalize(statement_); }
  Statement(const Statement&) = delete;
  Statement& operator=(const Statement&) = delete;
  sqlite3_stmt* get() const { return statement_; }

 private:
  sqlite3_stmt* statement_;
};

void BindBlob(sqlite3_stmt* statement, int index, std::string_view bytes) {
  // A null pointer would bind NULL.
  sqlite3_bind_blob64(statement, index, bytes.empty() ? "" : bytes.data(), bytes.size(), SQLITE_STATIC);
}

std::string ColumnBlob(sqlite3_stmt* statement, int column) {
  const void* data = sqlite3_column_blob(statement, column);
  const int size = sqlite3_column_bytes(statement, column);
  return size == 0 ? std::string() : std::string(static_cast<const char*>(data), size);
}

absl::Status FileError(const std::string& path, const char* what, const std::error_code& error) {
  return absl::UnavailableError(absl::StrCat(path, ": ", what, ": ", error.message()));
}

absl::StatusOr<bool> Exists(const std::string& path) {
  std::error_code error;
  const bool exists = std::filesystem::exists(path, error);
  return error ? absl::StatusOr<bool>(FileError(path, "cannot be looked for", error)) : exists;
}

// Nothing where there is none.
absl::Status RemoveFile(const std::string& path) {
  std::error_code error;
  std::filesystem::remove(path, error);
  return error ? FileError(path, "cannot be removed", error) : absl::OkStatus();
}

// For SQLite: a file that nobody changes, so that no lock and no log are needed.
std::string ImmutableUri(const std::string& path) {
  // Two slashes at the beginning would name a host.
  return absl::StrCat(path.starts_with('/') ? "file://" : "file:",
                      absl::StrReplaceAll(path, {{"%", "%25"}, {"?", "%3f"}, {"#", "%23"}}), "?immutable=1");
}

}  // namespace

absl::Status SqliteStore::Error(int code, std::string_view what) const {
  const std::string message =
      absl::StrCat("store ", path_, ": ", std::string(what), ": ", sqlite3_errmsg(db_), " (SQLite ", code, ")");
  switch (code & 0xFF) {
    case SQLITE_NOTADB:
      return absl::InvalidArgumentError(absl::StrCat(message, "; it is no Ballast store"));
    case SQLITE_CORRUPT:
      return absl::DataLossError(absl::StrCat(message, "; restore a backup"));
    case SQLITE_BUSY:
    case SQLITE_LOCKED:
      return absl::FailedPreconditionError(absl::StrCat(message, "; another process has it open"));
    default:
      return absl::UnavailableError(message);
  }
}

absl::Status SqliteStore::Exec(const char* sql) const {
  const int code = sqlite3_exec(db_, sql, nullptr, nullptr, nullptr);
  return code == SQLITE_OK ? absl::OkStatus() : Error(code, sql);
}

absl::StatusOr<int64_t> SqliteStore::Pragma(const char* name) const {
  sqlite3_stmt* raw = nullptr;
  const std::string sql = absl::StrCat("PRAGMA ", name);
  int code = sqlite3_prepare_v2(db_, sql.c_str(), -1, &raw, nullptr);
  Statement statement(raw);
  if (code != SQLITE_OK) return Error(code, sql);
  code = sqlite3_step(raw);
  if (code != SQLITE_ROW) return Error(code, sql);
  return sqlite3_column_int64(raw, 0);
}

absl::StatusOr<std::unique_ptr<SqliteStore>> SqliteStore::Open(const std::string& path, Schema schema) {
  sqlite3* db = nullptr;
  const bool read_only = schema == Schema::kReadOnly;
  const int code =
      read_only ? sqlite3_open_v2(ImmutableUri(path).c_str(), &db, SQLITE_OPEN_READONLY | SQLITE_OPEN_URI, nullptr)
                : sqlite3_open_v2(path.c_str(), &db, SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE, nullptr);
  if (db == nullptr) return absl::UnavailableError(absl::StrCat("store ", path, ": out of memory"));
  auto store = std::unique_ptr<SqliteStore>(new SqliteStore(path, db));
  MutexLock lock(store->mu_);
  if (code != SQLITE_OK) return store->Error(code, "open");
  sqlite3_extended_result_codes(db, 1);
  // Exclusive from the first read on: a second opener gets SQLITE_BUSY, and the log needs no shared memory file.
  BALLAST_RETURN_IF_ERROR(store->Exec("PRAGMA locking_mode = EXCLUSIVE"));
  BALLAST_ASSIGN_OR_RETURN(const int64_t tables, store->Pragma("schema_version"));
  BALLAST_ASSIGN_OR_RETURN(const int64_t application, store->Pragma("application_id"));
  if (tables != 0 && application != kApplicationId) {
    return absl::InvalidArgumentError(absl::StrCat("store ", path, ": it is no Ballast store"));
  }
  // What a copy onto a full disk leaves is to SQLite a database without tables.
  if (tables == 0 && (read_only || schema == Schema::kAsIs)) {
    return absl::InvalidArgumentError(absl::StrCat("store ", path, ": it is empty"));
  }
  if (!read_only) {
    BALLAST_RETURN_IF_ERROR(store->Exec("PRAGMA journal_mode = WAL"));
    BALLAST_RETURN_IF_ERROR(store->Exec("PRAGMA synchronous = FULL"));
  }
  BALLAST_RETURN_IF_ERROR(store->CheckIntegrity());
  if (schema == Schema::kAsIs || read_only) return store;
  BALLAST_RETURN_IF_ERROR(store->Migrate(schema));
  BALLAST_RETURN_IF_ERROR(store->Prepare());
  return store;
}

absl::Status SqliteStore::CheckIntegrity() {
  sqlite3_stmt* raw = nullptr;
  int code = sqlite3_prepare_v2(db_, "PRAGMA integrity_check(1)", -1, &raw, nullptr);
  Statement statement(raw);
  if (code != SQLITE_OK) return Error(code, "integrity check");
  code = sqlite3_step(raw);
  if (code != SQLITE_ROW) return Error(code, "integrity check");
  const std::string verdict = reinterpret_cast<const char*>(sqlite3_column_text(raw, 0));
  if (verdict != "ok") {
    return absl::DataLossError(absl::StrCat("store ", path_, ": damaged: ", verdict, "; restore a backup"));
  }
  return absl::OkStatus();
}

std::string SqliteStore::WrittenBy() const {
  sqlite3_stmt* raw = nullptr;
  const int code = sqlite3_prepare_v2(db_, "SELECT version FROM program", -1, &raw, nullptr);
  Statement statement(raw);
  if (code != SQLITE_OK || sqlite3_step(raw) != SQLITE_ROW) return "";
  return ColumnBlob(raw, 0);
}

absl::Status SqliteStore::Migrate(Schema schema) {
  BALLAST_ASSIGN_OR_RETURN(const int64_t found, Pragma("user_version"));
  if (found > kSchemaVersion) {
    return absl::FailedPreconditionError(absl::StrCat("store ", path_, ": schema version ", found, ", of version ",
                                                      WrittenBy(), ", is newer than this program's ", kSchemaVersion,
                                                      "; use that version, or restore a backup of before: ", path_,
                                                      ".schema-", kSchemaVersion, " is what the upgrade left"));
  }
  if (schema == Schema::kMigrate && found > 0 && found < kSchemaVersion) {
    const std::string kept = absl::StrCat(path_, ".schema-", found);
    // Of an upgrade that was rolled back.
    BALLAST_RETURN_IF_ERROR(RemoveFile(kept));
    BALLAST_RETURN_IF_ERROR(Copy(kept));
  }
  // Also takes the write lock where nothing is to be migrated.
  BALLAST_RETURN_IF_ERROR(Exec("BEGIN IMMEDIATE"));
  for (int64_t version = found; version < kSchemaVersion; ++version) {
    BALLAST_RETURN_IF_ERROR(Exec(kMigrations[version]));
  }
  BALLAST_RETURN_IF_ERROR(Exec(absl::StrCat("PRAGMA application_id = ", kApplicationId).c_str()));
  BALLAST_RETURN_IF_ERROR(Exec(absl::StrCat("PRAGMA user_version = ", kSchemaVersion).c_str()));
  BALLAST_RETURN_IF_ERROR(Exec("DELETE FROM program"));
  BALLAST_RETURN_IF_ERROR(Exec(absl::StrCat("INSERT INTO program VALUES ('", Version(), "')").c_str()));
  return Exec("COMMIT");
}

absl::Status SqliteStore::Prepare() {
  int code = sqlite3_prepare_v2(db_, "INSERT OR REPLACE INTO kv VALUES (?1, ?2)", -1, &put_, nullptr);
  if (code == SQLITE_OK) code = sqlite3_prepare_v2(db_, "DELETE FROM kv WHERE key = ?1", -1, &remove_, nullptr);
  return code == SQLITE_OK ? absl::OkStatus() : Error(code, "prepare");
}

SqliteStore::~SqliteStore() {
  sqlite3_finalize(put_);
  sqlite3_finalize(remove_);
  sqlite3_close(db_);
}

absl::Status SqliteStore::Apply(std::span<const StoreWrite> writes) {
  MutexLock lock(mu_);
  BALLAST_RETURN_IF_ERROR(Exec("BEGIN IMMEDIATE"));
  absl::Status status;
  for (const StoreWrite& write : writes) {
    sqlite3_stmt* statement = write.value.has_value() ? put_ : remove_;
    BindBlob(statement, 1, write.key);
    if (write.value.has_value()) BindBlob(statement, 2, *write.value);
    const int code = sqlite3_step(statement);
    if (code != SQLITE_DONE) status = Error(code, absl::StrCat("write ", write.key));
    sqlite3_reset(statement);
    sqlite3_clear_bindings(statement);
    if (!status.ok()) break;
  }
  if (status.ok()) status = Exec("COMMIT");
  // Some errors have rolled back already; then this one has nothing to do.
  if (!status.ok() && sqlite3_get_autocommit(db_) == 0) Exec("ROLLBACK").IgnoreError();
  return status;
}

absl::StatusOr<std::optional<std::string>> SqliteStore::Get(std::string_view key) const {
  MutexLock lock(mu_);
  sqlite3_stmt* raw = nullptr;
  int code = sqlite3_prepare_v2(db_, "SELECT value FROM kv WHERE key = ?1", -1, &raw, nullptr);
  Statement statement(raw);
  if (code != SQLITE_OK) return Error(code, "read");
  BindBlob(raw, 1, key);
  code = sqlite3_step(raw);
  if (code == SQLITE_DONE) return std::optional<std::string>();
  if (code != SQLITE_ROW) return Error(code, absl::StrCat("read ", std::string(key)));
  return std::optional<std::string>(ColumnBlob(raw, 0));
}

absl::StatusOr<std::vector<std::pair<std::string, std::string>>> SqliteStore::List(std::string_view prefix) const {
  MutexLock lock(mu_);
  const std::optional<std::string> end = PrefixEnd(prefix);
  sqlite3_stmt* raw = nullptr;
  int code = sqlite3_prepare_v2(db_,
                                end.has_value() ? "SELECT key, value FROM kv WHERE key >= ?1 AND key < ?2 ORDER BY key"
                                                : "SELECT key, value FROM kv WHERE key >= ?1 ORDER BY key",
                                -1, &raw, nullptr);
  Statement statement(raw);
  if (code != SQLITE_OK) return Error(code, "list");
  BindBlob(raw, 1, prefix);
  if (end.has_value()) BindBlob(raw, 2, *end);
  std::vector<std::pair<std::string, std::string>> found;
  while ((code = sqlite3_step(raw)) == SQLITE_ROW) found.emplace_back(ColumnBlob(raw, 0), ColumnBlob(raw, 1));
  if (code != SQLITE_DONE) return Error(code, absl::StrCat("list ", std::string(prefix)));
  return found;
}

absl::Status SqliteStore::CopyTo(const std::string& path) {
  MutexLock lock(mu_);
  return Copy(path);
}

absl::Status SqliteStore::Copy(const std::string& path) {
  BALLAST_ASSIGN_OR_RETURN(const bool exists, Exists(path));
  if (exists) return absl::AlreadyExistsError(absl::StrCat(path, " exists"));
  // Written beside and renamed, so that a crash leaves no half copy under the name asked for.
  const std::string partial = absl::StrCat(path, ".partial");
  BALLAST_RETURN_IF_ERROR(RemoveFile(partial));
  sqlite3* copy = nullptr;
  int code = sqlite3_open_v2(partial.c_str(), &copy, SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE, nullptr);
  if (code == SQLITE_OK) code = sqlite3_exec(copy, "PRAGMA synchronous = FULL", nullptr, nullptr, nullptr);
  if (code == SQLITE_OK) {
    sqlite3_backup* backup = sqlite3_backup_init(copy, "main", db_, "main");
    if (backup != nullptr) {
      sqlite3_backup_step(backup, -1);
      sqlite3_backup_finish(backup);
    }
    code = sqlite3_errcode(copy);
  }
  std::string message = copy == nullptr ? "out of memory" : sqlite3_errmsg(copy);
  sqlite3_close(copy);
  std::error_code error;
  if (code == SQLITE_OK || code == SQLITE_DONE) {
    std::filesystem::rename(partial, path, error);
    if (!error) return SyncFolderOf(path);
    message = error.message();
  }
  std::filesystem::remove(partial, error);
  return absl::UnavailableError(absl::StrCat("copy of store ", path_, " to ", path, ": ", message));
}

absl::Status BackupStore(const std::string& store, const std::string& backup) {
  BALLAST_ASSIGN_OR_RETURN(const bool exists, Exists(store));
  if (!exists) return absl::NotFoundError(absl::StrCat("there is no store ", store));
  BALLAST_ASSIGN_OR_RETURN(const std::unique_ptr<SqliteStore> source,
                           SqliteStore::Open(store, SqliteStore::Schema::kAsIs));
  return source->CopyTo(backup);
}

absl::Status RestoreStore(const std::string& backup, const std::string& store, bool overwrite) {
  BALLAST_ASSIGN_OR_RETURN(const bool backup_exists, Exists(backup));
  if (!backup_exists) return absl::NotFoundError(absl::StrCat("there is no backup ", backup));
  BALLAST_ASSIGN_OR_RETURN(const bool store_exists, Exists(store));
  if (store_exists) {
    if (!overwrite) return absl::AlreadyExistsError(absl::StrCat("store ", store, " exists"));
    // A damaged store may be replaced; one that is in use may not.
    const absl::Status in_use = SqliteStore::Open(store, SqliteStore::Schema::kAsIs).status();
    if (in_use.code() == absl::StatusCode::kFailedPrecondition) return in_use;
  }
  const std::string fresh = absl::StrCat(store, ".restored");
  for (const char* suffix : {"", "-wal", "-shm"}) BALLAST_RETURN_IF_ERROR(RemoveFile(absl::StrCat(fresh, suffix)));
  // A log is part of what it lies beside: of a store that is in use, or was copied by hand. A backup has none.
  BALLAST_ASSIGN_OR_RETURN(const bool log, Exists(absl::StrCat(backup, "-wal")));
  {
    BALLAST_ASSIGN_OR_RETURN(
        const std::unique_ptr<SqliteStore> source,
        SqliteStore::Open(backup, log ? SqliteStore::Schema::kAsIs : SqliteStore::Schema::kReadOnly));
    BALLAST_RETURN_IF_ERROR(source->CopyTo(fresh));
  }
  {
    BALLAST_ASSIGN_OR_RETURN(const std::unique_ptr<SqliteStore> copy,
                             SqliteStore::Open(fresh, SqliteStore::Schema::kMigrateAlone));
    BALLAST_ASSIGN_OR_RETURN(const std::optional<std::string> value, copy->Get("controller"));
    store::ControllerRecord record;
    if (value.has_value() && !record.ParseFromString(*value)) return absl::DataLossError("store: record 'controller'");
    record.set_term(record.term() + (uint64_t{1} << 32));
    const StoreWrite write{"controller", record.SerializeAsString()};
    BALLAST_RETURN_IF_ERROR(copy->Apply(std::span(&write, 1)));
  }
  // Closing a store empties its log, so the one file is all of it. An old log must not be played over the new file.
  for (const char* suffix : {"-wal", "-shm"}) BALLAST_RETURN_IF_ERROR(RemoveFile(absl::StrCat(store, suffix)));
  std::error_code error;
  std::filesystem::rename(fresh, store, error);
  if (error) return absl::UnavailableError(absl::StrCat("rename ", fresh, " to ", store, ": ", error.message()));
  return SyncFolderOf(store);
}

}  // namespace ballast
