// Every rule that updates elements one by one. The drivers, the plans and the bindings are made
// from this list; AdamP (rules/adamp.h) adds its projection to the first.
#pragma once

#include "rules/friction_adam.h"
#include "rules/rsgdm.h"

namespace friction {

template <class... Rule>
struct RuleList {};

using Rules = RuleList<FrictionAdam, Rsgdm>;

}  // namespace friction
