package page

import (
	"fmt"
	"math"
	"regexp"
	"slices"
	"strconv"
	"testing"
)

// TestContrastIsSufficient: that of text is 4.5 to 1 at least, and that of what is not text 3 to 1,
// in both colour schemes (WCAG 2.2, 1.4.3 and 1.4.11, level AA).
func TestContrastIsSufficient(t *testing.T) {
	schemes := regexp.MustCompile(`(?s):root \{(.*?)\}`).FindAllStringSubmatch(asset("style.css"), -1)[:2]
	for i, scheme := range []string{"light", "dark"} {
		colours := map[string]string{}
		for _, m := range regexp.MustCompile(`--([a-z]+): #([0-9a-f]{6});`).FindAllStringSubmatch(schemes[i][1], -1) {
			colours[m[1]] = m[2]
		}
		for colour, least := range map[string]float64{
			"text": 4.5, "muted": 4.5, "accent": 4.5,
			"ok": 3, "lossy": 3, "failing": 3, "unprogrammed": 3, "skipped": 3, "unknown": 3, "unprobed": 3, "received": 3, "sent": 3, "edge": 3,
		} {
			for _, ground := range []string{"card", "ground", "hover"} {
				if ground == "hover" && colour == "edge" {
					continue // nothing with an edge is on it
				}
				if got := contrast(t, colours[colour], colours[ground]); got < least {
					t.Errorf("%s: %s on %s: %.2f, must be %v at least", scheme, colour, ground, got, least)
				}
			}
		}
	}
	if got := fmt.Sprintf("%.2f", contrast(t, "767676", "ffffff")); got != "4.54" {
		t.Errorf("the contrast of a known pair is %s", got)
	}
}

// contrast returns the contrast ratio of two colours (https://www.w3.org/TR/WCAG22/#dfn-contrast-ratio).
func contrast(t *testing.T, a, b string) float64 {
	t.Helper()
	var l []float64
	for _, colour := range []string{a, b} {
		n, err := strconv.ParseUint(colour, 16, 32)
		if err != nil {
			t.Fatalf("the colour %q: %v", colour, err)
		}
		sum := 0.0
		for i, weight := range []float64{0.0722, 0.7152, 0.2126} {
			c := float64(n>>(8*i)&0xff) / 255
			if c <= 0.04045 {
				c /= 12.92
			} else {
				c = math.Pow((c+0.055)/1.055, 2.4)
			}
			sum += weight * c
		}
		l = append(l, sum)
	}
	slices.Sort(l)
	return (l[1] + 0.05) / (l[0] + 0.05)
}
