// Sparse fc1: x is packed once per task, tokens in the vector lanes; rows of w1 are read where they
// are and broadcast.

namespace chipmunk::cpu {
namespace {

// A tile is kFc1Tile columns by this many vectors of tokens: 24 (12) accumulators.
inline constexpr int kFc1Vectors = kVectorRegisters >= 32 ? 4 : 2;
inline constexpr int kFc1Panel = kFc1Vectors * kLanes;  // tokens
static_assert(kMlpGroup % kFc1Panel == 0);

struct Fc1Scratch {
  float* x;       // [panels, channels in words, kFc1Panel] words
  float* rows;    // [kFc1Tile, channels]: copies of rows of w1
  float* values;  // [kFc1Tile, kMlpGroup]: x w1
  float* gates;   // [kFc1Tile, kMlpGroup]
};

int64_t fc1_scratch(int64_t channels) {
  return (kMlpGroup + kFc1Tile) * channels + 2 * kFc1Tile * kMlpGroup;
}

template <class Words>
inline int64_t words_of(int64_t elements) {
  return (elements + Words::kElements - 1) / Words::kElements;
}

// x [tokens, channels] transposed, word by word, into panels of kFc1Panel tokens; tokens past the
// end are 0.
template <class Words>
void pack_tokens(const Fc1Task& task, float* packed) {
  typedef typename Words::Storage Storage;
  const int64_t words = words_of<Words>(task.channels);
  const int needed = (task.tokens + kFc1Panel - 1) / kFc1Panel * kFc1Panel;
  for (int token = 0; token < needed; token += kLanes) {
    float* panel = packed + token / kFc1Panel * (words * kFc1Panel) + token % kFc1Panel;
    const Storage* x = (const Storage*)task.x + token * task.x_row_stride;
    for (int64_t k = 0; k < words; k += kLanes) {
      const int64_t element = k * Words::kElements;
      Vf rows[kLanes];
      for (int i = 0; i < kLanes; ++i) {
        rows[i] = token + i >= task.tokens ? Vf{}
                                           : Words::load_words(x + i * task.x_row_stride + element,
                                                               task.channels - element);
      }
      transpose(rows);
      for (int i = 0; i < kLanes && k + i < words; ++i) {
        store(panel + (k + i) * kFc1Panel, rows[i]);
      }
    }
  }
}

// What a tile's columns will want next: the rows of w1 of those after them, and their own of the
// cache.
struct Fc1Ahead {
  RowsAhead w1, cache;
};

// Words between the steps of Fc1Ahead.
inline constexpr int kFc1Step = 16;

// products[r][..] = rows[r] . panel, for kFc1Panel tokens.
template <class Words>
inline void fc1_tile(const float* panel, int64_t words, const void* const* rows, Fc1Ahead& ahead,
                     float* products) {
  Vf sums[kFc1Tile][kFc1Vectors] = {};
  for (int64_t begin = 0; begin < words; begin += kFc1Step) {
    const int64_t end = begin + kFc1Step < words ? begin + kFc1Step : words;
    ahead.w1.step();
    ahead.cache.step();
#pragma GCC unroll 4
    for (int64_t k = begin; k < end; ++k) {
      Vf x[kFc1Vectors];
      for (int v = 0; v < kFc1Vectors; ++v) x[v] = load(panel + k * kFc1Panel + v * kLanes);
#pragma GCC unroll 8
      for (int r = 0; r < kFc1Tile; ++r) {
        const Vf w = Words::broadcast_word(rows[r], k);
#pragma GCC unroll 8
        for (int v = 0; v < kFc1Vectors; ++v) {
          sums[r][v] = Words::multiply_add(sums[r][v], w, x[v]);
        }
      }
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < kFc1Tile; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < kFc1Vectors; ++v) store(products + r * kMlpGroup + v * kLanes, sums[r][v]);
  }
}

// products[r][token] for the rows first + list[r] of w1, r < kFc1Tile, and every token. A list of
// `left` columns; beyond its end, its last column repeats.
template <class Words>
void fc1_products(const Fc1Task& task, const int32_t* list, int64_t left, int64_t first,
                  const Fc1Scratch& scratch, float* products) {
  typedef typename Words::Storage Storage;
  const int64_t words = words_of<Words>(task.channels);
  const void *rows[kFc1Tile], *next_rows[kFc1Tile], *cache_rows[kFc1Tile];
  for (int r = 0; r < kFc1Tile; ++r) {
    const int64_t f = list[r < left ? r : left - 1];
    const int64_t next = list[r + kFc1Tile < left ? r + kFc1Tile : left - 1];
    const Storage* w1 = (const Storage*)task.w1 + first * task.w1_row_stride;
    next_rows[r] = w1 + next * task.w1_row_stride;
    cache_rows[r] = (const Storage*)task.cache + f * task.cache_row_stride;
    rows[r] = Words::row_words(w1 + f * task.w1_row_stride, task.channels,
                               scratch.rows + r * task.channels);
  }
  const int64_t panels = (task.tokens + kFc1Panel - 1) / kFc1Panel;
  const int64_t steps = panels * ((words + kFc1Step - 1) / kFc1Step);
  Fc1Ahead ahead = {RowsAhead(next_rows, kFc1Tile, task.channels * (int64_t)sizeof(Storage), steps),
                    RowsAhead(cache_rows, kFc1Tile, task.tokens * (int64_t)sizeof(Storage), steps)};
  for (int token = 0; token < task.tokens; token += kFc1Panel) {
    fc1_tile<Words>(scratch.x + token * words, words, rows, ahead, products + token);
  }
}

// One column's last step: bias, activation, cache and delta.
template <class Type, MlpActivation kActivation>
void fc1_finish(const float* values, float bias, const float* gates, float gate_bias,
                typename Type::Storage* cache, typename Type::Storage* delta, int tokens) {
  for (int first = 0; first < kMlpGroup; first += kFc1Panel) {
    Vf exact[kFc1Vectors] = {};
    if (first < tokens) {
      for (int v = 0; v < kFc1Vectors; ++v) {
        exact[v] = gates == nullptr ? load(values + first + v * kLanes) + bias
                                    : load(gates + first + v * kLanes) + gate_bias;
      }
      activate<kActivation>(exact);
    }
    for (int v = 0; v < kFc1Vectors; ++v) {
      const int token = first + v * kLanes, width = tokens - token;
      if (gates != nullptr && width > 0) exact[v] = (load(values + token) + bias) * exact[v];
      Vf change = {};
      if (width >= kLanes) {
        const Vf old = Type::load(cache + token);
        Type::store(cache + token, exact[v]);
        change = Type::load(cache + token) - old;
      } else if (width > 0) {
        const Vf old = load_first<Type>(cache + token, width);
        store_first<Type>(cache + token, exact[v], width);
        change = load_first<Type>(cache + token, width) - old;
      }
      Type::store(delta + token, change);
    }
  }
}

template <class Type>
void fc1_finish(MlpActivation activation, const float* values, float bias, const float* gates,
                float gate_bias, typename Type::Storage* cache, typename Type::Storage* delta,
                int tokens) {
  auto finish = fc1_finish<Type, MlpActivation::kGeluTanh>;
  if (activation == MlpActivation::kGelu) finish = fc1_finish<Type, MlpActivation::kGelu>;
  if (activation == MlpActivation::kSilu) finish = fc1_finish<Type, MlpActivation::kSilu>;
  if (activation == MlpActivation::kRelu) finish = fc1_finish<Type, MlpActivation::kRelu>;
  finish(values, bias, gates, gate_bias, cache, delta, tokens);
}

template <class Words>
void fc1(const Fc1Task& task) {
  typedef typename Words::Type Type;
  typedef typename Words::Storage Storage;
  Fc1Scratch scratch;
  scratch.x = task.scratch;
  scratch.values = scratch.x + kMlpGroup * task.channels;
  scratch.gates = scratch.values + kFc1Tile * kMlpGroup;
  scratch.rows = scratch.gates + kFc1Tile * kMlpGroup;
  pack_tokens<Words>(task, scratch.x);

  const Storage* b1 = (const Storage*)task.b1;
  for (int64_t p = 0; p < task.count; p += kFc1Tile) {
    const int32_t* list = task.list + p;
    const int count = task.count - p < kFc1Tile ? (int)(task.count - p) : kFc1Tile;
    fc1_products<Words>(task, list, task.count - p, 0, scratch, scratch.values);
    if (task.gated) {
      fc1_products<Words>(task, list, task.count - p, task.hidden, scratch, scratch.gates);
    }
    for (int r = 0; r < count; ++r) {
      const int64_t f = list[r];
      fc1_finish<Type>(task.activation, scratch.values + r * kMlpGroup,
                       b1 == nullptr ? 0.0f : Type::widen(b1[f]),
                       task.gated ? scratch.gates + r * kMlpGroup : nullptr,
                       b1 == nullptr || !task.gated ? 0.0f : Type::widen(b1[task.hidden + f]),
                       (Storage*)task.cache + f * task.cache_row_stride,
                       (Storage*)task.delta + (p + r) * task.delta_row_stride, task.tokens);
    }
  }
}

}  // namespace
}  // namespace chipmunk::cpu
