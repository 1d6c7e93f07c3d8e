// The sequences that are alive, by the engine's ids.
#pragma once
#include <unordered_map>
#include <unordered_set>
#include <utility>

#include "sequence.h"

namespace entropy_mlc {

class SequenceTable {
 public:
  const Sequence& Find(int64_t id) const {
    auto it = sequences_.find(id);
    if (it == sequences_.end()) TVM_FFI_THROW(ValueError) << "Sequence " << id << " is not in the KV cache.";
    return it->second;
  }
  Sequence& Find(int64_t id) { return const_cast<Sequence&>(std::as_const(*this).Find(id)); }

  void RequireAbsent(int64_t id) const {
    if (sequences_.count(id)) TVM_FFI_THROW(ValueError) << "Sequence " << id << " is already in the KV cache.";
  }
  static void RequireDistinct(const ffi::Shape& ids) {
    std::unordered_set<int64_t> seen;
    for (int64_t id : ids) {
      if (!seen.insert(id).second) TVM_FFI_THROW(ValueError) << "Sequence " << id << " is given twice.";
    }
  }

  void Add(int64_t id, Sequence sequence) { sequences_.emplace(id, std::move(sequence)); }
  void Remove(int64_t id) { sequences_.erase(id); }
  void Clear() { sequences_.clear(); }

  bool empty() const { return sequences_.empty(); }
  auto begin() { return sequences_.begin(); }
  auto end() { return sequences_.end(); }
  auto begin() const { return sequences_.begin(); }
  auto end() const { return sequences_.end(); }

 private:
  std::unordered_map<int64_t, Sequence> sequences_;
};

}  // namespace entropy_mlc
