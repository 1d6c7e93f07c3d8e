// The sparsity policy that a cache carries out: which blocks a prefill observes and chooses, how decode compresses.
// runtime/policy.py owns the meanings and the defaults of a model; here is what its text form may hold.
#pragma once
#include <algorithm>
#include <initializer_list>
#include <locale>
#include <sstream>
#include <string>
#include <unordered_set>
#include <vector>

#include "ffi.h"

namespace entropy_mlc {

struct Policy {
  // Fixed when the library is compiled: kernels and pools depend on them.
  std::string prefill = "dense";   // dense, entropy, critiprefill
  int64_t segment_size = 512;      // tokens, a multiple of 64
  int64_t block_size = 8;          // entries, divides 64
  int64_t layer_skip = 1;          // first layers that stay dense
  int64_t window = 32;             // newest queries that are kept to score entries
  std::string kv_dtype = "model";  // model, int8

  // May change at run time.
  int64_t threshold_len = 4096;     // segments that start below this position stay dense
  int64_t base_budget = 2048;       // tokens that a gated segment reads at least, beside itself
  std::string layer_budgets = "1";  // factors of base_budget, stretched over the layers
  double entropy_threshold = 1e-5;
  double delta_t = 0.4;
  double alpha = 0.5;
  double max_budget_factor = 3.0;   // times base_budget
  int64_t keep_first = 0;           // tokens that are always chosen
  int64_t keep_recent = 0;          // tokens before the segment that are always chosen
  std::string decode = "full";      // full, latent, snapkv, adakv, streaming
  int64_t capacity = 1024;          // entries of a KV head after compression
  int64_t decode_gap = 16;          // generated tokens before the first compression; -1: at the end of the prompt
  std::string pooling = "average";  // average, max
  int64_t pooling_kernel = 5;
  double adaptive_alpha = 0.2;
  int64_t sinks = 4;
  int64_t slack = 256;                   // entries above capacity before a sequence is compressed again
  std::string compress_when = "always";  // always, pressure

  // Whether the library was compiled with another decode than "full": only then are there kernels that compress.
  bool can_compress = false;

  bool gates() const { return prefill != "dense"; }
  // The least that a gated segment of a layer reads beside itself: what is always chosen, at least.
  double LayerBudget(int64_t layer, int64_t num_layers) const {
    std::vector<double> factors = Factors();
    double budget = factors[layer * factors.size() / num_layers] * base_budget;
    return std::max(budget, static_cast<double>(std::max(block_size, keep_first + keep_recent)));
  }
  // Newest entries that compression never drops: the window's own, and enough for an engine's short pops.
  int64_t tail() const { return std::max<int64_t>(window, 64); }

  // text: "key=value;key=value". Keys that are missing keep their defaults.
  static Policy Parse(const ffi::String& text) {
    Policy policy;
    policy.Assign(text);
    policy.Check();
    policy.can_compress = policy.decode != "full";
    return policy;
  }

  // This policy with other run-time values; a compile-time key may be given with the value it has.
  Policy Changed(const ffi::String& text) const {
    Policy changed = *this;
    changed.Assign(text);
    changed.Check();
    changed.RequireSame("prefill", changed.prefill, prefill);
    changed.RequireSame("segment_size", changed.segment_size, segment_size);
    changed.RequireSame("block_size", changed.block_size, block_size);
    changed.RequireSame("layer_skip", changed.layer_skip, layer_skip);
    changed.RequireSame("window", changed.window, window);
    changed.RequireSame("kv_dtype", changed.kv_dtype, kv_dtype);
    if (!can_compress) RequireSame("decode", changed.decode, decode);
    return changed;
  }

 private:
  // Calls visit(key, field) for every field until one call returns true; whether one did.
  template <typename Visit>
  bool AnyField(Visit visit) {
    return visit("prefill", prefill) || visit("segment_size", segment_size) || visit("block_size", block_size) ||
           visit("layer_skip", layer_skip) || visit("window", window) || visit("kv_dtype", kv_dtype) ||
           visit("threshold_len", threshold_len) || visit("base_budget", base_budget) ||
           visit("layer_budgets", layer_budgets) || visit("entropy_threshold", entropy_threshold) ||
           visit("delta_t", delta_t) || visit("alpha", alpha) || visit("max_budget_factor", max_budget_factor) ||
           visit("keep_first", keep_first) || visit("keep_recent", keep_recent) || visit("decode", decode) ||
           visit("capacity", capacity) || visit("decode_gap", decode_gap) || visit("pooling", pooling) ||
           visit("pooling_kernel", pooling_kernel) || visit("adaptive_alpha", adaptive_alpha) ||
           visit("sinks", sinks) || visit("slack", slack) || visit("compress_when", compress_when);
  }

