// The kernels of an instruction set; compiled here are those of rules that update in one region.
#include "rule_kernels.h"

namespace friction {

KernelSet FRICTION_JOIN(kernels_, FRICTION_ISA)() {
  KernelSet set{{}, FRICTION_TEXT(FRICTION_ISA), FRICTION_JOIN(list_kernels_, FRICTION_ISA)()};
  add_kernels<false>(set, Rules());
  FRICTION_JOIN(add_projected_, FRICTION_ISA)(set);
  return set;
}

}  // namespace friction
