// Takes a sequence out of a cache and into another one of the same layout, in another process perhaps: what is known of
// it as one string of bytes, and the contents of its head pages in pieces, so that no second copy of them is needed.
//
// Not taken along are page ids, which the other cache chooses, and block representatives, which the next step that
// needs them computes from the keys again. A sequence that goes on in the other cache gives the same bits.
#pragma once
#include <algorithm>
#include <memory>
#include <string>
#include <vector>

#include "archive.h"
#include "entry_layout.h"
#include "gate_step.h"
#include "query_window.h"
#include "sequence_table.h"

namespace entropy_mlc {

class SequenceTransfer {
 public:
  SequenceTransfer(const CacheConfig& config, const Policy& policy, PageStore* store, PagePool* pool,
                   EntryLayout* layout, QueryWindow* window, SequenceTable* sequences)
      : config_(config),
        policy_(policy),
        store_(store),
        pool_(pool),
        layout_(layout),
        window_(window),
        sequences_(sequences) {}

  // All of a sequence but the contents of its pages.
  ffi::Bytes Save(int64_t id) const {
    Sequence sequence = sequences_->Find(id);
    if (sequence.uncommitted > 0) {
      TVM_FFI_THROW(RuntimeError) << "Cannot save sequence " << id << ": its token tree is not committed; call "
                                  << "CommitAcceptedTokenTreeNodes first.";
    }
    ArchiveWriter archive;
    archive.Values(Layout());
    Fields(archive, sequence);
    if (sequence.observed > 0) {
      std::vector<char> rows(window_->bytes());
      window_->Read(sequence, rows.data());
      archive.Raw(rows.data(), rows.size());
    }
    return ffi::Bytes(archive.bytes());
  }

  // Makes the empty sequence `id` the saved one, with pages whose contents are still to be written.
  void Restore(int64_t id, const ffi::Bytes& state) {
    Sequence& empty = sequences_->Find(id);
    if (empty.length > 0) TVM_FFI_THROW(ValueError) << "Cannot restore sequence " << id << ": it is not empty.";
    ArchiveReader archive(state.data(), state.size());
    std::vector<int64_t> layout;
    archive.Values(layout);
    Require(layout == Layout(), "is of a cache of another layout");
    Sequence sequence;
    Fields(archive, sequence);
    Check(sequence);
    int64_t needed = layout_->PagesToHold(sequence);
    if (needed > pool_->num_free()) {
      // runtime/saved_sequence.py knows this error by how it begins.
      TVM_FFI_THROW(RuntimeError) << "The KV cache is full: the saved sequence needs " << needed << " pages of "
                                  << config_.page << " entries and " << pool_->num_free() << " of "
                                  << pool_->num_pages() << " are free.";
    }
    sequence.window_slot = empty.window_slot;
    sequence.may_shrink = empty.may_shrink;
    if (sequence.observed > 0 && sequence.window_slot >= 0) {
      std::vector<char> rows(window_->bytes());
      archive.Raw(rows.data(), rows.size());
      window_->Write(rows.data(), sequence);
      Require(archive.done(), "is longer than it should be");
    } else {
      sequence.observed = 0;
    }
    layout_->Allocate(&sequence);
    empty = std::move(sequence);
  }

  // (head pages of the sequence, bytes of each).
  ffi::Shape Extent(int64_t id) const {
    const Sequence& sequence = sequences_->Find(id);
    int64_t count = 0;
    for (int64_t layer = 0; layer < config_.num_layers; ++layer) {
      for (int64_t head = 0; head < config_.num_key_value_heads; ++head) count += HeadPages(sequence, layer, head);
    }
    return ffi::Shape({count, static_cast<int64_t>(store_->head_page_bytes())});
  }

  // Copies the contents of the head pages from number `first` on, as many as fill the uint8 tensor `buffer`, by layer,
  // then head, then entry; from the cache, or to it.
  void ReadPages(int64_t id, int64_t first, const Tensor& buffer) const {
    ForEachHeadPage(id, first, buffer, [&](int64_t layer, int32_t head_page, char* bytes) {
      store_->ReadHeadPage(layer, head_page, bytes);
    });
  }
  void WritePages(int64_t id, int64_t first, const Tensor& buffer) {
    ForEachHeadPage(id, first, buffer, [&](int64_t layer, int32_t head_page, const char* bytes) {
      if (layout_->cells().Shared(head_page)) {
        TVM_FFI_THROW(ValueError) << "Cannot write pages of sequence " << id << ": another sequence reads them too.";
      }
      store_->WriteHeadPage(layer, head_page, bytes);
    });
  }

 private:
  static void Require(bool holds, const char* problem) {
    if (!holds) TVM_FFI_THROW(ValueError) << "The saved state of a sequence " << problem << ".";
  }

