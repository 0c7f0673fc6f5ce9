// The list of all rules. Drivers, plans and bindings are generated from it.
#pragma once

#include "rules/adamp.h"
#include "rules/friction_adam.h"
#include "rules/rsgdm.h"

namespace friction {

template <class... Rule>
struct RuleList {};

using Rules = RuleList<FrictionAdam, FrictionAdamP, Rsgdm>;

}  // namespace friction
