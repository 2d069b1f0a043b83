// How the values of the field table (request_fields.h) become proto fields: one parser for what maps one to
// one, and one each for what does not. All are FieldParsers: `value` is not null.
#pragma once

#include "server/http/request_fields.h"

namespace t6::server {

// By the type of the field that `proto_path` names in `target`. Lists of strings also take one string.
Status ParseIntoProto(const Json& value, const std::string& field, std::string_view proto_path,
                      google::protobuf::Message& target);

Status ParseMessages(const Json&, const std::string&, google::protobuf::Message&, Draft&);
Status ParseContent(const Json&, const std::string&, google::protobuf::Message&, Draft&);
Status ParsePartType(const Json&, const std::string&, google::protobuf::Message&, Draft&);
Status ParsePartText(const Json&, const std::string&, google::protobuf::Message&, Draft&);
Status ParsePrompts(const Json&, const std::string&, google::protobuf::Message&, Draft&);
Status ParseMaxTokens(const Json&, const std::string&, google::protobuf::Message&, Draft&);
Status ParseMaxCompletionTokens(const Json&, const std::string&, google::protobuf::Message&, Draft&);
Status ParseStream(const Json&, const std::string&, google::protobuf::Message&, Draft&);
Status ParseStreamOptions(const Json&, const std::string&, google::protobuf::Message&, Draft&);
Status ParseIncludeUsage(const Json&, const std::string&, google::protobuf::Message&, Draft&);
Status ParseIgnoredObject(const Json&, const std::string&, google::protobuf::Message&, Draft&);
Status ParseIgnoredString(const Json&, const std::string&, google::protobuf::Message&, Draft&);

}  // namespace t6::server