  // The value must take up all of `text`. Not strtod: a host program may have set a locale with decimal commas.
  template <typename T>
  static void ParseValue(const std::string& key, const std::string& text, T* value) {
    std::istringstream stream(text);
    stream.imbue(std::locale::classic());
    stream >> std::noskipws >> *value;
    if (stream.fail() || stream.peek() != std::istringstream::traits_type::eof()) {
      TVM_FFI_THROW(ValueError) << "KV cache policy: " << key << " cannot be '" << text << "'.";
    }
  }

  // The numbers of layer_budgets.
  std::vector<double> Factors() const {
    std::vector<double> factors;
    std::istringstream items(layer_budgets);
    for (std::string item; std::getline(items, item, ',');) ParseValue("layer_budgets", item, &factors.emplace_back());
    return factors;
  }

  void Assign(const std::string& text) {
    std::istringstream items(text);
    std::unordered_set<std::string> seen;
    for (std::string item; std::getline(items, item, ';');) {
      size_t equals = item.find('=');
      if (equals == std::string::npos) {
        TVM_FFI_THROW(ValueError) << "KV cache policy: '" << item << "' is not of the form key=value.";
      }
      std::string key = item.substr(0, equals), value = item.substr(equals + 1);
      if (!seen.insert(key).second) TVM_FFI_THROW(ValueError) << "KV cache policy: " << key << " is given twice.";
      bool known = AnyField([&](const char* name, auto& field) {
        if (key != name) return false;
        ParseValue(key, value, &field);
        return true;
      });
      if (!known) TVM_FFI_THROW(ValueError) << "KV cache policy: there is no key '" << key << "'.";
    }
  }

  static void Require(bool holds, const char* rule) {
    if (!holds) TVM_FFI_THROW(ValueError) << "KV cache policy: " << rule << ".";
  }

  void Check() const {
    auto one_of = [](const std::string& name, std::initializer_list<const char*> names) {
      return std::find(names.begin(), names.end(), name) != names.end();
    };
    Require(one_of(prefill, {"dense", "entropy", "critiprefill"}), "prefill must be dense, entropy or critiprefill");
    Require(one_of(decode, {"full", "latent", "snapkv", "adakv", "streaming"}),
            "decode must be full, latent, snapkv, adakv or streaming");
    Require(one_of(kv_dtype, {"model", "int8"}), "kv_dtype must be model or int8");
    Require(one_of(pooling, {"average", "max"}), "pooling must be average or max");
    Require(one_of(compress_when, {"always", "pressure"}), "compress_when must be always or pressure");
    Require(segment_size > 0 && segment_size % 64 == 0 && segment_size <= INT32_MAX,
            "segment_size must be a positive multiple of 64");
    Require(block_size > 0 && 64 % block_size == 0, "block_size must divide 64");
    Require(layer_skip >= 0 && threshold_len >= 0, "layer_skip and threshold_len must not be negative");
    Require(base_budget >= block_size, "base_budget must be at least block_size");
    std::vector<double> factors = Factors();
    Require(!factors.empty() && *std::min_element(factors.begin(), factors.end()) > 0,
            "layer_budgets must be positive numbers with commas between them");
    Require(max_budget_factor >= 1, "max_budget_factor must be at least 1");
    Require(entropy_threshold >= 0 && delta_t >= 0 && alpha >= 0,
            "entropy_threshold, delta_t and alpha must not be negative");
    Require(keep_first >= 0 && keep_recent >= 0, "keep_first and keep_recent must not be negative");
    Require(window > 0 && capacity > 0, "window and capacity must be positive");
    Require(decode == "full" || capacity > tail() + (decode == "streaming" ? sinks : 0),
            "capacity must exceed the newest max(window, 64) entries, which always stay, and streaming's sinks");
    Require(decode_gap >= -1, "decode_gap must be at least -1");
    Require(pooling_kernel > 0 && pooling_kernel % 2 == 1, "pooling_kernel must be odd and positive");
    Require(adaptive_alpha >= 0 && adaptive_alpha <= 1, "adaptive_alpha must be between 0 and 1");
    Require(sinks >= 0 && slack >= 0, "sinks and slack must not be negative");
  }

  template <typename T>
  void RequireSame(const char* key, const T& value, const T& compiled) const {
    if (value != compiled) {
      TVM_FFI_THROW(ValueError) << "KV cache policy: " << key << " cannot become " << value << ", this model library "
                                << "was compiled with " << compiled << ".";
    }
  }
};

}  // namespace entropy_mlc
