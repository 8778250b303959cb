#include "cpu/mlp.h"

#include <algorithm>

#include "cpu/isa.h"
#include "cpu/parallel.h"
#include "cpu/scratch.h"

namespace chipmunk::cpu {
namespace {

static_assert(kMlpGroup == kMlpQueryGroup);

// Pieces of a group's work smaller than these repeat too much of its packing.
constexpr int64_t kLeastColumns = 16 * kFc1Tile;
constexpr int64_t kLeastChannels = 2 * kFc2Tile;
// Greater pieces would push the sums of fc2 out of the second-level cache.
constexpr int64_t kMostChannels = 16 * kFc2Tile;

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Into how many pieces each of `groups` groups is split, so that every thread gets a few.
int64_t pieces(int64_t groups, int threads, int64_t most) {
  return std::clamp<int64_t>(ceil_div(8 * thread_count(threads), groups), 1,
                             std::max<int64_t>(1, most));
}

// The threads that `tasks` tasks can use.
int workers(int64_t tasks, int threads) {
  return static_cast<int>(std::min<int64_t>(thread_count(threads), tasks));
}

int dtype_index(DType dtype) {
  return dtype == DType::kFloat32 ? 0 : dtype == DType::kBFloat16 ? 1 : 2;
}

MlpActivation inner_activation(Activation activation) {
  switch (activation) {
    case Activation::kGeluTanh:
      return MlpActivation::kGeluTanh;
    case Activation::kGelu:
    case Activation::kGeglu:
      return MlpActivation::kGelu;
    case Activation::kSilu:
    case Activation::kSwiglu:
      return MlpActivation::kSilu;
    case Activation::kRelu:
      break;
  }
  return MlpActivation::kRelu;
}

int tokens_of_group(int64_t tokens, int64_t group) {
  return static_cast<int>(std::min<int64_t>(kMlpGroup, tokens - group * kMlpGroup));
}

}  // namespace

void column_sparse_fc1(const ColumnSparseFc1Params& p, int threads) {
  const MlpKernels& kernels = kernel_table().mlp;
  const ColumnListsParams& columns = p.columns;
  const int64_t groups = p.batch * columns.groups;
  const int64_t parts = pieces(groups, threads, columns.capacity / kLeastColumns);
  const Scratch scratch(kernels.fc1_scratch(p.channels), workers(groups * parts, threads));
  parallel_for(groups * parts, threads, [&](int64_t index, int worker) {
    const int64_t part = index % parts;
    const int64_t group = index / parts % columns.groups;
    const int64_t batch = index / parts / columns.groups;
    const int64_t count = columns.count(batch, 0, group);
    const int64_t share =
        std::max(kLeastColumns, ceil_div(ceil_div(count, parts), kFc1Tile) * kFc1Tile);
    const int64_t begin = part * share;
    if (begin >= count) return;
    const int64_t token = group * kMlpGroup;
    Fc1Task task{};
    task.activation = inner_activation(p.activation);
    task.gated = is_gated(p.activation);
    task.tokens = tokens_of_group(p.tokens, group);
    task.channels = p.channels;
    task.hidden = p.hidden;
    task.x = element(p.x.data, p.dtype, p.x.offset(batch, token));
    task.x_row_stride = p.x.strides[1];
    task.w1 = p.w1.data;
    task.w1_row_stride = p.w1.strides[0];
    task.b1 = p.b1;
    task.list = columns.list(batch, 0, group) + begin;
    task.count = std::min(share, count - begin);
    task.cache = element(p.cache.data, p.dtype, p.cache.offset(batch) + token);
    task.cache_row_stride = p.cache.strides[1];
    task.delta = element(p.packed_delta.data, p.dtype, p.packed_delta.offset(batch, group, begin));
    task.delta_row_stride = p.packed_delta.strides[2];
    task.scratch = scratch.of(worker);
    kernels.fc1[dtype_index(p.dtype)](task);
  });
}

void column_sparse_fc2(const ColumnSparseFc2Params& p, int threads) {
  const MlpKernels& kernels = kernel_table().mlp;
  const ColumnListsParams& columns = p.columns;
  const int64_t groups = p.batch * columns.groups;
  const int64_t parts = std::max(pieces(groups, threads, p.out_channels / kLeastChannels),
                                 ceil_div(p.out_channels, kMostChannels));
  const int64_t share = ceil_div(ceil_div(p.out_channels, parts), kFc2Tile) * kFc2Tile;
  const Scratch scratch(kernels.fc2_scratch(share), workers(groups * parts, threads));
  parallel_for(groups * parts, threads, [&](int64_t index, int worker) {
    const int64_t channel = index % parts * share;
    const int64_t group = index / parts % columns.groups;
    const int64_t batch = index / parts / columns.groups;
    if (channel >= p.out_channels) return;
    Fc2Task task{};
    task.tokens = tokens_of_group(p.tokens, group);
    task.channels = std::min(share, p.out_channels - channel);
    task.delta = element(p.packed_delta.data, p.dtype, p.packed_delta.offset(batch, group));
    task.delta_row_stride = p.packed_delta.strides[2];
    task.w2t = element(p.w2t.data, p.dtype, channel);
    task.w2t_row_stride = p.w2t.strides[0];
    task.list = columns.list(batch, 0, group);
    task.count = columns.count(batch, 0, group);
    task.out = element(p.out.data, p.dtype, p.out.offset(batch, group * kMlpGroup) + channel);
    task.out_row_stride = p.out.strides[1];
    task.scratch = scratch.of(worker);
    kernels.fc2[dtype_index(p.dtype)](task);
  });
}

}  // namespace chipmunk::cpu
