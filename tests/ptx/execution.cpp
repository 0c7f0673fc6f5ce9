#include "execution.h"

#include <algorithm>
#include <limits>
#include <numeric>

namespace ptx {

Warp::Warp(Block& block, int index, int threads, uint64_t* registers)
    : block_(block), index_(index), registers_(registers) {
  const int count = std::min(threads - index * kLanes, kLanes);
  all_ = count == kLanes ? ~Lanes(0) : (Lanes(1) << count) - 1;
  groups_.push_back({0, all_});
}

const Instruction& Warp::instruction_at(int at) const { return block_.kernel.code[size_t(at)]; }

char* Warp::access(const Instruction& instruction, const Operand& operand, Space space, int lane,
                   int bytes, Access how) {
  const Kernel& kernel = block_.kernel;
  uint64_t address = lanes_of(operand)[lane] + uint64_t(operand.offset);
  if (space == Space::kShared) address = uint32_t(address);
  const auto fault = [&](const char* what) {
    throw Fault(instruction, std::string(what) + ", at address " + std::to_string(address) +
                                 " in block " + std::to_string(block_.number) + ", thread " +
                                 std::to_string(thread_of(lane)));
  };
  const uint64_t end = address + uint64_t(bytes);
  if ((address & uint64_t(bytes - 1)) != 0) fault("misaligned access");
  const auto parameter = reinterpret_cast<uint64_t>(kernel.parameter.data());
  const bool in_parameter = address >= parameter && end <= parameter + kernel.parameter.size();
  if (space == Space::kParameter || (space == Space::kGeneric && in_parameter)) {
    if (!in_parameter) fault("access outside of the parameter");
    if (how != Access::kRead) fault("the parameter is written");
    return reinterpret_cast<char*>(address);
  }
  const bool in_shared = end <= block_.shared.size();  // no host memory has such an address
  if (in_shared != (space == Space::kShared) && space != Space::kGeneric)
    fault("access outside of its memory");
  // What two lanes may read, the others may: its write is ordered before all of them.
  const bool again = how == Access::kRead && last_read_.instruction == &instruction &&
                     last_read_.execution == instruction.executions &&
                     last_read_.address == address;
  last_read_ = {&instruction, instruction.executions, address, again ? last_read_.lanes + 1 : 1};
  if (last_read_.lanes <= 2) {
    const auto& allowed = block_.device.allowed;
    auto range = allowed.upper_bound(address);
    if (!in_shared && !allowed.empty() && (range == allowed.begin() || (--range)->second < end))
      fault("access outside of any tensor");
    const Event now{&instruction, block_.number, thread_of(lane),        index_,
                    block_.epoch, epoch_,        block_.order.acquired()};
    block_.device.races.access(address, bytes, how, in_shared,
                               block_.order.did_atomic(thread_of(lane)), now);
  }
  if (in_shared) return block_.shared.data() + address;
  block_.order.accessed(thread_of(lane), block_.epoch);
  return reinterpret_cast<char*>(address);
}

void Warp::sync_memory(const Instruction& instruction, Lanes lanes) {
  if (lanes != all_) throw Fault(instruction, "a sync of part of a warp is not supported");
  ++epoch_;
}

// Takes the group that is furthest behind, with all others at its instruction.
bool Warp::take_next(Group& group, int& others_order) {
  constexpr int kNone = std::numeric_limits<int>::max();
  int least = kNone;
  others_order = kNone;
  for (const Group& other : groups_) {
    if (other.waits) continue;
    const int order = instruction_at(other.at).order;
    if (order == least) continue;
    others_order = std::min(others_order, std::max(order, least));
    least = std::min(order, least);
  }
  if (least == kNone) return false;
  group = {0, 0};
  for (size_t i = groups_.size(); i-- > 0;) {
    if (groups_[i].waits || instruction_at(groups_[i].at).order != least) continue;
    group = {groups_[i].at, group.lanes | groups_[i].lanes};
    groups_.erase(groups_.begin() + int64_t(i));
  }
  return true;
}

void Warp::execute() {
  Group group{};
  int others_order = 0;
  while (take_next(group, others_order)) execute(group, others_order);
}

// Executes a group until it splits, waits, ends, or may meet others.
void Warp::execute(Group group, int others_order) {
  for (bool first = true;; first = false) {
    const Instruction& instruction = instruction_at(group.at);
    if (!first && instruction.order >= others_order) break;
    ++instruction.executions;
    Lanes lanes = group.lanes;
    if (instruction.guard >= 0) {
      const uint64_t* guard = lanes_of(instruction.guard);
      for_each_lane(group.lanes, [&](int lane) {
        if (value_of<bool>(guard[lane]) == instruction.guard_is_negated)
          lanes &= ~(Lanes(1) << lane);
      });
    }
    switch (instruction.control) {
      case Control::kNext:
        if (lanes != 0) (*instruction.operation)(*this, instruction, lanes);
        ++group.at;
        continue;
      case Control::kBranch:
        if (lanes == group.lanes || lanes == 0) {
          group.at = lanes != 0 ? instruction.target : group.at + 1;
          continue;
        }
        groups_.push_back({instruction.target, lanes});
        groups_.push_back({group.at + 1, group.lanes & ~lanes});
        return;
      case Control::kReturn:
        ended_ |= lanes;
        if (lanes != group.lanes) groups_.push_back({group.at + 1, group.lanes & ~lanes});
        return;
      case Control::kBlockBarrier:
      case Control::kWarpSync:
        if (lanes != group.lanes) throw Fault(instruction, "only some lanes take part in a sync");
        return meet(instruction, group);
    }
  }
  groups_.push_back(group);
}

void Warp::meet(const Instruction& sync, Group group) {
  for (size_t i = groups_.size(); i-- > 0;) {
    if (!groups_[i].waits || groups_[i].at != group.at) continue;
    group.lanes |= groups_[i].lanes;
    groups_.erase(groups_.begin() + int64_t(i));
  }
  group.waits = true;
  if (sync.control == Control::kWarpSync) {
    const uint64_t* members = lanes_of(sync.operands.back());
    for_each_lane(group.lanes, [&](int lane) {
      const auto mask = Lanes(members[lane]) & all_;
      if (mask != (Lanes(members[__builtin_ctz(group.lanes)]) & all_) || (mask >> lane & 1) == 0)
        throw Fault(sync, "lanes disagree about who takes part in a sync");
      if ((mask & ~group.lanes) == 0) group.waits = false;
    });
    if (!group.waits) {
      (*sync.operation)(*this, sync, group.lanes);
      ++group.at;
    }
  }
  groups_.push_back(group);
}

const Instruction* Warp::barrier() const {
  if (groups_.empty()) return nullptr;
  const Instruction& instruction = instruction_at(groups_[0].at);
  if (groups_.size() > 1 || instruction.control != Control::kBlockBarrier ||
      groups_[0].lanes != live_lanes())
    throw Fault(instruction, "lanes of a warp wait for others that never come");
  return &instruction;
}

void Warp::pass_barrier() {
  groups_[0].waits = false;
  ++groups_[0].at;
}

Block::Block(const Kernel& kernel, Device& device, int number, int blocks, int threads)
    : kernel(kernel),
      device(device),
      number(number),
      order(threads),
      shared(kernel.shared_bytes, char(device.random())) {  // any value: none may matter
  const int warps = (threads + kLanes - 1) / kLanes;
  const size_t registers = size_t(kernel.registers) * kLanes;
  device.registers.resize(std::max(device.registers.size(), registers * size_t(warps)));
  device.races.start_block(shared.size());
  for (int index = 0; index < warps; ++index) {
    warps_.emplace_back(*this, index, threads, device.registers.data() + registers * size_t(index));
    Warp& warp = warps_.back();
    for (int lane = 0; lane < kLanes; ++lane) {
      warp.lanes_of(kThread)[lane] = uint64_t(warp.thread_of(lane));
      warp.lanes_of(kBlock)[lane] = uint64_t(number);
      warp.lanes_of(kBlocks)[lane] = uint64_t(blocks);
      for (auto& [index_of_constant, bits] : kernel.constants)
        warp.lanes_of(index_of_constant)[lane] = bits;
    }
  }
}

void Block::execute() {
  std::vector<size_t> turns(warps_.size());
  std::iota(turns.begin(), turns.end(), size_t(0));
  for (;;) {
    std::shuffle(turns.begin(), turns.end(), device.random);
    for (const size_t turn : turns) warps_[turn].execute();
    const Instruction* barrier = warps_[0].barrier();
    for (Warp& warp : warps_)
      if (warp.barrier() != barrier ||
          (barrier != nullptr && warp.live_lanes() != warp.all_lanes()))
        throw Fault(kernel.name + ": not all threads of a block reach " +
                    describe(barrier != nullptr ? *barrier : *warp.barrier()));
    if (barrier == nullptr) return;
    if (barrier->operands.size() == 3) reduce(*barrier);
    ++epoch;
    order.barrier();
    for (Warp& warp : warps_) warp.pass_barrier();
  }
}

// bar.red.and.pred to, 0, from
void Block::reduce(const Instruction& barrier) {
  bool all = true;
  for (Warp& warp : warps_)
    for_each_lane(warp.live_lanes(), [&](int lane) {
      all = value_of<bool>(warp.lanes_of(barrier.operands[2])[lane]) && all;
    });
  for (Warp& warp : warps_)
    for_each_lane(warp.live_lanes(),
                  [&](int lane) { warp.lanes_of(barrier.operands[0])[lane] = all; });
}

void execute(const Kernel& kernel, Device& device, int blocks, int threads) {
  std::vector<int> numbers(static_cast<size_t>(blocks));
  std::iota(numbers.begin(), numbers.end(), 0);
  std::shuffle(numbers.begin(), numbers.end(), device.random);
  device.races.start_launch(blocks);
  for (const int number : numbers) Block(kernel, device, number, blocks, threads).execute();
}

}  // namespace ptx
