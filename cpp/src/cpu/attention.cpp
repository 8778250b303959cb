#include "cpu/attention.h"

#include <algorithm>
#include <numeric>
#include <vector>

#include "cpu/isa.h"
#include "cpu/parallel.h"
#include "cpu/scratch.h"

namespace chipmunk::cpu {
namespace {

const AttentionKernels& kernels() { return kernel_table().attention; }

// Position in the kernels' arrays.
int dtype_index(DType dtype) {
  switch (dtype) {
    case DType::kBFloat16:
      return 1;
    case DType::kFloat16:
      return 2;
    default:
      return 0;
  }
}

// Address of a row of a view.
template <class T>
T* at(const View<T, 3>& view, DType dtype, int64_t offset) {
  return element(view.data, dtype, offset);
}

// Rows of every head in groups that share a column list, each group in tiles of about equal size.
struct Tiling {
  int64_t groups, group_rows, tiles_per_group, tile_rows;
};

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

Tiling tiling(int64_t queries, int64_t group_rows) {
  const int64_t rows = std::min(queries, group_rows);
  const int64_t tiles = ceil_div(rows, kTileQueries);
  // Multiples of the widest vector waste no lanes but the last tile's.
  const int64_t tile_rows = ceil_div(ceil_div(rows, tiles), 16) * 16;
  return {ceil_div(queries, group_rows), group_rows, ceil_div(rows, tile_rows), tile_rows};
}

struct Position {
  int64_t batch, head, group;
};

Position position_of(int64_t task, int64_t heads, int64_t groups) {
  return {task / groups / heads, task / groups % heads, task % groups};
}

int64_t rows_of_group(const Tiling& tiles, int64_t queries, int64_t group) {
  return std::min(tiles.group_rows, queries - group * tiles.group_rows);
}

// The row that a tile's pointers point at: the head's row 0 where the tile names its rows.
int64_t first_row(const AttentionParams& p, int64_t position) {
  return p.query_rows == nullptr ? position : 0;
}

// Tile `index` of a group, over all keys; no rows where the last group is too short for it.
AttentionTile tile_of(const AttentionParams& p, const Tiling& tiles, const Position& position,
                      int64_t index) {
  const auto [batch, head, group] = position;
  const int64_t position_in_head = group * tiles.group_rows + index * tiles.tile_rows;
  const int64_t first = first_row(p, position_in_head);
  const int64_t left = rows_of_group(tiles, p.queries, group) - index * tiles.tile_rows;
  const int64_t kv_head = head / (p.query_heads / p.kv_heads);
  AttentionTile tile{};
  tile.queries = static_cast<int32_t>(std::clamp<int64_t>(left, 0, tiles.tile_rows));
  if (p.query_rows != nullptr) tile.rows = p.query_rows + position_in_head;
  tile.q = at(p.q, p.dtype, p.q.offset(batch, head, first));
  tile.k = at(p.k, p.dtype, p.k.offset(batch, kv_head, 0));
  tile.v = at(p.v, p.dtype, p.v.offset(batch, kv_head, 0));
  tile.out = at(p.out, p.dtype, p.out.offset(batch, head, first));
  tile.lse = p.lse.data + p.lse.offset(batch, head, first);
  tile.q_stride = p.q.strides[2];
  tile.k_stride = p.k.strides[2];
  tile.v_stride = p.v.strides[2];
  tile.out_stride = p.out.strides[2];
  tile.lse_stride = p.lse.strides[2];
  tile.count = p.keys;
  tile.head_dim = p.head_dim;
  tile.softmax_scale = p.softmax_scale;
  return tile;
}

}  // namespace

void dense_attention(const AttentionParams& params, int threads) {
  AttentionParams p = params;
  p.query_rows = nullptr;  // without groups there is nothing to permute
  const Tiling tiles = tiling(p.queries, kTileQueries);
  const auto attend = kernels().attend[dtype_index(p.dtype)];
  const Scratch scratch(kernels().scratch_floats(p.head_dim), thread_count(threads));
  parallel_for(p.batch * p.query_heads * tiles.groups, threads, [&](int64_t task, int worker) {
    const Position position = position_of(task, p.query_heads, tiles.groups);
    AttentionTile tile = tile_of(p, tiles, position, 0);
    tile.scratch = scratch.of(worker);
    attend(tile);
  });
}

void dense_attention_column_sums(const AttentionColumnSumsParams& params, int threads) {
  const AttentionParams& p = params.attention;
  const Tiling tiles = tiling(p.queries, params.query_group);
  const auto attend = kernels().attend_and_sum[dtype_index(p.dtype)];
  const auto round = kernels().round[dtype_index(params.column_sums_dtype)];
  const int workers = thread_count(threads);
  const Scratch scratch(kernels().scratch_floats(p.head_dim), workers);
  const Scratch sums(p.keys, workers);
  // A task is a whole group: its tiles add to the same sums, in the same order every time.
  parallel_for(p.batch * p.query_heads * tiles.groups, threads, [&](int64_t task, int worker) {
    const Position position = position_of(task, p.query_heads, tiles.groups);
    float* const group_sums = sums.of(worker);
    std::fill_n(group_sums, p.keys, 0.0f);
    for (int64_t i = 0; i < tiles.tiles_per_group; ++i) {
      AttentionTile tile = tile_of(p, tiles, position, i);
      if (tile.queries == 0) break;
      tile.scratch = scratch.of(worker);
      AttentionColumnSums request{nullptr, 0, group_sums};
      if (params.reference_lse.data != nullptr) {
        const int64_t first = first_row(p, position.group * tiles.group_rows + i * tiles.tile_rows);
        request.reference_lse = params.reference_lse.data +
                                params.reference_lse.offset(position.batch, position.head, first);
        request.reference_lse_stride = params.reference_lse.strides[2];
      }
      attend(tile, request);
    }
    if (params.key_weights.data != nullptr) {
      const int64_t kv_head = position.head / (p.query_heads / p.kv_heads);
      const float* const weights =
          params.key_weights.data + params.key_weights.offset(position.batch, kv_head);
      for (int64_t j = 0; j < p.keys; ++j) group_sums[j] *= weights[j];
    }
    round(group_sums,
          at(params.column_sums, params.column_sums_dtype,
             params.column_sums.offset(position.batch, position.head, position.group)),
          p.keys);
  });
}

void column_sparse_attention(const ColumnSparseAttentionParams& params, int threads) {
  const AttentionParams& p = params.attention;
  const ColumnListsParams& columns = params.columns;
  const Tiling tiles = tiling(p.queries, columns.query_group);
  const auto attend = kernels().attend[dtype_index(p.dtype)];
  const Scratch scratch(kernels().scratch_floats(p.head_dim), thread_count(threads));

  // Long lists first, so that no thread is left with one when the others are done.
  const auto count_of = [&](int64_t list) {
    const auto [batch, head, group] = position_of(list, p.query_heads, tiles.groups);
    return columns.count(batch, head, group);
  };
  std::vector<int64_t> order(static_cast<size_t>(p.batch * p.query_heads * tiles.groups));
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](int64_t a, int64_t b) { return count_of(a) > count_of(b); });

  const int64_t tasks = static_cast<int64_t>(order.size()) * tiles.tiles_per_group;
  parallel_for(tasks, threads, [&](int64_t task, int worker) {
    const int64_t list = order[static_cast<size_t>(task / tiles.tiles_per_group)];
    const Position position = position_of(list, p.query_heads, tiles.groups);
    const auto [batch, head, group] = position;
    const int64_t index = task % tiles.tiles_per_group;
    AttentionTile tile = tile_of(p, tiles, position, index);
    if (tile.queries == 0) return;
    tile.scratch = scratch.of(worker);
    tile.columns = columns.list(batch, head, group);
    tile.count = columns.count(batch, head, group);
    if (params.rest_out.data != nullptr) {
      const int64_t first = first_row(p, group * tiles.group_rows + index * tiles.tile_rows);
      tile.rest_out = at(params.rest_out, p.dtype, params.rest_out.offset(batch, head, first));
      tile.rest_lse = params.rest_lse.data + params.rest_lse.offset(batch, head, first);
      tile.rest_out_stride = params.rest_out.strides[2];
      tile.rest_lse_stride = params.rest_lse.strides[2];
    }
    attend(tile);
  });
}

