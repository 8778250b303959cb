// Rows that a loop will soon want, brought closer while it works. C headers only, internal linkage.
#pragma once

#include <stdint.h>

namespace chipmunk::cpu {
namespace {

// Asks for some lines at a time: many at once would hold up the loads of the loop that asks. Listed
// rows lie where no hardware prefetcher looks.
class RowsAhead {
 public:
  // The first `bytes` bytes of `count` rows, within `steps` steps.
  RowsAhead(const void* const* rows, int count, int64_t bytes, int64_t steps)
      : rows_(rows), count_(bytes > 0 ? count : 0), bytes_(bytes) {
    const int64_t lines = count_ * ((bytes + 63) / 64);
    lines_ = steps > 0 ? (int)((lines + steps - 1) / steps) : 0;
  }

  void step() {
    for (int i = 0; i < lines_ && row_ < count_; ++i) {
      __builtin_prefetch((const char*)rows_[row_] + at_, 0, 2);
      at_ += 64;
      if (at_ >= bytes_) {
        at_ = 0;
        ++row_;
      }
    }
  }

 private:
  const void* const* rows_;
  int count_;
  int64_t bytes_;
  int lines_;  // a step
  int row_ = 0;
  int64_t at_ = 0;
};

}  // namespace
}  // namespace chipmunk::cpu
