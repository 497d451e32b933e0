package lab

import (
	"os"
	"strconv"
)

// slowVariable is for emulated machines only; no test on a real one may need it.
const slowVariable = "FLANNEL_LAB_SLOW"

// Slow tells how many times slower than a real machine this one is, if the environment says so in a whole number, else 1.
// Tests multiply their deadlines by it, and divide what they transfer.
func Slow() int {
	n, err := strconv.Atoi(os.Getenv(slowVariable))
	if err != nil {
		return 1
	}
	return max(n, 1)
}
