#include "engine/checkpoint/pickle.h"

#include <array>
#include <string>
#include <unordered_map>
#include <utility>

#include "engine/base/check.h"
#include "engine/checkpoint/byte_reader.h"

namespace t6 {
namespace {

constexpr size_t kMaxStack = 1 << 20, kMaxMemo = 1 << 20, kMaxTuple = 64, kMaxContainers = 1 << 20,
                 kMaxText = 4096;

enum Opcode : uint8_t {
  kMark = '(',
  kStop = '.',
  kNone = 'N',
  kNewTrue = 0x88,
  kNewFalse = 0x89,
  kProto = 0x80,
  kBinInt = 'J',
  kBinInt1 = 'K',
  kBinInt2 = 'M',
  kLong1 = 0x8a,
  kBinUnicode = 'X',
  kEmptyTuple = ')',
  kTuple = 't',
  kTuple1 = 0x85,
  kTuple2 = 0x86,
  kTuple3 = 0x87,
  kEmptyDict = '}',
  kSetItem = 's',
  kSetItems = 'u',
  kBuild = 'b',
  kGlobal = 'c',
  kReduce = 'R',
  kBinPersId = 'Q',
  kBinPut = 'q',
  kLongBinPut = 'r',
  kBinGet = 'h',
  kLongBinGet = 'j',
};

enum class Kind : uint8_t {
  kMark,
  kNone,
  kBool,
  kInt,
  kText,
  kTuple,
  kDict,
  kOrderedDict,
  kRebuild,
  kStorageType,
  kStorage,
  kTensor
};

constexpr std::array<std::string_view, 12> kKindNames = {
    "a mark",    "None",    "a bool",      "an integer",         "a string",
    "a tuple",   "a dict",  "OrderedDict", "_rebuild_tensor_v2", "a storage type",
    "a storage", "a tensor"};

// Containers stand in arenas of the machine and are named by index, so that no depth of nesting can recurse.
struct Value {
  Kind kind = Kind::kNone;
  int64_t number = 0;     // kInt, kBool; the DType of a kStorageType; else the index in the arena of its kind
  std::string_view text;  // kText
};

struct Storage {
  DType dtype;
  std::string_view key;
  int64_t elements;
};

struct Tensor {
  Storage storage;
  int64_t offset;
  std::vector<int64_t> shape, stride;
};

struct Global {
  std::string_view module, name;
  Value value;
};

constexpr std::array<Global, 5> kGlobals = {{
    {"collections", "OrderedDict", {Kind::kOrderedDict, 0, {}}},
    {"torch._utils", "_rebuild_tensor_v2", {Kind::kRebuild, 0, {}}},
    {"torch", "FloatStorage", {Kind::kStorageType, static_cast<int64_t>(DType::kF32), {}}},
    {"torch", "BFloat16Storage", {Kind::kStorageType, static_cast<int64_t>(DType::kBF16), {}}},
    {"torch", "HalfStorage", {Kind::kStorageType, static_cast<int64_t>(DType::kF16), {}}},
}};

// Text of a hostile file as it may stand in a message.
std::string Printable(std::string_view text) {
  std::string out(text.substr(0, 128));
  for (char& c : out) {
    if (c < ' ' || c > '~') c = '?';
  }
  return out;
}

class Machine {
 public:
  explicit Machine(std::span<const uint8_t> pickle) : reader_(pickle) {}

  StatusOr<std::vector<PickledTensor>> Run() {
    if (reader_.Read<uint8_t>() != kProto) return Fail("does not start with a protocol number");
    if (const int protocol = reader_.Read<uint8_t>(); protocol != 2) {
      return Fail(fmt::format("has protocol {}; torch.save writes 2", protocol));
    }
    for (;;) {
      at_ = reader_.at();
      const auto opcode = reader_.Read<uint8_t>();
      if (reader_.failed()) return Fail("ends without STOP");
      if (opcode == kStop) return Finish();
      T6_RETURN_IF_ERROR(Step(opcode));
      if (reader_.failed()) return Fail("is cut off");
      if (tuples_.size() + dicts_.size() > kMaxContainers) return Fail("makes too many tuples and dicts");
      if (stack_.size() > kMaxStack) return Fail("needs too deep a stack");
    }
  }

