// The column ops on a GPU give what they give on the CPU, bit for bit.
#include <algorithm>
#include <array>
#include <limits>

#include "chipmunk_kernels/columns.h"
#include "test_cuda.h"

namespace {

using chipmunk::ColumnLists;
using chipmunk::ColumnSelection;
using chipmunk::Context;
using testing::DType;
using testing::OnGpu;
using testing::Tensor;
using testing::TensorView;

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
constexpr double kInf = std::numeric_limits<double>::infinity();

// Lists for rows [heads, groups], every other word of memory not theirs.
struct Lists {
  Tensor indices, counts;
  Lists(int64_t heads, int64_t groups, int64_t capacity)
      : indices(Tensor(DType::kInt32, {heads, groups, capacity + 3}).slice(2, 1, capacity + 1)),
        counts(Tensor(DType::kInt32, {heads, groups, 2}).slice(2, 1, 2)) {
    indices.fill(-7);
    counts.fill(-7);
  }
  TensorView counts_of(TensorView view) const {
    view.rank = 2;
    return view;
  }
  ColumnLists lists() const { return {indices.view(), counts_of(counts.view()), 64}; }

  // The same counts, and the same columns up to them.
  bool same_as(const Lists& other) const {
    const int64_t capacity = indices.size(2);
    for (int64_t row = 0; row < counts.view().numel(); ++row) {
      const double count = counts.get_flat(row);
      if (count != other.counts.get_flat(row)) return false;
      for (int64_t p = 0; p < count; ++p) {
        if (indices.get_flat(row * capacity + p) != other.indices.get_flat(row * capacity + p)) {
          return false;
        }
      }
    }
    return true;
  }
};

struct GpuLists {
  const Lists& host;
  OnGpu indices, counts;
  explicit GpuLists(const Lists& lists)
      : host(lists), indices(lists.indices), counts(lists.counts) {}
  ColumnLists lists() const { return {indices.view(), host.counts_of(counts.view()), 64}; }
  void fetch() const {
    indices.fetch();
    counts.fetch();
  }
};

class Random {
 public:
  explicit Random(unsigned seed) : generator_(seed) {}
  int64_t integer(int64_t from, int64_t to) {
    return std::uniform_int_distribution<int64_t>(from, to)(generator_);
  }
  double fraction() { return std::uniform_real_distribution<double>(0, 1)(generator_); }
  double normal() { return std::normal_distribution<double>()(generator_); }
  uint64_t bits() { return (static_cast<uint64_t>(generator_()) << 32) | generator_(); }

