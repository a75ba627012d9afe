#include "proto/base/log.h"

#include "gtest/gtest.h"
#include "proto/base/ids.h"

namespace ballast {
namespace {

TEST(FormatLog, TextQuotesOnlyWhatNeedsIt) {
  EXPECT_EQ(FormatLog(LogFormat::kText, "T", Severity::kInfo, "wave committed",
                      {{"group", "chat"}, {"epoch", Epoch(7)}, {"why", "two words"}, {"empty", ""}}),
            "T INFO wave committed group=chat epoch=7 why=\"two words\" empty=\"\"");
}

TEST(FormatLog, JsonSurvivesQuotesNewlinesAndBadUtf8) {
  EXPECT_EQ(FormatLog(LogFormat::kJson, "T", Severity::kError, "a \"b\"\n", {{"k", "\xff"}}),
            "{\"time\":\"T\",\"severity\":\"ERROR\",\"message\":\"a \\\"b\\\"\\n\",\"k\":\"\xEF\xBF\xBD\"}");
}

}  // namespace
}  // namespace ballast
