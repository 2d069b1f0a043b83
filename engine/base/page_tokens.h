// The size of a page in tokens: the one number that cache, schedule and devices must agree on.
#pragma once

namespace t6 {

// Tokens of one layer in one page.
inline constexpr int kPageTokens = 64;

}  // namespace t6
