// The KV cache itself: sequences, pages and the plan of the open step. Every method checks first and changes after, so
// an exception leaves the cache as it was, but for sequences that BeginForward has compressed before it found no room.
#pragma once
#include <utility>
#include <vector>

#include "capacity.h"
#include "compression_schedule.h"
#include "entry_layout.h"
#include "gate_step.h"
#include "inspection.h"
#include "page_pool.h"
#include "page_store.h"
#include "policy.h"
#include "sequence_transfer.h"
#include "sequence_table.h"
#include "step_plan.h"
#include "step_request.h"

namespace entropy_mlc {

class KVCache {
 public:
  KVCache(const CacheConfig& config, const Policy& policy, DLDevice device)
      : config_(config),
        policy_(policy),
        device_(device),
        store_(config, policy, NumPages(config), &device_),
        pages_(static_cast<int32_t>(NumPages(config))),
        layout_(config, &store_, &pages_),
        window_(config, policy, &device_),
        compressor_(config, &store_, &pages_, &layout_, &window_, &device_),
        schedule_(&pages_, &layout_, &compressor_),
        plan_(config, &device_),
        gate_(config, policy, &device_),
        layers_(config.num_layers),
        windows_(config.num_layers) {}

  KVCache(const KVCache&) = delete;
  KVCache& operator=(const KVCache&) = delete;

  void Clear() {
    sequences_.Clear();
    pages_.Clear();
    window_.Clear();
    step_is_open_ = false;
  }

  // Other run-time values for the steps to come; text as Policy::Parse takes it.
  void Configure(const ffi::String& text) {
    RequireNoOpenStep("kv_cache_configure");
    policy_ = policy_.Changed(text);
  }

  void AddSequence(int64_t id) {
    sequences_.RequireAbsent(id);
    Sequence sequence;
    window_.Open(&sequence);
    sequences_.Add(id, std::move(sequence));
  }

  void RemoveSequence(int64_t id) {
    RequireNoOpenStep("RemoveSequence");
    Sequence& sequence = sequences_.Find(id);
    layout_.Release(&sequence);
    window_.Close(sequence);
    sequences_.Remove(id);
  }

  // The child gets the first `position` tokens of the parent (-1: all). Pages are shared; a shared last page is copied
  // when either side is about to write into it.
  void ForkSequence(int64_t parent_id, int64_t child_id, int64_t position) {
    RequireNoOpenStep("ForkSequence");
    const Sequence& parent = sequences_.Find(parent_id);
    sequences_.RequireAbsent(child_id);
    if (parent.uncommitted > 0) {
      TVM_FFI_THROW(RuntimeError) << "Cannot fork sequence " << parent_id << ": its token tree is not committed; call "
                                  << "CommitAcceptedTokenTreeNodes first.";
    }
    if (position < -1 || position > parent.length) {
      TVM_FFI_THROW(ValueError) << "Cannot fork sequence " << parent_id << " at position " << position << ": it has "
                                << parent.length << " tokens.";
    }
    int64_t length = position == -1 ? parent.length : position;
    RequireExact(parent, parent_id, length);
    Sequence child;
    layout_.Share(parent, length, &child);
    window_.Open(&child);
    window_.Fork(parent, &child);
    child.gate = parent.gate;
    child.gate.Truncate(child.length, policy_.segment_size);
    sequences_.Add(child_id, std::move(child));
  }

  void PopN(int64_t id, int64_t n) {
    RequireNoOpenStep("PopN");
    Sequence& sequence = sequences_.Find(id);
    if (n < 0 || n > sequence.length) {
      TVM_FFI_THROW(ValueError) << "Cannot pop " << n << " tokens of sequence " << id << ": it has "
                                << sequence.length << ".";
    }
    RequireExact(sequence, id, sequence.length - n);
    Truncate(sequence, sequence.length - n);
  }

