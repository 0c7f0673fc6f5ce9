// Executes a kernel's blocks one after another, each warp by warp, with the lanes of a warp in step
// where they are at the same instruction.
#pragma once

#include <cstring>
#include <random>

#include "races.h"

namespace ptx {

class Block;

// The value of type T in a register, of which it takes the low bytes.
template <class T>
T value_of(uint64_t bits) {
  T value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}
template <>
inline bool value_of(uint64_t bits) {
  return (bits & 0xff) != 0;
}

template <class T>
uint64_t bits_of(T value) {
  if constexpr (std::is_integral_v<T>) {
    return static_cast<uint64_t>(static_cast<int64_t>(value));  // extended by its sign
  } else {
    uint64_t bits = 0;
    std::memcpy(&bits, &value, sizeof value);
    return bits;
  }
}

template <class F>
void for_each_lane(Lanes lanes, F&& f) {
  for (Lanes rest = lanes; rest != 0; rest &= rest - 1) f(__builtin_ctz(rest));
}

enum class Space { kGeneric, kGlobal, kShared, kParameter };

class Warp {
 public:
  Warp(Block& block, int index, int threads, uint64_t* registers);

  uint64_t* lanes_of(int index) { return registers_ + size_t(index) * kLanes; }
  uint64_t* lanes_of(const Operand& operand) { return lanes_of(operand.index); }
  Block& block() { return block_; }
  int thread_of(int lane) const { return index_ * kLanes + lane; }

  // Where the bytes at an operand's address are, after all checks.
  char* access(const Instruction& instruction, const Operand& address, Space space, int lane,
               int bytes, Access how);
  // Orders the accesses of all lanes before it and after it.
  void sync_memory(const Instruction& instruction, Lanes lanes);

  // Executes until every lane waits for others or has ended.
  void execute();
  // The barrier that all lanes wait for; null if all have ended.
  const Instruction* barrier() const;
  void pass_barrier();
  Lanes all_lanes() const { return all_; }
  Lanes live_lanes() const { return all_ & ~ended_; }

 private:
  struct Group {  // lanes that are at the same instruction
    int at;
    Lanes lanes;
    bool waits = false;
  };

  bool take_next(Group& group, int& others_order);
  void execute(Group group, int others_order);
  void meet(const Instruction& sync, Group group);
  const Instruction& instruction_at(int at) const;

  Block& block_;
  int index_;
  uint64_t* registers_;
  Lanes all_, ended_ = 0;
  uint32_t epoch_ = 0;
  std::vector<Group> groups_;
  struct {  // the last read, and how many lanes in turn have read there
    const Instruction* instruction = nullptr;
    uint64_t execution = 0, address = 0;
    int lanes = 0;
  } last_read_;
};

// What the blocks of a launch have in common.
struct Device {
  RaceChecker races;
  std::map<uint64_t, uint64_t> allowed;  // ranges of global memory, begin to end; none: all
  std::mt19937 random{1};                // for the order of blocks and warps
  std::vector<uint64_t> registers;
};

class Block {
 public:
  Block(const Kernel& kernel, Device& device, int number, int blocks, int threads);

  void execute();

  const Kernel& kernel;
  Device& device;
  const int number;
  uint32_t epoch = 0;  // barriers that all threads have passed
  BlockOrder order;
  std::vector<char> shared;

 private:
  void reduce(const Instruction& barrier);

  std::vector<Warp> warps_;
};

// Executes all blocks of a launch.
void execute(const Kernel& kernel, Device& device, int blocks, int threads);

}  // namespace ptx
