// The sum and the sum of squares of a quantity over elements.
#pragma once

#include "rules/portable.h"

namespace friction {

struct Moments {
  double sum = 0, square_sum = 0;

  FRICTION_INLINE Moments& operator+=(const Moments& other) {
    sum += other.sum;
    square_sum += other.square_sum;
    return *this;
  }
};

}  // namespace friction
