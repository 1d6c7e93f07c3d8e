// What the cache knows about one sequence.
#pragma once
#include <vector>

#include "ffi.h"

namespace entropy_mlc {

struct Sequence {
  // Entry t of every layer and head lies in pages[t / page] at offset t % page; pages.size() == CeilDiv(length, page).
  std::vector<int32_t> pages;
  // Tokens of the sequence: the RoPE position of the next one, and so far also the number of entries stored.
  int64_t length = 0;
  // Newest tokens that came as a token tree (a chain) and wait for CommitAcceptedTokenTreeNodes.
  int64_t uncommitted = 0;
  // Set by EnableSlidingWindowForSeq: nobody will fork this sequence inside its past, so it may be compressed.
  bool may_shrink = false;
};

}  // namespace entropy_mlc
