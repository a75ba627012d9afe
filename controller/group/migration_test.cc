// A store of an earlier release under this one: the group goes on where it was.
#include <sqlite3.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>

#include "absl/strings/str_cat.h"
#include "controller/group/group.h"
#include "controller/store/sqlite_store.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace ballast {
namespace {

constexpr char kSchema1[] = "controller/store/testdata/schema1.sql";

TEST(Migration, AGroupOfSchema1GoesOn) {
  const std::string path = absl::StrCat(::testing::TempDir(), "/", getpid(), "-schema1.db");
  {
    std::ifstream file(kSchema1);
    const std::string sql((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
    sqlite3* db = nullptr;
    ASSERT_EQ(sqlite3_open(path.c_str(), &db), SQLITE_OK);
    ASSERT_EQ(sqlite3_exec(db, sql.c_str(), nullptr, nullptr, nullptr), SQLITE_OK) << sqlite3_errmsg(db);
    sqlite3_close(db);
  }
  const auto store = SqliteStore::Open(path);
  ASSERT_TRUE(store.ok()) << store.status();
  EXPECT_TRUE(std::filesystem::exists(path + ".schema-1")) << "the way back";
  const absl::Time now = absl::FromUnixSeconds(1'795'367'000);
  const GroupOptions options{.config = {.name = "g", .size = 4}};
  const auto group = Group::Load(options, Term(2), **store, now);
  ASSERT_TRUE(group.ok()) << group.status();
  EXPECT_EQ((*group)->placement().epoch, Epoch(6));
  EXPECT_EQ((*group)->placement().replicas.size(), 240u);
  const v1::Group shown = (*group)->Describe(now);
  EXPECT_EQ(shown.mode(), v1::GROUP_MODE_APPROVE);
  EXPECT_EQ(shown.view().view(), 1u);
  EXPECT_GT(shown.window_tokens(), 0);
  const auto workers = (*group)->Workers(now);
  ASSERT_EQ(workers.size(), 4u);
  for (const v1::Worker& worker : workers) {
    EXPECT_EQ(worker.version(), "0.1.0");
    EXPECT_EQ(worker.drain(), v1::DRAIN_STATE_UNSPECIFIED);
    EXPECT_FALSE(worker.cordoned());
  }
  ASSERT_EQ((*group)->Plans().size(), 1u);
  EXPECT_EQ((*group)->Plans().front().state(), v1::PLAN_STATE_DONE);
}

}  // namespace
}  // namespace ballast
