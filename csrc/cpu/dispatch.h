// Selects the instruction set: the widest one that this CPU supports, or one chosen by name.
#pragma once

#include <string>
#include <vector>

#include "region.h"

namespace friction {

// The names of the compiled instruction sets that this CPU supports, widest last.
std::vector<std::string> instruction_sets();

// The kernels in use.
const KernelSet& kernels();

// Selects by name, for tests and benchmarks. Throws std::invalid_argument for an unknown name.
void use_instruction_set(const std::string& name);

}  // namespace friction
