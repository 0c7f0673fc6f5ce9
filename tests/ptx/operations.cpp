// What instructions do: those that the project's kernels are compiled to.
#include <algorithm>
#include <cmath>
#include <limits>

#include "execution.h"

namespace ptx {
namespace {

std::map<std::string, Operation> operations;

// ".f32", ".s16", ...
template <class T>
std::string type_name() {
  const char* kind = std::is_floating_point_v<T> ? ".f" : std::is_signed_v<T> ? ".s" : ".u";
  return std::is_same_v<T, bool> ? ".pred" : kind + std::to_string(8 * sizeof(T));
}

// A float32 result that is NaN has these bits on a GPU.
template <class T>
T canonical(T x) {
  if constexpr (std::is_same_v<T, float>) return std::isnan(x) ? value_of<float>(0x7fffffff) : x;
  return x;
}

template <class To, class... From, size_t... n, class F>
void define(const std::string& opcode, F f, std::index_sequence<n...>) {
  operations[opcode] = [f](Warp& warp, const Instruction& instruction, Lanes lanes) {
    uint64_t* to = warp.lanes_of(instruction.operands[0]);
    const uint64_t* from[] = {warp.lanes_of(instruction.operands[n + 1])...};
    const auto compute = [&](int lane) {
      to[lane] = bits_of<To>(canonical(To(f(value_of<From>(from[n][lane])...))));
    };
    if (lanes != kAllLanes) return for_each_lane(lanes, compute);
#pragma GCC ivdep
    for (int lane = 0; lane < kLanes; ++lane) compute(lane);
  };
}

// to = f(from...) in each lane
template <class To, class... From, class F>
void define(const std::string& opcode, F f) {
  define<To, From...>(opcode, f, std::index_sequence_for<From...>());
}

// ---- arithmetic

template <class T>
void define_comparisons() {
  const auto compare = [](const char* name, auto f) {
    define<bool, T, T>("setp." + (name + type_name<T>()), f);
  };
  compare("eq", [](T a, T b) { return a == b; });
  compare("ne", [](T a, T b) { return a < b || a > b; });
  compare("lt", [](T a, T b) { return a < b; });
  compare("le", [](T a, T b) { return a <= b; });
  compare("gt", [](T a, T b) { return a > b; });
  compare("ge", [](T a, T b) { return a >= b; });
  if constexpr (std::is_floating_point_v<T>) {  // those that are true of NaN, and of none
    compare("equ", [](T a, T b) { return !(a < b || a > b); });
    compare("neu", [](T a, T b) { return a != b; });
    compare("ltu", [](T a, T b) { return !(a >= b); });
    compare("leu", [](T a, T b) { return !(a > b); });
    compare("gtu", [](T a, T b) { return !(a <= b); });
    compare("geu", [](T a, T b) { return !(a < b); });
    compare("num", [](T a, T b) { return a == a && b == b; });
    compare("nan", [](T a, T b) { return a != a || b != b; });
  }
}

template <class T>
void define_integer() {
  using U = std::make_unsigned_t<T>;  // which may overflow
  const std::string type = type_name<T>();
  define_comparisons<T>();
  define<U, U, U>("add" + type, [](U a, U b) { return a + b; });
  define<U, U, U>("sub" + type, [](U a, U b) { return a - b; });
  define<U, U, U>("mul.lo" + type, [](U a, U b) { return uint64_t(a) * b; });
  define<U, U, U, U>("mad.lo" + type, [](U a, U b, U c) { return uint64_t(a) * b + c; });
  define<U, U>("neg" + type, [](U a) { return U(0) - a; });
  define<U, U>("not" + type, [](U a) { return ~a; });
  define<U, U, U>("and" + type, [](U a, U b) { return a & b; });
  define<U, U, U>("or" + type, [](U a, U b) { return a | b; });
  define<U, U, U>("xor" + type, [](U a, U b) { return a ^ b; });
  constexpr uint32_t kBits = 8 * sizeof(T);
  define<U, U, uint32_t>("shl" + type,
                         [](U a, uint32_t by) { return by < kBits ? uint64_t(a) << by : 0; });
  define<T, T, uint32_t>("shr" + type, [](T a, uint32_t by) {
    return by < kBits ? a >> by : std::is_signed_v<T> ? a >> (kBits - 1) : T(0);
  });
  define<T, T, T>("min" + type, [](T a, T b) { return std::min(a, b); });
  define<T, T, T>("max" + type, [](T a, T b) { return std::max(a, b); });
  const auto divide = [](T a, T b) -> T {
    if (b == 0) return T(-1);
    return std::is_signed_v<T> && b == T(-1) ? T(U(0) - U(a)) : T(a / b);
  };
  define<T, T, T>("div" + type, divide);
  define<U, T, T>("rem" + type, [divide](T a, T b) { return a - uint64_t(divide(a, b)) * b; });
}

template <class T, class Wide>
void define_wide_product() {
  define<Wide, T, T>("mul.wide" + type_name<T>(), [](T a, T b) { return Wide(a) * b; });
}

template <class T>
void define_float() {
  const std::string type = type_name<T>();
  define_comparisons<T>();
  define<T, T, T>("add.rn" + type, [](T a, T b) { return a + b; });
  define<T, T, T>("sub.rn" + type, [](T a, T b) { return a - b; });
  define<T, T, T>("mul.rn" + type, [](T a, T b) { return a * b; });
  define<T, T, T>("div.rn" + type, [](T a, T b) { return a / b; });
  define<T, T>("rcp.rn" + type, [](T a) { return T(1) / a; });
  define<T, T>("sqrt.rn" + type, [](T a) { return std::sqrt(a); });
  define<T, T>("abs" + type, [](T a) { return std::fabs(a); });
  define<T, T>("neg" + type, [](T a) { return -a; });
  const auto lesser = [](T a, T b) {  // -0 is less than 0, a number less than NaN
    return std::isnan(b) || a < b || (a == b && std::signbit(a)) ? a : b;
  };
  define<T, T, T>("min" + type, lesser);
  define<T, T, T>("max" + type, [lesser](T a, T b) { return -lesser(-a, -b); });
}

// ---- conversions

template <class To, class From>
void define_conversion(const char* rounding = "") {
  define<To, From>("cvt" + (rounding + type_name<To>()) + type_name<From>(),
                   [](From x) { return To(x); });
}

template <class From, class... To>
void define_conversions_to() {
  (define_conversion<To, From>(), ...);
  define_conversion<float, From>(".rn");
  define_conversion<double, From>(".rn");
}

template <class To, class From>
void define_truncation() {
  define<To, From>("cvt.rzi" + type_name<To>() + type_name<From>(), [](From x) {
    using Limits = std::numeric_limits<To>;
    constexpr bool kIsWide = sizeof(To) == 8 || sizeof(From) == 8;
    if (std::isnan(x)) return kIsWide ? To(uint64_t(1) << (8 * sizeof(To) - 1)) : To(0);
    if (x <= From(Limits::min())) return Limits::min();
    return x >= From(Limits::max()) ? Limits::max() : To(x);
  });
}

template <class... T>
void define_integers() {
  (define_integer<T>(), ...);
}
template <class... T>
void define_conversions() {
  (define_conversions_to<T, T...>(), ...);
}
template <class... T>
void define_truncations() {
  (define_truncation<T, float>(), ...);
  (define_truncation<T, double>(), ...);
}

// ---- bits

template <class T, class Bits = T>
void define_move() {
  define<Bits, Bits>("mov" + type_name<T>(), [](Bits a) { return a; });
  define<Bits, Bits, Bits, bool>("selp" + type_name<T>(),
                                 [](Bits a, Bits b, bool p) { return p ? a : b; });
}

// x = {a, b, ...} and {a, b, ...} = x
void define_packing(const std::string& type, size_t width) {
  operations["pack" + type] = [width](Warp& warp, const Instruction& instruction, Lanes lanes) {
    const std::vector<Operand>& operands = instruction.operands;
    const size_t bits = width / (operands.size() - 1);
    for_each_lane(lanes, [&](int lane) {
      uint64_t whole = 0;
      for (size_t i = operands.size() - 1; i > 0; --i)
        whole = whole << bits | (warp.lanes_of(operands[i])[lane] & ((uint64_t(1) << bits) - 1));
      warp.lanes_of(operands[0])[lane] = whole;
    });
  };
  operations["unpack" + type] = [width](Warp& warp, const Instruction& instruction, Lanes lanes) {
    const std::vector<Operand>& operands = instruction.operands;
    const size_t bits = width / (operands.size() - 1);
    for_each_lane(lanes, [&](int lane) {
      uint64_t whole = warp.lanes_of(operands.back())[lane];
      for (size_t i = 0; i + 1 < operands.size(); ++i, whole >>= bits)
        warp.lanes_of(operands[i])[lane] = whole & ((uint64_t(1) << bits) - 1);
    });
  };
}

uint32_t permuted(uint32_t a, uint32_t b, uint32_t selectors) {
  uint32_t bytes = 0;
  for (int i = 0; i < 4; ++i) {
    const uint32_t selector = selectors >> (4 * i) & 15;
    uint32_t byte = uint32_t((uint64_t(b) << 32 | a) >> (8 * (selector & 7))) & 255;
    if ((selector & 8) != 0) byte = (byte & 128) != 0 ? 255 : 0;
    bytes |= byte << (8 * i);
  }
  return bytes;
}

template <class T>
T extracted(T a, uint32_t begin, uint32_t count) {
  if (begin + count > 32 || count == 0) throw Fault("bits beyond a register are extracted");
  return T(uint32_t(a) << (32 - begin - count)) >> (32 - count);
}

void define_bit_operations() {
  using U = uint32_t;
  define<bool, bool>("not.pred", [](bool a) { return !a; });
  define<bool, bool, bool>("and.pred", [](bool a, bool b) { return a && b; });
  define<bool, bool, bool>("or.pred", [](bool a, bool b) { return a || b; });
  define<bool, bool, bool>("xor.pred", [](bool a, bool b) { return a != b; });
  define<U, U, U, U>("prmt.u32", permuted);
  define<U, U, U, U>("bfe.u32", extracted<U>);
  define<int32_t, int32_t, U, U>("bfe.s32", extracted<int32_t>);
  define<U, U, U, U>("shf.l.wrap.u32", [](U low, U high, U by) {
    return (uint64_t(high) << 32 | low) << (by & 31) >> 32;
  });
  for (const char* space : {"to.global", "to.shared", "shared", "param"})  // all are one
    define<uint64_t, uint64_t>(std::string("cvta.") + space + ".u64", [](uint64_t a) { return a; });
}

// ---- memory

template <class T>
void define_accesses(const std::string& space_name, Space space) {
  const auto load = [space](Warp& warp, const Instruction& instruction, Lanes lanes) {
    const size_t count = instruction.operands.size() - 1;
    for_each_lane(lanes, [&](int lane) {
      const char* from = warp.access(instruction, instruction.operands[count], space, lane,
                                     int(count * sizeof(T)), Access::kRead);
      for (size_t i = 0; i < count; ++i) {
        T element;
        std::memcpy(&element, from + i * sizeof(T), sizeof(T));
        warp.lanes_of(instruction.operands[i])[lane] = bits_of(element);
      }
    });
  };
  const auto store = [space](Warp& warp, const Instruction& instruction, Lanes lanes) {
    const size_t count = instruction.operands.size() - 1;
    for_each_lane(lanes, [&](int lane) {
      char* to = warp.access(instruction, instruction.operands[0], space, lane,
                             int(count * sizeof(T)), Access::kWrite);
      for (size_t i = 0; i < count; ++i)
        std::memcpy(to + i * sizeof(T), &warp.lanes_of(instruction.operands[i + 1])[lane],
                    sizeof(T));
    });
  };
  for (const char* vector : {"", ".v2", ".v4"}) {
    operations["ld" + space_name + vector + type_name<T>()] = load;
    operations["st" + space_name + vector + type_name<T>()] = store;
  }
}

template <class... T>
void define_all_accesses() {
  (define_accesses<T>("", Space::kGeneric), ...);
  (define_accesses<T>(".global", Space::kGlobal), ...);
  (define_accesses<T>(".shared", Space::kShared), ...);
  (define_accesses<T>(".param", Space::kParameter), ...);
}

void atomic_add(Warp& warp, const Instruction& instruction, Lanes lanes) {
  Block& block = warp.block();
  for_each_lane(lanes, [&](int lane) {
    block.order.release(instruction, warp.thread_of(lane), block.epoch);
    block.device.races.released(block.number);
    char* at = warp.access(instruction, instruction.operands[1], Space::kGlobal, lane,
                           sizeof(uint32_t), Access::kAtomic);
    uint32_t before = 0;
    std::memcpy(&before, at, sizeof before);
    const uint32_t after = before + uint32_t(warp.lanes_of(instruction.operands[2])[lane]);
    std::memcpy(at, &after, sizeof after);
    warp.lanes_of(instruction.operands[0])[lane] = before;
  });
}

// Copies at once what the hardware may copy until the group is waited for.
void copy_to_shared(Warp& warp, const Instruction& instruction, Lanes lanes) {
  if (instruction.operands.size() != 3) throw Fault(instruction, "a partial copy is not supported");
  for_each_lane(lanes, [&](int lane) {
    const int bytes = int(warp.lanes_of(instruction.operands[2])[lane]);
    const char* from = warp.access(instruction, instruction.operands[1], Space::kGlobal, lane,
                                   bytes, Access::kRead);
    char* to = warp.access(instruction, instruction.operands[0], Space::kShared, lane, bytes,
                           Access::kWrite);
    std::memcpy(to, from, size_t(bytes));
  });
}

void fence(Warp& warp, const Instruction&, Lanes lanes) {
  for_each_lane(
      lanes, [&](int lane) { warp.block().order.fence(warp.thread_of(lane), warp.block().epoch); });
}

// ---- warps

// shfl.sync to|in_range, from, by, bounds, members. source_of(lane, by): which lane is read
template <class Source>
void define_shuffle(const std::string& opcode, Source source_of) {
  operations[opcode] = [source_of](Warp& warp, const Instruction& instruction, Lanes lanes) {
    const bool tells_range = instruction.operands.size() == 6;
    const Operand* from_here = instruction.operands.data() + (tells_range ? 1 : 0);
    uint64_t from[kLanes];
    std::memcpy(from, warp.lanes_of(from_here[1]), sizeof from);
    for_each_lane(lanes, [&](int lane) {
      const auto by = int(warp.lanes_of(from_here[2])[lane] & 31);
      const auto bounds = int(warp.lanes_of(from_here[3])[lane]), segment = bounds >> 8 & 31;
      int source = source_of(lane, by);
      const bool in_range = source <= ((lane & segment) | (bounds & 31 & ~segment));
      if (!in_range) source = lane;
      if ((lanes >> source & 1) == 0) throw Fault(instruction, "a lane is read that takes no part");
      warp.lanes_of(instruction.operands[0])[lane] = from[source];
      if (tells_range) warp.lanes_of(instruction.operands[1])[lane] = in_range;
    });
  };
}

void largest_of_warp(Warp& warp, const Instruction& instruction, Lanes lanes) {
  uint32_t most = 0;
  const uint64_t* from = warp.lanes_of(instruction.operands[1]);
  for_each_lane(lanes, [&](int lane) { most = std::max(most, uint32_t(from[lane])); });
  for_each_lane(lanes, [&](int lane) { warp.lanes_of(instruction.operands[0])[lane] = most; });
}

void all_of_warp(Warp& warp, const Instruction& instruction, Lanes lanes) {
  bool all = true;
  const uint64_t* from = warp.lanes_of(instruction.operands[1]);
  for_each_lane(lanes, [&](int lane) { all = value_of<bool>(from[lane]) && all; });
  for_each_lane(lanes, [&](int lane) { warp.lanes_of(instruction.operands[0])[lane] = all; });
}

bool define_all() {
  define_integers<int16_t, int32_t, int64_t, uint16_t, uint32_t, uint64_t>();
  define<uint32_t, uint32_t, uint32_t>(
      "mul.hi.u32", [](uint32_t a, uint32_t b) { return uint64_t(a) * b >> 32; });
  define_wide_product<int16_t, int32_t>();
  define_wide_product<uint16_t, uint32_t>();
  define_wide_product<int32_t, int64_t>();
  define_wide_product<uint32_t, uint64_t>();
  define_float<float>();
  define_float<double>();
  define_conversions<int8_t, int16_t, int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t>();
  define_conversion<float, double>(".rn");
  define_conversion<double, float>();
  define_truncations<int32_t, int64_t, uint32_t, uint64_t>();
  define<double, double>("cvt.rmi.f64.f64", [](double x) { return std::floor(x); });
  define_move<bool>();
  define_move<uint16_t>();
  define_move<uint32_t>();
  define_move<uint64_t>();
  define_move<float, uint32_t>();
  define_move<double, uint64_t>();
  define_packing(".u32", 32);
  define_packing(".u64", 64);
  define_bit_operations();
  define_all_accesses<int8_t, int16_t, int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t,
                      float, double>();
  const auto nothing = [](Warp&, const Instruction&, Lanes) {};
  for (const char* opcode : {"bar.sync", "bar.red.and.pred", "cp.async.commit_group",
                             "cp.async.wait_group", "cp.async.wait_all"})
    operations[opcode] = nothing;  // barriers: see Block::execute
  operations["membar.gl"] = fence;
  operations["atom.global.add.u32"] = atomic_add;
  operations["cp.async.cg.shared.global"] = operations["cp.async.ca.shared.global"] =
      copy_to_shared;
  operations["bar.warp.sync"] = &Warp::sync_memory;
  define_shuffle("shfl.sync.down.u32", [](int lane, int by) { return lane + by; });
  define_shuffle("shfl.sync.bfly.u32", [](int lane, int by) { return lane ^ by; });
  operations["redux.sync.max.u32"] = largest_of_warp;
  operations["vote.sync.all.pred"] = all_of_warp;
  return true;
}

}  // namespace

const Operation* find_operation(std::string opcode) {
  static const bool defined = define_all();
  const size_t type = opcode.rfind(".b");  // bits are as unsigned numbers
  if (type != std::string::npos && std::isdigit(opcode[type + 2])) opcode[type + 1] = 'u';
  const auto found = operations.find(opcode);
  return defined && found != operations.end() ? &found->second : nullptr;
}

}  // namespace ptx
