#include "controller/formats/torch_file.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <set>
#include <unordered_map>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "controller/formats/stored_zip.h"
#include "proto/base/json.h"
#include "proto/base/status_macros.h"

namespace ballast {
namespace {

using Value = TorchFile::Value;
using Kind = Value::Kind;
using Type = TorchTensor::Type;

static_assert(std::endian::native == std::endian::little, "tensors are read as they lie in the file");

int64_t ElementBytes(Type type) { return type == Type::kInt32 || type == Type::kFloat32 ? 4 : 8; }

constexpr char kOrderedDict[] = "collections OrderedDict";
constexpr char kRebuildTensor[] = "torch._utils _rebuild_tensor_v2";
struct StorageGlobal {
  const char* name;
  Type type;
};
constexpr StorageGlobal kStorages[] = {{"torch IntStorage", Type::kInt32},
                                       {"torch LongStorage", Type::kInt64},
                                       {"torch FloatStorage", Type::kFloat32},
                                       {"torch DoubleStorage", Type::kFloat64}};
// Module and name of every global that may be used.
constexpr const char* kAllowed[] = {kOrderedDict,      kRebuildTensor,    kStorages[0].name,
                                    kStorages[1].name, kStorages[2].name, kStorages[3].name};

// Instructions of pickle protocols 2 to 5, see Python's pickletools.
enum Op : unsigned char {
  kMark = '(',
  kStop = '.',
  kNone = 'N',
  kBinInt = 'J',
  kBinInt1 = 'K',
  kBinInt2 = 'M',
  kBinFloat = 'G',
  kBinUnicode = 'X',
  kEmptyDict = '}',
  kEmptyList = ']',
  kEmptyTuple = ')',
  kTuple = 't',
  kAppend = 'a',
  kAppends = 'e',
  kSetItem = 's',
  kSetItems = 'u',
  kBinPut = 'q',
  kLongBinPut = 'r',
  kBinGet = 'h',
  kLongBinGet = 'j',
  kGlobal = 'c',
  kReduce = 'R',
  kBinPersId = 'Q',
  kProto = 0x80,
  kTuple1 = 0x85,
  kTuple2 = 0x86,
  kTuple3 = 0x87,
  kNewTrue = 0x88,
  kNewFalse = 0x89,
  kLong1 = 0x8a,
  kShortBinUnicode = 0x8c,
  kStackGlobal = 0x93,
  kMemoize = 0x94,
  kFrame = 0x95,
};

// The stack machine. Values are never copied, only their indices, so that what refers to itself or is shared many times
// costs nothing.
class Unpickler {
 public:
  Unpickler(std::string_view pickle, const std::map<std::string, std::string_view>& entries, std::string folder,
            std::vector<Value>& values)
      : pickle_(pickle), entries_(entries), folder_(std::move(folder)), values_(values) {}

  absl::StatusOr<int32_t> Run() {
    while (true) {
      start_ = at_;
      BALLAST_ASSIGN_OR_RETURN(const uint64_t op, Number(1));
      if (op == kStop) break;
      BALLAST_RETURN_IF_ERROR(Execute(static_cast<unsigned char>(op)));
      if (values_.size() > kMaxTorchValues) return Error(absl::StrCat("more than ", kMaxTorchValues, " values"));
    }
    if (stack_.size() != 1) return Error(absl::StrCat("STOP with ", stack_.size(), " values, not one"));
    return stack_[0];
  }

 private:
  absl::Status Error(const absl::AlphaNum& what) const {
    return absl::InvalidArgumentError(absl::StrCat("data.pkl byte ", start_, ": ", what));
  }