 private:
  Status Fail(std::string_view what) const { return InvalidArgument("pickle {} at byte {}", what, at_); }
  Status Expected(std::string_view what, const Value& got) const {
    return Fail(fmt::format("has {} where {} belongs", kKindNames[static_cast<size_t>(got.kind)], what));
  }

  Status Step(uint8_t opcode) {
    switch (opcode) {
      case kMark:
        return Push({Kind::kMark, 0, {}});
      case kNone:
        return Push({Kind::kNone, 0, {}});
      case kNewTrue:
        return Push({Kind::kBool, 1, {}});
      case kNewFalse:
        return Push({Kind::kBool, 0, {}});
      case kBinInt:
        return Push({Kind::kInt, reader_.Read<int32_t>(), {}});
      case kBinInt1:
        return Push({Kind::kInt, reader_.Read<uint8_t>(), {}});
      case kBinInt2:
        return Push({Kind::kInt, reader_.Read<uint16_t>(), {}});
      case kLong1:
        return PushLong();
      case kBinUnicode:
        return PushText();
      case kEmptyTuple:
        return PushTuple(0);
      case kTuple1:
        return PushTuple(1);
      case kTuple2:
        return PushTuple(2);
      case kTuple3:
        return PushTuple(3);
      case kTuple: {
        T6_ASSIGN_OR_RETURN(const size_t n, CountToMark());
        T6_RETURN_IF_ERROR(PushTuple(n));
        stack_.erase(stack_.end() - 2);  // the mark
        return absl::OkStatus();
      }
      case kEmptyDict:
        return PushDict();
      case kSetItem:
        return SetItems(2);
      case kSetItems: {
        T6_ASSIGN_OR_RETURN(const size_t n, CountToMark());
        stack_.erase(stack_.end() - 1 - static_cast<std::ptrdiff_t>(n));
        return SetItems(n);
      }
      case kBuild:
        return Build();
      case kGlobal:
        return PushGlobal();
      case kReduce:
        return Reduce();
      case kBinPersId:
        return PushStorage();
      case kBinPut:
        return Put(reader_.Read<uint8_t>());
      case kLongBinPut:
        return Put(reader_.Read<uint32_t>());
      case kBinGet:
        return Get(reader_.Read<uint8_t>());
      case kLongBinGet:
        return Get(reader_.Read<uint32_t>());
      default:
        return Fail(fmt::format("has opcode 0x{:02x}, which torch.save does not write,", opcode));
    }
  }

  Status Push(Value value) {
    stack_.push_back(value);
    return absl::OkStatus();
  }

  StatusOr<Value> Pop() {
    if (stack_.empty() || stack_.back().kind == Kind::kMark) return Fail("takes from an empty stack");
    const Value value = stack_.back();
    stack_.pop_back();
    return value;
  }

  StatusOr<Value> Pop(Kind kind) {
    T6_ASSIGN_OR_RETURN(const Value value, Pop());
    if (value.kind != kind) return Expected(kKindNames[static_cast<size_t>(kind)], value);
    return value;
  }

  StatusOr<size_t> CountToMark() const {
    for (size_t n = 0; n < stack_.size(); ++n) {
      if (stack_[stack_.size() - 1 - n].kind == Kind::kMark) return n;
    }
    return Fail("has no mark on its stack");
  }

  Status PushLong() {
    const size_t n = reader_.Read<uint8_t>();
    if (n > 8) return Fail(fmt::format("has an integer of {} bytes", n));
    const std::string_view bytes = reader_.Take(n);
    if (bytes.size() != n) return Fail("is cut off");
    uint64_t bits = n > 0 && static_cast<int8_t>(bytes.back()) < 0 ? ~uint64_t{0} : 0;  // two's complement
    for (size_t i = n; i-- > 0;) bits = bits << 8 | static_cast<uint8_t>(bytes[i]);
    return Push({Kind::kInt, static_cast<int64_t>(bits), {}});
  }