 private:
  std::mt19937 generator_;
};

ColumnSelection random_selection(Random& random, int trial, int64_t columns) {
  ColumnSelection selection;
  if (trial % 5 < 3) {
    selection.count = random.integer(0, columns + 3);
  } else {
    // Where sums round, all of the mass is a matter of their order.
    selection.mass = trial % 10 == 3 && trial % 7 != 5 ? 1.0 : random.fraction();
  }
  if (trial % 4 == 1) selection.min_count = random.integer(0, columns);
  if (trial % 6 == 2) selection.max_count = random.integer(selection.min_count, columns + 2);
  if (trial % 2 == 0) selection.random_fraction = trial % 8 == 0 ? 1.0 : random.fraction();
  selection.seed = random.bits();
  return selection;
}

void fill_scores(Random& random, int trial, const Tensor& scores) {
  const int levels = trial % 4 == 0 ? 3 : 1 << 20;  // few levels: many ties
  for (int64_t i = 0; i < scores.view().numel(); ++i) {
    double score = static_cast<double>(random.integer(-levels / 8, levels)) / levels;
    if (trial % 7 == 5) score = std::exp(6 * random.normal());  // sums round
    if (random.integer(0, 40) == 0) score = kNan;
    if (trial % 11 == 0 && random.integer(0, 60) == 0) score = random.integer(0, 1) ? kInf : -kInf;
    scores.set_flat(i, score);
  }
}

void add_selection_tests(testing::Tests& tests) {
  tests.add("select_columns as on the CPU, over random cases", [&] {
    Random random(2);
    for (int trial = 0; trial < 500; ++trial) {
      const int64_t heads = random.integer(1, 3), groups = random.integer(1, 3);
      const int64_t n = trial % 20 == 0 ? 20000 : random.integer(1, 700);
      const DType dtype = std::array{DType::kFloat32, DType::kBFloat16, DType::kFloat16}[trial % 3];
      const Tensor whole(dtype, {heads, groups, 2 * n});
      whole.fill(kNan);  // what lies between a strided view's columns
      const Tensor scores = trial % 2 ? whole.slice(2, 0, 2 * n, 2) : whole.slice(2, 3 % n, n);
      const int64_t columns = scores.size(2);
      fill_scores(random, trial, scores);
      const bool per_row = trial % 2 == 0;
      const Tensor always(DType::kBool, {per_row ? heads : 1, per_row ? groups : 1, columns});
      const double share = trial % 7 == 0 ? 0.9 : 0.05;
      for (int64_t i = 0; i < always.view().numel(); ++i) {
        always.set_flat(i, random.fraction() < share);
      }
      const bool with_always = trial % 3 != 1;
      const ColumnSelection selection = random_selection(random, trial, columns);
      const int64_t capacity =
          trial % 9 == 0 ? std::max(selection.min_count, columns / 2) : columns;

      const Lists expected(heads, groups, capacity), got(heads, groups, capacity);
      chipmunk::select_columns(scores, with_always ? &always.view() : nullptr, selection,
                               expected.lists(), Context{});
      const OnGpu gpu_scores(scores), gpu_always(always);
      const GpuLists gpu(got);
      chipmunk::select_columns(gpu_scores, with_always ? &gpu_always.view() : nullptr, selection,
                               gpu.lists(), Context{});
      gpu.fetch();
      tests.check(got.same_as(expected), "trial " + std::to_string(trial) + ", " +
                                             std::to_string(columns) + " columns, " +
                                             chipmunk::name_of(dtype));
    }
  });

  tests.add("a count or a mass for every list, head or group, as on the CPU", [&] {
    Random random(4);
    for (int trial = 0; trial < 60; ++trial) {
      const bool by_count = trial % 2 == 0;
      const int64_t heads = random.integer(1, 3), groups = random.integer(1, 3);
      const int64_t n = random.integer(1, 700);
      const Tensor scores(DType::kFloat32, {heads, groups, n});
      fill_scores(random, 1, scores);  // sums that do not round
      const Tensor values(by_count ? DType::kInt32 : DType::kFloat32,
                          {trial % 3 == 1 ? 1 : heads, trial % 3 == 2 ? 1 : groups});
      for (int64_t i = 0; i < values.view().numel(); ++i) {
        const double mass = random.integer(0, 9) == 0 ? kNan : 1.4 * random.fraction() - 0.2;
        values.set_flat(i, by_count ? static_cast<double>(random.integer(-9, n + 9)) : mass);
      }
      const auto select = [&](const TensorView& from, const TensorView& by,
                              const ColumnLists& lists) {
        ColumnSelection selection{.max_count = n, .random_fraction = 0.1, .seed = 7};
        (by_count ? selection.count_per_list : selection.mass_per_list) = by;
        chipmunk::select_columns(from, nullptr, selection, lists, Context{});
      };
      const Lists expected(heads, groups, n), got(heads, groups, n);
      select(scores, values, expected.lists());
      const OnGpu gpu_scores(scores), gpu_values(values);
      const GpuLists gpu(got);
      select(gpu_scores, gpu_values, gpu.lists());
      gpu.fetch();
      tests.check(got.same_as(expected), "trial " + std::to_string(trial));
    }
  });

  tests.add("no columns, no rows", [&] {
    for (const int64_t groups : {int64_t{0}, int64_t{2}}) {
      const Tensor scores(DType::kFloat32, {1, groups, groups == 0 ? 5 : 0});
      const Lists lists(1, groups, 4);
      const OnGpu gpu_scores(scores);
      const GpuLists gpu(lists);
      TensorView view = gpu_scores;
      view.device = {chipmunk::DeviceType::kCuda, 0};
      ColumnLists columns = gpu.lists();
      columns.indices.device = columns.counts.device = view.device;
      chipmunk::select_columns(view, nullptr, {.count = 3}, columns, Context{});
      gpu.fetch();
      for (int64_t g = 0; g < groups; ++g) tests.check(lists.counts.get_flat(g) == 0, "count 0");
    }
    tests.check(true, "no rows: nothing to look at");
  });
}

void add_mask_tests(testing::Tests& tests) {
  tests.add("masks to lists and back as on the CPU", [&] {
    Random random(3);
    for (int trial = 0; trial < 100; ++trial) {
      const int64_t heads = random.integer(1, 3), groups = random.integer(1, 3);
      const int64_t n = trial % 10 == 0 ? 50000 : random.integer(1, 1500);
      const Tensor whole(DType::kBool, {heads, groups, 2 * n});
      const Tensor mask = trial % 2 ? whole.slice(2, 0, 2 * n, 2) : whole.slice(2, 3 % n, n);
      const double share = std::array{0.0, 0.05, 0.5, 1.0}[trial % 4];
      for (int64_t i = 0; i < mask.view().numel(); ++i) {
        mask.set_flat(i, random.fraction() < share);
      }
      const int64_t capacity = trial % 3 == 0 ? std::max<int64_t>(1, n / 4) : mask.size(2);
      const Lists expected(heads, groups, capacity), got(heads, groups, capacity);
      chipmunk::columns_from_mask(mask, expected.lists(), Context{});
      const OnGpu gpu_mask(mask);
      const GpuLists gpu(got);
      chipmunk::columns_from_mask(gpu_mask, gpu.lists(), Context{});
      gpu.fetch();
      tests.check(got.same_as(expected), "lists, trial " + std::to_string(trial));

      const Tensor back = mask.clone(), back_expected = mask.clone();
      back.fill(1);
      const OnGpu gpu_back(back);
      chipmunk::columns_to_mask(gpu.lists(), gpu_back, Context{});
      gpu_back.fetch();
      chipmunk::columns_to_mask(expected.lists(), back_expected, Context{});
      tests.check(back.same_bits(back_expected), "mask, trial " + std::to_string(trial));
    }
  });

  tests.add("garbage past a count and columns out of range are not looked at", [&] {
    const Lists lists(1, 1, 6);
    const double values[] = {1, 3, -5, 99, 0x7fffffff, 0x7fffffff};
    for (int64_t p = 0; p < 6; ++p) lists.indices.set_flat(p, values[p]);
    lists.counts.set_flat(0, 4);
    const Tensor mask(DType::kBool, {1, 1, 5});
    const OnGpu gpu_mask(mask);
    const GpuLists gpu(lists);
    chipmunk::columns_to_mask(gpu.lists(), gpu_mask, Context{});
    gpu_mask.fetch();
    for (int64_t j = 0; j < 5; ++j) {
      tests.check(mask.get_flat(j) == (j == 1 || j == 3), "column " + std::to_string(j));
    }
  });

  tests.add("a captured graph follows its mask", [&] {
    cudaStream_t stream;
    testing::check_status(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    const Tensor mask(DType::kBool, {1, 1, 1000});
    const Lists lists(1, 1, 1000);
    const OnGpu gpu_mask(mask);
    const GpuLists gpu(lists);
    cudaGraph_t graph;
    cudaGraphExec_t replay;
    testing::check_status(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal));
    chipmunk::columns_from_mask(gpu_mask, gpu.lists(), Context{.stream = stream});
    testing::check_status(cudaStreamEndCapture(stream, &graph));
    testing::check_status(cudaGraphInstantiate(&replay, graph, 0));
    for (const int step : {3, 7}) {
      mask.fill(0);
      for (int64_t j = 0; j < 1000; j += step) mask.set_flat(j, 1);
      testing::check_status(
          cudaMemcpy(gpu_mask.view().data, mask.view().data, 1000, cudaMemcpyHostToDevice));
      testing::check_status(cudaGraphLaunch(replay, stream));
      testing::check_status(cudaStreamSynchronize(stream));
      gpu.fetch();
      tests.check(lists.counts.get_flat(0) == (999 / step) + 1, "count");
      tests.check(lists.indices.get_flat(100) == 100 * step, "the hundredth column");
    }
    cudaGraphExecDestroy(replay);
    cudaGraphDestroy(graph);
    cudaStreamDestroy(stream);
  });
}

}  // namespace

int main() {
  testing::Tests tests;
  add_selection_tests(tests);
  add_mask_tests(tests);
  return testing::run_on_gpu(tests);
}
