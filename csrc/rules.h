// The list of all rules. Drivers, plans and bindings are generated from it.
#pragma once

#include "rules/adam.h"
#include "rules/adamp.h"
#include "rules/friction_adam.h"
#include "rules/sgd.h"

namespace friction {

template <class... Rule>
struct RuleList {};

using Rules = RuleList<Adam, AdamP, FrictionAdam, FrictionAdamP, Sgd>;

}  // namespace friction
