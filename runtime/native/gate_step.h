// The tables and workspaces of a sparse prefill in one step: built when the step's function asks for them (decode
// functions do not), taken back into the sequences at the end of the step.
#pragma once
#include <algorithm>
#include <limits>
#include <memory>
#include <vector>

#include "gate_plan.h"
#include "page_store.h"
#include "step_table.h"

namespace entropy_mlc {

class GateStep {
 public:
  // A row and head of a gates table: entropy (-1: nothing observed yet), budget of the recurrence in tokens,
  // blocks to keep, whether the head is rigid.
  static constexpr int64_t kGateColumns = 4;

  GateStep(const CacheConfig& config, const Policy& policy)
      : num_layers_(config.num_layers),
        heads_(config.num_key_value_heads),
        layers_(std::max<int64_t>(config.num_layers - policy.layer_skip, 0)) {}

  // Forgets the tables of the last step.
  void Begin() { tables_ = ffi::Array<Tensor>(); }

  // (segments, gated_tiles, block_ranges, scores, block_counts, block_lists); the lengths of the batch cover the new
  // tokens.
  const ffi::Array<Tensor>& Tables(const std::vector<BatchEntry>& batch, const Policy& policy, bool is_tree) {
    if (!policy.gates()) Unsupported("a sparse prefill: it was compiled for a dense one");
    if (tables_.empty()) Build(batch, policy, is_tree);
    return tables_;
  }

  // (representatives, gates, parameters) of a layer, once Tables() was called.
  const ffi::Array<Tensor>& Layer(int64_t layer, const Policy& policy, const PageStore& store) {
    if (layer < policy.layer_skip) {
      TVM_FFI_THROW(ValueError) << "Layer " << layer << " is dense: the prefill policy skips " << policy.layer_skip
                                << " layers.";
    }
    LayerGates& gates = layers_[layer - policy.layer_skip];
    if (gates.tensors.empty()) {
      gates.tensors = {store.representatives(layer), gates.table.tensor(), gates.parameters.tensor()};
    }
    return gates.tensors;
  }

  // Moves what the step observed into its sequences, if it had tables.
  void End(const std::vector<BatchEntry>& batch) {
    if (tables_.empty()) return;
    for (const BatchEntry& entry : batch) entry.sequence->gate.represented = entry.sequence->length;
    int64_t row_size = heads_ * kGateColumns;
    for (size_t i = 0; i < segments_.size(); ++i) {
      auto values = std::make_shared<std::vector<float>>();
      values->reserve(layers_.size() * row_size);
      for (LayerGates& layer : layers_) {
        const float* row = layer.table.data() + (batch.size() + i) * row_size;
        values->insert(values->end(), row, row + row_size);
      }
      batch[segments_[i].sequence].sequence->gate.records.push_back({segments_[i].index, std::move(values)});
    }
  }

 private:
  // Of a layer from layer_skip on.
  struct LayerGates {
    FloatTable parameters;       // [8]
    FloatTable table;            // [B + number of segments, G, kGateColumns]
    ffi::Array<Tensor> tensors;  // answer of Layer(), empty until asked for in this step
  };

  void Build(const std::vector<BatchEntry>& batch, const Policy& policy, bool is_tree) {
    segments_ = PlanSegments(batch, policy, is_tree);
    FillSegments();
    FillTiles(PlanGatedTiles(batch, policy, segments_));
    FillBlockRanges(batch, policy.block_size);
    ReserveWorkspaces(policy.segment_size / policy.block_size);
    for (size_t layer = 0; layer < layers_.size(); ++layer) {
      double budget = policy.LayerBudget(policy.layer_skip + layer, num_layers_);
      FillParameters(policy, budget, &layers_[layer].parameters);
      FillGates(batch, layer, budget);
    }
    // Last: as long as it is empty, the step has no tables.
    tables_ = {segment_table_.tensor(), tiles_.tensor(),        block_ranges_.tensor(),
               scores_.tensor(),        block_counts_.tensor(), block_lists_.tensor()};
  }

  void FillSegments() {
    int64_t count = static_cast<int64_t>(segments_.size());
    segment_table_.Reserve(5 * count);
    int32_t* out = segment_table_.data();
    for (const GateSegment& s : segments_) {
      for (int32_t value : {s.sequence, s.first_row, s.index, s.previous_row, s.gated}) *out++ = value;
    }
    segment_table_.Publish({count, 5});
  }

  void FillTiles(const std::vector<GatedTile>& tiles) {
    int64_t count = static_cast<int64_t>(tiles.size());
    tiles_.Reserve(4 * count);
    int32_t* out = tiles_.data();
    for (const GatedTile& t : tiles) {
      for (int32_t value : {t.sequence, t.first_row, t.num_rows, t.segment}) *out++ = value;
    }
    tiles_.Publish({count, 4});
  }

