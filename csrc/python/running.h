// Rejects a second step of a plan while the first runs without the GIL.
#pragma once

#include <unistd.h>

#include <atomic>
#include <stdexcept>

namespace friction {

// The process that a step runs in. A child forked meanwhile lacks the thread that would end the
// step, so only the same process counts.
using RunningProcess = std::atomic<pid_t>;

class Running {
 public:
  explicit Running(RunningProcess& process) : process_(process) {
    const pid_t mine = getpid();
    if (process_.exchange(mine) == mine)
      throw std::runtime_error("step() of this optimizer is already running in another thread");
  }
  ~Running() { process_ = 0; }

 private:
  RunningProcess& process_;
};

}  // namespace friction
