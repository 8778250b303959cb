#include "cpu/columns.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <limits>
#include <utility>
#include <vector>

#include "cpu/isa.h"
#include "cpu/parallel.h"
#include "params/column_order.h"

namespace chipmunk::cpu {
namespace {

// Rows are handed out in tasks of about this many columns, so that short rows do not pay for the
// hand-out.
constexpr int64_t kColumnsPerTask = 1 << 14;

// Calls body(row, worker) for every row.
template <class Body>
void for_each_row(int64_t rows, int64_t n, int threads, const Body& body) {
  const int64_t per_task = std::max<int64_t>(1, kColumnsPerTask / std::max<int64_t>(1, n));
  const int64_t tasks = (rows + per_task - 1) / per_task;
  parallel_for(tasks, threads, [&](int64_t task, int worker) {
    const int64_t end = std::min(rows, (task + 1) * per_task);
    for (int64_t row = task * per_task; row < end; ++row) body(row, worker);
  });
}

template <class T>
T* row_of(const Rows& rows, int64_t row) {
  return static_cast<T*>(rows.data) + rows.offset(row);
}

ScoreType score_type(DType dtype) {
  if (dtype == DType::kFloat32) return ScoreType::kFloat32;
  return dtype == DType::kBFloat16 ? ScoreType::kBFloat16 : ScoreType::kFloat16;
}

uint64_t splitmix64(uint64_t x) {
  uint64_t z = x + 0x9E3779B97F4A7C15u;
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
  return z ^ (z >> 31);
}

// What a column counts in a sum of scores: its score, 0 if that is negative or NaN.
double weight_of_rank(ScoreType type, uint32_t rank) {
  constexpr uint32_t kZero = 0x80000000u;
  if (rank <= kZero) return 0.0;
  const uint32_t bits = rank - kZero;
  if (type != ScoreType::kFloat16) return std::bit_cast<float>(bits);
  const uint32_t half = bits >> 16;
  if (half < 0x0400u) return half * 0x1p-24;
  if (half == 0x7C00u) return std::numeric_limits<double>::infinity();
  return std::bit_cast<float>((half << 13) + (112u << 23));
}

// The `k`-th greatest rank, 1 <= k <= n, and how many of its equals are among the k greatest.
struct Threshold {
  uint32_t rank;
  int64_t ties;
};

// Radix select: each round keeps the ranks that share the threshold's next 11 bits. `scratch` holds
// n ranks.
Threshold kth_greatest(const uint32_t* ranks, int64_t n, int64_t k, uint32_t* scratch) {
  constexpr int kBits = 11;
  uint32_t prefix = 0;
  const uint32_t* candidates = ranks;
  for (int shift = 32 - kBits;;) {
    std::array<int32_t, 1 << kBits> histogram{};
    const uint32_t mask = (1u << kBits) - 1;
    for (int64_t i = 0; i < n; ++i) ++histogram[(candidates[i] >> shift) & mask];
    uint32_t digit = mask;
    for (; histogram[digit] < k; --digit) k -= histogram[digit];
    if (shift == 0) return {(prefix & ~mask) | digit, k};
    int64_t kept = 0;  // in place after the first round: a write never passes its read
    for (int64_t i = 0; i < n; ++i) {
      const uint32_t rank = candidates[i];
      scratch[kept] = rank;
      kept += ((rank >> shift) & mask) == digit;
    }
    candidates = scratch;
    n = kept;
    prefix |= digit << shift;
    shift = std::max(0, shift - kBits);
  }
}

// Sorts the pairs (rank inverted << 32 | column) by their upper half, stably: descending rank, and
// ascending column where ranks tie. `scratch` is as long.
void sort_by_rank(std::vector<uint64_t>& pairs, std::vector<uint64_t>& scratch) {
  for (int shift = 32; shift < 64; shift += 8) {
    std::array<int64_t, 256> begin{};
    for (const uint64_t pair : pairs) ++begin[(pair >> shift) & 255];
    int64_t sum = 0;
    for (int64_t& entry : begin) sum += std::exchange(entry, sum);
    for (const uint64_t pair : pairs) {
      scratch[static_cast<size_t>(begin[(pair >> shift) & 255]++)] = pair;
    }
    std::swap(pairs, scratch);
  }
}

// One worker's memory, and the steps of one row. The columns of a row are ranked: `always` columns
// first, each kind by descending score, ties to the lower column.
class RowSelector {
 public:
  explicit RowSelector(const SelectColumnsParams& params)
      : params_(params), type_(score_type(params.scores_dtype)), ranks_(size()), chosen_(size()) {
    if (params.always.data != nullptr) always_.resize(size());
    if (params.by_count()) {
      candidates_.resize(size());
    } else {
      ranking_.resize(size());
      scratch_.resize(size());
    }
    if (params.random_fraction > 0.0) hashes_.resize(size());
  }

