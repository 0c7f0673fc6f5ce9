// The kernels of rules that project: they decide between regions.
#include "rule_kernels.h"

namespace friction {

void FRICTION_JOIN(add_projected_, FRICTION_ISA)(KernelSet& set) {
  add_kernels<true>(set, Rules());
}

}  // namespace friction
