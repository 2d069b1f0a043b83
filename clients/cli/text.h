// Small text helpers of the client.
#pragma once

#include <string>
#include <string_view>

namespace t6::cli {

// Without white space (ASCII) at both ends.
std::string_view Trim(std::string_view text);

bool IsUtf8(std::string_view text);

// A flag's value, or with a leading @ what a file holds, trimmed. Returns what is wrong, or nothing.
std::string ValueOrFile(const std::string& text, std::string& out);

// What is wrong with a server's gRPC address, or nothing: HOST:PORT, or a name that gRPC resolves
// (dns:///host:port).
std::string CheckTarget(const std::string& target);

// ValueOrFile for an API key: visible ASCII without spaces.
std::string ParseKey(const std::string& text, std::string& out);

}  // namespace t6::cli
