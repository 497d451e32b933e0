package kernel

import (
	"testing"

	"flanneld/pkg/dataplane"
)

// One pass reaches any wanted state from any other, the second pass is empty,
// and what is not ours stays as it was.
func TestSecondPassIsEmpty(t *testing.T) {
	b := newBed(t)
	r := chance(t)
	outside := b.strangers()
	before := outside()
	link := vxlanLink(r)
	for round := range 12 {
		switch round % 6 {
		case 1:
			link.MTU = 1300 + r.IntN(100)
		case 2:
			link.Learning = !link.Learning
		case 3:
			link.MAC = randomMAC(r)
		case 4:
			link.Port = 4000 + r.IntN(1000) // another device
		case 5:
			link.GBP = !link.GBP
		}
		want := wantPeers(r, link, r.IntN(200))
		b.pass(want)
		b.settled(want)
		if after := outside(); after != before {
			t.Fatalf("round %d touched what is not ours:\nbefore:\n%s\nafter:\n%s", round, before, after)
		}
		if t.Failed() {
			t.Fatalf("failed in round %d", round)
		}
	}
	want := dataplane.NewState()
	want.Links[overlay] = link
	b.pass(want)
	b.settled(want)
	if after := outside(); after != before {
		t.Fatalf("leaving touched what is not ours:\nbefore:\n%s\nafter:\n%s", before, after)
	}
}