  Status PushText() {
    const uint32_t n = reader_.Read<uint32_t>();
    if (n > kMaxText) return Fail(fmt::format("has a string of {} bytes", n));
    return Push({Kind::kText, 0, reader_.Take(n)});
  }

  Status PushTuple(size_t n) {
    if (n > kMaxTuple) return Fail(fmt::format("has a tuple of {}", n));
    std::vector<Value> items(n);
    for (size_t i = n; i-- > 0;) {
      T6_ASSIGN_OR_RETURN(items[i], Pop());
    }
    tuples_.push_back(std::move(items));
    return Push({Kind::kTuple, static_cast<int64_t>(tuples_.size() - 1), {}});
  }

  Status PushDict() {
    dicts_.emplace_back();
    return Push({Kind::kDict, static_cast<int64_t>(dicts_.size() - 1), {}});
  }

  // The top `n` values are keys and values in turn; the dict lies below.
  Status SetItems(size_t n) {
    if (n % 2 != 0) return Fail("sets a key without a value");
    if (stack_.size() < n + 1) return Fail("takes from an empty stack");
    const size_t first = stack_.size() - n;
    const Value& dict = stack_[first - 1];
    if (dict.kind != Kind::kDict) return Expected("a dict", dict);
    auto& items = dicts_[static_cast<size_t>(dict.number)];
    for (size_t i = first; i < stack_.size(); i += 2) {
      if (stack_[i].kind != Kind::kText) return Expected("a string as key", stack_[i]);
      if (stack_[i + 1].kind == Kind::kMark) return Expected("a value", stack_[i + 1]);
      items.emplace_back(stack_[i].text, stack_[i + 1]);
    }
    stack_.resize(first);
    return absl::OkStatus();
  }

  // An OrderedDict's attributes (_metadata: versions of modules) say nothing about tensors.
  Status Build() {
    T6_RETURN_IF_ERROR(Pop(Kind::kDict).status());
    if (stack_.empty() || stack_.back().kind != Kind::kDict) return Fail("gives attributes to no dict");
    return absl::OkStatus();
  }

  Status PushGlobal() {
    const std::string_view module = reader_.Line(kMaxText), name = reader_.Line(kMaxText);
    if (reader_.failed()) return Fail("is cut off");
    for (const Global& global : kGlobals) {
      if (global.module == module && global.name == name) return Push(global.value);
    }
    if (module == "torch" && name.ends_with("Storage")) {
      return Fail(
          fmt::format("has tensors of torch.{}; float32, float16 and bfloat16 are read,", Printable(name)));
    }
    return Fail(fmt::format("asks for \"{}.{}\", which no state dict needs (nothing was executed),",
                            Printable(module), Printable(name)));
  }

  Status Reduce() {
    T6_ASSIGN_OR_RETURN(const Value arguments, Pop(Kind::kTuple));
    T6_ASSIGN_OR_RETURN(const Value callable, Pop());
    const std::vector<Value>& args = tuples_[static_cast<size_t>(arguments.number)];
    if (callable.kind == Kind::kRebuild) return RebuildTensor(args);
    if (callable.kind != Kind::kOrderedDict) return Expected("something to call", callable);
    if (!args.empty()) return Fail("makes an OrderedDict with arguments");
    return PushDict();
  }

  // (storage, offset, size, stride, requires_grad, backward_hooks)
  Status RebuildTensor(const std::vector<Value>& args) {
    if (args.size() != 6) return Fail(fmt::format("makes a tensor from {} arguments, not 6,", args.size()));
    if (args[0].kind != Kind::kStorage) return Expected("a storage", args[0]);
    if (args[1].kind != Kind::kInt) return Expected("an integer", args[1]);
    if (args[4].kind != Kind::kBool) return Expected("a bool", args[4]);
    if (args[5].kind != Kind::kDict) return Expected("a dict", args[5]);
    Tensor tensor{storages_[static_cast<size_t>(args[0].number)], args[1].number, {}, {}};
    T6_ASSIGN_OR_RETURN(tensor.shape, Integers(args[2]));
    T6_ASSIGN_OR_RETURN(tensor.stride, Integers(args[3]));
    tensors_.push_back(std::move(tensor));
    return Push({Kind::kTensor, static_cast<int64_t>(tensors_.size() - 1), {}});
  }

