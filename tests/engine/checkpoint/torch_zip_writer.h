// Writes what torch.save writes, and what it never would: pickles opcode by opcode, zips whose every field
// can be wrong.
#pragma once

#include <zlib.h>

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace t6::testing {

template <typename T>
void AppendNumber(std::string& to, T value) {
  to.append(reinterpret_cast<const char*>(&value), sizeof value);
}

template <typename T>
void PatchNumber(std::string& bytes, size_t at, T value) {
  bytes.replace(at, sizeof value, reinterpret_cast<const char*>(&value), sizeof value);
}

inline std::span<const uint8_t> BytesOf(const std::string& s) {
  return {reinterpret_cast<const uint8_t*>(s.data()), s.size()};
}

// Opcodes of protocol 2, as torch.save's pickler emits them.
class PickleWriter {
 public:
  PickleWriter() { Raw("\x80\x02"); }
  PickleWriter& Raw(std::string_view bytes) {
    out_ += bytes;
    return *this;
  }
  PickleWriter& Global(std::string_view module, std::string_view name) {
    return Raw("c").Raw(module).Raw("\n").Raw(name).Raw("\n");
  }
  PickleWriter& Text(std::string_view text) {
    Raw("X");
    AppendNumber(out_, static_cast<uint32_t>(text.size()));
    return Raw(text);
  }
  // BININT where it fits, else LONG1 of eight bytes.
  PickleWriter& Int(int64_t value) {
    if (value == static_cast<int32_t>(value)) {
      Raw("J");
      AppendNumber(out_, static_cast<int32_t>(value));
    } else {
      Raw("\x8a\x08");
      AppendNumber(out_, value);
    }
    return *this;
  }
  PickleWriter& Ints(const std::vector<int64_t>& values) {
    Raw("(");
    for (const int64_t v : values) Int(v);
    return Raw("t");
  }
  std::string Stop() {
    Raw(".");
    return out_;
  }

 private:
  std::string out_;
};

struct TensorSpec {
  std::string name;
  std::vector<int64_t> shape, stride;
  std::string storage = "0";
  int64_t elements = 0;  // of the storage
  int64_t offset = 0;
  std::string type = "FloatStorage";
};

inline std::vector<int64_t> DenseStride(const std::vector<int64_t>& shape) {
  std::vector<int64_t> stride(shape.size(), 1);
  for (size_t i = shape.size(); i-- > 1;) stride[i - 1] = stride[i] * shape[i];
  return stride;
}

// A dense float32 tensor that is all of its storage.
inline TensorSpec WholeTensor(std::string name, std::vector<int64_t> shape, std::string storage) {
  int64_t n = 1;
  for (const int64_t d : shape) n *= d;
  const auto stride = DenseStride(shape);
  return {std::move(name), std::move(shape), stride, std::move(storage), n, 0, "FloatStorage"};
}

inline PickleWriter& AddTensor(PickleWriter& p, const TensorSpec& t) {
  p.Text(t.name)
      .Global("torch._utils", "_rebuild_tensor_v2")
      .Raw("((")
      .Text("storage")
      .Global("torch", t.type);
  p.Text(t.storage).Text("cpu").Int(t.elements).Raw("tQ").Int(t.offset).Ints(t.shape).Ints(t.stride);
  return p.Raw("\x89").Global("collections", "OrderedDict").Raw(")Rt").Raw("R");
}

inline std::string StateDict(const std::vector<TensorSpec>& tensors) {
  PickleWriter p;
  p.Raw("}(");
  for (const TensorSpec& t : tensors) AddTensor(p, t);
  return p.Raw("u").Stop();
}

struct ZipMember {
  std::string name, data;
  std::optional<uint32_t> crc;  // a wrong one
  uint16_t method = 0, flags = 0;
};

struct ZipStyle {
  bool zip64 = false;        // a zip64 end record, and the sizes of every entry in zip64 fields
  bool descriptors = false;  // sizes behind the data, zeros in the local header, as torch.save does
  size_t alignment = 64;     // of the data
};

inline std::string WriteZip(const std::vector<ZipMember>& members, const ZipStyle& style = {}) {
  std::string out, directory;
  for (const ZipMember& m : members) {
    const uint32_t crc = m.crc.value_or(
        crc32(0, reinterpret_cast<const Bytef*>(m.data.data()), static_cast<uInt>(m.data.size())));
    const auto size = static_cast<uint32_t>(m.data.size());
    const uint16_t flags = m.flags | (style.descriptors ? 8 : 0);
    const uint64_t header = out.size();
    const size_t unpadded = header + 30 + m.name.size() + 4;
    const size_t padding = (style.alignment - unpadded % style.alignment) % style.alignment;
    AppendNumber<uint32_t>(out, 0x04034b50);
    for (const uint16_t v : {uint16_t{0}, flags, m.method, uint16_t{0}, uint16_t{0}}) AppendNumber(out, v);
    for (const uint32_t v : {crc, size, size}) AppendNumber<uint32_t>(out, style.descriptors ? 0 : v);
    AppendNumber(out, static_cast<uint16_t>(m.name.size()));
    AppendNumber(out, static_cast<uint16_t>(4 + padding));
    out += m.name + "FB";
    AppendNumber(out, static_cast<uint16_t>(padding));
    out += std::string(padding, 'Z') + m.data;
    if (style.descriptors) {
      for (const uint32_t v : {uint32_t{0x08074b50}, crc, size, size}) AppendNumber(out, v);
    }
    AppendNumber<uint32_t>(directory, 0x02014b50);
    for (const uint16_t v : {uint16_t{0}, uint16_t{0}, flags, m.method, uint16_t{0}, uint16_t{0}}) {
      AppendNumber(directory, v);
    }
    AppendNumber(directory, crc);
    for (int i = 0; i < 2; ++i) AppendNumber<uint32_t>(directory, style.zip64 ? 0xffffffff : size);
    AppendNumber(directory, static_cast<uint16_t>(m.name.size()));
    AppendNumber(directory, static_cast<uint16_t>(style.zip64 ? 28 : 0));
    directory += std::string(10, '\0');  // comment, disk, attributes
    AppendNumber<uint32_t>(directory, style.zip64 ? 0xffffffff : static_cast<uint32_t>(header));
    directory += m.name;
    if (style.zip64) {
      for (const uint16_t v : {1, 24}) AppendNumber<uint16_t>(directory, v);
      for (const uint64_t v : {uint64_t{size}, uint64_t{size}, header}) AppendNumber(directory, v);
    }
  }
  const uint64_t at = out.size(), n = members.size();
  out += directory;
  if (style.zip64) {
    const uint64_t end64 = out.size();
    AppendNumber<uint32_t>(out, 0x06064b50);
    AppendNumber<uint64_t>(out, 44);
    out += std::string(12, '\0');  // versions, disks
    for (const uint64_t v : {n, n, uint64_t{directory.size()}, at}) AppendNumber(out, v);
    AppendNumber<uint32_t>(out, 0x07064b50);
    AppendNumber<uint32_t>(out, 0);
    AppendNumber(out, end64);
    AppendNumber<uint32_t>(out, 1);
  }
  AppendNumber<uint32_t>(out, 0x06054b50);
  AppendNumber<uint32_t>(out, 0);  // disks
  for (int i = 0; i < 2; ++i) AppendNumber<uint16_t>(out, style.zip64 ? 0xffff : static_cast<uint16_t>(n));
  AppendNumber<uint32_t>(out, style.zip64 ? 0xffffffff : static_cast<uint32_t>(directory.size()));
  AppendNumber<uint32_t>(out, style.zip64 ? 0xffffffff : static_cast<uint32_t>(at));
  AppendNumber<uint16_t>(out, 0);
  return out;
}

inline std::string Floats(const std::vector<float>& values) {
  return {reinterpret_cast<const char*>(values.data()), values.size() * sizeof(float)};
}

// The members of a file that torch.save wrote; storage i is data/i.
inline std::vector<ZipMember> TorchMembers(const std::string& pickle,
                                           const std::vector<std::string>& storages) {
  std::vector<ZipMember> members = {{"archive/data.pkl", pickle, {}}, {"archive/byteorder", "little", {}}};
  for (size_t i = 0; i < storages.size(); ++i) {
    members.push_back({"archive/data/" + std::to_string(i), storages[i], {}});
  }
  members.push_back({"archive/version", "3\n", {}});
  return members;
}

}  // namespace t6::testing
