// Sparse fc2: output channels in the vector lanes, the change of a token broadcast. Deltas and rows
// of w2t are packed, block by block of a list, so that the inner loop reads both in order. Where
// they lie, rows are a multiple of some power of two apart and would push each other out of the
// first-level cache; and each is on a page of its own, so that it pays to read it in one go.

namespace chipmunk::cpu {
namespace {

// A tile is this many tokens by vectors of channels: 24 (12) accumulators.
inline constexpr int kFc2Tokens = kVectorRegisters >= 32 ? 8 : 4;
inline constexpr int kFc2Vectors = 3;
inline constexpr int kFc2Panel = kFc2Vectors * kLanes;  // channels
inline constexpr int kFc2Tiles = kMlpGroup / kFc2Tokens;
static_assert(kMlpGroup % kFc2Tokens == 0 && kFc2Tile % kFc2Panel == 0);

// Words of a list in a block. A panel of their rows, 24 KiB with AVX-512, stays in the first-level
// cache for all tokens; all panels and the sums are for the second level.
inline constexpr int kFc2Words = 128;

struct Fc2Scratch {
  float* sums;   // [panels, kFc2Tiles, kFc2Tokens, kFc2Panel]
  float* w2t;    // [kFc2Words, kFc2Panel] words
  float* delta;  // [kFc2Tiles, kFc2Words, kFc2Tokens] words
  float* row;    // [kMlpGroup] words
};

inline int64_t panels_of(int64_t channels) { return (channels + kFc2Panel - 1) / kFc2Panel; }

int64_t fc2_scratch(int64_t channels) {
  return panels_of(channels) * kMlpGroup * kFc2Panel + kFc2Words * (kFc2Panel + kMlpGroup) +
         kMlpGroup;
}

// Words between the steps of RowsAhead.
inline constexpr int kFc2Step = 16;

// sums (+)= delta^T w2t, kFc2Tokens by kFc2Panel.
template <class Words>
inline void fc2_tile(const float* delta, const float* w2t, int words, bool first, RowsAhead& ahead,
                     float* sums) {
  Vf tile[kFc2Tokens][kFc2Vectors] = {};
  if (!first) {
#pragma GCC unroll 8
    for (int t = 0; t < kFc2Tokens; ++t) {
#pragma GCC unroll 8
      for (int v = 0; v < kFc2Vectors; ++v) tile[t][v] = load(sums + t * kFc2Panel + v * kLanes);
    }
  }
  for (int begin = 0; begin < words; begin += kFc2Step) {
    const int end = begin + kFc2Step < words ? begin + kFc2Step : words;
    ahead.step();
#pragma GCC unroll 4
    for (int p = begin; p < end; ++p) {
      Vf w[kFc2Vectors];
      for (int v = 0; v < kFc2Vectors; ++v) w[v] = load(w2t + p * kFc2Panel + v * kLanes);
#pragma GCC unroll 8
      for (int t = 0; t < kFc2Tokens; ++t) {
        const Vf d = Words::broadcast_word(delta + p * kFc2Tokens, t);
#pragma GCC unroll 8
        for (int v = 0; v < kFc2Vectors; ++v) tile[t][v] = Words::multiply_add(tile[t][v], d, w[v]);
      }
    }
  }
#pragma GCC unroll 8
  for (int t = 0; t < kFc2Tokens; ++t) {
#pragma GCC unroll 8
    for (int v = 0; v < kFc2Vectors; ++v) store(sums + t * kFc2Panel + v * kLanes, tile[t][v]);
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
void add_sums(const Fc2Piece<Type>& piece, const float* sums) {
  for (int t = 0; t < piece.tokens; ++t) {
    typename Type::Storage* out = piece.out + t * piece.row_stride;
    const float* row = sums + t * kFc2Panel;
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

// Up to kFc2Words words of a list: where their rows are.
template <class Words>
struct Fc2Block {
  typedef typename Words::Storage Storage;
  static constexpr int kColumns = kFc2Words * Words::kElements;

  int columns = 0;
  const Storage* delta[kColumns];
  const Storage* w2t[kColumns];

  Fc2Block(const Fc2Task& task, int64_t begin) {
    const int64_t end = begin + kColumns < task.count ? begin + kColumns : task.count;
    for (int64_t p = begin; p < end; ++p, ++columns) {
      delta[columns] = (const Storage*)task.delta + p * task.delta_row_stride;
      w2t[columns] = (const Storage*)task.w2t + task.list[p] * task.w2t_row_stride;
    }
  }

  int words() const { return (columns + Words::kElements - 1) / Words::kElements; }

  // `count` elements, from `offset` on, of the rows that make up a word.
  void stack(const Storage* const* rows, int word, int64_t offset, int64_t count,
             float* words) const {
    const Storage* group[Words::kElements] = {};
    const int first = word * Words::kElements;
    const int present = columns - first < Words::kElements ? columns - first : Words::kElements;
    for (int i = 0; i < present; ++i) group[i] = rows[first + i] + offset;
    Words::stack_rows(group, present, count, words);
  }

  void pack_deltas(int tokens, const Fc2Scratch& scratch) const {
    for (int word = 0; word < words(); ++word) {
      stack(delta, word, 0, kMlpGroup, scratch.row);
      for (int t = 0; t < tokens; t += kFc2Tokens) {
        memcpy(scratch.delta + t * kFc2Words + word * kFc2Tokens, scratch.row + t,
               sizeof(float) * kFc2Tokens);
      }
    }
  }

  void pack_rows(int64_t channel, int width, float* packed) const {
    const int count = words();
    if (width == kFc2Panel) {  // a constant width: straight-line code
      for (int i = 0; i < count; ++i) stack(w2t, i, channel, kFc2Panel, packed + i * kFc2Panel);
      return;
    }
    memset(packed, 0, sizeof(float) * (size_t)(kFc2Panel * count));
    for (int i = 0; i < count; ++i) stack(w2t, i, channel, width, packed + i * kFc2Panel);
  }
};

template <class Words>
void fc2(const Fc2Task& task) {
  typedef typename Words::Type Type;
  typedef typename Words::Storage Storage;
  const int64_t panels = panels_of(task.channels);
  const int tiles = (task.tokens + kFc2Tokens - 1) / kFc2Tokens;
  Fc2Scratch scratch;
  scratch.sums = task.scratch;
  scratch.w2t = scratch.sums + panels * kMlpGroup * kFc2Panel;
  scratch.delta = scratch.w2t + kFc2Words * kFc2Panel;
  scratch.row = scratch.delta + kFc2Words * kMlpGroup;

  for (int64_t begin = 0; begin < task.count; begin += Fc2Block<Words>::kColumns) {
    const Fc2Block<Words> block(task, begin), next(task, begin + Fc2Block<Words>::kColumns);
    const int steps = (block.words() + kFc2Step - 1) / kFc2Step;
    RowsAhead ahead((const void* const*)next.w2t, next.columns,
                    task.channels * (int64_t)sizeof(Storage), panels * tiles * steps);
    block.pack_deltas(task.tokens, scratch);
    for (int64_t panel = 0; panel < panels; ++panel) {
      const int64_t channel = panel * kFc2Panel;
      const int width =
          task.channels - channel < kFc2Panel ? (int)(task.channels - channel) : kFc2Panel;
      block.pack_rows(channel, width, scratch.w2t);
      for (int tile = 0; tile < tiles; ++tile) {
        const int t = tile * kFc2Tokens;
        const Fc2Piece<Type> piece = {
            (Storage*)task.out + t * task.out_row_stride + channel, task.out_row_stride,
            task.tokens - t < kFc2Tokens ? task.tokens - t : kFc2Tokens, width};
        float* sums = scratch.sums + (panel * kFc2Tiles + tile) * (kFc2Tokens * kFc2Panel);
        if (next.columns == 0) prefetch_piece(piece);
        fc2_tile<Words>(scratch.delta + t * kFc2Words, scratch.w2t, block.words(), begin == 0,
                        ahead, sums);
        if (next.columns == 0) add_sums(piece, sums);
      }
    }
  }
}

}  // namespace
}  // namespace chipmunk::cpu
