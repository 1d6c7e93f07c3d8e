// The tables and workspaces of a sparse prefill in one step: built when the step's function asks for them (decode
// functions do not), taken back into the sequences at the end of the step.
#pragma once
#include <algorithm>
#include <limits>
#include <memory>
#include <vector>

#include "gate_plan.h"
#include "page_store.h"
#include "table_block.h"

namespace entropy_mlc {

class GateStep {
 public:
  // A row and head of a gates table: entropy (-1: nothing observed yet), budget of the recurrence in tokens,
  // blocks to keep, whether the head is rigid.
  static constexpr int64_t kGateColumns = 4;

  GateStep(const CacheConfig& config, const Policy& policy, const Device* device)
      : num_layers_(config.num_layers),
        heads_(config.num_key_value_heads),
        inputs_(device),
        gates_(device),
        scores_(device),
        block_counts_(device),
        block_lists_(device),
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
    if (gates.tensors.empty()) gates.tensors = {store.representatives(layer), gates.table.tensor, gates.parameters};
    return gates.tensors;
  }

  // Moves what the step observed into its sequences, if it had tables.
  void End(const std::vector<BatchEntry>& batch) {
    if (tables_.empty()) return;
    if (!segments_.empty()) gates_.Download();
    for (const BatchEntry& entry : batch) entry.sequence->gate.represented = entry.sequence->length;
    int64_t row_size = heads_ * kGateColumns;
    for (size_t i = 0; i < segments_.size(); ++i) {
      auto values = std::make_shared<std::vector<float>>();
      values->reserve(layers_.size() * row_size);
      for (const LayerGates& layer : layers_) {
        const float* row = layer.table.numbers + (batch.size() + i) * row_size;
        values->insert(values->end(), row, row + row_size);
      }
      batch[segments_[i].sequence].sequence->gate.records.push_back({segments_[i].index, std::move(values)});
    }
  }

 private:
  // Of a layer from layer_skip on.
  struct LayerGates {
    Tensor parameters;           // [8]
    Table<float> table;          // [B + number of segments, G, kGateColumns]
    ffi::Array<Tensor> tensors;  // answer of Layer(), empty until asked for in this step
  };

  void Build(const std::vector<BatchEntry>& batch, const Policy& policy, bool is_tree) {
    segments_ = PlanSegments(batch, policy, is_tree);
    std::vector<GatedTile> tiles = PlanGatedTiles(batch, policy, segments_);
    auto room = TableBlock::Room;
    inputs_.Begin(room(5 * segments_.size()) + room(4 * tiles.size()) + room(2 * batch.size()) +
                  layers_.size() * room(8));
    gates_.Begin(layers_.size() * room((batch.size() + segments_.size()) * heads_ * kGateColumns));
    Tensor segments = FillSegments(), tile_table = FillTiles(tiles);
    Tensor block_ranges = FillBlockRanges(batch, policy.block_size);
    for (size_t layer = 0; layer < layers_.size(); ++layer) {
      double budget = policy.LayerBudget(policy.layer_skip + layer, num_layers_);
      layers_[layer] = {FillParameters(policy, budget), FillGates(batch, layer, budget), ffi::Array<Tensor>()};
    }
    inputs_.Upload();
    gates_.Upload();
    // Last: as long as it is empty, the step has no tables.
    tables_ = AddWorkspaces({segments, tile_table, block_ranges}, policy.segment_size / policy.block_size);
  }

  Tensor FillSegments() {
    Table<int32_t> table = inputs_.Add<int32_t>({static_cast<int64_t>(segments_.size()), 5});
    int32_t* out = table.numbers;
    for (const GateSegment& s : segments_) {
      for (int32_t value : {s.sequence, s.first_row, s.index, s.previous_row, s.gated}) *out++ = value;
    }
    return table.tensor;
  }

  Tensor FillTiles(const std::vector<GatedTile>& tiles) {
    Table<int32_t> table = inputs_.Add<int32_t>({static_cast<int64_t>(tiles.size()), 4});
    int32_t* out = table.numbers;
    for (const GatedTile& t : tiles) {
      for (int32_t value : {t.sequence, t.first_row, t.num_rows, t.segment}) *out++ = value;
    }
    return table.tensor;
  }

