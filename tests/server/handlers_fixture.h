// The handlers over an engine that is a fake: requests of one line, and their answers at once.
#pragma once

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "server/handlers.h"
#include "tests/server/served_world.h"

namespace t6::server {

inline v1::CompletionRequest TextRequest(const std::string& text) {
  v1::CompletionRequest request;
  request.add_prompts()->set_text(text);
  return request;
}

inline v1::CompletionRequest TokenRequest(const std::vector<int32_t>& ids) {
  v1::CompletionRequest request;
  request.add_prompts()->mutable_tokens()->mutable_ids()->Add(ids.begin(), ids.end());
  return request;
}

inline v1::ChatCompletionRequest ChatRequest(const std::string& content) {
  v1::ChatCompletionRequest request;
  v1::ChatMessage* message = request.add_messages();
  message->set_role("user");
  message->set_content(content);
  return request;
}

class HandlersTest : public testing::Test {
 protected:
  StatusOr<v1::CompletionResponse> Complete(const v1::CompletionRequest& request) {
    return CreateNow<v1::CompletionResponse>(*world_.completion, request);
  }
  StatusOr<v1::ChatCompletionResponse> Chat(const v1::ChatCompletionRequest& request) {
    return CreateNow<v1::ChatCompletionResponse>(*world_.chat, request);
  }
  SamplingParams LastSampling() {
    return world_.engine.WaitForSubmit(world_.engine.n_submitted() - 1).request.sampling;
  }

  ServedWorld world_;
};

}  // namespace t6::server
