// select_columns on the GPU, one CTA a row.
//
// The definition ranks a row's columns (`always` ones first, then by score) and takes a prefix.
// That prefix is all of one kind and a cut through another, found digit by digit; by mass, its
// length comes first, from sums of weights by digit. Sums within a bin are exact, those across bins
// round as float64 does. Columns come out by an ordered pass over the row, so nothing is ever
// sorted.
#include <cuda_runtime.h>

#include "cuda/columns.h"
#include "cuda/columns/mass.cuh"
#include "cuda/columns/ordered_rows.cuh"
#include "cuda/columns/radix_select.cuh"
#include "cuda/columns/score_keys.cuh"
#include "cuda/host/device_info.h"
#include "cuda/host/launch.h"

namespace chipmunk::cuda {
namespace select {

constexpr int kThreads = 512;

struct Scratch {
  HistogramScratch<kThreads> histogram;
  OrderedRowScratch<kThreads> ordered;
  int64_t found;
};

template <class Score>
struct ScoreRow {
  using Bits = typename ScoreFormat<Score>::Bits;
  const Bits* scores;
  int64_t score_stride;
  const bool* always;  // or null
  int64_t always_stride;

  __device__ uint32_t key(int64_t j) const { return score_key<Score>(scores[j * score_stride]); }
  __device__ bool is_always(int64_t j) const {
    return always != nullptr && always[j * always_stride];
  }
};

// Which columns of a row are taken.
struct Choice {
  // By rank: `kind` says which of the two kinds (`always` or not) the cut goes through. Columns
  // after `last_tie` with the cut's key are not taken.
  bool kind = false;
  Cut<uint32_t> by_rank{0xffffffffu, 0};
  int64_t last_tie = -1;
  // By chance, from what is left: the greatest complemented hashes.
  bool lottery = false;
  Cut<uint64_t> by_chance{0, 0};
  uint64_t hash_row = 0;

  __device__ uint64_t ticket(int64_t j) const {
    return ~splitmix64(hash_row ^ static_cast<uint64_t>(j));
  }
  template <class Score>
  __device__ bool takes_by_rank(const ScoreRow<Score>& row, int64_t j) const {
    const bool always = row.is_always(j);
    if (always != kind) return always;
    const uint32_t key = row.key(j);
    return key > by_rank.key || (key == by_rank.key && j <= last_tie);
  }
  template <class Score>
  __device__ bool takes(const ScoreRow<Score>& row, int64_t j) const {
    return takes_by_rank(row, j) || (lottery && ticket(j) >= by_chance.key);
  }
};

struct Budget {
  int64_t by_rank, by_chance;
};

template <class Score>
__device__ Budget budget_of(const SelectColumnsParams& p, int64_t r, const ScoreRow<Score>& row,
                            int64_t always, Scratch& scratch) {
  const int64_t limit = min(p.n, min(p.max_count, p.capacity));
  if (p.by_count()) {
    const int64_t total = min(max(max(p.count_of(r), p.min_count), always), limit);
    const auto chance = static_cast<int64_t>(floor(p.random_fraction * static_cast<double>(total)));
    const int64_t by_chance = min(chance, max(total - always, static_cast<int64_t>(0)));
    return {total - by_chance, by_chance};
  }
  const auto of_kind = [&row](bool kind) {
    return [&row, kind](int64_t j, uint32_t& key) {
      key = row.key(j);
      return row.is_always(j) == kind;
    };
  };
  double base = 0.0;
  if (always > 0) base = sum_of_weights<kThreads, Score>(p.n, of_kind(true), scratch.histogram);
  const int64_t needed = always + count_by_mass<kThreads, Score>(p.n, base, p.mass_of(r),
                                                                 of_kind(false), scratch.histogram);
  const int64_t by_rank = min(max(needed, p.min_count), limit);
  const auto chance = static_cast<int64_t>(floor(p.random_fraction * static_cast<double>(by_rank)));
  return {by_rank, min(chance, limit - by_rank)};
}

}  // namespace select

template <class Score>
__global__ void __launch_bounds__(select::kThreads)
    select_columns_sm90(const __grid_constant__ SelectColumnsParams p) {
  using namespace select;
  __shared__ Scratch scratch;
  const int64_t r = blockIdx.x;
  ScoreRow<Score> row{
      .scores =
          static_cast<const typename ScoreFormat<Score>::Bits*>(p.scores.data) + p.scores.offset(r),
      .score_stride = p.scores.last_stride,
      .always = nullptr,
      .always_stride = p.always.last_stride};
  int64_t always = 0;
  if (p.always.data != nullptr) {
    row.always = static_cast<const bool*>(p.always.data) + p.always.offset(r);
    always = count_ordered(p.n, [&](int64_t j) { return row.is_always(j); }, scratch.ordered).total;
  }
  const Budget budget = budget_of(p, r, row, always, scratch);

  Choice choice;
  choice.kind = budget.by_rank < always;
  const int64_t take = choice.kind ? budget.by_rank : budget.by_rank - always;
  if (take > 0) {
    const auto key_of = [&](int64_t j, uint32_t& key) {
      key = row.key(j);
      return row.is_always(j) == choice.kind;
    };
    choice.by_rank = greatest<kThreads, ScoreFormat<Score>::kBits, uint32_t>(
        p.n, static_cast<uint32_t>(take), key_of, scratch.histogram);
    choice.last_tie = p.n;
    if (choice.by_rank.ties != kAllTies) {
      const auto is_tie = [&](int64_t j) {
        uint32_t key;
        return key_of(j, key) && key == choice.by_rank.key;
      };
      choice.last_tie =
          find_ordered(p.n, choice.by_rank.ties, is_tie, scratch.ordered, scratch.found);
    }
  }
  if (budget.by_chance > 0) {
    choice.hash_row = splitmix64(p.seed) ^ static_cast<uint64_t>(r) << 32;
    const auto ticket_of = [&](int64_t j, uint64_t& ticket) {
      ticket = choice.ticket(j);
      return !choice.takes_by_rank(row, j);
    };
    // Hashes never tie within a row, so the cut is a bound.
    choice.by_chance = greatest<kThreads, 64, uint64_t>(
        p.n, static_cast<uint32_t>(budget.by_chance), ticket_of, scratch.histogram);
    choice.lottery = true;
  }

  const uint32_t count = write_ordered<kThreads>(
      p.n, p.capacity, [&](int64_t j) { return choice.takes(row, j); },
      static_cast<int32_t*>(p.indices.data) + p.indices.offset(r), p.indices.last_stride,
      scratch.ordered);
  if (threadIdx.x == 0) {
    static_cast<int32_t*>(p.counts.data)[p.counts.offset(r)] = static_cast<int32_t>(count);
  }
}

void select_columns(const SelectColumnsParams& params, const LaunchSite& site) {
  require_hopper("select_columns", site.device);
  const int64_t rows = params.counts.rows();
  if (rows == 0) return;
  const auto run = [&](auto* kernel) {
    launch("select_columns", kernel,
           {.grid = dim3(static_cast<unsigned>(rows)), .block = dim3(select::kThreads)}, site,
           params);
  };
  switch (params.scores_dtype) {
    case DType::kBFloat16:
      return run(select_columns_sm90<__nv_bfloat16>);
    case DType::kFloat16:
      return run(select_columns_sm90<__half>);
    default:
      return run(select_columns_sm90<float>);
  }
}

}  // namespace chipmunk::cuda
