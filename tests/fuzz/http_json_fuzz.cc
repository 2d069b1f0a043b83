// Any bytes as the body of an HTTP request: parsed or refused with INVALID_ARGUMENT, and the refusal is valid
// JSON.
#include <string_view>

#include "engine/base/check.h"
#include "server/http/openai_replies.h"
#include "server/http/openai_requests.h"
#include "tests/fuzz/fuzz_target.h"

std::string FuzzSeed() {
  return R"({"model": "m", "messages": [{"role": "user", "content": [{"type": "text", "text": "\u00e9\ud83d\ude00"}]}],
    "prompt": [[1, 2], [3]], "tokens": [1, -2], "max_tokens": 5, "temperature": 0.5e-3, "seed": -12, "n": 1, "stop": ["a", "b"],
    "stream": true, "stream_options": {"include_usage": true}, "logit_bias": {}, "metadata": {"a": [null, false]}})";
}

namespace {

template <typename T>
void CheckRefusal(const t6::StatusOr<T>& parsed) {
  if (parsed.ok()) return;
  T6_CHECK(parsed.status().code() == absl::StatusCode::kInvalidArgument);
  T6_CHECK(!parsed.status().message().empty() && parsed.status().message().size() < 1000);
  T6_CHECK(t6::server::Json::accept(t6::server::ErrorJson(parsed.status())));
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view body(reinterpret_cast<const char*>(data), size);
  constexpr int kDepth = 64;
  CheckRefusal(t6::server::ParseChatRequest(body, kDepth));
  CheckRefusal(t6::server::ParseCompletionRequest(body, kDepth));
  CheckRefusal(t6::server::ParseTokenizeRequest(body, kDepth));
  CheckRefusal(t6::server::ParseDetokenizeRequest(body, kDepth));
  return 0;
}
