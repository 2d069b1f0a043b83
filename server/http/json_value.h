// Strict JSON: text -> value, and values -> C++ types. Errors are INVALID_ARGUMENT, name the field as
// "messages[2].role" and show the offending value, shortened. Pure functions.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

#include "engine/base/status.h"

namespace t6::server {

using Json = nlohmann::json;

// One object. Refuses: a key twice, more than `max_depth` levels, more than a million values, numbers beyond
// double, invalid UTF-8, comments, NaN, anything after the object.
StatusOr<Json> ParseJsonObject(std::string_view text, int max_depth);

// For messages: compact JSON, cut after some 60 bytes.
std::string Shortened(const Json& value);

// INVALID_ARGUMENT: "temperature" must be a number, got "hot".
Status WrongType(const std::string& field, std::string_view wanted, const Json& value);

Status ReadBool(const Json& value, const std::string& field, bool* out);
Status ReadString(const Json& value, const std::string& field, std::string* out);
// Also 16.0, which is the same JSON number as 16.
Status ReadInt32(const Json& value, const std::string& field, int32_t* out);
// -2^63 .. 2^64-1; a negative one becomes its two's complement.
Status ReadSeed(const Json& value, const std::string& field, uint64_t* out);
// Refuses what float32 cannot hold.
Status ReadFloat(const Json& value, const std::string& field, float* out);

}  // namespace t6::server
