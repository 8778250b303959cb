// Column lists: which columns (keys, or hidden units) each group of query rows attends to.
#pragma once

#include <cstdint>
#include <optional>

#include "chipmunk_kernels/context.h"
#include "chipmunk_kernels/export.h"
#include "chipmunk_kernels/tensor.h"

namespace chipmunk {

// One list per group of `query_group` rows. Indices are ascending and unique; entries at positions
// >= count are never read.
//
// `order` is a schedule: which multiprocessor takes which lists, so that lists of unequal length
// are done at about the same time. Results never depend on it, bit for bit. Lists are numbered in
// row-major order over the shape of `counts`. A link is 4 * list + part, where part 0 is the whole
// list, 1 the first 128 rows of its group, 2 the rows behind them; -1 is none.
//   row 0  entry m: the first link of multiprocessor m. After the last of them all entries are -1.
//          An entry 0 of -1 means that lists are taken as they come
//   row 1  entry i: the link behind list i, or behind its part 1
//   row 2  entry i: the link behind part 2 of list i
// Together the multiprocessors take every list once, whole or in both parts; on each, parts come
// behind whole lists, second parts last. `select_columns` and `columns_from_mask` fill an order
// that they are given; on the CPU they fill it with -1, and no op reads it there.
struct ColumnLists {
  TensorView indices;                    // [*lead, groups, capacity] int32
  TensorView counts;                     // [*lead, groups] int32
  int32_t query_group = 192;             // rows
  std::optional<TensorView> order = {};  // [3, lists] int32, contiguous, on the lists' device
};

// How `select_columns` chooses. Exactly one of the first four is set. Those per list broadcast to
// the shape of the lists' counts, live on the device of the scores and need a `max_count`. Nobody
// waits for the device to look at their values, so these are clamped: counts to [0, n], fractions
// to [0, 1] with NaN as 0.
struct ColumnSelection {
  std::optional<int64_t> count = {};              // columns in every list, >= 0
  std::optional<TensorView> count_per_list = {};  // int32, columns
  std::optional<double> mass = {};                // fraction in [0, 1] of each row's score total
  std::optional<TensorView> mass_per_list = {};   // float32, fractions
  int64_t min_count = 0;                          // at least so many columns in every list
  std::optional<int64_t> max_count = {};          // at most so many, >= min_count
  double random_fraction = 0.0;  // in [0, 1]: share drawn uniformly instead of by score
  uint64_t seed = 0;
};

// Fills `columns` with each row's best columns. The columns of a row are ranked: those of `always`
// first, and both kinds by descending score, ties to the lower column; a NaN ranks as -inf does.
//   by count  max(count, min_count, number of `always`) columns, the share random_fraction of them
//             drawn (as far as `always` leaves room) and the others from the front of the ranking
//   by mass   the shortest front of the ranking that holds all `always` columns, min_count columns
//             and weights of at least mass times the row's total, summed in double; a weight is the
//             score, or 0 if that is negative or NaN. The share random_fraction of their number is
//             drawn besides
// All numbers are clamped to n, max_count and the lists' capacity. Columns are drawn from those not
// taken by rank: the ones with the smallest splitmix64(splitmix64(seed) ^ (row << 32 | column)).
// Lists are ascending; entries past the count are unspecified. `columns.order` is filled if given,
// `columns.query_group` serves the order.
//   scores   [*lead, groups, n] float32, bfloat16 or float16
//   always   broadcastable to scores, bool (strides may be 0), or null
// Throws InvalidArgument for arguments that do not fit together, Unsupported for scores on a GPU
// that this build has no kernel for.
CHIPMUNK_API void select_columns(const TensorView& scores, const TensorView* always,
                                 const ColumnSelection& selection, const ColumnLists& columns,
                                 const Context& context);

// Lists the true entries of each row of `mask` [*lead, groups, n] bool. A row with more of them
// than the lists' capacity keeps the lowest. `columns.order` is filled if given.
CHIPMUNK_API void columns_from_mask(const TensorView& mask, const ColumnLists& columns,
                                    const Context& context);

// The inverse: mask [*lead, groups, n] is overwritten; indices outside [0, n) are ignored.
CHIPMUNK_API void columns_to_mask(const ColumnLists& columns, const TensorView& mask,
                                  const Context& context);

// Throws InvalidArgument, naming the first offender, unless every count is in [0, capacity], every
// list is ascending, unique and within [0, n), and the order, if there is one, takes every list
// exactly once. CPU tensors only.
CHIPMUNK_API void validate_columns(const ColumnLists& columns, int64_t n, const Context& context);

}  // namespace chipmunk
