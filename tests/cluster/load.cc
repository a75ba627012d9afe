#include "tests/cluster/load.h"

#include <fstream>
#include <iterator>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "grpcpp/grpcpp.h"
#include "nlohmann/json.hpp"
#include "proto/base/clock.h"
#include "proto/base/grpc_status.h"

namespace ballast {

absl::StatusOr<std::vector<Prompt>> ReadPrompts(const std::string& path) {
  std::ifstream file(path);
  if (!file) return absl::NotFoundError(absl::StrCat(path, ": cannot be read"));
  std::vector<Prompt> prompts;
  for (std::string line; std::getline(file, line);) {
    const auto json = nlohmann::json::parse(line, nullptr, /*allow_exceptions=*/false);
    if (!json.is_object() || !json.contains("task") || !json.contains("text")) {
      return absl::InvalidArgumentError(
          absl::StrCat(path, ":", prompts.size() + 1, ": not an object with task and text"));
    }
    prompts.push_back({json["task"].get<std::string>(), json["text"].get<std::string>()});
  }
  return prompts;
}

Answer Generate(v1::Inference::Stub& stub, const std::string& text, const std::string& task, int max_tokens,
                absl::Duration timeout, const Redirects& redirects) {
  Answer answer;
  answer.sent = Clock::Real().Now();
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + absl::ToChronoMilliseconds(timeout));
  v1::GenerateRequest request;
  request.set_text(text);
  request.set_task(task);
  request.set_max_tokens(max_tokens);
  request.set_follows_redirects(redirects.follows);
  request.set_redirected(redirects.redirected);
  const auto stream = stub.Generate(&context, request);
  v1::GenerateResponse response;
  bool finished = false;
  while (stream->Read(&response)) {
    if (answer.token_ids.empty() && response.token_ids_size() > 0) {
      answer.time_to_first_token = Clock::Real().Now() - answer.sent;
    }
    answer.token_ids.insert(answer.token_ids.end(), response.token_ids().begin(), response.token_ids().end());
    finished = finished || response.has_finish();
    if (response.has_redirect()) answer.redirected_to = response.redirect().worker();
  }
  const grpc::Status status = stream->Finish();
  answer.latency = Clock::Real().Now() - answer.sent;
  if (!status.ok()) {
    answer.status = FromGrpc(status);
  } else if (!finished && answer.redirected_to.empty()) {
    answer.status = absl::InternalError("the stream ended without a finish");
  }
  return answer;
}

LoadGenerator::LoadGenerator(std::vector<Prompt> prompts,
                             std::map<std::string, std::shared_ptr<v1::Inference::Stub>> stubs, Options options)
    : prompts_(std::move(prompts)), options_(options), stubs_(std::move(stubs)), random_(options.seed) {
  pick_ = std::discrete_distribution<int>(prompts_.size(), 0, 1, [](double) { return 1.0; });
  for (int i = 0; i < options_.concurrency; ++i) threads_.emplace_back([this, i] { Client(i); });
}

LoadGenerator::~LoadGenerator() { Stop(); }

void LoadGenerator::SetMix(const std::map<std::string, double>& mix) {
  std::vector<double> weights;
  for (const Prompt& p : prompts_) weights.push_back(mix.contains(p.task) ? mix.at(p.task) : 0);
  MutexLock lock(mu_);
  pick_ = std::discrete_distribution<int>(weights.begin(), weights.end());
}

void LoadGenerator::SetStub(const std::string& worker, std::shared_ptr<v1::Inference::Stub> stub) {
  MutexLock lock(mu_);
  stubs_[worker] = std::move(stub);
}

void LoadGenerator::RemoveStub(const std::string& worker) {
  MutexLock lock(mu_);
  stubs_.erase(worker);
}

LoadGenerator::Totals LoadGenerator::totals() const {
  MutexLock lock(mu_);
  return totals_;
}

void LoadGenerator::Stop() {
  {
    MutexLock lock(mu_);
    stopping_ = true;
  }
  for (std::thread& t : threads_) {
    if (t.joinable()) t.join();
  }
}

std::vector<Answer> LoadGenerator::answers() const {
  MutexLock lock(mu_);
  return answers_;
}

Answer LoadGenerator::Follow(const Answer& first, v1::Inference::Stub& asked, const Prompt& prompt) {
  std::shared_ptr<v1::Inference::Stub> there;
  {
    MutexLock lock(mu_);
    const auto stub = stubs_.find(first.redirected_to);
    if (stub != stubs_.end()) there = stub->second;
  }
  Answer answer;
  answer.status = absl::UnavailableError("no stub");
  if (there != nullptr) {
    answer = Generate(*there, prompt.text, prompt.task, options_.max_tokens, options_.timeout, {.redirected = true});
  }
  if (!answer.status.ok() && answer.token_ids.empty()) {
    answer = Generate(asked, prompt.text, prompt.task, options_.max_tokens, options_.timeout);
  }
  const absl::Duration before = answer.sent - first.sent;
  answer.sent = first.sent;
  answer.time_to_first_token += before;
  answer.latency += before;
  return answer;
}

void LoadGenerator::Client(int number) {
  for (size_t turn = number;; ++turn) {
    int prompt;
    std::string worker;
    std::shared_ptr<v1::Inference::Stub> stub;
    {
      MutexLock lock(mu_);
      if (stopping_) return;
      prompt = pick_(random_);
      const auto chosen = std::next(stubs_.begin(), turn % stubs_.size());
      worker = chosen->first;
      stub = chosen->second;
    }
    Answer answer = Generate(*stub, prompts_[prompt].text, prompts_[prompt].task, options_.max_tokens, options_.timeout,
                             {.follows = options_.follow_redirects});
    if (!answer.redirected_to.empty()) answer = Follow(answer, *stub, prompts_[prompt]);
    answer.prompt = prompt;
    answer.worker = worker;
    MutexLock lock(mu_);
    ++totals_.requests;
    totals_.failed += answer.status.ok() ? 0 : 1;
    totals_.tokens += answer.token_ids.size();
    answers_.push_back(std::move(answer));
  }
}

}  // namespace ballast