  void select(int64_t row) {
    read(row);
    const int64_t by_chance = params_.by_count() ? choose_by_count(params_.count_of(row))
                                                 : choose_by_mass(params_.mass_of(row));
    if (by_chance > 0) choose_by_chance(row, by_chance);
    *row_of<int32_t>(params_.counts, row) = static_cast<int32_t>(kernels_.list_mask(
        chosen_.data(), 1, params_.n, params_.capacity, row_of<int32_t>(params_.indices, row)));
  }

 private:
  size_t size() const { return static_cast<size_t>(params_.n); }

  void read(int64_t row) {
    const char* scores = static_cast<const char*>(params_.scores.data) +
                         params_.scores.offset(row) * size_of(params_.scores_dtype);
    kernels_.rank_scores(type_, scores, params_.scores.last_stride, params_.n, ranks_.data());
    always_count_ = 0;
    if (params_.always.data == nullptr) return;
    const uint8_t* always = row_of<const uint8_t>(params_.always, row);
    for (size_t j = 0; j < size(); ++j) {
      always_[j] = always[static_cast<int64_t>(j) * params_.always.last_stride] != 0;
      always_count_ += always_[j];
    }
  }

  // Chooses the columns by rank; the number of columns to draw besides. The same below.
  int64_t choose_by_count(int64_t count) {
    const int64_t total =
        std::min(params_.max_count, std::max({count, params_.min_count, always_count_}));
    const int64_t by_chance = std::min(share(total), std::max<int64_t>(0, total - always_count_));
    const int64_t by_rank = total - by_chance;
    if (always_count_ > by_rank) {
      for (size_t j = 0; j < size(); ++j) {
        if (always_[j] == 0) ranks_[j] = kRankBelowAll;
      }
    } else if (always_count_ > 0) {
      for (size_t j = 0; j < size(); ++j) {
        if (always_[j] != 0) ranks_[j] = kRankAboveAll;
      }
    }
    Threshold threshold{kRankAboveAll, 0};
    if (by_rank > 0) {
      threshold = kth_greatest(ranks_.data(), params_.n, by_rank, candidates_.data());
    }
    kernels_.choose_above(ranks_.data(), params_.n, threshold.rank, threshold.ties, chosen_.data());
    return by_chance;
  }

  int64_t choose_by_mass(double mass) {
    for (size_t j = 0; j < size(); ++j) {
      ranking_[j] = (static_cast<uint64_t>(~ranks_[j]) << 32) | j;
    }
    sort_by_rank(ranking_, scratch_);
    if (always_count_ > 0) {
      size_t first = 0, rest = static_cast<size_t>(always_count_);
      for (const uint64_t pair : ranking_) {
        scratch_[always_[static_cast<uint32_t>(pair)] != 0 ? first++ : rest++] = pair;
      }
      std::swap(ranking_, scratch_);
    }
    double total = 0.0;
    for (const uint64_t pair : ranking_) total += weight(pair);
    // Summed again in the same order, so that mass 1 is reached exactly.
    const double wanted = mass * total;
    int64_t needed = 0;
    for (double sum = 0.0; sum < wanted && needed < params_.n; ++needed) {
      sum += weight(ranking_[static_cast<size_t>(needed)]);
    }
    const int64_t by_rank =
        std::min(params_.max_count, std::max({needed, params_.min_count, always_count_}));
    std::fill(chosen_.begin(), chosen_.end(), uint8_t{0});
    for (int64_t i = 0; i < by_rank; ++i) {
      chosen_[static_cast<uint32_t>(ranking_[static_cast<size_t>(i)])] = 1;
    }
    return std::min(share(by_rank), params_.max_count - by_rank);
  }

