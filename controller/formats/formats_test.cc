#include <zlib.h>

#include <cstdio>
#include <filesystem>
#include <fstream>
#include <functional>
#include <numeric>
#include <random>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "controller/formats/load_file.h"
#include "controller/formats/plan_file.h"
#include "controller/planner/eplb.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "proto/base/no_privileges.h"
#include "proto/base/test_data.h"

namespace ballast {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

std::string Gzip(const std::string& text) {
  z_stream stream{};
  deflateInit2(&stream, 6, Z_DEFLATED, 15 + 16, 8, Z_DEFAULT_STRATEGY);
  std::string out(deflateBound(&stream, text.size()) + 64, '\0');
  stream.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(text.data()));
  stream.avail_in = static_cast<uInt>(text.size());
  stream.next_out = reinterpret_cast<Bytef*>(out.data());
  stream.avail_out = static_cast<uInt>(out.size());
  deflate(&stream, Z_FINISH);
  out.resize(stream.total_out);
  deflateEnd(&stream);
  return out;
}

const char kRoutes[] = "layer,sample,token,e0,e1\n1,0,0,2,0\n1,0,1,0,1\n2,7,0,1,2\r\n";

TEST(ParseLoad, RecognisesFormatsByContent) {
  const struct {
    std::string text;
    const char* format;
    std::vector<double> tokens;  // of the first part
  } cases[] = {
      {R"({"logical_count": [[0, 0], [3, 4.5]]})", "sglang", {0, 0, 3, 4.5}},
      {R"( {"logical_count": [[[1, 2]], [[10, 20]]]})", "sglang", {11, 22}},
      {kRoutes, "routes", {0, 0, 0, 2, 1, 1, 0, 1, 1}},
      {"dataset,iteration,layer,e0,e1\na,0,1,5,6\na,1,1,1,1\nb,0,0,2,3\n", "counts", {0, 0, 6, 7}},
      {R"({"m": {"expert_counts": {"x": [[1, 2]], "y": [[3, 4]]}}})", "model-counts", {1, 2}},
      {R"({"format": "ballast.load/v1", "parts": [{"name": "t", "tokens": [[7]]}]})", "ballast", {7}},
  };
  for (const auto& c : cases) {
    for (const std::string& bytes : {c.text, Gzip(c.text)}) {
      const auto file = ParseLoad(bytes, "f");
      ASSERT_TRUE(file.ok()) << file.status();
      EXPECT_EQ(file->format, c.format);
      EXPECT_EQ(file->parts[0].load.tokens, c.tokens);
    }
  }
}

TEST(ParseLoad, KeepsRoutes) {
  const auto file = ParseLoad(kRoutes, "f");
  ASSERT_TRUE(file.ok());
  EXPECT_EQ(file->routes.top_k, 2);
  EXPECT_THAT(file->routes.experts, ElementsAre(ElementsAre(), ElementsAre(2, 0, 0, 1), ElementsAre(1, 2)));
  EXPECT_THAT(file->routes.samples[2], ElementsAre(7));
}

TEST(ParseLoad, NamesBecomeUtf8) {
  const auto file = ParseLoad("dataset,iteration,layer,e0\n\xff,0,0,1\n", "f");
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_EQ(file->parts[0].name, "\uFFFD");
  EXPECT_TRUE(ParseLoad(FormatLoad(file->parts), "f").ok());
}

TEST(ParseLoad, SelectsParts) {
  const char text[] = R"({"a": {"expert_counts": {"x": [[1, 2]]}}, "b": {"expert_counts": {"x": [[3]], "y": [[4]]}}})";
  EXPECT_THAT(ParseLoad(text, "f").status().ToString(),
              HasSubstr("f: part \"b/x\" has 1 layers of 1 experts, \"a/x\" has 1 of 2; choose with FILE#PART from "
                        "a/x, b/x, b/y"));
  const auto b = ParseLoad(text, "f", "b");
  ASSERT_TRUE(b.ok()) << b.status();
  EXPECT_EQ(b->parts.size(), 2u);
  EXPECT_EQ(ParseLoad(text, "f", "b/y")->parts[0].load.tokens[0], 4);
  EXPECT_THAT(ParseLoad(text, "f", "c").status().ToString(), HasSubstr("f: no part \"c\"; there are a/x, b/x, b/y"));
}

