// The embedded store: one SQLite file.
#ifndef BALLAST_CONTROLLER_STORE_SQLITE_STORE_H_
#define BALLAST_CONTROLLER_STORE_SQLITE_STORE_H_

#include <memory>
#include <string>

#include "controller/store/store.h"

struct sqlite3;
struct sqlite3_stmt;

namespace ballast {

// Write-ahead log with synchronous=FULL: a batch is on the disk when Apply returns. The file is locked for this process
// from Open to destruction; a process that is killed leaves neither a lock nor a half batch behind.
class SqliteStore final : public Store {
 public:
  // The layout of the tables; grows with each change, and Open migrates older ones in one transaction.
  static constexpr int kSchemaVersion = 2;

  // What Open does about an older schema.
  enum class Schema {
    // Migrates it, and keeps the store as it was beside it, as PATH.schema-N: the way back to the program before.
    kMigrate,
    // Migrates it and keeps nothing.
    kMigrateAlone,
    // Leaves it, and newer ones too: for CopyTo.
    kAsIs,
    // The same, and changes nothing in the file or beside it, which may be on a medium that cannot be written. Nobody
    // else may write the file meanwhile, and there must be no log beside it: neither is looked at.
    kReadOnly,
  };

  // Opens `path`, or makes it (its folder must exist). Checks the whole file's integrity.
  //   InvalidArgument     the file is no Ballast store.
  //   FailedPrecondition  another process has it open, or its schema is newer than kSchemaVersion: the message names
  //                       the version that wrote it and the remedy.
  //   DataLoss            the file is damaged.
  //   Unavailable         it cannot be opened, made or copied.
  static absl::StatusOr<std::unique_ptr<SqliteStore>> Open(const std::string& path, Schema schema = Schema::kMigrate);
  ~SqliteStore() override;

  absl::Status Apply(std::span<const StoreWrite> writes) override BALLAST_EXCLUDES(mu_);
  absl::StatusOr<std::optional<std::string>> Get(std::string_view key) const override BALLAST_EXCLUDES(mu_);
  absl::StatusOr<std::vector<std::pair<std::string, std::string>>> List(std::string_view prefix) const override
      BALLAST_EXCLUDES(mu_);

  // Copies everything into a new file.
  //   AlreadyExists  `path` exists.
  //   Unavailable    it cannot be made, or looked for.
  absl::Status CopyTo(const std::string& path) BALLAST_EXCLUDES(mu_);

 private:
  SqliteStore(std::string path, sqlite3* db) : path_(std::move(path)), db_(db) {}
  absl::Status Exec(const char* sql) const BALLAST_REQUIRES(mu_);
  absl::Status Prepare() BALLAST_REQUIRES(mu_);
  absl::Status Migrate(Schema schema) BALLAST_REQUIRES(mu_);
  // The version of the program that opened the store last; empty: schema 1 did not say.
  std::string WrittenBy() const BALLAST_REQUIRES(mu_);
  absl::Status Copy(const std::string& path) BALLAST_REQUIRES(mu_);
  absl::Status CheckIntegrity() BALLAST_REQUIRES(mu_);
  absl::StatusOr<int64_t> Pragma(const char* name) const BALLAST_REQUIRES(mu_);
  absl::Status Error(int code, std::string_view what) const BALLAST_REQUIRES(mu_);

  const std::string path_;
  mutable Mutex mu_;
  sqlite3* const db_;
  sqlite3_stmt* put_ BALLAST_GUARDED_BY(mu_) = nullptr;
  sqlite3_stmt* remove_ BALLAST_GUARDED_BY(mu_) = nullptr;
};

// Copies a store that no controller has open into a new file `backup`, of whatever schema it is.
//   FailedPrecondition  a controller has the store open.   NotFound  there is no store.
//   AlreadyExists, Unavailable  as CopyTo.
absl::Status BackupStore(const std::string& store, const std::string& backup);

// Makes `store` from `backup`, which stays as it is and may be read-only. The term grows past any that controllers of
// the original may have used since the backup (by 2^32), so that workers obey the restored controller; epochs and views
// go on from the highest that any worker reports.
//   FailedPrecondition  a controller has the store open.   NotFound  there is no backup.
//   AlreadyExists       `store` exists and `overwrite` is false.
//   Unavailable         one of them cannot be read or written.
absl::Status RestoreStore(const std::string& backup, const std::string& store, bool overwrite);

}  // namespace ballast

#endif  // BALLAST_CONTROLLER_STORE_SQLITE_STORE_H_