  // A block that was partly filled is computed again; blocks of compressed sequences are never read.
  void FillBlockRanges(const std::vector<BatchEntry>& batch, int64_t block_size) {
    int64_t count = static_cast<int64_t>(batch.size());
    block_ranges_.Reserve(2 * count);
    int32_t* out = block_ranges_.data();
    for (const BatchEntry& entry : batch) {
      const Sequence& sequence = *entry.sequence;
      bool compressed = sequence.compressed();
      *out++ = compressed ? 0 : static_cast<int32_t>(sequence.gate.represented / block_size);
      *out++ = compressed ? 0 : static_cast<int32_t>(CeilDiv(sequence.length, block_size));
    }
    block_ranges_.Publish({count, 2});
  }

  static void FillParameters(const Policy& policy, double budget, FloatTable* parameters) {
    const double values[8] = {budget,
                              policy.entropy_threshold,
                              policy.delta_t,
                              policy.alpha,
                              policy.max_budget_factor,
                              static_cast<double>(policy.keep_first / policy.block_size),
                              static_cast<double>(policy.keep_recent / policy.block_size),
                              0};
    parameters->Reserve(8);
    for (int i = 0; i < 8; ++i) parameters->data()[i] = static_cast<float>(values[i]);
    parameters->Publish({8});
  }

  // Not filled: the kernels of a layer write them before they read them.
  void ReserveWorkspaces(int64_t blocks_per_segment) {
    int64_t count = static_cast<int64_t>(segments_.size()), max_blocks = 1;
    for (const GateSegment& s : segments_) max_blocks = std::max(max_blocks, s.index * blocks_per_segment);
    scores_.Reserve(count * heads_ * max_blocks);
    block_lists_.Reserve(count * heads_ * max_blocks);
    block_counts_.Reserve(count * heads_);
    scores_.Publish({count, heads_, max_blocks});
    block_lists_.Publish({count, heads_, max_blocks});
    block_counts_.Publish({count, heads_});
  }

  // The state of each sequence, then rows for the observations, NaN until a kernel writes them.
  void FillGates(const std::vector<BatchEntry>& batch, size_t layer, double budget) {
    int64_t rows = static_cast<int64_t>(batch.size() + segments_.size()), row_size = heads_ * kGateColumns;
    FloatTable& table = layers_[layer].table;
    table.Reserve(rows * row_size);
    float* out = table.data();
    for (const BatchEntry& entry : batch) {
      const std::vector<GateRecord>& records = entry.sequence->gate.records;
      if (records.empty()) {
        for (int64_t head = 0; head < heads_; ++head) {
          for (float value : {-1.0f, static_cast<float>(budget), 0.0f, 1.0f}) *out++ = value;
        }
      } else {
        out = std::copy_n(records.back().values->data() + layer * row_size, row_size, out);
      }
    }
    std::fill_n(out, segments_.size() * row_size, std::numeric_limits<float>::quiet_NaN());
    table.Publish({rows, heads_, kGateColumns});
    layers_[layer].tensors = ffi::Array<Tensor>();
  }

  int64_t num_layers_, heads_;
  std::vector<GateSegment> segments_;
  StepTable segment_table_, tiles_, block_ranges_, block_counts_, block_lists_;
  FloatTable scores_;
  std::vector<LayerGates> layers_;
  ffi::Array<Tensor> tables_;  // answer of Tables(), empty until asked for in this step
};

// All that was observed of a sequence of `length` tokens: float32 [num_layers, segments, G, 4], NaN where nothing was.
inline Tensor ReadGates(const GateHistory& history, int64_t length, const CacheConfig& config, const Policy& policy) {
  int64_t segments = CeilDiv(length, policy.segment_size);
  int64_t row_size = config.num_key_value_heads * GateStep::kGateColumns;
  FloatTable table;
  table.Reserve(config.num_layers * segments * row_size);
  std::fill_n(table.data(), config.num_layers * segments * row_size, std::numeric_limits<float>::quiet_NaN());
  for (const GateRecord& record : history.records) {
    for (int64_t layer = policy.layer_skip; layer < config.num_layers; ++layer) {
      const float* row = record.values->data() + (layer - policy.layer_skip) * row_size;
      std::copy_n(row, row_size, table.data() + (layer * segments + record.segment) * row_size);
    }
  }
  return table.Publish({config.num_layers, segments, config.num_key_value_heads, GateStep::kGateColumns});
}

}  // namespace entropy_mlc
