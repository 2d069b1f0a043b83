#include "engine/cache/prefix_tree.h"

#include <openssl/sha.h>

#include <algorithm>
#include <cstring>
#include <string>

#include "engine/base/check.h"

namespace t6 {
namespace {

using Tokens = absl::Span<const int32_t>;

int CommonPrefix(Tokens a, Tokens b) {
  const size_t n = std::min(a.size(), b.size());
  return static_cast<int>(std::mismatch(a.begin(), a.begin() + n, b.begin()).first - a.begin());
}

bool StartsWith(Tokens tokens, Tokens prefix) {
  return tokens.size() >= prefix.size() && std::equal(prefix.begin(), prefix.end(), tokens.begin());
}

bool Before(Tokens a, Tokens b) {
  return std::lexicographical_compare(a.begin(), a.end(), b.begin(), b.end());
}

PageKey Digest(const std::string& bytes) {
  PageKey key;
  SHA256(reinterpret_cast<const unsigned char*>(bytes.data()), bytes.size(), key.bytes.data());
  return key;
}

// The length in front keeps ("ab", "c") and ("a", "bc") apart.
void AppendField(std::string_view field, std::string* bytes) {
  const uint64_t size = field.size();
  for (int shift = 0; shift < 64; shift += 8) bytes->push_back(static_cast<char>(size >> shift));
  bytes->append(field);
}

}  // namespace

size_t PageKey::Hash::operator()(const PageKey& key) const {
  size_t hash;
  std::memcpy(&hash, key.bytes.data(), sizeof(hash));
  return hash;
}

PageKey PageKey::Root(std::string_view model, std::string_view tenant, std::string_view adapter,
                      std::string_view salt) {
  std::string bytes;
  for (std::string_view field : {model, tenant, adapter, salt}) AppendField(field, &bytes);
  return Digest(bytes);
}

PageKey PageKey::Child(absl::Span<const int32_t> tokens) const {
  std::string buffer(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  for (int32_t token : tokens) {  // little endian on every machine
    for (int shift = 0; shift < 32; shift += 8)
      buffer.push_back(static_cast<char>(static_cast<uint32_t>(token) >> shift));
  }
  return Digest(buffer);
}

// A root has no parent and no page; its children's tokens are a sequence's first ones.
struct PrefixTree::Node {
  Tokens view() const { return Tokens(tokens.data(), n_tokens); }
  bool is_root() const { return parent == nullptr; }
  bool full() const { return n_tokens == kPageTokens; }
  void Grow(Tokens all) {
    std::copy(all.begin() + n_tokens, all.end(), tokens.begin() + n_tokens);
    n_tokens = static_cast<int>(all.size());
    if (full()) key = parent->key.Child(view());
  }

  Node* parent = nullptr;
  PageRef page;
  int n_tokens = 0;
  std::array<int32_t, kPageTokens> tokens;
  PageKey key;  // of a root or a full node
  uint64_t last_use = 0;
  Children children;
  Children::iterator self;  // where it stands among its parent's children
};

bool PrefixTree::TokenOrder::operator()(const std::unique_ptr<Node>& a,
                                        const std::unique_ptr<Node>& b) const {
  return Before(a->view(), b->view());
}
bool PrefixTree::TokenOrder::operator()(const std::unique_ptr<Node>& a, Tokens b) const {
  return Before(a->view(), b);
}
bool PrefixTree::TokenOrder::operator()(Tokens a, const std::unique_ptr<Node>& b) const {
  return Before(a, b->view());
}

const PageKey& PrefixTree::Cursor::key() const { return full_ != nullptr ? full_->key : root_; }

PrefixTree::PrefixTree(PagePool* pool) : pool_(pool) {}

PrefixTree::~PrefixTree() {
  while (!leaves_.empty()) Remove(leaves_.begin()->second);  // leaf by leaf: a deep tree must not recurse
}

// --- finding

std::pair<PrefixTree::Node*, int> PrefixTree::LongestMatch(const Node& parent, Tokens tokens) {
  std::pair<Node*, int> best = {nullptr, 0};
  auto consider = [&](const std::unique_ptr<Node>& child) {
    const int common = CommonPrefix(child->view(), tokens);
    if (common > best.second) best = {child.get(), common};
  };
  const auto next = parent.children.lower_bound(tokens);
  if (next != parent.children.end()) consider(*next);
  if (next != parent.children.begin()) consider(*std::prev(next));
  return best;
}

const PrefixTree::Node* PrefixTree::FindRoot(const PageKey& key) const {
  const auto it = roots_.find(key);
  return it == roots_.end() ? nullptr : it->second.get();
}

PrefixMatch PrefixTree::Match(Cursor* cursor, Tokens tokens, int max_tokens) {
  T6_CHECK(cursor->n_full_ == 0 && cursor->partial_ == nullptr);
  PrefixMatch match;
  const Node* node = FindRoot(cursor->root_);
  Tokens rest = tokens.subspan(0, max_tokens);
  ++now_;
  while (node != nullptr && !rest.empty()) {
    const auto [child, common] = LongestMatch(*node, rest.subspan(0, kPageTokens));
    if (common == 0) break;
    Use(child);
    if (common < kPageTokens) {
      match.partial = child->page.Share();
      match.partial_tokens = common;
      break;
    }
    match.pages.push_back(child->page.Share());
    cursor->full_ = child;
    ++cursor->n_full_;
    node = child;
    rest.remove_prefix(kPageTokens);
  }
  return match;
}

int PrefixTree::MatchLength(const PageKey& root, Tokens tokens, int max_tokens) const {
  const Node* node = FindRoot(root);
  Tokens rest = tokens.subspan(0, max_tokens);
  int length = 0;
  while (node != nullptr && !rest.empty()) {
    const auto [child, common] = LongestMatch(*node, rest.subspan(0, kPageTokens));
    length += common;
    if (common < kPageTokens) break;
    node = child;
    rest.remove_prefix(kPageTokens);
  }
  return length;
}

// --- publishing

void PrefixTree::Publish(Cursor* cursor, Tokens tokens, int n_written, std::vector<PageRef>* pages,
                         std::vector<PageRef>* replaced) {
  ++now_;
  while ((cursor->n_full_ + 1) * kPageTokens <= n_written) {
    PageRef& own = (*pages)[cursor->n_full_];
    Node* node = Place(cursor, tokens.subspan(cursor->n_full_ * kPageTokens, kPageTokens), own);
    if (node->page.id() !=
        own.id()) {  // one page for equal contents, so that a held node's ancestors are held too
      replaced->push_back(std::move(own));
      own = node->page.Share();
    }
    cursor->full_ = node;
    cursor->partial_ = nullptr;
    ++cursor->n_full_;
  }
  const int begin = cursor->n_full_ * kPageTokens;
  if (begin >= n_written) return;
  const PageRef& own = (*pages)[cursor->n_full_];
  Node* node = Place(cursor, tokens.subspan(begin, n_written - begin), own);
  cursor->partial_ = node->page.id() == own.id() ? node : nullptr;
}

PrefixTree::Node* PrefixTree::ParentOf(const Cursor& cursor) {
  if (cursor.full_ != nullptr) return cursor.full_;
  std::unique_ptr<Node>& root = roots_[cursor.root_];
  if (root == nullptr) {
    root = std::make_unique<Node>();
    root->key = cursor.root_;
  }
  return root.get();
}

PrefixTree::Node* PrefixTree::Place(Cursor* cursor, Tokens tokens, const PageRef& page) {
  Node* parent = ParentOf(*cursor);
  std::unique_ptr<Node> node;
  if (Node* own = cursor->partial_; own != nullptr) {
    // Usually it stays where it is among its siblings.
    const auto next = std::next(own->self);
    if (own->view().size() == tokens.size()) return own;
    if (next == parent->children.end() ||
        (Before(tokens, (*next)->view()) && !StartsWith((*next)->view(), tokens))) {
      own->Grow(tokens);
      return own;
    }
    node = Detach(own);
  }
  const auto next = parent->children.lower_bound(tokens);
  if (next != parent->children.end() && StartsWith((*next)->view(), tokens)) {
    if (node != nullptr) pool_->SetCached(node->page.id(), false);
    Use(next->get());
    return next->get();
  }
  if (node == nullptr) {
    node = std::make_unique<Node>();
    node->parent = parent;
    node->page = page.Share();
    pool_->SetCached(page.id(), true);
  }
  node->Grow(tokens);
  return Insert(parent, std::move(node));
}

PrefixTree::Node* PrefixTree::Insert(Node* parent, std::unique_ptr<Node> owned) {
  Node* node = owned.get();
  if (!parent->is_root() && parent->children.empty()) leaves_.erase({parent->last_use, parent});
  node->self = parent->children.insert(std::move(owned)).first;
  node->last_use = now_;
  leaves_.insert({now_, node});
  ++n_nodes_;
  DropShorter(node);
  return node;
}

// A page whose tokens all stand in its longer sibling is of no use any more, unless somebody still holds it.
void PrefixTree::DropShorter(Node* node) {
  if (node->self == node->parent->children.begin()) return;
  Node* shorter = std::prev(node->self)->get();
  if (StartsWith(node->view(), shorter->view()) && pool_->refs(shorter->page.id()) == 1) Remove(shorter);
}

std::unique_ptr<PrefixTree::Node> PrefixTree::Detach(Node* node) {
  leaves_.erase({node->last_use, node});
  --n_nodes_;
  return std::move(node->parent->children.extract(node->self).value());
}

void PrefixTree::Remove(Node* node) {
  Node* parent = node->parent;
  pool_->SetCached(node->page.id(), false);
  Detach(node);
  if (!parent->children.empty()) return;
  if (parent->is_root()) {
    roots_.erase(PageKey(parent->key));  // a copy: the key dies with the node
  } else {
    leaves_.insert({parent->last_use, parent});
  }
}

// --- recency

void PrefixTree::Use(Node* node) {
  if (node->children.empty()) {
    leaves_.erase({node->last_use, node});
    leaves_.insert({now_, node});
  }
  node->last_use = now_;
}

void PrefixTree::Touch(const Cursor& cursor) {
  ++now_;
  Node* node = cursor.partial_ != nullptr ? cursor.partial_ : cursor.full_;
  for (; node != nullptr && !node->is_root(); node = node->parent) Use(node);
}

bool PrefixTree::EvictOne() {
  for (size_t n = leaves_.size(); n > 0; --n) {
    Node* node = leaves_.begin()->second;
    if (pool_->refs(node->page.id()) == 1) {
      Remove(node);
      return true;
    }
    ++now_;
    Use(node);  // held, so in use: the next look need not pass it again
  }
  return false;
}

void PrefixTree::Clear() {
  while (EvictOne()) {
  }
}

}  // namespace t6
