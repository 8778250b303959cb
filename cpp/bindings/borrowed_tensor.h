// Borrows a caller's arrays through DLPack for the length of one op call.
//
// Two roads: the C exchange table of the array's type (torch >= 2.10; it also knows the library's
// current stream), else `__dlpack__` capsules (numpy, cupy, jax, older torch).
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "chipmunk_kernels/context.h"
#include "chipmunk_kernels/tensor.h"

namespace chipmunk::python {

// A stream as Python gives it: the address of a cudaStream_t, or None for "the array library's".
using OptionalStream = std::optional<uintptr_t>;

// Stands for an array in a call that only checks its arguments, as torch's fake tensors want.
struct ShapeOnly {
  std::vector<int64_t> shape, strides;  // strides in elements
  std::string dtype;                    // "float32"
  Device device;
};
void bind_shape_only(pybind11::module_& module);

// The arrays of one call. Views are good as long as this object and the Python arguments live;
// needs the GIL to be made, used and destroyed, but not while the op runs.
class Loan {
 public:
  Loan(const char* op, OptionalStream stream) : op_(op), stream_(stream) {}

  const char* op() const { return op_; }

  // Throws InvalidArgument "<op>: <argument>: expected <dtypes> .., got .." for anything that is
  // not an array of a supported dtype, and Unsupported for arrays on other kinds of device. After a
  // ShapeOnly the call only checks its arguments.
  TensorView borrow(const char* argument, pybind11::handle array);
  // nullopt for None.
  std::optional<TensorView> borrow_optional(const char* argument, pybind11::handle array);

  // Of the call: the given stream, else the current one of the library of the first CUDA array.
  Context context(int cpu_threads) const;

  // Runs the op with the GIL released.
  template <class Op>
  void run(int cpu_threads, const Op& op) const {
    const Context context_now = context(cpu_threads);
    const pybind11::gil_scoped_release released;
    op(context_now);
  }

 private:
  const char* op_;
  OptionalStream stream_;
  std::vector<pybind11::object> capsules_;  // keep the borrowed arrays' metadata alive
  int shapes_only_ = 0;
};

}  // namespace chipmunk::python
