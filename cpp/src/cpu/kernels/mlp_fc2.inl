// Sparse fc2: output channels in the vector lanes, the change of a token broadcast. Rows of w2t and
// of the packed delta are read where they are if they are float32, and widened a block at a time if
// not.

namespace chipmunk::cpu {
namespace {

// A tile is this many tokens by vectors of channels: 24 (12) accumulators.
inline constexpr int kFc2Tokens = kVectorRegisters >= 32 ? 8 : 4;
inline constexpr int kFc2Vectors = 3;
inline constexpr int kFc2Panel = kFc2Vectors * kLanes;  // channels
static_assert(kMlpGroup % kFc2Tokens == 0 && kFc2Tile % kFc2Panel == 0);

// Columns of a list that are summed in registers before the sums go back to memory: their rows of
// w2t and delta then stay in the second-level cache for all tokens.
inline constexpr int kFc2Block = 512;
// Rows are prefetched this many steps ahead.
inline constexpr int kFc2Ahead = 8;

struct Fc2Scratch {
  float* sums;   // [kMlpGroup, channels, whole panels]
  float* delta;  // [kFc2Block, kMlpGroup]
  float* w2t;    // [kFc2Block, kFc2Panel]
};

inline int64_t whole_panels(int64_t channels) {
  return (channels + kFc2Panel - 1) / kFc2Panel * kFc2Panel;
}

int64_t fc2_scratch(int64_t channels) {
  return kMlpGroup * whole_panels(channels) + kFc2Block * (kMlpGroup + kFc2Panel);
}

// sums[t][..] (+)= sum over p of delta[p][t] * rows[p][channel..], kFc2Tokens by kFc2Panel.
inline void fc2_tile(const float* delta, int64_t delta_stride, const float* const* rows,
                     int64_t channel, int count, bool first, float* sums, int64_t sums_stride) {
  Vf tile[kFc2Tokens][kFc2Vectors] = {};
  if (!first) {
#pragma GCC unroll 8
    for (int t = 0; t < kFc2Tokens; ++t) {
#pragma GCC unroll 8
      for (int v = 0; v < kFc2Vectors; ++v) tile[t][v] = load(sums + t * sums_stride + v * kLanes);
    }
  }
  for (int p = 0; p < count; ++p) {
    const float* row = rows[p] + channel;
    // Rows lie far apart, where no hardware prefetcher looks.
    for (int v = 0; v < kFc2Vectors * kLanes; v += 16) {
      __builtin_prefetch(rows[p + kFc2Ahead] + channel + v);
    }
    Vf w[kFc2Vectors];
    for (int v = 0; v < kFc2Vectors; ++v) w[v] = load(row + v * kLanes);
#pragma GCC unroll 8
    for (int t = 0; t < kFc2Tokens; ++t) {
      const Vf d = broadcast(delta[p * delta_stride + t]);
#pragma GCC unroll 8
      for (int v = 0; v < kFc2Vectors; ++v) tile[t][v] += d * w[v];
    }
  }
#pragma GCC unroll 8
  for (int t = 0; t < kFc2Tokens; ++t) {
#pragma GCC unroll 8
    for (int v = 0; v < kFc2Vectors; ++v) store(sums + t * sums_stride + v * kLanes, tile[t][v]);
  }
}

// The part of the output that a tile covers; tiles may stick out of it.
template <class Type>
struct Fc2Piece {
  typename Type::Storage* out;
  int64_t row_stride;
  int tokens, channels;
};

template <class Type>
void prefetch_piece(const Fc2Piece<Type>& piece) {
  for (int t = 0; t < piece.tokens; ++t) {
    const char* row = (const char*)(piece.out + t * piece.row_stride);
    const int bytes = piece.channels * (int)sizeof(*piece.out);
    for (int at = 0; at < bytes; at += 64) __builtin_prefetch(row + at, 1);
  }
}

// out += sums, rounded once.
template <class Type>
void add_sums(const Fc2Piece<Type>& piece, const float* sums, int64_t sums_stride) {
  for (int t = 0; t < piece.tokens; ++t) {
    typename Type::Storage* out = piece.out + t * piece.row_stride;
    const float* row = sums + t * sums_stride;
    for (int n = 0; n < piece.channels; n += kLanes) {
      const int width = piece.channels - n;
      if (width >= kLanes) {
        Type::store(out + n, Type::load(out + n) + load(row + n));
      } else {
        store_first<Type>(out + n, load_first<Type>(out + n, width) + load(row + n), width);
      }
    }
  }
}

template <class Type>
void fc2(const Fc2Task& task) {
  typedef typename Type::Storage Storage;
  constexpr bool kIsFloat = sizeof(Storage) == sizeof(float);
  const int64_t stride = whole_panels(task.channels);
  Fc2Scratch scratch;
  scratch.sums = task.scratch;
  scratch.delta = scratch.sums + kMlpGroup * stride;
  scratch.w2t = scratch.delta + kFc2Block * kMlpGroup;
  const float* widened_rows[kFc2Block + kFc2Ahead];
  for (int p = 0; p < kFc2Block + kFc2Ahead; ++p) {
    widened_rows[p] = scratch.w2t + p % kFc2Block * kFc2Panel;
  }

  for (int64_t begin = 0; begin < task.count; begin += kFc2Block) {
    const int count = task.count - begin < kFc2Block ? (int)(task.count - begin) : kFc2Block;
    const Storage* delta = (const Storage*)task.delta + begin * task.delta_row_stride;
    const float* wide_delta = scratch.delta;
    int64_t delta_stride = kMlpGroup;
    if constexpr (kIsFloat) {
      wide_delta = delta;
      delta_stride = task.delta_row_stride;
    } else {
      for (int p = 0; p < count; ++p) {
        widen_row<Type>(delta + p * task.delta_row_stride, kMlpGroup,
                        scratch.delta + p * kMlpGroup);
      }
    }
    const Storage* w2t[kFc2Block + kFc2Ahead];
    for (int p = 0; p < count; ++p) {
      w2t[p] = (const Storage*)task.w2t + task.list[begin + p] * task.w2t_row_stride;
    }
    for (int p = 0; p < kFc2Ahead; ++p) w2t[count + p] = w2t[p % count];
    for (int64_t channel = 0; channel < task.channels; channel += kFc2Panel) {
      const int64_t left = task.channels - channel;
      const float* const* rows = widened_rows;
      int64_t row_offset = 0;
      bool widen = true;
      if constexpr (kIsFloat) {
        if (left >= kFc2Panel) {
          rows = w2t;
          row_offset = channel;
          widen = false;
        }
      }
      if (widen) {
        for (int p = 0; p < count; ++p) {
          float* row = scratch.w2t + p * kFc2Panel;
          if (left < kFc2Panel) memset(row, 0, kFc2Panel * sizeof(float));
          widen_row<Type>(w2t[p] + channel, left < kFc2Panel ? left : kFc2Panel, row);
        }
      }
      for (int t = 0; t < task.tokens; t += kFc2Tokens) {
        const Fc2Piece<Type> piece = {(Storage*)task.out + t * task.out_row_stride + channel,
                                      task.out_row_stride,
                                      task.tokens - t < kFc2Tokens ? task.tokens - t : kFc2Tokens,
                                      left < kFc2Panel ? (int)left : kFc2Panel};
        const bool last = begin + count == task.count;
        float* sums = scratch.sums + t * stride + channel;
        if (last) prefetch_piece(piece);
        fc2_tile(wide_delta + t, delta_stride, rows, row_offset, count, begin == 0, sums, stride);
        if (last) add_sums(piece, sums, stride);
      }
    }
  }
}

}  // namespace
}  // namespace chipmunk::cpu
