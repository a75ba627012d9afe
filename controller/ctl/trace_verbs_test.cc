#include <grpcpp/grpcpp.h>

#include <atomic>
#include <filesystem>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "ballast/v1/inference.grpc.pb.h"
#include "ballast/v1/telemetry_service.grpc.pb.h"
#include "controller/ctl/context.h"
#include "controller/ctl/verb_test.h"
#include "controller/formats/load_file.h"
#include "controller/service/daemon.h"
#include "controller/store/store.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "proto/base/clock.h"

namespace ballast {
namespace {

using ::testing::HasSubstr;

class TraceVerbsTest : public VerbTest {
 protected:
  TraceVerbsTest() : VerbTest(AddTraceVerbs) {
    Write("routes.csv", "layer,sample,token,e0,e1\n1,0,0,2,0\n1,0,1,0,1\n2,7,0,1,2\n");
  }
};

TEST_F(TraceVerbsTest, ConvertsBetweenEveryForm) {
  const LoadFile routes = *ReadLoad(Path("routes.csv"));
  for (const char* to : {"csv", "csv.gz", "json"}) {
    ASSERT_EQ(Run(absl::StrCat("trace convert --file @routes.csv --out @converted --to ", to)), 0) << err_.str();
    const auto converted = ReadLoad(Path("converted"));
    ASSERT_TRUE(converted.ok()) << converted.status();
    EXPECT_EQ(converted->routes.experts, routes.routes.experts) << to;
    EXPECT_EQ(converted->routes.samples, routes.routes.samples) << to;
    EXPECT_EQ(converted->routes.tokens, routes.routes.tokens) << to;
    EXPECT_EQ(converted->parts[0].load, routes.parts[0].load) << to;
    // And back, byte for byte.
    ASSERT_EQ(Run("trace convert --file @converted --to csv"), 0) << err_.str();
    EXPECT_EQ(out_.str(), "layer,sample,token,e0,e1\n1,0,0,2,0\n1,0,1,0,1\n2,7,0,1,2\n") << to;
  }
  ASSERT_EQ(Run("trace convert --file @routes.csv --file @converted --to load --out @load.json"), 0) << err_.str();
  const auto load = ReadLoad(Path("load.json"));
  ASSERT_TRUE(load.ok()) << load.status();
  EXPECT_EQ(load->format, "ballast");
  ASSERT_EQ(load->parts.size(), 1u);
  EXPECT_EQ(load->parts[0].load.layer(1)[0], 4);
}

TEST_F(TraceVerbsTest, ConvertsRecorderDumps) {
  ASSERT_EQ(Run("trace convert --file controller/formats/testdata/per_token.pt --to csv"), 0) << err_.str();
  EXPECT_THAT(out_.str(), HasSubstr("layer,sample,token,e0,e1\n1,0,0,0,1\n1,0,1,2,3\n1,1,2,2,0\n1,2,3,3,1\n"));
  EXPECT_EQ(Run("trace convert --file controller/formats/testdata/stat.pt --to csv"), 1);
  EXPECT_THAT(err_.str(), HasSubstr("stat.pt: a sglang file says how many tokens experts got"));
}

TEST_F(TraceVerbsTest, LooksIntoFiles) {
  const auto info = Json("trace info --file @routes.csv --gpus 3");
  EXPECT_EQ(info["format"], "routes");
  EXPECT_EQ(info["rows"], 3);
  EXPECT_EQ(info["moe_rows"], 2);
  EXPECT_EQ(info["experts"], 3);
  EXPECT_EQ(info["top_k"], 2);
  EXPECT_EQ(info["tokens"], 2);
  EXPECT_EQ(info["samples"], 2);
  // Rows of 2 1 1 and 0 1 1: (4/3)/2 and (2/3)/1.
  EXPECT_NEAR(info["parts"][0]["by_expert"].get<double>(), 2.0 / 3, 1e-9);
  EXPECT_EQ(info["parts"][0]["by_gpu"], info["parts"][0]["by_expert"]);
  Write("counts.csv", "dataset,iteration,layer,e0,e1\nwiki,0,0,9,1\nwmt,0,0,1,1\n");
  ASSERT_EQ(Run("trace info --file @counts.csv --file @routes.csv"), 0) << err_.str();
  EXPECT_THAT(out_.str(), HasSubstr("counts, 1 rows (1 with load) of 2 experts"));
  EXPECT_THAT(out_.str(), HasSubstr("wiki"));
  EXPECT_THAT(out_.str(), HasSubstr("2 tokens of 2 samples, 2 experts a token"));
}

TEST_F(TraceVerbsTest, ErrorsGoToStderrAndNothingIsWritten) {
  Write("bad.json", R"({"format": "ballast.trace/v1", "rows": 1, "experts": 2, "top_k": 1,
                        "layers": [{"row": 0, "tokens": [[0, 0, 2]]}]})");
  Write("ragged.json", R"({"format": "ballast.trace/v1", "rows": 1, "experts": 2, "top_k": 1,
                           "layers": [{"row": 0, "tokens": [[0, 0]]}]})");
  Write("rows.json", R"({"format": "ballast.trace/v1", "rows": 1, "experts": 2, "top_k": 1,
                         "layers": [{"row": 1, "tokens": []}]})");
  Write("k.json", R"({"format": "ballast.trace/v1", "rows": 1, "experts": 2, "top_k": 3, "layers": []})");
  Write("one.json", R"({"logical_count": [[1]]})");
  const struct {
    const char* line;
    int status;
    const char* message;
  } cases[] = {
      {"trace convert --file @bad.json --to csv --out @x", 1, "bad.json: layers[0].tokens[0][2]: 2; must be"},
      {"trace convert --file @ragged.json --to csv --out @x", 1, "layers[0].tokens[0]: must be [sample, token, 1"},
      {"trace convert --file @rows.json --to csv --out @x", 1, "layers[0].row is 1, want an integer from 0 to 0"},
      {"trace convert --file @k.json --to csv --out @x", 1, "top_k is 3, want an integer from 1 to 2"},
      {"trace convert --file @none --to csv --out @x", 1, "none: cannot be opened"},
      {"trace convert --file @routes.csv --file @routes.csv --to csv --out @x", 1, "--to csv takes one --file"},
      {"trace convert --file @one.json --file @bad2.json --to load --out @x", 1, "bad2.json: cannot be opened"},
      {"trace convert --file @routes.csv --to fancy --out @x", 2, "--to"},
      {"trace info --file @one.json --gpus 2", 1, "--gpus 2: "},
      {"trace record --group g --out @x --seconds 1", 1, "127.0.0.1:1: "},
      {"trace", 2, "subcommand"},
  };
  for (const auto& c : cases) {
    EXPECT_EQ(Run(c.line), c.status) << c.line;
    EXPECT_THAT(err_.str(), HasSubstr(c.message)) << c.line;
    EXPECT_EQ(out_.str(), "") << c.line;
    EXPECT_FALSE(Exists("x")) << c.line;
  }
  for (const char* verb : {"record", "convert", "info"}) {
    EXPECT_EQ(Run(std::string("trace ") + verb + " --help"), 0);
    EXPECT_THAT(out_.str(), HasSubstr("Example")) << verb;
  }
}

