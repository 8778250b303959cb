namespace chipmunk::cpu {
namespace {

// Signed magnitude to an unsigned order. `infinity`: the bits of +inf; those above it are NaN's.
inline uint32_t rank_of_bits(uint32_t bits, uint32_t infinity) {
  const uint32_t sign = 0x80000000u;
  const uint32_t magnitude = bits & ~sign;
  // Not `bits` itself above zero: -0 and 0 must meet.
  const uint32_t ordered = (bits & sign) != 0 ? sign - magnitude : sign + magnitude;
  return magnitude > infinity ? sign - infinity : ordered;
}

void rank_scores(ScoreType type, const void* scores, int64_t stride, int64_t n, uint32_t* ranks) {
  if (type == ScoreType::kFloat32) {
    const uint32_t* bits = (const uint32_t*)scores;
    if (stride == 1) {
      for (int64_t j = 0; j < n; ++j) ranks[j] = rank_of_bits(bits[j], 0x7F800000u);
    } else {
      for (int64_t j = 0; j < n; ++j) ranks[j] = rank_of_bits(bits[j * stride], 0x7F800000u);
    }
    return;
  }
  // A half's bits are ordered as its values are, moved up or not; no conversion is needed.
  const uint32_t infinity = type == ScoreType::kBFloat16 ? 0x7F800000u : 0x7C000000u;
  const uint16_t* bits = (const uint16_t*)scores;
  for (int64_t j = 0; j < n; ++j) {
    ranks[j] = rank_of_bits((uint32_t)bits[j * stride] << 16, infinity);
  }
}

void choose_above(const uint32_t* ranks, int64_t n, uint32_t threshold, int64_t ties,
                  uint8_t* chosen) {
  for (int64_t j = 0; j < n; ++j) chosen[j] = ranks[j] > threshold;
  for (int64_t j = 0; j < n && ties > 0; ++j) {
    const int64_t tie = ranks[j] == threshold;
    chosen[j] = (uint8_t)(chosen[j] | tie);
    ties -= tie;
  }
}

int64_t list_mask(const uint8_t* mask, int64_t stride, int64_t n, int64_t capacity,
                  int32_t* positions) {
  int64_t count = 0;
  for (int64_t j = 0; j < n && count < capacity; ++j) {
    positions[count] = (int32_t)j;  // stays only if counted
    count += mask[j * stride] != 0;
  }
  return count;
}

constexpr ColumnsKernels kColumnsKernels = {rank_scores, choose_above, list_mask};

}  // namespace
}  // namespace chipmunk::cpu
