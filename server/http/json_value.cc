#include "server/http/json_value.h"

#include <cmath>
#include <limits>
#include <optional>
#include <vector>

#include "server/error_map.h"

namespace t6::server {
namespace {

constexpr size_t kMaxValues = size_t{1} << 20;  // some 16 to 80 bytes each
constexpr size_t kShownBytes = 60;

// Cut where a character starts.
std::string Cut(std::string_view text) {
  if (text.size() <= kShownBytes) return std::string(text);
  size_t end = kShownBytes;
  while (end > 0 && (static_cast<unsigned char>(text[end]) & 0xc0) == 0x80) --end;
  return std::string(text.substr(0, end)) + "...";
}

std::string Dumped(const Json& value) { return value.dump(-1, ' ', false, Json::error_handler_t::replace); }

// Compact JSON of `value` as far as it will be shown: a large value costs no more than a small one.
void AppendShort(const Json& value, std::string* out) {
  if (value.is_string()) {
    *out += Dumped(Cut(value.get_ref<const std::string&>()));
  } else if (!value.is_structured()) {
    *out += value.dump();
  } else {
    *out += value.is_array() ? '[' : '{';
    for (auto element = value.begin(); element != value.end() && out->size() <= kShownBytes; ++element) {
      if (element != value.begin()) *out += ',';
      if (value.is_object()) *out += Dumped(Cut(element.key())) + ":";
      AppendShort(*element, out);
    }
    *out += value.is_array() ? ']' : '}';
  }
}

// Builds the value while it refuses what nlohmann's own builder lets pass.
class Builder : public nlohmann::json_sax<Json> {
 public:
  explicit Builder(int max_depth) : max_depth_(max_depth) {}

  Status status() const { return status_; }
  Json TakeRoot() { return std::move(root_); }

  bool null() override { return Put(nullptr); }
  bool boolean(bool value) override { return Put(value); }
  bool number_integer(number_integer_t value) override { return Put(value); }
  bool number_unsigned(number_unsigned_t value) override { return Put(value); }
  bool number_float(number_float_t value, const string_t&) override { return Put(value); }
  bool string(string_t& value) override { return Put(std::move(value)); }
  bool binary(binary_t&) override { return Fail(Internal("JSON has no binary values")); }
  bool start_object(size_t) override { return Open(Json::object()); }
  bool start_array(size_t) override { return Open(Json::array()); }
  bool end_object() override { return Close(); }
  bool end_array() override { return Close(); }

  bool key(string_t& name) override {
    if (stack_.back()->contains(name)) {
      return Fail(BadField(Cut(name), "the key {} stands twice in the same object", Dumped(Cut(name))));
    }
    key_ = std::move(name);
    return true;
  }

  bool parse_error(size_t position, const std::string&, const nlohmann::detail::exception& e) override {
    // "[json.exception.parse_error.101] parse error at line 1, column 2: ..." -> what follows the bracket.
    std::string_view what = e.what();
    if (const size_t end = what.find("] "); end != std::string_view::npos) what.remove_prefix(end + 2);
    return Fail(InvalidArgument("the body is not valid JSON (byte {}): {}", position, what.substr(0, 200)));
  }

 private:
  bool Fail(Status status) {
    status_ = std::move(status);
    return false;
  }

  Json* Insert(Json value) {
    if (stack_.empty()) {
      root_ = std::move(value);
      return &root_;
    }
    Json& parent = *stack_.back();
    if (parent.is_array()) {
      parent.push_back(std::move(value));
      return &parent.back();
    }
    return &(parent[std::move(key_)] = std::move(value));
  }

  bool Put(Json value) {
    if (++n_values_ > kMaxValues)
      return Fail(InvalidArgument("the body has more than {} values", kMaxValues));
    Insert(std::move(value));
    return true;
  }

  bool Open(Json value) {
    if (static_cast<int>(stack_.size()) >= max_depth_) {
      return Fail(InvalidArgument("the body is nested more than {} levels deep", max_depth_));
    }
    if (++n_values_ > kMaxValues)
      return Fail(InvalidArgument("the body has more than {} values", kMaxValues));
    stack_.push_back(Insert(std::move(value)));
    return true;
  }

