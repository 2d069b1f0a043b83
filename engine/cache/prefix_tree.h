// Which pages hold the factors of which tokens. A node is one page: up to 64 tokens that follow its parent's;
// only full nodes have children. Matches are exact in tokens, across all children and also inside a page.
// Holds a PageRef of each of its pages. Engine thread only.
//
// A full node has a key, chained from its root's: SHA-256 over the parent's key and the tokens, computed
// once, when the page is full. The root's key covers whatever must never be shared (tenant, model and types,
// adapter, salt).
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <set>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "absl/types/span.h"
#include "engine/base/page_tokens.h"
#include "engine/cache/page_pool.h"

namespace t6 {

struct PageKey {
  std::array<uint8_t, 32> bytes{};
  bool operator==(const PageKey&) const = default;
  struct Hash {
    size_t operator()(const PageKey& key) const;
  };

  static PageKey Root(std::string_view model, std::string_view tenant, std::string_view adapter,
                      std::string_view salt);
  PageKey Child(absl::Span<const int32_t> tokens) const;
};

// What was found: whole pages to share, then perhaps the first `partial_tokens` tokens of `partial`, to be
// copied.
struct PrefixMatch {
  std::vector<PageRef> pages;
  PageRef partial;
  int partial_tokens = 0;
  int tokens() const { return static_cast<int>(pages.size()) * kPageTokens + partial_tokens; }
};

class PrefixTree {
  struct Node;

 public:
  // How far one sequence has published. Valid as long as that sequence holds its pages; reset it before
  // giving them back.
  class Cursor {
   public:
    explicit Cursor(const PageKey& root) : root_(root) {}
    void Reset() { full_ = partial_ = nullptr, n_full_ = 0; }
    const PageKey& root() const { return root_; }
    int n_full() const { return n_full_; }
    // The key of the last full page, or of the root.
    const PageKey& key() const;

   private:
    friend class PrefixTree;
    PageKey root_;
    Node* full_ = nullptr;     // the node of page n_full - 1; null: none, we stand at the root
    Node* partial_ = nullptr;  // the node of page n_full, while the tree has it
    int n_full_ = 0;
  };

  explicit PrefixTree(PagePool* pool);
  ~PrefixTree();
  PrefixTree(const PrefixTree&) = delete;
  PrefixTree& operator=(const PrefixTree&) = delete;

  // The longest prefix of tokens[0..max_tokens) that is cached. Moves `cursor` (fresh) behind the whole pages
  // of the match and makes what was found the most recently used.
  PrefixMatch Match(Cursor* cursor, absl::Span<const int32_t> tokens, int max_tokens);
  // Its length alone, without a trace.
  int MatchLength(const PageKey& root, absl::Span<const int32_t> tokens, int max_tokens) const;

  // Makes what completed steps have written findable: tokens[0..n_written), which lie in `pages`. Costs next
  // to nothing for a token more. Where the tree already has an equal full page, the sequence's own one is
  // replaced by the tree's and moved to `replaced` (a step in flight may still write into it).
  void Publish(Cursor* cursor, absl::Span<const int32_t> tokens, int n_written, std::vector<PageRef>* pages,
               std::vector<PageRef>* replaced);
  // The sequence that published up to here has ended: its path becomes the most recently used.
  void Touch(const Cursor& cursor);

  // Drops the least recently used leaf that nobody else holds. False when there is none.
  bool EvictOne();
  // Drops all that nobody else holds.
  void Clear();

  int n_nodes() const { return n_nodes_; }

 private:
  // Children in the order of their tokens: the one that shares the longest prefix with a query is the query's
  // neighbour.
  struct TokenOrder {
    using is_transparent = void;
    bool operator()(const std::unique_ptr<Node>& a, const std::unique_ptr<Node>& b) const;
    bool operator()(const std::unique_ptr<Node>& a, absl::Span<const int32_t> b) const;
    bool operator()(absl::Span<const int32_t> a, const std::unique_ptr<Node>& b) const;
  };
  using Children = std::set<std::unique_ptr<Node>, TokenOrder>;

  // The child that agrees with most of `tokens`, and on how many of them.
  static std::pair<Node*, int> LongestMatch(const Node& parent, absl::Span<const int32_t> tokens);
  const Node* FindRoot(const PageKey& key) const;
  Node* ParentOf(const Cursor& cursor);  // makes the root when it is missing
  // Puts page n_full of the sequence, with `tokens`, into the tree or raises its count; null when another
  // node has them all.
  Node* Place(Cursor* cursor, absl::Span<const int32_t> tokens, const PageRef& page);
  Node* Insert(Node* parent, std::unique_ptr<Node> node);
  void DropShorter(Node* node);
  std::unique_ptr<Node> Detach(Node* node);
  void Remove(Node* node);
  void Use(Node* node);

  PagePool* const pool_;
  std::unordered_map<PageKey, std::unique_ptr<Node>, PageKey::Hash> roots_;
  std::set<std::pair<uint64_t, Node*>> leaves_;  // by last use; the roots are not in it
  uint64_t now_ = 0;                             // counts uses
  int n_nodes_ = 0;
};

}  // namespace t6
