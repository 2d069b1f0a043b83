// Questions about one document, all at once: each computes only itself, the document is computed for all of
// them together or comes from the cache. usage: ask_document HOST:PORT DOCUMENT QUESTION...
#include <fstream>
#include <future>
#include <iostream>
#include <iterator>
#include <string>
#include <vector>

#include "t6client/client.h"

int main(int argc, char** argv) {
  if (argc < 4) {
    std::cerr << "usage: ask_document HOST:PORT DOCUMENT QUESTION...\n";
    return 2;
  }
  std::ifstream file(argv[2]);
  const std::string document{std::istreambuf_iterator<char>(file), {}};
  t6::client::CallOptions options;
  options.timeout = std::chrono::seconds(60);
  // Behind a balancer all questions about a document go to the replica that has it.
  options.affinity = std::to_string(std::hash<std::string>()(document));
  const t6::client::Client client(argv[1]);

  std::vector<std::future<absl::StatusOr<t6::v1::ChatCompletionResponse>>> answers;
  for (int i = 3; i < argc; ++i) {
    t6::v1::ChatCompletionRequest request;
    t6::client::AddMessage(request, "system",
                           "Answer the question from the document. Be short.\n\n" + document);
    t6::client::AddMessage(request, "user", argv[i]);
    request.mutable_sampling()->set_temperature(0);
    answers.push_back(std::async(std::launch::async,
                                 [&client, &options, request] { return client.Chat(request, options); }));
  }
  int failed = 0;
  for (int i = 3; i < argc; ++i) {
    const auto answer = answers[i - 3].get();
    if (!answer.ok()) {
      std::cerr << argv[i] << " " << answer.status() << "\n";
      failed = 1;
      continue;
    }
    std::cout << argv[i] << " " << t6::client::TextOf(*answer) << " (" << answer->usage().cached_tokens()
              << " of " << answer->usage().prompt_tokens() << " prompt tokens cached)\n";
  }
  return failed;
}
