// Checks the order of memory accesses within a launch: what one thread writes and another reads or
// writes must be ordered by a barrier of the block, a sync of the warp, or, between blocks, by
// fences around an atomic operation. A fault is thrown at the first access that is not.
#pragma once

#include <array>
#include <memory>
#include <unordered_map>

#include "kernel.h"

namespace ptx {

enum class Access { kRead, kWrite, kAtomic };

// An access to a byte: by whom and when.
struct Event {
  static constexpr int kSeveralLanes = -1, kSeveralWarps = -2;  // as thread

  const Instruction* instruction = nullptr;  // null: no access yet
  int block = 0, thread = 0, warp = 0;
  uint32_t epoch = 0, warp_epoch = 0;  // barriers and warp syncs before it
  bool acquired = false;               // after the block's acquire; see BlockOrder
};

// The last accesses to a byte. Reads are those since the last write.
struct ByteHistory {
  uint32_t launch = 0;
  bool written_atomically = false;
  Event write, read, read_by_others;  // read: by the block that runs; others: by those before it
};

// How a block synchronizes with others. It releases what its threads did when one of its threads
// executes an atomic, and every access before has been fenced. It acquires what blocks before
// it have released after a fence of the same thread and a barrier.
class BlockOrder {
 public:
  explicit BlockOrder(int threads) : threads_(size_t(threads)) {}

  void accessed(int thread, uint32_t epoch) { threads_[size_t(thread)] = {kUnfenced, epoch, 0}; }
  void fence(int thread, uint32_t epoch);
  // At an atomic: throws if an access is not fenced.
  void release(const Instruction& instruction, int thread, uint32_t epoch);
  void barrier() {
    if (fenced_after_atomic_) acquired_ = true;
  }
  bool acquired() const { return acquired_; }
  bool did_atomic(int thread) const { return atomic_by_ == thread; }

 private:
  enum State : uint8_t { kIdle, kUnfenced, kFenced };
  struct Thread {
    State state = kIdle;
    uint32_t epoch = 0;  // of the access or of the fence
    int fenced_by = 0;
  };
  std::vector<Thread> threads_;
  int atomic_by_ = -1;
  bool fenced_after_atomic_ = false, acquired_ = false;
};

class RaceChecker {
 public:
  void start_launch(int blocks);
  void start_block(size_t shared_bytes);
  void released(int block) { release_order_[size_t(block)] = ++releases_; }
  void access(uint64_t address, int bytes, Access how, bool is_shared, bool did_atomic,
              const Event& now);

 private:
  void access(ByteHistory& byte, Access how, bool is_shared, bool did_atomic, const Event& now);
  bool is_ordered(const Event& before, const Event& now) const;
  ByteHistory& history_of(uint64_t address);

  static constexpr size_t kPageBytes = 1024;
  using Page = std::array<ByteHistory, kPageBytes>;
  std::unordered_map<uint64_t, std::unique_ptr<Page>> pages_;
  uint64_t last_page_ = ~uint64_t(0);
  Page* page_ = nullptr;
  std::vector<ByteHistory> shared_;
  uint32_t launch_ = 0;
  int blocks_started_ = 0, releases_ = 0;
  std::vector<int> release_order_;  // of a block's atomic; 0: none yet
};

}  // namespace ptx
