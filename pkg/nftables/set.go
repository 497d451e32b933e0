package nftables

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"sort"

	"golang.org/x/sys/unix"

	"flanneld/pkg/firewall"
	"flanneld/pkg/netlink"
)

// maxElements is the maximum size of a set that is evaluated; the elements of a larger one are
// unknown.
const maxElements = 1 << 16

// concatenation is a flag of sets: NFT_SET_CONCAT (5.6).
const concatenation = 0x80

// Flags of elements.
const (
	intervalEnd = unix.NFT_SET_ELEM_INTERVAL_END
	catchAll    = 2 // NFT_SET_ELEM_CATCHALL (5.14)
)

// elements are the elements of a set or map.
type elements struct {
	keyLength int
	interval  bool
	unknown   bool   // too many, ranges of concatenations, or limits
	object    uint32 // kind of the objects of a map; 0 if it has none
	all       []element
}

// element is an element, or the begin or end of an interval.
type element struct {
	key   []byte
	flags uint32
	code  int32 // of the verdict
	chain string
}

// setAttrs returns the attributes of a set or map.
func (c *conn) setAttrs(in table, name string) (map[uint16]netlink.Value, error) {
	body := netlink.Attrs{}.Text(unix.NFTA_SET_TABLE, in.name).Text(unix.NFTA_SET_NAME, name)
	m, err := c.get(message{kind: unix.NFT_MSG_GETSET, family: in.family, body: body})
	if err != nil {
		err = fmt.Errorf("read set %s of %s: %w", name, in, err)
	}
	return m, err
}

// eachElement lists the elements of a set or map.
func (c *conn) eachElement(in table, name string, each func(netlink.Value)) error {
	body := netlink.Attrs{}.
		Text(unix.NFTA_SET_ELEM_LIST_TABLE, in.name).
		Text(unix.NFTA_SET_ELEM_LIST_SET, name)
	return c.dump(fmt.Sprintf("set %s of %s", name, in), unix.NFT_MSG_GETSETELEM, body, func(_ Family, m map[uint16]netlink.Value) {
		for kind, e := range m[unix.NFTA_SET_ELEM_LIST_ELEMENTS].All() {
			if kind == unix.NFTA_LIST_ELEM {
				each(e)
			}
		}
	}, in.family)
}

// readSet lists a set or map.
func (c *conn) readSet(in table, name string) (e elements, err error) {
	m, err := c.setAttrs(in, name)
	if errors.Is(err, unix.ENOENT) {
		err = errChanged
	}
	if err != nil {
		return e, err
	}
	flags := m[unix.NFTA_SET_FLAGS].Uint32BE()
	e.keyLength = int(m[unix.NFTA_SET_KEY_LEN].Uint32BE())
	e.object = m[unix.NFTA_SET_OBJ_TYPE].Uint32BE()
	e.interval = flags&unix.NFT_SET_INTERVAL != 0
	e.unknown = e.interval && flags&concatenation != 0 || hasLimits(m)
	err = c.eachElement(in, name, func(b netlink.Value) {
		if !e.unknown {
			e.all = append(e.all, parseElement(b))
			e.unknown = len(e.all) > maxElements
		}
	})
	sort.SliceStable(e.all, func(i, j int) bool { return bytes.Compare(e.all[i].key, e.all[j].key) < 0 })
	return e, err
}

// hasLimits reports whether elements of a set have an expression that may end the rule.
func hasLimits(set map[uint16]netlink.Value) bool {
	const one, several = 17, 18 // NFTA_SET_EXPR and NFTA_SET_EXPRESSIONS
	for _, x := range append(parseExpressions(set[several]), expression{name: set[one].Map()[unix.NFTA_EXPR_NAME].Text()}) {
		if x.name != "" && x.name != "counter" && x.name != "last" {
			return true
		}
	}
	return false
}

func parseElement(v netlink.Value) element {
	m := v.Map()
	x := element{
		key:   slices.Clone(m[unix.NFTA_SET_ELEM_KEY].Map()[unix.NFTA_DATA_VALUE]),
		flags: m[unix.NFTA_SET_ELEM_FLAGS].Uint32BE(),
	}
	verdict := m[unix.NFTA_SET_ELEM_DATA].Map()[unix.NFTA_DATA_VERDICT].Map()
	x.code = int32(verdict[unix.NFTA_VERDICT_CODE].Uint32BE())
	x.chain = verdict[unix.NFTA_VERDICT_CHAIN].Text()
	return x
}

// find returns the element that matches a key.
func (e elements) find(key []byte) (x element, found bool) {
	var rest *element // matches every other key
	for i, y := range e.all {
		order := bytes.Compare(y.key, key)
		switch {
		case y.flags&catchAll != 0:
			rest = &e.all[i]
		case order == 0 && y.flags&intervalEnd == 0:
			return y, true
		case e.interval && order <= 0: // the last match is the result
			x, found = y, y.flags&intervalEnd == 0
		}
	}
	if !found && rest != nil {
		return *rest, true
	}
	return x, found
}

func (e elements) contains(key []byte, known, not bool) firewall.Met {
	_, found := e.find(key)
	return metIf(found != not, known && !e.unknown)
}

// verdicts returns the steps of a verdict map for a key: at most one, or, if the key is unknown,
// those of all elements.
func (e elements) verdicts(met firewall.Met, key []byte, known bool) []firewall.Step {
	if e.unknown {
		return []firewall.Step{{Met: firewall.Maybe, Do: firewall.PassOrDrop}}
	}
	if known {
		if x, found := e.find(key); found {
			return []firewall.Step{step(met, x.code, x.chain)}
		}
		return nil
	}
	var all []firewall.Step
	for _, x := range e.all {
		s := step(met.And(firewall.Maybe), x.code, x.chain)
		if x.flags&intervalEnd == 0 && !slices.Contains(all, s) {
			all = append(all, s)
		}
	}
	return all
}
