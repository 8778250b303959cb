// Memory of our own, for libraries that can take an array in but not lend one to be written (jax).
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cstdint>
#include <memory>
#include <new>
#include <string_view>
#include <vector>

#include "bindings/def_op.h"
#include "chipmunk_kernels/error.h"
#include "third_party/dlpack.h"

namespace chipmunk::python {
namespace py = pybind11;
using namespace pybind11::literals;
namespace {

constexpr std::align_val_t kAlignment{64};  // jax shares such memory and copies any other

struct FreeAligned {
  void operator()(void* memory) const { ::operator delete(memory, kAlignment); }
};

DLDataType dtype_named(std::string_view name) {
  if (name == "float32") return {kDLFloat, 32, 1};
  if (name == "bfloat16") return {kDLBfloat, 16, 1};
  if (name == "float16") return {kDLFloat, 16, 1};
  if (name == "int32") return {kDLInt, 32, 1};
  if (name == "bool") return {kDLBool, 8, 1};
  throw InvalidArgument(
      "HostBuffer: dtype: expected float32, bfloat16, float16, int32 or bool, got " +
      std::string(name));
}

// Row-major, uninitialised; exports share the memory and keep it alive.
struct HostBuffer {
  std::shared_ptr<void> memory;
  std::vector<int64_t> shape, strides;
  DLDataType dtype;

  HostBuffer(std::vector<int64_t> sizes, std::string_view dtype_name)
      : shape(std::move(sizes)), strides(shape.size()), dtype(dtype_named(dtype_name)) {
    int64_t numel = 1;
    for (size_t i = shape.size(); i-- > 0;) {
      strides[i] = numel;
      numel *= shape[i];
    }
    const size_t bytes = static_cast<size_t>(std::max<int64_t>(numel * dtype.bits / 8, 1));
    memory = std::shared_ptr<void>(::operator new(bytes, kAlignment), FreeAligned{});
  }
};

// One export: the DLPack struct and the share of the buffer that it keeps alive.
template <class Managed>
struct Export {
  Managed managed{};
  HostBuffer buffer;
};

template <class Managed>
py::capsule export_as(const HostBuffer& buffer, const char* name) {
  auto owner = std::make_unique<Export<Managed>>(Export<Managed>{.buffer = buffer});
  Managed& managed = owner->managed;
  managed.dl_tensor = {.data = owner->buffer.memory.get(),
                       .device = {kDLCPU, 0},
                       .ndim = static_cast<int32_t>(owner->buffer.shape.size()),
                       .dtype = owner->buffer.dtype,
                       .shape = owner->buffer.shape.data(),
                       .strides = owner->buffer.strides.data(),
                       .byte_offset = 0};
  managed.manager_ctx = owner.get();
  managed.deleter = [](Managed* self) { delete static_cast<Export<Managed>*>(self->manager_ctx); };
  // A consumer renames the capsule and calls the deleter itself.
  PyObject* capsule = PyCapsule_New(&managed, name, [](PyObject* self) {
    const char* current = PyCapsule_GetName(self);
    if (std::string_view(current).starts_with("used_")) return;
    auto* left = static_cast<Managed*>(PyCapsule_GetPointer(self, current));
    left->deleter(left);
  });
  if (capsule == nullptr) throw py::error_already_set();
  owner.release();
  return py::reinterpret_steal<py::capsule>(capsule);
}

py::capsule dlpack(const HostBuffer& buffer, const py::object&,
                   std::optional<std::pair<int, int>> max_version, const py::object&,
                   const py::object&) {
  if (!max_version || max_version->first < 1) {
    return export_as<DLManagedTensor>(buffer, "dltensor");
  }
  py::capsule capsule = export_as<DLManagedTensorVersioned>(buffer, "dltensor_versioned");
  static_cast<DLManagedTensorVersioned*>(capsule.get_pointer())->version = {DLPACK_MAJOR_VERSION,
                                                                            DLPACK_MINOR_VERSION};
  return capsule;
}

}  // namespace

void bind_host_buffer(py::module_& m) {
  py::class_<HostBuffer>(m, "HostBuffer")
      .def(py::init<std::vector<int64_t>, std::string_view>(), "shape"_a, "dtype"_a)
      .def_property_readonly(
          "shape", [](const HostBuffer& buffer) { return py::tuple(py::cast(buffer.shape)); })
      .def("__dlpack__", &dlpack, py::kw_only(), "stream"_a = py::none(),
           "max_version"_a = py::none(), "dl_device"_a = py::none(), "copy"_a = py::none())
      .def("__dlpack_device__", [](const HostBuffer&) { return py::make_tuple(int{kDLCPU}, 0); });
}

}  // namespace chipmunk::python
