// The plan for rows of several tokens and for shared pages, which the host makes. Needs no GPU.
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <random>
#include <tuple>
#include <utility>
#include <vector>

#include "engine/backend/cuda/rows_plan.h"
#include "engine/base/page_tokens.h"

namespace t6::testing {
namespace {

// Every token of the scratch gets its keys and values once: from pages, or those of the step's own rows from
// the rows, or zeros. Tiles cover their rows, and a chunk's last tile is not much smaller than the others.
void ExpectScratchIsWrittenOnce(const StepPlan& step, const cuda::RowsPlanOptions& options,
                                const cuda::RowsPlan& plan) {
  std::vector<int> whole(plan.n_scratch_tokens, 0), stored(plan.n_scratch_tokens, 0);
  for (const cuda::ExpandPage& page : plan.expands) {
    for (int i = 0; i < kPageTokens; ++i) ++whole.at(page.scratch_token + i);
  }
  EXPECT_EQ(std::count(whole.begin(), whole.end(), 1), plan.n_scratch_tokens);
  std::vector<int> tiled(step.n_rows(), 0);
  for (const cuda::PrefillTile& tile : plan.tiles) {
    EXPECT_LE(tile.n_rows, options.prefill_tile_rows);
    for (int row = tile.row; row < tile.row + tile.n_rows; ++row) {
      ++tiled.at(row);
      EXPECT_EQ(tile.first_position + row - tile.row, step.positions[row]);
      if (!options.stores_rows) continue;
      EXPECT_EQ(plan.scratch_tokens.at(row), tile.scratch_token + step.positions[row]);
    }
    for (const cuda::PrefillTile& next : plan.tiles) {
      const bool follows = next.row == tile.row + tile.n_rows && next.scratch_token == tile.scratch_token;
      if (follows && next.n_rows <= options.prefill_tile_rows / 3) {
        ADD_FAILURE() << "a last tile of " << next.n_rows << " rows behind one of " << tile.n_rows;
      }
    }
  }
  EXPECT_LE(tiled.empty() ? 0 : *std::max_element(tiled.begin(), tiled.end()), 1);
  if (!options.stores_rows) {
    EXPECT_TRUE(plan.old_expands.empty() && plan.scratch_tokens.empty());
    return;
  }
  for (const cuda::ExpandPage& page : plan.old_expands) {
    ASSERT_GE(page.id, 0);
    for (int i = 0; i < page.n_tokens; ++i) ++stored.at(page.scratch_token + i);
  }
  for (size_t i = 0; i < plan.scratch_tokens.size(); ++i) {
    const bool is_row = i < static_cast<size_t>(step.n_rows());
    EXPECT_EQ(plan.scratch_tokens[i] >= 0, !is_row || tiled[i] == 1) << i;
    if (plan.scratch_tokens[i] >= 0) ++stored.at(plan.scratch_tokens[i]);
  }
  EXPECT_EQ(std::count(stored.begin(), stored.end(), 1), plan.n_scratch_tokens);
  if (!plan.tiles.empty()) {
    EXPECT_EQ(plan.scratch_tokens.size(), static_cast<size_t>(step.n_rows() + plan.n_zeros));
  }
}

// Every partial result is written by one task and read by one merge; what is read and not written is to be
// empty.
void ExpectPartialsMatch(const cuda::RowsPlanOptions& options, const cuda::RowsPlan& plan) {
  std::map<std::pair<int, int>, int> written, read;  // by rows and heads
  for (int width = 0; width < cuda::kNumRowsWidths; ++width) {
    const cuda::RowsTasks& tasks = plan.by_width[width];
    const int group = options.group_heads[width], n_last = (options.n_heads - 1) % group + 1;
    for (size_t block = 0; block + 1 < tasks.block_begin.size(); ++block) {
      for (int i = tasks.block_begin[block]; i < tasks.block_begin[block + 1]; ++i) {
        const cuda::RowsTask& task = tasks.tasks.at(i);
        for (int row = 0; task.partial_row >= 0 && row < task.n_rows; ++row) {
          for (int head = task.head; head < std::min(task.head + group, options.n_heads); ++head) {
            ++written[{task.partial_row + row, head}];
          }
        }
      }
    }
  }
  for (const cuda::RowsMerge& merge : plan.merges) {
    for (int run = 0; run < 2; ++run) {
      for (int i = 0; i < merge.n[run]; ++i) {
        const int row = merge.begin[run] + i * merge.stride[run];
        EXPECT_LT(row, options.max_partial_rows);
        for (int head = 0; head < options.n_heads; ++head) ++read[{row, head}];
      }
    }
  }
  const auto is_empty = [&](int row) {
    return std::any_of(plan.empties.begin(), plan.empties.end(),
                       [&](const auto& rows) { return rows.begin <= row && row < rows.end; });
  };
  for (const auto& [at, n] : written) EXPECT_TRUE(n == 1 && read.count(at) == 1) << at.first;
  for (const auto& [at, n] : read) {
    EXPECT_TRUE(n == 1 && (written.count(at) == 1 || is_empty(at.first))) << at.first << " " << at.second;
  }
}

// Every row sees every page of its sequence that it must, once for every head, whatever is split or shared,
// and every block has its tasks.
TEST(CudaRowsPlan, EveryRowSeesEveryPageOnce) {
  std::mt19937 random(1);
  const auto draw = [&](int least, int most) {
    return std::uniform_int_distribution<int>(least, most)(random);
  };
  for (int round = 0; round < 200; ++round) {
    StepPlan step;
    step.Clear();
    const int n_sequences = draw(1, 12), shared = draw(0, 1) * draw(1, 30);
    for (int s = 0; s < n_sequences; ++s) {
      const int rows = draw(0, 2) == 0 ? draw(1, 300) : 1,
                length = shared * kPageTokens + rows + (draw(0, 3) == 0 ? draw(4000, 9000) : draw(0, 900));
      for (int i = 0; i < rows; ++i) step.token_ids.push_back(0), step.positions.push_back(length - rows + i);
      step.row_begin.push_back(step.n_rows()), step.context_len.push_back(length);
      for (int i = 0; i < length; i += kPageTokens) step.page_ids.push_back(i / kPageTokens);
      step.page_begin.push_back(static_cast<int32_t>(step.page_ids.size()));
    }
    if (shared > 0 && n_sequences > 1) step.shared_prefixes.push_back({0, draw(2, n_sequences), shared});
    const int cluster = draw(1, 2);
    cuda::RowsPlanOptions options{.n_blocks = draw(cluster, 132),
                                  .n_heads = draw(1, 9),
                                  .group_heads = {3, 3, 4, 4},
                                  .cluster = {1, 1, cluster, cluster},
                                  .max_partial_rows = draw(0, 1) == 0 ? 2000 : 100000};
    options.min_prefill_rows = draw(0, 1) * 100, options.max_scratch_tokens = 1000;
    options.prefill_tile_rows = 192, options.prefill_block_tokens = 128;
    options.stores_rows = draw(0, 1) == 1;
    options.always_merges = draw(0, 3) == 0;
    cuda::RowsPlan plan;
    cuda::MakeRowsPlan(step, 2, options, &plan);
    ExpectScratchIsWrittenOnce(step, options, plan);

    ExpectPartialsMatch(options, plan);
    // By page: how many times over all heads, and the sum of their numbers.
    std::vector<std::vector<std::pair<int, int>>> seen(step.n_rows(), {2000, {0, 0}});
    for (int width = 0; width < cuda::kNumRowsWidths; ++width) {
      const cuda::RowsTasks& tasks = plan.by_width[width];
      if (tasks.tasks.empty()) continue;
      ASSERT_EQ(options.n_blocks / options.cluster[width] + 1, static_cast<int>(tasks.block_begin.size()));
      ASSERT_EQ(static_cast<int>(tasks.tasks.size()), tasks.block_begin.back());
      for (const cuda::RowsTask& task : tasks.tasks) {
        ASSERT_GT(task.n_pages, 0);
        ASSERT_LE(task.n_rows, cuda::kMaxBlockRows);
        for (int row = task.row; row < task.row + task.n_rows; ++row) {
          for (int page = 0; page < task.n_pages; ++page) {
            const int index = task.first_token / kPageTokens + page;
            ASSERT_EQ(index, step.page_ids[task.page_offset + page]);
            for (int i = 0; i < options.group_heads[width] && task.head + i < options.n_heads; ++i) {
              ++seen[row][index].first, seen[row][index].second += task.head + i;
            }
          }
        }
      }
    }
    for (int s = 0; s < n_sequences; ++s) {
      const int rows = step.row_begin[s + 1] - step.row_begin[s];
      if (plan.takes[s] == 0) {
        EXPECT_EQ(1, rows);
      }
      for (int row = step.row_begin[s]; row < step.row_begin[s + 1]; ++row) {
        const bool tiled = std::any_of(plan.tiles.begin(), plan.tiles.end(), [&](const auto& tile) {
          return tile.row <= row && row < tile.row + tile.n_rows;
        });
        for (int page = 0; page * kPageTokens <= step.positions[row]; ++page) {
          const int h = plan.takes[s] != 0 && !tiled ? options.n_heads : 0;
          ASSERT_EQ(seen[row][page], std::pair(h, h * (h - 1) / 2)) << row << " " << page;
        }
      }
    }
  }
}

// As whole steps of T6-XL (78 heads) and attention at 47 heads were measured on an H200: sharing where it is
// faster, and nowhere else.
TEST(CudaRowsPlan, RowsShareAPrefixWhereAWholeStepIsFaster) {
  const auto shares = [](int n_heads, int page_bytes, int n_rows, int n_pages) {
    StepPlan step;
    step.Clear();
    for (int s = 0; s < n_rows; ++s) {
      step.token_ids.push_back(0), step.positions.push_back(n_pages * kPageTokens + 64);
      step.row_begin.push_back(s + 1), step.context_len.push_back(step.positions.back() + 1);
      for (int i = 0; i < n_pages; ++i) step.page_ids.push_back(i);
      for (int i = 0; i < 2; ++i) step.page_ids.push_back(n_pages + 2 * s + i);
      step.page_begin.push_back(static_cast<int32_t>(step.page_ids.size()));
    }
    step.shared_prefixes.push_back({0, n_rows, n_pages});
    cuda::RowsPlanOptions options{
        .n_blocks = 132, .n_heads = n_heads, .group_heads = {12, 6, 4, 4}, .max_partial_rows = 100000};
    cuda::SetSharingCosts(page_bytes, 132, &options);
    cuda::RowsPlan plan;
    cuda::MakeRowsPlan(step, 2, options, &plan);
    return plan.takes[0] != 0;
  };
  for (const auto& [rows, pages, faster] : {std::tuple(64, 16, false),
                                            {64, 64, false},
                                            {8, 512, false},
                                            {4, 1563, false},
                                            {16, 512, true},
                                            {32, 512, true},
                                            {64, 512, true},
                                            {16, 1563, true},
                                            {64, 1563, true}}) {
    EXPECT_EQ(shares(78, 72704, rows, pages), faster) << rows << " rows on " << pages << " pages";
  }
  for (const int rows : {16, 64}) EXPECT_TRUE(shares(47, 56832, rows, 512)) << rows;
  for (const int rows : {2, 8}) EXPECT_FALSE(shares(47, 56832, rows, 512)) << rows;
}

// Few rows on a long context: all multiprocessors end at the same time.
TEST(CudaRowsPlan, ALongContextKeepsEveryMultiprocessorBusy) {
  constexpr int kRows = 50, kLength = 100050, kBlocks = 132, kClusters = 66, kPages = 1564;
  constexpr int kTaskPages = 4, kNextTaskPages = 8;
  StepPlan step;
  step.Clear();
  for (int i = 0; i < kRows; ++i) step.token_ids.push_back(0), step.positions.push_back(kLength - kRows + i);
  step.row_begin.push_back(kRows), step.context_len.push_back(kLength);
  for (int i = 0; i < kLength; i += kPageTokens) step.page_ids.push_back(i / kPageTokens);
  step.page_begin.push_back(static_cast<int32_t>(step.page_ids.size()));
  for (const int n_heads : {4, 78, 200, 528, 1000}) {
    const int groups = (n_heads + 7) / 8;
    const cuda::RowsPlanOptions options{.n_blocks = kBlocks,
                                        .n_heads = n_heads,
                                        .group_heads = {12, 6, 8, 8},
                                        .cluster = {1, 1, 2, 2},
                                        .max_partial_rows = 8000};
    cuda::RowsPlan plan;
    cuda::MakeRowsPlan(step, 2, options, &plan);
    const cuda::RowsTasks& tasks = plan.by_width[2];
    int most = 0, total = 0;
    for (int block = 0; block < kClusters; ++block) {
      int time = kTaskPages - kNextTaskPages;
      for (int i = tasks.block_begin[block]; i < tasks.block_begin[block + 1]; ++i) {
        time += tasks.tasks[i].n_pages + kNextTaskPages, total += tasks.tasks[i].n_pages;
      }
      most = std::max(most, time);
    }
    EXPECT_EQ(total, kPages * groups);
    EXPECT_LE(most, 1.01 * groups * kPages / kClusters + kTaskPages + 1) << n_heads << " heads";
    if (n_heads == 78) {
      ASSERT_EQ(plan.merges.size(), size_t{kRows});
      EXPECT_EQ(plan.merges[0].n[0], 8);
      ASSERT_EQ(plan.empties.size(), size_t{1});  // some groups have seven
      EXPECT_EQ(plan.empties[0].begin, plan.merges[0].begin[0] + 7 * kRows);
      EXPECT_EQ(plan.empties[0].end, plan.merges[0].begin[0] + 8 * kRows);
    }
  }
}

// Pages that the rows kernel cannot read: every chunk is a tile, nothing is shared, and a step without room
// for all is left to another path whole.
TEST(CudaRowsPlan, PrefillOnlyPlansEveryChunkOrNothing) {
  StepPlan step;
  step.Clear();
  for (const int rows : {1, 2, 70}) {
    for (int i = 0; i < rows; ++i) step.token_ids.push_back(0), step.positions.push_back(200 - rows + i);
    step.row_begin.push_back(step.n_rows()), step.context_len.push_back(200);
    for (int page = 0; page < 4; ++page) step.page_ids.push_back(page);
    step.page_begin.push_back(static_cast<int32_t>(step.page_ids.size()));
  }
  step.shared_prefixes.push_back({0, 3, 2});
  cuda::RowsPlanOptions options{
      .n_blocks = 132, .n_heads = 7, .group_heads = {3, 3, 4, 4}, .max_partial_rows = 2000};
  options.min_prefill_rows = 1, options.prefill_only = true;
  options.prefill_tile_rows = 192, options.prefill_block_tokens = 128;
  for (const bool has_room : {true, false}) {
    options.max_scratch_tokens = has_room ? 512 : 511;
    cuda::RowsPlan plan;
    cuda::MakeRowsPlan(step, 2, options, &plan);
    EXPECT_EQ(plan.fits, has_room);
    EXPECT_FALSE(plan.has_tasks());
    EXPECT_TRUE(plan.merges.empty());
    EXPECT_EQ(plan.tiles.size(), has_room ? 2u : 0u);
    EXPECT_EQ(plan.expands.size(), has_room ? 8u : 0u);
    EXPECT_EQ(plan.takes, has_room ? std::vector<uint8_t>({0, 1, 1}) : std::vector<uint8_t>({0, 0, 0}));
  }
}

}  // namespace
}  // namespace t6::testing