  StatusOr<std::vector<int64_t>> Integers(const Value& tuple) const {
    if (tuple.kind != Kind::kTuple) return Expected("a tuple", tuple);
    std::vector<int64_t> out;
    for (const Value& item : tuples_[static_cast<size_t>(tuple.number)]) {
      if (item.kind != Kind::kInt) return Expected("an integer", item);
      out.push_back(item.number);
    }
    return out;
  }

  // ("storage", type, key, location, number of elements)
  Status PushStorage() {
    T6_ASSIGN_OR_RETURN(const Value id, Pop(Kind::kTuple));
    const std::vector<Value>& args = tuples_[static_cast<size_t>(id.number)];
    constexpr std::array kKinds = {Kind::kText, Kind::kStorageType, Kind::kText, Kind::kText, Kind::kInt};
    if (args.size() != kKinds.size())
      return Fail(fmt::format("names a storage by {} items, not 5,", args.size()));
    for (size_t i = 0; i < args.size(); ++i) {
      if (args[i].kind != kKinds[i]) return Expected(kKindNames[static_cast<size_t>(kKinds[i])], args[i]);
    }
    if (args[0].text != "storage")
      return Fail(fmt::format("has a persistent id \"{}\"", Printable(args[0].text)));
    storages_.push_back({static_cast<DType>(args[1].number), args[2].text, args[4].number});
    return Push({Kind::kStorage, static_cast<int64_t>(storages_.size() - 1), {}});
  }

  Status Put(uint32_t index) {
    if (stack_.empty() || stack_.back().kind == Kind::kMark) return Fail("takes from an empty stack");
    memo_[index] = stack_.back();
    if (memo_.size() > kMaxMemo) return Fail("remembers too much");
    return absl::OkStatus();
  }

  Status Get(uint32_t index) {
    const auto found = memo_.find(index);
    if (found == memo_.end()) return Fail(fmt::format("asks for what it never remembered, {},", index));
    return Push(found->second);
  }

  StatusOr<std::vector<PickledTensor>> Finish() {
    if (stack_.size() != 1) return Fail(fmt::format("leaves {} values", stack_.size()));
    if (stack_[0].kind != Kind::kDict) return Expected("a dict of tensors", stack_[0]);
    if (reader_.left() != 0) return Fail(fmt::format("goes on for {} bytes after its end", reader_.left()));
    std::vector<PickledTensor> out;
    for (const auto& [name, value] : dicts_[static_cast<size_t>(stack_[0].number)]) {
      if (value.kind != Kind::kTensor) {
        return InvalidArgument("entry \"{}\" of the state dict is {}, not a tensor", Printable(name),
                               kKindNames[static_cast<size_t>(value.kind)]);
      }
      const Tensor& t = tensors_[static_cast<size_t>(value.number)];
      out.push_back({name, t.storage.key, t.storage.dtype, t.storage.elements, t.offset, t.shape, t.stride});
    }
    return out;
  }

  ByteReader reader_;
  uint64_t at_ = 0;  // of the opcode in hand
  std::vector<Value> stack_;
  std::unordered_map<uint32_t, Value> memo_;
  std::vector<std::vector<Value>> tuples_;
  std::vector<std::vector<std::pair<std::string_view, Value>>> dicts_;
  std::vector<Storage> storages_;
  std::vector<Tensor> tensors_;
};

}  // namespace

StatusOr<std::vector<PickledTensor>> ReadPickledStateDict(std::span<const uint8_t> pickle) {
  if (pickle.size() > kMaxPickleBytes) {
    return InvalidArgument("pickle has {} bytes; the limit is {}", pickle.size(), kMaxPickleBytes);
  }
  return Machine(pickle).Run();
}

}  // namespace t6
