// The one table of all JSON fields that the HTTP API knows: what is done with each, in which request, and
// where its value goes. It drives parsing, refusals and the lists in docs/api.md (a test holds them
// together).
#pragma once

#include <google/protobuf/message.h>

#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "server/http/json_value.h"

namespace t6::server {

enum class FieldList { kHonoured, kNeutral, kAdvisory, kRefused };

// In which JSON object a field may stand; bits.
enum Scope : unsigned {
  kChat = 1,
  kCompletion = 2,
  kTokenize = 4,
  kDetokenize = 8,
  kStreamOptions = 16,
  kMessage = 32,
  kTextPart = 64,
};

// What a transport must remember of a request to shape its answer.
struct ReplyShape {
  bool stream = false;
  bool include_usage = false;  // a last chunk with the usage
  bool logprobs = false;
  bool return_token_ids = false;
};

// What the fields of one request fill besides its message.
struct Draft {
  ReplyShape shape;
  std::optional<int32_t> max_tokens, max_completion_tokens;
  bool has_stream_options = false;
};

// `value` is not null; `target` is the message that the field's object becomes.
using FieldParser = Status (*)(const Json& value, const std::string& field, google::protobuf::Message& target,
                               Draft& draft);

struct Field {
  std::string_view name;
  unsigned scopes;
  FieldList list;
  std::string_view neutral;  // kNeutral: a JSON list of the values that pass; null always does
  std::string_view proto;    // the message's field that takes the value: "sampling.top_p"
  FieldParser parse;         // instead of `proto`
  std::string_view doc;      // Markdown
};

std::span<const Field> RequestFields();

// Parses `object` into `target` by the table. Null stands for a field left out. `prefix`: "messages[2]." or
// empty.
Status ParseFields(Scope scope, const Json& object, const std::string& prefix,
                   google::protobuf::Message& target, Draft& draft);

// The four lists as they stand in docs/api.md.
std::string FieldListsMarkdown();

}  // namespace t6::server
