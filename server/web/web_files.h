// The files of the page at /, as they were when the program was built. Constants; thread-safe.
#pragma once

#include <span>
#include <string_view>

namespace t6::server {

struct WebFile {
  std::string_view path;  // "/", "/web/app.js"
  std::string_view content_type;
  std::string_view etag;  // with its quotes; changes with the file
  std::string_view body;
};

std::span<const WebFile> WebFiles();

}  // namespace t6::server
