// What instructions do: those that the project's kernels are compiled to, and no others.
#include <algorithm>
#include <cmath>
#include <limits>

#include "execution.h"

namespace ptx {
namespace {

std::map<std::string, Operation>& table() {
  static std::map<std::string, Operation> operations;
  return operations;
}

void define(const std::string& opcode, Operation operation) {
  table()[opcode] = std::move(operation);
}

// A float32 result that is NaN has these bits on a GPU.
float canonical(float x) { return std::isnan(x) ? value_of<float>(0x7fffffff) : x; }
template <class T>
T canonical(T x) {
  return x;
}

template <class To, class... From, size_t... n, class F>
Operation elementwise(F f, std::index_sequence<n...>) {
  return [f](Warp& warp, const Instruction& instruction, Lanes lanes) {
    uint64_t* to = warp.lanes_of(instruction.operands[0]);
    const uint64_t* from[] = {warp.lanes_of(instruction.operands[n + 1])...};
    const auto one = [&](int lane) {
      to[lane] = bits_of<To>(canonical(To(f(value_of<From>(from[n][lane])...))));
    };
    if (lanes == ~Lanes(0)) {
#pragma GCC ivdep
      for (int lane = 0; lane < kLanes; ++lane) one(lane);
    } else {
      for_each_lane(lanes, one);
    }
  };
}

// to = f(from...) in each lane
template <class To, class... From, class F>
Operation elementwise(F f) {
  return elementwise<To, From...>(f, std::index_sequence_for<From...>());
}

// ---- arithmetic

template <class T>  // unsigned: the same for signed numbers
void define_for_bits(const std::string& type) {
  define("add" + type, elementwise<T, T, T>([](T a, T b) { return a + b; }));
  define("sub" + type, elementwise<T, T, T>([](T a, T b) { return a - b; }));
  define("mul.lo" + type, elementwise<T, T, T>([](T a, T b) { return uint64_t(a) * b; }));
  define("mad.lo" + type,
         elementwise<T, T, T, T>([](T a, T b, T c) { return uint64_t(a) * b + c; }));
  define("neg" + type, elementwise<T, T>([](T a) { return T(0) - a; }));
  define("not" + type, elementwise<T, T>([](T a) { return ~a; }));
  define("and" + type, elementwise<T, T, T>([](T a, T b) { return a & b; }));
  define("or" + type, elementwise<T, T, T>([](T a, T b) { return a | b; }));
  define("xor" + type, elementwise<T, T, T>([](T a, T b) { return a ^ b; }));
  define("shl" + type, elementwise<T, T, uint32_t>([](T a, uint32_t by) {
           return by < 8 * sizeof(T) ? uint64_t(a) << by : 0;
         }));
}

template <class T>
void define_comparisons(const std::string& type) {
  define("setp.eq" + type, elementwise<bool, T, T>([](T a, T b) { return a == b; }));
  define("setp.ne" + type, elementwise<bool, T, T>([](T a, T b) { return a < b || a > b; }));
  define("setp.lt" + type, elementwise<bool, T, T>([](T a, T b) { return a < b; }));
  define("setp.le" + type, elementwise<bool, T, T>([](T a, T b) { return a <= b; }));
  define("setp.gt" + type, elementwise<bool, T, T>([](T a, T b) { return a > b; }));
  define("setp.ge" + type, elementwise<bool, T, T>([](T a, T b) { return a >= b; }));
}

template <class T>
void define_for_integers(const std::string& type) {
  using Unsigned = std::make_unsigned_t<T>;
  define_for_bits<Unsigned>(type);
  define_comparisons<T>(type);
  define("shr" + type, elementwise<T, T, uint32_t>([](T a, uint32_t by) {
           constexpr uint32_t kBits = 8 * sizeof(T);
           return by < kBits ? a >> by : std::is_signed_v<T> ? a >> (kBits - 1) : T(0);
         }));
  define("min" + type, elementwise<T, T, T>([](T a, T b) { return a < b ? a : b; }));
  define("max" + type, elementwise<T, T, T>([](T a, T b) { return a > b ? a : b; }));
  const auto divide = [](T a, T b) -> T {
    if (b == 0) throw Fault("division by zero");
    if (std::is_signed_v<T> && b == T(-1)) return T(Unsigned(0) - Unsigned(a));
    return T(a / b);
  };
  define("div" + type, elementwise<T, T, T>(divide));
  define("rem" + type, elementwise<T, T, T>([divide](T a, T b) { return a - divide(a, b) * b; }));
}

template <class T, class Wide>
void define_wide_product(const std::string& type) {
  define("mul.wide" + type, elementwise<Wide, T, T>([](T a, T b) { return Wide(a) * b; }));
}

template <class T>
void define_for_floats(const std::string& type) {
  define_comparisons<T>(type);
  define("setp.equ" + type, elementwise<bool, T, T>([](T a, T b) { return !(a < b || a > b); }));
  define("setp.neu" + type, elementwise<bool, T, T>([](T a, T b) { return a != b; }));
  define("setp.ltu" + type, elementwise<bool, T, T>([](T a, T b) { return !(a >= b); }));
  define("setp.leu" + type, elementwise<bool, T, T>([](T a, T b) { return !(a > b); }));
  define("setp.gtu" + type, elementwise<bool, T, T>([](T a, T b) { return !(a <= b); }));
  define("setp.geu" + type, elementwise<bool, T, T>([](T a, T b) { return !(a < b); }));
  define("setp.num" + type, elementwise<bool, T, T>([](T a, T b) { return a == a && b == b; }));
  define("setp.nan" + type, elementwise<bool, T, T>([](T a, T b) { return a != a || b != b; }));
  define("add.rn" + type, elementwise<T, T, T>([](T a, T b) { return a + b; }));
  define("sub.rn" + type, elementwise<T, T, T>([](T a, T b) { return a - b; }));
  define("mul.rn" + type, elementwise<T, T, T>([](T a, T b) { return a * b; }));
  define("div.rn" + type, elementwise<T, T, T>([](T a, T b) { return a / b; }));
  define("rcp.rn" + type, elementwise<T, T>([](T a) { return T(1) / a; }));
  define("sqrt.rn" + type, elementwise<T, T>([](T a) { return std::sqrt(a); }));
  define("abs" + type, elementwise<T, T>([](T a) { return std::fabs(a); }));
  define("neg" + type, elementwise<T, T>([](T a) { return -a; }));
  const auto lesser = [](T a, T b) {  // -0 is less than 0, a number less than NaN
    return std::isnan(b) || a < b || (a == b && std::signbit(a)) ? a : b;
  };
  define("min" + type, elementwise<T, T, T>(lesser));
  define("max" + type, elementwise<T, T, T>([lesser](T a, T b) { return -lesser(-a, -b); }));
}

// ---- conversions

template <class To, class From>
void define_integer_conversion(const std::string& to, const std::string& from) {
  define("cvt" + to + from, elementwise<To, From>([](From x) { return To(x); }));
}

template <class Integer>
void define_conversions(const std::string& type) {
  define_integer_conversion<int8_t, Integer>(".s8", type);
  define_integer_conversion<uint8_t, Integer>(".u8", type);
  define_integer_conversion<int16_t, Integer>(".s16", type);
  define_integer_conversion<uint16_t, Integer>(".u16", type);
  define_integer_conversion<int32_t, Integer>(".s32", type);
  define_integer_conversion<uint32_t, Integer>(".u32", type);
  define_integer_conversion<int64_t, Integer>(".s64", type);
  define_integer_conversion<uint64_t, Integer>(".u64", type);
  define("cvt.rn.f32" + type, elementwise<float, Integer>([](Integer x) { return float(x); }));
  define("cvt.rn.f64" + type, elementwise<double, Integer>([](Integer x) { return double(x); }));
}

template <class Integer, class Float>
Integer truncated(Float x) {
  using Limits = std::numeric_limits<Integer>;
  constexpr bool kIsWide = sizeof(Integer) == 8 || sizeof(Float) == 8;
  if (std::isnan(x)) return kIsWide ? Integer(uint64_t(1) << (8 * sizeof(Integer) - 1)) : 0;
  if (x <= Float(Limits::min())) return Limits::min();
  return x >= Float(Limits::max()) ? Limits::max() : Integer(x);
}

template <class Integer>
void define_truncations(const std::string& type) {
  define("cvt.rzi" + type + ".f32", elementwise<Integer, float>(truncated<Integer, float>));
  define("cvt.rzi" + type + ".f64", elementwise<Integer, double>(truncated<Integer, double>));
}

void define_conversions_of_floats() {
  define("cvt.rn.f32.f64", elementwise<float, double>([](double x) { return float(x); }));
  define("cvt.f64.f32", elementwise<double, float>([](float x) { return double(x); }));
  define("cvt.rmi.f32.f32", elementwise<float, float>([](float x) { return std::floor(x); }));
  define("cvt.rmi.f64.f64", elementwise<double, double>([](double x) { return std::floor(x); }));
}

// ---- moving bits

template <class T>
void define_moves(const std::string& type) {
  define("mov" + type, elementwise<T, T>([](T a) { return a; }));
  define("selp" + type, elementwise<T, T, T, bool>([](T a, T b, bool p) { return p ? a : b; }));
}

// x = {a, b, ...} and {a, b, ...} = x
template <class T>
void define_packing(const std::string& type) {
  define("pack" + type, [](Warp& warp, const Instruction& instruction, Lanes lanes) {
    const size_t parts = instruction.operands.size() - 1, bits = 8 * sizeof(T) / parts;
    for_each_lane(lanes, [&](int lane) {
      uint64_t whole = 0;
      for (size_t i = 0; i < parts; ++i)
        whole |= (warp.lanes_of(instruction.operands[i + 1])[lane] & ((uint64_t(1) << bits) - 1))
                 << (i * bits);
      warp.lanes_of(instruction.operands[0])[lane] = whole;
    });
  });
  define("unpack" + type, [](Warp& warp, const Instruction& instruction, Lanes lanes) {
    const size_t parts = instruction.operands.size() - 1, bits = 8 * sizeof(T) / parts;
    for_each_lane(lanes, [&](int lane) {
      const uint64_t whole = warp.lanes_of(instruction.operands.back())[lane];
      for (size_t i = 0; i < parts; ++i)
        warp.lanes_of(instruction.operands[i])[lane] =
            whole >> (i * bits) & ((uint64_t(1) << bits) - 1);
    });
  });
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
  begin &= 255;
  count &= 255;
  if (count == 0) return 0;
  const T shifted = begin < 32 ? T(a >> begin) : std::is_signed_v<T> ? T(a >> 31) : T(0);
  if (count >= 32) return shifted;
  const uint32_t left = 32 - count;
  return T(T(uint32_t(shifted) << left) >> left);
}

void define_bit_operations() {
  define("not.pred", elementwise<bool, bool>([](bool a) { return !a; }));
  define("and.pred", elementwise<bool, bool, bool>([](bool a, bool b) { return a && b; }));
  define("or.pred", elementwise<bool, bool, bool>([](bool a, bool b) { return a || b; }));
  define("xor.pred", elementwise<bool, bool, bool>([](bool a, bool b) { return a != b; }));
  define("prmt.b32", elementwise<uint32_t, uint32_t, uint32_t, uint32_t>(permuted));
  define("bfe.u32", elementwise<uint32_t, uint32_t, uint32_t, uint32_t>(extracted<uint32_t>));
  define("bfe.s32", elementwise<int32_t, int32_t, uint32_t, uint32_t>(extracted<int32_t>));
  define("shf.l.wrap.b32", elementwise<uint32_t, uint32_t, uint32_t, uint32_t>(
                               [](uint32_t low, uint32_t high, uint32_t by) {
                                 return (uint64_t(high) << 32 | low) << (by & 31) >> 32;
                               }));
  for (const char* opcode : {"cvta.to.global.u64", "cvta.to.shared.u64", "cvta.shared.u64",
                             "cvta.param.u64"})  // one address space is enough
    define(opcode, elementwise<uint64_t, uint64_t>([](uint64_t a) { return a; }));
}

// ---- memory

template <class T>
void define_accesses(const std::string& type) {
  const std::pair<const char*, Space> spaces[] = {{"", Space::kGeneric},
                                                  {".global", Space::kGlobal},
                                                  {".shared", Space::kShared},
                                                  {".param", Space::kParameter}};
  for (const auto& [name, of_space] : spaces) {
    const Space space = of_space;
    for (const char* vector : {"", ".v2", ".v4"}) {
      define(std::string("ld") + name + vector + type,
             [space](Warp& warp, const Instruction& instruction, Lanes lanes) {
               const size_t count = instruction.operands.size() - 1;
               const Operand address = instruction.operands.back();
               for_each_lane(lanes, [&](int lane) {
                 const char* from = warp.access(instruction, address, space, lane,
                                                int(count * sizeof(T)), Access::kRead);
                 for (size_t i = 0; i < count; ++i) {
                   T element;
                   std::memcpy(&element, from + i * sizeof(T), sizeof(T));
                   warp.lanes_of(instruction.operands[i])[lane] = bits_of(element);
                 }
               });
             });
      define(std::string("st") + name + vector + type,
             [space](Warp& warp, const Instruction& instruction, Lanes lanes) {
               const size_t count = instruction.operands.size() - 1;
               for_each_lane(lanes, [&](int lane) {
                 char* to = warp.access(instruction, instruction.operands[0], space, lane,
                                        int(count * sizeof(T)), Access::kWrite);
                 for (size_t i = 0; i < count; ++i)
                   std::memcpy(to + i * sizeof(T),
                               &warp.lanes_of(instruction.operands[i + 1])[lane], sizeof(T));
               });
             });
    }
  }
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
    std::memcpy(warp.access(instruction, instruction.operands[0], Space::kShared, lane, bytes,
                            Access::kWrite),
                from, size_t(bytes));
  });
}