TEST(ParseLoad, NamesFileRowAndLimit) {
  const struct {
    const char* text;
    const char* message;
  } cases[] = {
      {"", "f: is empty"},
      {"\x1f\x8b", "f: gzip data is damaged or cut after 0 bytes"},
      {R"({"format": "ballast.trace/v1", "rows": 1, "experts": 2000, "top_k": 1025, "layers": []})",
       "top_k is 1025, want an integer from 1 to 1024"},
      {"{\"logical_count\": [[1,", "f: "},
      {"hello", "neither JSON nor csv with the header"},
      {"{}", "not a load that is known"},
      {"[]", "not a load that is known"},
      {R"({"physical_to_logical_map": [[0]]})", "this is a placement, not a load"},
      {R"({"logical_count": []})", "must be [layers][experts] or [steps][layers][experts]"},
      {R"({"logical_count": [[1, 2], [3]]})", "logical_count row 1: 1 experts; rows before it have 2"},
      {R"({"logical_count": [[[1]], [[1], [2]]]})", "logical_count step 1: 2 layers; others have 1"},
      {R"({"logical_count": [[1, -2]]})", "logical_count row 0 expert 1: -2; must be 0 to 1e18"},
      {R"({"logical_count": [[1, 2], [1, NaN]]})", "f: not JSON: logical_count[1][1]: NaN; numbers must be finite"},
      {R"({"logical_count": [[-Infinity]]})", "f: not JSON: logical_count[0][0]: -Infinity; numbers must be finite"},
      {"{\"logical_count\": [[1],\n [2 3]]}", "f: not JSON: logical_count[1][1]: parse error at line 2, column 5: "},
      {R"({"logical_count": [[1, "x"]]})", "row 0 expert 1: \"x\" is no number"},
      {R"({"logical_count": [[1, 1e19]]})", "1e+19; must be 0 to 1e18"},
      {R"({"format": "ballast.load/v2"})", "a load is \"ballast.load/v1\""},
      {R"({"format": "ballast.load/v1", "part": 1})", "unknown key \"part\""},
      {R"({"format": "ballast.load/v1", "parts": [{"name": "a", "tokens": [[1]]}, {"name": "a", "tokens": [[1]]}]})",
       "two parts have the same name"},
      {"layer,sample,token,e0,e1\n", "f: line 1: no tokens"},
      {"layer,sample,token,e0,e1\n0,0,0,1\n", "f: line 2: 4 fields; the header has 5"},
      {"layer,sample,token,e0,e1\n0,0,0,1,1\n", "f: line 2: expert 1 twice for one token"},
      {"layer,sample,token,e0,e1\n0,0,0,1,x\n", "f: line 2: expert \"x\"; must be a whole number, 0 to 65535"},
      {"layer,sample,token,e0,e1\n4096,0,0,1,2\n", "layer \"4096\"; must be a whole number, 0 to 4095"},
      {"dataset,iteration,layer,e0\na,0,0,nan\n", "line 2: expert 0: \"nan\"; must be a number, 0 to 1e18"},
      {"dataset,iteration,layer,e0\na,0,0,-1\n", "line 2: expert 0: \"-1\"; must be"},
      {"dataset,iteration,layer,e1\na,0,0,1\n", "not a load that is known"},
  };
  for (const auto& c : cases) EXPECT_THAT(ParseLoad(c.text, "f").status().ToString(), HasSubstr(c.message)) << c.text;
}