  absl::StatusOr<std::string_view> Bytes(uint64_t count) {
    if (count > pickle_.size() - at_) return Error("the pickle is cut");
    at_ += count;
    return pickle_.substr(at_ - count, count);
  }
  absl::StatusOr<uint64_t> Number(int size) {
    BALLAST_ASSIGN_OR_RETURN(const std::string_view bytes, Bytes(size));
    uint64_t value = 0;
    std::memcpy(&value, bytes.data(), size);
    return value;
  }
  absl::StatusOr<std::string_view> Line() {
    const size_t end = pickle_.find('\n', at_);
    if (end == std::string_view::npos) return Error("the pickle is cut");
    const std::string_view line = pickle_.substr(at_, end - at_);
    at_ = end + 1;
    return line;
  }

  void Push(Value value) {
    stack_.push_back(static_cast<int32_t>(values_.size()));
    values_.push_back(std::move(value));
  }
  void PushInt(int64_t integer) {
    const auto [known, first] = ints_.emplace(integer, static_cast<int32_t>(values_.size()));
    if (first) values_.push_back({.kind = Kind::kInt, .integer = integer});
    stack_.push_back(known->second);
  }
  absl::StatusOr<int32_t> Pop() {
    if (stack_.empty()) return Error("a value is missing on the stack");
    const int32_t top = stack_.back();
    stack_.pop_back();
    return top;
  }
  // What lies above the last mark, which goes too.
  absl::StatusOr<std::vector<int32_t>> PopMarked() {
    const auto mark = std::find_if(stack_.rbegin(), stack_.rend(),
                                   [this](int32_t value) { return values_[value].kind == Kind::kMark; });
    if (mark == stack_.rend()) return Error("a mark is missing on the stack");
    std::vector<int32_t> items(mark.base(), stack_.end());
    stack_.erase(mark.base() - 1, stack_.end());
    return items;
  }
  absl::StatusOr<std::vector<int32_t>> PopSome(int count) {
    std::vector<int32_t> items(count);
    for (int i = count - 1; i >= 0; --i) {
      BALLAST_ASSIGN_OR_RETURN(items[i], Pop());
    }
    return items;
  }
  // The container that items go into.
  absl::StatusOr<Value*> Top(Kind kind, const char* what) {
    if (stack_.empty() || values_[stack_.back()].kind != kind) {
      return Error(absl::StrCat("items for ", what, ", and there is none"));
    }
    return &values_[stack_.back()];
  }

  absl::Status Add(std::vector<int32_t> items) {
    BALLAST_ASSIGN_OR_RETURN(Value * list, Top(Kind::kList, "a list"));
    list->items.insert(list->items.end(), items.begin(), items.end());
    return absl::OkStatus();
  }
  absl::Status Set(std::vector<int32_t> items) {
    BALLAST_ASSIGN_OR_RETURN(Value * dict, Top(Kind::kDict, "a dict"));
    if (items.size() % 2 != 0) return Error("a key without a value");
    const int32_t id = stack_.back();
    for (size_t i = 0; i < items.size(); i += 2) {
      const Value& key = values_[items[i]];
      if (key.kind != Kind::kString) return Error(absl::StrCat("a dict's key is ", Describe(key), ", want a str"));
      if (!keys_.emplace(id, key.text).second) return Error(absl::StrCat("the key ", Quote(key.text), " twice"));
    }
    dict->items.insert(dict->items.end(), items.begin(), items.end());
    return absl::OkStatus();
  }

  absl::Status PushTuple(absl::StatusOr<std::vector<int32_t>> items) {
    if (!items.ok()) return items.status();
    Push({.kind = Kind::kTuple, .items = *std::move(items)});
    return absl::OkStatus();
  }
  absl::Status PushText(int length_size) {
    BALLAST_ASSIGN_OR_RETURN(const uint64_t length, Number(length_size));
    BALLAST_ASSIGN_OR_RETURN(const std::string_view text, Bytes(length));
    Push({.kind = Kind::kString, .text = text});
    return absl::OkStatus();
  }
  absl::Status PushGlobal(std::string_view module, std::string_view name) {
    const std::string full = absl::StrCat(std::string(module), " ", std::string(name));
    for (const char* known : kAllowed) {
      if (full != known) continue;
      Push({.kind = Kind::kGlobal, .text = known});
      return absl::OkStatus();
    }
    return Error(absl::StrCat("wants to use ", Quote(full), "; allowed are ", absl::StrJoin(kAllowed, ", ")));
  }

