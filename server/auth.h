// Who may call: the API keys of --api-key-file, of which only SHA-256 digests are kept, and the tenant that
// each names. A line is `TENANT sha256:HEX`; several keys may name one tenant, so that a key can be replaced
// without its cache. Thread-safe. Nothing here ever logs or quotes a key.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "engine/base/status.h"

namespace t6::server {

class ApiKeys {
 public:
  // Told of each refusal, by transport ("grpc", "http").
  using OnRefused = std::function<void(std::string_view transport)>;

  // NOT_FOUND, or INVALID_ARGUMENT that names the file and the line at fault.
  static StatusOr<std::unique_ptr<ApiKeys>> Load(const std::string& path, OnRefused on_refused = {});

  // The tenant of the key in `authorization`, the value of that header ("Bearer KEY"), or UNAUTHENTICATED.
  // Takes as long for a wrong key as for any right one.
  StatusOr<std::string> Check(std::string_view authorization, std::string_view transport) const;
  // Reads the file again. After an error the keys stay as they were.
  Status Reload();
  size_t size() const;

 private:
  using Digest = std::array<uint8_t, 32>;
  struct Key {
    std::string tenant;
    Digest digest;
  };
  using Table = std::vector<Key>;

  ApiKeys(std::string path, OnRefused on_refused, Table keys);
  static StatusOr<Table> Read(const std::string& path);
  static StatusOr<Key> ParseLine(std::string_view line);

  const std::string path_;
  const OnRefused on_refused_;
  mutable absl::Mutex mutex_;
  std::shared_ptr<const Table> keys_ ABSL_GUARDED_BY(mutex_);
};

// What stands for the tenant in the keys of cached pages: an HMAC of its name, so that no tenant's pages can
// be taken for another's or for those of a server without keys. Empty for the empty name.
std::string TenantPageKey(std::string_view tenant);

}  // namespace t6::server
