// A conversation, streamed: reads a line, prints the answer as it comes. Ctrl-D ends it.
// usage: chat_streaming [HOST:PORT]
#include <iostream>
#include <string>

#include "t6client/client.h"

int main(int argc, char** argv) {
  const t6::client::Client client(argc > 1 ? argv[1] : "127.0.0.1:50051");
  t6::v1::ChatCompletionRequest conversation;
  for (std::string line; std::cout << "> " << std::flush, std::getline(std::cin, line);) {
    t6::client::AddMessage(conversation, "user", line);
    t6::client::ChatStream stream = client.StreamChat(conversation);
    std::string answer;
    for (const t6::v1::ChatCompletionChunk& chunk : stream) {
      answer += t6::client::TextOf(chunk);
      std::cout << t6::client::TextOf(chunk) << std::flush;
    }
    std::cout << "\n";
    if (!stream.status().ok()) {
      std::cerr << stream.status() << "\n";
      return 1;
    }
    t6::client::AddMessage(conversation, "assistant", answer);
  }
}
