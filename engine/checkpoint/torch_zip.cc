#include "engine/checkpoint/torch_zip.h"

#include <map>
#include <set>
#include <string>
#include <vector>

#include "engine/checkpoint/pickle.h"
#include "engine/checkpoint/zip_directory.h"

namespace t6 {
namespace {

constexpr std::string_view kPickle = "data.pkl";

// The entries of the one folder inside the zip, by their names in it.
using Members = std::map<std::string_view, ZipEntry>;

StatusOr<Members> ReadMembers(std::span<const uint8_t> file) {
  T6_ASSIGN_OR_RETURN(const std::vector<ZipEntry> entries, ReadZipDirectory(file));
  std::string_view folder;
  for (const ZipEntry& e : entries) {
    const size_t slash = e.name.find('/');
    if (slash == std::string_view::npos || e.name.substr(slash + 1) != kPickle) continue;
    if (!folder.empty()) return InvalidArgument("zip has two pickles, in {} and {}", folder, e.name);
    folder = e.name.substr(0, slash + 1);
  }
  if (folder.empty()) return InvalidArgument("zip has no FOLDER/{}: torch.save did not write it", kPickle);
  Members members;
  for (const ZipEntry& e : entries) {
    if (e.name.starts_with(folder)) members.emplace(e.name.substr(folder.size()), e);
  }
  return members;
}

Status CheckByteOrder(std::span<const uint8_t> file, const Members& members) {
  const auto found = members.find("byteorder");  // older versions of torch.save do not write it
  if (found == members.end()) return absl::OkStatus();
  const ZipEntry& e = found->second;
  const std::string_view order(reinterpret_cast<const char*>(file.data() + e.offset), e.size);
  if (order == "little") return absl::OkStatus();
  return InvalidArgument("zip entry \"{}\" is not \"little\": other byte orders are not read", e.name);
}

Status CheckContiguous(const PickledTensor& t) {
  int64_t expected = 1;
  for (size_t i = t.shape.size(); i-- > 0;) {
    if (t.stride.size() != t.shape.size() || (t.shape[i] != 1 && t.stride[i] != expected)) {
      return InvalidArgument("tensor \"{}\" of shape {} has strides {}: only dense tensors are read", t.name,
                             TensorView{nullptr, t.dtype, t.shape}.ShapeString(),
                             TensorView{nullptr, t.dtype, t.stride}.ShapeString());
    }
    expected *= t.shape[i];  // cannot overflow: the shape was checked
  }
  return absl::OkStatus();
}

Status AddTensor(const PickledTensor& t, const Members& members, std::set<std::string_view>& checked,
                 std::span<const uint8_t> bytes, TensorTable& table) {
  const auto size = CheckedBytes(t.dtype, t.shape);
  if (!size.ok()) return Annotate(size.status(), fmt::format("tensor \"{}\"", t.name));
  T6_RETURN_IF_ERROR(CheckContiguous(t));
  const auto found = members.find(fmt::format("data/{}", t.storage));
  if (found == members.end())
    return InvalidArgument("tensor \"{}\": the zip has no data/{}", t.name, t.storage);
  const ZipEntry& e = found->second;
  const uint64_t item = SizeOf(t.dtype);
  if (t.storage_elements < 0 || e.size % item != 0 ||
      e.size / item != static_cast<uint64_t>(t.storage_elements)) {
    return InvalidArgument("tensor \"{}\": its storage of {} {} numbers has {} bytes in \"{}\"", t.name,
                           t.storage_elements, NameOf(t.dtype), e.size, e.name);
  }
  if (t.offset < 0 || t.offset > t.storage_elements) {
    return InvalidArgument("tensor \"{}\" starts at {} of {} numbers", t.name, t.offset, t.storage_elements);
  }
  if (checked.insert(e.name).second) T6_RETURN_IF_ERROR(CheckCrc(bytes, e));
  return table.Add(t.name, t.dtype, t.shape, e.offset + static_cast<uint64_t>(t.offset) * item,
                   e.offset + e.size);
}

Status AddAll(std::span<const uint8_t> bytes, TensorTable& table) {
  T6_ASSIGN_OR_RETURN(const Members members, ReadMembers(bytes));
  T6_RETURN_IF_ERROR(CheckByteOrder(bytes, members));
  const ZipEntry& pickle = members.at(kPickle);
  T6_RETURN_IF_ERROR(CheckCrc(bytes, pickle));
  T6_ASSIGN_OR_RETURN(const std::vector<PickledTensor> tensors,
                      ReadPickledStateDict(bytes.subspan(pickle.offset, pickle.size)));
  std::set<std::string_view> checked;  // entries whose CRC was found right
  for (const PickledTensor& t : tensors) T6_RETURN_IF_ERROR(AddTensor(t, members, checked, bytes, table));
  return absl::OkStatus();
}

}  // namespace

Status AddTorchZip(std::unique_ptr<FileBytes> file, TensorTable& table) {
  const FileBytes& kept = table.AddFile(std::move(file));
  return Annotate(AddAll(kept.bytes(), table), kept.name());
}

}  // namespace t6