TEST_F(TraceVerbsTest, RecordsWhatIsReported) {
  DaemonOptions options;
  options.listen = "127.0.0.1:0";
  options.metrics_listen = "127.0.0.1:0";
  MemoryStore store;
  auto daemon = Daemon::Start(options, store, Clock::Real());
  ASSERT_TRUE(daemon.ok()) << daemon.status();
  controller_ = (*daemon)->grpc_address();
  const auto stub = v1::TelemetryService::NewStub(grpc::CreateChannel(controller_, grpc::InsecureChannelCredentials()));
  v1::RegisterEngineRequest engine;
  engine.mutable_engine()->set_name("e");
  engine.mutable_engine()->set_num_layers(1);
  engine.mutable_engine()->set_num_experts(2);
  engine.mutable_engine()->set_slots_per_layer(2);
  engine.mutable_engine()->add_workers()->set_name("w0");
  engine.set_reporter("r");
  engine.set_report_stream(1);
  v1::RegisterEngineResponse registered;
  grpc::ClientContext context;
  ASSERT_TRUE(stub->RegisterEngine(&context, engine, &registered).ok());

  // Reports all the while, so that some fall into the recording.
  std::atomic<bool> stop = false;
  std::thread reporter([&] {
    for (uint64_t sequence = 1; !stop; ++sequence) {
      grpc::ClientContext call;
      v1::ReportLoadRequest request;
      request.set_engine("e");
      request.set_reporter("r");
      request.set_report_stream(1);
      v1::LoadReport& report = *request.mutable_report();
      report.set_sequence(sequence);
      report.add_task_tokens()->set_decode_tokens(3);
      for (int e = 0; e < 2; ++e) {
        v1::LoadCount& count = *report.add_counts();
        count.set_expert(e);
        count.set_phase(v1::PHASE_DECODE);
        count.set_tokens(e + 1);
      }
      v1::ReportLoadResponse response;
      EXPECT_TRUE(stub->ReportLoad(&call, request, &response).ok());
    }
  });
  // While the reporter does not come to its turn nothing is recorded, which is said.
  const auto record = [&](const std::string& line) {
    int status = 0;
    do {
      status = Run(line);
    } while (status != 0 && absl::StrContains(err_.str(), "no token in") && !HasFailure());
    return status;
  };
  EXPECT_EQ(record("trace record --group e --seconds 0.2 --interval 0.1 --out @load.json"), 0) << err_.str();
  EXPECT_EQ(record("trace record --group e --seconds 0.2 --interval 0.1 --windows --out @windows.json --output json"),
            0)
      << err_.str();
  stop = true;
  reporter.join();
  const auto load = ReadLoad(Path("load.json"));
  ASSERT_TRUE(load.ok()) << load.status();
  EXPECT_EQ(load->parts[0].name, "decode");
  EXPECT_GT(load->parts[0].load.tokens[0], 0);
  EXPECT_EQ(load->parts[0].load.tokens[1], 2 * load->parts[0].load.tokens[0]);
  EXPECT_THAT(ReadLoad(Path("windows.json"))->parts[0].name, HasSubstr("decode/0000"));
  EXPECT_EQ(Run("trace record --group none --seconds 0.2 --out @x"), 1);
  EXPECT_THAT(err_.str(), HasSubstr("neither a group nor an engine 'none'"));
}