  absl::Status Put(uint64_t slot) {
    if (stack_.empty()) return Error("a value is missing on the stack");
    memo_[slot] = stack_.back();
    return absl::OkStatus();
  }
  absl::Status Get(uint64_t slot) {
    const auto found = memo_.find(slot);
    if (found == memo_.end()) return Error(absl::StrCat("memo ", slot, " was never filled"));
    stack_.push_back(found->second);
    return absl::OkStatus();
  }

  // ('storage', type, key, location, elements): the entry FOLDER/data/KEY.
  absl::Status LoadStorage() {
    BALLAST_ASSIGN_OR_RETURN(const int32_t top, Pop());
    const Value& id = values_[top];
    const auto item = [&](size_t i) -> const Value& { return values_[id.items[i]]; };
    if (id.kind != Kind::kTuple || id.items.size() != 5 || item(0).kind != Kind::kString || item(0).text != "storage" ||
        item(1).kind != Kind::kGlobal || item(2).kind != Kind::kString || item(3).kind != Kind::kString ||
        item(4).kind != Kind::kInt) {
      return Error("a persistent id that is not ('storage', type, key, location, elements)");
    }
    Value storage{.kind = Kind::kStorage};
    bool known = false;
    for (const StorageGlobal& global : kStorages) {
      if (item(1).text != global.name) continue;
      storage.tensor.type = global.type;
      known = true;
    }
    if (!known) return Error(absl::StrCat(Quote(item(1).text), " is no storage"));
    const std::string name = absl::StrCat(folder_, "data/", std::string(item(2).text));
    const auto entry = entries_.find(name);
    if (entry == entries_.end()) return Error(absl::StrCat("there is no entry ", Quote(name)));
    const int64_t elements = item(4).integer;
    const int64_t bytes = ElementBytes(storage.tensor.type);
    if (elements < 0 || static_cast<uint64_t>(elements) != entry->second.size() / bytes ||
        entry->second.size() % bytes != 0) {
      return Error(absl::StrCat("entry ", Quote(name), " has ", entry->second.size(), " bytes, want ", elements,
                                " elements of ", bytes));
    }
    storage.tensor.storage = entry->second;
    Push(std::move(storage));
    return absl::OkStatus();
  }

  absl::Status Integers(const Value& tuple, const char* what, std::vector<int64_t>& out) const {
    // torch itself knows 64 dimensions; loads have 3.
    constexpr size_t kMostDimensions = 8;
    if (tuple.kind != Kind::kTuple || tuple.items.size() > kMostDimensions) {
      return Error(absl::StrCat("a tensor's ", what, " is ", Describe(tuple), ", want a tuple of at most ",
                                kMostDimensions, " ints"));
    }
    for (const int32_t item : tuple.items) {
      const Value& value = values_[item];
      if (value.kind != Kind::kInt || value.integer < 0) {
        return Error(absl::StrCat("a tensor's ", what, " has ", Describe(value), ", want ints of at least 0"));
      }
      out.push_back(value.integer);
    }
    return absl::OkStatus();
  }

