// Sparse fc2: output channels in the vector lanes, the change of a token broadcast. Rows of w2t and
// of the packed delta are read where they are if they are float32, and packed into words, a block
// at a time, if not.

namespace chipmunk::cpu {
namespace {

// A tile is this many tokens by vectors of channels: 24 (12) accumulators.
inline constexpr int kFc2Tokens = kVectorRegisters >= 32 ? 8 : 4;
inline constexpr int kFc2Vectors = 3;
inline constexpr int kFc2Panel = kFc2Vectors * kLanes;  // channels
static_assert(kMlpGroup % kFc2Tokens == 0 && kFc2Tile % kFc2Panel == 0);

// Words of a list that are summed in registers before the sums go back to memory: their rows of w2t
// and delta then stay in the second-level cache for all tokens.
inline constexpr int kFc2Block = 512;
// Rows are prefetched this many steps ahead.
inline constexpr int kFc2Ahead = 8;

struct Fc2Scratch {
  float* sums;   // [kMlpGroup, channels, whole panels]
  float* delta;  // [kFc2Block, kMlpGroup] words
  float* w2t;    // [kFc2Block, kFc2Panel] words
};

inline int64_t whole_panels(int64_t channels) {
  return (channels + kFc2Panel - 1) / kFc2Panel * kFc2Panel;
}

int64_t fc2_scratch(int64_t channels) {
  return kMlpGroup * whole_panels(channels) + kFc2Block * (kMlpGroup + kFc2Panel);
}

// sums[t][..] (+)= sum over p of delta[p][t] * rows[p][channel..], kFc2Tokens by kFc2Panel.
template <class Words>
inline void fc2_tile(const float* delta, int64_t delta_stride, const float* const* rows,
                     int64_t channel, int words, bool first, float* sums, int64_t sums_stride) {
  Vf tile[kFc2Tokens][kFc2Vectors] = {};
  if (!first) {
#pragma GCC unroll 8
    for (int t = 0; t < kFc2Tokens; ++t) {
#pragma GCC unroll 8
      for (int v = 0; v < kFc2Vectors; ++v) tile[t][v] = load(sums + t * sums_stride + v * kLanes);
    }
  }
  for (int p = 0; p < words; ++p) {
    const float* row = rows[p] + channel;
    // Rows lie far apart, where no hardware prefetcher looks.
    for (int v = 0; v < kFc2Vectors * kLanes; v += 16) {
      __builtin_prefetch(rows[p + kFc2Ahead] + channel + v);
    }
    Vf w[kFc2Vectors];
    for (int v = 0; v < kFc2Vectors; ++v) w[v] = load(row + v * kLanes);
#pragma GCC unroll 8
    for (int t = 0; t < kFc2Tokens; ++t) {
      const Vf d = Words::broadcast_word(delta + p * delta_stride, t);
#pragma GCC unroll 8
      for (int v = 0; v < kFc2Vectors; ++v) tile[t][v] = Words::multiply_add(tile[t][v], d, w[v]);
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

// Packs `columns` rows, from `offset` in each, into rows of words, `stride` apart.
template <class Words>
void stack_block(const typename Words::Storage* const* rows, int64_t offset, int columns,
                 int64_t count, float* words, int64_t stride) {
  for (int p = 0; p < columns; p += Words::kElements) {
    const typename Words::Storage* group[Words::kElements] = {};
    const int present = columns - p < Words::kElements ? columns - p : Words::kElements;
    for (int i = 0; i < present; ++i) group[i] = rows[p + i] + offset;
    Words::stack_rows(group, present, count, words + p / Words::kElements * stride);
  }
}

template <class Words>
void fc2(const Fc2Task& task) {
  typedef typename Words::Type Type;
  typedef typename Words::Storage Storage;
  constexpr int kColumns = kFc2Block * Words::kElements;
  const int64_t stride = whole_panels(task.channels);
  Fc2Scratch scratch;
  scratch.sums = task.scratch;
  scratch.delta = scratch.sums + kMlpGroup * stride;
  scratch.w2t = scratch.delta + kFc2Block * kMlpGroup;
  const float* packed_rows[kFc2Block + kFc2Ahead];
  for (int p = 0; p < kFc2Block + kFc2Ahead; ++p) {
    packed_rows[p] = scratch.w2t + p % kFc2Block * kFc2Panel;
  }

  for (int64_t begin = 0; begin < task.count; begin += kColumns) {
    const int columns = task.count - begin < kColumns ? (int)(task.count - begin) : kColumns;
    const int words = (columns + Words::kElements - 1) / Words::kElements;
    const bool last = begin + columns == task.count;
    const Storage* w2t[kColumns + kFc2Ahead];
    const Storage* delta_rows[kColumns];
    for (int p = 0; p < columns + kFc2Ahead; ++p) {
      const int64_t f = task.list[begin + (p < columns ? p : columns - 1)];
      w2t[p] = (const Storage*)task.w2t + f * task.w2t_row_stride;
    }
    for (int p = 0; p < columns; ++p) {
      delta_rows[p] = (const Storage*)task.delta + (begin + p) * task.delta_row_stride;
    }
    const float* delta = scratch.delta;
    int64_t delta_stride = kMlpGroup;
    if constexpr (Words::kWholeRows) {
      delta = delta_rows[0];
      delta_stride = task.delta_row_stride;
    } else {
      stack_block<Words>(delta_rows, 0, columns, kMlpGroup, scratch.delta, kMlpGroup);
    }
    for (int64_t channel = 0; channel < task.channels; channel += kFc2Panel) {
      const int width =
          task.channels - channel < kFc2Panel ? (int)(task.channels - channel) : kFc2Panel;
      const float* const* rows = packed_rows;
      int64_t row_offset = 0;
      bool in_place = false;
      if constexpr (Words::kWholeRows) {
        if (width == kFc2Panel) {
          rows = w2t;
          row_offset = channel;
          in_place = true;
        }
      }
      if (!in_place) {
        if (width < kFc2Panel) memset(scratch.w2t, 0, sizeof(float) * kFc2Panel * (size_t)words);
        stack_block<Words>(w2t, channel, columns, width, scratch.w2t, kFc2Panel);
      }
      for (int t = 0; t < task.tokens; t += kFc2Tokens) {
        const Fc2Piece<Type> piece = {
            (Storage*)task.out + t * task.out_row_stride + channel, task.out_row_stride,
            task.tokens - t < kFc2Tokens ? task.tokens - t : kFc2Tokens, width};
        float* sums = scratch.sums + t * stride + channel;
        if (last) prefetch_piece(piece);
        fc2_tile<Words>(delta + t, delta_stride, rows, row_offset, words, begin == 0, sums, stride);
        if (last) add_sums(piece, sums, stride);
      }
    }
  }
}

}  // namespace
}  // namespace chipmunk::cpu
