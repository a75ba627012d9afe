// The sidecar's rules as tables, against a controller that loses answers, and against a real one in this process.
#include "controller/ctl/sidecar.h"

#include <grpcpp/grpcpp.h>

#include <algorithm>
#include <deque>
#include <filesystem>
#include <fstream>
#include <functional>
#include <memory>
#include <set>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "CLI/CLI.hpp"
#include "absl/strings/str_cat.h"
#include "ballast/v1/telemetry_service.grpc.pb.h"
#include "controller/ctl/context.h"
#include "controller/service/daemon.h"
#include "controller/store/store.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "proto/base/clock.h"
#include "proto/base/no_privileges.h"

namespace ballast {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Pair;

TEST(DumpsToSend, Table) {
  const DumpFile a{"a", 10, 1};
  const DumpFile a_grown{"a", 20, 2};
  const DumpFile b{"b", 10, 3};
  SidecarState state;
  // New files must have stood still.
  const std::vector<DumpFile> none;
  EXPECT_THAT(DumpsToSend(none, std::vector{a}, state, 0), IsEmpty());
  EXPECT_THAT(DumpsToSend(std::vector{a}, std::vector{a_grown}, state, 0), IsEmpty());
  EXPECT_THAT(DumpsToSend(std::vector{a, b}, std::vector{a, b}, state, 0), ElementsAre(a, b));
  // What has a number is sent until it is stored, and before what has none.
  state.dumps = {{b, 1}};
  EXPECT_THAT(DumpsToSend(none, std::vector{a, b}, state, 0), ElementsAre(b));
  EXPECT_THAT(DumpsToSend(std::vector{a, b}, std::vector{a, b}, state, 0), ElementsAre(b, a));
  EXPECT_THAT(DumpsToSend(std::vector{a, b}, std::vector{a, b}, state, 1), ElementsAre(a));
  // What was refused is not tried again, unless it is written anew.
  state.dumps = {{a, 0}};
  EXPECT_THAT(DumpsToSend(std::vector{a}, std::vector{a}, state, 0), IsEmpty());
  EXPECT_THAT(DumpsToSend(std::vector{a_grown}, std::vector{a_grown}, state, 0), ElementsAre(a_grown));
}

TEST(ForgetDumps, OnlyWhatIsDoneWithAndLongGone) {
  const DumpFile a{"a", 10, 1};
  const DumpFile b{"b", 10, 2};
  const DumpFile c{"c", 10, 3};
  const absl::Time start = absl::FromUnixSeconds(1'700'000'000);
  SidecarState state;
  state.dumps = {{a, 1}, {b, 2}, {c, 3}};
  const SidecarState all = state;
  ForgetDumps(std::vector{a, b, c}, 2, start, state);
  EXPECT_EQ(state, all);
  // The folder is empty, c is not stored yet.
  ForgetDumps({}, 2, start, state);
  EXPECT_EQ(state.dumps, all.dumps);
  EXPECT_THAT(state.missing_since, ElementsAre(Pair(a, start), Pair(b, start)));
  // a is back, b is gone.
  ForgetDumps(std::vector{a}, 2, start + kForgetDumpsAfter - absl::Seconds(1), state);
  EXPECT_EQ(state.dumps, all.dumps);
  EXPECT_THAT(state.missing_since, ElementsAre(Pair(b, start)));
  ForgetDumps(std::vector{a}, 2, start + kForgetDumpsAfter, state);
  EXPECT_THAT(state.dumps, ElementsAre(Pair(a, 1), Pair(c, 3)));
  EXPECT_THAT(state.missing_since, IsEmpty());
}

TEST(SidecarState, ReadsWhatItWrites) {
  const SidecarState state{.stream = 1'700'000'000'000'000'000,
                           .next_sequence = 3,
                           .dumps = {{{"a.pt", 10, 5}, 1}, {{"b \"\xff#.pt", 20, -6'000'000'000}, 0}},
                           .missing_since = {{{"a.pt", 10, 5}, absl::FromUnixSeconds(1'700'000'000)}},
                           .rows = 4,
                           .experts = 8,
                           .row_of_layer = {1, 3},
                           .written_epoch = 9};
  const auto again = ParseSidecarState(FormatSidecarState(state), "s");
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_EQ(*again, state);
  const struct {
    std::function<void(nlohmann::json&)> spoil;
    const char* message;
  } cases[] = {
      {[](auto& j) { j["format"] = "x"; }, "s: format: must be \"ballast.sidecar/v1\""},
      {[](auto& j) { j["stream"] = -1; }, "s: stream: must be a whole number"},
      {[](auto& j) { j["rows"] = 5000; }, "s: rows: must be a whole number, 0 to 4096"},
      {[](auto& j) {
         j["row_of_layer"] = {3, 1};
       },
       "s: row_of_layer: 1; must be 4 to 3"},
      {[](auto& j) { j["dumps"][0].erase("bytes"); }, "s: dumps[0]: must have name"},
      {[](auto& j) { j["dumps"][0]["modified_ns"] = uint64_t{1} << 63; }, "s: dumps[0]: must have name"},
      {[](auto& j) { j["dumps"][0]["missing_since"] = "x"; }, "s: dumps[0].missing_since: must be a whole number"},
      {[](auto& j) { j.erase("dumps"); }, "s: dumps: must be a list"},
  };
  for (const auto& c : cases) {
    auto json = nlohmann::json::parse(FormatSidecarState(state));
    c.spoil(json);
    EXPECT_THAT(ParseSidecarState(json.dump(), "s").status().ToString(), HasSubstr(c.message));
  }
}

TEST(MakeReport, CountsMoeLayersAndTokens) {
  const SidecarState state{.rows = 3, .experts = 2, .row_of_layer = {1, 2}};
  SidecarOptions options;
  options.experts_per_token = 2;
  options.phase = v1::PHASE_PREFILL;
  options.task = "chat";
  const auto report = MakeReport(*ParseLoad(R"({"logical_count": [[0,0],[4,0],[3,3.4]]})", "f"), state, options);
  ASSERT_TRUE(report.ok()) << report.status();
  ASSERT_EQ(report->counts_size(), 3);
  EXPECT_EQ(report->counts(0).layer(), 0);
  EXPECT_EQ(report->counts(2).layer(), 1);
  EXPECT_EQ(report->counts(2).tokens(), 3);
  EXPECT_EQ(report->counts(2).phase(), v1::PHASE_PREFILL);
  EXPECT_EQ(report->task_tokens(0).task(), "chat");
  EXPECT_EQ(report->task_tokens(0).prefill_tokens(), 3);
  const struct {
    const char* load;
    const char* message;
  } cases[] = {
      {R"({"logical_count": [[0,0],[0,0],[0,0]]})", "holds no tokens"},
      {R"({"logical_count": [[1,0],[4,0],[3,3]]})", "row 0 expert 0: 1 tokens, and in the first dump"},
      {R"({"logical_count": [[1,0]]})", "1 rows of 2 experts; the first dump had 3 of 2"},
      {R"({"logical_count": [[0,0,0],[1,1,1],[1,1,1]]})", "3 rows of 3 experts"},
  };
  for (const auto& c : cases) {
    EXPECT_THAT(MakeReport(*ParseLoad(c.load, "f"), state, options).status().ToString(), HasSubstr(c.message));
  }
}

// Counts reports as a controller does; answers what `answers` says first.
class FakeController : public EngineReporter {
 public:
  absl::StatusOr<v1::RegisterEngineResponse> Register(const v1::RegisterEngineRequest& request) override {
    ++registrations;
    stream_ = request.report_stream();
    v1::RegisterEngineResponse response;
    response.set_reports_stored(Stored());
    response.mutable_status()->set_epoch(epoch);
    return response;
  }
  absl::StatusOr<v1::ReportLoadResponse> Report(const v1::ReportLoadRequest& request) override {
    absl::Status answer;
    if (!answers.empty()) {
      answer = answers.front();
      answers.pop_front();
    }
    if (away) return absl::UnavailableError("away");
    if (absl::IsFailedPrecondition(answer)) return answer;
    // Unavailable: it may have counted the report before the answer was lost.
    const uint64_t sequence = request.report().sequence();
    if (sequence > Stored()) counted.emplace(sequence, request.report().SerializeAsString());
    if (counted.contains(sequence)) {
      EXPECT_EQ(counted.at(sequence), request.report().SerializeAsString());
    }
    if (!answer.ok()) return answer;
    v1::ReportLoadResponse response;
    response.set_reports_stored(Stored());
    return response;
  }
  absl::StatusOr<v1::GetEnginePlacementResponse> Placement(const v1::GetEnginePlacementRequest& request) override {
    return v1::GetEnginePlacementResponse();
  }

  std::deque<absl::Status> answers;
  // Reports are answered with Unavailable and not counted.
  bool away = false;
  // By sequence.
  std::map<uint64_t, std::string> counted;
  int registrations = 0;
  uint64_t epoch = 0;

 private:
  // The highest number that was counted; what comes with a smaller one is a duplicate.
  uint64_t Stored() const { return counted.empty() ? 0 : counted.rbegin()->first; }

  uint64_t stream_ = 0;
};

class SidecarTest : public ::testing::Test {
 protected:
  SidecarTest() : folder_(::testing::TempDir() + "sidecar_test") {
    std::filesystem::remove_all(folder_);
    std::filesystem::create_directories(folder_ + "/dumps");
    options_.folder = folder_ + "/dumps";
    options_.state_file = folder_ + "/dumps/.state.json";
    options_.placement_file = folder_ + "/dumps/placement.json";
    options_.engine = "e";
    options_.gpus = 2;
    options_.slots_per_gpu = 3;
    options_.experts_per_token = 2;
  }
  void Write(const std::string& name, const std::string& text) const {
    std::ofstream(folder_ + "/dumps/" + name) << text;
  }
  std::string Read(const std::string& name) const {
    std::ifstream in(folder_ + "/dumps/" + name);
    std::ostringstream text;
    text << in.rdbuf();
    return text.str();
  }
  Sidecar Open(EngineReporter& reporter) const {
    auto sidecar = Sidecar::Open(options_, reporter, 77);
    EXPECT_TRUE(sidecar.ok()) << sidecar.status();
    return *std::move(sidecar);
  }

  const std::string folder_;
  SidecarOptions options_;
  absl::Time now_ = absl::FromUnixSeconds(1'700'000'000);
  std::vector<std::string> remarks_;
};

constexpr char kDump[] = R"({"logical_count": [[0,0,0,0], [900,50,30,20], [10,20,30,940]]})";

TEST_F(SidecarTest, EachDumpCountsOnceWhateverIsLost) {
  FakeController controller;
  Write("1.json", kDump);
  Write("2.json", kDump);
  {
    Sidecar sidecar = Open(controller);
    controller.answers = {absl::UnavailableError("down")};
    EXPECT_EQ(sidecar.Step(true, absl::ZeroDuration(), now_, remarks_).code(), absl::StatusCode::kUnavailable);
    // Counted, and the answer lost. Then this process is killed.
  }
  Sidecar sidecar = Open(controller);
  ASSERT_TRUE(sidecar.Step(true, absl::ZeroDuration(), now_, remarks_).ok());
  EXPECT_EQ(controller.counted.size(), 2u);
  // A controller that forgot the stream asks for it.
  Write("#3.json", kDump);
  controller.answers = {absl::FailedPreconditionError("another stream")};
  const int before = controller.registrations;
  ASSERT_TRUE(sidecar.Step(true, absl::ZeroDuration(), now_, remarks_).ok());
  EXPECT_EQ(controller.registrations, before + 1);
  EXPECT_EQ(controller.counted.size(), 3u);
  ASSERT_TRUE(Open(controller).Step(true, absl::ZeroDuration(), now_, remarks_).ok());
  EXPECT_EQ(controller.counted.size(), 3u);
  EXPECT_EQ(sidecar.state().stream, 77u);
}

TEST_F(SidecarTest, FilesThatGrowAreLeftUntilTheyStandStill) {
  FakeController controller;
  Sidecar sidecar = Open(controller);
  Write("1.json", "{\"logical_count\"");
  ASSERT_TRUE(sidecar.Step(false, absl::ZeroDuration(), now_, remarks_).ok());
  Write("1.json", kDump);
  ASSERT_TRUE(sidecar.Step(false, absl::ZeroDuration(), now_, remarks_).ok());
  EXPECT_TRUE(controller.counted.empty());
  ASSERT_TRUE(sidecar.Step(false, absl::ZeroDuration(), now_, remarks_).ok());
  EXPECT_EQ(controller.counted.size(), 1u);
  EXPECT_THAT(remarks_, ElementsAre(HasSubstr("1.json: reported")));
}

TEST_F(SidecarTest, AFolderThatIsEmptyForAMomentCountsNothingTwice) {
  FakeController controller;
  Write("1.json", kDump);
  Write("2.json", kDump);
  const std::string away = folder_ + "/away";
  std::filesystem::create_directories(away);
  {
    Sidecar sidecar = Open(controller);
    ASSERT_TRUE(sidecar.Step(true, absl::ZeroDuration(), now_, remarks_).ok());
    for (const char* name : {"/1.json", "/2.json"}) {
      std::filesystem::rename(options_.folder + name, away + name);
    }
    ASSERT_TRUE(sidecar.Step(true, absl::ZeroDuration(), now_, remarks_).ok());
    // Something else is reported meanwhile, so that the state is written.
    Write("3.json", kDump);
    ASSERT_TRUE(sidecar.Step(true, absl::ZeroDuration(), now_, remarks_).ok());
    EXPECT_EQ(sidecar.state().missing_since.size(), 2u);
    EXPECT_EQ(controller.counted.size(), 3u);
  }
  Sidecar sidecar = Open(controller);
  EXPECT_EQ(sidecar.state().missing_since.size(), 2u);
  for (const char* name : {"/1.json", "/2.json"}) {
    std::filesystem::rename(away + name, options_.folder + name);
  }
  for (int i = 0; i < 2; ++i) {
    now_ += kForgetDumpsAfter;
    ASSERT_TRUE(sidecar.Step(true, absl::ZeroDuration(), now_, remarks_).ok());
  }
  EXPECT_EQ(controller.counted.size(), 3u);
  EXPECT_THAT(sidecar.state().missing_since, IsEmpty());
}

TEST_F(SidecarTest, ADumpThatLeavesBeforeItCountedCountsWhenItComesBack) {
  FakeController controller;
  const std::string away = folder_ + "/away.json";
  Write("1.json", kDump);
  {
    Sidecar sidecar = Open(controller);
    controller.away = true;
    EXPECT_EQ(sidecar.Step(true, absl::ZeroDuration(), now_, remarks_).code(), absl::StatusCode::kUnavailable);
    std::filesystem::rename(options_.folder + "/1.json", away);
    controller.away = false;
    Write("2.json", kDump);
    ASSERT_TRUE(sidecar.Step(true, absl::ZeroDuration(), now_, remarks_).ok());
    EXPECT_EQ(controller.counted.size(), 1u);
  }
  Sidecar sidecar = Open(controller);
  std::filesystem::rename(away, options_.folder + "/1.json");
  for (int i = 0; i < 2; ++i) {
    ASSERT_TRUE(sidecar.Step(true, absl::ZeroDuration(), now_, remarks_).ok());
    EXPECT_EQ(controller.counted.size(), 2u);
  }
  // Counted, and the answer lost: then it is not new.
  Write("3.json", kDump);
  controller.answers = {absl::UnavailableError("down")};
  EXPECT_FALSE(sidecar.Step(true, absl::ZeroDuration(), now_, remarks_).ok());
  std::filesystem::rename(options_.folder + "/3.json", away);
  Write("4.json", kDump);
  ASSERT_TRUE(sidecar.Step(true, absl::ZeroDuration(), now_, remarks_).ok());
  std::filesystem::rename(away, options_.folder + "/3.json");
  ASSERT_TRUE(sidecar.Step(true, absl::ZeroDuration(), now_, remarks_).ok());
  EXPECT_EQ(controller.counted.size(), 4u);
}

// A controller during whose first report the engine writes a file.
class SlowController final : public FakeController {
 public:
  explicit SlowController(std::function<void()> meanwhile) : meanwhile_(std::move(meanwhile)) {}
  absl::StatusOr<v1::ReportLoadResponse> Report(const v1::ReportLoadRequest& request) override {
    if (meanwhile_ != nullptr) std::exchange(meanwhile_, nullptr)();
    return FakeController::Report(request);
  }

 private:
  std::function<void()> meanwhile_;
};

TEST_F(SidecarTest, ADumpThatIsWrittenBetweenLookAndReadCountsOnce) {
  Write("1.json", kDump);
  Write("2.json", R"({"logical_count": [[0,0,0,0], [1,1,1,1], [1,1,1,1]]})");
  SlowController controller([&] { Write("2.json", kDump); });
  Sidecar sidecar = Open(controller);
  ASSERT_TRUE(sidecar.Step(true, absl::ZeroDuration(), now_, remarks_).ok());
  EXPECT_EQ(controller.counted.size(), 1u);
  for (int i = 0; i < 2; ++i) ASSERT_TRUE(sidecar.Step(true, absl::ZeroDuration(), now_, remarks_).ok());
  ASSERT_EQ(controller.counted.size(), 2u);
  v1::LoadReport second;
  ASSERT_TRUE(second.ParseFromString(controller.counted.at(2)));
  EXPECT_EQ(second.counts(0).tokens(), 900);
}

TEST_F(SidecarTest, WhatMayNotBeReadIsToldAndTriedAgain) {
  FakeController controller;
  Write("1.json", kDump);
  Write("2.json", kDump);
  const NoPrivileges none;
  const std::string first = options_.folder + "/1.json";
  const auto set = [](const std::string& path, std::filesystem::perms mode) {
    std::filesystem::permissions(path, mode);
  };
  set(first, std::filesystem::perms::none);
  Sidecar sidecar = Open(controller);
  for (int i = 0; i < 3; ++i) ASSERT_TRUE(sidecar.Step(true, absl::ZeroDuration(), now_, remarks_).ok());
  EXPECT_EQ(controller.counted.size(), 1u);
  EXPECT_THAT(remarks_,
              ElementsAre(HasSubstr("1.json: cannot be opened: Permission denied; trying again at every look"),
                          HasSubstr("2.json: reported")));
  set(first, std::filesystem::perms::owner_read);
  ASSERT_TRUE(sidecar.Step(true, absl::ZeroDuration(), now_, remarks_).ok());
  EXPECT_EQ(controller.counted.size(), 2u);
  // One that has its number holds up those behind it.
  Write("3.json", kDump);
  controller.answers = {absl::UnavailableError("down")};
  EXPECT_FALSE(sidecar.Step(true, absl::ZeroDuration(), now_, remarks_).ok());
  controller.counted.erase(3);
  set(options_.folder + "/3.json", std::filesystem::perms::none);
  Write("4.json", kDump);
  EXPECT_THAT(sidecar.Step(true, absl::ZeroDuration(), now_, remarks_).ToString(),
              HasSubstr("UNAVAILABLE: " + options_.folder + "/3.json: cannot be opened"));
  EXPECT_EQ(controller.counted.size(), 2u);
  // A state that may not be read is no reason to begin anew.
  set(options_.state_file, std::filesystem::perms::none);
  EXPECT_EQ(Sidecar::Open(options_, controller, 1).status().code(), absl::StatusCode::kPermissionDenied);
  std::filesystem::remove(options_.state_file);
  std::filesystem::create_symlink(".state.json", options_.state_file);
  EXPECT_EQ(Sidecar::Open(options_, controller, 1).status().code(), absl::StatusCode::kUnavailable)
      << "a loop of links";
}

TEST_F(SidecarTest, BadDumpsArePassedOverOnce) {
  FakeController controller;
  Sidecar sidecar = Open(controller);
  Write("0.json", R"({"logical_count": [[0,0],[0,0]]})");
  ASSERT_TRUE(sidecar.Step(true, absl::ZeroDuration(), now_, remarks_).ok());
  Write("1.json", kDump);
  ASSERT_TRUE(sidecar.Step(true, absl::ZeroDuration(), now_, remarks_).ok());
  Write("2.json", R"({"logical_count": [[1,-2]]})");
  Write("3.json", R"({"logical_count": [[1,2]]})");
  Write("4.txt", "notes");
  Write(".hidden", "x");
  ASSERT_TRUE(sidecar.Step(true, absl::ZeroDuration(), now_, remarks_).ok());
  EXPECT_EQ(controller.counted.size(), 1u);
  std::string all;
  for (const std::string& remark : remarks_) absl::StrAppend(&all, remark, "\n");
  EXPECT_THAT(all, HasSubstr("0.json: holds no tokens; passed over"));
  EXPECT_THAT(all, HasSubstr("2.json: logical_count row 0 expert 1: -2; must be 0 to 1e18; passed over"));
  EXPECT_THAT(all, HasSubstr("3.json: 1 rows of 2 experts; the first dump had 3 of 4; passed over"));
  EXPECT_THAT(all, HasSubstr("4.txt: not a load that is known"));
  EXPECT_EQ(remarks_.size(), 5u);
  ASSERT_TRUE(sidecar.Step(true, absl::ZeroDuration(), now_, remarks_).ok());
  EXPECT_EQ(remarks_.size(), 5u);
  options_.folder = folder_ + "/none";
  EXPECT_THAT(Open(controller).Step(true, absl::ZeroDuration(), now_, remarks_).ToString(),
              HasSubstr("cannot be read"));
  options_.folder = folder_ + "/dumps";
  Write(".state.json", "{}");
  EXPECT_THAT(Sidecar::Open(options_, controller, 1).status().ToString(), HasSubstr(".state.json: format"));
}

// The verb against a daemon, through files alone.
class SidecarDaemonTest : public SidecarTest {
 protected:
  SidecarDaemonTest() {
    DaemonOptions options;
    options.listen = "127.0.0.1:0";
    options.metrics_listen = "127.0.0.1:0";
    options.planning.min_tokens = 100;
    options.planning.interval = absl::Hours(100);
    auto daemon = Daemon::Start(options, store_, Clock::Real());
    EXPECT_TRUE(daemon.ok()) << daemon.status();
    daemon_ = *std::move(daemon);
    stub_ =
        v1::TelemetryService::NewStub(grpc::CreateChannel(daemon_->grpc_address(), grpc::InsecureChannelCredentials()));
  }

  absl::Status Run(const std::string& format, const std::string& more = "") {
    std::vector<std::string> words;
    std::istringstream in(absl::StrCat("sidecar --engine e --watch ", options_.folder, " --placement-out ",
                                       options_.placement_file, " --format ", format,
                                       " --gpus 2 --slots-per-gpu 3 --experts-per-token 2 --once ", more));
    for (std::string word; in >> word;) words.push_back(word);
    std::reverse(words.begin(), words.end());  // as CLI11 wants them
    CLI::App app;
    std::ostringstream out;
    err_.str("");
    CtlContext context{.controller = daemon_->grpc_address(), .timeout_seconds = 50, .out = out, .err = err_};
    AddSidecarVerb(app, context);
    app.parse(words);
    return context.run();
  }
  int64_t WindowTokens() {
    grpc::ClientContext context;
    v1::GetEngineRequest request;
    request.set_engine("e");
    v1::GetEngineResponse response;
    EXPECT_TRUE(stub_->GetEngine(&context, request, &response).ok());
    return response.status().window_tokens();
  }

  MemoryStore store_;
  std::unique_ptr<Daemon> daemon_;
  std::unique_ptr<v1::TelemetryService::Stub> stub_;
  std::ostringstream err_;
};

TEST_F(SidecarDaemonTest, DumpsBecomeAPlacementFile) {
  std::filesystem::copy_file("controller/formats/testdata/stat.pt", folder_ + "/dumps/stat.pt");
  const absl::Status first = Run("sglang", "--wait 50");
  ASSERT_TRUE(first.ok()) << first;
  EXPECT_THAT(err_.str(), HasSubstr("stat.pt: reported"));
  EXPECT_THAT(err_.str(), HasSubstr("placement.json: epoch 1"));
  const auto map = nlohmann::json::parse(Read("placement.json"))["physical_to_logical_map"];
  ASSERT_EQ(map.size(), 3u);
  EXPECT_EQ(map[0], nlohmann::json({0, 1, 2, 3, 0, 1})) << "the dense row";
  for (int row = 1; row < 3; ++row) {
    EXPECT_EQ(map[row].get<std::set<int>>(), (std::set<int>{0, 1, 2, 3}));
  }
  // Tokens: the largest row's choices, two a token.
  EXPECT_EQ(WindowTokens(), 143);

  // Again: nothing is counted twice, the placement is not written anew.
  const auto written = std::filesystem::last_write_time(options_.placement_file);
  ASSERT_TRUE(Run("sglang").ok());
  EXPECT_EQ(err_.str(), "");
  EXPECT_EQ(WindowTokens(), 143);
  EXPECT_EQ(std::filesystem::last_write_time(options_.placement_file), written);

  Write("more.json", R"({"logical_count": [[0,0,0,0], [2,2,2,2], [2,2,2,2]]})");
  ASSERT_TRUE(Run("sglang").ok());
  EXPECT_EQ(WindowTokens(), 147);

  // Another definition is refused, or taken.
  const absl::Status other = Run("sglang", "--expert-bytes 5");
  EXPECT_THAT(other.ToString(), HasSubstr("another definition"));
  EXPECT_TRUE(Run("sglang", "--expert-bytes 5 --replace").ok());
}

TEST_F(SidecarDaemonTest, WritesEveryEnginesFormat) {
  for (const std::string& format : EngineFormatNames()) {
    std::filesystem::remove_all(options_.folder);
    std::filesystem::create_directories(options_.folder);
    Write("dump.json", kDump);
    const absl::Status status = Run(format, "--replace --wait 50 --reporter " + format);
    ASSERT_TRUE(status.ok()) << status;
    const auto map = ParseEngineFile(Read("placement.json"), "f", EngineFormatOf(format), 2);
    ASSERT_TRUE(map.ok()) << map.status();
    EXPECT_EQ(map->experts, 4);
  }
}

TEST_F(SidecarDaemonTest, AControllerThatIsAwayIsAnError) {
  Write("dump.json", kDump);
  daemon_->Stop();
  const absl::Status status = Run("sglang", "");
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_FALSE(std::filesystem::exists(options_.placement_file));
}

}  // namespace
}  // namespace ballast