// Steps one by one say how bursty a load is, sums do not; files of a scenario count by their tokens, dense rows are
// left out.
TEST(MakeLoadSet, KnowsBurstsFromSteps) {
  std::mt19937_64 random(1);
  const auto dump = [&](double burstiness) {
    std::string text = "{\"logical_count\": [";
    for (int step = 0; step < 200; ++step) {
      absl::StrAppend(&text, step == 0 ? "" : ", ", "[[", absl::StrJoin(std::vector<int>(64), ", "), "], [");
      for (int e = 0; e < 64; ++e) {
        double mean = 2000.0 / (e + 4);
        if (burstiness > 0) mean *= std::gamma_distribution<double>(1 / burstiness, burstiness)(random);
        absl::StrAppend(&text, e == 0 ? "" : ", ", std::poisson_distribution<int>(mean)(random));
      }
      absl::StrAppend(&text, "]]");
    }
    auto file = ParseLoad(text + "]}", "f");
    EXPECT_TRUE(file.ok()) << file.status();
    return *std::move(file);
  };
  const LoadFile bursty = dump(.25);
  const LoadFile calm = dump(0);
  const auto sums = ParseLoad(R"({"logical_count": [[0, 0], [3, 4]]})", "f");
  ASSERT_TRUE(sums.ok());
  const auto burstiness = [](std::vector<LoadFile> files) {
    const NamedLoads named[] = {{"load", std::move(files)}};
    const auto set = MakeLoadSet(named);
    EXPECT_TRUE(set.ok()) << set.status();
    EXPECT_EQ(set->row_of_layer.size(), 1u);
    return set->scenarios[0].burstiness;
  };
  EXPECT_THAT(burstiness({bursty}), ElementsAre(testing::DoubleNear(.25, .08)));
  EXPECT_THAT(burstiness({calm}), ElementsAre(0));
  EXPECT_THAT(burstiness({bursty, calm}), ElementsAre(testing::DoubleNear(.125, .04)));
  EXPECT_THAT(burstiness({*sums}), testing::IsEmpty());
  // Of two steps nobody can say.
  LoadFile few = *ParseLoad(R"({"logical_count": [[[0, 0], [3, 4]], [[0, 0], [4, 3]]]})", "f");
  EXPECT_THAT(few.parts[0].burstiness, testing::IsEmpty());
}

TEST(ParseLoad, PassesOverAByteOrderMark) {
  EXPECT_TRUE(ParseLoad("\xEF\xBB\xBF{\"logical_count\": [[1, 2]]}", "f").ok());
  EXPECT_TRUE(ParseLoad("\xEF\xBB\xBF"
                        "dataset,iteration,layer,e0\na,0,0,1\n",
                        "f")
                  .ok());
}

TEST(ParseLoad, GzipMayBeFilledUpWithZeros) {
  const std::string zeros(700, '\0');
  const std::string packed = Gzip(kRoutes);
  const LoadFile want = *ParseLoad(kRoutes, "f");
  EXPECT_EQ(ParseLoad(packed + zeros, "f")->parts[0].load, want.parts[0].load);
  // Members end to end are one text.
  EXPECT_EQ(ParseLoad(Gzip("layer,sample,token,e0,e1\n") + Gzip("1,0,0,2,0\n1,0,1,0,1\n2,7,0,1,2\n") + zeros, "f")
                ->parts[0]
                .load,
            want.parts[0].load);
  for (const std::string& behind : {zeros + "x", std::string("x"), zeros + packed}) {
    EXPECT_THAT(ParseLoad(packed + behind, "f").status().ToString(), HasSubstr("gzip data is damaged"));
  }
}

TEST(ParseLoad, ATokenHasSoManyExperts) {
  const auto routes = [](int top_k) {
    std::string header = "layer,sample,token";
    std::string token = "0,0,0";
    for (int k = 0; k < top_k; ++k) {
      absl::StrAppend(&header, ",e", k);
      absl::StrAppend(&token, ",", k);
    }
    return ParseLoad(absl::StrCat(header, "\n", token, "\n"), "f");
  };
  EXPECT_EQ(routes(kMaxRoutedExperts)->routes.top_k, kMaxRoutedExperts);
  EXPECT_THAT(routes(kMaxRoutedExperts + 1).status().ToString(),
              HasSubstr("line 1: 1025 experts a token; the limit is 1024"));
}

