// Column lists that tests write into and read.
#pragma once

#include <vector>

#include "chipmunk_kernels/columns.h"
#include "tensor.h"

namespace testing {

struct Lists {
  Tensor indices, counts;
  Lists(const std::vector<int64_t>& lead, int64_t capacity)
      : indices(DType::kInt32, with(lead, capacity)), counts(DType::kInt32, lead) {
    indices.fill(-7);
    counts.fill(-7);
  }
  chipmunk::ColumnLists lists() const { return {indices.view(), counts.view(), 64}; }
  std::vector<int64_t> row(int64_t i) const {
    std::vector<int64_t> out;
    const int64_t capacity = indices.size(indices.view().rank - 1);
    for (int64_t p = 0; p < counts.get_flat(i); ++p) {
      out.push_back(static_cast<int64_t>(indices.get_flat(i * capacity + p)));
    }
    return out;
  }
  static std::vector<int64_t> with(std::vector<int64_t> lead, int64_t last) {
    lead.push_back(last);
    return lead;
  }
};

}  // namespace testing
