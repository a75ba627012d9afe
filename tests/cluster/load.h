// A closed-loop load of real prompts on a group's workers.
#ifndef BALLAST_TESTS_CLUSTER_LOAD_H_
#define BALLAST_TESTS_CLUSTER_LOAD_H_

#include <cstdint>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "ballast/v1/inference.grpc.pb.h"
#include "proto/base/mutex.h"

namespace ballast {

struct Prompt {
  std::string task;
  std::string text;
};

// One JSON object a line, with "task" and "text".
absl::StatusOr<std::vector<Prompt>> ReadPrompts(const std::string& path);

// One request and what came of it.
struct Answer {
  int prompt = 0;  // index into the prompts
  std::string worker;
  absl::Status status;
  std::vector<int32_t> token_ids;
  // The worker that the client is to ask instead; nothing was run.
  std::string redirected_to;
  absl::Time sent;
  absl::Duration time_to_first_token;
  absl::Duration latency;
};

// What a request says of redirects: as GenerateRequest.
struct Redirects {
  bool follows = false;
  bool redirected = false;
};

// Greedy; blocks until the stream ends.
Answer Generate(v1::Inference::Stub& stub, const std::string& text, const std::string& task, int max_tokens,
                absl::Duration timeout, const Redirects& redirects = {});

// `concurrency` clients, each sending its next request when the one before has ended, each time to another worker.
// Thread-safe.
class LoadGenerator {
 public:
  struct Options {
    int concurrency = 16;
    int max_tokens = 24;
    // Only a hang comes near.
    absl::Duration timeout = absl::Minutes(5);
    uint64_t seed = 1;
    // Clients go where workers send them.
    bool follow_redirects = false;
  };
  struct Totals {
    int64_t requests = 0;
    int64_t failed = 0;
    int64_t tokens = 0;
  };

  // `stubs` by worker name. Prompts of every task are sent alike until SetMix.
  LoadGenerator(std::vector<Prompt> prompts, std::map<std::string, std::shared_ptr<v1::Inference::Stub>> stubs,
                Options options);
  // Stops and waits for the requests under way.
  ~LoadGenerator();

  // Relative weights by task; a task that is absent is not sent.
  void SetMix(const std::map<std::string, double>& mix) BALLAST_EXCLUDES(mu_);
  // Replaces the stub of a worker, after it came back at another address.
  void SetStub(const std::string& worker, std::shared_ptr<v1::Inference::Stub> stub) BALLAST_EXCLUDES(mu_);
  // Sends it nothing more; requests under way go on. Others are left.
  void RemoveStub(const std::string& worker) BALLAST_EXCLUDES(mu_);
  Totals totals() const BALLAST_EXCLUDES(mu_);
  void Stop() BALLAST_EXCLUDES(mu_);
  // Every answer so far.
  std::vector<Answer> answers() const BALLAST_EXCLUDES(mu_);
  const std::vector<Prompt>& prompts() const { return prompts_; }

 private:
  void Client(int number);
  // The answer of the worker that `first` names, or where that has none of the one that was asked first.
  Answer Follow(const Answer& first, v1::Inference::Stub& asked, const Prompt& prompt) BALLAST_EXCLUDES(mu_);

  const std::vector<Prompt> prompts_;
  const Options options_;
  mutable Mutex mu_;
  std::map<std::string, std::shared_ptr<v1::Inference::Stub>> stubs_ BALLAST_GUARDED_BY(mu_);
  std::discrete_distribution<int> pick_ BALLAST_GUARDED_BY(mu_);  // of a prompt
  std::mt19937_64 random_ BALLAST_GUARDED_BY(mu_);
  bool stopping_ BALLAST_GUARDED_BY(mu_) = false;
  Totals totals_ BALLAST_GUARDED_BY(mu_);
  std::vector<Answer> answers_ BALLAST_GUARDED_BY(mu_);
  std::vector<std::thread> threads_;
};

}  // namespace ballast

#endif  // BALLAST_TESTS_CLUSTER_LOAD_H_