TEST(ReadBytes, SaysWhy) {
  const std::string path = testing::TempDir() + "read_bytes";
  std::filesystem::remove_all(path);
  EXPECT_EQ(ReadBytes(path).status().code(), absl::StatusCode::kNotFound);
  std::ofstream(path) << "x";
  EXPECT_EQ(*ReadBytes(path), "x");
  EXPECT_EQ(ReadBytes(path + "/x").status().code(), absl::StatusCode::kNotFound);
  {
    const NoPrivileges none;
    std::filesystem::permissions(path, std::filesystem::perms::none);
    EXPECT_EQ(ReadBytes(path).status().code(), absl::StatusCode::kPermissionDenied);
  }
  std::filesystem::remove(path);
  std::filesystem::create_symlink("read_bytes", path);
  EXPECT_EQ(ReadBytes(path).status().code(), absl::StatusCode::kUnavailable) << "a loop of links";
  EXPECT_EQ(ReadBytes(std::string(5000, 'x')).status().code(), absl::StatusCode::kUnavailable);
}

TEST(ParseLoad, QuotesOfTheJsonParserStayAsTheyAre) {
  EXPECT_THAT(ParseLoad(R"({"logical_count": [[1)", "cut").status().message(), HasSubstr("expected ']'"));
}

TEST(ReadLoad, NamesWhatIsNoFile) {
  EXPECT_THAT(ReadLoad(testing::TempDir()).status().ToString(), HasSubstr(": is a directory"));
  EXPECT_THAT(ReadLoad("/dev/null").status().ToString(), HasSubstr("/dev/null: is empty"));
}

TEST(ReadLoad, NamesMissingFiles) {
  const std::string folder = testing::TempDir() + "/a#b";
  std::filesystem::create_directories(folder);
  EXPECT_THAT(ReadLoad(folder + "/none.json").status().ToString(), HasSubstr("a#b/none.json: cannot be opened"));
  EXPECT_THAT(ReadLoad(folder + "/none.json#m/d").status().ToString(), HasSubstr("a#b/none.json: cannot be opened"));
  EXPECT_THAT(ReadLoad("/nonexistent/x.json").status().ToString(),
              HasSubstr("/nonexistent/x.json: cannot be opened: No such file"));
}

NamedLoads Named(std::string name, const char* text) { return {std::move(name), {*ParseLoad(text, "f")}}; }

TEST(MakeLoadSet, LeavesOutDenseRowsAndSumsFiles) {
  NamedLoads two = Named("a", R"({"logical_count": [[0, 0], [1, 0], [0, 0]]})");
  two.files.push_back(*ParseLoad(R"({"logical_count": [[0, 0], [2, 5], [0, 0]]})", "g"));
  const NamedLoads loads[] = {two, Named("b", R"({"logical_count": [[0, 0], [0, 0], [0, 9]]})")};
  const auto set = MakeLoadSet(loads);
  ASSERT_TRUE(set.ok()) << set.status();
  EXPECT_EQ(set->rows, 3);
  EXPECT_THAT(set->row_of_layer, ElementsAre(1, 2));
  EXPECT_THAT(set->scenarios[0].load.tokens, ElementsAre(3, 5, 0, 0));
  EXPECT_THAT(set->scenarios[1].load.tokens, ElementsAre(0, 0, 0, 9));
}

TEST(MakeLoadSet, AllZeroKeepsEveryRow) {
  const NamedLoads loads[] = {Named("a", R"({"logical_count": [[0, 0], [0, 0]]})")};
  EXPECT_THAT(MakeLoadSet(loads)->row_of_layer, ElementsAre(0, 1));
}

