// Checked, plain data for the column ops.
#pragma once

#include <cstdint>

#include "params/view.h"

namespace chipmunk {

// Column lists with their leading dimensions flattened to [batch, heads]; `heads` is 1 for the MLP,
// and its stride 0.
struct ColumnListsParams {
  View<int32_t, 3> indices;  // [batch, heads, groups] of [capacity]
  View<int32_t, 3> counts;   // [batch, heads, groups]
  const int32_t* order;      // [3, lists], contiguous (column_order.h); null: none
  int64_t groups;
  int64_t capacity;
  int32_t query_group;

  constexpr const int32_t* list(int64_t batch, int64_t head, int64_t group) const {
    return indices.data + indices.offset(batch, head, group);
  }
  constexpr int32_t count(int64_t batch, int64_t head, int64_t group) const {
    return counts.data[counts.offset(batch, head, group)];
  }
};

struct SelectColumnsParams {
  Rows scores;  // [lists] x [n]
  DType scores_dtype;
  Rows always;  // bool, broadcast to scores; data null where not given
  int64_t n;
  int64_t count;        // of every list; -1 where count_per_list or a mass is given instead
  double mass;          // of every list, where neither a count nor mass_per_list is given
  Rows count_per_list;  // int32 [lists]; data null where not given
  Rows mass_per_list;   // float32 [lists]; data null where not given
  int64_t min_count, max_count;  // max_count <= capacity
  double random_fraction;
  uint64_t seed;
  Rows indices;  // int32 [lists] x [capacity]
  Rows counts;   // int32 [lists]
  int64_t capacity;

  constexpr bool empty() const { return counts.rows() == 0; }
  constexpr bool by_count() const { return count >= 0 || count_per_list.data != nullptr; }
  // What list `list` asks for. Values of an array are clamped, as nobody has looked at them.
  constexpr int64_t count_of(int64_t list) const {
    if (count_per_list.data == nullptr) return count;
    const int64_t given =
        static_cast<const int32_t*>(count_per_list.data)[count_per_list.offset(list)];
    return given < 0 ? 0 : given < n ? given : n;
  }
  constexpr double mass_of(int64_t list) const {
    if (mass_per_list.data == nullptr) return mass;
    const double given = static_cast<const float*>(mass_per_list.data)[mass_per_list.offset(list)];
    return given > 0.0 ? (given < 1.0 ? given : 1.0) : 0.0;  // NaN: 0
  }
};

// Between lists and a mask, either way.
struct ColumnsMaskParams {
  Rows mask;     // bool [lists] x [n], last dimension of any stride
  Rows indices;  // int32 [lists] x [capacity]
  Rows counts;   // int32 [lists]
  int64_t n;
  int64_t capacity;

  constexpr bool empty() const { return counts.rows() == 0; }
};

// Makes the order in which multiprocessors take the lists.
struct ColumnOrderParams {
  Rows counts;  // int32 [lists]
  int64_t lists;
  int64_t capacity;  // of the lists; a greater count stands for it
  int32_t query_group;
  int32_t* order;  // [3, lists], contiguous (column_order.h)

  constexpr bool empty() const { return lists == 0; }
};

}  // namespace chipmunk