// A controller and a worker whose answers end early.
class EndsEarly final : public v1::TelemetryService::Service, public v1::Inference::Service {
 public:
  EndsEarly() {
    int port = 0;
    grpc::ServerBuilder builder;
    builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port);
    builder.RegisterService(static_cast<v1::TelemetryService::Service*>(this));
    builder.RegisterService(static_cast<v1::Inference::Service*>(this));
    server_ = builder.BuildAndStart();
    address_ = absl::StrCat("127.0.0.1:", port);
  }
  const std::string& address() const { return address_; }

  // Two windows of 60 seconds; of group "grows" the second has one expert more.
  grpc::Status WatchLoad(grpc::ServerContext*, const v1::WatchLoadRequest* request,
                         grpc::ServerWriter<v1::WatchLoadResponse>* writer) override {
    for (int i = 0; i < 2; ++i) {
      v1::WatchLoadResponse window;
      window.mutable_start()->set_seconds(60 * i);
      window.mutable_end()->set_seconds(60 * (i + 1));
      const int experts = request->group() == "grows" ? 2 + i : 2;
      window.set_num_layers(1);
      window.set_num_experts(experts);
      for (const v1::Phase phase : {v1::PHASE_PREFILL, v1::PHASE_DECODE}) {
        if (i == 0 && phase == v1::PHASE_PREFILL) continue;
        v1::PhaseTokens& tokens = *window.add_phases();
        tokens.set_phase(phase);
        v1::LayerTokens& layer = *tokens.add_layers();
        for (int e = 0; e < experts; ++e) layer.add_tokens(e + 1);
      }
      writer->Write(window);
    }
    if (request->group() == "ends") return grpc::Status::OK;
    return grpc::Status(grpc::StatusCode::UNAVAILABLE, "going away");
  }

  // Each byte of a text is a token and chooses the expert of its letter.
  grpc::Status Score(grpc::ServerContext*, const v1::ScoreRequest* request, v1::ScoreResponse* response) override {
    if (request->text() == "long") return grpc::Status(grpc::StatusCode::INVALID_ARGUMENT, "too long");
    if (request->text() == "bad") return grpc::Status(grpc::StatusCode::INTERNAL, "not finite");
    response->mutable_expert_routes()->set_moe_layers(1);
    response->mutable_expert_routes()->set_experts_per_token(1);
    for (const char c : request->text()) {
      response->add_token_ids(c);
      response->mutable_expert_routes()->add_experts(c - 'a');
    }
    return grpc::Status::OK;
  }

 private:
  std::string address_;
  std::unique_ptr<grpc::Server> server_;
};