TEST(MakeLoadSet, ShapesMustFit) {
  const NamedLoads loads[] = {Named("a", R"({"logical_count": [[1, 2]]})"), Named("b", R"({"logical_count": [[1]]})")};
  EXPECT_THAT(MakeLoadSet(loads).status().ToString(), HasSubstr("has 1 layers of 1 experts; 1 of 2 are expected"));
  // Routes show only what was used.
  const NamedLoads routes[] = {Named("a", kRoutes), Named("b", "layer,sample,token,e0\n4,0,0,9\n")};
  const auto set = MakeLoadSet(routes);
  ASSERT_TRUE(set.ok()) << set.status();
  EXPECT_EQ(set->scenarios[0].load.experts, 10);
  EXPECT_THAT(set->row_of_layer, ElementsAre(1, 2, 4));
}

PlanFile SmallPlan() {
  const NamedLoads loads[] = {Named("day", R"({"logical_count": [[0, 0, 0], [8, 4, 0], [1, 1, 1]]})")};
  LoadSet set = *MakeLoadSet(loads);
  PlanRequest request;
  request.scenarios = set.scenarios;
  request.topology = UniformTopology(2, 1, 4);
  PlanFile plan;
  plan.placement = MakePlan(EplbPolicy(), request)->placement;
  plan.policy = "eplb";
  plan.topology = request.topology;
  plan.expert_bytes = 1000;
  plan.rows = set.rows;
  plan.row_of_layer = set.row_of_layer;
  plan.scenarios = set.scenarios;
  return plan;
}

TEST(PlanFile, ReadsWhatItWrites) {
  const PlanFile plan = SmallPlan();
  const auto again = ParsePlan(FormatPlan(plan), "p");
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_EQ(again->placement, plan.placement);
  EXPECT_EQ(again->expert_bytes, 1000);
  EXPECT_EQ(again->rows, 3);
  EXPECT_THAT(again->row_of_layer, ElementsAre(1, 2));
  EXPECT_EQ(again->scenarios[0].load, plan.scenarios[0].load);
  EXPECT_EQ(FormatPlan(*again), FormatPlan(plan));
}

// With what was predicted of it, from a placement in force.
PlanFile PredictedPlan() {
  PlanFile plan = SmallPlan();
  PlanRequest request;
  request.scenarios = plan.scenarios;
  request.topology = plan.topology;
  request.expert_bytes = plan.expert_bytes;
  request.current = plan.placement;
  for (Replica& r : request.current->replicas) r.expert.expert = (r.expert.expert + 1) % 3;
  request.current->Sort();
  const Plan better = *PlanTo("eplb", request, plan.placement);
  EXPECT_GT(better.moves, 0);
  plan.placement = better.placement;
  plan.predicted = PredictionOf(better);
  return plan;
}

TEST(PlanFile, KeepsWhatWasPredicted) {
  const PlanFile plan = PredictedPlan();
  const auto again = ParsePlan(FormatPlan(plan), "p");
  ASSERT_TRUE(again.ok()) << again.status();
  ASSERT_TRUE(again->predicted.has_value() && again->predicted->change.has_value());
  EXPECT_EQ(again->predicted->scenarios[0].scenario, "day");
  EXPECT_EQ(again->predicted->scenarios[0].busiest_tokens_bound, plan.predicted->scenarios[0].busiest_tokens_bound);
  EXPECT_EQ(again->predicted->change->bytes, plan.predicted->change->bytes);
  EXPECT_EQ(again->predicted->change->gain_microseconds, plan.predicted->change->gain_microseconds);
  EXPECT_EQ(again->predicted->change->transfer.node.seconds, plan.predicted->change->transfer.node.seconds);
  EXPECT_EQ(again->predicted->change->pays_reason, plan.predicted->change->pays_reason);
  EXPECT_EQ(FormatPlan(*again), FormatPlan(plan));
  // Files of before it was kept are read, and written as they were.
  const std::string old = FormatPlan(SmallPlan());
  EXPECT_EQ(old.find("predicted"), std::string::npos);
  EXPECT_FALSE(ParsePlan(old, "p")->predicted.has_value());
}

