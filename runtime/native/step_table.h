// One int32 table of a step, in memory that is reused from step to step.
#pragma once
#include <algorithm>
#include <memory>

#include "memory.h"

namespace entropy_mlc {

class StepTable {
 public:
  // Makes room for `size` numbers; throws without changing the table. Invalidates data() when it grows.
  void Reserve(int64_t size) {
    if (size <= capacity_) return;
    int64_t capacity = std::max({size, 2 * capacity_, int64_t{1024}});  // one memory page at least
    memory_ = std::make_shared<ReservedMemory>(capacity * sizeof(int32_t));
    capacity_ = capacity;
  }
  int32_t* data() { return static_cast<int32_t*>(memory_->data()); }

  // Publishes the table under its exact shape. Earlier tensors of this table see the new numbers.
  const Tensor& Publish(ffi::ShapeView shape) {
    return tensor_ = TensorOver(memory_, shape, DLDataType{kDLInt, 32, 1});
  }
  const Tensor& tensor() const { return tensor_; }

 private:
  std::shared_ptr<ReservedMemory> memory_;
  int64_t capacity_ = 0;
  Tensor tensor_;
};

}  // namespace entropy_mlc
