// Column-sparse attention on raw pointers from a program of one's own, checked against a double
// loop.
#include <chipmunk_kernels/attention.h>
#include <chipmunk_kernels/error.h>
#include <chipmunk_kernels/info.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <initializer_list>
#include <random>
#include <string>
#include <vector>

namespace {

chipmunk::TensorView view(void* data, chipmunk::DType dtype, std::initializer_list<int64_t> shape) {
  chipmunk::TensorView t;
  t.data = data;
  t.dtype = dtype;
  for (const int64_t size : shape) t.shape[t.rank++] = size;
  int64_t stride = 1;
  for (int32_t i = t.rank - 1; i >= 0; --i) {
    t.strides[i] = stride;
    stride *= t.shape[i];
  }
  return t;
}

}  // namespace

int main() {
  using chipmunk::DType;
  constexpr int64_t kHeads = 2, kTokens = 300, kDim = 64, kGroups = 2, kCapacity = 40;
  constexpr int32_t kQueryGroup = 192;
  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  std::vector<float> q(kHeads * kTokens * kDim), k(q.size()), v(q.size()), out(q.size());
  for (auto* x : {&q, &k, &v}) {
    for (float& value : *x) value = normal(random);
  }
  std::vector<float> lse(kHeads * kTokens);
  std::vector<int32_t> indices(kHeads * kGroups * kCapacity), counts(kHeads * kGroups);
  for (int64_t list = 0; list < kHeads * kGroups; ++list) {
    counts[list] = static_cast<int32_t>(kCapacity - 3 * list);
    for (int32_t i = 0; i < counts[list]; ++i) {
      indices[list * kCapacity + i] = static_cast<int32_t>(7 * i + list);
    }
  }

  const float scale = 1.0f / std::sqrt(static_cast<float>(kDim));
  const auto tensor = [&](std::vector<float>& x) {
    return view(x.data(), DType::kFloat32, {1, kHeads, kTokens, kDim});
  };
  const chipmunk::ColumnLists columns{
      view(indices.data(), DType::kInt32, {1, kHeads, kGroups, kCapacity}),
      view(counts.data(), DType::kInt32, {1, kHeads, kGroups}), kQueryGroup};
  const chipmunk::AttentionPart result{tensor(out),
                                       view(lse.data(), DType::kFloat32, {1, kHeads, kTokens})};
  chipmunk::column_sparse_attention(tensor(q), tensor(k), tensor(v), columns, nullptr, nullptr,
                                    scale, result, {});

  double worst = 0;
  for (int64_t h = 0; h < kHeads; ++h) {
    for (int64_t i = 0; i < kTokens; ++i) {
      const int64_t list = h * kGroups + i / kQueryGroup;
      double sum = 0;
      std::vector<double> expected(kDim, 0.0);
      for (int32_t c = 0; c < counts[list]; ++c) {
        const int64_t key = h * kTokens + indices[list * kCapacity + c];
        double score = 0;
        for (int64_t d = 0; d < kDim; ++d) {
          score += double(q[(h * kTokens + i) * kDim + d]) * k[key * kDim + d];
        }
        const double weight = std::exp(scale * score);
        sum += weight;
        for (int64_t d = 0; d < kDim; ++d) expected[d] += weight * v[key * kDim + d];
      }
      for (int64_t d = 0; d < kDim; ++d) {
        const double got = out[(h * kTokens + i) * kDim + d];
        worst = std::max(worst, std::abs(got - expected[d] / sum));
      }
      worst = std::max(worst, std::abs(lse[h * kTokens + i] - std::log(sum)));
    }
  }
  std::printf("chipmunk_kernels %s, %s: largest error %.2g\n",
              chipmunk::build_info().version.c_str(), chipmunk::build_info().cpu_isa.c_str(),
              worst);

  std::string message;
  try {
    chipmunk::column_sparse_attention(
        tensor(q), tensor(k), tensor(v), columns, nullptr, nullptr, scale,
        {view(out.data(), DType::kFloat32, {1, kHeads, kTokens, 8}), result.lse}, {});
  } catch (const chipmunk::InvalidArgument& e) {
    message = e.what();
  }
  std::printf("refused: %s\n", message.c_str());
  return worst < 1e-5 && message.find("column_sparse_attention: out: expected") == 0 ? 0 : 1;
}