TEST(PlanFile, NamesWhatIsWrongWithWhatWasPredicted) {
  using Json = nlohmann::json;
  const Json good = Json::parse(FormatPlan(PredictedPlan()));
  const struct {
    std::function<void(Json&)> spoil;
    const char* message;
  } cases[] = {
      {[](Json& j) { j = 1; }, "p: plan.predicted: must be an object"},
      {[](Json& j) { j["score"] = 1; }, "plan.predicted: unknown key \"score\""},
      {[](Json& j) { j.erase("scenarios"); }, "plan.predicted.scenarios: must be a list"},
      {[](Json& j) { j["scenarios"] = Json::array(); }, "plan.predicted: its scenarios are not the plan's, in order"},
      {[](Json& j) { j["scenarios"][0]["scenario"] = "night"; }, "its scenarios are not the plan's, in order"},
      {[](Json& j) { j["scenarios"][0]["balancedness"] = 1.5; },
       "plan.predicted.scenarios[0].balancedness: 1.5; must be a number, 0 to 1"},
      {[](Json& j) { j["scenarios"][0].erase("busiest_tokens_bound"); },
       "plan.predicted.scenarios[0].busiest_tokens_bound: is missing"},
      {[](Json& j) { j["change"]["moves"] = -1; }, "plan.predicted.change.moves: -1; must be a whole number, 0 to"},
      {[](Json& j) { j["change"]["predicted_gain"] = 2; }, "plan.predicted.change.predicted_gain: 2; must be a number"},
      {[](Json& j) { j["change"]["pays"] = "yes"; }, "plan.predicted.change.pays: \"yes\"; must be true or false"},
      {[](Json& j) { j["change"]["transfers"].erase("node"); }, "plan.predicted.change.transfers.node: is missing"},
      {[](Json& j) { j["change"]["transfers"]["node"]["seconds"] = -1; },
       "plan.predicted.change.transfers.node.seconds: -1; must be a number, 0 to"},
      {[](Json& j) { j["change"]["transfers"]["moon"] = 1; }, "plan.predicted.change.transfers: unknown key \"moon\""},
  };
  for (const auto& c : cases) {
    Json json = good;
    c.spoil(json["predicted"]);
    EXPECT_THAT(ParsePlan(json.dump(), "p").status().ToString(), HasSubstr(c.message));
  }
}

PlanSetFile SmallSet() {
  PlanSetFile set;
  set.split = Split::kEqual;
  for (const char* name : {"day", "night"}) {
    PlanFile plan = name == std::string("day") ? PredictedPlan() : SmallPlan();
    plan.scenarios[0].name = name;
    set.members.push_back({name, std::move(plan)});
  }
  set.switches = {{{}, {.moves = 2, .bytes = 2000, .waves = 1, .transfer_seconds = 0.5}},
                  {{.moves = 3, .bytes = 3000, .waves = 2, .transfer_seconds = 0.25}, {}}};
  return set;
}

TEST(PlanSetFile, ReadsWhatItWrites) {
  const PlanSetFile set = SmallSet();
  const auto again = ParsePlanSet(FormatPlanSet(set), "s");
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_EQ(again->split, Split::kEqual);
  EXPECT_EQ(again->switches, set.switches);
  ASSERT_EQ(again->members.size(), 2u);
  EXPECT_EQ(again->members[1].name, "night");
  EXPECT_EQ(again->members[1].plan.placement, set.members[1].plan.placement);
  EXPECT_EQ(FormatPlanSet(*again), FormatPlanSet(set));
  // A plan is a set of one.
  const auto one = ParsePlanSet(FormatPlan(SmallPlan()), "p");
  ASSERT_TRUE(one.ok()) << one.status();
  ASSERT_EQ(one->members.size(), 1u);
  EXPECT_EQ(one->members[0].name, "");
  EXPECT_EQ(FormatPlan(one->members[0].plan), FormatPlan(SmallPlan()));
  EXPECT_THAT(ParsePlanSet("[]", "p").status().ToString(), HasSubstr("p: plan: must be an object"));
}

