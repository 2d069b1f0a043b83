// One model being served, and the slot where handlers look for it: empty while it loads, so that the
// transports can listen before. What stands in the slot is immutable and outlives the handlers. Thread-safe.
#pragma once

#include <atomic>
#include <cstdint>
#include <string>
#include <vector>

#include "engine/engine.h"
#include "engine/text/chat_template.h"
#include "engine/text/tokenizer.h"

namespace t6::server {

struct ServedModel {
  std::string name;
  Engine* engine = nullptr;
  const Tokenizer* tokenizer = nullptr;         // none: prompts must be token ids
  const ChatTemplate* chat_template = nullptr;  // none: chat is refused
  std::vector<int32_t> eos_ids;                 // end the output unless a request ignores them
  int64_t created = 0;                          // seconds since 1970
};

class ModelSlot {
 public:
  void Set(const ServedModel* model) { model_.store(model, std::memory_order_release); }
  // nullptr: still loading.
  const ServedModel* Get() const { return model_.load(std::memory_order_acquire); }

 private:
  std::atomic<const ServedModel*> model_{nullptr};
};

}  // namespace t6::server
