// The shipped model's real tokenizer and template over a fake engine, with handlers: what most server tests
// stand on.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "absl/synchronization/notification.h"
#include "engine/text/chat_template.h"
#include "engine/text/tokenizer.h"
#include "server/chat_handler.h"
#include "server/completion_handler.h"
#include "server/executor.h"
#include "server/info_handler.h"
#include "tests/server/fake_engine.h"

namespace t6::server {

inline const std::string kModelDirectory = std::string(T6_SOURCE_DIR) + "/models/t6-docqa-14m";

inline const Tokenizer& RealTokenizer() {
  static const std::unique_ptr<Tokenizer> tokenizer = Tokenizer::Load(kModelDirectory).value();
  return *tokenizer;
}
inline const ChatTemplate& RealTemplate() {
  static const std::unique_ptr<ChatTemplate> chat_template = ChatTemplate::Load(kModelDirectory).value();
  return *chat_template;
}
inline std::vector<int32_t> Encode(const std::string& text) {
  return RealTokenizer().Encode(text, false).value();
}

struct ServedWorld {
  FakeEngine engine;
  ServedModel model{"docqa", &engine, &RealTokenizer(), &RealTemplate(), {4, 0}, 1700000000};
  ModelSlot slot;
  absl::Mutex mutex;
  std::vector<RequestRecord> records ABSL_GUARDED_BY(mutex);
  Executor executor{2};
  HandlerDeps deps{&slot, &executor, [this](const RequestRecord& record) {
                     absl::MutexLock lock(&mutex);
                     records.push_back(record);
                   }};
  std::unique_ptr<ChatHandler> chat = MakeChatHandler(deps);
  std::unique_ptr<CompletionHandler> completion = MakeCompletionHandler(deps);
  std::unique_ptr<InfoHandler> info = MakeInfoHandler(&slot);

  ServedWorld() { slot.Set(&model); }
  ~ServedWorld() { executor.Stop(); }

  Handlers handlers() { return {chat.get(), completion.get(), info.get(), &executor, &executor}; }
  RequestRecord WaitForRecord(size_t n) {
    absl::MutexLock lock(&mutex);
    const auto there = [&] { return records.size() > n; };
    T6_CHECK(mutex.AwaitWithTimeout(absl::Condition(&there), kPatience), "record {} never came", n);
    return records[n];
  }
};

template <typename Response, typename Handler, typename Request>
StatusOr<Response> CreateNow(Handler& handler, const Request& request, CallContext context = {}) {
  absl::Notification answered;
  StatusOr<Response> result = Internal("no answer");
  auto call = handler.Create(request, context, [&](StatusOr<Response> answer) {
    result = std::move(answer);
    answered.Notify();
  });
  if (!call.ok()) return call.status();
  T6_CHECK(answered.WaitForNotificationWithTimeout(kPatience), "no answer came");
  return result;
}

// The next chunk of a stream.
template <typename Chunk>
StatusOr<std::optional<Chunk>> NextOf(StreamingCall<Chunk>& call) {
  absl::Notification answered;
  StatusOr<std::optional<Chunk>> result = Internal("no answer");
  call.Next([&](StatusOr<std::optional<Chunk>> chunk) {
    result = std::move(chunk);
    answered.Notify();
  });
  T6_CHECK(answered.WaitForNotificationWithTimeout(kPatience), "no chunk came");
  return result;
}

}  // namespace t6::server
