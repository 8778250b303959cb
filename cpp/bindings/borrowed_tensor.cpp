#include "bindings/borrowed_tensor.h"

#include <pybind11/stl.h>

#include <algorithm>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "chipmunk_kernels/error.h"
#include "third_party/dlpack.h"

namespace chipmunk::python {
namespace py = pybind11;
namespace {

// An argument under examination; all errors carry its name.
struct Argument {
  const char* op;
  const char* name;

  std::string prefix() const { return std::string(op) + ": " + name + ": "; }
  [[noreturn]] void fail(const std::string& expected, const std::string& got) const {
    throw InvalidArgument(prefix() + "expected " + expected + ", got " + got);
  }
};

std::string type_name(py::handle object) { return Py_TYPE(object.ptr())->tp_name; }

// Takes the pending Python exception as text. Exceptions that say nothing about the array
// (KeyboardInterrupt, MemoryError, ..) pass through.
std::string take_export_error() {
  py::error_already_set error;
  const auto refusals = {PyExc_BufferError, PyExc_TypeError, PyExc_ValueError, PyExc_RuntimeError,
                         PyExc_AttributeError};
  const auto matches = [&](PyObject* kind) { return error.matches(kind); };
  if (std::none_of(refusals.begin(), refusals.end(), matches)) throw error;
  return py::str(error.value()).cast<std::string>();
}

[[noreturn]] void fail_export(const Argument& argument, py::handle array) {
  const std::string reason = take_export_error();
  argument.fail("an array that DLPack can share",
                type_name(array) + (reason.empty() ? "" : " (" + reason + ")"));
}

// Of the types with a number of bits behind the name.
const char* kind_name(uint8_t code) {
  switch (code) {
    case kDLInt:
      return "int";
    case kDLUInt:
      return "uint";
    case kDLFloat:
      return "float";
    case kDLBfloat:
      return "bfloat";
    case kDLComplex:
      return "complex";
    default:
      return nullptr;
  }
}

std::string dtype_name(DLDataType dtype) {
  const std::string lanes = dtype.lanes == 1 ? "" : "x" + std::to_string(dtype.lanes);
  if (dtype.code == kDLBool) return "bool" + lanes;
  if (const char* kind = kind_name(dtype.code)) return kind + std::to_string(dtype.bits) + lanes;
  return std::to_string(dtype.bits) + " bits of DLPack type " + std::to_string(dtype.code) + lanes;
}

// What the ops take for an argument of this name.
const char* expected_dtypes(std::string_view name) {
  const auto ends_with = [&](std::string_view part) { return name.ends_with(part); };
  if (ends_with("indices") || ends_with("counts") || ends_with("order") ||
      ends_with("query_rows")) {
    return "dtype int32";
  }
  if (name == "count_per_list") return "dtype int32";
  if (ends_with("lse") || name == "mass_per_list" || name == "key_weights") return "dtype float32";
  if (name == "column_sums") return "dtype float32 or bfloat16";
  if (name == "mask" || name == "always") return "dtype bool";
  return "dtype float32 or bfloat16 or float16";
}

DType to_dtype(const Argument& argument, DLDataType dtype) {
  if (dtype.lanes == 1) {
    if (dtype.code == kDLFloat && dtype.bits == 32) return DType::kFloat32;
    if (dtype.code == kDLBfloat && dtype.bits == 16) return DType::kBFloat16;
    if (dtype.code == kDLFloat && dtype.bits == 16) return DType::kFloat16;
    if (dtype.code == kDLInt && dtype.bits == 32) return DType::kInt32;
    if (dtype.code == kDLBool && dtype.bits == 8) return DType::kBool;
  }
  argument.fail(expected_dtypes(argument.name), dtype_name(dtype));
}

DType dtype_named(const Argument& argument, const std::string& name) {
  for (const DType dtype :
       {DType::kFloat32, DType::kBFloat16, DType::kFloat16, DType::kInt32, DType::kBool}) {
    if (name == name_of(dtype)) return dtype;
  }
  argument.fail(expected_dtypes(argument.name), name);
}

// The view of the number-th such argument; each seems to have memory of its own.
TensorView to_view(const Argument& argument, const ShapeOnly& array, int number) {
  constexpr uintptr_t kApart = uintptr_t{1} << 52;
  TensorView view;
  view.dtype = dtype_named(argument, array.dtype);
  view.device = array.device;
  view.rank = static_cast<int32_t>(array.shape.size());
  if (view.rank > kMaxRank) {
    argument.fail("at most " + std::to_string(kMaxRank) + " dimensions", std::to_string(view.rank));
  }
  std::ranges::copy(array.shape, view.shape.begin());
  std::ranges::copy(array.strides, view.strides.begin());
  view.data = reinterpret_cast<void*>(kApart * static_cast<uintptr_t>(number));
  return view;
}

Device to_device(const Argument& argument, DLDevice device) {
  switch (device.device_type) {
    case kDLCPU:
    case kDLCUDAHost:
      return {DeviceType::kCpu, 0};
    case kDLCUDA:
    case kDLCUDAManaged:
      return {DeviceType::kCuda, device.device_id};
    default:
      throw Unsupported(argument.prefix() + "arrays on DLPack device type " +
                        std::to_string(device.device_type) +
                        " are not supported; expected the CPU or a CUDA device");
  }
}

TensorView to_view(const Argument& argument, const DLTensor& tensor, bool read_only) {
  if (tensor.ndim > kMaxRank) {
    argument.fail("at most " + std::to_string(kMaxRank) + " dimensions",
                  std::to_string(tensor.ndim));
  }
  TensorView view;
  view.dtype = to_dtype(argument, tensor.dtype);
  view.device = to_device(argument, tensor.device);
  view.read_only = read_only;
  view.rank = tensor.ndim;
  std::copy_n(tensor.shape, tensor.ndim, view.shape.begin());
  if (tensor.strides != nullptr && view.numel() > 0) {
    std::copy_n(tensor.strides, tensor.ndim, view.strides.begin());
  } else {  // null means row-major before DLPack 1.2; numpy gives empty arrays strides of 0
    int64_t stride = 1;
    for (int32_t i = view.rank - 1; i >= 0; --i) {
      view.strides[i] = stride;
      stride *= view.shape[i];
    }
  }
  if (tensor.data != nullptr) view.data = static_cast<char*>(tensor.data) + tensor.byte_offset;
  return view;
}

// Set once, when the module is made; compared with the type of every array.
PyTypeObject* shape_only_type = nullptr;

// Python strings and tuples for the calls below, made once and never freed.
struct Names {
  PyObject* exchange_api = PyUnicode_InternFromString("__dlpack_c_exchange_api__");
  PyObject* dlpack = PyUnicode_InternFromString("__dlpack__");
  PyObject* device = PyUnicode_InternFromString("__dlpack_device__");
  PyObject* stream_only = Py_BuildValue("(s)", "stream");
  PyObject* version_only = Py_BuildValue("(s)", "max_version");
  PyObject* version_and_stream = Py_BuildValue("(ss)", "max_version", "stream");
  PyObject* version = Py_BuildValue("(ii)", DLPACK_MAJOR_VERSION, DLPACK_MINOR_VERSION);
};

const Names& names() {
  static const Names names;
  return names;
}

// The C exchange table of the array's type; null where it has none that this code understands.
const DLPackExchangeAPI* exchange_api(py::handle array) {
  PyObject* type = reinterpret_cast<PyObject*>(Py_TYPE(array.ptr()));
  const auto capsule =
      py::reinterpret_steal<py::object>(PyObject_GetAttr(type, names().exchange_api));
  if (!capsule) {
    PyErr_Clear();
    return nullptr;
  }
  auto* header = static_cast<const DLPackExchangeAPIHeader*>(
      PyCapsule_GetPointer(capsule.ptr(), "dlpack_exchange_api"));
  if (header == nullptr) PyErr_Clear();
  while (header != nullptr && header->version.major != DLPACK_MAJOR_VERSION) {
    header = header->prev_api;
  }
  const auto* api = reinterpret_cast<const DLPackExchangeAPI*>(header);
  return api != nullptr && api->dltensor_from_py_object_no_sync != nullptr ? api : nullptr;
}

// array.name(**{keywords[i]: values[i]}); null with an exception set where it fails. Up to two.
py::object call_method(py::handle array, PyObject* name, PyObject* keywords = nullptr,
                       PyObject* first = nullptr, PyObject* second = nullptr) {
  PyObject* const args[] = {array.ptr(), first, second};
  return py::reinterpret_steal<py::object>(PyObject_VectorcallMethod(name, args, 1, keywords));
}

// Which `__dlpack__(stream=..)` orders the producer's work before ours: numbers 0 to 2 have a
// meaning of their own for CUDA, 1 that of the legacy default stream, whose handle is null.
py::int_ protocol_stream(OptionalStream stream) {
  return py::int_(stream.value_or(0) == 0 ? uintptr_t{1} : *stream);
}

bool is_cuda(const Argument& argument, py::handle array) {
  const py::object device = call_method(array, names().device);
  if (!device) {
    if (!PyErr_ExceptionMatches(PyExc_AttributeError)) fail_export(argument, array);
    PyErr_Clear();
    argument.fail("an array that DLPack can share", type_name(array));
  }
  const auto type = py::object(device[py::int_(0)]).cast<int32_t>();
  return to_device(argument, {static_cast<DLDeviceType>(type), 0}).type == DeviceType::kCuda;
}

// The capsule of `array.__dlpack__`, in the newest version that the producer offers.
py::object export_capsule(const Argument& argument, py::handle array, OptionalStream stream) {
  const Names& n = names();
  py::object on_stream;
  if (is_cuda(argument, array)) on_stream = protocol_stream(stream);
  py::object capsule =
      on_stream ? call_method(array, n.dlpack, n.version_and_stream, n.version, on_stream.ptr())
                : call_method(array, n.dlpack, n.version_only, n.version);
  if (!capsule && PyErr_ExceptionMatches(PyExc_TypeError)) {  // older than DLPack 1.0
    PyErr_Clear();
    capsule = on_stream ? call_method(array, n.dlpack, n.stream_only, on_stream.ptr())
                        : call_method(array, n.dlpack);
  }
  if (!capsule) fail_export(argument, array);
  return capsule;
}

TensorView view_of_capsule(const Argument& argument, const py::object& capsule) {
  if (PyCapsule_IsValid(capsule.ptr(), "dltensor_versioned")) {
    const auto* managed = static_cast<const DLManagedTensorVersioned*>(
        PyCapsule_GetPointer(capsule.ptr(), "dltensor_versioned"));
    if (managed->version.major != DLPACK_MAJOR_VERSION) {
      argument.fail("DLPack version " + std::to_string(DLPACK_MAJOR_VERSION),
                    std::to_string(managed->version.major));
    }
    return to_view(argument, managed->dl_tensor, managed->flags & DLPACK_FLAG_BITMASK_READ_ONLY);
  }
  if (PyCapsule_IsValid(capsule.ptr(), "dltensor")) {
    const auto* managed =
        static_cast<const DLManagedTensor*>(PyCapsule_GetPointer(capsule.ptr(), "dltensor"));
    return to_view(argument, managed->dl_tensor, false);
  }
  argument.fail("a DLPack capsule", type_name(capsule));
}

bool is_numpy_array(py::handle array) {
  return std::string_view(Py_TYPE(array.ptr())->tp_name) == "numpy.ndarray";
}

// A subclass of numpy's array that hides elements, which DLPack would show.
void refuse_mask(const Argument& argument, py::handle array) {
  if (is_numpy_array(array)) return;
  if (py::hasattr(array, "mask") && py::hasattr(array, "filled")) {
    argument.fail("an array without a mask", type_name(array));
  }
}

// numpy has bfloat16 through ml_dtypes, which its DLPack does not know: lend those bits as float16.
py::object bfloat16_bits_of_numpy(py::handle array) {
  if (!is_numpy_array(array)) return {};
  const py::object dtype = array.attr("dtype");
  if (dtype.attr("kind").cast<std::string_view>() != "V") return {};  // not one of numpy's own
  if (dtype.attr("name").cast<std::string_view>() != "bfloat16") return {};
  return array.attr("view")("float16");
}

}  // namespace

TensorView Loan::borrow(const char* name, py::handle array) {
  const Argument argument{op_, name};
  if (const DLPackExchangeAPI* api = exchange_api(array)) {
    DLTensor tensor;
    if (api->dltensor_from_py_object_no_sync(array.ptr(), &tensor) != 0) {
      fail_export(argument, array);
    }
    const TensorView view = to_view(argument, tensor, false);
    if (view.device.type == DeviceType::kCuda && !stream_) {
      void* stream = nullptr;
      if (api->current_work_stream(kDLCUDA, view.device.index, &stream) != 0) {
        throw py::error_already_set();
      }
      stream_ = reinterpret_cast<uintptr_t>(stream);
    }
    return view;
  }
  if (Py_TYPE(array.ptr()) == shape_only_type) {
    return to_view(argument, array.cast<const ShapeOnly&>(), ++shapes_only_);
  }
  refuse_mask(argument, array);
  const py::object bits = bfloat16_bits_of_numpy(array);
  // Left unconsumed, the capsule frees the export when it dies.
  py::object capsule = export_capsule(argument, bits ? py::handle(bits) : array, stream_);
  TensorView view = view_of_capsule(argument, capsule);
  if (bits) view.dtype = DType::kBFloat16;
  capsules_.push_back(std::move(capsule));
  return view;
}

std::optional<TensorView> Loan::borrow_optional(const char* name, py::handle array) {
  if (array.is_none()) return std::nullopt;
  return borrow(name, array);
}

Context Loan::context(int cpu_threads) const {
  return {.stream = reinterpret_cast<void*>(stream_.value_or(0)),
          .cpu_threads = cpu_threads,
          .check_only = shapes_only_ > 0};
}

void bind_shape_only(py::module_& m) {
  const auto make = [](std::vector<int64_t> shape, std::vector<int64_t> strides, std::string dtype,
                       std::optional<int32_t> cuda_device) {
    const Device device = cuda_device ? Device{DeviceType::kCuda, *cuda_device} : Device{};
    return ShapeOnly{std::move(shape), std::move(strides), std::move(dtype), device};
  };
  const py::class_<ShapeOnly> type = py::class_<ShapeOnly>(m, "ShapeOnly")
                                         .def(py::init(make), py::arg("shape"), py::arg("strides"),
                                              py::arg("dtype"), py::arg("cuda_device"));
  shape_only_type = reinterpret_cast<PyTypeObject*>(type.ptr());
}

}  // namespace chipmunk::python
