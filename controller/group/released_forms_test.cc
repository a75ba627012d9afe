// Workers that speak the messages of a release: what this controller says beyond them they do not hear, what it wants
// to hear beyond them they do not say. The group lives all the same.
#include <fstream>
#include <memory>
#include <string>

#include "controller/group/group.h"
#include "controller/group/group_harness.h"
#include "google/protobuf/descriptor.pb.h"
#include "google/protobuf/dynamic_message.h"
#include "gtest/gtest.h"
#include "proto/base/check.h"

namespace ballast {
namespace {

// The messages of one release.
class Release {
 public:
  explicit Release(const std::string& image) {
    std::ifstream file(image, std::ios::binary);
    google::protobuf::FileDescriptorSet files;
    BALLAST_CHECK(files.ParseFromIstream(&file)) << image;
    for (const google::protobuf::FileDescriptorProto& proto : files.file()) {
      BALLAST_CHECK(pool_.BuildFile(proto) != nullptr) << proto.name();
    }
  }

  // `message` as a program of the release reads or writes it.
  void Reduce(google::protobuf::Message& message) {
    const google::protobuf::Descriptor* type = pool_.FindMessageTypeByName(message.GetDescriptor()->full_name());
    BALLAST_CHECK(type != nullptr) << message.GetDescriptor()->full_name();
    const std::unique_ptr<google::protobuf::Message> old(factory_.GetPrototype(type)->New());
    BALLAST_CHECK(old->ParseFromString(message.SerializeAsString()));
    old->DiscardUnknownFields();
    BALLAST_CHECK(message.ParseFromString(old->SerializeAsString()));
  }

 private:
  google::protobuf::DescriptorPool pool_;
  google::protobuf::DynamicMessageFactory factory_{&pool_};
};

TEST(ReleasedForms, WorkersOfARelease) {
  Release release("proto/released/0.1.0.binpb");
  GroupHarness::Options options = GroupHarness::Small();
  options.slots = 14;
  options.form = [&release](google::protobuf::Message& message) { release.Reduce(message); };
  GroupHarness h(options);
  h.FormGroup();
  h.LoadWindowSkewed();
  ASSERT_EQ(h.group().Describe(h.now()).state(), v1::GROUP_STATE_SERVING);
  const auto plan = h.CreatePlan();
  ASSERT_TRUE(plan.ok()) << plan.status();
  const std::string id = plan->plan().id();
  ASSERT_TRUE(h.Operate([&](Group& g, Effects& effects) { return g.Approve(id, "ann", h.now(), effects); }).ok());
  h.Advance(absl::Seconds(2));
  EXPECT_EQ(h.group().Plan(id)->plan().state(), v1::PLAN_STATE_DONE);
  h.CrashNow();
  h.Advance(absl::Seconds(2));
  EXPECT_EQ(h.group().Describe(h.now()).state(), v1::GROUP_STATE_SERVING);

  // It hears nothing of its drain, ends when its requests have ended, and is emptied all the same if it stays so long.
  h.SetRequests(3, 1);
  h.SendLeaving(3);
  h.Advance(absl::Seconds(2));
  EXPECT_EQ(h.worker_drain(3), v1::DRAIN_STATE_UNSPECIFIED);
  EXPECT_EQ(h.group().Describe(h.now()).view().members_size(), 4);
  h.SetRequests(3, 0);
  h.Advance(absl::Seconds(1));
  EXPECT_EQ(h.group().Describe(h.now()).view().members_size(), 3);
  EXPECT_EQ(h.group().Describe(h.now()).missing_total(), 0);
  h.KillProcess(3);
  h.StartProcess(3);
  h.Advance(absl::Seconds(2));
  EXPECT_EQ(h.group().Describe(h.now()).view().members_size(), 4);
}

}  // namespace
}  // namespace ballast
