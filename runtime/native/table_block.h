// Tables of numbers that the host and the kernels exchange, one after the other in a block of host memory. A cache on a
// device has the block there too, and one copy takes over all of its tables.
#pragma once
#include <algorithm>
#include <type_traits>
#include <vector>

#include "device.h"

namespace entropy_mlc {

// T is int32_t or float.
template <typename T>
struct Table {
  T* numbers;     // on the host
  Tensor tensor;  // what kernels get
};

// Memory that is used again from step to step. Tensors of earlier steps see the new numbers.
class TableBlock {
 public:
  explicit TableBlock(const Device* device) : device_(device) {}

  // What a table takes of a block: kernels want tensors aligned to 64 bytes.
  static int64_t Room(int64_t numbers) { return CeilDiv(numbers, kAlign) * kAlign; }

  // Forgets the tables, and makes room for those to come: the sum of their Room(). Throws before anything has changed.
  void Begin(int64_t room) {
    int64_t bytes = room * kNumber;
    if (!host_.defined() || bytes > Capacity(host_)) {
      int64_t capacity = std::max<int64_t>({bytes, host_.defined() ? 2 * Capacity(host_) : 0, kLeast});
      Tensor host = HostTensor({capacity}, kBytes);
      if (device_->has_addresses()) block_ = device_->is_host() ? host : device_->Empty({capacity}, kBytes);
      host_ = std::move(host);
    }
    used_ = 0;
    parts_.clear();
  }

  // The next table; its numbers are those of an earlier step.
  template <typename T>
  Table<T> Add(ffi::ShapeView shape) {
    static_assert(sizeof(T) == kNumber);
    constexpr uint8_t code = std::is_floating_point_v<T> ? kDLFloat : kDLInt;
    DLDataType dtype{code, 32, 1};
    int64_t numbers = shape.Product(), offset = used_;
    used_ += Room(numbers) * kNumber;
    T* data = reinterpret_cast<T*>(static_cast<char*>(host_.data_ptr()) + offset);
    if (device_->has_addresses()) return {data, View(block_, offset, shape, dtype)};
    parts_.push_back({offset, numbers * kNumber});
    return {data, View(OwnMemory(parts_.size() - 1, numbers * kNumber), 0, shape, dtype)};
  }

  // Copies the numbers of all tables to the device, or from there; the host's kernels share them.
  void Upload() const {
    ForEachCopy([this](const Tensor& there, char* here, size_t bytes) { device_->Write(here, there, 0, bytes); });
  }
  void Download() const {
    ForEachCopy([this](const Tensor& there, char* here, size_t bytes) { device_->Read(there, 0, here, bytes); });
  }

 private:
  static constexpr int64_t kAlign = 16, kNumber = 4, kLeast = 4096;
  static constexpr DLDataType kBytes{kDLUInt, 8, 1};

  struct Part {
    int64_t offset, bytes;
  };

  static int64_t Capacity(const Tensor& memory) { return memory.shape()[0]; }

  // Where data is a handle, the memory on the device of table number i.
  const Tensor& OwnMemory(size_t i, int64_t bytes) {
    if (i == own_.size()) own_.emplace_back();
    if (!own_[i].defined() || bytes > Capacity(own_[i])) {
      own_[i] = device_->Empty({std::max(bytes, own_[i].defined() ? 2 * Capacity(own_[i]) : kAlign * kNumber)}, kBytes);
    }
    return own_[i];
  }

  template <typename Copy>
  void ForEachCopy(Copy copy) const {
    if (device_->is_host()) return;
    char* data = static_cast<char*>(host_.data_ptr());
    if (device_->has_addresses()) {
      copy(block_, data, used_);
      return;
    }
    for (size_t i = 0; i < parts_.size(); ++i) copy(own_[i], data + parts_[i].offset, parts_[i].bytes);
  }

  const Device* device_;
  Tensor host_, block_;
  int64_t used_ = 0;         // bytes
  std::vector<Part> parts_;  // of the tables, where each has memory of its own: `own_`
  std::vector<Tensor> own_;
};

// Memory that kernels write before they read it, used again from step to step.
class Workspace {
 public:
  explicit Workspace(const Device* device) : device_(device) {}

  Tensor Get(ffi::ShapeView shape, DLDataType dtype) {
    int64_t bytes = static_cast<int64_t>(ffi::GetDataSize(shape.Product(), dtype));
    if (!memory_.defined() || bytes > memory_.shape()[0]) {
      int64_t doubled = memory_.defined() ? 2 * memory_.shape()[0] : 4096;
      memory_ = device_->Empty({std::max(bytes, doubled)}, DLDataType{kDLUInt, 8, 1});
    }
    return View(memory_, 0, shape, dtype);
  }

 private:
  const Device* device_;
  Tensor memory_;
};

}  // namespace entropy_mlc