  // _rebuild_tensor_v2(storage, offset, size, stride, requires_grad, hooks)
  absl::Status RebuildTensor(const Value& arguments) {
    if (arguments.items.size() != 6) {
      return Error(absl::StrCat("a tensor of ", arguments.items.size(), " arguments, want 6"));
    }
    const auto argument = [&](size_t i) -> const Value& { return values_[arguments.items[i]]; };
    if (argument(0).kind != Kind::kStorage) {
      return Error(absl::StrCat("a tensor's storage is ", Describe(argument(0))));
    }
    if (argument(1).kind != Kind::kInt || argument(1).integer < 0) {
      return Error(absl::StrCat("a tensor's offset is ", Describe(argument(1)), ", want an int of at least 0"));
    }
    Value out{.kind = Kind::kTensor};
    TorchTensor& tensor = out.tensor;
    tensor = argument(0).tensor;
    tensor.offset = argument(1).integer;
    BALLAST_RETURN_IF_ERROR(Integers(argument(2), "size", tensor.shape));
    BALLAST_RETURN_IF_ERROR(Integers(argument(3), "stride", tensor.stride));
    if (tensor.shape.size() != tensor.stride.size()) {
      return Error(absl::StrCat("a tensor of ", tensor.shape.size(), " sizes and ", tensor.stride.size(), " strides"));
    }
    const int64_t stored = static_cast<int64_t>(tensor.storage.size()) / ElementBytes(tensor.type);
    // In 128 bits: factors are below 2^63, and what exceeds `stored` is not multiplied on.
    __int128 elements = 1;
    __int128 last = tensor.offset;
    bool empty = false;
    for (const int64_t size : tensor.shape) empty = empty || size == 0;
    for (size_t i = 0; i < tensor.shape.size() && !empty; ++i) {
      elements *= tensor.shape[i];
      last += static_cast<__int128>(tensor.shape[i] - 1) * tensor.stride[i];
      if (elements > stored || last >= stored) break;
    }
    if (!empty && (elements > stored || last >= stored)) {
      return Error(absl::StrCat("a tensor [", absl::StrJoin(tensor.shape, ", "), "] from element ", tensor.offset,
                                " is not in its storage of ", stored, " elements"));
    }
    if (argument(4).kind != Kind::kBool) return Error("a tensor's requires_grad is no bool");
    if (argument(5).kind != Kind::kDict || !argument(5).items.empty()) return Error("a tensor has hooks");
    Push(std::move(out));
    return absl::OkStatus();
  }

  absl::Status Reduce() {
    BALLAST_ASSIGN_OR_RETURN(const std::vector<int32_t> both, PopSome(2));
    const std::string_view callable = values_[both[0]].kind == Kind::kGlobal ? values_[both[0]].text : "";
    if (values_[both[1]].kind != Kind::kTuple) return Error("arguments that are no tuple");
    if (callable == kOrderedDict) {
      if (!values_[both[1]].items.empty()) return Error("OrderedDict with arguments");
      Push({.kind = Kind::kDict});
      return absl::OkStatus();
    }
    // A copy: pushing moves the values.
    if (callable == kRebuildTensor) return RebuildTensor(Value(values_[both[1]]));
    return Error(absl::StrCat("calls ", Describe(values_[both[0]])));
  }

