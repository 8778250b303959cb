// The softmax of the Hopper kernels, alone.
#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

#include "cuda/device/softmax.cuh"
#include "device_buffer.h"

namespace parts {

using namespace chipmunk::cuda;
using testing::Buffer;
using testing::small;

// Each warp holds 16 rows of 16 columns; scores come in two tiles, the second raised if asked to.
__global__ void weigh_rows(const float* scores, float scale, const float* rest_lse, float* out) {
  const int lane = threadIdx.x, column = 2 * (lane & 3);
  const auto load = [&](int tile, float (&x)[8]) {
    for (int i = 0; i < 8; ++i) {
      const int row = lane / 4 + (i >> 1 & 1) * 8;
      x[i] = scores[(tile * 16 + row) * 16 + 8 * (i >> 2) + column + (i & 1)];
    }
  };
  OnlineSoftmax softmax;
  softmax.scale_log2 = scale * kLog2E;
  float x[8], part[2], factor[2] = {1, 1};
  load(0, x);
  softmax.start(x);
  softmax.weigh(x, softmax.sum);
  load(1, x);
  softmax.weigh(x, part);
  if (__any_sync(0xffffffffu, part[0] > kMostWeight<__half> || part[1] > kMostWeight<__half>)) {
    load(1, x);
    softmax.raise(x, factor);
    softmax.weigh(x, part);
  }
  softmax.add(part);
  softmax.finish();
  const float unit = softmax.unit(scale);
  for (int r = 0; r < 2; ++r) {
    const int row = lane / 4 + 8 * r;
    if (lane % 4 == 0) out[row] = OnlineSoftmax::lse(softmax.reference[r], softmax.sum[r], unit);
    float own, rest;
    const float weight = softmax.sum[r];
    softmax.merge(r, rest_lse[row], unit, own, rest);
    if (lane % 4 == 0) {
      out[16 + row] = weight * own;  // of all: the share of this part
      out[32 + row] = rest;
      out[48 + row] =
          OnlineSoftmax::lse(softmax.reference[r], softmax.sum[r], softmax.exact ? 1.0f : unit);
    }
  }
}

void test_softmax(testing::Tests& tests) {
  for (const double size : {0.0, 1.0, 30.0, 1e3, 1e6, 1e8, 1e10, 1e20, 1e37}) {
    for (const float scale : {0.125f, 1.0f, 4.0f}) {
      std::vector<float> scores(2 * 16 * 16), rest(16);
      for (unsigned i = 0; i < scores.size(); ++i) {
        scores[i] = static_cast<float>((small(i) + small(i + 999) / 16) / 8.5 * size);
        if (i % 256 / 16 == 3) scores[i] = -INFINITY;             // a row without a score
        if (i < 256 && i % 256 / 16 == 4) scores[i] = -INFINITY;  // and one that starts late
        if (i % 256 / 16 == 5) scores[i] = small(i) / 8;          // an ordinary one
      }
      std::vector<double> lse(16);
      for (int r = 0; r < 16; ++r) {
        double top = -INFINITY, sum = 0;
        const auto score = [&](int t, int c) {
          return static_cast<double>(scores[(t * 16 + r) * 16 + c]) * scale;
        };
        for (int i = 0; i < 32; ++i) top = std::max(top, score(i / 16, i % 16));
        for (int i = 0; i < 32 && top > -INFINITY; ++i)
          sum += std::exp(score(i / 16, i % 16) - top);
        lse[r] = sum == 0 ? -INFINITY : top + std::log(sum);
        rest[r] = r % 4 == 1 ? -INFINITY : static_cast<float>(lse[r] * 0.99 + 0.5);
        if (r == 3) rest[r] = 1.5f;
      }
      const Buffer<float> in(scores), in_rest(rest), out(64);
      weigh_rows<<<1, 32>>>(in.data(), scale, in_rest.data(), out.data());
      const std::vector<float> got = out.fetch();
      const auto near = [](float x, double want, double tolerance) {
        const float as_float = static_cast<float>(want);
        return x == as_float || std::abs(x - want) <= tolerance;
      };
      bool right = true;
      for (int r = 0; r < 16; ++r) {
        const double whole = std::max(lse[r], static_cast<double>(rest[r]));
        const double merged =
            whole == -INFINITY
                ? whole
                : whole + std::log(std::exp(lse[r] - whole) + std::exp(rest[r] - whole));
        const double relative = 2e-6 * std::max(1.0, std::abs(lse[r]));
        right = right && near(got[r], lse[r], relative) && near(got[48 + r], merged, relative);
        // Where lse is large, a float of it tells shares no better than its rounding.
        const double rounding = std::isinf(lse[r]) ? 0 : std::abs(lse[r]) * 1.2e-7;
        if (rounding > 0.1 && rest[r] > -INFINITY && std::abs(lse[r] - rest[r]) < 40 * rounding) {
          continue;
        }
        const double own = merged == -INFINITY ? 0 : std::exp(lse[r] - merged);
        const double theirs = merged == -INFINITY ? 0 : std::exp(rest[r] - merged);
        right = right && near(got[16 + r], own, 1e-5 + 2 * rounding) &&
                near(got[32 + r], theirs, 1e-5 + 2 * rounding);
      }
      tests.check(right, "scores of " + std::to_string(size) + ", scale " + std::to_string(scale));
    }
  }
}

}  // namespace parts

int main() {
  testing::Tests tests;
  tests.add("softmax", [&] { parts::test_softmax(tests); });
  return testing::run_on_gpu(tests);
}