  // Makes room for append_lengths[i] new tokens of each sequence and plans the step.
  void BeginForward(const ffi::Shape& ids, const ffi::Shape& append_lengths, const ffi::Optional<ffi::Shape>& tree) {
    RequireNoOpenStep("BeginForward");
    std::vector<BatchEntry> batch = CheckStep(ids, append_lengths, tree, config_, &sequences_);
    schedule_.BeforeStep(policy_, batch, tree.has_value(), &sequences_);
    int64_t tokens = 0, new_pages = schedule_.NewPages(batch);
    for (const BatchEntry& entry : batch) tokens += entry.new_tokens;
    if (new_pages > pages_.num_free()) {
      TVM_FFI_THROW(RuntimeError) << "The KV cache is full: " << pages_.num_used() << " of " << pages_.num_pages()
                                  << " pages of " << config_.page << " entries are in use and this step of " << tokens
                                  << " tokens needs " << new_pages << " more; remove sequences or create the cache "
                                  << "with a larger max_total_seq_length.";
    }
    plan_.Reserve(batch);

    for (const BatchEntry& entry : batch) Append(*entry.sequence, entry.new_tokens, tree.has_value());
    plan_.Fill(batch, window_);
    for (auto* answers : {&layers_, &windows_}) {
      for (ffi::Array<Tensor>& answer : *answers) answer = ffi::Array<Tensor>();
    }
    gate_.Begin();
    batch_ = std::move(batch);
    step_is_tree_ = tree.has_value();
    step_is_open_ = true;
  }

  void EndForward() {
    RequireOpenStep("EndForward");
    gate_.End(batch_);
    step_is_open_ = false;
    // A step of a whole prefill chunk is part of a longer prompt: an engine that asks for free pages first must find
    // room for the next one. No other step makes room early, since what it drops may never have been in the way.
    int64_t tokens = 0;
    for (const BatchEntry& entry : batch_) tokens += entry.new_tokens;
    if (tokens < config_.prefill_chunk) return;
    schedule_.AfterStep(policy_, &sequences_, [this] {
      return SparePagesFor(config_, config_.prefill_chunk) - SparePages();
    });
  }

  // The engine's verdict on the last token trees, all of them chains: tokens 0 .. leaf are accepted (-1: none), the
  // rest is popped.
  void CommitAcceptedTokenTreeNodes(const ffi::Shape& ids, const ffi::Shape& leaf_indices) {
    RequireNoOpenStep("CommitAcceptedTokenTreeNodes");
    CheckCommit(ids, leaf_indices, sequences_);
    for (size_t i = 0; i < ids.size(); ++i) {
      Sequence& sequence = sequences_.Find(ids[i]);
      Truncate(sequence, sequence.length - (sequence.uncommitted - 1 - leaf_indices[i]));
      sequence.uncommitted = 0;
    }
  }

  void EnableSlidingWindowForSeq(int64_t id) { sequences_.Find(id).may_shrink = true; }

  bool Empty() const { return sequences_.empty(); }

  int32_t GetNumAvailablePages() const { return AvailableEnginePages(config_, SparePages()); }

  int32_t GetTotalSequenceLength() const {
    int64_t total = 0;
    for (const auto& item : sequences_) total += item.second.max_entries();
    return static_cast<int32_t>(total);
  }

  int32_t GetSequenceLength(int64_t id) const {
    return static_cast<int32_t>(sequences_.Find(id).length);
  }

  Tensor GetQueryPositions() const {
    RequireOpenStep("GetQueryPositions");
    return plan_.positions();
  }

  // (positions, query_indptr, tiles) of the open step.
  const ffi::Array<Tensor>& Step() const {
    RequireOpenStep("kv_cache_step");
    return plan_.step();
  }

  // (k_pages, v_pages, append_slots, page_indptr, page_indices, kv_lengths) of a layer in the open step.
  const ffi::Array<Tensor>& Layer(int64_t layer) {
    RequireOpenStep("kv_cache_layer");
    RequireLayer(layer);
    ffi::Array<Tensor>& tensors = layers_[layer];
    if (tensors.empty()) {
      const LayerTables& t = plan_.layer(layer);
      tensors = {store_.k(layer), store_.v(layer), t.append_slots, t.page_indptr, t.page_indices, t.kv_lengths};
    }
    return tensors;
  }

  // (segments, gated_tiles, block_ranges, scores, block_counts, block_lists) of the open step.
  const ffi::Array<Tensor>& Gate() {
    RequireOpenStep("kv_cache_gate");
    return gate_.Tables(batch_, policy_, step_is_tree_);
  }

