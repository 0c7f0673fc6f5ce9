// Memory accesses of a thread, as wide as possible.
#pragma once

#include "../rules/portable.h"

namespace friction::cuda {

// One access of 1 to 16 bytes.
template <int kBytes>
struct AccessOf;
template <>
struct AccessOf<1> {
  using Type = unsigned char;
};
template <>
struct AccessOf<2> {
  using Type = unsigned short;
};
template <>
struct AccessOf<4> {
  using Type = unsigned int;
};
template <>
struct AccessOf<8> {
  using Type = unsigned long long;
};
template <>
struct AccessOf<16> {
#if defined(__CUDACC__)
  using Type = uint4;
#else
  struct alignas(16) Type {
    uint64_t low, high;
  };
#endif
};

// Tells the compiler that an operand is in global memory, which an address from a table does not.
template <class T>
FRICTION_INLINE T* global(T* pointer) {
#if defined(__CUDA_ARCH__)
  __builtin_assume(__isGlobal(pointer));
#endif
  return pointer;
}

// kCount consecutive elements in as few accesses as possible, each of at most 16 bytes.
template <class Stored, int kCount>
struct Vector {
  static constexpr int kBytes = int(sizeof(Stored)) * kCount;
  static constexpr int kAccess = kBytes < 16 ? kBytes : 16;
  static constexpr int kAccesses = kBytes / kAccess;
  using Access = typename AccessOf<kAccess>::Type;

  static FRICTION_INLINE void load(const Stored* from, Stored (&to)[kCount]) {
    const Access* memory = global(reinterpret_cast<const Access*>(from));
    Access accesses[kAccesses];
    FRICTION_UNROLL
    for (int i = 0; i < kAccesses; ++i) accesses[i] = memory[i];
    std::memcpy(to, accesses, kBytes);
  }
  static FRICTION_INLINE void store(const Stored (&from)[kCount], Stored* to) {
    Access* memory = global(reinterpret_cast<Access*>(to));
    Access accesses[kAccesses];
    std::memcpy(accesses, from, kBytes);
    FRICTION_UNROLL
    for (int i = 0; i < kAccesses; ++i) store_access(accesses[i], memory + i);
  }

 private:
  static FRICTION_INLINE void store_access(const Access& access, Access* to) {
#if defined(__CUDA_ARCH__)
    if constexpr (kAccess == 16) {  // the compiler would split it
      asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(__cvta_generic_to_global(to)),
                   "r"(access.x), "r"(access.y), "r"(access.z), "r"(access.w)
                   : "memory");
      return;
    }
#endif
    *to = access;
  }
};

}  // namespace friction::cuda