void fence(Warp& warp, const Instruction&, Lanes lanes) {
  for_each_lane(
      lanes, [&](int lane) { warp.block().order.fence(warp.thread_of(lane), warp.block().epoch); });
}

void define_memory() {
  const auto nothing = [](Warp&, const Instruction&, Lanes) {};
  define("bar.sync", nothing);
  define("bar.red.and.pred", nothing);  // see Block::reduce
  define("membar.gl", fence);
  define("atom.global.add.u32", atomic_add);
  define("cp.async.cg.shared.global", copy_to_shared);
  define("cp.async.ca.shared.global", copy_to_shared);
  define("cp.async.commit_group", nothing);
  define("cp.async.wait_group", nothing);
  define("cp.async.wait_all", nothing);
}

// ---- warps

// shfl.sync to|in_range, from, by, bounds, members: source_of(lane, by, first lane of the segment)
template <class Source>
void define_shuffle(const std::string& opcode, Source source_of) {
  define(opcode, [source_of](Warp& warp, const Instruction& instruction, Lanes lanes) {
    const bool tells_range = instruction.operands.size() == 6;
    const Operand* from_here = instruction.operands.data() + (tells_range ? 1 : 0);
    uint64_t from[kLanes];
    std::memcpy(from, warp.lanes_of(from_here[1]), sizeof from);
    for_each_lane(lanes, [&](int lane) {
      const auto by = int(warp.lanes_of(from_here[2])[lane] & 31);
      const auto bounds = int(warp.lanes_of(from_here[3])[lane]);
      const int segment = bounds >> 8 & 31, first = lane & segment;
      int source = source_of(lane, by, first);
      const bool in_range = source <= (first | (bounds & 31 & ~segment));
      if (!in_range) source = lane;
      if ((lanes >> source & 1) == 0) throw Fault(instruction, "a lane is read that takes no part");
      warp.lanes_of(instruction.operands[0])[lane] = from[source];
      if (tells_range) warp.lanes_of(instruction.operands[1])[lane] = in_range;
    });
  });
}

