// One table of a step, in memory that is reused from step to step.
#pragma once
#include <algorithm>
#include <memory>
#include <type_traits>

#include "memory.h"

namespace entropy_mlc {

// T is int32_t or float.
template <typename T>
class StepTableOf {
 public:
  // Makes room for `size` numbers; throws without changing the table. Invalidates data() when it grows.
  void Reserve(int64_t size) {
    if (memory_ && size <= capacity_) return;
    int64_t capacity = std::max({size, 2 * capacity_, int64_t{1024}});  // one memory page at least
    memory_ = std::make_shared<ReservedMemory>(capacity * sizeof(T));
    capacity_ = capacity;
  }
  T* data() { return static_cast<T*>(memory_->data()); }

  // Publishes the table under its exact shape. Earlier tensors of this table see the new numbers.
  const Tensor& Publish(ffi::ShapeView shape) {
    constexpr uint8_t code = std::is_floating_point_v<T> ? kDLFloat : kDLInt;
    return tensor_ = TensorOver(memory_, shape, DLDataType{code, 32, 1});
  }
  const Tensor& tensor() const { return tensor_; }

 private:
  std::shared_ptr<ReservedMemory> memory_;
  int64_t capacity_ = 0;
  Tensor tensor_;
};

using StepTable = StepTableOf<int32_t>;
using FloatTable = StepTableOf<float>;

}  // namespace entropy_mlc
