#include "worker/daemon/views.h"

#include "gtest/gtest.h"

namespace ballast {
namespace {

v1::View ViewOf(const std::vector<std::string>& workers) {
  v1::View view;
  view.set_view(7);
  for (const std::string& worker : workers) {
    v1::Member& member = *view.add_members();
    member.set_worker(worker);
    member.set_rank(view.members_size() - 1);
    member.set_incarnation(3);
    member.set_data_address(worker + ":1");
    member.set_node("n");
  }
  return view;
}

TEST(ViewsTest, ToGroupView) {
  v1::View proto = ViewOf({"a", "b", "c"});
  proto.mutable_members(1)->set_speed(7);
  const GroupView view = ToGroupView(proto, "b");
  EXPECT_EQ(view.view, ViewId(7));
  EXPECT_EQ(view.rank, 1);
  ASSERT_EQ(view.size(), 3);
  EXPECT_EQ(view.members[2].worker, "c");
  EXPECT_EQ(view.members[2].data_address, "c:1");
  EXPECT_EQ(view.members[2].incarnation, Incarnation(3));
  EXPECT_EQ(view.members[2].node, "n");
  EXPECT_EQ(view.members[1].speed, 7u);
  EXPECT_EQ(view.members[2].speed, 1u);
}

TEST(ViewsTest, CountMissing) {
  // Expert 0 on a and b, 1 on b, 2 on c.
  const Placement placement{.epoch = Epoch(1),
                            .num_layers = 1,
                            .num_experts = 3,
                            .workers = {"a", "b", "c"},
                            .replicas = {{{0, 0}, 0, 0}, {{0, 0}, 1, 0}, {{0, 1}, 1, 1}, {{0, 2}, 2, 0}}};
  EXPECT_EQ(CountMissing(placement, ViewOf({"a", "b", "c"})), 0);
  EXPECT_EQ(CountMissing(placement, ViewOf({"b", "c", "d"})), 0);
  EXPECT_EQ(CountMissing(placement, ViewOf({"a", "c"})), 1);
  EXPECT_EQ(CountMissing(placement, ViewOf({"a"})), 2);
}

}  // namespace
}  // namespace ballast