TEST(PlanSetFile, NamesWhatIsWrong) {
  using Json = nlohmann::json;
  const Json good = Json::parse(FormatPlanSet(SmallSet()));
  const struct {
    std::function<void(Json&)> spoil;
    const char* message;
  } cases[] = {
      {[](Json& j) { j["format"] = "ballast.plan_set/v2"; },
       "s: set.format: \"ballast.plan_set/v2\"; must be \"ballast.plan_set/v1\""},
      {[](Json& j) { j["split"] = "half"; }, "s: set.split: \"half\"; must be \"equal\" or \"solved\""},
      {[](Json& j) { j["members"] = Json::array(); }, "set.members: 0; must be 1 to 64"},
      {[](Json& j) { j["members"] = Json(65, 1); }, "set.members: 65; must be 1 to 64"},
      {[](Json& j) { j["members"][1] = 7; }, "set.members[1]: must be an object"},
      {[](Json& j) { j["members"][1]["name"] = "day"; }, "set.members[1].name: \"day\" is another member's, too"},
      {[](Json& j) { j["members"][1]["name"] = ""; }, "set.members[1].name: \"\"; must not be empty"},
      {[](Json& j) { j["members"][1]["name"] = "a#b"; }, "set.members[1].name: \"a#b\"; must not be empty or have a"},
      {[](Json& j) { j["members"][1].erase("plan"); }, "set.members[1].plan: is missing"},
      {[](Json& j) { j["members"][1]["plan"]["format"] = "x"; }, "set.members[1].plan.format: \"x\"; must be"},
      {[](Json& j) { j["members"][1]["plan"]["expert_bytes"] = 5; },
       "set.members[1].plan: expert_bytes is not that of set.members[0]"},
      {[](Json& j) { j["members"][1]["plan"]["topology"]["workers"][0]["slots"] = 9; },
       "set.members[1].plan: topology is not that of set.members[0]"},
      {[](Json& j) { j["members"][1]["plan"]["scenarios"][0]["name"] = "day"; },
       "set.members[1].plan: scenario \"day\" is another member's, too"},
      {[](Json& j) { j["members"][0]["plan"]["predicted"]["change"]["moves"] = -1; },
       "set.members[0].plan.predicted.change.moves: -1"},
      {[](Json& j) { j["switches"].erase(1); }, "set.switches: 1 rows; members are 2"},
      {[](Json& j) { j["switches"][1].erase(1); }, "set.switches[1]: must be a list of one for each of 2 members"},
      {[](Json& j) { j["switches"][0][1]["moves"] = -1; },
       "set.switches[0][1].moves: -1; must be a whole number, 0 to"},
      {[](Json& j) { j["switches"][1][1]["moves"] = 1; },
       "set.switches[1][1].moves: 1; must be a whole number, 0 to 0"},
      {[](Json& j) { j["switches"][0][1]["transfer_seconds"] = "x"; }, "set.switches[0][1].transfer_seconds: \"x\""},
      {[](Json& j) { j["extra"] = 1; }, "set: unknown key \"extra\""},
  };
  for (const auto& c : cases) {
    Json json = good;
    c.spoil(json);
    EXPECT_THAT(ParsePlanSet(json.dump(), "s").status().ToString(), HasSubstr(c.message));
  }
}

