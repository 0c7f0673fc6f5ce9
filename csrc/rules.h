// Every rule. The drivers, the plans and the bindings are made from this list.
#pragma once

#include "rules/adamp.h"
#include "rules/friction_adam.h"
#include "rules/rsgdm.h"

namespace friction {

template <class... Rule>
struct RuleList {};

using Rules = RuleList<FrictionAdam, FrictionAdamP, Rsgdm>;

}  // namespace friction
