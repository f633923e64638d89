// An estimate of some outputs, whatever it comes from.
#pragma once

#include "simd.h"

namespace exprune {
namespace EXPRUNE_ISA {

// What is known of kLanes outputs from n on, for one row: |exact - value| <= reach, where `exact` is what either
// the dense layer or our own finish computes in float (for certain, or as calibrated).
struct Estimate {
  V value;
  V reach;
};

}  // namespace EXPRUNE_ISA
}  // namespace exprune