namespace {

// Rows in pieces that keep a thread busy for some microseconds.
constexpr int64_t kCombineRows = 256;

void combine(const CombineAttentionParams& p, void (*function)(const AttentionRows&), int threads) {
  const int64_t pieces = ceil_div(p.queries, kCombineRows);
  parallel_for(p.batch * p.heads * pieces, threads, [&](int64_t task, int) {
    const auto [batch, head, piece] = position_of(task, p.heads, pieces);
    const int64_t first = piece * kCombineRows;
    AttentionRows rows{};
    rows.a_out = at(p.a_out, p.dtype, p.a_out.offset(batch, head, first));
    rows.b_out = at(p.b_out, p.dtype, p.b_out.offset(batch, head, first));
    rows.out = at(p.out, p.dtype, p.out.offset(batch, head, first));
    rows.a_lse = p.a_lse.data + p.a_lse.offset(batch, head, first);
    rows.b_lse = p.b_lse.data + p.b_lse.offset(batch, head, first);
    rows.lse = p.lse.data + p.lse.offset(batch, head, first);
    rows.a_out_stride = p.a_out.strides[2];
    rows.b_out_stride = p.b_out.strides[2];
    rows.out_stride = p.out.strides[2];
    rows.a_lse_stride = p.a_lse.strides[2];
    rows.b_lse_stride = p.b_lse.strides[2];
    rows.lse_stride = p.lse.strides[2];
    rows.rows = std::min(kCombineRows, p.queries - first);
    rows.head_dim = p.head_dim;
    function(rows);
  });
}

}  // namespace

void merge_attention(const CombineAttentionParams& p, int threads) {
  combine(p, kernels().merge[dtype_index(p.dtype)], threads);
}

void rest_of_attention(const CombineAttentionParams& p, int threads) {
  combine(p, kernels().rest_of[dtype_index(p.dtype)], threads);
}

}  // namespace chipmunk::cpu