  absl::Status Execute(unsigned char op) {
    switch (op) {
      case kProto: {
        BALLAST_ASSIGN_OR_RETURN(const uint64_t version, Number(1));
        if (version >= 2 && version <= 5) return absl::OkStatus();
        return Error(absl::StrCat("pickle protocol ", version, ", want 2 to 5"));
      }
      case kFrame:
        return Bytes(8).status();
      case kMark:
        Push({.kind = Kind::kMark});
        return absl::OkStatus();
      case kNone:
        Push({});
        return absl::OkStatus();
      case kNewTrue:
      case kNewFalse:
        Push({.kind = Kind::kBool, .integer = op == kNewTrue ? 1 : 0});
        return absl::OkStatus();
      case kBinInt1:
      case kBinInt2:
      case kBinInt: {
        const int size = op == kBinInt1 ? 1 : op == kBinInt2 ? 2 : 4;
        BALLAST_ASSIGN_OR_RETURN(const uint64_t number, Number(size));
        PushInt(op == kBinInt ? static_cast<int32_t>(number) : static_cast<int64_t>(number));
        return absl::OkStatus();
      }
      case kLong1: {
        BALLAST_ASSIGN_OR_RETURN(const uint64_t size, Number(1));
        if (size > 8) return Error(absl::StrCat("an int of ", size, " bytes, want at most 8"));
        BALLAST_ASSIGN_OR_RETURN(uint64_t number, Number(static_cast<int>(size)));
        // Two's complement of `size` bytes.
        if (size > 0 && size < 8 && (number >> (8 * size - 1) & 1) != 0) number |= ~uint64_t{0} << (8 * size);
        PushInt(static_cast<int64_t>(number));
        return absl::OkStatus();
      }
      case kBinFloat: {
        BALLAST_ASSIGN_OR_RETURN(const uint64_t big_endian, Number(8));
        Push({.kind = Kind::kFloat, .number = std::bit_cast<double>(__builtin_bswap64(big_endian))});
        return absl::OkStatus();
      }
      case kShortBinUnicode:
        return PushText(1);
      case kBinUnicode:
        return PushText(4);
      case kEmptyDict:
        Push({.kind = Kind::kDict});
        return absl::OkStatus();
      case kEmptyList:
        Push({.kind = Kind::kList});
        return absl::OkStatus();
      case kEmptyTuple:
        Push({.kind = Kind::kTuple});
        return absl::OkStatus();
      case kTuple:
        return PushTuple(PopMarked());
      case kTuple1:
      case kTuple2:
      case kTuple3:
        return PushTuple(PopSome(op - kTuple1 + 1));
      case kAppend: {
        BALLAST_ASSIGN_OR_RETURN(const int32_t item, Pop());
        return Add({item});
      }
      case kAppends: {
        BALLAST_ASSIGN_OR_RETURN(std::vector<int32_t> items, PopMarked());
        return Add(std::move(items));
      }
      case kSetItem: {
        BALLAST_ASSIGN_OR_RETURN(std::vector<int32_t> items, PopSome(2));
        return Set(std::move(items));
      }
      case kSetItems: {
        BALLAST_ASSIGN_OR_RETURN(std::vector<int32_t> items, PopMarked());
        return Set(std::move(items));
      }
      case kBinPut:
      case kLongBinPut: {
        BALLAST_ASSIGN_OR_RETURN(const uint64_t slot, Number(op == kBinPut ? 1 : 4));
        return Put(slot);
      }
      case kMemoize:
        return Put(memo_.size());
      case kBinGet:
      case kLongBinGet: {
        BALLAST_ASSIGN_OR_RETURN(const uint64_t slot, Number(op == kBinGet ? 1 : 4));
        return Get(slot);
      }
      case kGlobal: {
        BALLAST_ASSIGN_OR_RETURN(const std::string_view module, Line());
        BALLAST_ASSIGN_OR_RETURN(const std::string_view name, Line());
        return PushGlobal(module, name);
      }
      case kStackGlobal: {
        BALLAST_ASSIGN_OR_RETURN(const std::vector<int32_t> names, PopSome(2));
        if (values_[names[0]].kind != Kind::kString || values_[names[1]].kind != Kind::kString) {
          return Error("a global whose name is no str");
        }
        return PushGlobal(values_[names[0]].text, values_[names[1]].text);
      }
      case kBinPersId:
        return LoadStorage();
      case kReduce:
        return Reduce();
      default:
        return Error(absl::StrCat("instruction 0x", absl::Hex(op, absl::kZeroPad2), " is not allowed"));
    }
  }

