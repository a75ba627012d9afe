#include "controller/store/sqlite_store.h"

#include <signal.h>
#include <sqlite3.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <iterator>
#include <memory>
#include <string>

#include "absl/strings/str_cat.h"
#include "controller/store/term.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "proto/base/no_privileges.h"
#include "proto/base/release.h"

namespace ballast {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Pair;

std::string NewPath(const std::string& name) {
  const std::string path = absl::StrCat(::testing::TempDir(), "/", getpid(), "-", name, ".db");
  for (const char* suffix : {"", "-wal", "-shm", ".partial", ".schema-1"})
    std::filesystem::remove(absl::StrCat(path, suffix));
  return path;
}

std::unique_ptr<SqliteStore> MustOpen(const std::string& path) {
  absl::StatusOr<std::unique_ptr<SqliteStore>> store = SqliteStore::Open(path);
  EXPECT_TRUE(store.ok()) << store.status();
  return store.ok() ? *std::move(store) : nullptr;
}

std::string Bytes(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return std::string((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
}

void ExecOn(const std::string& path, const std::string& sql) {
  sqlite3* db = nullptr;
  ASSERT_EQ(sqlite3_open(path.c_str(), &db), SQLITE_OK);
  ASSERT_EQ(sqlite3_exec(db, sql.c_str(), nullptr, nullptr, nullptr), SQLITE_OK) << sqlite3_errmsg(db);
  sqlite3_close(db);
}

template <typename T>
class AnyStore : public ::testing::Test {
 protected:
  std::unique_ptr<Store> Make() {
    if constexpr (std::is_same_v<T, MemoryStore>) {
      return std::make_unique<MemoryStore>();
    } else {
      return MustOpen(NewPath("any"));
    }
  }
};
using Stores = ::testing::Types<MemoryStore, SqliteStore>;
TYPED_TEST_SUITE(AnyStore, Stores);

TYPED_TEST(AnyStore, BatchesApplyInOrderAndKeysListSorted) {
  const std::unique_ptr<Store> store = this->Make();
  const std::string bytes("\0\xff\x01", 3);
  ASSERT_TRUE(
      store->Apply(std::vector<StoreWrite>{{"b/2", "two"}, {"b/1", bytes}, {"c", ""}, {"a", "x"}, {"a", std::nullopt}})
          .ok());
  EXPECT_EQ(**store->Get("b/1"), bytes);
  EXPECT_EQ(**store->Get("c"), "");
  EXPECT_EQ(*store->Get("a"), std::nullopt);
  EXPECT_THAT(*store->List("b/"), ElementsAre(Pair("b/1", bytes), Pair("b/2", "two")));
  EXPECT_EQ(store->List("")->size(), 3u);
  EXPECT_THAT(*store->List("b/3"), IsEmpty());
  ASSERT_TRUE(store->Apply(std::vector<StoreWrite>{{"b/2", "zwei"}, {"nothing", std::nullopt}}).ok());
  EXPECT_EQ(**store->Get("b/2"), "zwei");
}

TYPED_TEST(AnyStore, TermGrowsWithEveryStart) {
  const std::unique_ptr<Store> store = this->Make();
  EXPECT_EQ(*BeginTerm(*store), Term(1));
  EXPECT_EQ(*BeginTerm(*store), Term(2));
}

TEST(SqliteStore, KeepsWhatWasWritten) {
  const std::string path = NewPath("keeps");
  ASSERT_TRUE(MustOpen(path)->Apply(std::vector<StoreWrite>{{"k", "v"}}).ok());
  EXPECT_EQ(**MustOpen(path)->Get("k"), "v");
}

TEST(SqliteStore, SecondOpenerIsRefused) {
  const std::string path = NewPath("locked");
  const std::unique_ptr<SqliteStore> store = MustOpen(path);
  // In this process, and in another.
  EXPECT_EQ(SqliteStore::Open(path).status().code(), absl::StatusCode::kFailedPrecondition);
  const pid_t child = fork();
  if (child == 0) _exit(SqliteStore::Open(path).status().code() == absl::StatusCode::kFailedPrecondition ? 0 : 1);
  int status = 0;
  waitpid(child, &status, 0);
  EXPECT_EQ(status, 0);
}

TEST(SqliteStore, RefusesNewerSchemaAndStrangers) {
  const std::string path = NewPath("newer");
  MustOpen(path);
  ExecOn(path, absl::StrCat("PRAGMA user_version = ", SqliteStore::kSchemaVersion + 1));
  const absl::Status newer = SqliteStore::Open(path).status();
  EXPECT_EQ(newer.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(newer.message()),
              AllOf(HasSubstr(absl::StrCat("of version ", Version(), ", is newer")), HasSubstr("use that version"),
                    HasSubstr(absl::StrCat(path, ".schema-", SqliteStore::kSchemaVersion))));

  const std::string other = NewPath("other");
  ExecOn(other, "CREATE TABLE t (x)");
  EXPECT_EQ(SqliteStore::Open(other).status().code(), absl::StatusCode::kInvalidArgument);

  const std::string text = NewPath("text");
  std::ofstream(text) << std::string(4096, 'x');
  EXPECT_EQ(SqliteStore::Open(text).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(SqliteStore::Open("/nonexistent/folder/x.db").status().code(), absl::StatusCode::kUnavailable);
}

TEST(SqliteStore, MigratesSchema1AndKeepsItBeside) {
  const std::string path = NewPath("schema1");
  ExecOn(path, Bytes("controller/store/testdata/schema1.sql"));
  std::string kept;
  {
    const std::unique_ptr<SqliteStore> store = MustOpen(path);
    ASSERT_NE(store, nullptr);
    EXPECT_EQ(store->List("")->size(), 8u);
    EXPECT_TRUE((*store->Get("group/g")).has_value());
    ASSERT_TRUE(BeginTerm(*store).ok());
  }
  kept = path + ".schema-1";
  ASSERT_TRUE(std::filesystem::exists(kept));
  // What is left can be given back to the program before: still of its schema, and without what came after.
  const std::string copy = NewPath("copy");
  ASSERT_TRUE(BackupStore(kept, copy).ok());
  ExecOn(copy, "CREATE TABLE program (version TEXT)");
  ExecOn(copy, "DROP TABLE program");
  // Opened again nothing is to be migrated, and nothing is kept.
  std::filesystem::remove(kept);
  MustOpen(path);
  EXPECT_FALSE(std::filesystem::exists(kept));
  // A restored one is migrated alone.
  const std::string restored = NewPath("restored-schema1");
  ASSERT_TRUE(RestoreStore(copy, restored, /*overwrite=*/false).ok());
  EXPECT_TRUE((*MustOpen(restored)->Get("group/g")).has_value());
  EXPECT_FALSE(std::filesystem::exists(restored + ".schema-1"));
}

TEST(SqliteStore, NoticesDamage) {
  const std::string path = NewPath("damaged");
  {
    const std::unique_ptr<SqliteStore> store = MustOpen(path);
    std::vector<StoreWrite> writes;
    for (int i = 0; i < 400; ++i) writes.push_back({absl::StrCat("key", i), std::string(100, 'v')});
    ASSERT_TRUE(store->Apply(writes).ok());
  }
  std::fstream file(path, std::ios::in | std::ios::out | std::ios::binary);
  file.seekp(3 * 4096);
  file << std::string(4096, '\x5a');
  file.close();
  EXPECT_EQ(SqliteStore::Open(path).status().code(), absl::StatusCode::kDataLoss);
}

TEST(SqliteStore, KilledWriterLeavesWholeBatchesAndNothingAcknowledgedIsLost) {
  const std::string path = NewPath("killed");
  MustOpen(path);
  for (int round = 0; round < 8; ++round) {
    int channel[2];
    ASSERT_EQ(pipe(channel), 0);
    const pid_t child = fork();
    if (child == 0) {
      absl::StatusOr<std::unique_ptr<SqliteStore>> store = SqliteStore::Open(path);
      if (!store.ok()) _exit(1);
      for (int64_t i = 1;; ++i) {
        const std::string value = absl::StrCat(round, ":", i);
        const std::vector<StoreWrite> batch = {{"left", value}, {"right", value}, {absl::StrCat("n/", i), value}};
        if (!(*store)->Apply(batch).ok()) _exit(1);
        if (write(channel[1], &i, sizeof(i)) != sizeof(i)) _exit(1);
      }
    }
    close(channel[1]);
    // Killed at some moment after a few acknowledged batches.
    int64_t acknowledged = 0;
    while (acknowledged < 3 + 5 * round && read(channel[0], &acknowledged, sizeof(acknowledged)) > 0) {
    }
    kill(child, SIGKILL);
    waitpid(child, nullptr, 0);
    for (int64_t i; read(channel[0], &i, sizeof(i)) > 0;) acknowledged = i;
    close(channel[0]);

    const std::unique_ptr<SqliteStore> store = MustOpen(path);
    ASSERT_NE(store, nullptr);
    EXPECT_EQ(*store->Get("left"), *store->Get("right"));
    EXPECT_EQ((*store->Get(absl::StrCat("n/", acknowledged))).value_or(""), absl::StrCat(round, ":", acknowledged));
  }
}

TEST(SqliteStore, BackupAndRestore) {
  const std::string path = NewPath("original");
  const std::string backup = NewPath("backup");
  const std::string restored = NewPath("restored");
  EXPECT_EQ(BackupStore(path, backup).code(), absl::StatusCode::kNotFound);
  {
    const std::unique_ptr<SqliteStore> store = MustOpen(path);
    ASSERT_TRUE(BeginTerm(*store).ok());
    ASSERT_TRUE(store->Apply(std::vector<StoreWrite>{{"k", "old"}}).ok());
    EXPECT_EQ(BackupStore(path, backup).code(), absl::StatusCode::kFailedPrecondition) << "in use";
  }
  ASSERT_TRUE(BackupStore(path, backup).ok());
  EXPECT_EQ(BackupStore(path, backup).code(), absl::StatusCode::kAlreadyExists);
  ASSERT_TRUE(MustOpen(path)->Apply(std::vector<StoreWrite>{{"k", "new"}}).ok());

  ASSERT_TRUE(RestoreStore(backup, restored, /*overwrite=*/false).ok());
  EXPECT_EQ(**MustOpen(restored)->Get("k"), "old");
  const std::string slashes = NewPath("restored-from-slashes");
  EXPECT_TRUE(RestoreStore("//" + backup.substr(1), slashes, /*overwrite=*/false).ok());
  const std::string empty = NewPath("empty");
  std::ofstream(empty).flush();
  EXPECT_EQ(RestoreStore(empty, path, /*overwrite=*/true).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(**MustOpen(path)->Get("k"), "new");

  EXPECT_EQ(RestoreStore(backup, path, /*overwrite=*/false).code(), absl::StatusCode::kAlreadyExists);
  {
    const std::unique_ptr<SqliteStore> store = MustOpen(path);
    EXPECT_EQ(RestoreStore(backup, path, /*overwrite=*/true).code(), absl::StatusCode::kFailedPrecondition);
  }
  ASSERT_TRUE(RestoreStore(backup, path, /*overwrite=*/true).ok());
  const std::unique_ptr<SqliteStore> store = MustOpen(path);
  EXPECT_EQ(**store->Get("k"), "old");
  EXPECT_GT(*BeginTerm(*store), Term(uint64_t{1} << 32)) << "above what the original may have used since";
}

TEST(SqliteStore, RestoresFromWhatMayNotBeWritten) {
  namespace fs = std::filesystem;
  const std::string path = NewPath("source");
  ASSERT_TRUE(MustOpen(path)->Apply(std::vector<StoreWrite>{{"k", "v"}}).ok());
  const fs::path folder = absl::StrCat(::testing::TempDir(), "/", getpid(), "-read only?#%23");
  fs::create_directories(folder);
  const std::string backup = folder / "backup";
  ASSERT_TRUE(BackupStore(path, backup).ok());
  const std::string before = Bytes(backup);
  fs::permissions(backup, fs::perms::owner_read);
  fs::permissions(folder, fs::perms::owner_read | fs::perms::owner_exec);
  {
    const NoPrivileges none;
    const std::string restored = NewPath("restored-from-read-only");
    const absl::Status status = RestoreStore(backup, restored, /*overwrite=*/false);
    ASSERT_TRUE(status.ok()) << status;
    EXPECT_EQ(**MustOpen(restored)->Get("k"), "v");
  }
  EXPECT_TRUE(Bytes(backup) == before);
  EXPECT_EQ(std::distance(fs::directory_iterator(folder), fs::directory_iterator()), 1);
  fs::permissions(folder, fs::perms::owner_all);
  // A log beside it is part of it: copies of a store in use are whole with theirs.
  const std::unique_ptr<SqliteStore> store = MustOpen(path);
  ASSERT_TRUE(store->Apply(std::vector<StoreWrite>{{"k", "logged"}}).ok());
  EXPECT_EQ(RestoreStore(path, NewPath("from-live"), /*overwrite=*/false).code(), absl::StatusCode::kFailedPrecondition)
      << "in use";
  const std::string copied = NewPath("copied");
  for (const char* suffix : {"", "-wal"}) fs::copy_file(path + suffix, copied + suffix);
  const std::string restored = NewPath("restored-from-copy");
  const absl::Status status = RestoreStore(copied, restored, /*overwrite=*/false);
  ASSERT_TRUE(status.ok()) << status;
  EXPECT_EQ(**MustOpen(restored)->Get("k"), "logged");
}

TEST(SqliteStore, NamesThatCannotBeLookedForAreErrors) {
  const std::string path = NewPath("plain");
  const std::string backup = NewPath("plain-backup");
  MustOpen(path);
  ASSERT_TRUE(BackupStore(path, backup).ok());
  const std::string folder = absl::StrCat(::testing::TempDir(), "/", getpid(), "-closed");
  std::filesystem::create_directories(folder);
  std::filesystem::permissions(folder, std::filesystem::perms::none);
  const NoPrivileges none;
  for (const std::string& name : {std::string(5000, 'x'), folder + "/store"}) {
    for (const absl::Status& status : {BackupStore(path, name), BackupStore(name, backup),
                                       RestoreStore(backup, name, false), RestoreStore(name, path, true)}) {
      EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
      EXPECT_THAT(std::string(status.message()), HasSubstr(absl::StrCat(name, ": cannot be looked for: ")));
    }
  }
  // An upgrade that cannot keep the store as it was changes nothing.
  const std::string old = NewPath("cannot-be-kept");
  ExecOn(old, Bytes("controller/store/testdata/schema1.sql"));
  std::filesystem::create_directories(old + ".schema-1.partial/inside");
  EXPECT_THAT(SqliteStore::Open(old).status().ToString(), HasSubstr(".schema-1.partial: cannot be removed: "));
  EXPECT_EQ(SqliteStore::Open(old, SqliteStore::Schema::kAsIs).status(), absl::OkStatus());
  std::filesystem::remove_all(old + ".schema-1.partial");
  EXPECT_EQ(MustOpen(old)->List("")->size(), 8u);
}

}  // namespace
}  // namespace ballast
