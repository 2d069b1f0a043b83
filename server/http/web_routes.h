// The page at / and its files: cached by ETag, and locked in by headers, so that nothing on it can load, run
// or send anything elsewhere.
#pragma once

#include "server/http/router.h"

namespace t6::server {

void AddWebRoutes(Router& router);

// Whether an If-None-Match header names `etag`.
bool NamesEtag(std::string_view if_none_match, std::string_view etag);

}  // namespace t6::server
