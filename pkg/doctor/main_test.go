package doctor

import (
	"os"
	"testing"
)

// TestMain sets gRPC's logger before a test uses gRPC.
func TestMain(m *testing.M) {
	DiscardLog()
	os.Exit(m.Run())
}
