package main

import (
	"cmp"
	"math"
	"slices"
)

// quantile gives the value that the part q of all values, 0 to 1, do not exceed (the nearest rank, so always one that
// was measured), or the zero value of an empty list.
func quantile[T cmp.Ordered](values []T, q float64) T {
	if len(values) == 0 {
		var zero T
		return zero
	}
	sorted := slices.Sorted(slices.Values(values))
	rank := int(math.Ceil(q * float64(len(sorted))))
	return sorted[min(max(rank, 1), len(sorted))-1]
}

func median[T cmp.Ordered](values []T) T { return quantile(values, 0.5) }
