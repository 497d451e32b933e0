package main

import (
	"cmp"
	"math"
	"slices"
)

// quantile returns the value that a share q of all values, 0 to 1, do not exceed (nearest rank, so
// it is always one of the values), or the zero value for an empty list.
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

// medianOf returns the median of a value of all items.
func medianOf[T any, V cmp.Ordered](items []T, of func(T) V) V {
	var values []V
	for _, item := range items {
		values = append(values, of(item))
	}
	return median(values)
}
