// A device for torch with memory of its own, as a GPU has, that computes on the CPU: for tests of code that no GPU runs.
//
// What mixes it with the CPU raises as CUDA does, but for what CUDA allows: numbers, indices, copies. Like Apple's GPUs
// it holds no float64. New memory is filled with NaN, so that what was not written shows.
#include <ATen/EmptyTensor.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <ATen/native/CPUFallback.h>
#include <ATen/ops/_reshape_alias_native.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/unfold_native.h>
#include <ATen/ops/view_native.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <c10/core/impl/alloc_cpu.h>
#include <torch/extension.h>

#include <atomic>
#include <set>

namespace {

using at::Tensor;
constexpr auto KIND = c10::DeviceType::PrivateUse1;
const c10::Device DEVICE(KIND, 0);

std::atomic<size_t> held{0}, room{SIZE_MAX};

struct Block {
  void* data;
  size_t size;
};

struct Allocator final : c10::Allocator {
  c10::DataPtr allocate(size_t size) override {
    TORCH_CHECK(size <= room && held + size <= room, "pretend device: out of memory");
    held += size;
    auto* block = new Block{c10::alloc_cpu(size), size};
    if (size) memset(block->data, 0xff, size);
    return {block->data, block, &release, DEVICE};
  }
  static void release(void* pointer) {
    auto* block = static_cast<Block*>(pointer);
    held -= block->size;
    c10::free_cpu(block->data);
    delete block;
  }
  void copy_data(void* to, const void* from, size_t size) const override { memcpy(to, from, size); }
};
Allocator allocator;
REGISTER_ALLOCATOR(KIND, &allocator);

struct Guard final : c10::impl::DeviceGuardImplInterface {
  c10::DeviceType type() const override { return KIND; }
  c10::Device exchangeDevice(c10::Device) const override { return DEVICE; }
  c10::Device getDevice() const override { return DEVICE; }
  void setDevice(c10::Device) const override {}
  void uncheckedSetDevice(c10::Device) const noexcept override {}
  c10::Stream getStream(c10::Device) const override { return c10::Stream(c10::Stream::DEFAULT, DEVICE); }
  c10::Stream exchangeStream(c10::Stream stream) const override { return stream; }
  c10::DeviceIndex deviceCount() const noexcept override { return 1; }
};
C10_REGISTER_GUARD_IMPL(PrivateUse1, Guard);

struct Hooks final : at::PrivateUse1HooksInterface {
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
};

bool is_here(const Tensor& tensor) { return tensor.device().type() == KIND; }

// The same memory as a tensor of the CPU.
Tensor on_cpu(const Tensor& tensor) {
  if (!is_here(tensor)) return tensor;
  auto count = static_cast<int64_t>(tensor.storage().nbytes() / tensor.itemsize());
  auto options = tensor.options().device(at::kCPU);
  return at::from_blob(tensor.storage().mutable_data(), {count}, options)
      .as_strided(tensor.sizes(), tensor.strides(), tensor.storage_offset());
}

c10::ScalarType allowed(std::optional<c10::ScalarType> kind) {
  auto type = c10::dtype_or_default(kind);
  TORCH_CHECK_TYPE(type != at::kDouble, "pretend device: cannot hold float64");
  return type;
}

constexpr c10::DispatchKeySet KEYS(c10::DispatchKey::PrivateUse1);

Tensor empty(
    c10::SymIntArrayRef size, std::optional<c10::ScalarType> kind, std::optional<c10::Layout>,
    std::optional<c10::Device>, std::optional<bool>, std::optional<c10::MemoryFormat> format) {
  return at::detail::empty_generic(C10_AS_INTARRAYREF_SLOW(size), &allocator, KEYS, allowed(kind), format);
}

Tensor empty_strided(
    c10::IntArrayRef size, c10::IntArrayRef stride, std::optional<c10::ScalarType> kind, std::optional<c10::Layout>,
    std::optional<c10::Device>, std::optional<bool>) {
  return at::detail::empty_strided_generic(size, stride, &allocator, KEYS, allowed(kind));
}

Tensor copy_from(const Tensor& from, const Tensor& to, bool) {
  on_cpu(to).copy_(on_cpu(from));
  return to;
}

Tensor copy_from_and_resize(const Tensor& from, const Tensor& to) {
  if (to.sizes() != from.sizes()) to.resize_(from.sizes());
  return copy_from(from, to, false);
}

const Tensor& resize(const Tensor& tensor, c10::SymIntArrayRef size, std::optional<c10::MemoryFormat>) {
  auto* impl = tensor.unsafeGetTensorImpl();
  impl->set_sizes_contiguous(C10_AS_INTARRAYREF_SLOW(size));
  auto* storage = impl->unsafe_storage().unsafeGetStorageImpl();
  size_t needed = (impl->numel() + impl->storage_offset()) * tensor.itemsize();
  if (storage->nbytes() < needed) {
    auto larger = allocator.allocate(needed);
    memcpy(larger.get(), storage->data(), storage->nbytes());
    storage->set_data_ptr_noswap(std::move(larger));
    storage->set_nbytes(needed);
  }
  return tensor;
}

c10::Scalar number(const Tensor& tensor) { return on_cpu(tensor).item(); }

void require_here(const std::vector<Tensor>& tensors, const std::string& name, bool first_may_lead) {
  for (const auto& tensor : tensors) {
    bool fits = is_here(tensor) || (tensor.dim() == 0) || (first_may_lead && is_here(tensors.front()));
    TORCH_CHECK(fits, "pretend device: expected all tensors to be on the same device in ", name);
  }
}

Tensor convolution(
    const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias, c10::IntArrayRef stride,
    c10::IntArrayRef padding, c10::IntArrayRef dilation, bool transposed, c10::IntArrayRef more, int64_t groups) {
  std::vector<Tensor> given{input, weight};
  std::optional<Tensor> offset;
  if (bias && bias->defined()) {
    given.push_back(*bias);
    offset = on_cpu(*bias);
  }
  require_here(given, "convolution", false);
  return at::convolution(
             on_cpu(input), on_cpu(weight), offset, stride, padding, dilation, transposed, more, groups)
      .to(DEVICE);
}

std::tuple<Tensor, Tensor, Tensor> convolution_backward(
    const Tensor& gradient, const Tensor& input, const Tensor& weight, c10::IntArrayRef stride,
    c10::IntArrayRef padding, c10::IntArrayRef dilation, bool transposed, c10::IntArrayRef more, int64_t groups,
    std::array<bool, 3> wanted) {
  require_here({gradient, input, weight}, "convolution_backward", false);
  std::vector<int64_t> bias{transposed ? weight.size(1) * groups : weight.size(0)};
  auto [first, second, third] = at::convolution_backward(
      on_cpu(gradient), on_cpu(input), on_cpu(weight), bias, stride, padding, dilation, transposed, more, groups,
      wanted);
  auto back = [](const Tensor& tensor) { return tensor.defined() ? tensor.to(DEVICE) : tensor; };
  return {back(first), back(second), back(third)};
}

const std::set<std::string> LED_BY_THE_FIRST{
    "aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_"};

void elsewhere(const c10::OperatorHandle& operation, torch::jit::Stack* stack) {
  const auto& name = operation.schema().name();
  std::vector<Tensor> given;
  for (const auto& value : torch::jit::last(*stack, operation.schema().arguments().size())) {
    if (value.isTensor() && value.toTensor().defined()) given.push_back(value.toTensor());
    if (value.isTensorList())
      for (const Tensor& tensor : value.toTensorVector()) given.push_back(tensor);
    else if (value.isOptionalTensorList())
      for (const auto& tensor : value.toOptionalTensorVector())
        if (tensor && tensor->defined()) given.push_back(*tensor);
  }
  require_here(given, name, LED_BY_THE_FIRST.count(name) > 0);
  at::native::cpu_fallback(operation, stack);
}

TORCH_LIBRARY_IMPL(aten, PrivateUse1, library) {
  library.impl("empty.memory_format", &empty);
  library.impl("empty_strided", &empty_strided);
  library.impl("_copy_from", &copy_from);
  library.impl("_copy_from_and_resize", &copy_from_and_resize);
  library.impl("resize_", &resize);
  library.impl("_local_scalar_dense", &number);
  library.impl("as_strided", TORCH_FN(at::native::as_strided_tensorimpl));
  library.impl("view", TORCH_FN(at::native::view));
  library.impl("_reshape_alias", TORCH_FN(at::native::_reshape_alias));
  library.impl("unfold", TORCH_FN(at::native::unfold));
  library.impl("convolution_overrideable", &convolution);
  library.impl("convolution_backward_overrideable", &convolution_backward);
}

TORCH_LIBRARY_IMPL(_, PrivateUse1, library) {
  library.fallback(torch::CppFunction::makeFromBoxedFunction<&elsewhere>());
}

}  // namespace

PYBIND11_MODULE(TORCH_EXTENSION_NAME, module) {
  static Hooks hooks;
  at::RegisterPrivateUse1HooksInterface(&hooks);
  module.def("set_room", [](size_t size) { room = size; }, "Bytes that the device has.");
}
