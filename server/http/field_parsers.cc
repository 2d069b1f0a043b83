#include "server/http/field_parsers.h"

#include <google/protobuf/descriptor.h>

#include "engine/base/check.h"
#include "server/error_map.h"
#include "t6/v1/chat.pb.h"
#include "t6/v1/completions.pb.h"
#include "t6/v1/tokenizer.pb.h"

namespace t6::server {
namespace {

using google::protobuf::FieldDescriptor;
using google::protobuf::Message;

Status Missing(const std::string& field) { return BadField(field, "\"{}\" is missing", field); }

Status ReadScalar(const Json& value, const std::string& field, const FieldDescriptor& to, Message& target) {
  const auto& reflection = *target.GetReflection();
  switch (to.cpp_type()) {
    case FieldDescriptor::CPPTYPE_BOOL: {
      bool read = false;
      T6_RETURN_IF_ERROR(ReadBool(value, field, &read));
      reflection.SetBool(&target, &to, read);
      return absl::OkStatus();
    }
    case FieldDescriptor::CPPTYPE_INT32: {
      int32_t read = 0;
      T6_RETURN_IF_ERROR(ReadInt32(value, field, &read));
      reflection.SetInt32(&target, &to, read);
      return absl::OkStatus();
    }
    case FieldDescriptor::CPPTYPE_UINT64: {
      uint64_t read = 0;
      T6_RETURN_IF_ERROR(ReadSeed(value, field, &read));
      reflection.SetUInt64(&target, &to, read);
      return absl::OkStatus();
    }
    case FieldDescriptor::CPPTYPE_FLOAT: {
      float read = 0;
      T6_RETURN_IF_ERROR(ReadFloat(value, field, &read));
      reflection.SetFloat(&target, &to, read);
      return absl::OkStatus();
    }
    case FieldDescriptor::CPPTYPE_STRING: {
      std::string read;
      T6_RETURN_IF_ERROR(ReadString(value, field, &read));
      reflection.SetString(&target, &to, std::move(read));
      return absl::OkStatus();
    }
    default:
      T6_CHECK(false);  // the table names no other
      return absl::OkStatus();
  }
}

std::string Element(const std::string& field, size_t i) { return fmt::format("{}[{}]", field, i); }

Status ReadTokenIds(const Json& list, const std::string& field, v1::TokenIds* out) {
  out->mutable_ids()->Reserve(static_cast<int>(list.size()));
  for (size_t i = 0; i < list.size(); ++i) {
    int32_t id = 0;
    if (const Status status = ReadInt32(list[i], field, &id); !status.ok()) {
      return ReadInt32(list[i], Element(field, i), &id);  // the same again, with its place
    }
    out->add_ids(id);
  }
  return absl::OkStatus();
}

Status ReadList(const Json& value, const std::string& field, const FieldDescriptor& to, Message& target) {
  const auto& reflection = *target.GetReflection();
  if (to.cpp_type() == FieldDescriptor::CPPTYPE_STRING) {
    if (value.is_string()) {
      reflection.AddString(&target, &to, value.get<std::string>());
      return absl::OkStatus();
    }
    if (!value.is_array()) return WrongType(field, "a string or a list of strings", value);
    for (size_t i = 0; i < value.size(); ++i) {
      if (!value[i].is_string()) return WrongType(Element(field, i), "a string", value[i]);
      reflection.AddString(&target, &to, value[i].get<std::string>());
    }
    return absl::OkStatus();
  }
  T6_CHECK(to.cpp_type() == FieldDescriptor::CPPTYPE_INT32);
  if (!value.is_array()) return WrongType(field, "a list of token ids", value);
  v1::TokenIds ids;
  T6_RETURN_IF_ERROR(ReadTokenIds(value, field, &ids));
  for (const int32_t id : ids.ids()) reflection.AddInt32(&target, &to, id);
  return absl::OkStatus();
}

}  // namespace

Status ParseIntoProto(const Json& value, const std::string& field, std::string_view proto_path,
                      Message& target) {
  Message* message = &target;
  for (size_t dot = proto_path.find('.'); dot != std::string_view::npos; dot = proto_path.find('.')) {
    const auto* part = message->GetDescriptor()->FindFieldByName(std::string(proto_path.substr(0, dot)));
    T6_CHECK(part != nullptr);
    message = message->GetReflection()->MutableMessage(message, part);
    proto_path.remove_prefix(dot + 1);
  }
  const auto* to = message->GetDescriptor()->FindFieldByName(std::string(proto_path));
  T6_CHECK(to != nullptr);
  return to->is_repeated() ? ReadList(value, field, *to, *message) : ReadScalar(value, field, *to, *message);
}

Status ParseMessages(const Json& value, const std::string& field, Message& target, Draft& draft) {
  if (!value.is_array()) return WrongType(field, "a list of messages", value);
  if (value.empty()) return BadField(field, "\"{}\" is an empty list", field);
  const auto* to = target.GetDescriptor()->FindFieldByName("messages");
  for (size_t i = 0; i < value.size(); ++i) {
    const std::string path = Element(field, i);
    if (!value[i].is_object()) return WrongType(path, "an object with \"role\" and \"content\"", value[i]);
    Message& message = *target.GetReflection()->AddMessage(&target, to);
    T6_RETURN_IF_ERROR(ParseFields(kMessage, value[i], path + ".", message, draft));
    for (const char* needed : {"role", "content"}) {
      if (!value[i].contains(needed) || value[i][needed].is_null()) return Missing(path + "." + needed);
    }
  }
  return absl::OkStatus();
}

Status ParseContent(const Json& value, const std::string& field, Message& target, Draft& draft) {
  auto& message = static_cast<v1::ChatMessage&>(target);
  if (value.is_string()) {
    message.set_content(value.get<std::string>());
    return absl::OkStatus();
  }
  if (!value.is_array()) return WrongType(field, "a string or a list of text parts", value);
  for (size_t i = 0; i < value.size(); ++i) {
    const std::string path = Element(field, i);
    if (!value[i].is_object()) return WrongType(path, "an object with \"type\" and \"text\"", value[i]);
    if (!value[i].contains("type")) return Missing(path + ".type");
    // First, so that an image is refused as one and not for its fields.
    T6_RETURN_IF_ERROR(ParsePartType(value[i]["type"], path + ".type", message, draft));
    T6_RETURN_IF_ERROR(ParseFields(kTextPart, value[i], path + ".", message, draft));
    if (!value[i].contains("text") || value[i]["text"].is_null()) return Missing(path + ".text");
  }
  return absl::OkStatus();
}

Status ParsePartType(const Json& value, const std::string& field, Message&, Draft&) {
  if (value == "text") return absl::OkStatus();
  return SetErrorCode(
      BadField(field, "\"{}\" = {} is not supported; only \"text\" is", field, Shortened(value)),
      "unsupported_parameter");
}

Status ParsePartText(const Json& value, const std::string& field, Message& target, Draft&) {
  if (!value.is_string()) return WrongType(field, "a string", value);
  *static_cast<v1::ChatMessage&>(target).mutable_content() += value.get_ref<const std::string&>();
  return absl::OkStatus();
}

Status ParsePrompts(const Json& value, const std::string& field, Message& target, Draft&) {
  auto& request = static_cast<v1::CompletionRequest&>(target);
  static constexpr char kWanted[] =
      "a string, a list of strings, a list of token ids or a list of such lists";
  if (value.is_string()) {
    request.add_prompts()->set_text(value.get<std::string>());
    return absl::OkStatus();
  }
  if (!value.is_array()) return WrongType(field, kWanted, value);
  if (value.empty()) return BadField(field, "\"{}\" is an empty list", field);
  if (value[0].is_number()) return ReadTokenIds(value, field, request.add_prompts()->mutable_tokens());
  const bool of_strings = value[0].is_string();
  if (!of_strings && !value[0].is_array())
    return WrongType(Element(field, 0), "a string, a token id or a list", value[0]);
  for (size_t i = 0; i < value.size(); ++i) {
    const std::string path = Element(field, i);
    if (of_strings) {
      if (!value[i].is_string()) return WrongType(path, "a string like the one before it", value[i]);
      request.add_prompts()->set_text(value[i].get<std::string>());
    } else {
      if (!value[i].is_array())
        return WrongType(path, "a list of token ids like the one before it", value[i]);
      T6_RETURN_IF_ERROR(ReadTokenIds(value[i], path, request.add_prompts()->mutable_tokens()));
    }
  }
  return absl::OkStatus();
}

Status ParseMaxTokens(const Json& value, const std::string& field, Message&, Draft& draft) {
  return ReadInt32(value, field, &draft.max_tokens.emplace());
}

Status ParseMaxCompletionTokens(const Json& value, const std::string& field, Message&, Draft& draft) {
  return ReadInt32(value, field, &draft.max_completion_tokens.emplace());
}

Status ParseStream(const Json& value, const std::string& field, Message&, Draft& draft) {
  return ReadBool(value, field, &draft.shape.stream);
}

Status ParseStreamOptions(const Json& value, const std::string& field, Message& target, Draft& draft) {
  if (!value.is_object()) return WrongType(field, "an object", value);
  draft.has_stream_options = true;
  return ParseFields(kStreamOptions, value, field + ".", target, draft);
}

Status ParseIncludeUsage(const Json& value, const std::string& field, Message&, Draft& draft) {
  return ReadBool(value, field, &draft.shape.include_usage);
}

Status ParseIgnoredObject(const Json& value, const std::string& field, Message&, Draft&) {
  return value.is_object() ? absl::OkStatus() : WrongType(field, "an object", value);
}

Status ParseIgnoredString(const Json& value, const std::string& field, Message&, Draft&) {
  return value.is_string() ? absl::OkStatus() : WrongType(field, "a string", value);
}

}  // namespace t6::server