  bool Close() {
    stack_.pop_back();
    return true;
  }

  const int max_depth_;
  size_t n_values_ = 0;
  Json root_;
  // An open element is always its parent's last, so these stay valid while it grows.
  std::vector<Json*> stack_;
  std::string key_;
  Status status_;
};

std::optional<double> IntegralOf(const Json& value) {
  if (!value.is_number_float()) return std::nullopt;
  const double d = value.get<double>();
  if (std::trunc(d) != d || std::abs(d) > 9007199254740992.0) return std::nullopt;
  return d;
}

}  // namespace

StatusOr<Json> ParseJsonObject(std::string_view text, int max_depth) {
  if (text.find_first_not_of(" \t\r\n") == std::string_view::npos) {
    return InvalidArgument("the body is empty; a JSON object is expected");
  }
  Builder builder(max_depth);
  if (!Json::sax_parse(text.begin(), text.end(), &builder)) {
    Status status = builder.status();
    return status.ok() ? InvalidArgument("the body is not valid JSON") : status;
  }
  Json root = builder.TakeRoot();
  if (!root.is_object()) return InvalidArgument("the body must be a JSON object, got {}", Shortened(root));
  return root;
}

std::string Shortened(const Json& value) {
  std::string text;
  AppendShort(value, &text);
  return value.is_structured() ? Cut(text) : text;
}

Status WrongType(const std::string& field, std::string_view wanted, const Json& value) {
  return BadField(field, "\"{}\" must be {}, got {}", field, wanted, Shortened(value));
}

Status ReadBool(const Json& value, const std::string& field, bool* out) {
  if (!value.is_boolean()) return WrongType(field, "true or false", value);
  *out = value.get<bool>();
  return absl::OkStatus();
}

Status ReadString(const Json& value, const std::string& field, std::string* out) {
  if (!value.is_string()) return WrongType(field, "a string", value);
  *out = value.get<std::string>();
  return absl::OkStatus();
}

Status ReadInt32(const Json& value, const std::string& field, int32_t* out) {
  constexpr int64_t kMin = std::numeric_limits<int32_t>::min(), kMax = std::numeric_limits<int32_t>::max();
  int64_t wide = 0;
  if (const auto integral = IntegralOf(value)) {
    wide = static_cast<int64_t>(*integral);
  } else if (!value.is_number_integer()) {
    return WrongType(field, "an integer", value);
  } else if (value.is_number_unsigned() && value.get<uint64_t>() > static_cast<uint64_t>(kMax)) {
    wide = kMax + 1;
  } else {
    wide = value.get<int64_t>();
  }
  if (wide < kMin || wide > kMax) {
    return BadField(field, "\"{}\" = {} is out of range ({} to {})", field, Shortened(value), kMin, kMax);
  }
  *out = static_cast<int32_t>(wide);
  return absl::OkStatus();
}

Status ReadSeed(const Json& value, const std::string& field, uint64_t* out) {
  if (const auto integral = IntegralOf(value)) {
    *out = static_cast<uint64_t>(static_cast<int64_t>(*integral));
  } else if (value.is_number_unsigned()) {
    *out = value.get<uint64_t>();
  } else if (value.is_number_integer()) {
    *out = static_cast<uint64_t>(value.get<int64_t>());
  } else if (value.is_number_float()) {
    return BadField(field, "\"{}\" = {} must be an integer of 64 bits", field, Shortened(value));
  } else {
    return WrongType(field, "an integer", value);
  }
  return absl::OkStatus();
}

Status ReadFloat(const Json& value, const std::string& field, float* out) {
  if (!value.is_number()) return WrongType(field, "a number", value);
  const double wide = value.get<double>();
  if (!(std::abs(wide) <= std::numeric_limits<float>::max())) {
    return BadField(field, "\"{}\" = {} is out of range", field, Shortened(value));
  }
  *out = static_cast<float>(wide);
  return absl::OkStatus();
}

}  // namespace t6::server