TEST(PlanFile, NamesWhatIsWrong) {
  using Json = nlohmann::json;
  const Json good = Json::parse(FormatPlan(SmallPlan()));
  const struct {
    std::function<void(Json&)> spoil;
    const char* message;
  } cases[] = {
      {[](Json& j) { j["format"] = "x"; }, "p: plan.format: \"x\"; must be \"ballast.plan/v1\""},
      {[](Json& j) { j.erase("layers"); }, "plan.layers: is missing"},
      {[](Json& j) { j["layers"] = 0; }, "plan.layers: 0; must be a whole number, 1 to 4096"},
      {[](Json& j) { j["layers"] = 1.5; }, "plan.layers: 1.5; must be a whole number"},
      {[](Json& j) { j["load_rows"] = 1; }, "plan.load_rows: 1"},
      {[](Json& j) {
         j["row_of_layer"] = {2, 1};
       },
       "plan.row_of_layer: 1; must be a whole number, 3 to 2"},
      {[](Json& j) { j["row_of_layer"] = {1}; }, "plan.row_of_layer: 1 rows; layers is 2"},
      {[](Json& j) { j["topology"]["workers"][1]["name"] = "w0"; }, "worker 'w0': named twice"},
      {[](Json& j) { j["topology"]["workers"][1]["slot"] = 1; }, "plan.topology.workers[1]: unknown key \"slot\""},
      {[](Json& j) { j["placement"].erase(1); }, "plan.placement: 1 layers; layers is 2"},
      {[](Json& j) {
         j["placement"][0][0] = {0, 0};
       },
       "must be [expert, worker, slot, weight]"},
      {[](Json& j) { j["placement"][0][0][1] = 7; }, "there are 2 workers"},
      {[](Json& j) { j["scenarios"][0]["tokens"][0][0] = -1; }, "-1; must be 0 to 1e18"},
      {[](Json& j) { j["scenarios"][0]["tokens"].erase(1); }, "plan.scenarios: 1 layers of 3 experts; the plan has 2"},
      {[](Json& j) { j["extra"] = 1; }, "plan: unknown key \"extra\""},
      {[](Json& j) { j = 3; }, "plan: must be an object"},
  };
  for (const auto& c : cases) {
    Json json = good;
    c.spoil(json);
    EXPECT_THAT(ParsePlan(json.dump(), "p").status().ToString(), HasSubstr(c.message));
  }
  EXPECT_THAT(ParsePlan("{", "p").status().ToString(), HasSubstr("p: "));
}

TEST(ParseTopology, ReadsAndChecks) {
  const auto topology = ParseTopology(
      R"({"format": "ballast.topology/v1", "cross_node_bytes_per_second": 1e9,
          "workers": [{"name": "a", "node": 0, "slots": 9, "speed": 3}, {"name": "b", "node": 1, "slots": 4, "staging_slots": 1}]})",
      "t");
  ASSERT_TRUE(topology.ok()) << topology.status();
  EXPECT_EQ(topology->workers[0].speed, 3u);
  EXPECT_EQ(topology->workers[1].capacity.staging_slots, 1);
  EXPECT_EQ(topology->cross_node_bytes_per_second, 1e9);
  EXPECT_THAT(ParseTopology(R"({"format": "ballast.topology/v1", "workers": []})", "t").status().ToString(),
              HasSubstr("t: topology: 0 workers"));
}

TEST(SharedLoads, AreAllRecognised) {
  BALLAST_REQUIRE_SHARED(data, "data");
  const struct {
    const char* file;
    const char* format;
    int32_t layers, experts;
  } cases[] = {
      {"deepseek_r1_counts/prefill_in4096.json", "sglang", 61, 256},
      {"deepseek_v2_lite_routes/routes_law.csv.gz", "routes", 27, 64},
      {"switch128_qwen15_counts/switch128.csv", "counts", 12, 128},
      {"switch128_qwen15_counts/qwen15_moe.csv", "counts", 12, 60},
      {"olmoe_mixtral_counts/expert_counts.json#olmoe", "model-counts", 3, 64},
  };
  for (const auto& c : cases) {
    const auto file = ReadLoad(data + "/" + c.file);
    ASSERT_TRUE(file.ok()) << file.status();
    EXPECT_EQ(file->format, c.format);
    EXPECT_EQ(file->parts[0].load.layers, c.layers) << c.file;
    EXPECT_EQ(file->parts[0].load.experts, c.experts) << c.file;
  }
}

}  // namespace
}  // namespace ballast