  // What two caches must have in common.
  std::vector<int64_t> Layout() const {
    return {config_.num_layers,
            config_.num_attention_heads,
            config_.num_key_value_heads,
            config_.head_dim,
            config_.page,
            static_cast<int64_t>(store_->head_page_bytes()),
            policy_.can_compress ? policy_.window : 0,
            policy_.gates() ? policy_.segment_size : 0,
            policy_.gates() ? policy_.layer_skip : 0};
  }

  template <typename Archive>
  static void Fields(Archive& archive, Sequence& sequence) {
    archive.Value(sequence.length);
    archive.Value(sequence.exact_from);
    archive.Value(sequence.generated);
    archive.Value(sequence.observed);
    archive.Count(sequence.layers);
    for (LayerEntries& layer : sequence.layers) {
      archive.Count(layer.heads);
      for (HeadEntries& head : layer.heads) archive.Values(head.kept);
    }
    archive.Count(sequence.gate.records);
    for (GateRecord& record : sequence.gate.records) {
      archive.Value(record.segment);
      std::vector<float> values = record.values ? *record.values : std::vector<float>();
      archive.Values(values);
      record.values = std::make_shared<const std::vector<float>>(std::move(values));
    }
  }

  // Whoever calls has compared checksums; this keeps a wrong file from writing outside of the cache's memory.
  void Check(const Sequence& s) const {
    Require(s.length >= 0 && s.length <= INT32_MAX && s.exact_from >= 0 && s.exact_from <= s.length &&
                s.generated >= 0 && s.observed >= 0 && s.observed <= std::min(s.length, policy_.window),
            "has impossible lengths");
    Require(s.compressed() ? static_cast<int64_t>(s.layers.size()) == config_.num_layers : s.exact_from == 0,
            "has another number of layers");
    for (const LayerEntries& layer : s.layers) {
      Require(static_cast<int64_t>(layer.heads.size()) == config_.num_key_value_heads, "has another number of heads");
      for (const HeadEntries& head : layer.heads) {
        int64_t next = 0;
        for (int32_t position : head.kept) {
          Require(position >= next && position < s.exact_from, "keeps impossible positions");
          next = position + 1;
        }
      }
    }
    size_t gates = std::max<int64_t>(config_.num_layers - policy_.layer_skip, 0) * config_.num_key_value_heads *
                   GateStep::kGateColumns;
    int64_t next = 1;
    for (const GateRecord& record : s.gate.records) {
      Require(policy_.gates() && record.segment >= next && record.segment < s.length / policy_.segment_size &&
                  record.values->size() == gates,
              "has impossible observations");
      next = record.segment + 1;
    }
  }

  int64_t HeadPages(const Sequence& sequence, int64_t layer, int64_t head) const {
    return CeilDiv(sequence.entries(layer, head), config_.page);
  }

  // Calls visit(layer, head page, its place in the buffer).
  template <typename Visit>
  void ForEachHeadPage(int64_t id, int64_t first, const Tensor& buffer, Visit visit) const {
    const Sequence& sequence = sequences_->Find(id);
    int64_t size = store_->head_page_bytes(), total = Extent(id)[0];
    bool fits = buffer.ndim() == 1 && buffer.IsContiguous() && buffer.device().device_type == kDLCPU &&
                buffer.dtype() == DLDataType{kDLUInt, 8, 1} && buffer.shape()[0] % size == 0 && first >= 0 &&
                first <= total && buffer.shape()[0] / size <= total - first;
    if (!fits) {
      TVM_FFI_THROW(ValueError) << "Contents of head pages must be a compact uint8 CPU tensor of a multiple of " << size
                                << " bytes, for head pages within the " << total << " of sequence " << id << ".";
    }
    char* bytes = static_cast<char*>(buffer.data_ptr()) + buffer.byte_offset();
    int64_t skip = first, left = buffer.shape()[0] / size;
    for (int64_t layer = 0; layer < config_.num_layers && left > 0; ++layer) {
      for (int64_t head = 0; head < config_.num_key_value_heads && left > 0; ++head) {
        int64_t count = HeadPages(sequence, layer, head), begin = std::min(skip, count);
        skip -= begin;
        for (int64_t i = begin; i < count && left > 0; ++i, --left, bytes += size) {
          visit(layer, sequence.head_page(layer, head, i, config_.num_key_value_heads), bytes);
        }
      }
    }
  }

  const CacheConfig& config_;
  const Policy& policy_;
  PageStore* store_;
  PagePool* pool_;
  EntryLayout* layout_;
  QueryWindow* window_;
  SequenceTable* sequences_;
};

}  // namespace entropy_mlc
