// How often each kernel was launched: the claim that a step is one launch, made checkable.
#pragma once

#include <cstdint>
#include <map>
#include <string>

namespace friction {

// A launch on a GPU, a parallel region on the processor. kernel: a name that lasts.
void count_launch(const char* kernel);

// Launches so far, by kernel name.
std::map<std::string, int64_t> launch_counts();

}  // namespace friction