void define_warps() {
  define("bar.warp.sync", [](Warp& warp, const Instruction& instruction, Lanes lanes) {
    warp.sync_memory(instruction, lanes);
  });
  define_shuffle("shfl.sync.down.b32", [](int lane, int by, int) { return lane + by; });
  define_shuffle("shfl.sync.bfly.b32", [](int lane, int by, int) { return lane ^ by; });
  define_shuffle("shfl.sync.idx.b32", [](int, int by, int first) { return first | by; });
  define("redux.sync.max.u32", [](Warp& warp, const Instruction& instruction, Lanes lanes) {
    uint64_t most = 0;
    const uint64_t* from = warp.lanes_of(instruction.operands[1]);
    for_each_lane(lanes, [&](int lane) { most = std::max(most, uint64_t(uint32_t(from[lane]))); });
    for_each_lane(lanes, [&](int lane) { warp.lanes_of(instruction.operands[0])[lane] = most; });
  });
}

void define_all() {
  define_for_integers<int16_t>(".s16");
  define_for_integers<int32_t>(".s32");
  define_for_integers<int64_t>(".s64");
  define_for_integers<uint16_t>(".u16");
  define_for_integers<uint32_t>(".u32");
  define_for_integers<uint64_t>(".u64");
  for (const char* type : {".b16", ".s16", ".u16"}) define_moves<uint16_t>(type);
  for (const char* type : {".b32", ".s32", ".u32", ".f32"}) define_moves<uint32_t>(type);
  for (const char* type : {".b64", ".s64", ".u64", ".f64"}) define_moves<uint64_t>(type);
  define_for_integers<uint16_t>(".b16");
  define_for_integers<uint32_t>(".b32");
  define_for_integers<uint64_t>(".b64");
  define_moves<bool>(".pred");
  define_packing<uint32_t>(".b32");
  define_packing<uint64_t>(".b64");
  define_wide_product<int16_t, int32_t>(".s16");
  define_wide_product<uint16_t, uint32_t>(".u16");
  define_wide_product<int32_t, int64_t>(".s32");
  define_wide_product<uint32_t, uint64_t>(".u32");
  define_for_floats<float>(".f32");
  define_for_floats<double>(".f64");
  define_conversions<int8_t>(".s8");
  define_conversions<uint8_t>(".u8");
  define_conversions<int16_t>(".s16");
  define_conversions<uint16_t>(".u16");
  define_conversions<int32_t>(".s32");
  define_conversions<uint32_t>(".u32");
  define_conversions<int64_t>(".s64");
  define_conversions<uint64_t>(".u64");
  define_truncations<int32_t>(".s32");
  define_truncations<uint32_t>(".u32");
  define_truncations<int64_t>(".s64");
  define_truncations<uint64_t>(".u64");
  define_conversions_of_floats();
  define_bit_operations();
  define_accesses<int8_t>(".s8");
  define_accesses<int16_t>(".s16");
  define_accesses<int32_t>(".s32");
  define_accesses<int64_t>(".s64");
  for (const char* type : {".b8", ".u8"}) define_accesses<uint8_t>(type);
  for (const char* type : {".b16", ".u16"}) define_accesses<uint16_t>(type);
  for (const char* type : {".b32", ".u32", ".f32"}) define_accesses<uint32_t>(type);
  for (const char* type : {".b64", ".u64", ".f64"}) define_accesses<uint64_t>(type);
  define_memory();
  define_warps();
}

}  // namespace

const Operation* find_operation(const std::string& opcode) {
  static const bool defined = (define_all(), true);
  const auto found = table().find(opcode);
  return defined && found != table().end() ? &found->second : nullptr;
}

}  // namespace ptx