  double weight(uint64_t pair) const {
    return weight_of_rank(type_, ~static_cast<uint32_t>(pair >> 32));
  }

  int64_t share(int64_t columns) const {
    return static_cast<int64_t>(std::floor(params_.random_fraction * static_cast<double>(columns)));
  }

  // Draws the columns with the smallest hashes among those not chosen yet. The hash is a bijection
  // of the column, so that none tie.
  void choose_by_chance(int64_t row, int64_t by_chance) {
    const uint64_t key = splitmix64(params_.seed);
    const auto hash = [&](size_t j) {
      return splitmix64(key ^ (static_cast<uint64_t>(row) << 32 | j));
    };
    auto end = hashes_.begin();
    for (size_t j = 0; j < size(); ++j) {
      if (chosen_[j] == 0) *end++ = hash(j);
    }
    const auto last = hashes_.begin() + (by_chance - 1);
    std::nth_element(hashes_.begin(), last, end);
    for (size_t j = 0; j < size(); ++j) {
      if (chosen_[j] == 0) chosen_[j] = hash(j) <= *last;
    }
  }

  const SelectColumnsParams& params_;
  const ColumnsKernels& kernels_ = kernel_table().columns;
  ScoreType type_;
  int64_t always_count_ = 0;
  std::vector<uint32_t> ranks_, candidates_;
  std::vector<uint8_t> chosen_, always_;
  std::vector<uint64_t> ranking_, scratch_, hashes_;
};

}  // namespace

void select_columns(const SelectColumnsParams& params, int threads) {
  const int64_t rows = params.counts.rows();
  const size_t workers = static_cast<size_t>(std::min<int64_t>(thread_count(threads), rows));
  std::vector<RowSelector> selectors(workers, RowSelector(params));
  for_each_row(rows, params.n, threads, [&](int64_t row, int worker) {
    selectors[static_cast<size_t>(worker)].select(row);
  });
}

// Here lists are taken as they come: threads that are done take the next one.
void order_lists(const ColumnOrderParams& params, int) {
  std::fill_n(params.order, kOrderRows * params.lists, kNoLink);
}

void columns_from_mask(const ColumnsMaskParams& params, int threads) {
  const ColumnsKernels& kernels = kernel_table().columns;
  for_each_row(params.counts.rows(), params.n, threads, [&](int64_t row, int) {
    *row_of<int32_t>(params.counts, row) = static_cast<int32_t>(
        kernels.list_mask(row_of<const uint8_t>(params.mask, row), params.mask.last_stride,
                          params.n, params.capacity, row_of<int32_t>(params.indices, row)));
  });
}

void columns_to_mask(const ColumnsMaskParams& params, int threads) {
  for_each_row(params.counts.rows(), params.n, threads, [&](int64_t row, int) {
    uint8_t* mask = row_of<uint8_t>(params.mask, row);
    const int64_t stride = params.mask.last_stride;
    for (int64_t j = 0; j < params.n; ++j) mask[j * stride] = 0;
    const int32_t* list = row_of<const int32_t>(params.indices, row);
    const int64_t count =
        std::min<int64_t>(*row_of<const int32_t>(params.counts, row), params.capacity);
    for (int64_t i = 0; i < count; ++i) {
      if (list[i] >= 0 && list[i] < params.n) mask[list[i] * stride] = 1;
    }
  });
}

}  // namespace chipmunk::cpu
