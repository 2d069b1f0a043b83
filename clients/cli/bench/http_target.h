// The load over HTTP/1.1, on the given io_context, which one thread runs. Connections are kept and used
// again.
#pragma once

#include <boost/asio/io_context.hpp>
#include <memory>
#include <string>

#include "clients/cli/bench/target.h"

namespace t6::cli {

struct HttpAddress {
  std::string host, port, base;  // base: a path without a slash at its end
};

// "http://host:port/base"; an error's text, or nothing.
std::string ParseHttpAddress(const std::string& url, HttpAddress& address);

std::unique_ptr<Target> MakeHttpTarget(boost::asio::io_context& io, const HttpAddress& address,
                                       const BenchRequestOptions& options);

}  // namespace t6::cli
