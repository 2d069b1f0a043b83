#include "engine/checkpoint/safetensors.h"

#include <algorithm>
#include <string>
#include <vector>

#include "engine/base/check.h"
#include "engine/checkpoint/bounded_json.h"
#include "engine/checkpoint/byte_reader.h"

namespace t6 {
namespace {

using nlohmann::json;

struct Item {
  std::string name;
  DType dtype = DType::kF32;
  std::vector<int64_t> shape;
  uint64_t begin = 0, end = 0;  // in the data
};

StatusOr<DType> ReadDType(const json& value) {
  const std::string name = value.is_string() ? value.get<std::string>() : "";
  for (const DType type : {DType::kF32, DType::kF16, DType::kBF16}) {
    if (name == SafetensorsName(type)) return type;
  }
  return InvalidArgument("its dtype is {}; F32, F16 and BF16 are read",
                         value.dump(-1, ' ', true).substr(0, 64));
}

StatusOr<std::vector<uint64_t>> ReadSizes(const json& value, std::string_view what) {
  std::vector<uint64_t> out;
  bool good = value.is_array() && value.size() <= 16;
  for (size_t i = 0; good && i < value.size(); ++i) {
    good = value[i].is_number_unsigned() && value[i].get<uint64_t>() <= INT64_MAX;
    if (good) out.push_back(value[i].get<uint64_t>());
  }
  if (good) return out;
  return InvalidArgument("its {} is {}, not a list of sizes", what, value.dump(-1, ' ', true).substr(0, 64));
}

StatusOr<Item> ReadItem(const std::string& name, const json& value) {
  Item item{name, DType::kF32, {}, 0, 0};
  for (const char* key : {"dtype", "shape", "data_offsets"}) {
    if (!value.is_object() || !value.contains(key)) return InvalidArgument("it has no \"{}\"", key);
  }
  T6_ASSIGN_OR_RETURN(item.dtype, ReadDType(value["dtype"]));
  T6_ASSIGN_OR_RETURN(const std::vector<uint64_t> shape, ReadSizes(value["shape"], "shape"));
  T6_ASSIGN_OR_RETURN(const std::vector<uint64_t> offsets, ReadSizes(value["data_offsets"], "data_offsets"));
  item.shape.assign(shape.begin(), shape.end());
  if (offsets.size() != 2 || offsets[0] > offsets[1]) {
    return InvalidArgument("its data_offsets are {}", value["data_offsets"].dump());
  }
  item.begin = offsets[0], item.end = offsets[1];
  T6_ASSIGN_OR_RETURN(const uint64_t bytes, CheckedBytes(item.dtype, item.shape));
  if (bytes != item.end - item.begin) {
    return InvalidArgument("its shape {} of {} takes {} bytes, its data_offsets [{}, {}] hold {}",
                           TensorView{nullptr, item.dtype, item.shape}.ShapeString(),
                           SafetensorsName(item.dtype), bytes, item.begin, item.end, item.end - item.begin);
  }
  return item;
}

StatusOr<std::vector<Item>> ReadHeader(std::string_view text) {
  if (!text.starts_with('{')) return InvalidArgument("header at byte 8 is no JSON object");
  auto header = ParseBoundedJson(text);
  if (!header.ok()) return Annotate(header.status(), "header");
  std::vector<Item> items;
  for (const auto& [name, value] : header->items()) {
    if (name == "__metadata__") continue;
    auto item = ReadItem(name, value);
    if (!item.ok()) return Annotate(item.status(), fmt::format("tensor \"{}\"", name.substr(0, 256)));
    items.push_back(*std::move(item));
  }
  std::sort(items.begin(), items.end(), [](const Item& a, const Item& b) { return a.begin < b.begin; });
  return items;
}

Status AddAll(std::span<const uint8_t> bytes, TensorTable& table) {
  ByteReader reader(bytes);
  const uint64_t header_size = reader.Read<uint64_t>();
  if (reader.failed()) return InvalidArgument("has only {} bytes", bytes.size());
  if (header_size > kMaxSafetensorsHeader || header_size > reader.left()) {
    return InvalidArgument("says that its header has {} bytes; the file has {}, the limit is {}", header_size,
                           bytes.size(), kMaxSafetensorsHeader);
  }
  T6_ASSIGN_OR_RETURN(const std::vector<Item> items, ReadHeader(reader.Take(header_size)));
  const uint64_t data = reader.at(), data_size = reader.left();
  uint64_t expected = 0;
  for (const Item& item : items) {
    if (item.begin != expected) {
      return InvalidArgument("tensor \"{}\" starts at byte {} of the data, where {} belongs: {}", item.name,
                             item.begin, expected,
                             item.begin < expected ? "it overlaps another" : "there is a hole before it");
    }
    expected = item.end;
    if (item.end > data_size) {
      return InvalidArgument("tensor \"{}\" ends at byte {} of {} bytes of data", item.name, item.end,
                             data_size);
    }
    T6_RETURN_IF_ERROR(table.Add(item.name, item.dtype, item.shape, data + item.begin, data + item.end));
  }
  if (expected != data_size) {
    return InvalidArgument("has {} bytes after its last tensor, at byte {}", data_size - expected,
                           data + expected);
  }
  return absl::OkStatus();
}

}  // namespace

std::string_view SafetensorsName(DType dtype) {
  switch (dtype) {
    case DType::kF32:
      return "F32";
    case DType::kF16:
      return "F16";
    case DType::kBF16:
      return "BF16";
    case DType::kI32:
    case DType::kFp8:
      break;
  }
  T6_CHECK(false, "{} has no safetensors name here", NameOf(dtype));
  return {};
}

Status AddSafetensors(std::unique_ptr<FileBytes> file, TensorTable& table) {
  const FileBytes& kept = table.AddFile(std::move(file));
  return Annotate(AddAll(kept.bytes(), table), kept.name());
}

}  // namespace t6
