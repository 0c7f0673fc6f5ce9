// Which instruction set serves: the widest one this processor has, or one asked for by name.
#pragma once

#include <string>
#include <vector>

#include "region.h"

namespace friction {

// Names of the instruction sets built in that this processor can run, widest last.
std::vector<std::string> instruction_sets();

// The kernels in use.
const KernelSet& kernels();

// Chooses by name (throws std::invalid_argument for one not in instruction_sets()). For tests and
// benchmarks.
void use_instruction_set(const std::string& name);

}  // namespace friction
