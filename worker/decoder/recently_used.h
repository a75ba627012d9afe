// So many things of a kind that is costly to make, by what they are for.
#ifndef BALLAST_WORKER_DECODER_RECENTLY_USED_H_
#define BALLAST_WORKER_DECODER_RECENTLY_USED_H_

#include <cstddef>
#include <list>
#include <map>
#include <utility>

#include "proto/base/check.h"

namespace ballast {

// At most `capacity` (at least 1) values; a new one takes the place of that which was used longest ago. One thread.
template <typename Key, typename Value>
class RecentlyUsed {
 public:
  explicit RecentlyUsed(size_t capacity) : capacity_(capacity) { BALLAST_CHECK(capacity > 0); }

  // Null where there is none; the value counts as used now. Valid until the next Insert or Clear.
  Value* Find(const Key& key) {
    const auto at = index_.find(key);
    if (at == index_.end()) return nullptr;
    values_.splice(values_.begin(), values_, at->second);
    return &at->second->second;
  }
  // REQUIRES: there is none of the key.
  Value* Insert(const Key& key, Value value) {
    if (index_.size() == capacity_) {
      index_.erase(values_.back().first);
      values_.pop_back();
    }
    values_.emplace_front(key, std::move(value));
    const bool inserted = index_.emplace(key, values_.begin()).second;
    BALLAST_CHECK(inserted) << "a value is there already";
    return &values_.front().second;
  }
  void Clear() {
    index_.clear();
    values_.clear();
  }
  size_t size() const { return index_.size(); }

 private:
  const size_t capacity_;
  // By use, the last one first.
  std::list<std::pair<Key, Value>> values_;
  std::map<Key, typename std::list<std::pair<Key, Value>>::iterator> index_;
};

}  // namespace ballast

#endif  // BALLAST_WORKER_DECODER_RECENTLY_USED_H_
