// The column-sparse MLP: recompute selected hidden units, keep the others from a cache.
//
// Groups are of kMlpQueryGroup token rows. Columns are hidden units f in [0, hidden).
#pragma once

#include "chipmunk_kernels/columns.h"
#include "chipmunk_kernels/context.h"
#include "chipmunk_kernels/export.h"
#include "chipmunk_kernels/tensor.h"

namespace chipmunk {

inline constexpr int32_t kMlpQueryGroup = 128;

enum class Activation : uint8_t { kGeluTanh, kGelu, kSilu, kRelu, kSwiglu, kGeglu };

// Gated forms compute value * act(gate), with w1's first `hidden` rows the value, the rest the
// gate.
constexpr bool is_gated(Activation activation) {
  return activation == Activation::kSwiglu || activation == Activation::kGeglu;
}

// For every group and selected hidden unit f: new = activation(x w1[f] + b1[f]), rounded to the
// dtype; packed_delta = new - cached, rounded; the cache takes new.
//   x                 [batch, tokens, channels]
//   w1                [hidden, channels], gated [2 * hidden, channels]
//   b1                [hidden] (gated [2 * hidden]) or null
//   columns           indices [batch, groups, capacity]
//   activation_cache  [batch, hidden, tokens], updated in place
//   packed_delta      [batch, groups, capacity, 128]: entry p of a list, token 128 g + r at [p][r];
//                     rows past the count are left alone, tokens past the end are zero
CHIPMUNK_API void column_sparse_fc1(const TensorView& x, const TensorView& w1, const TensorView* b1,
                                    const ColumnLists& columns, Activation activation,
                                    const TensorView& activation_cache,
                                    const TensorView& packed_delta, const Context& context);

// out[b, m] += sum over the selected f of delta[f, m] * w2t[f].
//   w2t  [hidden, out_channels]; out  [batch, tokens, out_channels], updated in place
CHIPMUNK_API void column_sparse_fc2(const TensorView& packed_delta, const TensorView& w2t,
                                    const ColumnLists& columns, const TensorView& out,
                                    const Context& context);

// What the MLP keeps from one step to the next.
struct MlpCache {
  TensorView activations;  // [batch, hidden, tokens]
  TensorView output;       // [batch, tokens, out_channels]
};

// column_sparse_fc1, then column_sparse_fc2, on a cache; `packed_delta` is working memory. All
// arguments are checked before anything is written.
CHIPMUNK_API void column_sparse_mlp(const TensorView& x, const TensorView& w1, const TensorView* b1,
                                    const TensorView& w2t, const ColumnLists& columns,
                                    Activation activation, const MlpCache& cache,
                                    const TensorView& packed_delta, const Context& context);

}  // namespace chipmunk