TEST_F(TraceVerbsTest, WhatWasRecordedBeforeAnErrorIsWritten) {
  EndsEarly server;
  controller_ = server.address();
  const struct {
    const char* group;
    std::string message;
    double prefill;
    double decode;
  } groups[] = {
      {"leaves", server.address() + ": going away; " + Path("load.json") + " has what came before: 120.0 of 3600.0", 2,
       4},
      {"ends", server.address() + ": has ended the recording; ", 2, 4},
      {"grows",
       "grows: has another shape than when the recording began; " + Path("load.json") +
           " has what came before: 60.0 of",
       0, 2},
  };
  for (const auto& c : groups) {
    EXPECT_EQ(Run(absl::StrCat("trace record --seconds 3600 --out @load.json --group ", c.group)), 1);
    EXPECT_THAT(err_.str(), HasSubstr(c.message));
    const auto load = ReadLoad(Path("load.json"));
    ASSERT_TRUE(load.ok()) << load.status();
    double prefill = 0;
    double decode = 0;
    for (const LoadPart& part : load->parts) (part.name == "prefill" ? prefill : decode) = part.load.layer(0)[1];
    EXPECT_EQ(prefill, c.prefill) << c.group;
    EXPECT_EQ(decode, c.decode) << c.group;
    std::filesystem::remove(Path("load.json"));
  }
  const auto prompts = [&](const std::vector<std::string>& texts) {
    std::string lines;
    for (const std::string& text : texts) absl::StrAppend(&lines, "{\"task\": \"t\", \"text\": \"", text, "\"}\n");
    Write("prompts.jsonl", lines);
    return Run(absl::StrCat("trace record --timeout 600 --prompts @prompts.jsonl --out @routes.csv --worker ",
                            server.address()));
  };
  EXPECT_EQ(prompts({"a", "b", "long", "c", "d"}), 1);
  EXPECT_EQ(Read("routes.csv"), "layer,sample,token,e0\n0,0,0,0\n0,1,0,1\n0,3,0,2\n0,4,0,3\n");
  EXPECT_THAT(out_.str(), HasSubstr("4 tokens of 4 prompts"));
  EXPECT_THAT(err_.str(), HasSubstr(server.address() + ": prompt 2 is left out: too long\n"));
  EXPECT_THAT(err_.str(), HasSubstr("refused 1 prompts, which " + Path("routes.csv") + " does not have"));
  EXPECT_EQ(prompts({"a", "b", "bad", "c", "d"}), 1);
  EXPECT_EQ(Read("routes.csv"), "layer,sample,token,e0\n0,0,0,0\n0,1,0,1\n");
  EXPECT_THAT(err_.str(), HasSubstr(server.address() + ": not finite; " + Path("routes.csv") +
                                    " has what came before: 2 of 5 prompts"));
  std::filesystem::remove(Path("routes.csv"));
  for (const char* text : {"long", "bad"}) {
    EXPECT_EQ(prompts({text}), 1);
    EXPECT_FALSE(Exists("routes.csv"));
  }
}

}  // namespace
}  // namespace ballast