  // (representatives, gates, parameters) of a layer that is not skipped, in the open step.
  const ffi::Array<Tensor>& LayerGate(int64_t layer) {
    Gate();
    RequireLayer(layer);
    return gate_.Layer(layer, policy_, store_);
  }

  // (query_slots int32 [n], observed) of a layer in the open step: where rope_append stores the newest queries.
  const ffi::Array<Tensor>& Window(int64_t layer) {
    RequireOpenStep("kv_cache_window");
    RequireLayer(layer);
    if (!policy_.can_compress) Unsupported("a query window: it was compiled for a full decode");
    ffi::Array<Tensor>& tensors = windows_[layer];
    if (tensors.empty()) tensors = {plan_.query_slots(), window_.observed(layer)};
    return tensors;
  }

  // The tokens whose entries a KV head of a layer holds, int32 [entries].
  Tensor Positions(int64_t id, int64_t layer, int64_t head) const {
    const Sequence& sequence = sequences_.Find(id);
    RequireLayer(layer);
    return ReadPositions(sequence, layer, head, config_);
  }

  int64_t ExactFrom(int64_t id) const { return sequences_.Find(id).exact_from; }

  // What the prefill observed of a sequence, float32 [num_layers, segments, G, 4], NaN where nothing.
  Tensor Gates(int64_t id) const {
    const Sequence& sequence = sequences_.Find(id);
    return ReadGates(sequence.gate, sequence.length, config_, policy_);
  }

  // Sequences to and from other caches, until the next step.
  SequenceTransfer Transfer() {
    RequireNoOpenStep("A transfer of a sequence");
    return {config_, policy_, &store_, &pages_, &layout_, &window_, &sequences_};
  }

  // Copies the entries of tokens [begin, end) of a sequence, see ReadTokens.
  void DebugGetKV(int64_t id, int64_t begin, int64_t end, const Tensor& k, const Tensor& v) const {
    ReadTokens(sequences_.Find(id), id, begin, end, store_, config_, k, v);
  }

 private:
  void RequireNoOpenStep(const char* method) const {
    if (step_is_open_) {
      TVM_FFI_THROW(RuntimeError) << method << " was called between BeginForward and EndForward; end the step first.";
    }
  }
  void RequireOpenStep(const char* method) const {
    if (!step_is_open_) TVM_FFI_THROW(RuntimeError) << method << " needs an open step; call BeginForward first.";
  }
  void RequireLayer(int64_t layer) const {
    if (layer < 0 || layer >= config_.num_layers) {
      TVM_FFI_THROW(ValueError) << "The KV cache has " << config_.num_layers << " layers and no layer " << layer << ".";
    }
  }

  // Free pages, less one for each sequence whose shared last page needs a copy first.
  int64_t SparePages() const {
    int64_t copies = 0;
    for (const auto& item : sequences_) copies += layout_.NeedsCopy(item.second);
    return pages_.num_free() - copies;
  }

  // The caller has checked that there are pages enough.
  void Append(Sequence& sequence, int64_t tokens, bool as_tree) {
    layout_.Append(tokens, &sequence);
    window_.Append(tokens, &sequence);
    if (as_tree) sequence.uncommitted += tokens;
  }

  void Truncate(Sequence& sequence, int64_t length) {
    sequence.uncommitted = std::max<int64_t>(0, sequence.uncommitted - (sequence.length - length));
    sequence.gate.Truncate(length, policy_.segment_size);
    window_.Truncate(sequence.length - length, &sequence);
    layout_.Truncate(length, &sequence);
  }

  CacheConfig config_;
  Policy policy_;
  Device device_;
  PageStore store_;
  PagePool pages_;
  EntryLayout layout_;
  QueryWindow window_;
  Compressor compressor_;
  CompressionSchedule schedule_;
  SequenceTable sequences_;
  StepPlan plan_;
  GateStep gate_;
  std::vector<ffi::Array<Tensor>> layers_, windows_;  // answers of Layer() and Window(), empty until asked for
  std::vector<BatchEntry> batch_;                     // of the open step
  bool step_is_tree_ = false;
  bool step_is_open_ = false;
};

}  // namespace entropy_mlc
