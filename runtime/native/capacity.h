// Counting in the engine's pages. The engine plans a step with sum(ceil(n_i / engine_page)) <= available pages; the
// cache stores larger pages, wastes the rest of each sequence's last one, and copies a shared last page before a write.
#pragma once
#include <algorithm>
#include <numeric>

#include "cache_config.h"

namespace entropy_mlc {

// Pages to reserve: max_total_seq_len entries plus one engine page (as TVM's own cache), and for each sequence of a
// full batch the waste of a last page and the reserve of AvailableEnginePages. On the host only touched pages
// cost memory, on a device all of them.
inline int64_t NumPages(const CacheConfig& c) {
  int64_t rounding = c.page - std::gcd(c.page, c.engine_page);
  return CeilDiv(c.max_total_seq_len + c.engine_page + (c.page + rounding) * c.max_batch, c.page);
}

// The largest A for which every step of at most max_batch sequences with sum(ceil(n_i / engine_page)) <= A finds its
// pages. `spare` is the number of free pages less one for each sequence whose shared last page needs a copy first.
// Appending n_i tokens takes at most ceil(n_i / page) new pages, and with e_i = ceil(n_i / engine_page):
//   (1) ceil(n_i / page) * page <= e_i * engine_page + page - gcd(page, engine_page),  summed over the batch,
//   (2) ceil(n_i / page) <= e_i * ceil(engine_page / page).
// Each gives a safe bound; (2) wins when little is left.
inline int32_t AvailableEnginePages(const CacheConfig& c, int64_t spare) {
  int64_t rounding = c.page - std::gcd(c.page, c.engine_page);
  int64_t by_entries = (spare * c.page - rounding * c.max_batch) / c.engine_page;
  int64_t by_pages = spare / CeilDiv(c.engine_page, c.page);
  int64_t available = std::max({by_entries, by_pages, int64_t{0}});
  return static_cast<int32_t>(std::min<int64_t>(available, INT32_MAX));
}

// The fewest spare pages with which AvailableEnginePages promises that many entries.
inline int64_t SparePagesFor(const CacheConfig& c, int64_t entries) {
  int64_t spare = 0;
  while (AvailableEnginePages(c, spare) * c.engine_page < entries) ++spare;
  return spare;
}

}  // namespace entropy_mlc
