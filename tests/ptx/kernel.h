// A kernel as its PTX says it.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

namespace ptx {

class Warp;
struct Kernel;
struct Instruction;

constexpr int kLanes = 32;
using Lanes = uint32_t;  // a bit for each lane of a warp
constexpr Lanes kAllLanes = ~Lanes(0);

// What an instruction does in some of a warp's lanes.
using Operation = std::function<void(Warp&, const Instruction&, Lanes)>;

// What an instruction does with the flow of control. A warp sync is executed when all lanes of the
// mask in its last operand have arrived.
enum class Control { kNext, kBranch, kReturn, kBlockBarrier, kWarpSync };

// Every operand is a register: constants and addresses of variables have registers of their own.
struct Operand {
  int index;
  int64_t offset = 0;  // of an address
};

struct Instruction {
  const Kernel* kernel;
  std::string text;
  int file, line;  // in the source
  Control control = Control::kNext;
  const Operation* operation = nullptr;
  std::vector<Operand> operands;  // as written; the elements of vectors one after another
  int guard = -1;                 // the predicate's register; -1: none
  bool guard_is_negated = false;
  int target = -1;  // of a branch
  // Its place in an order in which instructions that lead to others come first, except in loops.
  int order = -1;
  mutable uint64_t executions = 0;
};

struct Kernel {
  std::string name;
  std::shared_ptr<const std::map<int, std::string>> files;
  std::vector<Instruction> code;
  int registers = 0;
  std::vector<std::pair<int, uint64_t>> constants;  // register, bits
  size_t shared_bytes = 0;
  std::vector<char> parameter;  // the launch's argument
  unsigned most_threads = 0;
};

// The registers that are set before a kernel starts.
enum SpecialRegister { kThread, kBlock, kBlocks, kSpecialRegisters };

// What is wrong with a kernel: its launch fails.
struct Fault : std::runtime_error {
  using std::runtime_error::runtime_error;
  Fault(const Instruction& instruction, const std::string& what);
};

// "kernel, file:line, `instruction`"
std::string describe(const Instruction& instruction);

// The kernels of a module.
std::vector<std::unique_ptr<Kernel>> parse(const std::string& text);

// The operation with this opcode; null: unknown. A move between a register and a vector is "pack"
// or "unpack".
const Operation* find_operation(std::string opcode);

}  // namespace ptx
