// Adds an op to the module from a function on views. Every op is an out-variant on arrays: inputs,
// options, outputs, then `cpu_threads` (0: all) and `stream` (None: the array library's).
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>

#include "bindings/borrowed_tensor.h"
#include "chipmunk_kernels/error.h"

namespace chipmunk::python {

// One function per public header.
void bind_attention(pybind11::module_& module);
void bind_columns(pybind11::module_& module);
void bind_mlp(pybind11::module_& module);
// HostBuffer: memory of our own that other libraries take in through DLPack.
void bind_host_buffer(pybind11::module_& module);

// An argument that messages call by another name: "indices" is "columns.indices".
struct Shown {
  const char* name;
  const char* shown;
};

// An argument that Python may leave out: None then.
struct OrNone {
  Shown name;
};

// What Python passes for a parameter of type T, and how it becomes one. The name is that of
// messages; the GIL is held.
template <class T>
struct Parameter {
  using Passed = T;
  static T from(Loan&, const char*, T value) { return value; }
};

template <>
struct Parameter<TensorView> {
  using Passed = pybind11::handle;
  static TensorView from(Loan& loan, const char* name, Passed array) {
    return loan.borrow(name, array);
  }
};

template <>
struct Parameter<std::optional<TensorView>> {
  using Passed = pybind11::handle;
  static std::optional<TensorView> from(Loan& loan, const char* name, Passed array) {
    return loan.borrow_optional(name, array);
  }
};

// Python's numbers are wider than the ops'; whether this one is positive, they check themselves.
template <>
struct Parameter<int32_t> {
  using Passed = int64_t;
  static int32_t from(Loan& loan, const char* name, int64_t number) {
    const auto narrow = static_cast<int32_t>(number);
    if (narrow == number) return narrow;
    throw InvalidArgument(std::string(loan.op()) + ": " + name +
                          ": expected a positive number below 2^31, got " + std::to_string(number));
  }
};

namespace detail {

inline pybind11::arg python_argument(const char* name) { return pybind11::arg(name); }
inline pybind11::arg python_argument(Shown name) { return pybind11::arg(name.name); }
inline pybind11::arg_v python_argument(OrNone name) {
  return pybind11::arg(name.name.name) = pybind11::none();
}
inline const char* message_name(const char* name) { return name; }
inline const char* message_name(Shown name) { return name.shown; }
inline const char* message_name(OrNone name) { return name.name.shown; }

template <class... Parameters, class... Names, size_t... I>
void def_op(pybind11::module_& m, const char* op, void (*body)(const Context&, Parameters...),
            std::index_sequence<I...>, Names... names) {
  static_assert(sizeof...(Parameters) == sizeof...(Names), "one name a parameter");
  const std::array<const char*, sizeof...(Names)> shown{message_name(names)...};
  m.def(
      op,
      [op, body, shown](typename Parameter<std::remove_cvref_t<Parameters>>::Passed... passed,
                        int cpu_threads, OptionalStream stream) {
        Loan loan(op, stream);
        // Braces: from the first to the last.
        const std::tuple<std::remove_cvref_t<Parameters>...> arguments{
            Parameter<std::remove_cvref_t<Parameters>>::from(loan, shown[I], passed)...};
        loan.run(cpu_threads,
                 [&](const Context& context) { body(context, std::get<I>(arguments)...); });
      },
      python_argument(names)..., pybind11::arg("cpu_threads") = 0,
      pybind11::arg("stream") = pybind11::none());
}

}  // namespace detail

// `body` is a lambda without captures, (const Context&, parameters...) -> void, that runs without
// the GIL. `names` are the parameters' in Python: strings, Shown or OrNone.
template <class Body, class... Names>
void def_op(pybind11::module_& m, const char* op, Body body, Names... names) {
  detail::def_op(m, op, +body, std::index_sequence_for<Names...>(), names...);
}

}  // namespace chipmunk::python
