// The load over gRPC, with its callback API: gRPC's own few threads serve all streams. Balancers spread
// streams, not connections, but limit streams per connection (often to 100), hence several connections.
#pragma once

#include <memory>
#include <string>

#include "clients/cli/bench/target.h"

namespace t6::cli {

// `service_config`: JSON, empty for gRPC's defaults (no retry but of requests that no server saw).
// `most_at_once`: requests that will run at the same time, at most.
std::unique_ptr<Target> MakeGrpcTarget(const std::string& address, const std::string& service_config,
                                       int most_at_once, const BenchRequestOptions& options);

}  // namespace t6::cli
