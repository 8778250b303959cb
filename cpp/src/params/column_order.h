// What a schedule of column lists (ColumnLists::order) holds.
#pragma once

#include <cstdint>

namespace chipmunk {

// An order is int32 [3, lists]. Row 0 holds the first link of each multiprocessor, row 1 the link
// behind a list, or behind its first part, row 2 the link behind its second part. A link is
// 4 * list + part; -1 ends a chain.
enum class ListPart : int32_t { kWhole = 0, kFirst128Rows = 1, kFromRow128 = 2 };

inline constexpr int kOrderRows = 3;
inline constexpr int32_t kNoLink = -1;

constexpr int32_t order_link(int32_t list, ListPart part) {
  return 4 * list + static_cast<int32_t>(part);
}
constexpr int32_t list_of(int32_t link) { return link / 4; }
constexpr ListPart part_of(int32_t link) { return static_cast<ListPart>(link % 4); }
// The row of an order that holds what comes behind a part.
constexpr int32_t order_row_behind(ListPart part) { return part == ListPart::kFromRow128 ? 2 : 1; }

}  // namespace chipmunk
