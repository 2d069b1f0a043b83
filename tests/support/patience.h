// How long tests wait for what must happen: far beyond what a starved machine needs, and its processes may be
// stopped for minutes. A shorter wait would test the machine; what hangs ends by this, or by ctest's limit.
#pragma once

#include "absl/synchronization/notification.h"
#include "absl/time/time.h"

namespace t6 {

inline constexpr absl::Duration kPatience = absl::Minutes(4);

inline bool Happens(const absl::Notification& event) {
  return event.WaitForNotificationWithTimeout(kPatience);
}

}  // namespace t6
