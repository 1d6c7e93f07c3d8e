// Numbers to bytes and back. A type writes and reads itself with one function template over Writer and Reader.
#pragma once
#include <cstring>
#include <string>
#include <type_traits>
#include <vector>

#include "ffi.h"

namespace entropy_mlc {

// Little-endian machines only, as everything else here.
class ArchiveWriter {
 public:
  template <typename T>
  void Value(const T& value) {
    static_assert(std::is_arithmetic_v<T>);
    Raw(&value, sizeof(T));
  }
  template <typename T>
  void Values(const std::vector<T>& values) {
    Value(static_cast<int64_t>(values.size()));
    Raw(values.data(), values.size() * sizeof(T));
  }
  // How many items the caller will write.
  template <typename T>
  void Count(const std::vector<T>& items) {
    Value(static_cast<int64_t>(items.size()));
  }
  void Raw(const void* data, size_t size) { bytes_.append(static_cast<const char*>(data), size); }

  const std::string& bytes() const { return bytes_; }

 private:
  std::string bytes_;
};

class ArchiveReader {
 public:
  // `bytes` must outlive the reader.
  ArchiveReader(const char* bytes, size_t size) : next_(bytes), end_(bytes + size) {}

  template <typename T>
  void Value(T& value) {
    Raw(&value, sizeof(T));
  }
  template <typename T>
  void Values(std::vector<T>& values) {
    int64_t count = 0;
    Value(count);
    if (count < 0 || count > (end_ - next_) / static_cast<int64_t>(sizeof(T))) EndsEarly();
    values.resize(count);
    Raw(values.data(), count * sizeof(T));
  }
  // Makes as many items as the caller will read, of a byte at least.
  template <typename T>
  void Count(std::vector<T>& items) {
    int64_t count = 0;
    Value(count);
    if (count < 0 || count > end_ - next_) EndsEarly();
    items.resize(count);
  }
  void Raw(void* data, size_t size) {
    if (size > static_cast<size_t>(end_ - next_)) EndsEarly();
    if (size > 0) std::memcpy(data, next_, size);
    next_ += size;
  }

  bool done() const { return next_ == end_; }

 private:
  [[noreturn]] static void EndsEarly() { TVM_FFI_THROW(ValueError) << "The saved state of a sequence ends early."; }

  const char* next_;
  const char* end_;
};

}  // namespace entropy_mlc
