// What the daemon says of itself over HTTP: health, readiness, version, metrics. Open to everybody who
// reaches the port, also where API keys are asked for; --admin gives it a port of its own. Thread-safe.
// `admin` outlives it.
#pragma once

#include "server/admin.h"
#include "server/http/routed_app.h"

namespace t6::server {

class AdminApi : public RoutedApp {
 public:
  explicit AdminApi(const Admin& admin, bool with_metrics = true);
};

}  // namespace t6::server
