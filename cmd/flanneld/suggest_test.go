package main

import "testing"

func TestDistance(t *testing.T) {
	for _, c := range []struct {
		a, b string
		want int
	}{{"", "", 0}, {"", "ab", 2}, {"status", "status", 0}, {"stauts", "status", 1}, {"statu", "status", 1}, {"docter", "doctor", 1}, {"jsn", "json", 1}, {"man", "doctor", 6}} {
		if got, back := distance(c.a, c.b), distance(c.b, c.a); got != c.want || back != c.want {
			t.Errorf("%s, %s: %d and %d, want %d", c.a, c.b, got, back, c.want)
		}
	}
}
