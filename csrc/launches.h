// Counts the launches of each kernel, so that the claim of one launch per step can be checked.
#pragma once

#include <cstdint>
#include <map>
#include <string>

namespace friction {

// Counts a launch on a GPU or a parallel region on the CPU. `kernel` must stay valid forever.
void count_launch(const char* kernel);

// Launches so far, by kernel name.
std::map<std::string, int64_t> launch_counts();

}  // namespace friction
