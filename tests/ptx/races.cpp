#include "races.h"

namespace ptx {
namespace {

[[noreturn]] void throw_race(const char* what, bool is_shared, const Event& before,
                             const Event& now) {
  throw Fault(*now.instruction,
              std::string("race in ") + (is_shared ? "shared" : "global") + " memory: " + what +
                  " of block " + std::to_string(before.block) + " by block " +
                  std::to_string(now.block) + ", thread " + std::to_string(now.thread) +
                  ", after " + describe(*before.instruction) + " and before");
}

// Reads that nothing orders, as one.
Event joined(const Event& before, const Event& now) {
  Event both = now;
  if (before.warp != now.warp || before.thread == Event::kSeveralWarps)
    both.thread = Event::kSeveralWarps;
  else if (before.thread != now.thread)
    both.thread = Event::kSeveralLanes;
  return both;
}

}  // namespace

void BlockOrder::fence(int thread, uint32_t epoch) {
  for (size_t other = 0; other < threads_.size(); ++other) {
    Thread& state = threads_[other];
    // A fence covers what barriers have ordered before it.
    if (state.state == kUnfenced && (int(other) == thread || state.epoch < epoch))
      state = {kFenced, epoch, thread};
  }
  if (atomic_by_ == thread) fenced_after_atomic_ = true;
}

void BlockOrder::release(const Instruction& instruction, int thread, uint32_t epoch) {
  for (const Thread& other : threads_)
    if (other.state == kUnfenced ||
        (other.state == kFenced && other.fenced_by != thread && other.epoch >= epoch))
      throw Fault(instruction, "no fence orders the block's accesses before its atomic");
  atomic_by_ = thread;
  fenced_after_atomic_ = false;
}

void RaceChecker::start_launch(int blocks) {
  ++launch_;
  blocks_started_ = releases_ = 0;
  release_order_.assign(size_t(blocks), 0);
  constexpr size_t kMostPages = 4096;
  if (pages_.size() > kMostPages) {
    pages_.clear();
    last_page_ = ~uint64_t(0);
  }
}

void RaceChecker::start_block(size_t shared_bytes) {
  ++blocks_started_;
  shared_.assign(shared_bytes, ByteHistory());
}

ByteHistory& RaceChecker::history_of(uint64_t address) {
  const uint64_t number = address / kPageBytes;
  if (number != last_page_) {
    auto& page = pages_[number];
    if (page == nullptr) page = std::make_unique<Page>();
    page_ = page.get();
    last_page_ = number;
  }
  ByteHistory& byte = (*page_)[address % kPageBytes];
  if (byte.launch != launch_) {
    byte = ByteHistory();
    byte.launch = launch_;
  }
  return byte;
}

void RaceChecker::access(uint64_t address, int bytes, Access how, bool is_shared, bool did_atomic,
                         const Event& now) {
  for (uint64_t at = address; at < address + uint64_t(bytes); ++at)
    access(is_shared ? shared_[at] : history_of(at), how, is_shared, did_atomic, now);
}

bool RaceChecker::is_ordered(const Event& before, const Event& now) const {
  if (before.instruction == nullptr) return true;
  if (before.block != now.block) {
    const int release = release_order_[size_t(before.block)];
    return !before.acquired && now.acquired && release != 0 &&
           release < release_order_[size_t(now.block)];
  }
  if (before.epoch != now.epoch || before.thread == now.thread) return true;
  return before.thread != Event::kSeveralWarps && before.warp == now.warp &&
         before.warp_epoch != now.warp_epoch;
}

void RaceChecker::access(ByteHistory& byte, Access how, bool is_shared, bool did_atomic,
                         const Event& now) {
  if (byte.read.instruction != nullptr && byte.read.block != now.block) {
    const bool acquired = byte.read_by_others.acquired || byte.read.acquired;
    byte.read_by_others = byte.read;
    byte.read_by_others.acquired = acquired;
    byte.read = Event();
  }
  if (how == Access::kRead) {
    if (!is_ordered(byte.write, now)) throw_race("read after write", is_shared, byte.write, now);
    byte.read = is_ordered(byte.read, now) ? now : joined(byte.read, now);
    return;
  }
  // Atomics need no order among them. Neither does a plain write of the thread whose atomic was
  // the last of all: it resets the counter.
  const bool may_overwrite = byte.written_atomically && (how == Access::kAtomic || did_atomic);
  if (!may_overwrite && !is_ordered(byte.write, now))
    throw_race("write after write", is_shared, byte.write, now);
  if (!is_ordered(byte.read, now)) throw_race("write after read", is_shared, byte.read, now);
  if (byte.read_by_others.instruction != nullptr &&
      !(now.acquired && !byte.read_by_others.acquired && releases_ == blocks_started_))
    throw_race("write after read", is_shared, byte.read_by_others, now);
  byte.write = now;
  byte.written_atomically = how == Access::kAtomic;
  byte.read = byte.read_by_others = Event();
}

}  // namespace ptx