  const std::string_view pickle_;
  const std::map<std::string, std::string_view>& entries_;
  // Of the archive: "archive/".
  const std::string folder_;
  std::vector<Value>& values_;
  uint64_t at_ = 0;
  // Of the instruction under way.
  uint64_t start_ = 0;
  std::vector<int32_t> stack_;
  std::unordered_map<uint64_t, int32_t> memo_;
  // The value that each int has.
  std::unordered_map<int64_t, int32_t> ints_;
  // (dict, key) of all dicts.
  std::set<std::pair<int32_t, std::string_view>> keys_;
};

}  // namespace

int64_t TorchTensor::size() const {
  int64_t elements = 1;
  // Without elements the other sizes can be anything.
  for (const int64_t s : shape) {
    if (s == 0) return 0;
  }
  for (const int64_t s : shape) elements *= s;
  return elements;
}

double TorchTensor::at(int64_t index) const {
  int64_t element = offset;
  for (size_t i = shape.size(); i-- > 0;) {
    element += index % shape[i] * stride[i];
    index /= shape[i];
  }
  const char* at = storage.data() + element * ElementBytes(type);
  const auto read = [at](auto value) {
    std::memcpy(&value, at, sizeof(value));
    return static_cast<double>(value);
  };
  switch (type) {
    case Type::kInt32:
      return read(int32_t{});
    case Type::kInt64:
      return read(int64_t{});
    case Type::kFloat32:
      return read(float{});
    case Type::kFloat64:
      return read(double{});
  }
  return 0;
}

absl::StatusOr<TorchFile> TorchFile::Parse(std::string_view bytes) {
  BALLAST_ASSIGN_OR_RETURN(const auto entries, ReadStoredZip(bytes));
  return FromEntries(entries);
}

absl::StatusOr<TorchFile> TorchFile::FromEntries(const std::map<std::string, std::string_view>& entries) {
  std::string folder;
  for (const auto& [name, data] : entries) {
    const size_t slash = name.find('/');
    if (slash == std::string::npos || name.substr(slash) != "/data.pkl") continue;
    if (!folder.empty()) return absl::InvalidArgumentError("two data.pkl: not one file of torch.save");
    folder = name.substr(0, slash + 1);
  }
  if (folder.empty()) return absl::InvalidArgumentError("no data.pkl: not a file of torch.save");
  if (const auto order = entries.find(folder + "byteorder"); order != entries.end() && order->second != "little") {
    return absl::InvalidArgumentError(absl::StrCat("byteorder ", Quote(order->second, 16), ", want \"little\""));
  }
  TorchFile file;
  Unpickler unpickler(entries.at(folder + "data.pkl"), entries, folder, file.values_);
  BALLAST_ASSIGN_OR_RETURN(file.root_, unpickler.Run());
  return file;
}

const TorchFile::Value* TorchFile::Find(const Value& dict, std::string_view key) const {
  if (dict.kind != Kind::kDict) return nullptr;
  for (size_t i = 0; i + 1 < dict.items.size(); i += 2) {
    if (values_[dict.items[i]].text == key) return &values_[dict.items[i + 1]];
  }
  return nullptr;
}

std::string Describe(const TorchFile::Value& value) {
  switch (value.kind) {
    case Kind::kNone:
      return "None";
    case Kind::kBool:
      return value.integer != 0 ? "True" : "False";
    case Kind::kInt:
      return absl::StrCat("int ", value.integer);
    case Kind::kFloat:
      return absl::StrCat("float ", value.number);
    case Kind::kString:
      return absl::StrCat("str ", Quote(value.text, 64));
    case Kind::kList:
      return absl::StrCat("a list of ", value.items.size());
    case Kind::kTuple:
      return absl::StrCat("a tuple of ", value.items.size());
    case Kind::kDict:
      return absl::StrCat("a dict of ", value.items.size() / 2);
    case Kind::kTensor:
      return absl::StrCat("a tensor [", absl::StrJoin(value.tensor.shape, ", "), "]");
    case Kind::kStorage:
      return "a storage";
    case Kind::kGlobal:
      return absl::StrCat("the global ", Quote(value.text, 64));
    case Kind::kMark:
      return "a mark";
  }
  return "";
}

}  // namespace ballast