  // A block that was partly filled is computed again; blocks of compressed sequences are never read.
  Tensor FillBlockRanges(const std::vector<BatchEntry>& batch, int64_t block_size) {
    Table<int32_t> table = inputs_.Add<int32_t>({static_cast<int64_t>(batch.size()), 2});
    int32_t* out = table.numbers;
    for (const BatchEntry& entry : batch) {
      const Sequence& sequence = *entry.sequence;
      bool compressed = sequence.compressed();
      *out++ = compressed ? 0 : static_cast<int32_t>(sequence.gate.represented / block_size);
      *out++ = compressed ? 0 : static_cast<int32_t>(CeilDiv(sequence.length, block_size));
    }
    return table.tensor;
  }

  Tensor FillParameters(const Policy& policy, double budget) {
    const double values[8] = {budget,
                              policy.entropy_threshold,
                              policy.delta_t,
                              policy.alpha,
                              policy.max_budget_factor,
                              static_cast<double>(policy.keep_first / policy.block_size),
                              static_cast<double>(policy.keep_recent / policy.block_size),
                              0};
    Table<float> table = inputs_.Add<float>({8});
    for (int i = 0; i < 8; ++i) table.numbers[i] = static_cast<float>(values[i]);
    return table.tensor;
  }

  // Scores, counts and lists are not filled: the kernels of a layer write them before they read them.
  ffi::Array<Tensor> AddWorkspaces(ffi::Array<Tensor> tables, int64_t blocks_per_segment) {
    int64_t count = static_cast<int64_t>(segments_.size()), max_blocks = 1;
    for (const GateSegment& s : segments_) max_blocks = std::max(max_blocks, s.index * blocks_per_segment);
    DLDataType integer{kDLInt, 32, 1};
    tables.push_back(scores_.Get({count, heads_, max_blocks}, DLDataType{kDLFloat, 32, 1}));
    tables.push_back(block_counts_.Get({count, heads_}, integer));
    tables.push_back(block_lists_.Get({count, heads_, max_blocks}, integer));
    return tables;
  }

  // The state of each sequence, then rows for the observations, NaN until a kernel writes them.
  Table<float> FillGates(const std::vector<BatchEntry>& batch, size_t layer, double budget) {
    int64_t rows = static_cast<int64_t>(batch.size() + segments_.size()), row_size = heads_ * kGateColumns;
    Table<float> table = gates_.Add<float>({rows, heads_, kGateColumns});
    float* out = table.numbers;
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
    return table;
  }

  int64_t num_layers_, heads_;
  std::vector<GateSegment> segments_;
  TableBlock inputs_, gates_;
  Workspace scores_, block_counts_, block_lists_;
  std::vector<LayerGates> layers_;
  ffi::Array<Tensor> tables_;  // answer of Tables(), empty until asked for in this step
};

// All that was observed of a sequence of `length` tokens: float32 [num_layers, segments, G, 4], NaN where nothing was.
inline Tensor ReadGates(const GateHistory& history, int64_t length, const CacheConfig& config, const Policy& policy) {
  int64_t segments = CeilDiv(length, policy.segment_size);
  int64_t row_size = config.num_key_value_heads * GateStep::kGateColumns;
  Tensor table = HostTensor({config.num_layers, segments, config.num_key_value_heads, GateStep::kGateColumns},
                            DLDataType{kDLFloat, 32, 1});
  float* rows = static_cast<float*>(table.data_ptr());
  std::fill_n(rows, config.num_layers * segments * row_size, std::numeric_limits<float>::quiet_NaN());
  for (const GateRecord& record : history.records) {
    for (int64_t layer = policy.layer_skip; layer < config.num_layers; ++layer) {
      const float* row = record.values->data() + (layer - policy.layer_skip) * row_size;
      std::copy_n(row, row_size, rows + (layer * segments + record.segment) * row_size);
    }
  }
  return table;
}

}  // namespace entropy_mlc
